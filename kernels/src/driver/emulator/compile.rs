//! From `.cu` text to a loaded library, by way of the system's C++ compiler and the kernel cache.

use std::collections::HashMap;
use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::abi::{Kernel, Runtime};
use super::mutants::Mutants;
use super::scheduler::Thread;
use super::shared_text;
use crate::driver::cache::Cache;
use crate::driver::{Arch, Source};
use crate::{Error, Result};

const RUNTIME_TEXT: &str = include_str!("../../../emulator/runtime.h");
const CHECKED_TEXT: &str = include_str!("../../../emulator/checked.h");
const MUTANTS_TEXT: &str = include_str!("../../../emulator/mutants.h");

/// No fused multiply-add, so that results are those of the Rust twin's arithmetic and the same on every host. No
/// type-based alias analysis, because kernels reinterpret memory. Nothing that depends on this machine's CPU, because the
/// cache may be shared. Indices are checked against extents that the compiler knows; our own functions report them.
const OPTIONS: &[&str] = &[
    "-std=c++17",
    "-fPIC",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fno-exceptions",
    "-fno-rtti",
    "-fvisibility=hidden",
    "-fsanitize=bounds",
    "-fno-sanitize-recover=bounds",
    "-w",
];

/// To run all day.
const FAST: &[&str] = &["-O2"];

/// With a call before every access. Only what keeps accesses as they are written is optimised: a vector stays one access, and two
/// stay two.
const CHECKED: &[&str] =
    &["-O1", "-g1", "-fsanitize=thread", "-fno-tree-sra", "-fno-tree-fre", "-fno-tree-forwprop", "-finline-small-functions"];

/// The compiler: `$SWARA_CXX`, else the first of c++, g++, clang++ that runs.
pub(super) struct Compiler {
    program: OsString,
    version: String,
}

/// # Errors
/// [`Error::Unavailable`] if there is none.
pub(super) fn compiler() -> Result<&'static Compiler> {
    static FOUND: OnceLock<Option<Compiler>> = OnceLock::new();
    let found = FOUND.get_or_init(|| match std::env::var_os("SWARA_CXX").filter(|v| !v.is_empty()) {
        Some(program) => Compiler::probe(program),
        None => ["c++", "g++", "clang++"].into_iter().find_map(|p| Compiler::probe(p.into())),
    });
    found.as_ref().ok_or_else(|| Error::Unavailable {
        device: "emulator".into(),
        why: match std::env::var_os("SWARA_CXX").filter(|v| !v.is_empty()) {
            Some(program) => format!("SWARA_CXX is {}, which does not run", program.display()),
            None => "no C++ compiler was found (c++, g++, clang++)".into(),
        },
        hint: Some("install g++ or clang++, or name one in SWARA_CXX".into()),
    })
}

impl Compiler {
    fn probe(program: OsString) -> Option<Compiler> {
        let output = Command::new(&program).arg("--version").output().ok().filter(|o| o.status.success())?;
        Some(Compiler { program, version: String::from_utf8_lossy(&output.stdout).into_owned() })
    }

    /// First line of what it says of itself.
    pub fn describe(&self) -> String {
        format!("{} ({})", self.program.display(), self.version.lines().next().unwrap_or("unknown version"))
    }

    fn compile(&self, label: &str, text: &str, options: &[&str], dir: &Path) -> Result<Vec<u8>> {
        let io = |path: &Path, e: std::io::Error| Error::Io { path: path.display().to_string(), why: e.to_string() };
        let [source, object, library] = ["kernel.cpp", "kernel.o", "kernel.so"].map(|name| dir.join(name));
        std::fs::write(&source, text).map_err(|e| io(&source, e))?;
        let run = |command: &mut Command| {
            let output = command.output().map_err(|e| io(Path::new(&self.program), e))?;
            if output.status.success() {
                return Ok(());
            }
            let log = String::from_utf8_lossy(&output.stderr);
            Err(Error::Compile { source_name: label.to_owned(), log: log.chars().take(20_000).collect() })
        };
        run(Command::new(&self.program).args(options).arg("-c").arg(&source).arg("-o").arg(&object))?;
        // Linked apart from -fsanitize, which would pull in a run-time library.
        run(Command::new(&self.program).arg("-shared").arg(&object).arg("-o").arg(&library).arg("-lm"))?;
        std::fs::read(&library).map_err(|e| io(&library, e))
    }
}

/// A compiled source. Lives as long as the process: a fiber's frames or a report may point into it.
pub(super) struct Library {
    library: libloading::Library,
    pub bind: unsafe extern "C" fn(*const Runtime) -> *mut *mut Thread,
    /// Where it lies in memory.
    pub image: Range<usize>,
    /// Chooses a mutant, changes the fuel for what is left of it, and gives the flags of those that were reached, of which there
    /// are so many.
    pub choose: Option<(unsafe extern "C" fn(u32, *mut i64) -> *mut u8, usize)>,
}

impl Library {
    pub fn kernel(&self, name: &str) -> Option<&'static Kernel> {
        // SAFETY: the symbol is a `swara::Kernel`, which the text below defines under this name only.
        let symbol = unsafe { self.library.get::<*const Kernel>(format!("swara_kernel_{name}\0").as_bytes()) }.ok()?;
        // SAFETY: libraries are never unloaded.
        Some(unsafe { &**symbol }).filter(|kernel| kernel.call.is_some())
    }
}

/// The library of `source` for `arch`, compiled unless the cache has it, loaded - or found not to compile - once a process.
pub(super) fn load(source: &'static Source, arch: Arch, checked: bool, mutants: Option<&Mutants>) -> Result<&'static Library> {
    type Slot = Arc<Mutex<Option<Result<&'static Library>>>>;
    static LOADED: Mutex<Option<HashMap<String, Slot>>> = Mutex::new(None);
    let (text, mutants) = translate(source, arch, checked, mutants)?;
    let slot = {
        let mut loaded = LOADED.lock().unwrap_or_else(|p| p.into_inner());
        loaded.get_or_insert_default().entry(text.clone()).or_default().clone()
    };
    let mut slot = slot.lock().unwrap_or_else(|p| p.into_inner());
    slot.get_or_insert_with(|| build(source.path, &text, checked, mutants)).clone()
}

/// One self-contained C++ file.
fn translate(source: &'static Source, arch: Arch, checked: bool, mutants: Option<&Mutants>) -> Result<(String, Option<u32>)> {
    let mut expanded = source.expanded()?;
    let (mut define, mut hooks) =
        if checked { ("#define SWARA_CHECKED 1\n".to_owned(), CHECKED_TEXT.to_owned()) } else { Default::default() };
    let mutants = mutants.map(|mutants| {
        let altered = mutants.alter(source, &expanded);
        expanded = altered.text;
        define.push_str(&format!("#define SWARA_MUTANTS {}\n", altered.mutants));
        hooks.push_str(MUTANTS_TEXT);
        altered.mutants
    });
    let mut text = format!(
        "{define}#define SWARA_EMULATOR 1\n#define SWARA_ARCH {0}\n#define __CUDA_ARCH__ {0}0\n#line 1 \"runtime.h\"\n{RUNTIME_TEXT}\n{hooks}\n{1}\n",
        arch.0,
        shared_text::rewrite(&expanded.replace("#pragma once", "")),
    );
    // `::name` is the kernel if there is one at the top level, and only otherwise what a using-directive brings.
    for name in source.kernels()? {
        text.push_str(&format!("namespace swara_absent {{ constexpr swara::Absent {name}{{}}; }}\nusing namespace swara_absent;\n"));
        text.push_str(&format!("SWARA_EXPORT const swara::Kernel swara_kernel_{name} = swara::Entry<&::{name}>::kernel(\"{name}\");\n"));
    }
    Ok((text, mutants))
}

fn build(path: &str, text: &str, checked: bool, mutants: Option<u32>) -> Result<&'static Library> {
    let compiler = compiler()?;
    let cache = Cache::open()?;
    let flags = [OPTIONS, if checked { CHECKED } else { FAST }].concat();
    let options = flags.join(" ");
    let key = [text.as_bytes(), compiler.program.as_encoded_bytes(), compiler.version.as_bytes(), options.as_bytes()];
    let label = Path::new(path).file_stem().map_or("kernel".into(), |stem| stem.to_string_lossy().into_owned());
    let entry = cache.entry(&label, "so", &key, || compiler.compile(path, text, &flags, &Scratch::new(cache.dir())?.0))?;
    let scratch;
    let at = match entry.path {
        Some(path) => path,
        None => {
            scratch = Scratch::new(&std::env::temp_dir())?;
            let file = scratch.0.join("loaded.so");
            std::fs::write(&file, &entry.bytes).map_err(|e| Error::Io { path: file.display().to_string(), why: e.to_string() })?;
            file
        }
    };
    let refuse = |e: libloading::Error| Error::Compile { source_name: path.to_owned(), log: format!("{}: {e}", at.display()) };
    // SAFETY: our own text, compiled by us or checked against its hash; its initialisers only fill constants.
    let library = unsafe { libloading::Library::new(&at) }.map_err(refuse)?;
    // SAFETY: runtime.h defines it with this type.
    let bind = *unsafe { library.get(b"swara_bind\0") }.map_err(refuse)?;
    let choose = match mutants {
        // SAFETY: mutants.h defines it with this type.
        Some(count) => Some((*unsafe { library.get(b"swara_choose\0") }.map_err(refuse)?, count as usize + 1)),
        None => None,
    };
    let image = image(bind as *const () as usize);
    Ok(Box::leak(Box::new(Library { library, bind, image, choose })))
}

/// The extent of the loaded object that holds `address`.
fn image(address: usize) -> Range<usize> {
    unsafe extern "C" fn visit(object: *mut libc::dl_phdr_info, _: usize, found: *mut std::ffi::c_void) -> i32 {
        // SAFETY: the loader passes a valid record, and the caller below a range whose start is the address to look for.
        let (object, found) = unsafe { (&*object, &mut *found.cast::<Range<usize>>()) };
        // SAFETY: the record's own table.
        let segments = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
        let loaded = || segments.iter().filter(|s| s.p_type == libc::PT_LOAD).map(|s| (s.p_vaddr as usize, s.p_memsz as usize));
        let start = loaded().map(|(at, _)| at).min().unwrap_or(0) + object.dlpi_addr as usize;
        let end = loaded().map(|(at, bytes)| at + bytes).max().unwrap_or(0) + object.dlpi_addr as usize;
        let holds = (start..end).contains(&found.start);
        if holds {
            *found = start..end;
        }
        holds.into()
    }
    let mut found = address..address;
    // SAFETY: `visit` gets what it expects.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut found).cast()) };
    found
}

/// A directory for one compilation, removed afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new(parent: &Path) -> Result<Scratch> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let name = format!(".swara-build-{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let io = |dir: &Path, e: std::io::Error| Error::Io { path: dir.display().to_string(), why: e.to_string() };
        let dir = parent.join(name);
        let _ = std::fs::remove_dir_all(&dir); // left by a killed process that had our number
        std::fs::create_dir(&dir).map_err(|e| io(&dir, e))?;
        Ok(Scratch(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A library that is loaded from here stays mapped after its name is gone.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
