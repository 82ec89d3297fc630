//! `kernels/README.md` is generated from the operations themselves and the compile gate's budget; this test keeps it current.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use swara_kernels::ops;

const HEAD: &str = "\
# swara-kernels

One folder an operation under [`src/ops`](src/ops): the contract and the cases (`mod.rs`), the plain Rust twin that is the CPU
device in f32 and the oracle in f64 (`cpu.rs`), the kernels (`.cu`) and their launches (`cuda.rs`). Shared CUDA text is in
[`cuda`](cuda), the emulator's runtime in [`emulator`](emulator).

This page is generated: `SWARA_UPDATE=1 cargo test -p swara-verify --test kernel_table`. Registers are those of sm_90a in
[`budget.toml`](budget.toml), over the kernels of a file. No kernel has been timed on a GPU yet.

| operation | kernels | dtypes | architectures | cases | registers (sm_90a) |
|---|---|---|---|---|---|
";

fn registers(budget: &toml::Table, op: &str) -> String {
    let kernels = budget.get("kernels").and_then(|k| k.get(op)).and_then(toml::Value::as_table);
    let counts: Vec<i64> =
        kernels.into_iter().flat_map(|kernels| kernels.values()).filter_map(|k| k.get("registers")?.get("sm_90a")?.as_integer()).collect();
    match (counts.iter().min(), counts.iter().max()) {
        (Some(low), Some(high)) if low == high => low.to_string(),
        (Some(low), Some(high)) => format!("{low} to {high}"),
        _ => "-".to_owned(),
    }
}

#[test]
fn the_kernel_table_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let budget: toml::Table = std::fs::read_to_string(root.join("kernels/budget.toml")).unwrap_or_default().parse().unwrap();
    let mut rows = BTreeMap::new();
    for op in ops::REGISTRY {
        let cases = (op.cases)();
        assert!(!cases.is_empty(), "{} has no cases", op.name);
        let dtypes: BTreeSet<&str> = cases.iter().map(|c| c.dtype.name()).collect();
        let source = op.source.unwrap_or_else(|| panic!("{} has no kernels", op.name));
        let archs: Vec<String> = source.archs.iter().map(u32::to_string).collect();
        let dtypes: Vec<&str> = dtypes.into_iter().collect();
        rows.insert(
            op.name,
            format!(
                "| [`{0}`](src/ops/{0}/mod.rs) | {1} | {2} | {3} | {4} | {5} |\n",
                op.name,
                source.kernels().unwrap().len(),
                dtypes.join(" "),
                archs.join(" "),
                cases.len(),
                registers(&budget, op.name)
            ),
        );
    }
    let expected = rows.values().fold(HEAD.to_owned(), |page, row| page + row);
    let path = root.join("kernels/README.md");
    if std::env::var_os("SWARA_UPDATE").is_some() {
        std::fs::write(&path, expected).unwrap();
    } else {
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == expected, "kernels/README.md is not current: SWARA_UPDATE=1 cargo test -p swara-verify --test kernel_table");
    }
}
