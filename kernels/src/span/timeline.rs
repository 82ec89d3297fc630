//! What one thread did, and its device for it: spans as they nest, and every launch with its device time.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::{Kind, SINKS, TIMELINE};
use crate::device::Event;
use crate::driver::Launch;
use crate::{Cuda, Device, Result};

/// Spans and launches that a recording keeps unless told otherwise; more are counted and dropped.
pub const LIMIT: usize = 1 << 20;

/// Times in nanoseconds since the recording began.
#[derive(Debug, Default)]
pub struct Timeline {
    /// In the order in which they began.
    pub spans: Vec<Spanned>,
    /// In the order in which they were queued. On a GPU by its own clock, set to the host's when the recording began; on the
    /// emulator, which runs a launch where it is made, the host's.
    pub launches: Vec<Launched>,
    /// Beyond the limit.
    pub dropped: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Spanned {
    pub kind: Kind,
    pub name: Box<str>,
    pub begin_ns: u64,
    pub duration_ns: u64,
}

#[derive(Clone, Debug)]
pub struct Launched {
    pub kernel: Box<str>,
    pub launch: Launch,
    pub begin_ns: u64,
    pub duration_ns: u64,
}

struct Recorder {
    id: u64,
    start: Instant,
    limit: usize,
    timeline: Timeline,
    device: Option<(Cuda, Event)>,
    launches: Vec<(Box<str>, Launch, Event, Event)>,
}

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// Records what `work` does in this thread and on `device`. Costs two events a launch, so launches are further apart than they
/// would be; what a graph replays is not seen.
pub fn record<T>(device: &Device, limit: usize, work: impl FnOnce() -> T) -> Result<(T, Timeline)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    device.synchronize()?;
    let device = match device {
        Device::Cpu => None,
        Device::Cuda(cuda) => Some((cuda.clone(), cuda.event()?)),
    };
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let recorder = Recorder { id, start: Instant::now(), limit, timeline: Timeline::default(), device, launches: Vec::new() };
    let guard = Recording { outer: RECORDER.replace(Some(recorder)) };
    SINKS.fetch_add(TIMELINE, Ordering::AcqRel);
    let result = work();
    let recorder = RECORDER.take();
    drop(guard);
    Ok((result, recorder.map_or_else(|| Ok(Timeline::default()), Recorder::finish)?))
}

/// Puts back what was recording before, whatever became of the work.
struct Recording {
    outer: Option<Recorder>,
}

impl Drop for Recording {
    fn drop(&mut self) {
        SINKS.fetch_sub(TIMELINE, Ordering::AcqRel);
        RECORDER.set(self.outer.take());
    }
}

/// Which span of which recording.
#[derive(Clone, Copy)]
pub(super) struct Token {
    recording: u64,
    index: usize,
}

impl Recorder {
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn full(&mut self) -> bool {
        let full = self.timeline.spans.len() + self.launches.len() >= self.limit;
        self.timeline.dropped += full as usize;
        full
    }

    fn finish(mut self) -> Result<Timeline> {
        let now = self.now();
        for span in self.timeline.spans.iter_mut().filter(|span| span.duration_ns == OPEN) {
            span.duration_ns = now - span.begin_ns; // outlived the recording
        }
        let Some((cuda, base)) = self.device else { return Ok(self.timeline) };
        cuda.driver().synchronize()?;
        let mut free = 0;
        for (kernel, launch, start, end) in self.launches {
            let ns = |ms: f32| (f64::from(ms.max(0.0)) * 1e6) as u64;
            // One stream: a launch begins after its predecessor's end, whatever rounding says.
            let begin_ns = ns(start.since_ms(&base)?).max(free);
            let duration_ns = ns(end.since_ms(&start)?);
            free = begin_ns + duration_ns;
            self.timeline.launches.push(Launched { kernel, launch, begin_ns, duration_ns });
        }
        Ok(self.timeline)
    }
}

const OPEN: u64 = u64::MAX;

#[cold]
pub(super) fn begin(kind: Kind, name: &str) -> Option<Token> {
    RECORDER.with_borrow_mut(|recorder| {
        let recorder = recorder.as_mut()?;
        if recorder.full() {
            return None;
        }
        let index = recorder.timeline.spans.len();
        recorder.timeline.spans.push(Spanned { kind, name: name.into(), begin_ns: 0, duration_ns: OPEN });
        recorder.timeline.spans[index].begin_ns = recorder.now();
        Some(Token { recording: recorder.id, index })
    })
}

#[cold]
pub(super) fn end(token: Token) {
    RECORDER.with_borrow_mut(|recorder| {
        let Some(recorder) = recorder.as_mut().filter(|recorder| recorder.id == token.recording) else { return };
        let now = recorder.now();
        if let Some(span) = recorder.timeline.spans.get_mut(token.index) {
            span.duration_ns = now - span.begin_ns;
        }
    });
}

/// Whether launches of this thread are recorded.
#[inline]
pub fn recording() -> bool {
    SINKS.load(Ordering::Relaxed) & super::TIMELINES != 0 && RECORDER.with_borrow(Option::is_some)
}

/// A launch on `cuda` between two events.
pub(crate) fn launched(cuda: &Cuda, kernel: Box<str>, launch: Launch, start: Event, end: Event) {
    RECORDER.with_borrow_mut(|recorder| {
        let Some(recorder) = recorder.as_mut() else { return };
        if recorder.device.as_ref().is_some_and(|(device, _)| device.driver_is(cuda)) && !recorder.full() {
            recorder.launches.push((kernel, launch, start, end));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::{layer, op, step};
    use super::*;

    fn names(timeline: &Timeline) -> Vec<&str> {
        timeline.spans.iter().map(|span| &*span.name).collect()
    }

    #[test]
    fn spans_lie_inside_those_that_they_were_opened_in() {
        let ((), timeline) = record(&Device::Cpu, LIMIT, || {
            let _frame = step("frame");
            for name in ["a", "b"] {
                let _layer = layer(name);
                drop(op("first"));
                drop(op("second"));
            }
        })
        .unwrap();
        assert_eq!(names(&timeline), ["frame", "a", "first", "second", "b", "first", "second"]);
        let end = |span: &Spanned| span.begin_ns + span.duration_ns;
        let inside = |inner: usize, outer: usize| {
            let (inner, outer) = (&timeline.spans[inner], &timeline.spans[outer]);
            inner.begin_ns >= outer.begin_ns && end(inner) <= end(outer)
        };
        assert!((1..7).all(|span| inside(span, 0)) && inside(2, 1) && inside(3, 1) && inside(5, 4) && inside(6, 4));
        assert!(end(&timeline.spans[1]) <= timeline.spans[4].begin_ns);
    }

    #[test]
    fn a_recording_is_bounded_and_says_what_it_left_out() {
        let ((), timeline) = record(&Device::Cpu, 3, || (0..10).for_each(|_| drop(op("many")))).unwrap();
        assert_eq!((timeline.spans.len(), timeline.dropped), (3, 7));
    }

    #[test]
    fn recordings_nest_and_spans_that_outlive_theirs_end_with_it() {
        let (escaped, outer) = record(&Device::Cpu, LIMIT, || {
            drop(step("before"));
            let (span, inner) = record(&Device::Cpu, LIMIT, || step("inner")).unwrap();
            assert_eq!(names(&inner), ["inner"]);
            drop(span);
            drop(step("after"));
            step("escaped")
        })
        .unwrap();
        drop(escaped);
        assert_eq!(names(&outer), ["before", "after", "escaped"]);
        assert!(outer.spans.iter().all(|span| span.duration_ns < 1 << 40));
    }

    #[test]
    fn another_thread_records_nothing_here() {
        let ((), timeline) =
            record(&Device::Cpu, LIMIT, || std::thread::scope(|scope| drop(scope.spawn(|| drop(op("elsewhere"))).join()))).unwrap();
        assert!(timeline.spans.is_empty());
    }

    #[test]
    fn a_panic_ends_the_recording() {
        let caught = std::panic::catch_unwind(|| record(&Device::Cpu, LIMIT, || std::panic::resume_unwind(Box::new(()))).map(drop));
        assert!(caught.is_err() && !recording());
    }

    #[test]
    fn launches_carry_device_times_in_order() {
        let device = match Device::open("emulator") {
            Ok(device) => device,
            Err(error) => return println!("skipped: {error}"),
        };
        let x = crate::Tensor::zeros(&device, crate::DType::F32, [64, 8]).unwrap();
        let y = crate::Tensor::zeros(&device, crate::DType::F32, [64, 8]).unwrap();
        let (result, timeline) = record(&device, LIMIT, || {
            crate::ops::elementwise::add(&x, &y)?;
            crate::ops::elementwise::mul(&x, &y).map(drop)
        })
        .unwrap();
        result.unwrap();
        let kernels: Vec<_> = timeline.launches.iter().map(|launched| &*launched.kernel).collect();
        assert_eq!(kernels, ["binary_f32", "binary_f32"]);
        assert_eq!(names(&timeline), ["elementwise.add", "elementwise.mul"]);
        let [a, b] = &timeline.launches[..] else { unreachable!() };
        assert!(a.duration_ns > 0 && a.begin_ns + a.duration_ns <= b.begin_ns && a.launch.block[0] > 0);
    }
}
