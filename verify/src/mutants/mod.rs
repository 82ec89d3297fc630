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
        !self.mutants.is_empty() && self.count(|fate| matches!(fate, Fate::Survived | Fate::Unreached)) == 0 && self.stale.is_empty()
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
    /// What the line contains.
    line: String,
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
                && e.kind == site.kind.name()
                && (e.which.is_empty() || e.which.contains(&nth))
        };
        self.equivalent.iter().enumerate().find(|(_, e)| matches(e)).map(|(i, e)| (i, e.why.as_str()))
    }
}

/// Tries every mistake in the kernels of the named operations, all if there are none. Headers count with whatever includes them.
///
/// `progress` is called with an operation, how many of its mistakes were tried and how many there are.
///
/// # Errors
/// [`Error::Unavailable`] without a C++ compiler; [`Error::Compile`] if a kernel does not compile with its mistakes in it.
pub fn run(ops: &[String], equivalents: &Equivalents, mut progress: impl FnMut(&str, usize, usize)) -> Result<Report> {
    let mut fates: BTreeMap<Site, Fate> = BTreeMap::new();
    let mut used = BTreeSet::new();
    let mut files = BTreeSet::new();
    for op in REGISTRY.iter().filter(|op| ops.is_empty() || ops.iter().any(|name| name == op.name)) {
        // The oldest architecture takes other paths.
        for arch in [Arch(90), Arch(75)] {
            let mut ground = Ground::new(op, arch)?;
            let sites = ground.sites()?;
            files.extend(sites.iter().map(|site| site.file.clone()));
            let mut nth: HashMap<(String, usize, sites::Kind), usize> = HashMap::new();
            for (i, site) in sites.iter().enumerate() {
                progress(op.name, i, sites.len());
                let count = nth.entry((site.file.clone(), site.line, site.kind)).or_default();
                *count += 1;
                let known = fates.entry(site.clone()).or_insert(Fate::Unreached);
                if matches!(known, Fate::Killed { .. } | Fate::Equivalent { .. }) {
                    continue;
                }
                if let Some((entry, why)) = equivalents.why(site, *count) {
                    used.insert(entry);
                    *known = Fate::Equivalent { why: why.to_owned() };
                    continue;
                }
                match ground.attempt(i as u32 + 1) {
                    Fate::Unreached => {}
                    fate => *known = fate,
                }
            }
        }
    }
    // What others use as well is not for some operations alone to notice.
    let own = |file: &String| {
        let named = REGISTRY.iter().filter(|op| ops.iter().any(|name| name == op.name));
        named.filter_map(|op| op.source).any(|source| source.path == file)
    };
    fates.retain(|site, fate| ops.is_empty() || !matches!(fate, Fate::Unreached | Fate::Survived) || own(&site.file));
    let stale = |(i, e): (usize, &Equivalent)| {
        let listed = (ops.is_empty() || (files.contains(&e.file) && own(&e.file))) && !used.contains(&i);
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
                Planted { text, mutants: planted.len() as u32 }
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

    fn attempt(&mut self, mutant: u32) -> Fate {
        let Some(cases) = self.reached.get(&mutant) else { return Fate::Unreached };
        self.mutants.choose(mutant);
        let tries = self.devices.iter().flat_map(|device| cases.iter().map(move |&n| (n, device)));
        let notices = |n, device| self.notices(n, device).unwrap_or_else(|error| Some(error.to_string()));
        let found = tries.into_iter().find_map(|(n, device)| Some((n, notices(n, device)?)));
        self.mutants.choose(0);
        match found {
            None => Fate::Survived,
            Some((n, how)) => {
                let case = &self.cases[n].0;
                Fate::Killed { op: self.op.name.to_owned(), case: case.label.clone(), dtype: case.dtype.to_string(), how }
            }
        }
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
