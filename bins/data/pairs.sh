#!/bin/bash
# Minimal pairs of Telugu words (sentences/te-pairs.tsv) in a synthetic voice, as OUT_DIR/CONTRAST/NNN_{a,b}.wav and, a quarter slower,
# NNN_{a,b}_x.wav: what `swara bench phones OUT_DIR` reads. Wants festival, festvox-te-nsk and
# festvox-kallpc16k: see fetch.sh.
set -euo pipefail

[ $# = 1 ] || { echo "usage: $0 OUT_DIR" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
command -v text2wave >/dev/null || { echo "error: no text2wave: install festival festvox-te-nsk festvox-kallpc16k" >&2; exit 1; }
find /usr/share/festival/voices -name telugu_NSK_diphone 2>/dev/null | grep -q . ||
    { echo "error: no voice telugu_NSK_diphone: install festvox-te-nsk" >&2; exit 1; }
text=$(mktemp)
trap 'rm -f "$text"' EXIT

# say WORD FILE STRETCH
say() {
    echo "$1" >"$text"
    text2wave -eval "(voice_telugu_NSK_diphone)" -eval "(Parameter.set 'Duration_Stretch $3)" "$text" -o "$2.new" 2>/dev/null
    mv "$2.new" "$2"
}

number=0
while IFS=$'\t' read -r contrast a b; do
    number=$((number + 1))
    folder=$1/${contrast// /-}
    mkdir -p "$folder"
    for side in a b; do
        stem=$(printf '%s/%03d_%s' "$folder" "$number" "$side")
        say "${!side}" "$stem.wav" 1.0
        say "${!side}" "${stem}_x.wav" 1.25
    done
done <"$here/sentences/te-pairs.tsv"
echo "$number pairs"
