use super::{NAME, SOURCE, Tokens};
use crate::ops::attention::Positions;
use crate::ops::launch::{index, threads};
use crate::{Cuda, Result, Tensor, args};

pub fn feed(gpu: &Cuda, ids: &mut Tensor, tokens: &mut Tokens, given: &Tensor, positions: &Positions, mask: Option<&Tensor>) -> Result<()> {
    let launch = threads(NAME, ids.elements())?;
    let e = tokens.extents();
    let args = args![
        &mut *ids,
        &mut tokens.ring,
        given,
        &positions.seen,
        mask,
        &tokens.delays,
        &tokens.initial,
        index(NAME, ids.shape()[0])?,
        index(NAME, e.columns)?,
        index(NAME, e.generated)?,
        index(NAME, e.longest)?,
    ];
    // SAFETY: the parameters of delay_feed; `Tokens::check` compared the shapes, and a ring has fewer than 2^31 elements.
    unsafe { gpu.kernel(&SOURCE, "delay_feed")?.launch(launch, args) }
}

pub fn take(gpu: &Cuda, out: &mut Tensor, tokens: &mut Tokens, said: &Tensor, positions: &Positions, mask: Option<&Tensor>) -> Result<()> {
    let launch = threads(NAME, out.elements())?;
    let e = tokens.extents();
    let args = args![
        &mut *out,
        &mut tokens.ring,
        said,
        &positions.seen,
        mask,
        &tokens.delays,
        index(NAME, out.shape()[0])?,
        index(NAME, e.columns)?,
        index(NAME, e.generated)?,
        index(NAME, e.longest)?,
    ];
    // SAFETY: the parameters of delay_take; as above.
    unsafe { gpu.kernel(&SOURCE, "delay_take")?.launch(launch, args) }
}
