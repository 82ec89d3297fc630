//! CUDA text -> cubin through NVRTC, found and loaded at run time.
//!
//! The library is looked for where people have it: `SWARA_NVRTC`, `LD_LIBRARY_PATH`, toolkits, the system, Python wheels
//! (`pip install nvidia-cuda-nvrtc`), conda. A cubin is made, not PTX: PTX newer than the driver is refused by it.

use std::collections::HashSet;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use libloading::Library;

use super::Arch;
use crate::{Error, Result};

/// How every kernel is compiled. No fast-math: a kernel that wants an approximation names it.
pub const OPTIONS: &[&str] = &["--std=c++17", "-lineinfo"];

type Program = *mut c_void;
type Status = c_int;

/// A loaded NVRTC. It stays in the process: its threads and caches do not survive being unloaded.
pub struct Nvrtc {
    functions: Functions,
    _library: ManuallyDrop<Library>,
    path: PathBuf,
    version: (u32, u32),
    /// Architectures it can compile for, ascending.
    archs: Vec<u32>,
}

/// A compiled unit.
pub struct Compiled {
    pub cubin: Vec<u8>,
    /// Warnings, and whatever the options asked to be told.
    pub log: String,
}

macro_rules! functions {
    ($($symbol:ident: ($($arg:ty),*);)*) => {
        /// The part of the library that is used; its signatures have not changed since NVRTC 11.2.
        #[allow(non_snake_case)]
        struct Functions { $($symbol: unsafe extern "C" fn($($arg),*) -> Status,)* }

        impl Functions {
            fn of(library: &Library) -> std::result::Result<Functions, libloading::Error> {
                // SAFETY: the signatures are those of nvrtc.h.
                unsafe { Ok(Functions { $($symbol: *library.get(concat!(stringify!($symbol), "\0").as_bytes())?,)* }) }
            }
        }
    };
}
functions! {
    nvrtcVersion: (*mut c_int, *mut c_int);
    nvrtcGetNumSupportedArchs: (*mut c_int);
    nvrtcGetSupportedArchs: (*mut c_int);
    nvrtcCreateProgram: (*mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char);
    nvrtcDestroyProgram: (*mut Program);
    nvrtcCompileProgram: (Program, c_int, *const *const c_char);
    nvrtcGetProgramLogSize: (Program, *mut usize);
    nvrtcGetProgramLog: (Program, *mut c_char);
    nvrtcGetCUBINSize: (Program, *mut usize);
    nvrtcGetCUBIN: (Program, *mut c_char);
}

impl Nvrtc {
    /// The first library found that `suits`; without one, an error that says where was looked and why nothing would do.
    pub fn find(suits: impl Fn(&Nvrtc) -> std::result::Result<(), String>) -> Result<Nvrtc> {
        let forced = std::env::var_os("SWARA_NVRTC").filter(|value| !value.is_empty()).map(PathBuf::from);
        let candidates = match &forced {
            Some(path) if path.is_dir() => libraries_in(path),
            Some(path) => vec![path.clone()],
            None => candidates(),
        };
        let mut refusals = Vec::new();
        for path in candidates {
            match Nvrtc::load(&path) {
                Ok(nvrtc) => match suits(&nvrtc) {
                    Ok(()) => return Ok(nvrtc),
                    Err(why) => refusals.push(format!("{} {why}", path.display())),
                },
                // A bare name is a question to the system's loader; "no" is not worth reporting.
                Err(error) if path.components().count() > 1 => refusals.push(error.to_string()),
                Err(_) => {}
            }
        }
        let why = match (&forced, refusals.is_empty()) {
            (Some(path), true) => format!("SWARA_NVRTC={} holds no libnvrtc.so", path.display()),
            (None, true) => "libnvrtc.so was found in no CUDA toolkit, library path or Python environment".to_owned(),
            (_, false) => refusals.join("; "),
        };
        let hint = "pip install nvidia-cuda-nvrtc-cu12 (or a CUDA toolkit), or set SWARA_NVRTC to libnvrtc.so".to_owned();
        Err(Error::Unavailable { device: "NVRTC".into(), why, hint: Some(hint) })
    }

    /// Loads the library at `path`; a bare file name is looked up by the system's loader.
    pub fn load(path: &Path) -> Result<Nvrtc> {
        let refuse = |why: String| Error::Io { path: path.display().to_string(), why };
        preload_builtins(path);
        // SAFETY: loading runs the library's initialisers; a file of this name is NVRTC, or the user was told to point at it.
        let library = unsafe { Library::new(path) }.map_err(|e| refuse(format!("cannot be loaded: {e}")))?;
        let functions = Functions::of(&library).map_err(|e| refuse(format!("is not a usable NVRTC: {e}")))?;
        let (mut major, mut minor, mut count) = (0, 0, 0);
        // SAFETY: plain out-parameters.
        let status = unsafe { (functions.nvrtcVersion)(&mut major, &mut minor) | (functions.nvrtcGetNumSupportedArchs)(&mut count) };
        let mut archs = vec![0; count.clamp(0, 1024) as usize];
        if status == 0 && count == archs.len() as c_int && !archs.is_empty() {
            // SAFETY: the array has the length that the library asked for.
            unsafe { (functions.nvrtcGetSupportedArchs)(archs.as_mut_ptr()) };
        }
        let mut archs: Vec<u32> = archs.into_iter().map(|arch| arch as u32).collect();
        archs.sort_unstable();
        if status != 0 || archs.is_empty() {
            return Err(refuse("is not a usable NVRTC: it does not tell its version".into()));
        }
        Ok(Nvrtc { functions, _library: ManuallyDrop::new(library), path: path.to_owned(), version: (major as u32, minor as u32), archs })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Major and minor.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// What tells this build of the library from another: a part of every cache key.
    pub fn identity(&self) -> String {
        let bytes = std::fs::metadata(&self.path).map_or(0, |meta| meta.len());
        format!("nvrtc {}.{} {bytes}", self.version.0, self.version.1)
    }

    /// The target for a device: its own architecture, or the nearest older one whose cubins it runs (same major version).
    pub fn target(&self, arch: Arch) -> Option<String> {
        let nearest = self.archs.iter().copied().rfind(|&known| known <= arch.0 && known / 10 == arch.0 / 10)?;
        Some(target(nearest))
    }

    /// Compiles `text` for `target` (`sm_80`, `sm_90a`, ...). `name` is what diagnostics and profilers show.
    ///
    /// # Errors
    /// [`Error::Compile`] with the compiler's log.
    pub fn compile(&self, name: &str, text: &str, target: &str, extra: &[&str]) -> Result<Compiled> {
        let refuse = |log: String| Error::Compile { source_name: format!("{name} for {target}"), log };
        let c_string = |s: &str| CString::new(s).map_err(|_| refuse("the text contains a NUL byte".into()));
        let (c_text, c_name) = (c_string(text)?, c_string(name)?);
        let architecture = format!("--gpu-architecture={target}");
        let options = [architecture.as_str()].iter().chain(OPTIONS).chain(extra).map(|o| c_string(o)).collect::<Result<Vec<_>>>()?;
        let options: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect::<Vec<_>>();

        let mut handle: Program = std::ptr::null_mut();
        // SAFETY: both strings are NUL-terminated and outlive the call; there are no headers.
        let status = unsafe {
            (self.functions.nvrtcCreateProgram)(&mut handle, c_text.as_ptr(), c_name.as_ptr(), 0, std::ptr::null(), std::ptr::null())
        };
        if status != 0 {
            return Err(refuse(format!("NVRTC refused the program (status {status})")));
        }
        let program = Owned { functions: &self.functions, handle };
        // SAFETY: the program is alive and the option strings outlive the call.
        let status = unsafe { (self.functions.nvrtcCompileProgram)(program.handle, options.len() as c_int, options.as_ptr()) };
        let log = program.bytes(self.functions.nvrtcGetProgramLogSize, self.functions.nvrtcGetProgramLog).unwrap_or_default();
        let log = CStr::from_bytes_until_nul(&log).map_or(String::new(), |log| log.to_string_lossy().trim().to_owned());
        if status != 0 {
            return Err(refuse(if log.is_empty() { format!("NVRTC failed with status {status}") } else { log }));
        }
        let cubin = program
            .bytes(self.functions.nvrtcGetCUBINSize, self.functions.nvrtcGetCUBIN)
            .filter(|cubin| cubin.starts_with(b"\x7fELF"))
            .ok_or_else(|| refuse("NVRTC gave no cubin".into()))?;
        Ok(Compiled { cubin, log })
    }
}

/// What NVRTC calls an architecture. Hopper takes the `a` variant, without which its own instructions are out of reach.
pub fn target(arch: u32) -> String {
    if arch == 90 { "sm_90a".into() } else { format!("sm_{arch}") }
}

struct Owned<'a> {
    functions: &'a Functions,
    handle: Program,
}

impl Owned<'_> {
    fn bytes(
        &self,
        size: unsafe extern "C" fn(Program, *mut usize) -> Status,
        copy: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    ) -> Option<Vec<u8>> {
        let mut length = 0;
        // SAFETY: the program is alive; the buffer has the length that the library asked for.
        unsafe {
            (size(self.handle, &mut length) == 0).then_some(())?;
            let mut bytes = vec![0u8; length];
            (copy(self.handle, bytes.as_mut_ptr().cast()) == 0).then_some(bytes)
        }
    }
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        // SAFETY: made by nvrtcCreateProgram, destroyed once.
        unsafe { (self.functions.nvrtcDestroyProgram)(&mut self.handle) };
    }
}

/// NVRTC opens `libnvrtc-builtins.so.X.Y` by name alone, and the CUDA 13 wheel has no run path to it. One that is already in the
/// process under that name is found.
fn preload_builtins(nvrtc: &Path) {
    let Some(dir) = nvrtc.parent().filter(|dir| !dir.as_os_str().is_empty()) else { return };
    for file in files_in(dir, "libnvrtc-builtins.so.") {
        // SAFETY: a data library of NVIDIA's, about to be loaded by NVRTC itself. Failing here, it fails there with a message.
        if let Ok(library) = unsafe { Library::new(file) } {
            std::mem::forget(library);
        }
    }
}

/// Files in `dir` whose names start with `prefix`, highest version first.
fn files_in(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(prefix)))
        .collect();
    files.sort_by(|a, b| b.cmp(a));
    files
}

fn libraries_in(dir: &Path) -> Vec<PathBuf> {
    files_in(dir, "libnvrtc.so")
}

/// Every NVRTC on this machine, in the order of how plainly the user asked for it; each file once.
fn candidates() -> Vec<PathBuf> {
    let paths = |name: &str| std::env::var_os(name).map(|value| std::env::split_paths(&value).collect::<Vec<_>>()).unwrap_or_default();
    let mut dirs = paths("LD_LIBRARY_PATH");

    let toolkits = paths("CUDA_HOME").into_iter().chain(paths("CUDA_PATH")).chain(["/usr/local/cuda".into(), "/opt/cuda".into()]);
    for toolkit in toolkits.chain(files_in(Path::new("/usr/local"), "cuda-")) {
        dirs.extend([toolkit.join("lib64"), toolkit.join("lib")]);
    }
    dirs.extend(["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"].map(PathBuf::from));

    let mut prefixes = paths("VIRTUAL_ENV");
    prefixes.extend(paths("CONDA_PREFIX"));
    prefixes.extend(paths("PATH").iter().filter(|bin| bin.join("python3").exists()).filter_map(|bin| Some(bin.parent()?.to_owned())));
    prefixes.extend(paths("HOME").into_iter().map(|home| home.join(".local")));
    prefixes.extend(["/usr", "/usr/local"].map(PathBuf::from));
    for prefix in prefixes {
        dirs.push(prefix.join("lib"));
        for python in files_in(&prefix.join("lib"), "python3") {
            for packages in ["site-packages", "dist-packages"] {
                let nvidia = python.join(packages).join("nvidia");
                dirs.extend(["cu13", "cuda_nvrtc", "cu12"].map(|wheel| nvidia.join(wheel).join("lib")));
            }
        }
    }

    let mut seen = HashSet::new();
    let found = dirs.iter().filter(|dir| dir.is_absolute()).flat_map(|dir| libraries_in(dir));
    let found = found.filter(|path| seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone()))).collect::<Vec<_>>();
    let by_name = ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"].map(PathBuf::from);
    found.into_iter().chain(by_name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::source::ALL_ARCHS;

    /// Any NVRTC, or a loud skip.
    fn any() -> Option<Nvrtc> {
        let found = Nvrtc::find(|_| Ok(()));
        found.inspect_err(|e| eprintln!("SKIPPED: {e}; pip install nvidia-cuda-nvrtc-cu12, or set SWARA_NVRTC")).ok()
    }

    #[test]
    fn a_small_source_compiles_for_every_architecture() {
        let Some(nvrtc) = any() else { return };
        let text = "extern \"C\" __global__ void twice(float* x, int n) {\n  int i = blockIdx.x * blockDim.x + threadIdx.x;\n  if (i < n) x[i] *= 2.0f;\n}\n";
        for &arch in ALL_ARCHS {
            let compiled = nvrtc.compile("twice.cu", text, &target(arch), &[]).unwrap();
            assert!(compiled.cubin.windows(5).any(|w| w == b"twice"), "sm_{arch}");
        }
    }

    #[test]
    fn a_bad_source_is_an_error_that_names_file_and_line() {
        let Some(nvrtc) = any() else { return };
        let bad = nvrtc.compile("bad.cu", "#line 7 \"ops/bad.cu\"\n__global__ void k() { undeclared(); }", "sm_80", &[]);
        let Err(Error::Compile { source_name, log }) = bad else { panic!("compiled") };
        assert_eq!(source_name, "bad.cu for sm_80");
        assert!(log.contains("ops/bad.cu(7)") && log.contains("undeclared"), "{log}");
        assert!(matches!(nvrtc.compile("nul.cu", "\0", "sm_80", &[]), Err(Error::Compile { .. })));
        assert!(matches!(nvrtc.compile("arch.cu", "", "sm_1", &[]), Err(Error::Compile { .. })));
    }

    #[test]
    fn a_device_newer_than_the_compiler_gets_the_nearest_older_cubin() {
        let Some(nvrtc) = any() else { return };
        assert_eq!(nvrtc.target(Arch(90)).unwrap(), "sm_90a");
        assert_eq!(nvrtc.target(Arch(89)).unwrap(), "sm_89");
        assert!(nvrtc.target(Arch(129)).unwrap().starts_with("sm_12"));
        assert_eq!(nvrtc.target(Arch(200)), None);
    }

    #[test]
    fn a_file_that_is_no_library_is_refused() {
        let path = std::env::temp_dir().join(format!("libnvrtc.so.swara-{}", std::process::id()));
        std::fs::write(&path, b"not a library").unwrap();
        assert!(matches!(Nvrtc::load(&path), Err(Error::Io { .. })));
        assert!(matches!(Nvrtc::load(Path::new("/nonexistent/libnvrtc.so")), Err(Error::Io { .. })));
        std::fs::remove_file(path).unwrap();
    }
}
