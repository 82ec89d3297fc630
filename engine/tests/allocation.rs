//! A stream allocates nothing once it has warmed up.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use swara_engine::codec::{Codec, Config, Session};
use swara_engine::train::{CodebookRules, Schedule, TrainConfig, Trainer};
use swara_kernels::{DType, Device};

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

/// The count is of all threads, so the tests take turns.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Least number of allocations in 100 frames, over some rounds, and the times of the frames in order. The test harness has a thread
/// of its own that may allocate: the quietest round is the stream's.
fn allocations(codec: &Codec, codebooks: usize) -> (usize, Vec<Duration>) {
    let hop = codec.format().hop;
    let noise: Vec<f32> = (0..hop).map(|i| (i as f32 * 0.37).sin() * (i as f32 * 0.011).cos() * 0.3).collect();
    let mut session = Session::new(codec, 1).unwrap();
    let x = codec.signal(&noise, 1).unwrap();
    let mut frame = || {
        let codes = session.encode(&x, codebooks, None).unwrap();
        session.decode(&codes, None).unwrap();
    };
    (0..60).for_each(|_| frame());
    let mut times = Vec::with_capacity(500);
    let mut round = || {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for _ in 0..100 {
            let start = std::time::Instant::now();
            frame();
            times.push(start.elapsed());
        }
        ALLOCATIONS.load(Ordering::Relaxed) - before
    };
    let least = (0..5).map(|_| round()).min().unwrap_or(usize::MAX);
    times.sort_unstable();
    (least, times)
}

fn check(codec: &Codec, codebooks: usize) {
    let (allocations, times) = allocations(codec, codebooks);
    let median = times[times.len() / 2];
    let factor = 1.0 / (median.as_secs_f64() * codec.format().frame_rate());
    println!("{}: {allocations} allocations in 100 frames; median frame {median:.2?}, {factor:.1} x real time", codec.name());
    assert!(allocations == 0, "{}: {allocations} allocations in 100 frames", codec.name());
}

#[test]
fn a_stream_of_a_small_codec_allocates_nothing() {
    let _turn = turn();
    let config = TrainConfig {
        train: Schedule { batch: 1, crop_frames: 50, ..Schedule::default() },
        codebook: CodebookRules { start: 0, kmeans_iterations: 1, ..CodebookRules::default() },
        ..TrainConfig::new("te50-small", None)
    };
    let mut trainer = Trainer::new(config, &Device::Cpu).unwrap();
    let noise: Vec<f32> = (0..16000).map(|i| (i as f32 * 0.37).sin() * (i as f32 * 0.011).cos() * 0.3).collect();
    trainer.initialise_codebooks([noise]).unwrap();
    let codec = trainer.codec().unwrap();
    assert_eq!((codec.format().hop, codec.codebooks()), (Config::preset("te50-small").unwrap().hop(), 8));
    check(&codec, 8);
}

#[test]
fn a_stream_of_mimi_allocates_nothing() {
    let _turn = turn();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../verify/golden/mimi/weights/kyutai.safetensors");
    for dtype in [DType::F32, DType::BF16] {
        let codec = Codec::open(&path, &Device::Cpu, dtype).unwrap();
        check(&codec, codec.codebooks());
    }
}
