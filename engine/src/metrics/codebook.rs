use std::fmt;

use serde::Serialize;

/// How often each entry of one codebook was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Usage {
    counts: Vec<u64>,
    total: u64,
}

impl Usage {
    /// `size`: entries of the codebook.
    pub fn new(size: usize) -> Usage {
        Usage { counts: vec![0; size], total: 0 }
    }

    /// Codes outside the codebook are not counted.
    pub fn add(&mut self, codes: &[i32]) {
        for &code in codes {
            if let Some(count) = usize::try_from(code).ok().and_then(|c| self.counts.get_mut(c)) {
                *count += 1;
                self.total += 1;
            }
        }
    }

    pub fn size(&self) -> usize {
        self.counts.len()
    }

    /// Codes counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// `exp(H)`, H the entropy of the choice in nats: 1 if one entry takes all, the size if all are equally frequent. 0 before
    /// anything was counted.
    pub fn perplexity(&self) -> f64 {
        if self.total == 0 {
            return 0.0;
        }
        let share = |&count: &u64| count as f64 / self.total as f64;
        let entropy: f64 = self.counts.iter().map(share).filter(|&p| p > 0.0).map(|p| -p * p.ln()).sum();
        entropy.exp()
    }

    /// Share of the entries that were chosen at least once.
    pub fn used(&self) -> f64 {
        self.counts.iter().filter(|&&c| c > 0).count() as f64 / self.size().max(1) as f64
    }

    /// What is alarming in stage `stage` (0 first). Few codes cannot show a high perplexity, so nothing is said before
    /// there are ten for each entry.
    pub fn alarm(&self, stage: usize) -> Option<Alarm> {
        if self.size() < 2 || self.total < 10 * self.size() as u64 {
            return None;
        }
        Alarm::of(stage, self.size(), self.perplexity())
    }
}

/// A codebook that carries little.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Alarm {
    /// One entry takes nearly everything.
    Collapsed { stage: usize, perplexity: f64 },
    /// Perplexity under a twentieth of the size, in one of the four stages that carry most.
    Starving { stage: usize, perplexity: f64, size: usize },
}

impl Alarm {
    /// `stage` counts from 0. A perplexity of 0 says that nothing has been counted, and raises none.
    pub fn of(stage: usize, size: usize, perplexity: f64) -> Option<Alarm> {
        if perplexity <= 0.0 {
            None
        } else if perplexity < 1.5 {
            Some(Alarm::Collapsed { stage, perplexity })
        } else if stage < 4 && perplexity < 0.05 * size as f64 {
            Some(Alarm::Starving { stage, perplexity, size })
        } else {
            None
        }
    }
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Alarm::Collapsed { stage, perplexity } => write!(f, "codebook {stage} has collapsed: perplexity {perplexity:.2}"),
            Alarm::Starving { stage, perplexity, size } => {
                write!(f, "codebook {stage} is hardly used: perplexity {perplexity:.1} of {size}")
            }
        }
    }
}
