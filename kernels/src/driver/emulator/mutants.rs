//! Kernels with mistakes: does anything notice?

use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;

use crate::driver::Source;

/// Alters kernels' text before it is compiled. The altered text asks `swara::mutant(n)`, n from 1, whether to make its nth mistake
/// (`emulator/mutants.h`), so that one compilation serves all.
pub struct Mutants {
    alter: Box<Alter>,
    state: Mutex<State>,
}

type Alter = dyn Fn(&'static Source, &str) -> Altered + Send + Sync;

/// A text, and how many mistakes are in it.
pub struct Altered {
    pub text: String,
    pub mutants: u32,
}

#[derive(Default)]
struct State {
    chosen: u32,
    reached: BTreeSet<u32>,
    /// How often a launch of each kernel asked at most, without a mistake.
    asked: HashMap<String, i64>,
}

impl Mutants {
    pub fn new(alter: impl Fn(&'static Source, &str) -> Altered + Send + Sync + 'static) -> Mutants {
        Mutants { alter: Box::new(alter), state: Mutex::default() }
    }

    /// Makes this mistake in every launch from now on; 0: none.
    pub fn choose(&self, number: u32) {
        self.lock().chosen = number;
    }

    /// The places of mistakes that launches came by since the last call, whether or not they were chosen.
    pub fn take_reached(&self) -> BTreeSet<u32> {
        std::mem::take(&mut self.lock().reached)
    }

    pub(super) fn alter(&self, source: &'static Source, text: &str) -> Altered {
        (self.alter)(source, text)
    }

    /// The mistake to make, and how often the text may ask before a kernel is said not to end.
    pub(super) fn begin(&self, kernel: &str) -> (u32, i64) {
        const PLENTY: i64 = 1 << 40;
        const FEW: i64 = 50_000;
        let state = self.lock();
        match state.chosen {
            0 => (0, PLENTY),
            chosen => (chosen, FEW + 4 * state.asked.get(kernel).unwrap_or(&0)),
        }
    }

    pub(super) fn end(&self, kernel: &str, asked: i64, flags: &mut [u8]) {
        let state = &mut *self.lock();
        if state.chosen == 0 {
            let most = state.asked.entry(kernel.to_owned()).or_default();
            *most = asked.max(*most);
        }
        for (number, flag) in flags.iter_mut().enumerate() {
            if std::mem::take(flag) != 0 {
                state.reached.insert(number as u32);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
