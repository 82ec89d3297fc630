//! Steps of a session as CUDA graphs: one launch each, whatever the number of kernels.

use swara_kernels::device::Graph;
use swara_kernels::{Cuda, DType, Device, Shape, Tensor, span};

use crate::Result;

/// What a step gives.
pub(crate) trait Outcome: Sized {
    /// The same in tensors of their own: those of a graph are written to again by its next replay.
    fn copy(&self) -> Result<Self>;
}

impl Outcome for Tensor {
    fn copy(&self) -> Result<Tensor> {
        Ok(Tensor::copy(self)?)
    }
}

/// Records the steps of one kind of work, whose state is all on the device.
pub(crate) struct Recorder<G> {
    /// The size of the last step that succeeded, and a recording: of those without a mask, and of those with one.
    last: [Option<Size>; 2],
    recordings: [Option<Recording<G>>; 2],
    wanted: bool,
    refused: Option<String>,
}

/// Shape and type of what goes in, a number that the work is for, and whether there is a mask.
type Size = (Shape, DType, usize, bool);

/// A step with tensors of its own for what goes in and comes out.
struct Recording<G> {
    size: Size,
    input: Tensor,
    mask: Option<Tensor>,
    output: G,
    graph: Graph,
}

impl<G> Default for Recorder<G> {
    fn default() -> Recorder<G> {
        Recorder { last: [None, None], recordings: [None, None], wanted: true, refused: None }
    }
}

impl<G: Outcome> Recorder<G> {
    /// From here on as graphs, or kernel by kernel.
    pub fn want(&mut self, graphs: bool) {
        *self = Recorder { wanted: graphs, ..Recorder::default() };
    }

    /// Records anew: the work has become another.
    pub fn forget(&mut self) {
        self.want(self.wanted);
    }

    /// Why steps are launched kernel by kernel on a device that has graphs, where they were to be graphs.
    pub fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// `work`: as a graph on CUDA from the second step of a size in a row on; itself before, and where no graph can be had.
    pub fn run(
        &mut self,
        device: &Device,
        input: &Tensor,
        number: usize,
        mask: Option<&Tensor>,
        mut work: impl FnMut(&Tensor, Option<&Tensor>) -> Result<G>,
    ) -> Result<G> {
        let Device::Cuda(cuda) = device else { return work(input, mask) };
        let size = (input.shape(), input.dtype(), number, mask.is_some());
        // What a graph replays, a timeline does not see.
        let plain = !self.wanted || self.refused.is_some() || span::timeline::recording() || input.elements() == 0;
        let kind = usize::from(mask.is_some());
        let (last, recording) = (&mut self.last[kind], &mut self.recordings[kind]);
        let again = std::mem::take(last) == Some(size);
        match recording {
            Some(recording) if !plain && recording.size == size => {
                let given = recording.replay(input, mask)?;
                *last = Some(size);
                return Ok(given);
            }
            _ if plain || !again => {
                let given = work(input, mask)?;
                *last = Some(size);
                return Ok(given);
            }
            _ => *recording = None,
        }
        let given = match Recording::new(cuda, size, input, mask, &mut work) {
            Ok(made) => recording.insert(made).replay(input, mask)?,
            Err(error) => {
                // What does not fit is no reason against graphs.
                let given = work(input, mask)?;
                self.refused = Some(error.to_string());
                given
            }
        };
        *last = Some(size);
        Ok(given)
    }
}

impl<G: Outcome> Recording<G> {
    fn new(
        cuda: &Cuda,
        size: Size,
        input: &Tensor,
        mask: Option<&Tensor>,
        work: &mut impl FnMut(&Tensor, Option<&Tensor>) -> Result<G>,
    ) -> Result<Recording<G>> {
        let (input, mask) = (input.copy()?, mask.map(Tensor::copy).transpose()?);
        let (graph, output) = cuda.capture(|| work(&input, mask.as_ref()))?;
        Ok(Recording { size, input, mask, output, graph })
    }

    fn replay(&mut self, input: &Tensor, mask: Option<&Tensor>) -> Result<G> {
        self.input.copy_from(input)?;
        if let (Some(to), Some(from)) = (&mut self.mask, mask) {
            to.copy_from(from)?;
        }
        self.graph.replay()?;
        self.output.copy()
    }
}
