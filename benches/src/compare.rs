//! Is one build slower than another? Answered by intervals, and by "ambiguous" where they do not settle it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::timing::Samples;

/// A ratio of times, new / old, and where it may lie.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    pub ratio: f64,
    pub low: f64,
    pub high: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Same,
    Faster,
    Slower,
    /// The interval reaches over the margin: more samples or a quieter machine would tell.
    Ambiguous,
    /// Only the new build has it.
    Added,
    /// Only the old build has it.
    Removed,
}

impl Ratio {
    /// Slower or faster if the whole interval is beyond the margin (0.05: 5 %), the same if all of it is within.
    pub fn verdict(&self, margin: f64) -> Verdict {
        let (most, least) = (1.0 + margin, 1.0 / (1.0 + margin));
        match (self.low, self.high) {
            (low, high) if low >= least && high <= most => Verdict::Same,
            (low, _) if low > most => Verdict::Slower,
            (_, high) if high < least => Verdict::Faster,
            _ => Verdict::Ambiguous,
        }
    }

    /// From pairs (old, new) of times, each pair taken at once, so that whatever else the machine does falls on both: the
    /// median of their ratios with its interval of `z` standard deviations. `None` without pairs.
    pub fn paired(pairs: &[(f64, f64)], z: f64) -> Option<Ratio> {
        let ratios = Samples::new(pairs.iter().map(|(old, new)| new / old).collect())?;
        let (low, high) = ratios.median_interval(z);
        Some(Ratio { ratio: ratios.median(), low, high })
    }
}

/// One line of a comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What names the row: op, case, dtype, device; or model, dtype, device, batch.
    #[serde(flatten)]
    pub key: Map<String, Value>,
    pub measure: &'static str,
    pub old: Option<f64>,
    pub new: Option<f64>,
    #[serde(flatten)]
    pub ratio: Option<Ratio>,
    pub verdict: Verdict,
}

impl Row {
    /// The key as text, as much of it as fits a line.
    pub fn name(&self) -> String {
        let parts = self.key.values().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned));
        parts.map(|part| part.chars().take(80).collect::<String>()).collect::<Vec<_>>().join(" ")
    }
}

/// A result file that cannot be used, and why.
#[derive(Debug)]
pub struct BadResults(pub String);

/// What a benchmark calls its rows and its times. Each time has, beside its median, the interval that it is known to.
struct Kind {
    keys: [&'static str; 4],
    /// Those that some rows have.
    more: &'static [&'static str],
    measures: &'static [Measure],
}

struct Measure {
    median: &'static str,
    interval: [&'static str; 2],
    /// Where a file has no interval.
    spread: Option<[&'static str; 2]>,
}

const fn measure(median: &'static str, interval: [&'static str; 2], spread: Option<[&'static str; 2]>) -> Measure {
    Measure { median, interval, spread }
}

const KINDS: [Kind; 3] = [
    Kind {
        keys: ["op", "case", "dtype", "device"],
        more: &[],
        measures: &[measure("median_us", ["median_low_us", "median_high_us"], Some(["p10_us", "p90_us"]))],
    },
    Kind {
        keys: ["model", "dtype", "device", "batch"],
        more: &[],
        measures: &[
            measure("encode_ms_p50", ["encode_ms_low", "encode_ms_high"], None),
            measure("decode_ms_p50", ["decode_ms_low", "decode_ms_high"], None),
        ],
    },
    Kind {
        keys: ["config", "format", "device", "batch"],
        more: &["context", "kv", "sinks", "table_bytes", "codec", "graphs", "plain_depth", "pdl", "draft", "right"],
        measures: &[measure("step_ms_p50", ["step_ms_low", "step_ms_high"], None)],
    },
];

/// Largest result file read.
const MAX_BYTES: u64 = 16 << 20;

/// The rows of a result file: one JSON array of objects.
pub fn read(path: &Path) -> Result<Vec<Map<String, Value>>, BadResults> {
    let fail = |why: String| BadResults(format!("cannot read results: {why} ({})", path.display()));
    let bytes = swara_loader::input::read(path, "read results", MAX_BYTES).map_err(|e| BadResults(e.to_string()))?;
    let rows: Vec<Map<String, Value>> = serde_json::from_slice(&bytes).map_err(|e| fail(format!("not what bench --json writes: {e}")))?;
    match rows.is_empty() {
        true => Err(fail("no rows".into())),
        false => Ok(rows),
    }
}

struct Table {
    kind: &'static Kind,
    rows: BTreeMap<Vec<String>, Map<String, Value>>,
}

fn table(rows: Vec<Map<String, Value>>) -> Result<Table, String> {
    let has = |row: &Map<String, Value>, kind: &Kind| kind.keys.iter().all(|key| row.contains_key(*key));
    let kind = rows.first().and_then(|row| KINDS.iter().find(|kind| has(row, kind)));
    let kind = kind.ok_or("the first row is of no benchmark that can be compared")?;
    let mut table = BTreeMap::new();
    for (n, row) in rows.into_iter().enumerate() {
        let n = n + 1;
        let key = |name: &&str| match row.get(*name) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(Value::Number(number)) => Ok(number.to_string()),
            _ => Err(format!("row {n}: `{name}` is missing or neither text nor number")),
        };
        let mut key = kind.keys.iter().map(key).collect::<Result<Vec<_>, _>>()?;
        key.extend(kind.more.iter().map(|name| match row.get(*name) {
            // What older files do not say.
            None if *name == "graphs" => "true".to_owned(),
            None if matches!(*name, "plain_depth" | "pdl") => "false".to_owned(),
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }));
        for measure in kind.measures {
            let median = number(&row, measure.median).ok_or_else(|| format!("row {n}: `{}` is missing or no time", measure.median))?;
            let (low, high) = interval(&row, measure, median);
            if !(low <= median && median <= high) {
                return Err(format!("row {n}: `{}` {median} is outside its own interval {low} to {high}", measure.median));
            }
        }
        if table.insert(key, row).is_some() {
            return Err(format!("row {n}: the same case as a row before it"));
        }
    }
    Ok(Table { kind, rows: table })
}

/// A positive number that can be divided by.
fn number(row: &Map<String, Value>, key: &str) -> Option<f64> {
    row.get(key).and_then(Value::as_f64).filter(|v| (1e-12..1e15).contains(v))
}

fn interval(row: &Map<String, Value>, measure: &Measure, median: f64) -> (f64, f64) {
    let both = |[low, high]: [&str; 2]| Some((number(row, low)?, number(row, high)?));
    // Without any, nothing is known but the value itself: then the interval is as wide as such machines drift.
    both(measure.interval).or_else(|| both(measure.spread?)).unwrap_or((median / 1.3, median * 1.3))
}

/// Every row of two result files of the same benchmark, `margin` as in [`Ratio::verdict`].
///
/// The two were measured at different times, perhaps on a machine that others use too. So each time is looked at twice, as it is
/// and as a share of the ceilings that were measured around it; the interval holds both, and is widened by how much those
/// ceilings moved during either run. What such an interval cannot settle, [`crate::turns`] can.
pub fn files(old: Vec<Map<String, Value>>, new: Vec<Map<String, Value>>, margin: f64) -> Result<Vec<Row>, String> {
    let (old, new) = (table(old).map_err(|e| format!("old: {e}"))?, table(new).map_err(|e| format!("new: {e}"))?);
    if !std::ptr::eq(old.kind, new.kind) {
        return Err("the two are of different benchmarks".into());
    }
    let mut keys: Vec<&Vec<String>> = old.rows.keys().chain(new.rows.keys()).collect();
    keys.sort();
    keys.dedup();
    let mut rows = Vec::new();
    for key in keys {
        let (a, b) = (old.rows.get(key), new.rows.get(key));
        for measure in old.kind.measures {
            let value = |row: Option<&Map<String, Value>>| row.and_then(|row| number(row, measure.median));
            let ratio = a.zip(b).and_then(|(a, b)| between(a, b, measure));
            let verdict = match ratio {
                Some(ratio) => ratio.verdict(margin),
                None if a.is_some() => Verdict::Removed,
                None => Verdict::Added,
            };
            let names = old.kind.keys.iter().chain(old.kind.more).zip(key).filter(|(_, value)| !value.is_empty());
            let named = names.map(|(name, value)| ((*name).to_owned(), Value::String(value.clone())));
            rows.push(Row { key: named.collect(), measure: measure.median, old: value(a), new: value(b), ratio, verdict });
        }
    }
    Ok(rows)
}

fn between(old: &Map<String, Value>, new: &Map<String, Value>, measure: &Measure) -> Option<Ratio> {
    let (a, b) = (number(old, measure.median)?, number(new, measure.median)?);
    let ((a_low, a_high), (b_low, b_high)) = (interval(old, measure, a), interval(new, measure, b));
    // The share is a floor over a time: of two shares, the floors' ratio is left when the times' is divided out.
    let share = |row| number(row, "share_of_ceiling");
    let machine = share(old).zip(share(new)).map_or(1.0, |(old, new)| (new / old) * (b / a));
    let drift = |row: &Map<String, Value>| row.get("drift").and_then(Value::as_f64).filter(|d| (0.0..1e3).contains(d)).unwrap_or(0.0);
    let wide = 1.0 + drift(old).max(drift(new));
    let (low, high) = (b_low / a_high, b_high / a_low);
    Some(Ratio { ratio: b / a, low: low.min(low / machine) / wide, high: high.max(high / machine) * wide })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_language_models_are_compared_with_their_like() {
        let row = |more: serde_json::Value| {
            let mut row = serde_json::json!({"config": "moshi-1b", "format": "int8", "device": "cpu", "batch": 1, "step_ms_p50": 30.0});
            row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            vec![row.as_object().unwrap().clone()]
        };
        let old = || row(serde_json::json!({"context": 3000, "kv": "f32"}));
        let met = |new: serde_json::Value| files(old(), row(new), 0.05).unwrap().iter().any(|row| row.ratio.is_some());
        assert!(met(serde_json::json!({"context": 3000, "kv": "f32", "graphs": true})), "an older file does not say");
        for other in [
            serde_json::json!({"context": 3000, "kv": "f32", "graphs": false}),
            serde_json::json!({"context": 3000, "kv": "f32", "graphs": true, "codec": "mimi"}),
            serde_json::json!({"context": 3000, "kv": "int8", "graphs": true}),
        ] {
            assert!(!met(other.clone()), "{other}");
        }
    }
    use serde_json::json;
    use swara_kernels::case::SplitMix;

    fn row(case: &str, median: f64, half_width: f64, share: f64, drift: f64) -> Map<String, Value> {
        let (low, high) = (median * (1.0 - half_width), median * (1.0 + half_width));
        let row = json!({"op": "conv1d", "case": case, "dtype": "f32", "device": "cpu", "median_us": median, "median_low_us": low,
            "median_high_us": high, "share_of_ceiling": share, "drift": drift});
        row.as_object().unwrap().clone()
    }

    fn verdict(old: Map<String, Value>, new: Map<String, Value>) -> Verdict {
        files(vec![old], vec![new], 0.05).unwrap()[0].verdict
    }

    #[test]
    fn an_interval_settles_it_or_does_not() {
        let of = |low, high| Ratio { ratio: 1.0, low, high }.verdict(0.05);
        assert_eq!(of(0.97, 1.03), Verdict::Same);
        assert_eq!(of(1.07, 1.13), Verdict::Slower);
        assert_eq!(of(0.88, 0.94), Verdict::Faster);
        assert_eq!(of(1.02, 1.08), Verdict::Ambiguous);
        assert_eq!(of(0.5, 2.0), Verdict::Ambiguous);
        assert_eq!(of(f64::NAN, f64::NAN), Verdict::Ambiguous);
    }

    #[test]
    fn files_are_compared_row_by_row() {
        assert_eq!(verdict(row("a", 100.0, 0.01, 0.5, 0.01), row("a", 101.0, 0.01, 0.495, 0.01)), Verdict::Same);
        assert_eq!(verdict(row("a", 100.0, 0.01, 0.5, 0.01), row("a", 110.0, 0.01, 0.4545, 0.01)), Verdict::Slower);
        assert_eq!(verdict(row("a", 110.0, 0.01, 0.4545, 0.01), row("a", 100.0, 0.01, 0.5, 0.01)), Verdict::Faster);
        // The whole machine became 10 % slower: the ceilings say so, and nobody is blamed.
        assert_eq!(verdict(row("a", 100.0, 0.01, 0.5, 0.01), row("a", 110.0, 0.01, 0.5, 0.01)), Verdict::Ambiguous);
        // It moved by more than what is looked for.
        assert_eq!(verdict(row("a", 100.0, 0.01, 0.5, 0.2), row("a", 110.0, 0.01, 0.4545, 0.2)), Verdict::Ambiguous);
        assert_eq!(verdict(row("a", 100.0, 0.2, 0.5, 0.0), row("a", 110.0, 0.2, 0.4545, 0.0)), Verdict::Ambiguous);
        // A file that says nothing about its spread.
        let bare = |median: f64| {
            let mut row = row("a", median, 0.01, 0.5, 0.0);
            row.retain(|key, _| !key.starts_with("median_") || key == "median_us");
            row
        };
        assert_eq!(verdict(bare(100.0), bare(110.0)), Verdict::Ambiguous);
    }

    #[test]
    fn rows_of_one_file_only_are_listed() {
        let old = vec![row("a", 1.0, 0.0, 0.5, 0.0), row("gone", 1.0, 0.0, 0.5, 0.0)];
        let new = vec![row("new", 1.0, 0.0, 0.5, 0.0), row("a", 1.0, 0.0, 0.5, 0.0)];
        let found = files(old, new, 0.05).unwrap();
        let found: Vec<_> = found.iter().map(|row| (row.key["case"].as_str().unwrap(), row.verdict)).collect();
        assert_eq!(found, [("a", Verdict::Same), ("gone", Verdict::Removed), ("new", Verdict::Added)]);
    }

    #[test]
    fn codec_rows_have_two_times_each() {
        let row = |encode: f64| {
            let row = json!({"model": "m", "dtype": "f32", "device": "cpu", "batch": 4, "encode_ms_p50": encode, "encode_ms_low": encode,
                "encode_ms_high": encode, "decode_ms_p50": 2.0, "decode_ms_low": 2.0, "decode_ms_high": 2.0, "drift": 0.0});
            vec![row.as_object().unwrap().clone()]
        };
        let found = files(row(1.0), row(1.1), 0.05).unwrap();
        assert_eq!(found.iter().map(|row| row.verdict).collect::<Vec<_>>(), [Verdict::Slower, Verdict::Same]);
    }

    #[test]
    fn pairs_see_through_a_machine_that_halves_its_speed() {
        let mut rng = SplitMix(1);
        let mut tries = |slowdown: f64| {
            let verdicts = (0..200).map(|_| {
                let mut speed = 1.0;
                let mut pair = || {
                    // Slow phases that last, and on either time of a pair its own noise, now and then a large one.
                    if rng.uniform() < 0.1 {
                        speed = 1.0 + rng.uniform();
                    }
                    let mut noise = || 1.0 + 0.1 * rng.uniform() + if rng.uniform() < 0.1 { 5.0 * rng.uniform() } else { 0.0 };
                    (speed * noise(), speed * slowdown * noise())
                };
                let pairs: Vec<_> = (0..60).map(|_| pair()).collect();
                Ratio::paired(&pairs, 2.58).unwrap().verdict(0.05)
            });
            verdicts.fold([0; 2], |[same, slower], v| [same + usize::from(v == Verdict::Same), slower + usize::from(v == Verdict::Slower)])
        };
        let (honest, planted) = (tries(1.0), tries(1.1));
        assert!(honest[0] >= 190 && honest[1] == 0, "{honest:?}");
        assert!(planted[1] >= 190 && planted[0] == 0, "{planted:?}");
    }

    #[test]
    fn hostile_rows_are_errors_that_name_the_row() {
        let good = row("a", 1.0, 0.0, 0.5, 0.0);
        let with = |key: &str, value: Value| {
            let mut row = good.clone();
            row.insert(key.into(), value);
            files(vec![good.clone()], vec![row], 0.05).unwrap_err()
        };
        for (key, value, says) in [
            ("median_us", json!("fast"), "row 1: `median_us`"),
            ("median_us", json!(0), "row 1: `median_us`"),
            ("median_us", json!(-1.0), "row 1: `median_us`"),
            ("median_us", json!(1e300), "row 1: `median_us`"),
            ("median_us", json!(2.0), "outside its own interval"),
            ("case", json!([1]), "row 1: `case`"),
            ("device", Value::Null, "row 1: `device`"),
        ] {
            let error = with(key, value);
            assert!(error.contains(says), "{error}");
        }
        assert!(files(vec![good.clone()], vec![good.clone(), good.clone()], 0.05).unwrap_err().contains("row 2: the same case"));
        assert!(files(vec![good.clone()], vec![Map::new()], 0.05).unwrap_err().contains("no benchmark"));
        assert!(files(Vec::new(), vec![good], 0.05).unwrap_err().starts_with("old: "));
    }
}
