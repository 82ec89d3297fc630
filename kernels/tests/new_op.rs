//! `new-op.sh`, in a copy of what it changes. The template itself is built and tested as a module of the library's tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn run(root: &Path, name: &str) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("new-op.sh");
    Command::new("bash").arg(script).arg(name).env("SWARA_KERNELS", root).output().unwrap()
}

/// A copy of what the script reads and changes.
fn copy(root: &Path) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = root.join("src/ops/mod.rs");
    std::fs::create_dir_all(root.join("src/ops")).unwrap();
    std::fs::create_dir(root.join("template")).unwrap();
    std::fs::copy(here.join("src/ops/mod.rs"), &table).unwrap();
    for file in std::fs::read_dir(here.join("template")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), root.join("template").join(file.file_name())).unwrap();
    }
    table
}

#[test]
fn a_new_operation_is_a_folder_and_two_lines() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let table = copy(root);
    let before = std::fs::read_to_string(&table).unwrap();

    let output = run(root, "hard_sine");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let after = std::fs::read_to_string(&table).unwrap();
    let added: Vec<&str> = after.lines().filter(|line| !before.lines().any(|known| known == *line)).collect();
    assert_eq!(added, ["pub mod hard_sine;", "    &hard_sine::OP,"]);
    assert_eq!(after.lines().count(), before.lines().count() + 2);
    let text = |file: &str| std::fs::read_to_string(root.join("src/ops/hard_sine").join(file)).unwrap();
    for file in ["mod.rs", "cpu.rs", "cuda.rs", "cases.rs", "hard_sine.cu"] {
        assert!(!text(file).contains("template"), "{file}");
    }
    assert!(text("hard_sine.cu").contains("// kernels: hard_sine_f32"));

    for wrong in ["hard_sine", "", "Hard", "../x", "a b", "snake"] {
        let output = run(root, wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: new-op: "), "{wrong:?}");
        assert_eq!(std::fs::read_to_string(&table).unwrap(), after, "{wrong:?}");
    }
}

#[test]
fn modules_stay_sorted_and_keep_what_is_written_above_them() {
    let scratch = tempfile::tempdir().unwrap();
    let table = copy(scratch.path());
    for name in ["a", "hardshrink", "stuff", "templates", "tests", "zeta"] {
        assert!(run(scratch.path(), name).status.success(), "{name}");
    }
    let text = std::fs::read_to_string(table).unwrap();
    let module = |line: &str| Some(line.trim_start_matches("pub ").strip_prefix("mod ")?.trim_end_matches(';').to_owned());
    let modules: Vec<String> = text.lines().filter_map(module).collect();
    assert!(modules.is_sorted(), "{modules:?}");
    for above in ["#[path = \"../../template/mod.rs\"]\nmod template;", "#[cfg(test)]\npub mod testing;"] {
        assert!(text.contains(above), "{above}");
    }
}
