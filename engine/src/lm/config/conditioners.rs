//! What streams can be conditioned on, as configurations of moshi have it.

use serde::Deserialize;

use super::Config;
use crate::lm::conditions::{Condition, Conditions};
use crate::{Error, Result};

/// Of Hibiki, and what moshi asks it for.
const DESCRIPTION: &str = "description";
const BEST: &str = "very_good";
const WORST: &str = "very_bad";

/// What conditions are for.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Fuser {
    /// Added to what is fed.
    pub sum: Vec<String>,
    /// Attended to, one behind the other.
    pub cross: Vec<String>,
    pub prepend: Vec<String>,
    /// Whether sines of their positions are added to the rows that are attended to, and by what factor.
    pub cross_attention_pos_emb: bool,
    pub cross_attention_pos_emb_scale: f64,
}

impl Default for Fuser {
    fn default() -> Fuser {
        let none = Vec::new;
        Fuser { sum: none(), cross: none(), prepend: none(), cross_attention_pos_emb: false, cross_attention_pos_emb_scale: 1.0 }
    }
}

/// Something that streams can be conditioned on.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::lm) struct Conditioner {
    pub name: String,
    pub kind: Kind,
    pub width: usize,
    /// Whether rows of `width` are projected to those of the model.
    pub projected: bool,
    /// Whether there is a row for what is not there; else it is zero.
    pub padded: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(in crate::lm) enum Kind {
    /// One of a table of `bins` words; those of no list are numbered by a hash.
    Words {
        known: Option<Vec<String>>,
        bins: usize,
    },
    Rows,
}

impl Conditioner {
    /// That it takes `condition`.
    fn check(&self, condition: &Condition) -> Result<()> {
        let Conditioner { name, kind, width, .. } = self;
        let fail = |why: String| Err(Error::Argument(format!("condition {name} is {why}")));
        match (condition, kind) {
            (Condition::Word(word), Kind::Words { known: Some(words), .. }) if !words.contains(word) => {
                fail(format!("{word:?}, expected one of {}", words.join(", ")))
            }
            (Condition::Rows(given), Kind::Rows) if given.width() != *width => {
                fail(format!("rows of {}, expected of {width}", given.width()))
            }
            (Condition::Rows(_), Kind::Words { .. }) => fail("rows, expected a word".to_owned()),
            (Condition::Word(word), Kind::Rows) => fail(format!("{word:?}, expected rows of {width}")),
            _ => Ok(()),
        }
    }
}

/// `BaseConditioner` of moshi's `conditioners/base.py`.
#[derive(Deserialize)]
struct Base {
    dim: usize,
    #[serde(default = "yes")]
    force_linear: bool,
    #[serde(default = "yes")]
    learn_padding: bool,
    #[serde(default)]
    output_bias: bool,
}

/// What `LUTConditioner` of moshi's `conditioners/text.py` has beside it.
#[derive(Deserialize)]
struct Lut {
    n_bins: usize,
    tokenizer: String,
    possible_values: Option<Vec<String>>,
}

fn yes() -> bool {
    true
}

impl Config {
    /// What conditions are for.
    pub(in crate::lm) fn used(&self) -> Result<Vec<Conditioner>> {
        let fuser = self.fused()?;
        let used = |conditioner: &Conditioner| fuser.sum.iter().chain(&fuser.cross).any(|name| *name == conditioner.name);
        Ok(self.conditioners()?.into_iter().filter(used).collect())
    }

    /// Whether a condition is rows and not a word.
    ///
    /// # Errors
    /// A configuration that does not hold.
    pub fn takes_rows(&self, name: &str) -> Result<bool> {
        Ok(self.used()?.iter().any(|conditioner| conditioner.name == name && conditioner.kind == Kind::Rows))
    }

    /// What moshi conditions streams on if nobody asks, and what they are led away from: Hibiki's own, by the best and the worst of
    /// its descriptions, others by nothing.
    ///
    /// # Errors
    /// A configuration that does not hold.
    pub fn usual(&self) -> Result<(Conditions, Conditions)> {
        let described = self.model_type == "hibiki" && self.used()?.iter().any(|conditioner| conditioner.name == DESCRIPTION);
        let of = |word: &str| described.then(|| (DESCRIPTION.to_owned(), Condition::from(word))).into_iter().collect();
        Ok((of(BEST), of(WORST)))
    }

    /// That a stream can be conditioned so, before there is a model.
    ///
    /// # Errors
    /// Conditions and words that the model does not know; rows of another width, or several that are added.
    pub fn check_conditions(&self, conditions: &Conditions) -> Result<()> {
        let (known, fuser) = (self.used()?, self.fused()?);
        for (name, condition) in conditions {
            let Some(conditioner) = known.iter().find(|known| known.name == *name) else {
                let names: Vec<&str> = known.iter().map(|known| &known.name[..]).collect();
                let why = if names.is_empty() { "it has none".to_owned() } else { format!("which are {}", names.join(", ")) };
                return Err(Error::Argument(format!("condition {name} is none of the model's: {why}")));
            };
            conditioner.check(condition)?;
            if fuser.sum.contains(name) && condition.rows() > 1 {
                return Err(Error::Argument(format!("condition {name} is {} rows, expected the one that is added", condition.rows())));
            }
        }
        Ok(())
    }

    /// As [`check_conditions`](Self::check_conditions), of streams that are led away from conditions by a factor.
    ///
    /// # Errors
    /// As there; a factor that is not finite, a model that has no conditions.
    pub fn check_guidance(&self, factor: f64, against: &Conditions) -> Result<()> {
        if !factor.is_finite() {
            return Err(Error::Argument(format!("a guidance of {factor}")));
        }
        if self.used()?.is_empty() {
            return Err(Error::Argument("guidance of a model that has no conditions".to_owned()));
        }
        self.check_conditions(against)
    }

    /// What streams can be conditioned on.
    pub(in crate::lm) fn conditioners(&self) -> Result<Vec<Conditioner>> {
        let fail = |why: String| Error::Config(format!("conditioners: {why}"));
        let conditioner = |(name, json): (&String, &serde_json::Value)| {
            let kind = json.get("type").and_then(|kind| kind.as_str()).unwrap_or("none");
            if !["lut", "tensor"].contains(&kind) {
                return Err(fail(format!("{name} is of type {kind}, expected lut or tensor")));
            }
            let json = json.get(kind).unwrap_or(&serde_json::Value::Null);
            let wrong = |e: serde_json::Error| fail(format!("{name}: {e}"));
            let base = Base::deserialize(json).map_err(wrong)?;
            crate::config::check_ranges(&[("conditioners: dim", base.dim, 1, 1 << 14)])?;
            let projected = base.force_linear || base.dim != self.dim;
            if projected && base.output_bias {
                return Err(fail(format!("{name} has a bias, which moshi's own have not")));
            }
            let kind = match kind {
                "tensor" => Kind::Rows,
                _ => {
                    let lut = Lut::deserialize(json).map_err(wrong)?;
                    let least = lut.possible_values.as_ref().map_or(1, |words| words.len().max(1));
                    crate::config::check_ranges(&[("conditioners: n_bins", lut.n_bins, least, 1 << 12)])?;
                    if lut.tokenizer != "noop" {
                        return Err(fail(format!("{name} has the tokenizer {:?}, expected noop", lut.tokenizer)));
                    }
                    Kind::Words { known: lut.possible_values, bins: lut.n_bins }
                }
            };
            Ok(Conditioner { name: name.clone(), kind, width: base.dim, projected, padded: base.learn_padding })
        };
        self.conditioners.iter().map(conditioner).collect()
    }

    /// What conditions are for, which the model has.
    pub(in crate::lm) fn fused(&self) -> Result<Fuser> {
        let fail = |why: String| Err(Error::Config(format!("fuser: {why}")));
        let fuser = self.fuser.clone().unwrap_or_default();
        if let Some(name) = fuser.prepend.first() {
            return fail(format!("{name} in prepend, which moshi does not do either: it conditions by sum and cross alone"));
        }
        if fuser.sum.len() + fuser.cross.len() > 64 {
            return fail("more than 64 conditions".into());
        }
        if let Some(name) = fuser.sum.iter().chain(&fuser.cross).find(|name| !self.conditioners.contains_key(*name)) {
            return fail(format!("{name} is none of the conditioners"));
        }
        match (self.cross_attention, fuser.cross.first()) {
            (true, None) => return fail("no condition in cross, beside cross_attention".into()),
            (false, Some(name)) => return fail(format!("{name} in cross of a model without cross_attention")),
            _ => {}
        }
        if self.cross_attention && self.kv_repeat != 1 {
            return fail(format!("cross_attention with kv_repeat {}: moshi has as many heads of keys there as of queries", self.kv_repeat));
        }
        let scale = fuser.cross_attention_pos_emb_scale;
        if fuser.cross_attention_pos_emb && (self.dim < 4 || !self.dim.is_multiple_of(2) || scale.abs() >= 1e6 || !scale.is_finite()) {
            return fail(format!("positions as sines scaled by {scale} in rows of {}, expected an even width from 4 on", self.dim));
        }
        Ok(fuser)
    }
}
