//! CUDA text: one `.cu` file an op plus the shared headers it includes.

use std::path::PathBuf;
use std::sync::OnceLock;

use crate::{Error, Result};

/// The shared headers of `kernels/cuda`, by the name an `#include "..."` uses.
macro_rules! headers {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("../../cuda/", $name)))),*] };
}
const HEADERS: &[(&str, &str)] = headers![
    "types.cuh",
    "ptx.cuh",
    "block.cuh",
    "vec.cuh",
    "mma.cuh",
    "activation.cuh",
    "snake.cuh",
    "norm.cuh",
    "rng.cuh",
    "sample.cuh",
    "codes.cuh",
    "products.cuh",
    "gemm.cuh",
    "attention.cuh",
    "attention_gradient.cuh",
    "few_rows.cuh",
    "linear.cuh",
    "linear_tile.cuh"
];

/// One compilation unit.
#[derive(Debug)]
pub struct Source {
    /// Path below `kernels/src`, e.g. `ops/snake/snake.cu`.
    pub path: &'static str,
    /// The text built into this binary.
    pub text: &'static str,
    /// Architectures it is for, e.g. `&[75, 80, 86, 89, 90, 100, 120]`.
    pub archs: &'static [u32],
}

/// Every architecture the engine supports.
pub const ALL_ARCHS: &[u32] = &[75, 80, 86, 89, 90, 100, 120];
/// Those with asynchronous copies, and tensor cores for bf16 and tf32.
pub const FROM_SM_80: &[u32] = &[80, 86, 89, 90, 100, 120];

static OVERRIDE: OnceLock<PathBuf> = OnceLock::new();

/// Takes all CUDA text from `dir` instead of from the binary (`--kernels DIR`, a checkout's `kernels` folder). First call wins.
pub fn use_directory(dir: PathBuf) {
    let _ = OVERRIDE.set(dir);
}

impl Source {
    /// The text with every `#include "..."` replaced by the header, each once. No compiler needs an include path.
    pub fn expanded(&self) -> Result<String> {
        let mut included = Vec::new();
        let text = match OVERRIDE.get() {
            Some(dir) => read(&dir.join("src").join(self.path))?,
            None => self.text.to_owned(),
        };
        let mut out = String::new();
        expand(self.path, &text, &mut included, &mut out)?;
        Ok(out)
    }

    /// Names of the `extern "C" __global__` kernels that the expanded text defines, in order.
    pub fn kernels(&self) -> Result<Vec<String>> {
        Ok(kernel_names(&self.expanded()?))
    }

    /// Those of them that may be launched before the kernel before them has ended ([`Driver::dependent_launches`](super::Driver)): they
    /// stand in a `// dependents: a b c` comment in place of `// kernels:`.
    pub fn dependents(&self) -> Result<Vec<String>> {
        Ok(listed(&self.expanded()?, &["// dependents:"]).collect())
    }
}

/// What comments with these headings list, in order.
fn listed(text: &str, headings: &[&str]) -> impl Iterator<Item = String> {
    let lines = text.lines().filter_map(|line| headings.iter().find_map(|heading| line.trim_start().strip_prefix(heading)));
    lines.flat_map(str::split_whitespace).map(str::to_owned)
}

fn expand(file: &str, text: &str, included: &mut Vec<String>, out: &mut String) -> Result<()> {
    out.push_str(&format!("#line 1 \"{file}\"\n"));
    for (n, line) in text.lines().enumerate() {
        let header = line.trim_start().strip_prefix("#include \"").and_then(|rest| rest.split('"').next());
        let Some(name) = header else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        if !included.iter().any(|i| i == name) {
            included.push(name.to_owned());
            let body = match OVERRIDE.get() {
                Some(dir) => read(&dir.join("cuda").join(name))?,
                None => HEADERS
                    .iter()
                    .find(|(h, _)| *h == name)
                    .map(|(_, body)| (*body).to_owned())
                    .ok_or_else(|| Error::Compile { source_name: file.to_owned(), log: format!("no header {name}") })?,
            };
            expand(name, &body, included, out)?;
        }
        out.push_str(&format!("#line {} \"{file}\"\n", n + 2));
    }
    Ok(())
}

fn read(path: &std::path::Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| Error::Io { path: path.display().to_string(), why: e.to_string() })
}

/// Kernels are declared `extern "C" __global__ void [__launch_bounds__(...)] name(`, possibly through a macro that pastes a
/// dtype suffix; a macro user lists the pasted names in a `// kernels: a b c` comment, or `// dependents:`.
fn kernel_names(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    // A line that goes on with a backslash is the body of such a macro: what it names is no kernel yet.
    for line in text.lines().filter(|line| !line.ends_with('\\')) {
        let before = names.len();
        names.extend(listed(line, &["// kernels:", "// dependents:"]));
        if names.len() > before {
            continue;
        }
        if let Some(rest) = line.trim_start().strip_prefix("extern \"C\" __global__") {
            let head = match rest.find("__launch_bounds__") {
                Some(at) => rest[at..].split_once(')').map_or("", |(_, r)| r),
                None => rest.trim_start().strip_prefix("void").unwrap_or(""),
            };
            let name: String = head
                .trim_start()
                .trim_start_matches("void")
                .trim_start()
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            let pasted = head.contains(&format!("{name}##")); // in a macro; the comment lists what it becomes
            if !name.is_empty() && !pasted && head.contains('(') && !names.contains(&name) {
                names.push(name);
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::REGISTRY;

    #[test]
    fn kernels_of_a_models_step_are_dependents_and_no_others() -> Result<()> {
        const STEMS: [&str; 12] = [
            "attention_combine",
            "attention_few_128",
            "attention_few_128_int8",
            "attention_few_64",
            "attention_few_64_int8",
            "layer_norm",
            "linear_1",
            "linear_int4_1",
            "linear_int8_1",
            "rms_norm",
            "rope_append",
            "rope_append_int8",
        ];
        let mut expected: Vec<String> =
            STEMS.iter().flat_map(|stem| ["f32", "bf16", "f16"].map(|dtype| format!("{stem}_{dtype}"))).collect();
        let mut found = Vec::new();
        for source in REGISTRY.iter().flat_map(|op| op.sources) {
            let (kernels, dependents) = (source.kernels()?, source.dependents()?);
            assert!(dependents.iter().all(|kernel| kernels.contains(kernel)), "{}", source.path);
            found.extend(dependents);
        }
        expected.sort();
        found.sort();
        found.dedup();
        assert_eq!(found, expected);
        Ok(())
    }
}
