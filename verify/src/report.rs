use std::collections::BTreeMap;

use serde::Serialize;
use swara_kernels::case::Cost;
use swara_kernels::driver::emulator;
use swara_kernels::tolerance::{Comparison, Worst};

/// One comparison: the worst of a case's outputs.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub op: String,
    pub case: String,
    pub dtype: String,
    pub device: String,
    /// The output with the least budget left.
    pub output: String,
    /// How many values were compared, in the smallest output.
    pub elements: usize,
    /// Mean squared error over mean squared reference; for integers the share that differs.
    pub nmse: f64,
    pub max_abs: f64,
    /// Units in the last place of f32.
    pub max_ulp: f64,
    /// Largest error over its tolerance; holds up to 1.
    pub budget_used: f64,
    /// Where in `output` that is.
    #[serde(skip)]
    worst: Option<Worst>,
    pub pass: bool,
    /// Why nothing could be compared, or what is wrong beside the numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// In a narrow type: how many codes are those of the reference.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub codes: Vec<CodeMatch>,
    /// On a checked emulator: what the kernels did to memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
}

/// Codes that are those of a reference in f32.
#[derive(Clone, Debug, Serialize)]
pub struct CodeMatch {
    /// The weights' layout.
    pub layout: String,
    /// In each codebook.
    pub codes: usize,
    /// Of these, in each codebook.
    pub agreeing: Vec<usize>,
}

/// Memory traffic of one run of a case, as a GPU without caches between launches would have it.
#[derive(Clone, Debug, Serialize)]
pub struct Traffic {
    /// What the operation says that it moves.
    pub cost_bytes: usize,
    pub flops: usize,
    /// What its launches moved: every 32-byte sector once a launch and direction.
    pub bytes: u64,
    pub kernels: Vec<KernelTraffic>,
}

/// All launches of one kernel.
#[derive(Clone, Debug, Serialize)]
pub struct KernelTraffic {
    pub kernel: String,
    pub launches: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    /// Share of the sectors' bytes that warps asked for.
    pub coalescing: f64,
    /// Sectors that warps asked for, each of which would come from a cache, for each that had to be moved.
    pub reuse: f64,
    /// Passes through shared memory that bank conflicts add, for each that is needed.
    pub bank_conflicts: f64,
}

impl Traffic {
    pub(crate) fn new(cost: Cost, counted: &BTreeMap<String, emulator::Traffic>) -> Traffic {
        let row = |(kernel, t): (&String, &emulator::Traffic)| KernelTraffic {
            kernel: kernel.clone(),
            launches: t.launches,
            read_bytes: t.read.distinct * emulator::SECTOR,
            written_bytes: t.write.distinct * emulator::SECTOR,
            coalescing: t.coalescing(),
            reuse: t.reuse(),
            bank_conflicts: t.bank_conflicts(),
        };
        Traffic {
            cost_bytes: cost.bytes,
            flops: cost.flops,
            bytes: counted.values().map(emulator::Traffic::bytes).sum(),
            kernels: counted.iter().map(row).collect(),
        }
    }
}

impl Outcome {
    pub fn new(op: &str, case: &str, dtype: &str, device: &str) -> Outcome {
        Outcome {
            op: op.to_owned(),
            case: case.to_owned(),
            dtype: dtype.to_owned(),
            device: device.to_owned(),
            output: String::new(),
            elements: 0,
            nmse: 0.0,
            max_abs: 0.0,
            max_ulp: 0.0,
            budget_used: 0.0,
            worst: None,
            pass: true,
            error: None,
            codes: Vec::new(),
            traffic: None,
        }
    }

    /// Keeps the worst of what it is given.
    pub fn add(&mut self, output: &str, comparison: Comparison) {
        if comparison.elements == 0 && comparison.budget_used == 0.0 {
            return;
        }
        self.elements = if self.output.is_empty() { comparison.elements } else { self.elements.min(comparison.elements) };
        if self.output.is_empty() || comparison.budget_used > self.budget_used {
            self.output = output.to_owned();
            self.worst = comparison.worst;
        }
        self.nmse = self.nmse.max(comparison.nmse);
        self.max_abs = self.max_abs.max(comparison.max_abs);
        self.max_ulp = self.max_ulp.max(comparison.max_ulp);
        self.budget_used = self.budget_used.max(comparison.budget_used);
        // Written so that NaN fails.
        self.pass &= comparison.budget_used <= 1.0;
    }

    pub fn fail(&mut self, why: impl Into<String>) {
        self.pass = false;
        self.error.get_or_insert(why.into());
    }

    /// What is wrong with it, if it did not pass.
    pub fn why(&self) -> String {
        if let Some(error) = &self.error {
            return error.clone();
        }
        let element = self.worst.map_or(String::new(), |w| format!("[{}] is {:?}, expected {:?}", w.index, w.found, w.expected));
        let used = if self.budget_used.is_finite() { format!(": {:.3} of its budget", self.budget_used) } else { String::new() };
        format!("{}{element}{used}", self.output)
    }
}

/// What was not run, and how to have it run.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Skipped {
    pub what: String,
    pub why: String,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub cases: Vec<Outcome>,
    pub passed: usize,
    pub failed: usize,
    pub skipped: Vec<Skipped>,
}

impl Report {
    pub fn push(&mut self, outcome: Outcome) {
        *if outcome.pass { &mut self.passed } else { &mut self.failed } += 1;
        self.cases.push(outcome);
    }

    /// Each thing is skipped once, however often it is met.
    pub fn skip(&mut self, what: impl Into<String>, why: impl Into<String>) {
        let skipped = Skipped { what: what.into(), why: why.into() };
        if !self.skipped.contains(&skipped) {
            self.skipped.push(skipped);
        }
    }

    pub fn append(&mut self, other: Report) {
        other.cases.into_iter().for_each(|outcome| self.push(outcome));
        other.skipped.into_iter().for_each(|s| self.skip(s.what, s.why));
    }

    /// Something ran, and all of it held.
    pub fn holds(&self) -> bool {
        self.failed == 0 && self.passed > 0
    }
}
