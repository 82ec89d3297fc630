#!/usr/bin/env bash
# A new operation that already works, from kernels/template: softsign, to be made into what you want.
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
# The module before the first one that sorts after it, the operation at the end of the table.
awk -v name="$name" '
    /^pub mod / && !done { module = $3; sub(";", "", module); if (module > name) { print "pub mod " name ";"; done = 1 } }
    !done && ((/^#\[cfg\(test\)\]/ && name < "testing") || /^\/\/\/ /) { print "pub mod " name ";"; done = 1 }
    /^\];/ { print "    &" name "::OP," }
    { print }
' "$ops/mod.rs" >"$ops/mod.rs.new"
mv "$ops/mod.rs.new" "$ops/mod.rs"

cat <<END
kernels/src/ops/$name is there, and in the table of operations. Now:

    cargo run --release -- verify $name --device emulator                is it right, for every type, under three schedules?
    cargo run --release -- verify $name --device emulator --trace all    races, bounds, traffic beside its cost
    cargo run --release -- verify $name --mutants                        do its cases notice mistakes?
    cargo run --release -- bench kernels $name                           how fast is it?
    cargo run --release -- profile --static $name                        registers, occupancy, instructions
    cargo run -p swara-verify --bin gate -- --update                     every architecture, into budget.toml
    SWARA_UPDATE=1 cargo test -p swara-verify --test kernel_table        into kernels/README.md
END
