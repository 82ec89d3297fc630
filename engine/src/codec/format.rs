/// Pieces of a signal that overlap and are coded by themselves, each divided by its loudness, which is stored beside its codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunks {
    /// Of a piece, whole frames; and from one's start to the next's.
    pub samples: usize,
    pub stride: usize,
}

impl Chunks {
    /// What a piece weighs, sample by sample, where it overlaps others: rises to its middle and falls again.
    pub fn weights(&self) -> impl Iterator<Item = f32> {
        let steps = (self.samples + 1) as f64;
        (1..=self.samples).map(move |i| (0.5 - (i as f64 / steps - 0.5).abs()) as f32)
    }
}

/// What goes into a codec and comes out of it, whatever its family.
#[derive(Clone, Debug, PartialEq)]
pub struct Format {
    pub sample_rate: u32,
    pub channels: usize,
    /// Samples a frame, of each channel.
    pub hop: usize,
    /// A signal is filled up with zeros to a multiple of so many samples.
    pub pad_to: usize,
    /// None if a signal is coded in one piece.
    pub chunks: Option<Chunks>,
    /// Channels between encoder and quantiser, and quantiser and decoder.
    pub latent: usize,
    /// Codewords of each stage.
    pub codebook_sizes: Vec<usize>,
    /// Codes of each stage a frame: 1, or of a codec of several rates more from stage to stage, each a multiple of the one before.
    /// The latents between quantiser and decoder are as many as the codes of the last.
    pub codes_per_frame: Vec<usize>,
    /// Whether no output sees a later input, so that it streams.
    pub causal: bool,
}

impl Format {
    /// Of the slowest stage.
    pub fn frame_rate(&self) -> f64 {
        self.sample_rate as f64 / self.hop as f64
    }

    /// Bits a second with the first `codebooks` stages.
    pub fn bitrate(&self, codebooks: usize) -> f64 {
        let bits = |(&size, &codes): (&usize, &usize)| codes as f64 * (size as f64).log2().ceil();
        self.codebook_sizes.iter().zip(&self.codes_per_frame).take(codebooks).map(bits).sum::<f64>() * self.frame_rate()
    }

    /// Where the pieces of a signal of `samples` lie.
    pub fn pieces(&self, samples: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
        let (length, stride) = self.chunks.map_or((samples, samples.max(1)), |c| (c.samples, c.stride));
        (0..samples).step_by(stride).map(move |start| start..start.saturating_add(length).min(samples))
    }

    /// Frames of each of so many pieces, which have so many together; None if no signal has such.
    pub fn frames_of_pieces(&self, frames: usize, pieces: usize) -> Option<Vec<usize>> {
        let Some(chunks) = self.chunks else { return (pieces == 1).then(|| vec![frames]) };
        let (before, full) = (pieces.checked_sub(1)?, chunks.samples / self.hop);
        // Only the last two can be shorter than the others; both grow with the signal.
        let more = frames.checked_sub(before.saturating_sub(1).checked_mul(full)?)?;
        let last = |rest: usize| {
            let previous = (chunks.stride + rest).min(chunks.samples).div_ceil(self.hop);
            [if before == 0 { 0 } else { previous }, rest.div_ceil(self.hop)]
        };
        let [previous, last] = (1..=chunks.stride).map(last).find(|pair| pair.iter().sum::<usize>() == more)?;
        let mut all = vec![full; before.saturating_sub(1)];
        all.extend((before > 0).then_some(previous));
        all.push(last);
        Some(all)
    }

    /// Latents a frame.
    pub fn latents(&self) -> usize {
        self.codes_per_frame.last().copied().unwrap_or(1)
    }

    /// Codes a frame of the first `codebooks` stages.
    pub fn columns(&self, codebooks: usize) -> usize {
        self.codes_per_frame.iter().take(codebooks).sum()
    }

    /// Whether stages differ in rate.
    pub fn multi_rate(&self) -> bool {
        self.codes_per_frame.iter().any(|&codes| codes != 1)
    }

    /// Stage of each of a frame's codes.
    pub fn stages(&self) -> impl Iterator<Item = usize> {
        self.codes_per_frame.iter().enumerate().flat_map(|(stage, &codes)| std::iter::repeat_n(stage, codes))
    }

    /// Codes one stage after the other, of codes `[frames, columns]` of the first `codebooks` stages.
    pub fn by_codebook(&self, rows: &[i32], codebooks: usize) -> Vec<i32> {
        let (columns, mut start) = (self.columns(codebooks).max(1), 0);
        let mut values = Vec::with_capacity(rows.len());
        for &codes in self.codes_per_frame.iter().take(codebooks) {
            values.extend(rows.chunks_exact(columns).flat_map(|row| &row[start..start + codes]));
            start += codes;
        }
        values
    }

    /// The reverse of [`Format::by_codebook`].
    pub fn by_frame(&self, values: &[i32], codebooks: usize) -> Vec<i32> {
        let frames = values.len() / self.columns(codebooks).max(1);
        let mut starts = Vec::with_capacity(codebooks);
        self.codes_per_frame.iter().take(codebooks).fold(0, |start, &codes| {
            starts.push((start, codes));
            start + codes * frames
        });
        (0..frames).flat_map(|t| starts.iter().flat_map(move |&(start, codes)| &values[start + t * codes..][..codes]).copied()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels() -> Format {
        let (codebook_sizes, codes_per_frame) = (vec![16; 3], vec![1, 2, 4]);
        Format {
            sample_rate: 24000,
            channels: 1,
            hop: 2048,
            pad_to: 2048,
            chunks: None,
            latent: 8,
            codebook_sizes,
            codes_per_frame,
            causal: false,
        }
    }

    #[test]
    fn codes_turn_round_and_back() {
        let format = levels();
        let rows: Vec<i32> = (0..14).collect();
        let turned = format.by_codebook(&rows, 3);
        assert_eq!(turned, [0, 7, 1, 2, 8, 9, 3, 4, 5, 6, 10, 11, 12, 13]);
        assert_eq!(format.by_frame(&turned, 3), rows);
        let two = [0, 1, 2, 7, 8, 9];
        assert_eq!(format.by_codebook(&two, 2), [0, 7, 1, 2, 8, 9]);
        assert_eq!(format.by_frame(&[0, 7, 1, 2, 8, 9], 2), two);
        assert_eq!(format.stages().collect::<Vec<_>>(), [0, 1, 1, 2, 2, 2, 2]);
    }

    #[test]
    fn pieces_are_known_by_their_number_and_their_frames() {
        let format = Format { hop: 40, pad_to: 1, chunks: Some(Chunks { samples: 240, stride: 228 }), ..levels() };
        for samples in 1..2000 {
            let frames: Vec<usize> = format.pieces(samples).map(|piece| piece.len().div_ceil(40)).collect();
            let found = format.frames_of_pieces(frames.iter().sum(), frames.len());
            assert_eq!(found, Some(frames), "{samples} samples");
        }
        for (frames, pieces) in [(0, 0), (0, 1), (7, 1), (1, 2), (12, 1), (usize::MAX, 2), (5, usize::MAX)] {
            assert_eq!(format.frames_of_pieces(frames, pieces), None, "{frames} {pieces}");
        }
        assert_eq!(levels().frames_of_pieces(7, 1), Some(vec![7]));
    }

    #[test]
    fn every_code_counts_in_the_bitrate() {
        let format = levels();
        assert_eq!(format.bitrate(3), 7.0 * 4.0 * 24000.0 / 2048.0);
        assert_eq!((format.columns(2), format.latents(), format.multi_rate()), (3, 4, true));
    }
}
