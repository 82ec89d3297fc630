#!/usr/bin/env bash
# Checks and times swara on this machine's GPU. Needs Linux, an NVIDIA driver, NVRTC (`swara doctor` says where to get it) and
# the built binary; no cargo, no Python.
#
#     SWARA=path/to/swara benches/gpu.sh
#
# Writes benches/results/<gpu>/ (or $RESULTS), and compares with the results that a run before left there. Every step runs whatever became of the one before; the exit status is 1 if any failed.
# DEVICE=cuda:1        another GPU
# OLD_SWARA=PATH       an older build: both are timed in turns
# SANITIZER=PATH       compute-sanitizer, if it is not where toolkits put it
# SANITIZE="OP ..."    what to run under it (default: every operation)
# LM_CONFIG=NAME       of the language models timed (default moshi-7b, which wants 18 GB in bf16)
# LM_FORMATS="F ..."   their formats (default bf16 int8 int4)
# MIMI=PATH            the Mimi of whole frames (default random weights)
# SANITIZER_SECONDS=N  limit for each of its four tools (default 300)
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
swara=${SWARA:-$here/../target/release/swara}
device=${DEVICE:-cuda}
ordinal=${device#cuda}
ordinal=${ordinal#:}

die() {
    echo "error: gpu.sh: $1" >&2
    [ $# -lt 2 ] || echo "hint: $2" >&2
    exit 2
}

[ -x "$swara" ] || die "no swara at $swara" "build it with cargo build --release, or set SWARA"
command -v nvidia-smi >/dev/null || die "no nvidia-smi" "install the NVIDIA driver; give a container its GPUs (--gpus all)"
name=$(nvidia-smi --id="${ordinal:-0}" --query-gpu=name --format=csv,noheader) || die "nvidia-smi shows no GPU ${ordinal:-0}"
slug=$(printf '%s' "$name" | tr '[:upper:]' '[:lower:]' | tr -cs '[:alnum:]' '-' | sed 's/^-*//; s/-*$//')
out=${RESULTS:-$here/results/$slug}
mkdir -p "$out"
summary=$out/summary.txt
: >"$summary"
failed=0

say() { printf '%s\n' "$*" | tee -a "$summary"; }

# verdict WHAT STATUS SECONDS
verdict() {
    case $2 in
        0) say "ok       $1 ($3 s)" ;;
        124 | 137) say "TIMEOUT  $1 ($3 s)" && failed=1 ;;
        *) say "FAILED   $1 (exit $2, $3 s)" && failed=1 ;;
    esac
}

# step WHAT FILE COMMAND...: stdout to FILE, stderr shown
step() {
    local what=$1 file=$2 start=$SECONDS status=0
    shift 2
    "$@" >"$out/$file" || status=$?
    verdict "$what" "$status" "$((SECONDS - start))"
}

machine() {
    date -u +%FT%TZ
    uname -srm
    local fields=name,driver_version,memory.total,compute_cap,clocks.max.sm,clocks.max.memory,power.limit,ecc.mode.current
    nvidia-smi --id="${ordinal:-0}" --query-gpu="$fields" --format=csv
    nvidia-smi --id="${ordinal:-0}" --query-gpu=clocks.sm,clocks.mem,temperature.gpu,power.draw,utilization.gpu --format=csv
    sha256sum "$swara"
    "$swara" --version
    "$swara" doctor
}

find_sanitizer() {
    if [ -n "${SANITIZER:-}" ]; then
        printf '%s\n' "$SANITIZER"
        return
    fi
    local candidate
    for candidate in "$(command -v compute-sanitizer || true)" /usr/local/cuda*/bin/compute-sanitizer /opt/cuda/bin/compute-sanitizer \
        /usr/local/cuda*/compute-sanitizer/compute-sanitizer; do
        if [ -x "$candidate" ]; then
            printf '%s\n' "$candidate"
            return
        fi
    done
}

# One log of four parts; a tool's finding is exit status 99.
sanitize() {
    local tool=$1 status=0 start=$SECONDS ops=()
    read -ra ops <<<"${SANITIZE:-}"
    echo "== $tool" >>"$out/sanitizer.txt"
    timeout "${SANITIZER_SECONDS:-300}" "$sanitizer" --tool "$tool" --error-exitcode 99 --print-limit 20 \
        "$swara" verify ${ops[@]+"${ops[@]}"} --device "$device" >>"$out/sanitizer.txt" 2>&1 || status=$?
    verdict "compute-sanitizer $tool" "$status" "$((SECONDS - start))"
}

# has COMMAND: whether this swara has it
has() { grep -qE "^ +$1( |\$)" <<<"$("$swara" --help)"; }

say "$name, $("$swara" --version)"
step "machine" machine.txt machine
step "verify" verify.json "$swara" verify --device "$device" --json
grep -oE '"(passed|failed)": ?[0-9]+' "$out/verify.json" | tr -d '"' | while read -r line; do say "         $line"; done || true

sanitizer=$(find_sanitizer)
if [ -n "$sanitizer" ]; then
    "$sanitizer" --version >"$out/sanitizer.txt"
    for tool in memcheck racecheck initcheck synccheck; do sanitize "$tool"; done
else
    say "SKIPPED  compute-sanitizer is not installed (it comes with the CUDA toolkit; or set SANITIZER)"
fi

# Times what $1 names into bench-$2.json, beside what a run before found.
bench() {
    local kind=$1 what=$2 file=$out/bench-$2.json
    shift 2
    [ ! -s "$file" ] || mv "$file" "$out/bench-$what.before.json"
    step "bench $what" "bench-$what.json" "$swara" bench "$kind" --device "$device" --json - "$@"
    [ -s "$file" ] || return 0
    if [ -s "$out/bench-$what.before.json" ]; then
        step "compare $what with the run before" "compare-$what.txt" "$swara" bench compare "$out/bench-$what.before.json" "$file"
    fi
}

# Prints the medians without and with --pdl, where both are in $1.
pdl() {
    local times
    grep -qE '"pdl": ?true' "$1" || { say "SKIPPED  --pdl: no dependent launches with this GPU or driver"; return 0; }
    times=$(grep -oE '"step_ms_p50": ?[0-9.]+' "$1" | grep -oE '[0-9.]+$' | tr '\n' ' ')
    say "         the same codes without and with --pdl; ms a step: $times"
}

if has bench; then
    bench kernels kernels
    bench codec codec --streams
    for what in kernels codec; do
        [ ! -s "$out/bench-$what.json" ] || step "plot $what" plot.txt "$swara" bench plot "$out/bench-$what.json" "$out/bench-$what.svg"
    done
    for format in ${LM_FORMATS:-bf16 int8 int4}; do
        model=(--random --config "${LM_CONFIG:-moshi-7b}" --format "$format")
        bench lm "lm-$format" "${model[@]}"
        bench lm "lm-$format-no-graph" "${model[@]}" --no-graph
        # The depth transformer as one cooperative kernel is the default; and its kernels one by one within the graph.
        bench lm "lm-$format-plain-depth" "${model[@]}" --plain-depth
        # Kernels that start before the one before has ended, in turns with those that do not: a step that says other codes fails.
        bench lm "lm-$format-pdl" "${model[@]}" --pdl
        [ ! -s "$out/bench-lm-$format-pdl.json" ] || pdl "$out/bench-lm-$format-pdl.json"
        # Samples to samples through a Mimi: one launch, and kernel by kernel, which waits for the device after every stage.
        bench lm "lm-$format-frame" "${model[@]}" "--mimi=${MIMI:-random}"
        bench lm "lm-$format-frame-no-graph" "${model[@]}" --no-graph "--mimi=${MIMI:-random}"
    done
    if [ -n "${OLD_SWARA:-}" ]; then
        step "compare with $OLD_SWARA in turns" compare-turns.txt "$swara" bench compare --run "$OLD_SWARA" "$swara" --device "$device"
    fi
    nvidia-smi --id="${ordinal:-0}" --query-gpu=clocks.sm,temperature.gpu,clocks_throttle_reasons.active --format=csv >>"$out/machine.txt" || true
else
    say "SKIPPED  bench: this swara has no bench command, so nothing was timed"
fi

say "results in $out"
exit "$failed"
