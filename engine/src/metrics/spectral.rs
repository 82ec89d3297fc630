use swara_fft::{Complex, RealToComplex, Transform};
use swara_kernels::ops::stft::mel_filters;

/// (mel bands, window) of each scale; hop = window / 4 (DAC, `MelSpectrogramLoss`).
pub const MEL_SCALES: [(usize, usize); 7] = [(5, 32), (10, 64), (20, 128), (40, 256), (80, 512), (160, 1024), (320, 2048)];

/// Windows of [`stft_distance`]; hop = window / 4 (DAC, `MultiScaleSTFTLoss`).
pub const STFT_WINDOWS: [usize; 2] = [2048, 512];

/// Smallest magnitude told from silence.
const FLOOR: f64 = 1e-5;

/// Mean absolute difference of log10 mel magnitudes, summed over the scales of [`MEL_SCALES`] (DAC; Kumar et al. 2023).
///
/// Periodic Hann window, centred frames, reflected ends, Slaney filters over `0..sample_rate / 2`. Signals shorter than a
/// scale's window leave that scale out; `None` if none is left. The signals are aligned and of equal length.
pub fn mel_distance(reference: &[f32], test: &[f32], sample_rate: u32) -> Option<f64> {
    let n = reference.len().min(test.len());
    let (x, y) = (&reference[..n], &test[..n]);
    MEL_SCALES
        .into_iter()
        .filter(|&(_, window)| window <= n)
        .map(|(bands, window)| {
            let mut a = MelFrames::new(bands, window, sample_rate);
            let mut b = MelFrames::new(bands, window, sample_rate);
            let frames = 1 + n / (window / 4);
            let sum: f64 =
                (0..frames).map(|frame| a.log_mel(x, frame).iter().zip(b.log_mel(y, frame)).map(|(p, q)| (p - q).abs()).sum::<f64>()).sum();
            sum / (frames * bands) as f64
        })
        .reduce(|a, b| a + b)
}

/// [`mel_distance`] by place: what the frames centred in each run of `hop` samples add to it.
pub fn mel_distance_by_run(reference: &[f32], test: &[f32], sample_rate: u32, hop: usize) -> Vec<f64> {
    let n = reference.len().min(test.len());
    let (x, y, hop) = (&reference[..n], &test[..n], hop.max(1));
    let mut runs = vec![0.0; n.div_ceil(hop)];
    for (bands, window) in MEL_SCALES.into_iter().filter(|&(_, window)| window <= n) {
        let mut a = MelFrames::new(bands, window, sample_rate);
        let mut b = MelFrames::new(bands, window, sample_rate);
        let frames = 1 + n / (window / 4);
        for frame in 0..frames {
            let sum: f64 = a.log_mel(x, frame).iter().zip(b.log_mel(y, frame)).map(|(p, q)| (p - q).abs()).sum();
            let run = (frame * (window / 4) / hop).min(runs.len() - 1);
            runs[run] += sum / (frames * bands) as f64;
        }
    }
    runs
}

/// Mean absolute difference of log10 powers and that of magnitudes, summed over [`STFT_WINDOWS`]: what DAC's `evaluate.py` calls
/// the STFT distance.
///
/// Windows, ends and short signals as with [`mel_distance`]. DAC measures at 44.1 kHz; magnitudes grow with the signals' level.
pub fn stft_distance(reference: &[f32], test: &[f32]) -> Option<f64> {
    let n = reference.len().min(test.len());
    let (x, y) = (&reference[..n], &test[..n]);
    STFT_WINDOWS
        .into_iter()
        .filter(|&window| window <= n)
        .map(|window| {
            let (mut a, mut b) = (Frames::new(window), Frames::new(window));
            let frames = 1 + n / (window / 4);
            let difference = |(&p, &q): (&f64, &f64)| 2.0 * (p.max(FLOOR).log10() - q.max(FLOOR).log10()).abs() + (p - q).abs();
            let sum: f64 =
                (0..frames).map(|frame| a.magnitude(x, frame).iter().zip(b.magnitude(y, frame)).map(difference).sum::<f64>()).sum();
            sum / (frames * (window / 2 + 1)) as f64
        })
        .reduce(|a, b| a + b)
}

/// Magnitudes of one frame at a time.
struct Frames {
    fft: std::sync::Arc<dyn RealToComplex<f64>>,
    hann: Vec<f64>,
    frame: Vec<f64>,
    spectrum: Vec<Complex<f64>>,
    magnitude: Vec<f64>,
}

impl Frames {
    fn new(window: usize) -> Frames {
        let fft = f64::forward_plan(window);
        Frames {
            hann: (0..window).map(|i| 0.5 - 0.5 * (std::f64::consts::TAU * i as f64 / window as f64).cos()).collect(),
            frame: fft.make_input_vec(),
            spectrum: fft.make_output_vec(),
            magnitude: vec![0.0; window / 2 + 1],
            fft,
        }
    }

    fn magnitude(&mut self, wave: &[f32], frame: usize) -> &[f64] {
        let window = self.hann.len();
        let first = (frame * (window / 4)) as isize - (window / 2) as isize;
        for (i, (slot, hann)) in self.frame.iter_mut().zip(&self.hann).enumerate() {
            *slot = hann * f64::from(wave[reflect(first + i as isize, wave.len())]);
        }
        self.fft.process(&mut self.frame, &mut self.spectrum).expect("lengths are the plan's own");
        for (m, c) in self.magnitude.iter_mut().zip(&self.spectrum) {
            *m = c.norm();
        }
        &self.magnitude
    }
}

/// Log mel magnitudes of one frame at a time.
pub(super) struct MelFrames {
    frames: Frames,
    /// Per band its first bin and its weights from there.
    filters: Vec<(usize, Vec<f64>)>,
    mel: Vec<f64>,
}

impl MelFrames {
    pub(super) fn new(bands: usize, window: usize, sample_rate: u32) -> Self {
        let weights = mel_filters(sample_rate, window, bands);
        let filter = |band: usize| {
            let column = || weights.iter().skip(band).step_by(bands);
            let first = column().position(|&w| w > 0.0).unwrap_or(0);
            let width = column().skip(first).take_while(|&&w| w > 0.0).count();
            (first, column().skip(first).take(width).map(|&w| f64::from(w)).collect())
        };
        MelFrames { frames: Frames::new(window), filters: (0..bands).map(filter).collect(), mel: vec![0.0; bands] }
    }

    pub(super) fn log_mel(&mut self, wave: &[f32], frame: usize) -> &[f64] {
        let magnitude = self.frames.magnitude(wave, frame);
        for (mel, (first, weights)) in self.mel.iter_mut().zip(&self.filters) {
            let sum: f64 = weights.iter().zip(&magnitude[*first..]).map(|(w, m)| w * m).sum();
            *mel = sum.max(FLOOR).log10();
        }
        &self.mel
    }
}

/// Mirror at the ends without repeating them; `at` is less than `len` beyond either end.
fn reflect(at: isize, len: usize) -> usize {
    let last = len as isize - 1;
    let at = at.abs();
    (if at > last { 2 * last - at } else { at }) as usize
}
