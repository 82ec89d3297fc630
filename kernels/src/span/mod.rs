//! Named spans of time: a training step, a layer, an operation, a launch. Two sinks take them, and without one a span costs a
//! load and a branch:
//! - a profiler that is attached through NVTX ([`nvtx`]), which shows them as nested ranges: Nsight Systems, Nsight Compute;
//! - a [`timeline`] that this thread records, for `swara profile --trace`.
//!
//! Neither sees inside of a kernel: a persistent one (`rvq_search_f32`) is one launch.

pub mod nvtx;
pub mod timeline;

use std::sync::atomic::{AtomicUsize, Ordering};

/// What a span is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Step,
    Layer,
    Op,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Step => "step",
            Kind::Layer => "layer",
            Kind::Op => "op",
        }
    }
}

/// Who listens: one for NVTX and two for each thread that records a timeline. Nobody has asked yet whether NVTX is there while
/// it is [`UNKNOWN`].
static SINKS: AtomicUsize = AtomicUsize::new(UNKNOWN);
const UNKNOWN: usize = 1 << (usize::BITS - 1);
const NVTX: usize = 1;
const TIMELINE: usize = 2;
const TIMELINES: usize = !(UNKNOWN | NVTX);

/// A part of a frame or of a training step: `encode`, `backward`.
#[inline]
pub fn step(name: &str) -> Span {
    open(Kind::Step, name)
}

/// A layer, by the name its tensors have: `decoder.block.0.conv_t1`.
#[inline]
pub fn layer(name: &str) -> Span {
    open(Kind::Layer, name)
}

/// An operation and its function: `conv1d.step`.
#[inline]
pub fn op(name: &str) -> Span {
    open(Kind::Op, name)
}

/// Ends when it is dropped. Spans of a thread nest, so it stays in the thread that opened it.
#[must_use = "a span lasts until it is dropped"]
pub struct Span {
    nvtx: bool,
    timeline: Option<timeline::Token>,
    _thread: std::marker::PhantomData<*const ()>,
}

#[inline]
fn open(kind: Kind, name: &str) -> Span {
    let mut span = Span { nvtx: false, timeline: None, _thread: std::marker::PhantomData };
    if SINKS.load(Ordering::Relaxed) != 0 {
        span.begin(kind, name);
    }
    span
}

impl Span {
    #[cold]
    fn begin(&mut self, kind: Kind, name: &str) {
        let sinks = listeners();
        self.nvtx = sinks & NVTX != 0 && nvtx::push(name);
        self.timeline = (sinks & TIMELINES != 0).then(|| timeline::begin(kind, name)).flatten();
    }
}

impl Drop for Span {
    #[inline]
    fn drop(&mut self) {
        if let Some(token) = self.timeline {
            timeline::end(token);
        }
        if self.nvtx {
            nvtx::pop();
        }
    }
}

/// Asks for NVTX the first time.
#[cold]
fn listeners() -> usize {
    let sinks = SINKS.load(Ordering::Acquire);
    if sinks & UNKNOWN == 0 {
        return sinks;
    }
    // Whoever comes second waits, and finds nothing left to do.
    static ASKED: std::sync::Once = std::sync::Once::new();
    ASKED.call_once(|| {
        let attached = nvtx::attach().is_ok();
        SINKS.fetch_add((attached as usize * NVTX).wrapping_sub(UNKNOWN), Ordering::AcqRel);
    });
    SINKS.load(Ordering::Acquire)
}
