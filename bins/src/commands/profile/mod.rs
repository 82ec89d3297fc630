mod compiled;
mod nsight;
mod trace;
mod work;

use swara_kernels::case::Op;
use swara_kernels::ops::REGISTRY;

use crate::cli::{Common, Profile, Runner};
use crate::failure::{Failure, Result};
use crate::terminal;
use work::Work;

/// What is profiled.
enum Subject {
    Ops(Vec<&'static Op>),
    Codec,
}

const CODEC: &str = "codec";
/// Codec frames, or runs of each case.
const RUNS: u32 = 10;

pub fn run(common: &Common, args: &Profile) -> Result {
    let subject = subject(args)?;
    if args.compiled {
        return match subject {
            Subject::Ops(ops) => compiled::run(common, &ops, &args.arch),
            Subject::Codec => Err(Failure::usage("profile: --static is about operations").hint(known())),
        };
    }
    match (&args.trace, args.run) {
        (Some(path), _) => trace::run(common, args, &subject, path),
        (None, None) => nsight::print(common, args, &subject),
        (None, Some(Runner::Bare)) => {
            let done = Work::open(common, args, &subject)?.in_a_window(args.frames.unwrap_or(RUNS))?;
            if common.json { terminal::say_json(&serde_json::json!({ "runs": done })) } else { terminal::say(format!("{done} runs")) }
        }
        (None, Some(Runner::Ncu | Runner::Nsys)) => nsight::run(common, args, &subject),
    }
}

fn subject(args: &Profile) -> Result<Subject> {
    let codec = args.names.iter().any(|name| name == CODEC);
    if codec && args.names.len() > 1 {
        return Err(Failure::usage("profile: the codec is profiled alone"));
    }
    if codec && args.case.is_some() {
        return Err(Failure::usage("profile: --case is about operations"));
    }
    if !codec && args.model.is_some() {
        return Err(Failure::usage("profile: --model is about the codec").hint("swara profile codec --model M"));
    }
    if codec {
        return Ok(Subject::Codec);
    }
    let mut ops: Vec<&'static Op> = Vec::new();
    for name in &args.names {
        let Some(op) = REGISTRY.iter().find(|op| op.name == name) else {
            return Err(Failure::usage(format!("profile: nothing is called {name:?}")).hint(known()));
        };
        if !ops.iter().any(|known| known.name == op.name) {
            ops.push(op);
        }
    }
    Ok(Subject::Ops(ops))
}

fn known() -> String {
    let mut names: Vec<&str> = REGISTRY.iter().map(|op| op.name).collect();
    names.push(CODEC);
    format!("known: {}", names.join(" "))
}
