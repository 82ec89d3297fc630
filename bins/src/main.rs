//! `swara`: neural audio codecs from the command line.

mod cli;
mod codec;
mod commands;
mod failure;
mod picture;
mod terminal;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use cli::{Bench, Cli, Command, Train};
use failure::{Failure, Result};

fn main() -> ExitCode {
    let result = match Cli::try_parse() {
        Ok(cli) => run(cli),
        Err(error) => usage(&error),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = failure.to_string();
            if !text.is_empty() {
                let _ = writeln!(std::io::stderr(), "{text}");
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(mut cli: Cli) -> Result {
    cli.common.json |= cli.command.json();
    cli.common.apply()?;
    let common = &cli.common;
    match cli.command {
        Command::Roundtrip(args) => commands::roundtrip::run(common, &args),
        Command::Encode(args) => commands::encode::run(common, &args),
        Command::Decode(args) => commands::decode::run(common, &args),
        Command::Talk(args) => commands::talk::run(common, &args),
        Command::Train(Train::Codec(args)) => commands::train::codec(common, &args),
        Command::Verify(args) => commands::verify::run(common, &args),
        Command::Prepare(args) => commands::prepare::run(common, &args),
        Command::Diagnose(args) => commands::diagnose::run(common, &args),
        Command::Inspect(args) => commands::inspect::run(common, &args),
        Command::Bench(Bench::Kernels(args)) => commands::bench::kernels(common, &args),
        Command::Bench(Bench::Codec(args)) => commands::bench::codec(common, &args),
        Command::Bench(Bench::Lm(args)) => commands::bench::lm(common, &args),
        Command::Bench(Bench::Compare(args)) => commands::bench::compare(common, &args),
        Command::Bench(Bench::Plot(args)) => commands::bench::plot(&args),
        Command::Profile(args) => commands::profile::run(common, &args),
        Command::Quantize(args) => commands::quantize::run(common, &args),
        Command::Doctor(_) => commands::doctor::run(common),
    }
}

/// Help goes to standard output; a usage error becomes one line and a hint.
fn usage(error: &clap::Error) -> Result {
    let text = error.to_string();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => terminal::say(text.trim_end()),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            Err(Failure::usage("no command given").hint("swara --help lists the commands"))
        }
        _ => {
            let first = text.split("\n\n").next().unwrap_or_default();
            let message = first.strip_prefix("error: ").unwrap_or(first).lines().map(str::trim).collect::<Vec<_>>().join(" ");
            Err(Failure::usage(message).hint("swara --help, or swara COMMAND --help"))
        }
    }
}
