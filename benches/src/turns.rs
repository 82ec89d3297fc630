//! Two builds of swara timed in turns, sample by sample.
//!
//! On a machine that is shared, or whose clock moves, one build's run and another's, minutes apart, differ by more than any
//! regression worth finding. So both run at once, as workers that wait for their turn: each sample of one build has a sample of
//! the other right beside it, and what disturbs the machine disturbs both. Only their ratio is used. On the CPU a sample is the
//! time that all threads together computed: whether the other cores were free makes a run twice as long, and no more work.
//!
//! A worker writes the list of its cases as a line of JSON, then for each line that it reads, the number of a case, takes one
//! sample and writes its seconds.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use swara_kernels::Device;
use swara_kernels::case::Case;

use crate::compare::{Ratio, Row, Verdict};
use crate::kernels::Stand;
use crate::timing::Samples;

/// What names a case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Name {
    pub op: String,
    pub case: String,
    pub dtype: String,
    pub device: String,
}

#[derive(Debug)]
pub enum Error {
    Kernels(swara_kernels::Error),
    /// A worker that did not do its part, and what went wrong.
    Worker(String),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Kernels(e) => e.fmt(f),
            Error::Worker(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Error {}

impl From<swara_kernels::Error> for Error {
    fn from(error: swara_kernels::Error) -> Error {
        Error::Kernels(error)
    }
}

/// A sample is the shortest of so many runs, so that one in which others had the cores is none.
const SHOTS: usize = 5;

/// Longest line either side reads.
const MAX_LINE: u64 = 1 << 20;

fn read_line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.take(MAX_LINE).read_line(&mut line)?;
    Ok(line)
}

/// Takes samples of `cases` as they are asked for on `input`, until it ends.
pub fn serve(device: &Device, cases: &[(&str, Case)], mut input: impl BufRead, mut output: impl Write) -> Result<(), Error> {
    let worker = |e: io::Error| Error::Worker(format!("in turns: {e}"));
    let names: Vec<Name> = cases.iter().map(|(op, case)| name(op, case, device)).collect();
    let list = serde_json::to_string(&names).map_err(|e| Error::Worker(e.to_string()))?;
    writeln!(output, "{list}").and_then(|()| output.flush()).map_err(worker)?;
    let mut ready: Option<(usize, Stand)> = None;
    loop {
        let line = read_line(&mut input).map_err(worker)?;
        if line.is_empty() {
            return Ok(());
        }
        let chosen = line.trim().parse::<usize>().ok().and_then(|n| Some((n, cases.get(n)?)));
        let (n, (_, case)) = chosen.ok_or_else(|| Error::Worker(format!("in turns: {:?} is not the number of a case", line.trim())))?;
        if ready.as_ref().is_none_or(|(current, _)| *current != n) {
            drop(ready.take()); // its memory, before more is taken
            ready = Some((n, Stand::new(device, case)?));
        }
        let Some((_, stand)) = &mut ready else { continue };
        let mut seconds = f64::INFINITY;
        for _ in 0..SHOTS {
            seconds = seconds.min(stand.work()?);
        }
        writeln!(output, "{seconds:e}").and_then(|()| output.flush()).map_err(worker)?;
    }
}

fn name(op: &str, case: &Case, device: &Device) -> Name {
    Name { op: op.into(), case: case.label.clone(), dtype: case.dtype.name().into(), device: device.name() }
}

/// A build at work. Ended when dropped.
struct Worker {
    what: String,
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    complaints: Option<JoinHandle<String>>,
    cases: Vec<Name>,
}

impl Worker {
    fn start(command: &mut Command) -> Result<Worker, Error> {
        let what = command.get_program().to_string_lossy().into_owned();
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|e| Error::Worker(format!("cannot run {what}: {e}")))?;
        let (Some(input), Some(output), Some(errors)) = (child.stdin.take(), child.stdout.take(), child.stderr.take()) else {
            return Err(Error::Worker(format!("cannot talk to {what}")));
        };
        let complaints = std::thread::spawn(move || {
            let (mut text, mut errors) = (Vec::new(), errors.take(1 << 16));
            let _ = errors.read_to_end(&mut text);
            let _ = io::copy(&mut errors.into_inner(), &mut io::sink());
            String::from_utf8_lossy(&text).into_owned()
        });
        let output = BufReader::new(output);
        let mut worker = Worker { what, child, input: Some(input), output, complaints: Some(complaints), cases: Vec::new() };
        let line = worker.answer()?;
        worker.cases = serde_json::from_str(&line).map_err(|_| worker.fault("it answers no list of cases"))?;
        Ok(worker)
    }

    /// Ends the worker; what it said itself is the better reason.
    fn fault(&mut self, why: &str) -> Error {
        self.end();
        let said = self.complaints.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        let said = said.lines().find_map(|line| line.strip_prefix("error: "));
        Error::Worker(format!("{}: {}", self.what, said.unwrap_or(&format!("{why}; is it a swara that can be timed in turns?"))))
    }

    fn end(&mut self) {
        self.input = None; // the end of its input is the end of its work
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn answer(&mut self) -> Result<String, Error> {
        match read_line(&mut self.output) {
            Ok(line) if line.ends_with('\n') => Ok(line),
            Ok(line) if line.len() as u64 >= MAX_LINE => Err(self.fault("an endless line")),
            Ok(_) => Err(self.fault("it ended")),
            Err(e) => Err(self.fault(&e.to_string())),
        }
    }

    fn sample(&mut self, case: usize) -> Result<f64, Error> {
        let asked = self.input.as_mut().map(|input| writeln!(input, "{case}").and_then(|()| input.flush()));
        if !matches!(asked, Some(Ok(()))) {
            return Err(self.fault("it ended"));
        }
        let line = self.answer()?;
        let seconds = line.trim().parse::<f64>().ok().filter(|s| (1e-12..1e6).contains(s));
        seconds.ok_or_else(|| self.fault("a sample that is no time"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}

/// How long to sample each case.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// As in [`Ratio::verdict`].
    pub margin: f64,
    /// At least so many pairs of each case,
    pub least: usize,
    /// then until the ratio is known to this, to either side,
    pub precision: f64,
    /// or so much time has passed.
    pub time: Duration,
    /// The workers are started anew so many times, so that where their memory happens to lie is sampled as well.
    pub starts: usize,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan { margin: 0.05, least: 10, precision: 0.015, time: Duration::from_secs(3), starts: 6 }
    }
}

/// Standard deviations to either side: one interval in a hundred misses.
const Z: f64 = 2.58;

/// Runs both commands, each a program that [`serve`]s, in turns over the cases that both have. `progress` is called before each
/// case with its operation, its number and how many there are.
pub fn compare(old: &mut Command, new: &mut Command, plan: Plan, mut progress: impl FnMut(&str, usize, usize)) -> Result<Vec<Row>, Error> {
    let mut found: Vec<Found> = Vec::new();
    let starts = plan.starts.max(1);
    for start in 0..starts {
        let (mut a, mut b) = (Worker::start(old)?, Worker::start(new)?);
        if start == 0 {
            found = list(&a.cases, &b.cases);
        }
        let total = found.len();
        for (n, case) in found.iter_mut().enumerate() {
            progress(&case.name.op, start * total + n, starts * total);
            let at = |worker: &Worker| worker.cases.iter().position(|name| *name == case.name);
            let (Some(i), Some(j)) = (at(&a), at(&b)) else { continue };
            // Whatever the first run of a process costs is not the case's.
            a.sample(i)?;
            b.sample(j)?;
            let begun = Instant::now();
            let mut pairs = Vec::new();
            loop {
                // Whoever comes second finds the machine as the first has left it: each does so equally often.
                pairs.push(match pairs.len() % 2 {
                    0 => {
                        let old = a.sample(i)?;
                        (old, b.sample(j)?)
                    }
                    _ => {
                        let new = b.sample(j)?;
                        (a.sample(i)?, new)
                    }
                });
                let known = || Ratio::paired(&pairs, Z).is_some_and(|r| r.high / r.low < (1.0 + plan.precision).powi(2));
                if pairs.len() >= plan.least.max(1) && (known() || begun.elapsed() >= plan.time) {
                    break;
                }
            }
            case.starts.push(pairs);
        }
    }
    Ok(found.iter().map(|case| case.row(plan.margin)).collect())
}

struct Found {
    name: Name,
    /// In both builds, in the old one, in the new one only.
    verdict: Option<Verdict>,
    starts: Vec<Vec<(f64, f64)>>,
}

fn list(old: &[Name], new: &[Name]) -> Vec<Found> {
    let found = |name: &Name, verdict| Found { name: name.clone(), verdict, starts: Vec::new() };
    let mut all: Vec<Found> = old.iter().map(|name| found(name, (!new.contains(name)).then_some(Verdict::Removed))).collect();
    all.extend(new.iter().filter(|name| !old.contains(name)).map(|name| found(name, Some(Verdict::Added))));
    all
}

impl Found {
    fn row(&self, margin: f64) -> Row {
        let Name { op, case, dtype, device } = &self.name;
        let key: Map<String, Value> = [("op", op), ("case", case), ("dtype", dtype), ("device", device)]
            .map(|(k, v)| (k.to_owned(), Value::from(v.as_str())))
            .into_iter()
            .collect();
        let ratio = combine(&self.starts);
        let median = |of: fn(&(f64, f64)) -> f64| Samples::new(self.starts.iter().flatten().map(of).collect()).map(|s| s.median() * 1e6);
        let verdict = self.verdict.or(ratio.map(|r| r.verdict(margin))).unwrap_or(Verdict::Ambiguous);
        Row {
            key,
            measure: if device == "cpu" { "work_us" } else { "median_us" },
            old: median(|pair| pair.0),
            new: median(|pair| pair.1),
            ratio,
            verdict,
        }
    }
}

/// The median over all pairs. Pairs of one start share what is peculiar to it, so the interval also holds the inner half of
/// the starts' medians.
fn combine(starts: &[Vec<(f64, f64)>]) -> Option<Ratio> {
    let all = Ratio::paired(&starts.concat(), Z)?;
    let mut each: Vec<f64> = starts.iter().filter_map(|pairs| Ratio::paired(pairs, Z)).map(|r| r.ratio).collect();
    each.sort_by(f64::total_cmp);
    let inner = &each[each.len() / 4..each.len() - each.len() / 4];
    let (low, high) = inner.iter().fold((all.low, all.high), |(low, high), &median| (low.min(median), high.max(median)));
    Some(Ratio { low, high, ..all })
}

#[cfg(test)]
mod tests {
    use super::*;
    use swara_kernels::ops::REGISTRY;

    #[test]
    fn a_worker_lists_its_cases_and_times_those_it_is_asked_for() {
        let cases: Vec<_> = REGISTRY[..2].iter().map(|op| (op.name, (op.cases)().into_iter().find(|case| !case.bench).unwrap())).collect();
        let ask = |questions: &str| {
            let mut answers = Vec::new();
            let result = serve(&Device::Cpu, &cases, questions.as_bytes(), &mut answers);
            (result.map_err(|e| e.to_string()), String::from_utf8(answers).unwrap())
        };
        let (result, answers) = ask("1\n0\n0\n");
        result.unwrap();
        let lines: Vec<&str> = answers.lines().collect();
        let names: Vec<Name> = serde_json::from_str(lines[0]).unwrap();
        assert_eq!(names.iter().map(|name| name.op.as_str()).collect::<Vec<_>>(), [cases[0].0, cases[1].0]);
        assert!(lines.len() == 4 && lines[1..].iter().all(|line| line.parse::<f64>().unwrap() > 0.0), "{lines:?}");
        for wrong in ["2\n", "-1\n", "one\n", "\n"] {
            assert!(ask(wrong).0.unwrap_err().contains("not the number of a case"), "{wrong:?}");
        }
    }

    #[test]
    fn one_start_that_is_unlike_the_others_widens_nothing_and_half_of_them_do() {
        let start = |ratio: f64| vec![(1.0, ratio); 50];
        let of = |ratios: &[f64]| combine(&ratios.iter().map(|&r| start(r)).collect::<Vec<_>>()).unwrap();
        assert_eq!(of(&[1.0, 1.0, 1.0, 1.2]), Ratio { ratio: 1.0, low: 1.0, high: 1.0 });
        assert_eq!(of(&[1.0, 1.0, 1.2, 1.2]).verdict(0.05), Verdict::Ambiguous);
        assert_eq!(combine(&[]), None);
    }

    #[test]
    fn cases_of_one_build_only_are_listed() {
        let name = |case: &str| Name { op: "o".into(), case: case.into(), dtype: "f32".into(), device: "cpu".into() };
        let found = list(&[name("a"), name("b")], &[name("b"), name("c")]);
        let found: Vec<_> = found.iter().map(|f| (f.name.case.as_str(), f.row(0.05).verdict)).collect();
        assert_eq!(found, [("a", Verdict::Removed), ("b", Verdict::Ambiguous), ("c", Verdict::Added)]);
    }
}
