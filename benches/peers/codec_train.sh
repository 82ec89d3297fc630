#!/usr/bin/env bash
# A training step of swara-te50 in swara and in PyTorch, in turns on this CPU; the last line is the ratio of the medians.
#
#     PYTHON=path/to/python benches/peers/codec_train.sh [BATCH] [ROUNDS]
#
# PYTHON needs torch and numpy. Run it with nothing else running.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python3}
batch=${1:-5} rounds=${2:-3} threads=${THREADS:-2}
cargo build --release --quiet -p swara-benches --bin codec_train
target=$(cargo metadata --format-version 1 --no-deps | "$python" -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
lines=$(mktemp)
trap 'rm -f "$lines"' EXIT
for _ in $(seq "$rounds"); do
    "$target/release/codec_train" "$batch" 1 10 "$threads" | tee -a "$lines"
    "$python" benches/peers/codec_train.py --batch "$batch" --threads "$threads" | tee -a "$lines"
done
"$python" - "$lines" <<'PY'
import json, statistics, sys
medians = {}
for line in open(sys.argv[1]):
    row = json.loads(line)
    medians.setdefault(row["peer"].split()[0], []).append(row["ms_median"])
ours, theirs = (statistics.median(medians[peer]) for peer in ("swara", "torch"))
print(f"swara {ours:.0f} ms, PyTorch {theirs:.0f} ms a step: {theirs / ours:.2f} x as fast")
PY
