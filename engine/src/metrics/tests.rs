use super::*;

/// Harmonics of a gliding pitch with syllables: something with envelopes to correlate.
fn voice(samples: usize, rate: u32) -> Vec<f32> {
    let mut phase = 0.0f64;
    (0..samples)
        .map(|i| {
            let t = i as f64 / f64::from(rate);
            phase += std::f64::consts::TAU * (140.0 + 30.0 * (3.0 * t).sin()) / f64::from(rate);
            let syllable = (std::f64::consts::TAU * 4.0 * t).sin().max(0.0);
            let sum: f64 = (1..20).map(|h| (f64::from(h) * phase).sin() / f64::from(h)).sum();
            (0.2 * syllable * sum) as f32
        })
        .collect()
}

fn noise(samples: usize, seed: u64) -> Vec<f32> {
    let mut rng = swara_kernels::case::SplitMix(seed);
    (0..samples).map(|_| (rng.uniform() * 2.0 - 1.0) as f32).collect()
}

fn close(found: f64, expected: f64, tolerance: f64) {
    assert!((found - expected).abs() <= tolerance, "found {found}, expected {expected} ± {tolerance}");
}

#[test]
fn a_delay_is_found_and_removed_whatever_its_sign() {
    let x = noise(20_000, 1);
    for late in [0usize, 1, 7, 319, 320] {
        let mut y = vec![0.0; late];
        y.extend_from_slice(&x);
        assert_eq!(lag(&x, &y, 320), late as isize);
        assert_eq!(lag(&y, &x, 320), -(late as isize));
        let (a, b) = align(&x, &y, late as isize);
        assert_eq!(a, b);
    }
}

#[test]
fn blocks_of_the_correlation_add_up() {
    // Longer than one block, and shorter than the lag.
    let x = noise(50_001, 2);
    assert_eq!(lag(&x, &x[1234..], 2000), -1234);
    assert_eq!(lag(&x[..5], &x[..5], 320), 0);
    assert_eq!(lag(&[0.0; 100], &[0.0; 100], 10), 0);
    assert_eq!(lag(&[], &x, 10), 0);
}

#[test]
fn a_copy_at_half_the_level_has_known_numbers() {
    let x = noise(10_000, 3);
    let y: Vec<f32> = x.iter().map(|v| v * 0.5).collect();
    let w = waveform(&x, &y);
    close(w.amplitude, 50.0, 1e-4);
    close(w.snr_db, 20.0 * 2f64.log10(), 1e-4);
    close(w.rho, 1.0, 1e-12);
    close(w.gain, 2.0, 1e-6);
    assert!(w.si_sdr_db > 120.0, "{}", w.si_sdr_db);
}

/// What a logged SNR (dB) and amplitude (percent) imply.
fn rho_from_log(snr_db: f64, amplitude: f64) -> f64 {
    let a = amplitude / 100.0;
    (1.0 + a * a - 10f64.powf(-snr_db / 10.0)) / (2.0 * a)
}

#[test]
fn snr_rho_and_amplitude_agree_through_the_identity() {
    let x = noise(30_000, 4);
    let y: Vec<f32> = x.iter().zip(noise(30_000, 5)).map(|(x, n)| 0.4 * x + 0.3 * n).collect();
    let w = waveform(&x, &y);
    close(rho_from_log(w.snr_db, w.amplitude), w.rho, 1e-9);
    // Independent noise of known energy: SI-SDR is the ratio of the two parts.
    close(w.si_sdr_db, 20.0 * (0.4f64 / 0.3).log10(), 0.15);
}

#[test]
fn an_offset_does_not_change_si_sdr() {
    let x = voice(16_000, 16_000);
    let y: Vec<f32> = x.iter().zip(noise(16_000, 6)).map(|(x, n)| x + 0.05 * n).collect();
    let shifted: Vec<f32> = y.iter().map(|v| v + 0.25).collect();
    close(waveform(&x, &shifted).si_sdr_db, waveform(&x, &y).si_sdr_db, 1e-3);
}

#[test]
fn silence_gives_numbers_and_no_panic() {
    let (x, zero) = (voice(16_000, 16_000), vec![0.0; 16_000]);
    let c = Comparison::new(&x, &zero, 16_000, 320);
    assert_eq!((c.waveform.rho, c.waveform.gain, c.waveform.amplitude), (0.0, 0.0, 0.0));
    assert_eq!(c.verdict(), Verdict::Starved);
    assert!(Comparison::new(&zero, &x, 16_000, 320).waveform.amplitude.is_infinite());
    assert_eq!(Comparison::new(&[], &[], 16_000, 320).samples, 0);
    assert_eq!(Comparison::new(&[0.5], &[0.5], 16_000, 320).stoi, None);
}

#[test]
fn mel_distance_is_zero_for_a_copy_and_the_log_of_a_gain() {
    let x = noise(16_000, 7);
    assert_eq!(mel_distance(&x, &x, 16_000), Some(0.0));
    let y: Vec<f32> = x.iter().map(|v| v * 0.1).collect();
    // Every one of the seven scales differs by one decade.
    close(mel_distance(&x, &y, 16_000).unwrap(), 7.0, 1e-5);
    assert_eq!(mel_distance(&x[..31], &y[..31], 16_000), None);
}

#[test]
fn stoi_is_one_for_a_copy_and_falls_with_noise() {
    let x = voice(48_000, 16_000);
    close(stoi(&x, &x, 16_000).unwrap(), 1.0, 1e-9);
    let mut last = 1.0;
    for level in [0.02, 0.1, 0.5, 2.0] {
        let y: Vec<f32> = x.iter().zip(noise(48_000, 8)).map(|(x, n)| x + level * n).collect();
        let found = stoi(&x, &y, 16_000).unwrap();
        assert!(found < last, "{found} at noise {level}, {last} before");
        last = found;
    }
    assert!(last < 0.5, "{last}");
    assert_eq!(stoi(&x[..4000], &x[..4000], 16_000), None);
}

#[test]
fn perplexity_counts_the_entries_in_use() {
    let mut usage = Usage::new(8);
    assert_eq!(usage.perplexity(), 0.0);
    usage.add(&[0, 1, 2, 3].repeat(100));
    close(usage.perplexity(), 4.0, 1e-9);
    assert_eq!(usage.used(), 0.5);
    usage.add(&[-1, 8]);
    assert_eq!(usage.total(), 400);
}

#[test]
fn a_collapsed_and_a_starving_codebook_raise_their_alarms() {
    let mut usage = Usage::new(1024);
    usage.add(&[5; 20_000]);
    assert!(matches!(usage.alarm(7), Some(Alarm::Collapsed { stage: 7, .. })));
    usage.add(&(0..30).collect::<Vec<_>>().repeat(1000));
    assert!(matches!(usage.alarm(3), Some(Alarm::Starving { stage: 3, .. })));
    assert_eq!(usage.alarm(4), None);
    let mut few = Usage::new(1024);
    few.add(&[5; 100]);
    assert_eq!(few.alarm(0), None);
    assert_eq!(Alarm::of(0, 1024, 0.0), None);
}

#[test]
fn verdicts_separate_starved_codes_from_lost_gain() {
    // Logged while a codec's output was uncorrelated with its input, and while it began to learn.
    for (snr, amplitude) in [(-1.11, 53.8), (-0.61, 38.8), (-0.03, 7.1), (0.53, 34.4)] {
        let rho = rho_from_log(snr, amplitude);
        assert_eq!(Verdict::of(rho, amplitude, None), Verdict::Starved, "rho {rho}");
    }
    assert_eq!(Verdict::of(0.95, 40.0, Some(0.5)), Verdict::GainCollapse);
    // As quiet as it should be for what is known.
    assert_eq!(Verdict::of(0.75, 60.0, Some(2.0)), Verdict::Ok);
    assert_eq!(Verdict::of(0.3, 98.0, Some(0.9)), Verdict::PhaseFree);
    assert_eq!(Verdict::of(0.3, 98.0, Some(3.0)), Verdict::Distorted);
    assert_eq!(Verdict::of(0.9, 98.0, Some(0.9)), Verdict::Ok);
}

#[test]
fn stft_distance_is_zero_for_a_copy_and_knows_a_gain() {
    let x = noise(16_000, 9);
    assert_eq!(stft_distance(&x, &x), Some(0.0));
    let y: Vec<f32> = x.iter().map(|v| v * 0.1).collect();
    // Two decades of power at either window, and nine tenths of the magnitudes, which noise has in sqrt(pi N / 4) with N its energy.
    let magnitude = |window: f64| (std::f64::consts::PI / 4.0 * window * 3.0 / 8.0 / 3.0).sqrt();
    close(stft_distance(&x, &y).unwrap(), 4.0 + 0.9 * (magnitude(2048.0) + magnitude(512.0)), 0.2);
    assert_eq!(stft_distance(&x[..511], &y[..511]), None);
}

#[test]
fn pesq_needs_neither_alignment_nor_level_but_speech() {
    let x = voice(48_000, 16_000);
    let copy = pesq(&x, &x, 16_000).unwrap();
    close(copy, 4.64, 0.01);
    let late: Vec<f32> = std::iter::repeat_n(0.0, 900).chain(x.iter().map(|v| 0.05 * v)).collect();
    close(pesq(&x, &late, 16_000).unwrap(), copy, 0.05);
    let mut last = copy;
    for level in [0.0002, 0.001, 0.01] {
        let y: Vec<f32> = x.iter().zip(noise(48_000, 10)).map(|(x, n)| x + level * n).collect();
        let found = pesq(&x, &y, 16_000).unwrap();
        assert!(found < last - 0.1, "{found} at noise {level}, {last} before");
        last = found;
    }
    let silence = vec![0.0; 48_000];
    assert_eq!((pesq(&x, &silence, 16_000), pesq(&silence, &x, 16_000), pesq(&silence, &silence, 16_000)), (None, None, None));
    assert_eq!((pesq(&x[..3999], &x, 16_000), pesq(&x, &[], 16_000), pesq(&x, &[f32::NAN; 8000], 16_000)), (None, None, None));
}

#[test]
fn pesq_at_other_rates_is_near_that_at_its_own() {
    let at = |rate: u32| {
        let samples = 3 * rate as usize;
        let x = voice(samples, rate);
        let mut held = 0.0;
        // Noise of one bandwidth, whatever the rate.
        let hiss = noise(3 * 8_000, 11);
        let y: Vec<f32> = (0..samples)
            .map(|i| {
                held += 0.2 * (0.01 * hiss[i * 8_000 / rate as usize] - held);
                x[i] + held
            })
            .collect();
        pesq(&x, &y, rate).unwrap()
    };
    close(at(32_000), at(16_000), 0.5);
    close(at(44_100), at(16_000), 0.5);
}

#[test]
fn pitch_is_found_to_a_few_cents_and_silence_has_none() {
    for (rate, hz) in [(16_000, 70.0), (16_000, 141.3), (24_000, 440.0), (44_100, 790.0)] {
        let wave: Vec<f32> = (0..rate / 2)
            .map(|i| {
                (1..6)
                    .map(|h| (std::f64::consts::TAU * hz * f64::from(h) * f64::from(i) / f64::from(rate)).sin() / f64::from(h))
                    .sum::<f64>() as f32
            })
            .collect();
        let found = pitch(&wave, rate);
        let voiced: Vec<f64> = found.iter().flatten().copied().collect();
        assert!(voiced.len() + 6 >= found.len(), "{} of {} frames at {hz} Hz", voiced.len(), found.len());
        let worst = voiced.iter().map(|f| (1200.0 * (f / hz).log2()).abs()).fold(0.0, f64::max);
        assert!(worst < 5.0, "{worst} cents at {hz} Hz, {rate} Hz");
    }
    assert!(pitch(&noise(8_000, 12), 16_000).iter().flatten().count() < 3);
    assert_eq!(pitch(&vec![0.0; 4_000], 16_000).iter().flatten().count(), 0);
    assert_eq!(pitch(&[], 16_000), []);
}

#[test]
fn prosody_measures_a_shift_of_pitch_and_lost_voicing() {
    let x = voice(48_000, 16_000);
    let same = prosody(&x, &x, 16_000);
    assert_eq!((same.f0_rmse_cents, same.voicing_f1), (Some(0.0), Some(1.0)));
    close(same.energy_correlation.unwrap(), 1.0, 1e-9);
    let steady =
        |rate: f64| (0..32_000).map(|i| (0.3 * (1..8).map(|h| (f64::from(h * i) * rate).sin()).sum::<f64>()) as f32).collect::<Vec<_>>();
    let shifted = prosody(&steady(0.05), &steady(0.0515), 16_000);
    // 3 % higher.
    close(shifted.f0_rmse_cents.unwrap(), 51.2, 1.0);
    let whispered: Vec<f32> = x.iter().zip(noise(48_000, 13)).map(|(x, n)| x.abs().min(0.2) * n).collect();
    assert!(prosody(&x, &whispered, 16_000).voicing_f1.unwrap() < 0.2);
    assert_eq!(prosody(&[], &[], 16_000).voicing_f1, None);
    assert_eq!(prosody(&[0.0; 500], &[0.0; 500], 16_000).energy_correlation, None);
}

#[test]
fn a_line_of_a_log_is_read_from_causes_to_symptoms() {
    let well =
        Signs { rho: 0.9, amplitude: 95.0, mel_distance: Some(1.0), codebooks: &[(300.0, 1024), (200.0, 1024)], discriminator: None };
    assert_eq!(well.verdict(), Verdict::Ok);
    assert_eq!(Signs { codebooks: &[(0.0, 1024)], ..well }.verdict(), Verdict::Ok);
    let dead = Signs { codebooks: &[(300.0, 1024), (1.0, 1024)], rho: 0.05, ..well };
    assert_eq!((dead.verdict(), dead.alarms().count()), (Verdict::CodebookCollapse, 1));
    assert_eq!(Signs { rho: 0.05, amplitude: 7.0, ..well }.verdict(), Verdict::Starved);
    for (discriminator, verdict) in [
        (Discriminator { loss: 2.0, chance: 2.0 }, Verdict::Ok),
        (Discriminator { loss: 0.6, chance: 2.0 }, Verdict::Ok),
        (Discriminator { loss: 0.4, chance: 2.0 }, Verdict::DiscriminatorWon),
        (Discriminator { loss: 4.0, chance: 4.0 }, Verdict::Ok),
        (Discriminator { loss: 0.9, chance: 4.0 }, Verdict::DiscriminatorWon),
        (Discriminator { loss: f64::NAN, chance: 2.0 }, Verdict::Ok),
    ] {
        assert_eq!(Signs { discriminator: Some(discriminator), ..well }.verdict(), verdict, "{discriminator:?}");
    }
    let quiet = Signs { amplitude: 40.0, discriminator: Some(Discriminator { loss: 0.1, chance: 2.0 }), ..well };
    assert_eq!(quiet.verdict(), Verdict::GainCollapse);
}

#[test]
fn whatever_two_signals_are_they_can_be_compared() {
    let mut rng = swara_kernels::case::SplitMix(14);
    let mut below = |n: usize| (rng.next() % n as u64) as usize;
    for round in 0..40 {
        let long = voice(4_000 + below(60_000), 16_000);
        let mut other: Vec<f32> = match round % 4 {
            0 => noise(4_000 + below(60_000), round as u64),
            1 => long.iter().rev().copied().collect(),
            // Pieces in another order, with gaps and jumps.
            _ => (0..6)
                .flat_map(|_| {
                    let at = below(long.len());
                    long[at..long.len().min(at + 12_000)].to_vec()
                })
                .collect(),
        };
        for _ in 0..3 {
            let (at, n) = (below(other.len()), below(5_000));
            let end = other.len().min(at + n);
            other[at..end].fill([0.0, 1e-30, 1e30][below(3)]);
        }
        for (x, y) in [(&long, &other), (&other, &long)] {
            let score = pesq(x, y, 16_000);
            assert!(score.is_none_or(|score| (0.9..4.7).contains(&score)), "{score:?}");
            let prosody = prosody(x, y, 16_000);
            assert!(prosody.voicing_f1.is_none_or(|f1| (0.0..=1.0).contains(&f1)));
        }
    }
}

#[test]
fn a_word_said_slower_is_nearer_than_another_word() {
    // Two vowels, a rise of pitch between them; the second word has another second vowel.
    let word = |second: f64, seconds: f64| -> Vec<f32> {
        let n = (seconds * 16_000.0) as usize;
        let mut phase = 0.0f64;
        let sample = |i: usize| {
            let t = i as f64 / n as f64;
            phase += std::f64::consts::TAU * (120.0 + 20.0 * t) / 16_000.0;
            let formant = if t < 0.5 { 700.0 } else { second };
            let harmonic = |h: u32| (-((f64::from(h) * 130.0 - formant) / 200.0).powi(2)).exp() * (f64::from(h) * phase).sin();
            (0.3 * (1..40).map(harmonic).sum::<f64>()) as f32
        };
        (0..n).map(sample).collect()
    };
    let spoken = |second, seconds| Spoken::new(&word(second, seconds), 16_000).unwrap();
    let (a, b, slow) = (spoken(1200.0, 0.5), spoken(2000.0, 0.5), spoken(1200.0, 0.7));
    assert_eq!(a.distance(&a), 0.0);
    close(a.distance(&b), b.distance(&a), 1e-12);
    assert!(slow.distance(&a) < 0.2 * slow.distance(&b), "{} {}", slow.distance(&a), slow.distance(&b));
    assert!(Spoken::new(&[0.0; 511], 16_000).is_none());
    close(Spoken::new(&[0.0; 600], 16_000).unwrap().distance(&Spoken::new(&[0.0; 900], 16_000).unwrap()), 0.0, 0.0);
}
