//! `swara`: neural audio codecs from the command line.

mod cli;
mod commands;
mod page;
mod picture;
mod run_folder;

use std::process::ExitCode;

use clap::Parser;
use swara::failure::{self, Result, exit};
use swara::{codec, dialogue, process, terminal};

use cli::{Bench, Cli, Command, Train};

fn main() -> ExitCode {
    exit(match Cli::try_parse() {
        Ok(cli) => run(cli),
        Err(error) => terminal::usage(&error, "swara --help, or swara COMMAND --help"),
    })
}

fn run(mut cli: Cli) -> Result {
    cli.common.json = cli.json || cli.command.json();
    cli.common.apply()?;
    let common = &cli.common;
    match cli.command {
        Command::Roundtrip(args) => commands::roundtrip::run(common, &args),
        Command::Encode(args) => commands::encode::run(common, &args),
        Command::Decode(args) => commands::decode::run(common, &args),
        Command::Talk(args) => commands::talk::run(common, &args),
        Command::Speak(args) => commands::speak::run(common, &args),
        Command::Train(Train::Codec(args)) => commands::train::codec(common, &args),
        Command::Verify(args) => commands::verify::run(common, &args),
        Command::Prepare(args) => commands::prepare::run(common, &args),
        Command::Diagnose(args) => commands::diagnose::run(common, &args),
        Command::Inspect(args) => commands::inspect::run(common, &args),
        Command::Bench(Bench::Kernels(args)) => commands::bench::kernels(common, &args),
        Command::Bench(Bench::Codec(args)) => commands::bench::codec(common, &args),
        Command::Bench(Bench::Lm(args)) => commands::bench::lm(common, &args),
        Command::Bench(Bench::Rate(args)) => commands::rate::run(common, &args),
        Command::Bench(Bench::Phones(args)) => commands::phones::run(common, &args),
        Command::Bench(Bench::Compare(args)) => commands::bench::compare(common, &args),
        Command::Bench(Bench::Plot(args)) => commands::bench::plot(&args),
        Command::Profile(args) => commands::profile::run(common, &args),
        Command::Quantize(args) => commands::quantize::run(common, &args),
        Command::Convert(args) => commands::convert::run(common, &args),
        Command::Doctor(_) => commands::doctor::run(common),
    }
}
