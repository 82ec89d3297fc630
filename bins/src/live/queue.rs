//! What waits between standard input and the model.

use std::collections::VecDeque;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::pcm::{Damage, Frame};

/// What happens to a frame that finds the queue full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overload {
    /// It waits, and with it whoever reads and writes it: nothing is lost.
    Wait,
    /// The frame that has waited longest makes room: what is heard is never older than the queue is long.
    DropOldest,
}

/// At most `room` frames.
pub struct Queue {
    room: usize,
    overload: Overload,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(Frame, Instant)>,
    /// Samples that were dropped since the last frame was taken: all of them are older than what waits.
    missed: usize,
    dropped: u64,
    end: Option<io::Result<Damage>>,
}

/// The next frame.
pub struct Next {
    pub frame: Frame,
    /// When it came.
    pub since: Instant,
    /// Samples before it that were dropped.
    pub missed: usize,
}

impl Queue {
    pub fn new(room: usize, overload: Overload) -> Queue {
        Queue { room: room.max(1), overload, state: Mutex::default(), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'q>(&self, state: MutexGuard<'q, State>) -> MutexGuard<'q, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, frame: Frame) {
        let since = Instant::now();
        let mut state = self.state();
        while state.waiting.len() >= self.room {
            match self.overload {
                Overload::Wait => state = self.wait(state),
                Overload::DropOldest => {
                    let oldest = state.waiting.pop_front().map_or(0, |(frame, _)| frame.real);
                    state.missed += oldest;
                    state.dropped += 1;
                }
            }
        }
        state.waiting.push_back((frame, since));
        self.changed.notify_all();
    }

    /// Nothing will be pushed any more.
    pub fn end(&self, how: io::Result<Damage>) {
        self.state().end = Some(how);
        self.changed.notify_all();
    }

    /// Waits for the next frame; None after the last.
    pub fn pop(&self) -> Option<Next> {
        let mut state = self.state();
        loop {
            if let Some((frame, since)) = state.waiting.pop_front() {
                self.changed.notify_all();
                return Some(Next { frame, since, missed: std::mem::take(&mut state.missed) });
            }
            if state.end.is_some() {
                return None;
            }
            state = self.wait(state);
        }
    }

    /// How reading ended, once it has, and how many frames were dropped.
    pub fn finish(&self) -> (io::Result<Damage>, u64) {
        let mut state = self.state();
        (state.end.take().unwrap_or_else(|| Ok(Damage::default())), state.dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(number: usize) -> Frame {
        Frame { samples: vec![number as f32; 4], real: 4 }
    }

    fn waiting(queue: &Queue) -> usize {
        queue.state().waiting.len()
    }

    #[test]
    fn the_oldest_make_room_and_are_counted() {
        let queue = Queue::new(3, Overload::DropOldest);
        for number in 0..100_000 {
            queue.push(frame(number));
            assert!(waiting(&queue) <= 3);
        }
        assert!(queue.state().waiting.capacity() < 16, "memory is bounded");
        let next = queue.pop().unwrap();
        assert_eq!((next.frame.samples[0], next.missed), (99_997.0, 99_997 * 4));
        queue.push(Frame { real: 1, ..frame(100_000) });
        assert_eq!(waiting(&queue), 3);
        queue.push(frame(100_001));
        queue.push(frame(100_002));
        queue.push(frame(100_003));
        let next = queue.pop().unwrap();
        assert_eq!((next.frame.samples[0], next.missed), (100_001.0, 2 * 4 + 1), "a short frame is as short in silence");
        queue.end(Ok(Damage::default()));
        let rest: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|next| (next.frame.samples[0], next.missed)).collect();
        assert_eq!(rest, [(100_002.0, 0), (100_003.0, 0)]);
        assert_eq!(queue.finish().1, 100_000);
    }

    #[test]
    fn nothing_is_lost_where_frames_wait() {
        let queue = Queue::new(2, Overload::Wait);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (0..500).for_each(|number| queue.push(frame(number)));
                queue.end(Err(io::Error::other("cut")));
            });
            for number in 0..500 {
                assert!(waiting(&queue) <= 2);
                let next = queue.pop().unwrap();
                assert_eq!((next.frame.samples[0], next.missed), (number as f32, 0));
            }
            assert!(queue.pop().is_none());
        });
        let (end, dropped) = queue.finish();
        assert_eq!((end.unwrap_err().to_string().as_str(), dropped), ("cut", 0));
    }
}
