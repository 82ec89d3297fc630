//! What is known of each byte: whether it was ever written, and who touched it last in this launch.

use super::Place;

/// One access, as far as others need it to know whether they are ordered after it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Stamp {
    /// Number of the launch; 0: nobody.
    pub launch: u32,
    pub block: u32,
    /// How many barriers its block had passed.
    pub epoch: u32,
    pub warp: u32,
    /// Which lanes of the warp.
    pub lanes: u32,
    /// The lanes' own clocks, at most.
    pub clock: u32,
    pub place: Place,
    pub reach: Reach,
    /// By atomic operations only.
    pub atomic: bool,
}

/// How far the threads of a stamp are apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    #[default]
    Warp,
    /// More than one warp of the block.
    Block,
    /// More than one block.
    Grid,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cell {
    pub write: Stamp,
    pub read: Stamp,
    /// An asynchronous copy is on its way here.
    pub pending: Option<Place>,
}

/// A stretch of memory, in grains of 4 bytes until something smaller is touched.
pub(super) struct Shadow {
    pub start: u64,
    /// Bytes in use; what lies above is out of bounds.
    pub bytes: usize,
    grain: usize,
    cells: Vec<Cell>,
    written: Vec<bool>,
}

impl Shadow {
    pub fn new(start: u64, capacity: usize) -> Shadow {
        Shadow { start, bytes: capacity, grain: 4, cells: Vec::new(), written: vec![false; capacity] }
    }

    pub fn capacity(&self) -> usize {
        self.written.len()
    }

    /// Whether `bytes` from `at` have been written.
    pub fn set_written(&mut self, at: usize, bytes: usize, written: bool) {
        let end = at.saturating_add(bytes).min(self.written.len());
        if let Some(part) = self.written.get_mut(at..end) {
            part.fill(written);
        }
    }

    pub fn first_unwritten(&self, at: usize, bytes: usize) -> Option<usize> {
        self.written[at..at + bytes].iter().position(|w| !w).map(|i| at + i)
    }

    pub fn written(&self, at: usize, bytes: usize) -> &[bool] {
        &self.written[at..at + bytes]
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.written.fill(false);
        self.cells.fill(Cell::default());
    }

    /// The cells of `bytes` from `at`, which lie inside.
    pub fn cells(&mut self, at: usize, bytes: usize) -> &mut [Cell] {
        if self.cells.is_empty() {
            self.cells = vec![Cell::default(); self.written.len().div_ceil(self.grain)];
        }
        while !(at | bytes).is_multiple_of(self.grain) {
            // Each half knows what the whole knew.
            self.grain /= 2;
            self.cells = self.cells.iter().flat_map(|&cell| [cell, cell]).collect();
        }
        &mut self.cells[at / self.grain..(at + bytes) / self.grain]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grain_is_split_and_its_halves_remember() {
        let mut shadow = Shadow::new(0, 64);
        shadow.cells(4, 8).iter_mut().for_each(|cell| cell.write.launch = 7);
        shadow.cells(6, 1)[0].write.launch = 9;
        let launches: Vec<u32> = shadow.cells(3, 10).iter().map(|cell| cell.write.launch).collect();
        assert_eq!(launches, [0, 7, 7, 9, 7, 7, 7, 7, 7, 0]);
    }

    #[test]
    fn what_was_written_is_known_to_the_byte() {
        let mut shadow = Shadow::new(0, 16);
        shadow.set_written(3, 5, true);
        assert_eq!(shadow.first_unwritten(3, 5), None);
        assert_eq!(shadow.first_unwritten(3, 6), Some(8));
        assert_eq!(shadow.first_unwritten(0, 4), Some(0));
        shadow.set_written(12, 100, true);
        assert_eq!(shadow.first_unwritten(12, 4), None);
    }
}
