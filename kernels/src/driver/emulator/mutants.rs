//! Kernels with mistakes: does anything notice?

use std::collections::BTreeSet;
use std::sync::Mutex;

use crate::driver::Source;

/// Alters kernels' text before it is compiled. The altered text asks `swara::mutant(n)`, n from 1, whether to make its nth mistake
/// (`emulator/mutants.h`), so that one compilation serves all.
pub struct Mutants {
    alter: Box<dyn Fn(&'static Source, &str) -> Altered + Send + Sync>,
    state: Mutex<State>,
}

/// A text, and how many mistakes are in it.
pub struct Altered {
    pub text: String,
    pub mutants: u32,
}

#[derive(Default)]
struct State {
    chosen: u32,
    reached: BTreeSet<u32>,
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

    pub(super) fn chosen(&self) -> u32 {
        self.lock().chosen
    }

    pub(super) fn reach(&self, flags: &mut [u8]) {
        let mut state = self.lock();
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
