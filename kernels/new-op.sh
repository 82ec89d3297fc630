#!/usr/bin/env bash
# A new operation that already works, from kernels/template: softsign and its gradient, to be made into what you want.
#
#     kernels/new-op.sh NAME
#
# Then edit src/ops/NAME and run what it prints.
set -euo pipefail

here=${SWARA_KERNELS:-$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)}
name=${1:-}
ops=$here/src/ops

die() {
    echo "error: new-op: $1" >&2
    exit 2
}

[[ $name =~ ^[a-z][a-z0-9_]*$ ]] || die "a name in small letters, digits and underscores is wanted, not '$name'"
[ ! -e "$ops/$name" ] || die "src/ops/$name is there already"
! grep -qE "^(pub )?mod $name;" "$ops/mod.rs" || die "ops/mod.rs has a module $name"

mkdir "$ops/$name"
for file in mod.rs cpu.rs cuda.rs cases.rs; do sed "s/template/$name/g" "$here/template/$file" >"$ops/$name/$file"; done
sed "s/template/$name/g" "$here/template/template.cu" >"$ops/$name/$name.cu"
# The module before the first one that sorts after it, and before what is written above that one; the operation at the end of
# the table.
LC_ALL=C awk -v name="$name" '
    function place() { if (!done) print "pub mod " name ";"; done = 1 }
    /^(#\[|\/\/\/)/ { above = above $0 "\n"; next }
    /^(pub )?mod / { modules = 1; module = $NF; sub(";", "", module); if (module > name) place() }
    /^$/ && modules { place() }
    /^\];/ { print "    &" name "::OP," }
    { printf "%s", above; above = ""; print }
' "$ops/mod.rs" >"$ops/mod.rs.new"
mv "$ops/mod.rs.new" "$ops/mod.rs"

bin=${CARGO_TARGET_DIR:-target}/release
cat <<END
kernels/src/ops/$name is there, and in the table of operations. Make it what you want; then, from the root of the checkout:

cargo test -p swara-kernels --lib ops::$name
    its formula and its gradients, and f32, bf16 and f16 on the emulator beside the twin: the quickest answer
cargo build --release -p swara -p swara-verify --bins
    what the rest runs. Not again after a change of .cu files alone: --kernels takes them from here
$bin/swara verify $name --kernels kernels --device cpu
$bin/swara verify $name --kernels kernels --device emulator
    is it right, for every type, under three schedules?
$bin/swara verify $name --kernels kernels --device emulator --trace all
    races, bounds, traffic beside its cost
$bin/swara verify $name --kernels kernels --mutants
    do its cases notice mistakes?
$bin/swara bench kernels $name
    how fast is it?
$bin/swara profile --static $name --kernels kernels
    registers, occupancy, instructions (NVRTC and nvdisasm; it says where to get them)
$bin/gate --update --kernels kernels
    every architecture, into kernels/budget.toml (the same two)
SWARA_UPDATE=1 cargo test --release -p swara -p swara-verify --test kernel_table
    into kernels/README.md
.ci/run
    everything else that must hold
END
