//! What codes say of phones: a linear probe, and discrimination in triples (ABX).

use swara_kernels::case::SplitMix;

/// A linear classifier of labels by one code: multinomial logistic regression on one-hot codes, whose maximum of the likelihood is the
/// share of every label among the frames of a code.
#[derive(Clone, Debug)]
pub struct Probe {
    classes: usize,
    /// `[codes, classes]`
    counts: Vec<u64>,
}

impl Probe {
    pub fn new(codes: usize, classes: usize) -> Probe {
        Probe { classes, counts: vec![0; codes.saturating_mul(classes)] }
    }

    /// Frames with their labels; negative ones, and codes and labels beyond the sizes, do not count.
    pub fn learn(&mut self, codes: &[i32], labels: &[i32]) {
        for (row, label) in self.pairs(codes, labels).collect::<Vec<_>>() {
            self.counts[row * self.classes + label] += 1;
        }
    }

    fn pairs(&self, codes: &[i32], labels: &[i32]) -> impl Iterator<Item = (usize, usize)> {
        let (rows, classes) = (self.counts.len() / self.classes.max(1), self.classes);
        let pairs =
            codes.iter().zip(labels).filter_map(|(&code, &label)| Some((usize::try_from(code).ok()?, usize::try_from(label).ok()?)));
        pairs.filter(move |&(code, label)| code < rows && label < classes)
    }

    /// Frames, those whose label is the code's most frequent one, and those whose label is the most frequent of all: chance.
    pub fn test(&self, codes: &[i32], labels: &[i32]) -> [u64; 3] {
        let best = |counts: &[u64]| counts.iter().enumerate().max_by_key(|(i, n)| (**n, std::cmp::Reverse(*i))).map_or(0, |(i, _)| i);
        let totals: Vec<u64> = (0..self.classes).map(|c| self.counts.iter().skip(c).step_by(self.classes).sum()).collect();
        let common = best(&totals);
        let mut found = [0; 3];
        for (code, label) in self.pairs(codes, labels) {
            let row = &self.counts[code * self.classes..][..self.classes];
            // A code that was never heard says what is most frequent.
            let said = if row.iter().all(|&n| n == 0) { common } else { best(row) };
            found[0] += 1;
            found[1] += u64::from(said == label);
            found[2] += u64::from(common == label);
        }
        found
    }

    /// Mutual information of codes and labels as a share of the labels' entropy (phone-normalised mutual information, HuBERT).
    pub fn information(&self) -> f64 {
        let total = self.counts.iter().sum::<u64>() as f64;
        let entropy =
            |counts: &mut dyn Iterator<Item = u64>| counts.filter(|&n| n > 0).map(|n| n as f64 / total).map(|p| -p * p.ln()).sum::<f64>();
        let joint = entropy(&mut self.counts.iter().copied());
        let codes = entropy(&mut self.counts.chunks(self.classes.max(1)).map(|row| row.iter().sum()));
        let labels = entropy(&mut (0..self.classes).map(|c| self.counts.iter().skip(c).step_by(self.classes).sum()));
        if labels > 0.0 { (codes + labels - joint) / labels } else { 0.0 }
    }
}

/// A phone as its codes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub label: i32,
    pub codes: Vec<i32>,
}

/// Runs of one label; negative ones are left out.
pub fn segments(codes: &[i32], labels: &[i32]) -> Vec<Segment> {
    let mut found: Vec<Segment> = Vec::new();
    let mut before = -1;
    for (&code, &label) in codes.iter().zip(labels) {
        match found.last_mut() {
            Some(segment) if label >= 0 && label == before => segment.codes.push(code),
            _ if label >= 0 => found.push(Segment { label, codes: vec![code] }),
            _ => {}
        }
        before = label;
    }
    found
}

/// Codewords `[codes, width]`.
#[derive(Clone, Copy, Debug)]
pub struct Codewords<'a> {
    pub values: &'a [f32],
    pub width: usize,
}

impl Codewords<'_> {
    /// 1 - cosine; what has no direction is as far as it can be from anything but itself.
    fn distance(&self, a: i32, b: i32) -> f64 {
        if a == b {
            return 0.0;
        }
        let row =
            |code: i32| usize::try_from(code).ok().and_then(|code| self.values.chunks(self.width.max(1)).nth(code)).unwrap_or_default();
        let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        let (a, b) = (row(a), row(b));
        let norm = (product(a, a) * product(b, b)).sqrt();
        1.0 - if norm > 0.0 { product(a, b) / norm } else { 0.0 }
    }

    /// Dynamic time warping: the mean distance along the path of the least sum.
    pub fn warped(&self, a: &[i32], b: &[i32]) -> f64 {
        if a.is_empty() || b.is_empty() {
            return f64::INFINITY;
        }
        // Sum and length of the best path to each place of a row.
        let mut row: Vec<(f64, f64)> = Vec::new();
        for (i, &x) in a.iter().enumerate() {
            let mut next: Vec<(f64, f64)> = Vec::with_capacity(b.len());
            for (j, &y) in b.iter().enumerate() {
                let before = [(i > 0 && j > 0).then(|| row[j - 1]), (i > 0).then(|| row[j]), (j > 0).then(|| next[j - 1])];
                let (sum, length) = before.into_iter().flatten().min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or_default();
                next.push((sum + self.distance(x, y), length + 1.0));
            }
            row = next;
        }
        row.last().map_or(f64::INFINITY, |(sum, length)| sum / length)
    }
}

/// ABX error over triples of one speaker's segments: A and X of one phone, B of another; an error is an X that is nearer to B, half of one
/// if it is as near. Drawn evenly from the pairs of phones with two segments of the first; `None` where there is no such pair.
pub fn abx(segments: &[Segment], codewords: Codewords, triples: usize, seed: u64) -> Option<f64> {
    let mut by_label = std::collections::BTreeMap::<i32, Vec<&Segment>>::new();
    segments.iter().for_each(|s| by_label.entry(s.label).or_default().push(s));
    let phones: Vec<Vec<&Segment>> = by_label.into_values().collect();
    let twice: Vec<usize> = (0..phones.len()).filter(|&p| phones[p].len() > 1).collect();
    if twice.is_empty() || phones.len() < 2 || triples == 0 {
        return None;
    }
    let mut rng = SplitMix(seed);
    let mut below = |n: usize| (rng.next() % n.max(1) as u64) as usize;
    let mut errors = 0.0;
    for _ in 0..triples {
        let first = twice[below(twice.len())];
        let second = (first + 1 + below(phones.len() - 1)) % phones.len();
        let a = below(phones[first].len());
        let x = (a + 1 + below(phones[first].len() - 1)) % phones[first].len();
        let b = phones[second][below(phones[second].len())];
        let [to_a, to_b] = [phones[first][a], b].map(|other| codewords.warped(&phones[first][x].codes, &other.codes));
        errors += if to_a > to_b {
            1.0
        } else if to_a == to_b {
            0.5
        } else {
            0.0
        };
    }
    Some(errors / triples as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four codewords in the plane, each a quarter of a turn on.
    const WORDS: Codewords = Codewords { values: &[1.0, 0.0, 0.0, 2.0, -3.0, 0.0, 0.0, -1.0], width: 2 };

    #[test]
    fn a_probe_knows_what_it_has_counted() {
        let mut probe = Probe::new(3, 2);
        probe.learn(&[0, 0, 0, 1, 1, 7], &[0, 0, 1, 1, -1, 0]);
        // Code 0 says 0, code 1 says 1, code 2 was never heard and says what is most frequent: as frequent, the first.
        assert_eq!(probe.test(&[0, 0, 1, 1, 2, 2], &[0, 1, 1, -1, 0, 1]), [5, 3, 2]);
        let mut sure = Probe::new(2, 2);
        sure.learn(&[0, 1], &[1, 0]);
        assert!((sure.information() - 1.0).abs() < 1e-12);
        let mut none = Probe::new(2, 2);
        none.learn(&[0, 0, 1, 1], &[1, 0, 1, 0]);
        assert!(none.information().abs() < 1e-12 && Probe::new(0, 0).information() == 0.0);
    }

    #[test]
    fn runs_of_a_label_are_segments() {
        let found = segments(&[1, 2, 3, 4, 5], &[0, 0, -1, 0, 2]);
        let expected = [(0, vec![1, 2]), (0, vec![4]), (2, vec![5])].map(|(label, codes)| Segment { label, codes });
        assert_eq!(found, expected);
    }

    #[test]
    fn warping_takes_the_path_of_the_least_sum() {
        assert_eq!(WORDS.warped(&[0, 1, 1, 2], &[0, 0, 1, 2]), 0.0);
        assert!((WORDS.warped(&[0, 1], &[0, 2]) - 0.5).abs() < 1e-12);
        assert!((WORDS.warped(&[0], &[2, 2, 2]) - 2.0).abs() < 1e-12);
        assert_eq!(WORDS.warped(&[], &[0]), f64::INFINITY);
        assert_eq!(WORDS.warped(&[9], &[0]), 1.0);
    }

    #[test]
    fn abx_is_zero_for_codes_of_phones_and_a_half_for_codes_of_nothing() {
        let of = |code: fn(i32, i32) -> i32| -> Vec<Segment> {
            (0..40).map(|n| Segment { label: n % 4, codes: vec![code(n % 4, n); 1 + n as usize % 3] }).collect()
        };
        let error = |segments: &[Segment]| abx(segments, WORDS, 2000, 1).unwrap();
        assert_eq!(error(&of(|label, _| label)), 0.0);
        assert_eq!(error(&of(|_, _| 1)), 0.5);
        let some = error(&of(|label, n| if n % 3 == 0 { 0 } else { label }));
        assert!((0.05..0.45).contains(&some), "{some}");
        assert!(abx(&[], WORDS, 10, 1).is_none() && abx(&of(|_, _| 0)[..1], WORDS, 10, 1).is_none());
    }
}
