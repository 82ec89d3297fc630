use swara_kernels::case::SplitMix;

/// What k-means sees of the rows it is given: all of them, or as many as there is room for, each as probable (Vitter 1985, algorithm R).
pub struct Drawn {
    width: usize,
    most: usize,
    seen: u64,
    rng: SplitMix,
    values: Vec<f32>,
}

impl Drawn {
    /// Numbers that are held: 256 MiB.
    const NUMBERS: usize = 1 << 26;

    /// Of rows of `width` numbers, `least` of them in any case.
    pub fn new(width: usize, least: usize, seed: u64) -> Drawn {
        Self::at_most((Self::NUMBERS / width.max(1)).max(least), width, seed)
    }

    fn at_most(most: usize, width: usize, seed: u64) -> Drawn {
        Drawn { width: width.max(1), most, seen: 0, rng: SplitMix(seed), values: Vec::new() }
    }

    pub fn extend(&mut self, rows: &[f32]) {
        for row in rows.chunks_exact(self.width) {
            self.seen += 1;
            if self.values.len() < self.most * self.width {
                self.values.extend_from_slice(row);
                continue;
            }
            let place = (self.rng.next() % self.seen) as usize;
            if place < self.most {
                self.values[place * self.width..][..self.width].copy_from_slice(row);
            }
        }
    }

    /// `[rows, width]`
    pub fn rows(self) -> Vec<f32> {
        self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_are_all_there_and_of_many_each_is_as_probable() {
        let rows: Vec<f32> = (0..100).flat_map(|i| [i as f32, -(i as f32)]).collect();
        let drawn = |most: usize, seed: u64| {
            let mut drawn = Drawn::at_most(most, 2, seed);
            rows.chunks(14).for_each(|some| drawn.extend(some));
            drawn.rows()
        };
        assert_eq!(drawn(100, 1), rows);
        assert_eq!(drawn(7, 1), drawn(7, 1));
        let mut counts = [0; 100];
        for seed in 0..2000 {
            let some = drawn(10, seed);
            assert!(some.len() == 20 && some.chunks(2).all(|row| row[0] == -row[1]));
            some.chunks(2).for_each(|row| counts[row[0] as usize] += 1);
        }
        // 200 each, and a deviation of 13.
        assert!(counts.iter().all(|count| (130..270).contains(count)), "{counts:?}");
    }
}
