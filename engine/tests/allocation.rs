//! A stream allocates nothing once it has warmed up.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use swara_engine::codec::{Config, Session};
use swara_engine::train::{CodebookRules, LossWeights, Schedule, TrainConfig, Trainer};
use swara_kernels::{Device, Tensor};

struct Counting;
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: forwards to the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_stream_of_the_bundled_shape_allocates_nothing_and_keeps_real_time() {
    let config = TrainConfig {
        model: "swara-te50".into(),
        codec: None,
        train: Schedule { batch: 1, crop_frames: 50, ..Schedule::default() },
        loss: LossWeights::default(),
        codebook: CodebookRules { start: 0, kmeans_iterations: 1, ..CodebookRules::default() },
    };
    let mut trainer = Trainer::new(config, &Device::Cpu).unwrap();
    let noise: Vec<f32> = (0..16000).map(|i| (i as f32 * 0.37).sin() * (i as f32 * 0.011).cos() * 0.3).collect();
    trainer.initialise_codebooks([noise.clone()]).unwrap();
    let codec = trainer.codec().unwrap();
    let (hop, k) = (codec.config().hop(), codec.codebooks());
    assert_eq!((hop, k), (Config::preset("swara-te50").unwrap().hop(), 8));
    let mut session = Session::new(&codec, 1).unwrap();
    let x = codec.signal(&noise[..hop], 1).unwrap();
    let frame = |session: &mut Session| -> Tensor {
        let codes = session.encode(&x, k, None).unwrap();
        session.decode(&codes, None).unwrap()
    };
    for _ in 0..60 {
        frame(&mut session);
    }
    let mut times = Vec::with_capacity(300);
    // The test harness has a thread of its own that may allocate: the quietest round is the stream's.
    let round = |session: &mut Session, times: &mut Vec<std::time::Duration>| {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for _ in 0..100 {
            let start = std::time::Instant::now();
            frame(session);
            times.push(start.elapsed());
        }
        ALLOCATIONS.load(Ordering::Relaxed) - before
    };
    let allocations = (0..3).map(|_| round(&mut session, &mut times)).min().unwrap_or(usize::MAX);
    times.sort_unstable();
    let median = times[times.len() / 2];
    println!("{allocations} allocations in 100 frames; median frame {median:.2?}, {:.1} x real time", 0.02 / median.as_secs_f64());
    assert!(allocations == 0, "{allocations} allocations in 100 frames");
}
