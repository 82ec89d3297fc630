//! Teeth: every barrier, wait, bound, offset and accumulator of every kernel is made wrong, one at a time, and some case must
//! notice. A mistake that nothing notices is either a missing case or no mistake; the latter are listed with the reason.

mod sites;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use swara_kernels::case::{Case, Op};
use swara_kernels::driver::Arch;
use swara_kernels::driver::emulator::{Altered, Emulator, Mutants, Options, Schedule};
use swara_kernels::ops::REGISTRY;
use swara_kernels::{Device, Error, Result};

use self::sites::{Site, plant};
use crate::Outcome;
use crate::harness::Prepared;

/// What became of a mistake.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case", tag = "fate")]
pub enum Fate {
    /// This case noticed, in this way.
    Killed { op: String, case: String, dtype: String, how: String },
    /// It is none, for this reason.
    Equivalent { why: String },
    /// Cases came by and noticed nothing.
    Survived,
    /// No case came by.
    Unreached,
}

impl Fate {
    fn decided(&self) -> bool {
        matches!(self, Fate::Killed { .. } | Fate::Equivalent { .. })
    }
}

/// One mistake and its fate.
#[derive(Clone, Debug, Serialize)]
pub struct Mutant {
    pub file: String,
    pub line: usize,
    pub column: usize,
    pub kind: &'static str,
    pub text: String,
    #[serde(flatten)]
    pub fate: Fate,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub mutants: Vec<Mutant>,
    /// Entries of the list of equivalents that match nothing.
    pub stale: Vec<String>,
}

impl Report {
    pub fn count(&self, wanted: impl Fn(&Fate) -> bool) -> usize {
        self.mutants.iter().filter(|m| wanted(&m.fate)).count()
    }

    /// Something was tried, everything was noticed, and the list says nothing of what is not there.
    pub fn holds(&self) -> bool {
        !self.mutants.is_empty() && self.count(|fate| !fate.decided()) == 0 && self.stale.is_empty()
    }
}

/// Mistakes that change nothing that could be noticed.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Equivalents {
    #[serde(default)]
    equivalent: Vec<Equivalent>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Equivalent {
    file: String,
    /// What the line contains, and the one after it.
    line: String,
    #[serde(default)]
    after: String,
    kind: String,
    /// Which of the line's mistakes of this kind, from 1; all if empty.
    #[serde(default)]
    which: Vec<usize>,
    why: String,
}

impl Equivalents {
    /// The list of this repository.
    ///
    /// # Errors
    /// [`Error::Argument`] if it cannot be read, which a test rules out.
    pub fn bundled() -> Result<Equivalents> {
        toml::from_str(include_str!("equivalent.toml")).map_err(|e| Error::argument("mutants", e.to_string()))
    }

    /// The reason why a site is listed; `nth`: its number among those of its kind and line.
    fn why(&self, site: &Site, nth: usize) -> Option<(usize, &str)> {
        let matches = |e: &Equivalent| {
            e.file == site.file
                && site.text.contains(&e.line)
                && site.after.contains(&e.after)
                && e.kind == site.kind.name()
                && (e.which.is_empty() || e.which.contains(&nth))
        };
        self.equivalent.iter().enumerate().find(|(_, e)| matches(e)).map(|(i, e)| (i, e.why.as_str()))
    }
}

/// Tries every mistake in the kernels of the named operations, all if there are none, and in the headers that no other operation includes.
/// Operations are tried side by side.
///
/// `progress` is called with an operation, how many of its mistakes were tried and how many there are.
///
/// # Errors
/// [`Error::Unavailable`] without a C++ compiler; [`Error::Compile`] if a kernel does not compile with its mistakes in it.
pub fn run(ops: &[String], equivalents: &Equivalents, progress: impl Fn(&str, usize, usize) + Sync) -> Result<Report> {
    let chosen: Vec<&'static Op> = {
        let wanted = |op: &Op| ops.is_empty() || ops.iter().any(|name| name == op.name);
        REGISTRY.iter().copied().filter(|op| wanted(op)).collect()
    };
    let judge = Judge { equivalents, files: files(&chosen)?, progress: &progress, verdicts: Mutex::default() };
    // Most mistakes are noticed at once by some operation. Whatever is not is tried by all that there is.
    for patience in [Patience::Brief, Patience::Full] {
        let queue = Mutex::new(chosen.iter());
        let work = || -> Result<()> {
            loop {
                let Some(op) = locked(&queue).next() else { return Ok(()) };
                judge.operation(op, patience)?;
            }
        };
        std::thread::scope(|scope| {
            let threads = std::thread::available_parallelism().map_or(1, usize::from).min(chosen.len());
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let failed = || Error::argument("mutants", "a worker panicked");
            workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| Err(failed())))
        })?;
    }
    let Judge { files, verdicts, .. } = judge;
    let Verdicts { fates, used } = verdicts.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    let stale = |(i, e): (usize, &Equivalent)| {
        let listed = (ops.is_empty() || files.contains(&e.file)) && !used.contains(&i);
        listed.then(|| format!("{}: {} of {:?}", e.file, e.kind, e.line))
    };
    let mutant = |(site, fate): (Site, Fate)| Mutant {
        file: site.file,
        line: site.line,
        column: site.column,
        kind: site.kind.name(),
        text: site.text,
        fate,
    };
    Ok(Report {
        mutants: fates.into_iter().map(mutant).collect(),
        stale: equivalents.equivalent.iter().enumerate().filter_map(stale).collect(),
    })
}

/// The files whose mistakes are for these operations to notice: theirs, and what they include and others do not.
fn files(ops: &[&'static Op]) -> Result<BTreeSet<String>> {
    let mut all = [BTreeSet::new(), BTreeSet::new()];
    for op in REGISTRY {
        let own = ops.iter().any(|chosen| chosen.name == op.name);
        all[usize::from(own)].extend(files_of(op)?);
    }
    let [others, own] = all;
    Ok(own.difference(&others).cloned().collect())
}

/// What an operation's sources are made of.
fn files_of(op: &Op) -> Result<BTreeSet<String>> {
    let files = op.sources.iter().map(|source| Ok(sites::files(&source.expanded()?)));
    Ok(files.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// How long a mistake is tried by one operation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// By its quickest cases.
    Brief,
    /// By every case under every schedule.
    Full,
}

#[derive(Default)]
struct Verdicts {
    fates: BTreeMap<Site, Fate>,
    /// Entries of the list of equivalents.
    used: BTreeSet<usize>,
}

struct Judge<'a> {
    equivalents: &'a Equivalents,
    files: BTreeSet<String>,
    progress: &'a (dyn Fn(&str, usize, usize) + Sync),
    verdicts: Mutex<Verdicts>,
}

impl Judge<'_> {
    fn operation(&self, op: &'static Op, patience: Patience) -> Result<()> {
        // The oldest architecture takes other paths.
        for arch in [Arch(90), Arch(75)] {
            if patience == Patience::Full && !self.left(op)? {
                return Ok(());
            }
            let mut ground = Ground::new(op, arch)?;
            let sites = ground.sites()?;
            let mut nth: HashMap<(&str, usize, sites::Kind), usize> = HashMap::new();
            for (i, site) in sites.iter().enumerate().filter(|(_, site)| self.files.contains(&site.file)) {
                (self.progress)(op.name, i, sites.len());
                let count = nth.entry((&site.file, site.line, site.kind)).or_default();
                *count += 1;
                if self.undecided(site, *count)
                    && let Some(fate) = ground.attempt(i as u32 + 1, patience)
                {
                    // Another operation may have noticed it meanwhile.
                    let mut verdicts = locked(&self.verdicts);
                    let known = verdicts.fates.entry(site.clone()).or_insert(Fate::Unreached);
                    if !known.decided() {
                        *known = fate;
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether something is undecided in the files that `op` includes.
    fn left(&self, op: &Op) -> Result<bool> {
        let files = files_of(op)?;
        Ok(locked(&self.verdicts).fates.iter().any(|(site, fate)| !fate.decided() && files.contains(&site.file)))
    }

    /// `nth`: the site's number among those of its kind and line.
    fn undecided(&self, site: &Site, nth: usize) -> bool {
        let Verdicts { fates, used } = &mut *locked(&self.verdicts);
        let fate = fates.entry(site.clone()).or_insert(Fate::Unreached);
        if !fate.decided()
            && let Some((entry, why)) = self.equivalents.why(site, nth)
        {
            used.insert(entry);
            *fate = Fate::Equivalent { why: why.to_owned() };
        }
        !fate.decided()
    }
}

struct Planted {
    text: String,
    mutants: u32,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// One operation's cases on one architecture, and the mistakes that each comes by.
struct Ground {
    op: &'static Op,
    /// Under several schedules: what is not noticed under the first may be under another.
    devices: Vec<Device>,
    mutants: Arc<Mutants>,
    sites: Arc<Mutex<Vec<Site>>>,
    cases: Vec<(Case, Prepared)>,
    /// For every mistake the cases that come by, quickest first.
    reached: HashMap<u32, Vec<usize>>,
}

impl Ground {
    fn new(op: &'static Op, arch: Arch) -> Result<Ground> {
        let sites: Arc<Mutex<Vec<Site>>> = Arc::default();
        let planted = Arc::clone(&sites);
        // An operation may launch kernels of several sources.
        let texts: Mutex<HashMap<String, Planted>> = Mutex::default();
        let mutants = Arc::new(Mutants::new(move |_, text| {
            let (mut texts, mut planted) = (locked(&texts), locked(&planted));
            let known = texts.entry(text.to_owned()).or_insert_with(|| {
                let (sites, text) = plant(text, planted.len() as u32 + 1);
                planted.extend(sites);
                // Which mistake is chosen is a variable of the library, and operations side by side choose different ones.
                Planted { text: format!("{text}// for {}\n", op.name), mutants: planted.len() as u32 }
            });
            Altered { text: known.text.clone(), mutants: known.mutants }
        }));
        let device = |schedule| {
            let emulator = Emulator::mutated(Options { arch, schedule, ..Options::default() }, Arc::clone(&mutants))?;
            Ok(Device::on(Box::new(emulator)))
        };
        let devices = Schedule::ALL.into_iter().map(device).collect::<Result<_>>()?;
        let prepare = |case: Case| Prepared::fixed(op.name, &case).map(|prepared| (case, prepared));
        let cases = (op.cases)().into_iter().filter(|case| !case.bench).map(prepare).collect::<Result<_>>()?;
        Ok(Ground { op, devices, mutants, sites, cases, reached: HashMap::new() })
    }

    /// Runs everything once, without a mistake.
    fn sites(&mut self) -> Result<Vec<Site>> {
        let mut passed: Vec<(Duration, usize, BTreeSet<u32>)> = Vec::new();
        for n in 0..self.cases.len() {
            let start = Instant::now();
            if let Some(how) = self.notices(n, &self.devices[0])? {
                return Err(Error::argument("mutants", format!("{} {} fails as it is: {how}", self.op.name, self.cases[n].0.label)));
            }
            passed.push((start.elapsed(), n, self.mutants.take_reached()));
        }
        passed.sort();
        for (_, n, reached) in passed {
            reached.into_iter().for_each(|mutant| self.reached.entry(mutant).or_default().push(n));
        }
        Ok(locked(&self.sites).clone())
    }

    /// `None` if no case comes by.
    fn attempt(&self, mutant: u32, patience: Patience) -> Option<Fate> {
        const BRIEF: Duration = Duration::from_millis(200);
        let cases = self.reached.get(&mutant)?;
        let devices = match patience {
            Patience::Brief => &self.devices[..1],
            Patience::Full => &self.devices[..],
        };
        let start = Instant::now();
        self.mutants.choose(mutant);
        let tries = devices.iter().flat_map(|device| cases.iter().map(move |&n| (n, device)));
        let mut tries = tries.take_while(|_| patience == Patience::Full || start.elapsed() < BRIEF);
        let notices = |n, device| self.notices(n, device).unwrap_or_else(|error| Some(error.to_string()));
        let found = tries.find_map(|(n, device)| Some((n, notices(n, device)?)));
        self.mutants.choose(0);
        Some(found.map_or(Fate::Survived, |(n, how)| {
            let case = &self.cases[n].0;
            Fate::Killed { op: self.op.name.to_owned(), case: case.label.clone(), dtype: case.dtype.to_string(), how }
        }))
    }

    /// What is wrong with case `n`, if anything.
    fn notices(&self, n: usize, device: &Device) -> Result<Option<String>> {
        let (case, prepared) = &self.cases[n];
        let found = match prepared.run(case, device) {
            Ok(found) => found,
            Err(Error::Fault { what, .. }) => return Ok(Some(what)),
            Err(error) => return Err(error),
        };
        let mut outcome = Outcome::new(self.op.name, &case.label, case.dtype.name(), "");
        match prepared.judge(case, &found, &mut outcome) {
            Ok(()) => {}
            Err(Error::Fault { what, .. }) => return Ok(Some(what)),
            Err(error) => return Err(error),
        }
        Ok((!outcome.pass).then(|| outcome.why()))
    }
}
