use serde::{Deserialize, Serialize};

use super::Discriminators;
use crate::{Error, Result};

/// Which discriminators there are, and how large. Those that are not given are not there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiscriminatorConfig {
    /// Waves lose their mean and are scaled to a peak of 0.8 first, as DAC does.
    pub normalise: bool,
    pub period: Option<PeriodConfig>,
    pub scale: Option<ScaleConfig>,
    pub band: Option<BandConfig>,
    pub stft: Option<StftConfig>,
}

/// Multi-period: the wave in rows of `period` samples, columns convolved (HiFi-GAN).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PeriodConfig {
    pub rules: PeriodRules,
    pub periods: Vec<usize>,
    /// Of each layer; all but the last have a stride of 3.
    pub channels: Vec<usize>,
    pub negative_slope: f64,
}

/// Whose padding and tensor names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeriodRules {
    /// A wave of whole rows is padded by one more.
    Dac,
    /// Waves are padded to whole rows.
    HifiGan,
}

/// Multi-scale: the wave, and averaged down by 2, 4, .., by grouped convolutions. All weight-normed (HiFi-GAN's first scale is
/// spectrally normed).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScaleConfig {
    pub scales: usize,
    /// `[channels, taps, stride, groups]` of each layer.
    pub layers: Vec<[usize; 4]>,
    pub negative_slope: f64,
}

/// Multi-band: complex spectra in bands, of frames that are as many as hops (DAC's MRD).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BandConfig {
    pub windows: Vec<usize>,
    /// From and to which share of the bins.
    pub bands: Vec<(f64, f64)>,
    pub channels: usize,
    pub negative_slope: f64,
}

/// Complex spectra of whole frames (EnCodec's MS-STFT).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StftConfig {
    pub windows: Vec<usize>,
    pub filters: usize,
    /// In time, of the layers that have a stride of 2 in frequency.
    pub dilations: Vec<usize>,
    pub negative_slope: f64,
}

impl Default for PeriodConfig {
    fn default() -> Self {
        PeriodConfig {
            rules: PeriodRules::Dac,
            periods: vec![2, 3, 5, 7, 11],
            channels: vec![32, 128, 512, 1024, 1024],
            negative_slope: 0.1,
        }
    }
}

impl Default for ScaleConfig {
    fn default() -> Self {
        let layers = vec![
            [128, 15, 1, 1],
            [128, 41, 2, 4],
            [256, 41, 2, 16],
            [512, 41, 4, 16],
            [1024, 41, 4, 16],
            [1024, 41, 1, 16],
            [1024, 5, 1, 1],
        ];
        ScaleConfig { scales: 3, layers, negative_slope: 0.1 }
    }
}

impl Default for BandConfig {
    fn default() -> Self {
        let bands = vec![(0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0)];
        BandConfig { windows: vec![2048, 1024, 512], bands, channels: 32, negative_slope: 0.1 }
    }
}

impl Default for StftConfig {
    fn default() -> Self {
        StftConfig { windows: vec![1024, 2048, 512, 256, 128], filters: 32, dilations: vec![1, 2, 4], negative_slope: 0.3 }
    }
}

/// Numbers of one discriminator's parameters in all, above which a configuration is a mistake.
const MOST_PARAMETERS: usize = 1 << 28;

fn fail<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::Config(format!("discriminator: {}", what.into())))
}

/// That there are one to 64 values, in `range`.
fn within(name: &str, values: &[usize], range: std::ops::RangeInclusive<usize>) -> Result<()> {
    if (1..=64).contains(&values.len()) && values.iter().all(|v| range.contains(v)) {
        return Ok(());
    }
    fail(format!("{name} must be 1 to 64 numbers in {}..={}", range.start(), range.end()))
}

fn slope(name: &str, value: f64) -> Result<()> {
    if value > 0.0 && value <= 1.0 { Ok(()) } else { fail(format!("{name}.negative_slope must lie above 0 and not above 1")) }
}

fn windows(name: &str, values: &[usize]) -> Result<()> {
    within(name, values, 16..=4096)?;
    if values.iter().all(|w| w.is_power_of_two()) { Ok(()) } else { fail(format!("{name} must be powers of two")) }
}

impl DiscriminatorConfig {
    /// Those that DAC was trained with.
    pub fn dac() -> Self {
        let (period, band) = (Some(PeriodConfig::default()), Some(BandConfig::default()));
        DiscriminatorConfig { normalise: true, period, band, ..DiscriminatorConfig::default() }
    }

    /// Those that audiocraft trains EnCodec with.
    pub fn encodec() -> Self {
        DiscriminatorConfig { stft: Some(StftConfig::default()), ..DiscriminatorConfig::default() }
    }

    /// How many discriminators these are.
    pub fn count(&self) -> usize {
        let (periods, scales) = (self.period.as_ref().map_or(0, |p| p.periods.len()), self.scale.as_ref().map_or(0, |s| s.scales));
        periods + scales + self.band.as_ref().map_or(0, |b| b.windows.len()) + self.stft.as_ref().map_or(0, |s| s.windows.len())
    }

    /// Samples of the shortest wave that all of them can look at.
    pub fn shortest(&self) -> usize {
        let periods = self.period.iter().flat_map(|p| p.periods.iter().map(|&period| 2 * period + 1));
        let bands = self.band.iter().flat_map(|b| b.windows.iter().copied());
        let spectra = self.stft.iter().flat_map(|s| s.windows.iter().copied());
        periods.chain(bands).chain(spectra).max().unwrap_or(1)
    }

    /// That every size is one that discriminators can have.
    ///
    /// # Errors
    /// The first that is not, in one line.
    pub fn check(&self) -> Result<()> {
        if self.period.is_none() && self.scale.is_none() && self.band.is_none() && self.stft.is_none() {
            return fail("at least one of period, scale, band and stft is wanted");
        }
        if let Some(p) = &self.period {
            within("period.periods", &p.periods, 1..=1024)?;
            within("period.channels", &p.channels, 1..=4096)?;
            slope("period", p.negative_slope)?;
        }
        if let Some(s) = &self.scale {
            if !(1..=8).contains(&s.scales) || !(1..=64).contains(&s.layers.len()) {
                return fail("scale.scales must lie in 1..=8, and scale.layers be 1 to 64");
            }
            let mut inputs = 1;
            for &[channels, taps, stride, groups] in &s.layers {
                if !(1..=4096).contains(&channels) || !(1..=255).contains(&taps) || taps % 2 == 0 || !(1..=16).contains(&stride) {
                    return fail("scale.layers must have 1..=4096 channels, an odd number of taps below 256, and a stride in 1..=16");
                }
                if groups == 0 || channels % groups != 0 || inputs % groups != 0 {
                    return fail("scale.layers must have groups that divide their channels and those before");
                }
                inputs = channels;
            }
            slope("scale", s.negative_slope)?;
        }
        if let Some(b) = &self.band {
            windows("band.windows", &b.windows)?;
            within("band.channels", &[b.channels], 1..=4096)?;
            slope("band", b.negative_slope)?;
            if !(1..=64).contains(&b.bands.len()) || b.bands.iter().any(|&(low, high)| !(0.0 <= low && low < high && high <= 1.0)) {
                return fail("band.bands must be 1 to 64 pairs, each of two rising shares of 1");
            }
            if b.windows.iter().any(|&window| b.bins(window).iter().any(|&[low, high]| low == high)) {
                return fail("band.bands must each have a bin of every window");
            }
        }
        if let Some(s) = &self.stft {
            windows("stft.windows", &s.windows)?;
            within("stft.filters", &[s.filters], 1..=4096)?;
            within("stft.dilations", &s.dilations, 1..=64)?;
            slope("stft", s.negative_slope)?;
        }
        let numbers = Discriminators::layout(self).parameters();
        if numbers > MOST_PARAMETERS {
            return fail(format!("{numbers} parameters are more than {MOST_PARAMETERS}"));
        }
        Ok(())
    }
}

impl BandConfig {
    /// First bin of each band and the one behind its last.
    pub(super) fn bins(&self, window: usize) -> Vec<[usize; 2]> {
        let bins = (window / 2 + 1) as f64;
        self.bands.iter().map(|&(low, high)| [(low * bins) as usize, (high * bins) as usize]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_sizes_are_right_and_survive_a_file() {
        for (config, parameters) in [(DiscriminatorConfig::dac(), 42_500_000), (DiscriminatorConfig::encodec(), 470_000)] {
            config.check().unwrap();
            let found = Discriminators::layout(&config).parameters();
            assert!(found.abs_diff(parameters) < parameters / 50, "{found} parameters");
            assert_eq!(toml::from_str::<DiscriminatorConfig>(&toml::to_string(&config).unwrap()).unwrap(), config);
        }
        let config: DiscriminatorConfig = toml::from_str("[stft]\nfilters = 4\n[scale]\n").unwrap();
        assert_eq!(config.stft, Some(StftConfig { filters: 4, ..StftConfig::default() }));
        assert_eq!((config.period.clone(), config.scale.clone()), (None, Some(ScaleConfig::default())));
        config.check().unwrap();
        assert!(toml::from_str::<DiscriminatorConfig>("[stft]\nfilter = 4\n").is_err());
    }

    #[test]
    fn what_no_discriminator_has_is_an_error_in_one_line() {
        let huge = usize::MAX;
        let period = |change: fn(&mut PeriodConfig)| {
            let mut period = PeriodConfig::default();
            change(&mut period);
            DiscriminatorConfig { period: Some(period), ..DiscriminatorConfig::default() }
        };
        let scale = |layers: Vec<[usize; 4]>, scales| DiscriminatorConfig {
            scale: Some(ScaleConfig { layers, scales, ..ScaleConfig::default() }),
            ..DiscriminatorConfig::default()
        };
        let band = |change: fn(&mut BandConfig)| {
            let mut band = BandConfig::default();
            change(&mut band);
            DiscriminatorConfig { band: Some(band), ..DiscriminatorConfig::default() }
        };
        let stft = |change: fn(&mut StftConfig)| {
            let mut stft = StftConfig::default();
            change(&mut stft);
            DiscriminatorConfig { stft: Some(stft), ..DiscriminatorConfig::default() }
        };
        let wrong = [
            DiscriminatorConfig::default(),
            period(|p| p.periods = vec![]),
            period(|p| p.periods = vec![0]),
            period(|p| p.periods = vec![usize::MAX]),
            period(|p| p.channels = vec![2; 65]),
            period(|p| p.channels = vec![4096; 64]),
            period(|p| p.negative_slope = 0.0),
            period(|p| p.negative_slope = f64::NAN),
            scale(vec![[huge, 3, 1, 1]], 1),
            scale(vec![[8, 4, 1, 1]], 1),
            scale(vec![[8, 3, 0, 1]], 1),
            scale(vec![[8, 3, 1, 0]], 1),
            scale(vec![[8, 3, 1, 2]], 1),
            scale(vec![[8, 3, 1, 1]], huge),
            scale(vec![], 1),
            band(|b| b.windows = vec![0]),
            band(|b| b.windows = vec![2000]),
            band(|b| b.bands = vec![(0.0, 2.0)]),
            band(|b| b.bands = vec![(f64::NAN, 0.5)]),
            band(|b| b.bands = vec![(0.5, 0.5)]),
            band(|b| b.bands = vec![(0.5, 0.5000001)]),
            band(|b| b.channels = 0),
            stft(|s| s.windows = vec![1 << 40]),
            stft(|s| s.filters = usize::MAX),
            stft(|s| s.dilations = vec![0]),
            stft(|s| s.dilations = vec![usize::MAX]),
        ];
        for config in wrong {
            let message = config.check().expect_err(&format!("{config:?}")).to_string();
            assert!(!message.contains('\n'), "{message}");
        }
    }
}
