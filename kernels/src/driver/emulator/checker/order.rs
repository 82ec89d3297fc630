//! Which accesses of a launch are ordered: by barriers of the block, by `__syncwarp`, and between blocks by a fence and an atomic
//! operation on one side and an atomic operation and a fence on the other.

use std::collections::HashMap;

use super::shadow::{Reach, Stamp};

/// What is known to have happened: of each block, everything before a barrier; of single threads, everything up to a clock.
#[derive(Clone, Debug, Default)]
struct Known {
    epochs: HashMap<u32, u32>,
    threads: HashMap<(u32, u32), (u32, u32)>,
}

impl Known {
    /// Whether the block of `earlier` is known to have passed a barrier since.
    fn passed(&self, earlier: &Stamp) -> bool {
        self.epochs.get(&earlier.block).is_some_and(|&epoch| epoch > earlier.epoch)
    }

    fn join(&mut self, other: &Known) {
        for (&block, &epoch) in &other.epochs {
            let known = self.epochs.entry(block).or_default();
            *known = epoch.max(*known);
        }
        for (&thread, &time) in &other.threads {
            let known = self.threads.entry(thread).or_default();
            *known = time.max(*known);
        }
    }
}

/// A thread's dealings with other blocks.
#[derive(Default)]
struct Hands {
    /// Known already.
    acquired: Known,
    /// Seen by a relaxed operation; known after the next fence.
    seen: Known,
    /// What its last fence lets others know.
    released: Option<Known>,
}

/// Knowledge left at an address of device memory, by whoever operated on it.
#[derive(Default)]
pub(super) struct Letters(HashMap<u64, Known>);

impl Letters {
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Leaves what a thread of a block had done by then.
    pub fn know(&mut self, address: u64, thread: (u32, u32), time: (u32, u32)) {
        let known = self.0.entry(address).or_default().threads.entry(thread).or_default();
        *known = time.max(*known);
    }
}

/// The clocks of one block's threads.
#[derive(Default)]
pub(super) struct Order {
    pub block: u32,
    /// Blocks of the launch.
    blocks: usize,
    pub epoch: u32,
    /// `clocks[32 * thread + lane]`: what the thread knows of its warp.
    clocks: Vec<u32>,
    known: Known,
    hands: HashMap<u32, Hands>,
}

impl Order {
    pub fn new(block: u32, blocks: usize, threads: usize) -> Order {
        Order { block, blocks, clocks: vec![0; 32 * threads.next_multiple_of(32)], ..Order::default() }
    }

    pub fn stamp(&self, launch: u32, thread: u32, place: super::Place) -> Stamp {
        let (warp, lane) = (thread / 32, thread % 32);
        Stamp {
            launch,
            block: self.block,
            epoch: self.epoch,
            warp,
            lanes: 1 << lane,
            clock: self.clock(thread, lane),
            place,
            reach: Reach::Warp,
            atomic: false,
        }
    }

    fn clock(&self, thread: u32, lane: u32) -> u32 {
        self.clocks[(32 * thread + lane) as usize]
    }

    pub fn barrier(&mut self) {
        self.epoch += 1;
        for (_, hands) in self.hands.drain() {
            self.known.join(&hands.acquired);
        }
        // Behind every block that it has heard of: blocks that pass unlike numbers of barriers count alike once all have met, for readers
        // in several blocks are remembered with one epoch.
        let latest = self.known.epochs.values().max().map_or(0, |epoch| epoch + 1);
        self.epoch = self.epoch.max(latest);
    }

    pub fn sync_warp(&mut self, warp: u32, lanes: u32) {
        let members = || (0..32).filter(|lane| lanes >> lane & 1 == 1).map(|lane| 32 * warp + lane);
        let mut joined = [0; 32];
        for thread in members() {
            self.tick(thread);
            let row = &self.clocks[32 * thread as usize..][..32];
            joined.iter_mut().zip(row).for_each(|(j, &c)| *j = c.max(*j));
        }
        for thread in members() {
            self.clocks[32 * thread as usize..][..32].copy_from_slice(&joined);
        }
    }

    fn tick(&mut self, thread: u32) {
        self.clocks[(32 * thread + thread % 32) as usize] += 1;
    }

    pub fn now(&self, thread: u32) -> (u32, u32) {
        (self.epoch, self.clock(thread, thread % 32))
    }

    pub fn fence(&mut self, thread: u32) {
        self.tick(thread);
        let lanes = &self.clocks[32 * thread as usize..][..32];
        let hands = self.hands.entry(thread).or_default();
        let seen = std::mem::take(&mut hands.seen);
        hands.acquired.join(&seen);
        let mut released = self.known.clone();
        released.join(&hands.acquired);
        released.epochs.insert(self.block, self.epoch);
        // Its own deeds, and those that lanes of its warp had done when they last met.
        for (lane, before) in lanes.iter().enumerate().filter_map(|(lane, clock)| Some((lane as u32, clock.checked_sub(1)?))) {
            released.threads.insert((self.block, thread / 32 * 32 + lane), (self.epoch, before));
        }
        hands.released = Some(released);
    }

    /// An atomic operation leaves what the last fence released, and sees what others left.
    pub fn operate(&mut self, letters: &mut Letters, thread: u32, address: u64) {
        let letter = letters.0.entry(address).or_default();
        let hands = self.hands.entry(thread).or_default();
        hands.seen.join(letter);
        if let Some(released) = &hands.released {
            letter.join(released);
        }
    }

    pub fn acquire(&mut self, letters: &Letters, thread: u32, address: u64) {
        if let Some(letter) = letters.0.get(&address) {
            self.hands.entry(thread).or_default().acquired.join(letter);
        }
    }

    /// Whether all accesses of `earlier` are ordered before what `thread` does now.
    pub fn follows(&self, earlier: &Stamp, launch: u32, thread: u32) -> bool {
        if earlier.launch != launch {
            return true;
        }
        let single = |lane: u32| (earlier.block, 32 * earlier.warp + lane);
        let lanes = || (0..32).filter(|lane| earlier.lanes >> lane & 1 == 1);
        if earlier.block == self.block && earlier.reach != Reach::Grid {
            if earlier.epoch < self.epoch {
                return true;
            }
            if earlier.reach == Reach::Block || earlier.warp != thread / 32 {
                return earlier.reach != Reach::Block && lanes().all(|lane| self.knows(single(lane), earlier, thread));
            }
            return lanes().all(|lane| lane == thread % 32 || self.clock(thread, lane) > earlier.clock);
        }
        if earlier.reach == Reach::Grid {
            // Some other block is among them: all must be known, and each up to the latest.
            return self.knows_all(earlier, thread);
        }
        if earlier.reach == Reach::Block {
            // Several warps are among them, and only a barrier that they passed speaks for all.
            return self.minds(thread).any(|known| known.passed(earlier));
        }
        lanes().all(|lane| self.knows(single(lane), earlier, thread))
    }

    fn knows(&self, who: (u32, u32), earlier: &Stamp, thread: u32) -> bool {
        let by =
            |known: &Known| known.passed(earlier) || known.threads.get(&who).is_some_and(|&time| time >= (earlier.epoch, earlier.clock));
        self.minds(thread).any(by)
    }

    fn knows_all(&self, earlier: &Stamp, thread: u32) -> bool {
        let by = |known: &Known| known.epochs.len() == self.blocks && known.epochs.values().all(|&epoch| epoch > earlier.epoch);
        self.minds(thread).any(by)
    }

    fn minds(&self, thread: u32) -> impl Iterator<Item = &Known> {
        std::iter::once(&self.known).chain(self.hands.get(&thread).map(|hands| &hands.acquired))
    }

    /// Adds a read, or an atomic operation, to those that a cell remembers. What is ordered before the new one need not be
    /// remembered: whoever is ordered after the new one is ordered after that too.
    pub fn remember(&self, cell: &mut Stamp, new: Stamp, thread: u32) {
        if self.follows(cell, new.launch, thread) {
            *cell = new;
            return;
        }
        if cell.block != new.block || cell.reach == Reach::Grid {
            *cell = Stamp { reach: Reach::Grid, epoch: cell.epoch.max(new.epoch), ..*cell };
        } else if cell.warp != new.warp || cell.reach == Reach::Block {
            cell.reach = Reach::Block;
        } else {
            (cell.lanes, cell.clock) = (cell.lanes | new.lanes, cell.clock.max(new.clock));
        }
    }
}
