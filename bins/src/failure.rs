//! How commands fail.

use std::fmt;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use swara_benches::compare::BadResults;
use swara_benches::turns;
use swara_verify::golden;

use crate::terminal::printable;

/// Why a command did not do what was asked: one line, perhaps a hint, and the exit code.
#[derive(Debug)]
pub struct Failure {
    message: String,
    hint: Option<String>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The work failed, or a check did not hold: 1.
    Work,
    /// The command line asks for what cannot be: 2.
    Usage,
    /// A check did not hold and the report has said so already: 1.
    Said,
    /// Whoever read our output has stopped reading: 0.
    Unread,
}

pub type Result<T = ()> = std::result::Result<T, Failure>;

impl Failure {
    pub fn work(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), hint: None, kind: Kind::Work }
    }

    pub fn usage(message: impl Into<String>) -> Failure {
        Failure { message: message.into(), hint: None, kind: Kind::Usage }
    }

    pub fn said() -> Failure {
        Failure { message: String::new(), hint: None, kind: Kind::Said }
    }

    /// `what: why (file)`.
    pub fn file(what: &str, why: impl fmt::Display, path: &Path) -> Failure {
        Failure::work(format!("{what}: {why} ({})", path.display()))
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    pub fn stdout(error: &std::io::Error) -> Failure {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Failure { message: String::new(), hint: None, kind: Kind::Unread },
            _ => Failure::work(format!("cannot write: {error} (standard output)")),
        }
    }

    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Work | Kind::Said => 1,
            Kind::Usage => 2,
            Kind::Unread => 0,
        }
    }
}

impl fmt::Display for Failure {
    /// At most two lines, whatever a file name or a library put into the message. Empty if there is nothing to say.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if matches!(self.kind, Kind::Said | Kind::Unread) {
            return Ok(());
        }
        write!(f, "error: {}", one_line(&self.message))?;
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {}", one_line(hint)),
            None => Ok(()),
        }
    }
}

/// What a process ends with, having said why.
pub fn exit(result: Result) -> ExitCode {
    let Err(failure) = result else { return ExitCode::SUCCESS };
    let text = failure.to_string();
    if !text.is_empty() {
        let _ = writeln!(std::io::stderr(), "{text}");
    }
    ExitCode::from(failure.exit_code())
}

fn one_line(text: &str) -> String {
    let joined = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    printable(&joined)
}

impl From<swara_loader::Error> for Failure {
    fn from(error: swara_loader::Error) -> Failure {
        Failure::work(error.to_string())
    }
}

impl From<swara_kernels::Error> for Failure {
    fn from(error: swara_kernels::Error) -> Failure {
        let hint = match &error {
            swara_kernels::Error::Unavailable { hint, .. } => hint.clone(),
            _ => None,
        };
        Failure { message: error.to_string(), hint, kind: Kind::Work }
    }
}

impl From<swara_engine::Error> for Failure {
    fn from(error: swara_engine::Error) -> Failure {
        match error {
            swara_engine::Error::Kernel(error) => error.into(),
            swara_engine::Error::Loader(error) => error.into(),
            error => Failure::work(error.to_string()),
        }
    }
}

impl From<BadResults> for Failure {
    fn from(BadResults(why): BadResults) -> Failure {
        Failure::work(why)
    }
}

impl From<turns::Error> for Failure {
    fn from(error: turns::Error) -> Failure {
        match error {
            turns::Error::Kernels(error) => error.into(),
            turns::Error::Worker(why) => Failure::work(format!("bench: {why}")),
        }
    }
}

impl From<golden::Error> for Failure {
    fn from(error: golden::Error) -> Failure {
        match error {
            golden::Error::Kernel(error @ swara_kernels::Error::Unavailable { .. }) => error.into(),
            error => Failure::work(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_whatever_is_in_it() {
        let failure = Failure::file("cannot read", "no such file", Path::new("a\nb\u{1b}[31m.wav")).hint("try\nagain");
        assert_eq!(failure.to_string(), "error: cannot read: no such file (a; b\u{fffd}[31m.wav)\nhint: try; again");
    }
}
