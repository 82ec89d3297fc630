//! The command lines of Nsight Compute and Nsight Systems: this program again, with the window that leaves the warm-up out.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use super::{CODEC, RUNS, Subject};
use crate::cli::{Common, Profile, Runner, joined};
use crate::failure::{Failure, Result};
use crate::terminal;

/// A tool and its arguments.
type Argv = Vec<OsString>;

pub fn print(common: &Common, args: &Profile, subject: &Subject) -> Result {
    let lines = [("ncu", ncu(common, args, subject)?), ("nsys", nsys(common, args, subject)?)];
    if common.json {
        let argv = |argv: &Argv| argv.iter().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>();
        return terminal::say_json(&json!({ lines[0].0: argv(&lines[0].1), lines[1].0: argv(&lines[1].1) }));
    }
    lines.iter().try_for_each(|(_, argv)| terminal::say(shell_line(argv)))
}

pub fn run(common: &Common, args: &Profile, subject: &Subject) -> Result {
    let argv = match args.run {
        Some(Runner::Nsys) => nsys(common, args, subject)?,
        _ => ncu(common, args, subject)?,
    };
    let Some((tool, arguments)) = argv.split_first() else { return Ok(()) };
    let name = tool.to_string_lossy();
    let Some(path) = find(tool) else {
        let package = if name == "ncu" { "Nsight Compute" } else { "Nsight Systems" };
        return Err(Failure::work(format!("profile: {name} is not on the PATH, nor where CUDA is installed"))
            .hint(format!("install {package} (developer.nvidia.com, or the CUDA toolkit); without --run the command line is printed")));
    };
    terminal::note(shell_line(&argv));
    let status = Command::new(&path).args(arguments).stdin(Stdio::null()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::work(format!("profile: {name} ended with {status}"))
            .hint("ERR_NVGPUCTRPERM: counters are for root unless the driver has NVreg_RestrictProfilingToAdminUsers=0")),
        Err(error) => Err(Failure::file(&format!("profile: cannot run {name}"), error, &path)),
    }
}

/// Counters of each kernel of the operations, and of nothing else.
fn ncu(common: &Common, args: &Profile, subject: &Subject) -> Result<Argv> {
    let mut argv: Argv = ["ncu", "--profile-from-start=off", "--set=full"].map(OsString::from).to_vec();
    if let Subject::Ops(ops) = subject {
        let mut kernels = Vec::new();
        for source in ops.iter().flat_map(|op| op.sources) {
            kernels.extend(source.kernels()?);
        }
        kernels.sort();
        kernels.dedup();
        argv.push(format!("--kernel-name=regex:^({})$", kernels.join("|")).into());
    }
    if let Some(output) = &args.output {
        argv.push(joined("--export=", output));
        if let Some(kernels) = common.kernels() {
            // Line numbers are always in the binaries; the text is where the user has it.
            argv.push("--import-source=yes".into());
            argv.push(joined("--source-folders=", kernels.join("src")));
        }
    }
    argv.extend(inner(common, args, subject, 1)?);
    Ok(argv)
}

/// The host's ranges and the device's work on one timeline.
fn nsys(common: &Common, args: &Profile, subject: &Subject) -> Result<Argv> {
    let mut argv: Argv = ["nsys", "profile", "--trace=cuda,nvtx", "--capture-range=cudaProfilerApi", "--capture-range-end=stop"]
        .map(OsString::from)
        .to_vec();
    argv.extend(args.output.iter().map(|output| joined("--output=", output)));
    argv.extend(inner(common, args, subject, RUNS)?);
    Ok(argv)
}

/// This program, doing the work bare.
fn inner(common: &Common, args: &Profile, subject: &Subject, runs: u32) -> Result<Argv> {
    let device = match common.device_spec() {
        "auto" => "cuda",
        spec if spec.split(':').next() == Some("cuda") => spec,
        spec => {
            return Err(Failure::usage(format!("profile: ncu and nsys watch a GPU, and --device is {spec}"))
                .hint("--device cuda[:N]; --trace makes a timeline on any device"));
        }
    };
    let program = std::env::current_exe().map_err(|e| Failure::work(format!("profile: cannot find this program: {e}")))?;
    let mut argv: Argv = vec![program.into(), "profile".into()];
    match subject {
        Subject::Ops(ops) => argv.extend(ops.iter().map(|op| OsString::from(op.name))),
        Subject::Codec => argv.push(CODEC.into()),
    }
    argv.extend(["--run=bare".into(), joined("--device=", device), format!("--frames={}", args.frames.unwrap_or(runs)).into()]);
    argv.extend(args.case.iter().map(|case| joined("--case=", case)));
    argv.extend(args.model.iter().map(|model| joined("--model=", model)));
    argv.extend(common.arguments());
    Ok(argv)
}

/// On the `PATH`, else where NVIDIA's installers put it.
fn find(tool: &OsStr) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let versions = |dir: &str, inner: &str| {
        let mut found: Vec<PathBuf> =
            std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path().join(inner)).collect();
        found.sort();
        found.reverse();
        found
    };
    std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .chain([Path::new("/usr/local/cuda/bin").to_owned()])
        .chain(versions("/opt/nvidia/nsight-compute", ""))
        .chain(versions("/opt/nvidia/nsight-systems", "bin"))
        .map(|dir| dir.join(tool))
        .find(|file| file.is_file())
}

/// What a shell reads as exactly these arguments.
fn shell_line(argv: &Argv) -> String {
    argv.iter().map(|argument| quoted(argument)).collect::<Vec<_>>().join(" ")
}

/// In plain quotes where they do; what a terminal might act on, or what is no text, in bash's `$'...'`.
fn quoted(argument: &OsStr) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "-_=./,:+@%".contains(c);
    match argument.to_str() {
        Some(text) if !text.is_empty() && text.chars().all(harmless) => text.to_owned(),
        Some(text) if !text.chars().any(char::is_control) => format!("'{}'", text.replace('\'', r"'\''")),
        _ => {
            let escaped = |byte: &u8| match byte {
                b'\'' | b'\\' => format!("\\{}", *byte as char),
                b' '..=b'~' => (*byte as char).to_string(),
                _ => format!("\\x{byte:02x}"),
            };
            // An escape takes two digits at most, so what follows is never read into it.
            format!("$'{}'", argument.as_encoded_bytes().iter().map(escaped).collect::<String>())
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn a_shell_reads_what_was_meant() {
        let plain: Vec<&[u8]> =
            vec![b"", b"plain", b"two words", b"it's", b"$HOME `id` \\ \"x\" ; rm * | ^(a|b)$ ~ # !", "na\u{ef}ve".as_bytes()];
        let odd: Vec<&[u8]> = vec![b"line\nbreak", b"\x1b[31mred'\\", b"\xff\xfe0a", b"tab\there"];
        for (shell, arguments) in [("sh", plain.clone()), ("bash", [plain, odd].concat())] {
            let argv: Argv = arguments.iter().map(|bytes| OsStr::from_bytes(bytes).to_owned()).collect();
            let script = format!("printf '%s\\0' {}", shell_line(&argv));
            let Ok(output) = Command::new(shell).arg("-c").arg(&script).output() else {
                println!("skipped: no {shell} here");
                continue;
            };
            let read: Vec<&[u8]> = output.stdout.split(|byte| *byte == 0).collect();
            assert_eq!(read[..read.len() - 1], arguments[..], "{shell}: {script}");
        }
    }

    #[test]
    fn nothing_quoted_can_steer_a_terminal() {
        assert!(quoted(OsStr::from_bytes(b"\x1b]0;title\x07\n\x9b\xc2\x9b")).bytes().all(|byte| (b' '..=b'~').contains(&byte)));
    }
}
