use super::{Extents, Tokens, UNGENERATED};
use crate::ops::attention::Positions;
use crate::{Result, Tensor};

/// Position and ring of every stream, and whether it runs.
fn streams<'a>(
    ring: &'a mut Tensor,
    extents: Extents,
    positions: &'a Positions,
    mask: Option<&'a Tensor>,
) -> Result<impl Iterator<Item = (usize, &'a mut [i32], bool)>> {
    let seen = positions.seen.as_slice::<i32>()?;
    let mask = mask.map(Tensor::as_slice::<u8>).transpose()?;
    let rings = ring.as_mut_slice::<i32>()?.chunks_exact_mut(extents.columns * (extents.longest + 2));
    Ok(rings.zip(seen).enumerate().map(move |(b, (ring, &s))| (s as usize, ring, mask.is_none_or(|mask| mask[b] != 0))))
}

pub fn feed(ids: &mut Tensor, tokens: &mut Tokens, given: &Tensor, positions: &Positions, mask: Option<&Tensor>) -> Result<()> {
    let extents = tokens.extents();
    let Extents { columns, generated, longest } = extents;
    let (delays, initial, length) = (tokens.delays.as_slice::<i32>()?, tokens.initial.as_slice::<i32>()?, longest + 2);
    let (given, ids) = (given.as_slice::<i32>()?, ids.as_mut_slice::<i32>()?);
    for (b, (s, ring, runs)) in streams(&mut tokens.ring, extents, positions, mask)?.enumerate() {
        for k in 0..columns {
            let (delay, ring) = (delays[k] as usize, &mut ring[k * length..][..length]);
            if runs && k >= generated {
                ring[(s + delay) % length] = given[b * (columns - generated) + k - generated];
            }
            ids[b * columns + k] = if !runs || s <= delay { initial[k] } else { ring[s % length] };
        }
    }
    Ok(())
}

pub fn take(out: &mut Tensor, tokens: &mut Tokens, said: &Tensor, positions: &Positions, mask: Option<&Tensor>) -> Result<()> {
    let extents = tokens.extents();
    let Extents { generated, longest, .. } = extents;
    let (delays, length) = (tokens.delays.as_slice::<i32>()?, longest + 2);
    let (said, out) = (said.as_slice::<i32>()?, out.as_mut_slice::<i32>()?);
    for (b, (s, ring, runs)) in streams(&mut tokens.ring, extents, positions, mask)?.enumerate() {
        for k in 0..generated {
            let ring = &mut ring[k * length..][..length];
            if runs {
                ring[(s + 1) % length] = said[b * generated + k];
            }
            out[b * generated + k] = match runs && s >= longest {
                true => ring[(s + 1 - longest + delays[k] as usize) % length],
                false => UNGENERATED,
            };
        }
    }
    Ok(())
}
