//! What a warp's accesses cost: sectors of global memory, wavefronts of shared memory.

use std::collections::HashMap;

use super::Place;

/// Global memory moves in sectors of this many bytes.
pub const SECTOR: u64 = 32;
const BANKS: u64 = 32;
const BANK_BYTES: u64 = 4;

/// Accesses of one kind to global memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Global {
    /// Instructions of a warp.
    pub requests: u64,
    /// Different bytes that each request asked for.
    pub bytes: u64,
    /// Sectors that each request touched: what goes through the L1 cache.
    pub sectors: u64,
    /// Each sector once a launch: what must come from, or go to, memory.
    pub distinct: u64,
}

impl Global {
    /// Share of the moved bytes that were asked for; 1 if nothing was moved.
    pub fn coalescing(&self) -> f64 {
        share(self.bytes, self.sectors * SECTOR)
    }

    fn add(&mut self, other: Global) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.sectors += other.sectors;
        self.distinct += other.distinct;
    }
}

/// Accesses to shared memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shared {
    /// Instructions of a warp.
    pub requests: u64,
    /// Passes through the banks.
    pub wavefronts: u64,
    /// As many as the same bytes would take without a bank conflict.
    pub ideal: u64,
}

/// What launches of one kernel did to memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub launches: u64,
    pub read: Global,
    pub write: Global,
    pub shared: Shared,
}

impl Traffic {
    /// Distinct bytes read and written, in whole sectors.
    pub fn bytes(&self) -> u64 {
        (self.read.distinct + self.write.distinct) * SECTOR
    }

    /// Sectors that requests touched for each that had to be moved; 1 if nothing was moved.
    pub fn reuse(&self) -> f64 {
        let distinct = self.read.distinct + self.write.distinct;
        if distinct == 0 { 1.0 } else { (self.read.sectors + self.write.sectors) as f64 / distinct as f64 }
    }

    /// Share of the moved bytes that requests asked for.
    pub fn coalescing(&self) -> f64 {
        share(self.read.bytes + self.write.bytes, (self.read.sectors + self.write.sectors) * SECTOR)
    }

    /// Wavefronts that bank conflicts add, relative to those needed.
    pub fn bank_conflicts(&self) -> f64 {
        if self.shared.ideal == 0 { 0.0 } else { self.shared.wavefronts as f64 / self.shared.ideal as f64 - 1.0 }
    }

    pub fn add(&mut self, other: &Traffic) {
        self.launches += other.launches;
        self.read.add(other.read);
        self.write.add(other.write);
        self.shared.requests += other.shared.requests;
        self.shared.wavefronts += other.shared.wavefronts;
        self.shared.ideal += other.shared.ideal;
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Space {
    Read,
    Write,
    Shared,
}

/// One lane's part of an instruction; no bytes if it took no part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    pub place: Place,
    pub space: Space,
    pub lane: u8,
    pub address: u64,
    pub bytes: u32,
}

/// Accesses of a warp since they were last counted. Lanes run one after the other: the nth time that a lane came by a place
/// belongs together with the nth time of the others.
#[derive(Default)]
pub(super) struct Pending(Vec<Event>);

/// A warp that never waits is counted in parts of this many accesses.
const MOST_PENDING: usize = 1 << 20;

impl Pending {
    /// True if it is time to count.
    pub fn push(&mut self, event: Event) -> bool {
        self.0.push(event);
        self.0.len() >= MOST_PENDING
    }

    pub fn count(&mut self, traffic: &mut Traffic) {
        if self.0.is_empty() {
            return;
        }
        let mut visits: HashMap<(Place, Space, u8), u32> = HashMap::new();
        let mut groups: HashMap<(Place, Space, u32), Vec<Event>> = HashMap::new();
        for event in self.0.drain(..) {
            let visit = visits.entry((event.place, event.space, event.lane)).or_default();
            if event.bytes > 0 {
                groups.entry((event.place, event.space, *visit)).or_default().push(event);
            }
            *visit += 1;
        }
        for ((_, space, _), group) in groups {
            match space {
                Space::Read => global(&group, &mut traffic.read),
                Space::Write => global(&group, &mut traffic.write),
                Space::Shared => shared(&group, &mut traffic.shared),
            }
        }
    }
}

fn global(group: &[Event], counts: &mut Global) {
    counts.requests += 1;
    counts.sectors += distinct(group.iter().flat_map(|e| e.address / SECTOR..=(e.address + u64::from(e.bytes) - 1) / SECTOR));
    let mut ranges: Vec<(u64, u64)> = group.iter().map(|e| (e.address, e.address + u64::from(e.bytes))).collect();
    ranges.sort_unstable();
    let mut covered = 0;
    for (start, end) in ranges {
        counts.bytes += end.saturating_sub(start.max(covered));
        covered = covered.max(end);
    }
}

/// Wide accesses go in parts of a half or a quarter of the warp; each part takes as many wavefronts as its fullest bank has
/// different words.
fn shared(group: &[Event], counts: &mut Shared) {
    counts.requests += 1;
    let widest = group.iter().map(|e| e.bytes).max().unwrap_or(0);
    let lanes_at_once = match widest {
        0..=4 => 32,
        5..=8 => 16,
        _ => 8,
    };
    for part in 0..32 / lanes_at_once {
        let lanes = group.iter().filter(|e| u32::from(e.lane) / lanes_at_once == part);
        let mut words: Vec<u64> = lanes.flat_map(|e| e.address / BANK_BYTES..=(e.address + u64::from(e.bytes) - 1) / BANK_BYTES).collect();
        words.sort_unstable();
        words.dedup();
        let mut banks = [0u64; BANKS as usize];
        words.iter().for_each(|word| banks[(word % BANKS) as usize] += 1);
        counts.wavefronts += banks.into_iter().max().unwrap_or(0);
        counts.ideal += (words.len() as u64).div_ceil(BANKS);
    }
}

fn distinct(items: impl Iterator<Item = u64>) -> u64 {
    let mut items: Vec<u64> = items.collect();
    items.sort_unstable();
    items.dedup();
    items.len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(space: Space, bytes: u32, address: impl Fn(u64) -> u64) -> Traffic {
        let mut pending = Pending::default();
        for lane in 0..32 {
            pending.push(Event { place: Place(1), space, lane, address: 0x1000 + address(u64::from(lane)), bytes });
        }
        let mut traffic = Traffic::default();
        pending.count(&mut traffic);
        traffic
    }

    #[test]
    fn neighbours_share_sectors_and_strides_do_not() {
        let t = counted(Space::Read, 4, |lane| 4 * lane);
        assert_eq!((t.read.requests, t.read.sectors, t.read.bytes), (1, 4, 128));
        assert_eq!(t.coalescing(), 1.0);
        let t = counted(Space::Write, 16, |lane| 16 * lane);
        assert_eq!((t.write.sectors, t.coalescing()), (16, 1.0));
        let t = counted(Space::Read, 4, |lane| 32 * lane);
        assert_eq!((t.read.sectors, t.coalescing()), (32, 0.125));
        // One more than a whole number of sectors; all lanes at one address.
        assert_eq!(counted(Space::Read, 4, |lane| 4 * lane + 4).read.sectors, 5);
        let t = counted(Space::Read, 4, |_| 0);
        assert_eq!((t.read.sectors, t.read.bytes), (1, 4));
    }

    #[test]
    fn visits_of_a_place_are_separate_requests() {
        let mut pending = Pending::default();
        for lane in 0..32 {
            for visit in 0..3 {
                let address = 4096 * visit + 4 * u64::from(lane);
                pending.push(Event { place: Place(1), space: Space::Read, lane, address, bytes: 4 });
            }
        }
        let mut traffic = Traffic::default();
        pending.count(&mut traffic);
        assert_eq!((traffic.read.requests, traffic.read.sectors), (3, 12));
    }

    #[test]
    fn bank_conflicts_are_those_of_the_hardware() {
        let shared = |bytes, address: fn(u64) -> u64| counted(Space::Shared, bytes, address).shared;
        let passes = |bytes, address| (shared(bytes, address).wavefronts, shared(bytes, address).ideal);
        assert_eq!(passes(4, |lane| 4 * lane), (1, 1));
        assert_eq!(passes(4, |_| 0), (1, 1)); // broadcast
        assert_eq!(passes(2, |lane| 2 * lane), (1, 1));
        assert_eq!(passes(4, |lane| 128 * lane), (32, 1)); // a column of a tile without padding
        assert_eq!(passes(4, |lane| 132 * lane), (1, 1)); // and with
        assert_eq!(passes(4, |lane| 8 * lane), (2, 1));
        assert_eq!(passes(8, |lane| 8 * lane), (2, 2));
        assert_eq!(passes(16, |lane| 16 * lane), (4, 4));
        assert_eq!(passes(16, |lane| 128 * lane), (32, 4)); // rows of a matrix without swizzle
    }
}
