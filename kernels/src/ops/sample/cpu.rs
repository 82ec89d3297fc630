use std::cmp::Ordering;

use super::{Sampler, WORDS};
use crate::cpu::random::{gumbel, philox};
use crate::tensor::Scratch;
use crate::{Real, Result, Tensor};

pub fn draw<T: Real>(ids: &mut Tensor, column: usize, logits: &Tensor, sampler: &mut Sampler, mask: Option<&Tensor>) -> Result<()> {
    let (n, width) = (logits.shape()[1], ids.shape()[1]);
    let mask = mask.map(|mask| mask.as_slice::<u8>()).transpose()?;
    let mut row = Scratch::<f32>::new(n);
    let mut kept = Scratch::<i32>::new(n);
    let ids = ids.as_mut_slice::<i32>()?.chunks_exact_mut(width);
    let rows = logits.as_slice::<T>()?.chunks_exact(n).zip(sampler.settings.as_slice::<i32>()?.chunks_exact(WORDS));
    let counters = sampler.counters.as_mut_slice::<i32>()?.chunks_exact_mut(2);
    for (b, ((ids, counter), (logits, settings))) in ids.zip(counters).zip(rows).enumerate() {
        if mask.is_some_and(|mask| mask[b] == 0) {
            continue;
        }
        row.iter_mut().zip(logits).for_each(|(x, v)| *x = number(v.f64() as f32));
        ids[column] = pick(&row, &mut kept, settings, counter);
        let (low, carry) = (counter[0] as u32).overflowing_add(1);
        counter[0] = low as i32;
        counter[1] = counter[1].wrapping_add(carry as i32);
    }
    Ok(())
}

fn number(x: f32) -> f32 {
    if x.is_nan() { f32::NEG_INFINITY } else { x }
}

/// The id of one row without NaN; `kept` is as long.
fn pick(x: &[f32], kept: &mut [i32], settings: &[i32], counter: &[i32]) -> i32 {
    let [temperature, top_k, sequence, seed_low, seed_high] = [0, 1, 2, 3, 4].map(|word| settings[word] as u32);
    let (temperature, top_k) = (f32::from_bits(temperature), top_k as i32);
    // Larger ones, and of equal ones the first, before the others.
    let order = |a: &i32, b: &i32| x[*b as usize].partial_cmp(&x[*a as usize]).unwrap_or(Ordering::Equal).then(a.cmp(b));
    let largest = (0..x.len() as i32).min_by(order).unwrap_or(0);
    let max = x[largest as usize];
    if temperature <= 0.0 || max.is_infinite() {
        return largest;
    }
    kept.iter_mut().zip(0..).for_each(|(index, i)| *index = i);
    let kept = match usize::try_from(top_k) {
        Ok(k) if k > 0 && k < kept.len() => {
            kept.select_nth_unstable_by(k, order);
            &kept[..k]
        }
        _ => kept,
    };
    let mut drawn = (f32::NEG_INFINITY, i32::MAX);
    for &i in kept {
        let bits = philox([i as u32, sequence, counter[0] as u32, counter[1] as u32], [seed_low, seed_high])[0];
        let score = (x[i as usize] - max) / temperature + gumbel(bits);
        if score > drawn.0 || (score == drawn.0 && i < drawn.1) {
            drawn = (score, i);
        }
    }
    drawn.1
}

pub fn reset(counters: &mut Tensor, mask: &Tensor) -> Result<()> {
    for (counter, &flag) in counters.as_mut_slice::<i32>()?.chunks_exact_mut(2).zip(mask.as_slice::<u8>()?) {
        if flag != 0 {
            counter.fill(0);
        }
    }
    Ok(())
}
