//! What the compiler made of one source on one architecture: registers, memory, machine code. Needs NVRTC and, for the machine
//! code, nvdisasm; no GPU.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use swara_kernels::Error;
use swara_kernels::driver::Source;
use swara_kernels::driver::cache::Cache;
use swara_kernels::driver::nvrtc::{Nvrtc, OPTIONS, target};

/// One kernel on one architecture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    pub registers: u32,
    /// Static shared memory in bytes.
    pub shared: u32,
    /// Bytes of stack frame a thread.
    pub stack: u32,
    /// Bytes of spill stores and spill loads.
    pub spilled: u32,
    /// `None` without nvdisasm.
    pub code: Option<Code>,
}

/// What stands in the machine code, counted once however often it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Code {
    /// Size with its padding.
    pub bytes: u32,
    /// Loads from and stores to local memory.
    pub local: u32,
    /// 16-byte loads from global memory, asynchronous copies included.
    pub wide_loads: u32,
    /// Tensor-core instructions.
    pub mma: u32,
    /// Copies of tiles by tensor maps.
    pub tile_copies: u32,
    pub dependent: Dependent,
    pub mix: Mix,
}

/// How a kernel takes part in programmatic dependent launches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dependent {
    /// It neither waits for the kernels before it nor lets those after it start.
    #[default]
    No,
    /// It does both on the way that all threads take from their beginning, before any global access.
    Able,
    /// Something of this is missing, or too late.
    Unsafe,
}

/// Whether what a kernel does next is still on that way.
#[derive(Default)]
struct Beginning {
    lets_start: bool,
    waits: bool,
    /// A global access, a branch or an exit came.
    over: bool,
}

impl Beginning {
    /// What is known of the kernel after this instruction.
    fn take(&mut self, family: &str, predicated: bool, known: Dependent) -> Dependent {
        let in_time = !self.over && !predicated;
        match family {
            "PREEXIT" => self.lets_start |= in_time && !self.waits,
            "ACQBULK" => self.waits |= in_time,
            // What asks for a line of a cache is no access.
            _ => {
                const ACCESSES: [&str; 13] =
                    ["LD", "ST", "STG", "ATOM", "ATOMG", "RED", "REDG", "UBLKCP", "UBLKRED", "TEX", "TLD", "TLD4", "LDGSTS"];
                const KINDS: [&str; 3] = ["LDG", "UTMA", "SU"];
                const WAYS: [&str; 12] = ["BRA", "BRX", "BRXU", "JMP", "JMX", "JMXU", "CALL", "EXIT", "RET", "BREAK", "BSYNC", "KILL"];
                self.over |= ACCESSES.contains(&family) || WAYS.contains(&family) || KINDS.iter().any(|kind| family.starts_with(kind));
                return known;
            }
        }
        if self.lets_start && self.waits { Dependent::Able } else { Dependent::Unsafe }
    }
}

/// Instructions by [`CLASSES`].
pub type Mix = [u32; CLASSES.len()];

/// Classes of instructions: a name, and the families in it (a mnemonic up to its first dot). `LDG` and `STG` are told apart by
/// width. What belongs to no class is the last one's; padding (`NOP`) is nobody's.
pub const CLASSES: [(&str, &[&str]); 22] = [
    (
        "f32",
        &[
            "FADD", "FADD2", "FADD32I", "FMUL", "FMUL2", "FMUL32I", "FFMA", "FFMA2", "FFMA32I", "FMNMX", "FMNMX3", "FSEL", "FSET", "FSETP",
            "FCHK", "FSWZADD",
        ],
    ),
    ("f16", &["HADD2", "HADD2_32I", "HMUL2", "HMUL2_32I", "HFMA2", "HFMA2_32I", "HMNMX2", "HSET2", "HSETP2"]),
    ("f64", &["DADD", "DMUL", "DFMA", "DMNMX", "DSETP"]),
    ("mufu", &["MUFU"]),
    ("mma", &["HMMA", "IMMA", "QMMA", "DMMA", "HGMMA", "IGMMA", "QGMMA", "OMMA"]),
    ("convert", &["F2F", "F2I", "F2FP", "F2IP", "FRND", "I2F", "I2FP", "I2I", "I2IP", "UF2I", "UI2F"]),
    (
        "integer",
        &[
            "BMSK",
            "BREV",
            "FLO",
            "IABS",
            "IADD",
            "IADD3",
            "IADD32I",
            "IDP",
            "IMAD",
            "IMNMX",
            "IMUL",
            "ISCADD",
            "ISETP",
            "LEA",
            "LOP",
            "LOP3",
            "LOP32I",
            "P2R",
            "PLOP3",
            "POPC",
            "PRMT",
            "R2P",
            "SEL",
            "SGXT",
            "SHF",
            "SHL",
            "SHR",
            "VABSDIFF",
            "VIADD",
            "VIADDMNMX",
            "VIMNMX",
            "VIMNMX3",
            "UBMSK",
            "UBREV",
            "UFLO",
            "UIADD3",
            "UIMAD",
            "UISETP",
            "ULEA",
            "ULOP3",
            "UP2UR",
            "UPLOP3",
            "UPOPC",
            "UPRMT",
            "USEL",
            "USGXT",
            "USHF",
            "UVIADD",
            "UVIMNMX",
            "UIMNMX",
            "UIABS",
        ],
    ),
    ("move", &["BMOV", "CS2R", "CS2UR", "MOV", "MOV32I", "R2UR", "S2R", "S2UR", "UMOV", "UR2UP"]),
    ("warp", &["MATCH", "REDUX", "CREDUX", "SHFL", "VOTE", "VOTEU"]),
    ("constant", &["LDC", "LDCU", "ULDC"]),
    ("ldg 1-4", &[]),
    ("ldg 8", &[]),
    ("ldg 16", &[]),
    ("stg 1-4", &[]),
    ("stg 8", &[]),
    ("stg 16", &[]),
    ("ldgsts", &["LDGSTS", "LDGDEPBAR", "UTMALDG"]),
    ("lds", &["LDS", "LDSM", "STS", "STSM"]),
    ("atomic", &["ATOM", "ATOMG", "ATOMS", "RED", "REDG"]),
    ("barrier", &["BAR", "CGAERRBAR", "DEPBAR", "ERRBAR", "MEMBAR", "CCTL", "NANOSLEEP", "SYNCS", "WARPGROUP"]),
    ("branch", &["BRA", "BREAK", "BRX", "BRXU", "BSSY", "BSYNC", "CALL", "EXIT", "JMP", "RET", "WARPSYNC", "YIELD"]),
    ("other", &[]),
];

/// Index into [`CLASSES`], or `None` for padding.
fn class(mnemonic: &str) -> Option<usize> {
    let family = mnemonic.split('.').next().unwrap_or(mnemonic);
    let width = || if mnemonic.contains(".128") { 2 } else { mnemonic.contains(".64") as usize };
    match family {
        "NOP" => None,
        "LDG" | "LD" => Some(10 + width()),
        "STG" | "ST" => Some(13 + width()),
        _ => Some(CLASSES.iter().position(|(_, families)| families.contains(&family)).unwrap_or(CLASSES.len() - 1)),
    }
}

/// What one compilation told.
#[derive(Default, Serialize, Deserialize)]
pub struct Report {
    pub kernels: BTreeMap<String, Figures>,
    pub warnings: Vec<String>,
}

/// Compiles `source` and reads off every kernel's figures, or recalls them: they follow from the text, the target and the tools.
pub fn measure(nvrtc: &Nvrtc, nvdisasm: Option<&Path>, source: &Source, arch: u32) -> Result<Report, String> {
    let (text, target) = (source.expanded().map_err(|e| e.to_string())?, target(arch));
    let measure = || {
        let report = compile(nvrtc, nvdisasm, source.path, &text, &target)?;
        serde_json::to_vec(&report).map_err(|e| e.to_string())
    };
    let tools = format!("{} {} {nvdisasm:?}", OPTIONS.join(" "), nvrtc.identity());
    let key = [include_str!("measure.rs"), &text, &target, &tools].map(str::as_bytes);
    let mut failure = None;
    let entry = Cache::open().and_then(|cache| {
        cache.entry("gate", "json", &key, || {
            measure().map_err(|why| {
                failure = Some(why);
                Error::argument("gate", "failed")
            })
        })
    });
    let bytes = match (entry, failure) {
        (_, Some(why)) => return Err(why),
        (Ok(entry), None) => entry.bytes,
        (Err(_), None) => measure()?, // no cache on this machine
    };
    serde_json::from_slice(&bytes).map_err(|e| e.to_string())
}

fn compile(nvrtc: &Nvrtc, nvdisasm: Option<&Path>, path: &str, text: &str, target: &str) -> Result<Report, String> {
    let compiled = nvrtc.compile(path, text, target, &["--ptxas-options=-v"]).map_err(|e| e.to_string())?;
    let mut kernels = read_log(&compiled.log);
    if let Some(nvdisasm) = nvdisasm {
        let code = read_code(&disassemble(nvdisasm, &compiled.cubin)?);
        for (name, figures) in &mut kernels {
            figures.code = Some(*code.get(name).ok_or_else(|| format!("{path}: nvdisasm shows no code of {name}"))?);
        }
    }
    let warnings = compiled
        .log
        .lines()
        .filter(|line| line.contains(": warning") || line.starts_with("ptxas warning") || line.contains("Performance Loss"));
    Ok(Report { kernels, warnings: warnings.map(|line| format!("{target}: {line}")).collect() })
}

/// The report that `ptxas -v` leaves in the compiler's log.
fn read_log(log: &str) -> BTreeMap<String, Figures> {
    let mut kernels = BTreeMap::new();
    let mut current = None;
    for line in log.lines() {
        if let Some(entry) = line.split("entry function '").nth(1).and_then(|rest| rest.split('\'').next()) {
            current = Some(entry.to_owned());
            kernels.insert(entry.to_owned(), Figures::default());
        }
        let Some(figures) = current.as_ref().and_then(|name| kernels.get_mut(name)) else { continue };
        let before = |words: &str| -> u32 {
            let head = line.split(words).next().filter(|head| head.len() < line.len());
            head.and_then(|head| head.split_whitespace().last()).and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        if line.contains("bytes stack frame") {
            // Functions that were not inlined report here too; their spills are the kernel's.
            figures.stack += before(" bytes stack frame");
            figures.spilled += before(" bytes spill stores") + before(" bytes spill loads");
        }
        if line.contains(" registers") {
            figures.registers = before(" registers");
            figures.shared = before(" bytes smem");
        }
    }
    kernels
}

/// Since Volta.
const INSTRUCTION_BYTES: u32 = 16;

/// Counts instructions by kernel in a disassembly.
fn read_code(listing: &str) -> BTreeMap<String, Code> {
    let mut kernels: BTreeMap<String, Code> = BTreeMap::new();
    let mut current = None;
    let mut beginning = Beginning::default();
    for line in listing.lines().map(str::trim_start) {
        if let Some(name) = line.strip_prefix(".section").and_then(|rest| rest.trim_start().strip_prefix(".text.")) {
            let name = name.split([',', ' ', '\t']).next().unwrap_or(name).to_owned();
            current = Some(name.clone());
            beginning = Beginning::default();
            kernels.insert(name, Code::default());
        }
        let Some((address, instruction)) = line.strip_prefix("/*").and_then(|rest| rest.split_once("*/")) else { continue };
        let Some(code) = current.as_ref().and_then(|name| kernels.get_mut(name)) else { continue };
        let Some(mnemonic) = instruction.split_whitespace().find(|word| !word.starts_with(['@', '{'])) else { continue };
        let mnemonic = mnemonic.trim_end_matches(';');
        let family = mnemonic.split('.').next().unwrap_or(mnemonic);
        if let Ok(address) = u32::from_str_radix(address, 16) {
            code.bytes = code.bytes.max(address.saturating_add(INSTRUCTION_BYTES));
        }
        if let Some(class) = class(mnemonic) {
            code.mix[class] += 1;
        }
        code.local += matches!(family, "LDL" | "STL") as u32;
        code.wide_loads += (matches!(family, "LDG" | "LDGSTS") && mnemonic.contains(".128")) as u32;
        code.mma += matches!(family, "HMMA" | "IMMA" | "QMMA" | "HGMMA" | "IGMMA" | "QGMMA") as u32;
        code.tile_copies += (family == "UTMALDG") as u32;
        code.dependent = beginning.take(family, instruction.contains('@'), code.dependent);
    }
    kernels
}

fn disassemble(nvdisasm: &Path, cubin: &[u8]) -> Result<String, String> {
    let refuse = |why: String| format!("{}: {why}", nvdisasm.display());
    let io = |e: std::io::Error| refuse(e.to_string());
    let mut file = tempfile::Builder::new().suffix(".cubin").tempfile().map_err(io)?;
    file.write_all(cubin).map_err(io)?;
    let output = Command::new(nvdisasm).arg("--print-code").arg(file.path()).stdin(Stdio::null()).output().map_err(io)?;
    if !output.status.success() {
        return Err(refuse(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `SWARA_NVDISASM`, else beside NVRTC (toolkit, Python wheels), else on the `PATH`.
pub fn find_nvdisasm(nvrtc: &Path) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("SWARA_NVDISASM") {
        return Some(path.into());
    }
    let beside = nvrtc.ancestors().skip(1).take(3).flat_map(|dir| {
        let nested = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
        std::iter::once(dir.join("bin")).chain(nested).collect::<Vec<_>>()
    });
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside.chain(std::env::split_paths(&path)).map(|dir| dir.join("nvdisasm")).find(|tool| tool.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiler_log_is_read_kernel_by_kernel() {
        let log = "ptxas info    : 24 bytes gmem\n\
            ptxas info    : Compiling entry function 'a' for 'sm_90a'\n\
            ptxas info    : Function properties for a\n\
            ptxas         .     296 bytes stack frame, 564 bytes spill stores, 608 bytes spill loads\n\
            ptxas info    : Used 32 registers, used 0 barriers, 296 bytes cumulative stack size\n\
            ptxas info    : Compiling entry function 'b' for 'sm_90a'\n\
            ptxas info    : Function properties for b\n\
            ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
            ptxas info    : Used 25 registers, used 1 barriers, 256 bytes smem, 372 bytes cmem[0]";
        let kernels = read_log(log);
        assert_eq!(kernels["a"], Figures { registers: 32, shared: 0, stack: 296, spilled: 564 + 608, code: None });
        assert_eq!(kernels["b"], Figures { registers: 25, shared: 256, ..Figures::default() });
        assert_eq!(kernels.len(), 2);
    }

    #[test]
    fn a_disassembly_is_counted_kernel_by_kernel() {
        let listing = "\t.section\t.text.a,\"ax\",@progbits\n\
            /*0000*/                   LDL.LU.64 R42, [R1+0x28] ;\n\
            /*0010*/              @!P0 STL [R1], R2 ;\n\
            /*0020*/              @P1  LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;\n\
            \t.section\t.text.b,\"ax\",@progbits\n\
            /*0000*/                   LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64] ;\n\
            /*0010*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;\n\
            /*0020*/                   LDG.E R4, desc[UR4][R2.64] ;\n\
            /*0030*/                   LDS.128 R4, [R2] ;\n\
            /*0040*/                   UTMALDG.2D [UR12], [UR8] ;\n\
            /*0050*/                   HGMMA.64x256x16.F32 R24, gdesc[UR16], R24 ;\n\
            /*0060*/                   NOP;";
        let kernels = read_code(listing);
        let mix = |names: &[(&str, u32)]| -> Mix {
            std::array::from_fn(|i| names.iter().find(|(name, _)| *name == CLASSES[i].0).map_or(0, |(_, count)| *count))
        };
        let a = mix(&[("other", 2), ("ldg 16", 1)]);
        assert_eq!(kernels["a"], Code { bytes: 48, local: 2, wide_loads: 1, mix: a, ..Code::default() });
        let b = mix(&[("ldgsts", 2), ("mma", 2), ("ldg 1-4", 1), ("lds", 1)]);
        assert_eq!(kernels["b"], Code { bytes: 112, wide_loads: 1, mma: 2, tile_copies: 1, mix: b, ..Code::default() });
    }

    #[test]
    fn a_dependent_waits_before_it_touches_memory_or_branches() {
        let of = |instructions: &[&str]| {
            let lines = instructions.iter().enumerate().map(|(i, instruction)| format!("/*{:04x}*/ {instruction} ;\n", 16 * i));
            read_code(&format!(".section .text.k,\n{}", lines.collect::<String>()))["k"].dependent
        };
        let (load, ask) = ("LDG.E R4, desc[UR4][R2.64]", "CCTL.E.PF2 [R2]");
        assert_eq!(of(&[load, "EXIT"]), Dependent::No);
        assert_eq!(of(&["PREEXIT", ask, "LDS R1, [R2]", "ACQBULK", load, "@P0 BRA `(.L)", "EXIT"]), Dependent::Able);
        for wrong in [
            &["PREEXIT", load, "ACQBULK"][..],
            &["PREEXIT", "STG.E desc[UR4][R2.64], R4", "ACQBULK"],
            &["PREEXIT", "@!P0 BRA `(.L)", "ACQBULK"],
            &["PREEXIT", "@P0 EXIT", "ACQBULK"],
            &["PREEXIT", "@P0 ACQBULK"],
            &["PREEXIT"],
            &["ACQBULK"],
            &["ACQBULK", load, "PREEXIT"],
        ] {
            assert_eq!(of(wrong), Dependent::Unsafe, "{wrong:?}");
        }
    }

    #[test]
    fn every_instruction_has_one_class() {
        let mut seen = std::collections::BTreeSet::new();
        assert!(CLASSES.iter().flat_map(|(_, families)| families.iter()).all(|family| seen.insert(family)));
        let name = |mnemonic| class(mnemonic).map(|class| CLASSES[class].0);
        assert_eq!(name("STG.E.64"), Some("stg 8"));
        assert_eq!(name("LDG.E.U8.CONSTANT"), Some("ldg 1-4"));
        assert_eq!(name("IMAD.WIDE.U32"), Some("integer"));
        assert_eq!(name("MUFU.RCP"), Some("mufu"));
        assert_eq!(name("FROBNICATE"), Some("other"));
        assert_eq!(name("NOP"), None);
    }
}
