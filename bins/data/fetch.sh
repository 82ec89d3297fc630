#!/bin/bash
# Speech to train the bundled codec on: installs (or, without root, unpacks) Debian packages and lays their audio out as
# OUT_DIR/SPEAKER/LANGUAGE/..., the shape that `swara prepare` reads speakers and languages from. README.md says whose it is.
set -euo pipefail

[ $# = 1 ] || { echo "usage: $0 OUT_DIR" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)

packages=(festvox-ru klettres-data festival festival-te festvox-te-nsk festival-hi festvox-hi-nsk festvox-kallpc16k)
for language in en es fr it ru; do packages+=("asterisk-core-sounds-$language-g722"); done

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done

root=
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ]; then
        apt-get install -y --no-install-recommends "${missing[@]}"
    else
        # Only the packages with recordings can be used unpacked; a voice needs its synthesiser installed.
        root=$(mktemp -d)
        trap 'rm -rf "$root"' EXIT
        for package in "${missing[@]}"; do
            case $package in
                *asterisk* | klettres-data | festvox-ru) ;;
                *) continue ;;
            esac
            (cd "$root" && apt-get download "$package" && dpkg -x "$package"_*.deb .)
        done
    fi
fi

# Prints the installed or unpacked place of a folder under /usr/share.
place() {
    for base in /usr/share "$root/usr/share"; do
        if [ -d "$base/$1" ]; then
            echo "$base/$1"
            return
        fi
    done
    echo "error: no folder $1: its package is not installed" >&2
    return 1
}

# copy SPEAKER LANGUAGE FOLDER EXTENSION
copy() {
    local from to=$out/$1/$2
    from=$(place "$3")
    mkdir -p "$to"
    # Without the prompts that are no speech.
    (cd "$from" && find . -name "*.$4" ! -path '*silence*' ! -name '*beep*' ! -name '*tone.*' -print0 |
        tar -c --null -T - -f -) | tar -x -C "$to" -f -
    printf '%-16s %-6s %s files\n' "$1" "$2" "$(find "$to" -name "*.$4" | wc -l)"
}

# speak SPEAKER LANGUAGE VOICE: reads sentences/LANGUAGE.txt, one file a line.
speak() {
    local to=$out/$1/$2 count=0 failed=0 line name text
    if ! command -v text2wave >/dev/null || ! find /usr/share/festival/voices -name "$3" | grep -q .; then
        echo "skipped $1: install festival with its voice $3 to have it" >&2
        return
    fi
    mkdir -p "$to"
    text=$(mktemp)
    while IFS= read -r line; do
        count=$((count + 1))
        name=$(printf '%s/%s_%04d.wav' "$to" "$2" "$count")
        [ -s "$name" ] && continue
        echo "$line" >"$text"
        if text2wave -eval "(voice_$3)" "$text" -o "$name.new" 2>/dev/null && [ -s "$name.new" ]; then
            mv "$name.new" "$name"
        else
            rm -f "$name.new"
            failed=$((failed + 1))
        fi
    done <"$here/sentences/$2.txt"
    rm -f "$text"
    printf '%-16s %-6s %s files, %s sentences failed\n' "$1" "$2" "$(find "$to" -name '*.wav' | wc -l)" "$failed"
}

copy nsh ru festival/voices/russian/msu_ru_nsh_clunits/wav wav
# One voice in two languages.
copy allison en asterisk/sounds/en_US_f_Allison g722
copy allison es asterisk/sounds/es_MX_f_Allison g722
copy june fr asterisk/sounds/fr_CA_f_June g722
copy carlo it asterisk/sounds/it_IT_m_Carlo g722
copy maxim ru asterisk/sounds/ru_RU_f_IvrvoiceRU g722
klettres=$(place klettres)
for folder in "$klettres"/*/alpha; do
    language=$(basename "$(dirname "$folder")")
    copy "klettres-$language" "$language" "klettres/$language" ogg
done
speak telugu-nsk te telugu_NSK_diphone
speak hindi-nsk hi hindi_NSK_diphone
