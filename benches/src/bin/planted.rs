//! Does a comparison find a planted slow-down, and only that?
//!
//! `planted TRIES [--threads N] [OP[=PART OF CASE]...]` compares, so many times, a build with itself and with one whose
//! operations do 10 % more work, and counts the verdicts. It is its own two builds: `planted serve PERCENT ...` times cases in
//! turns as `swara bench kernels` does, with PERCENT of each run repeated on as many more rows.

use std::io::{self, BufReader};
use std::process::Command;

use anyhow::{Context, Result, bail};
use swara_benches::compare::Verdict;
use swara_benches::kernels::{Selection, cases};
use swara_benches::turns::{self, Plan};
use swara_kernels::case::{Case, Input, Inputs};
use swara_kernels::{Device, Tensor};

const PERCENT: usize = 10;

fn main() -> Result<()> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(at) = args.iter().position(|a| a == "--threads") {
        let threads: usize = args.get(at + 1).and_then(|n| n.parse().ok()).context("--threads N")?;
        args.drain(at..at + 2);
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match &args[..] {
        ["serve", percent, ops @ ..] => serve(percent.parse()?, ops),
        [tries, ops @ ..] => count(tries.parse().context("TRIES")?, ops),
        [] => bail!("usage: planted TRIES [--threads N] [OP[=PART OF CASE]...]"),
    }
}

fn serve(percent: usize, wanted: &[&str]) -> Result<()> {
    let matches = |op: &str, case: &Case| {
        let fits = |text: &str| text.split_once('=').map_or(text == op, |(name, part)| name == op && case.label.contains(part));
        wanted.is_empty() || wanted.iter().any(|text| fits(text))
    };
    let all = cases(&Device::Cpu, Selection::default()).into_iter().filter(|(op, case)| matches(op, case));
    let planted: Vec<_> = all.filter_map(|(op, case)| Some((op, if percent == 0 { case } else { plant(case, percent)? }))).collect();
    Ok(turns::serve(&Device::Cpu, &planted, BufReader::new(io::stdin()), io::stdout().lock())?)
}

/// The same case, run again on `percent` of its longest axis. `None` if its shapes are tied together.
fn plant(case: Case, percent: usize) -> Option<Case> {
    let longest = case.inputs.first()?.shape.iter().copied().max()?;
    let part = |input: &Input| {
        let mut dims = input.shape.to_vec();
        if let Some(dim) = dims.iter_mut().find(|dim| **dim == longest) {
            *dim = (longest * percent / 100).max(1);
        }
        Some(Input { shape: dims[..].try_into().ok()?, ..input.clone() })
    };
    let extra: Vec<Input> = case.inputs.iter().map(part).collect::<Option<_>>()?;
    let (whole, run) = (case.inputs.len(), case.run);
    let inputs = [case.inputs, extra].concat();
    let run = Box::new(move |inputs: &Inputs| {
        let own = |tensors: &[Tensor]| tensors.iter().map(Tensor::copy).collect::<swara_kernels::Result<Vec<_>>>().map(Inputs::from);
        let (given, again) = inputs.once(|tensors| Ok((own(&tensors[..whole])?, own(&tensors[whole..])?)))?;
        run(again)?;
        run(given)
    });
    let planted = Case { inputs, run, ..case };
    let tensors = planted.upload(&Device::Cpu, &planted.draw(1), false).ok()?;
    (planted.run)(&tensors).ok()?;
    Some(planted)
}

fn count(tries: usize, ops: &[&str]) -> Result<()> {
    let program = std::env::current_exe()?;
    let threads = rayon::current_num_threads().to_string();
    let build = |percent: usize| {
        let mut command = Command::new(&program);
        command.args(["serve", &percent.to_string(), "--threads", &threads]).args(ops);
        command
    };
    for percent in [0, PERCENT] {
        let mut seen: Vec<(String, Vec<Verdict>, Vec<f64>)> = Vec::new();
        let (expected, mut right_tries) = (if percent == 0 { Verdict::Same } else { Verdict::Slower }, 0);
        for _ in 0..tries {
            let rows = turns::compare(&mut build(0), &mut build(percent), Plan::default(), |_, _, _| {})?;
            let rows: Vec<_> = rows.into_iter().filter(|row| row.verdict != Verdict::Removed).collect();
            right_tries += usize::from(rows.iter().all(|row| row.verdict == expected));
            for row in rows {
                let name = row.name();
                let ratio = row.ratio.map_or(f64::NAN, |r| r.ratio);
                match seen.iter_mut().find(|(known, ..)| *known == name) {
                    Some((_, verdicts, ratios)) => {
                        verdicts.push(row.verdict);
                        ratios.push(ratio);
                    }
                    None => seen.push((name, vec![row.verdict], vec![ratio])),
                }
            }
        }
        println!("{percent} % more work: all {} cases {expected:?} in {right_tries} of {tries} tries", seen.len());
        for (name, verdicts, mut ratios) in seen {
            let of = |verdict| verdicts.iter().filter(|v| **v == verdict).count();
            ratios.sort_by(f64::total_cmp);
            let [same, slower, faster, ambiguous] = [Verdict::Same, Verdict::Slower, Verdict::Faster, Verdict::Ambiguous].map(of);
            let (low, high) = (ratios.first().unwrap_or(&f64::NAN), ratios.last().unwrap_or(&f64::NAN));
            println!("  same {same:2}  slower {slower:2}  faster {faster:2}  ambiguous {ambiguous:2}  ratio {low:.3} to {high:.3}  {name}");
        }
    }
    Ok(())
}
