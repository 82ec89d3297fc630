//! Language models over audio codes, against what `LMGen` of moshi says.

use swara_engine::lm::{Condition, ConditionRows, Conditions, Drawing, Given, Lm, Session};
use swara_kernels::ops::delay::UNGENERATED;
use swara_kernels::tolerance::Tolerance;
use swara_kernels::{DType, Device, Tensor};

use super::{Dump, Result, SAME};
use crate::Outcome;

/// Of the logits' spread.
const LOGITS: f64 = 1e-4;

/// A model of the folder `weights/CASE`: logits of text and of extra heads at every step, and which token is the most probable, where
/// it is so by more than twice what logits may be off. What it says is given to it, so that one tie does not make all that follows
/// another conversation.
pub fn moshi(dump: &Dump, device: &Device, outcome: &mut Outcome) -> Result {
    let lm = Lm::open(&dump.path.with_file_name("weights").join(&dump.name), device, DType::F32)?;
    let config = lm.config();
    let (user, shape) = dump.values("user", SAME)?;
    let [batch, steps] = match shape[..] {
        [batch, steps, heard] if heard == config.heard() && batch * steps > 0 => [batch, steps],
        _ => return Err(dump.broken(format!("user has shape {shape:?}, expected [B, S, {}]", config.heard()))),
    };
    let wide = |name: &str, width: usize| -> Result<Vec<f64>> {
        let (values, shape) = dump.values(name, SAME)?;
        match values.len() == batch * steps * width {
            true => Ok(values),
            false => Err(dump.broken(format!("{name} has shape {shape:?}, expected [{batch}, {steps}, ..] of {width}"))),
        }
    };
    let columns = 1 + config.dep_q;
    let heads = config.extra_heads_num_heads * config.extra_heads_dim;
    let (said, out, margin) = (wide("said", columns)?, wide("out", columns)?, wide("margin", columns)?);
    let free = f64::from(UNGENERATED);
    let given = if dump.has("given") { wide("given", columns)? } else { vec![free; said.len()] };
    let text_logits = wide("text_logits", config.text_outputs())?;
    let head_logits = if heads > 0 { wide("heads", heads)? } else { Vec::new() };
    let ids = |values: &[f64], step: usize, width: usize| -> Vec<i32> {
        (0..batch).flat_map(|b| &values[(b * steps + step) * width..][..width]).map(|&v| v as i32).collect()
    };
    let mut session = session(dump, &lm, batch)?;
    let (mut found_text, mut found_heads) = (vec![0.0; text_logits.len()], vec![0.0; head_logits.len()]);
    let (mut same, mut compared) = (0u32, 0u32);
    for step in 0..steps {
        let heard = Tensor::from_slice(device, &ids(&user, step, config.heard()), [batch, config.heard()])?;
        let found = session.step_given(&heard, &Given::new(&lm, &ids(&said, step, columns), None)?)?;
        if found.complete.to_vec::<i32>()? != ids(&out, step, columns) {
            outcome.fail(format!("step {step}: what is complete is not what moshi has complete"));
        }
        let text = put(&mut found_text, &found.text_logits, step, steps)?;
        let mut at = 0;
        for head in &found.heads {
            let logits = head.to_f64()?;
            let width = logits.len() / batch;
            for (b, row) in logits.chunks_exact(width).enumerate() {
                found_heads[(b * steps + step) * heads + at..][..width].copy_from_slice(row);
            }
            at += width;
        }
        for (column, logits) in std::iter::once(Ok(text)).chain(found.logits.iter().map(Tensor::to_f64)).enumerate() {
            let logits = logits?;
            for (b, row) in logits.chunks_exact(logits.len() / batch).enumerate() {
                let place = (b * steps + step) * columns + column;
                if given[place] != free {
                    continue;
                }
                compared += 1;
                let best = (0..row.len()).max_by(|&i, &j| row[i].total_cmp(&row[j]).then(j.cmp(&i)));
                // Where the next one is as close as that, either may be drawn.
                let said = said[place] as usize;
                let Some(&drawn) = row.get(said) else {
                    outcome.fail(format!("stream {b}, step {step}, column {column}: a token without a logit"));
                    continue;
                };
                let close = |best: usize| margin[place] <= 2.0 * LOGITS && row[best] - drawn <= 4.0 * LOGITS * deviation(row);
                if best.is_some_and(|best| best == said || close(best)) {
                    same += 1;
                } else {
                    outcome.fail(format!("stream {b}, step {step}, column {column}: another token, by a clear margin"));
                }
            }
        }
    }
    if compared == 0 {
        outcome.fail("every token is given, and none is compared".to_owned());
    }
    dump.check_number(outcome, "tokens", f64::from(same) / f64::from(compared.max(1)), 1.0, 1e-3);
    for (name, found, expected) in [("text_logits", found_text, text_logits), ("heads", found_heads, head_logits)] {
        if !expected.is_empty() {
            outcome.add(name, Tolerance::EXACT.plus(LOGITS * deviation(&expected)).compare(&found, &expected));
        }
    }
    Ok(())
}

fn deviation(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
}

/// Puts `[B, V]` where step `step` of `[B, S, V]` is, and gives it.
fn put(all: &mut [f64], logits: &Tensor, step: usize, steps: usize) -> Result<Vec<f64>> {
    let (values, width) = (logits.to_f64()?, logits.shape().last_dim());
    for (b, row) in values.chunks_exact(width).enumerate() {
        all[(b * steps + step) * width..][..width].copy_from_slice(row);
    }
    Ok(values)
}

/// Under the conditions of the case, if it has some.
fn session<'a>(dump: &Dump, lm: &'a Lm, batch: usize) -> Result<Session<'a>> {
    let drawing = vec![Drawing::GREEDY; batch];
    if dump.facts.get("conditions").is_none() {
        return Ok(Session::new(lm, &drawing)?);
    }
    let words = |field: &str| -> Result<Vec<Conditions>> {
        let streams = dump.fact(field)?.as_array().ok_or_else(|| dump.wrong(field, "conditions of each stream"))?;
        let stream = |of: &serde_json::Value| {
            let words = of.as_object().into_iter().flatten();
            words.filter_map(|(name, word)| Some((name.clone(), word.as_str()?.into()))).collect()
        };
        Ok(streams.iter().map(stream).collect())
    };
    let mut conditions = words("conditions")?;
    for tensor in dump.weights.names().filter(|name| !name.ends_with(".mask")) {
        let Some((name, stream)) = tensor.strip_prefix("condition.").and_then(|rest| rest.split_once('.')) else { continue };
        let stream = stream.parse().ok().and_then(|b: usize| conditions.get_mut(b));
        let stream = stream.ok_or_else(|| dump.broken(format!("{tensor} is of no stream")))?;
        let ((values, shape), (there, _)) = (dump.values(tensor, SAME)?, dump.values(&format!("{tensor}.mask"), SAME)?);
        let (values, there) = (values.into_iter().map(|v| v as f32).collect(), there.iter().map(|&there| there != 0.0).collect());
        let rows = ConditionRows::new(values, shape.last().copied().unwrap_or(0), Some(there))?;
        stream.insert(name.to_owned(), Condition::Rows(rows));
    }
    let led = dump.facts.get("cfg_coef").is_some_and(serde_json::Value::is_number);
    let against = if led { Some((dump.number("cfg_coef")?, words("against")?)) } else { None };
    Ok(Session::conditioned(lm, &drawing, &conditions, against.as_ref().map(|(factor, against)| (*factor, &against[..])))?)
}
