use std::fs;

use super::*;
use crate::audio::{WavFormat, write};
use crate::loudness;

const RATE: u32 = 16_000;

/// A buzz whose loudness waxes and wanes, unlike for each seed.
fn voice(seed: usize, seconds: f64, amplitude: f64) -> Vec<f32> {
    let hz = 90.0 + 17.0 * seed as f64;
    (0..(seconds * f64::from(RATE)) as usize)
        .map(|i| {
            let t = i as f64 / f64::from(RATE);
            let buzz: f64 = (1..8).map(|k| (std::f64::consts::TAU * hz * k as f64 * t).sin() / k as f64).sum();
            (amplitude * buzz * (0.6 + 0.4 * (5.0 * t).sin())) as f32
        })
        .collect()
}

struct Corpus(tempfile::TempDir);

impl Corpus {
    fn new() -> Self {
        let corpus = Self(tempfile::tempdir().unwrap());
        for (speaker, count) in [("ann", 12), ("bob", 4), ("cy", 2)] {
            for i in 0..count {
                corpus.add(&format!("{speaker}/te/{speaker}_{i:02}.wav"), &voice(i + count, 0.5 + 0.1 * i as f64, 0.05));
            }
        }
        corpus
    }

    fn add(&self, name: &str, samples: &[f32]) {
        let path = self.input().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write(path, samples, RATE, WavFormat::F32).unwrap();
    }

    fn input(&self) -> PathBuf {
        self.0.path().join("in")
    }

    fn output(&self) -> PathBuf {
        self.0.path().join("out")
    }

    fn prepare(&self, options: &Options) -> Result<Report> {
        prepare(&[self.input()], self.output(), options, |_| {})
    }

    fn open(&self, options: &Options) -> Dataset {
        self.prepare(options).unwrap();
        Dataset::open(self.output()).unwrap()
    }
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

#[test]
fn folders_name_speakers_and_languages() {
    let corpus = Corpus::new();
    corpus.add("loose.wav", &voice(3, 1.0, 0.05));
    let data = corpus.open(&Options::default());
    assert_eq!(data.utterances().len(), 19);
    let u = &data.utterances()[0];
    assert_eq!((u.id.as_str(), u.speaker.as_str(), u.language.as_str()), ("ann/te/ann_00", "ann", "te"));
    let loose = data.utterances().iter().find(|u| u.id == "loose").unwrap();
    assert_eq!((loose.speaker.as_str(), loose.language.as_str()), ("in", "und"));
    assert_eq!(data.description().hours.speaker.keys().collect::<Vec<_>>(), ["ann", "bob", "cy", "in"]);
}

#[test]
fn every_utterance_reaches_the_loudness_asked_for() {
    let corpus = Corpus::new();
    let data = corpus.open(&Options::default());
    for i in 0..data.utterances().len() {
        let samples = data.samples(i);
        assert!((loudness::rms_dbfs(&samples) + 16.0).abs() < 0.01, "{i}");
        assert!(loudness::peak(&samples) <= 0.9991);
    }
    let data = corpus.open(&Options { loudness: Loudness::Lufs(-23.0), ..Options::default() });
    for i in 0..data.utterances().len() {
        assert!((loudness::lufs(&data.samples(i), RATE) + 23.0).abs() < 0.05, "{i}");
    }
}

#[test]
fn peaks_limit_the_gain_instead_of_clipping() {
    let corpus = Corpus(tempfile::tempdir().unwrap());
    let mut samples = voice(1, 1.0, 0.01);
    samples[8000] = 0.5;
    corpus.add("a/b/c.wav", &samples);
    let data = corpus.open(&Options::default());
    assert!((loudness::peak(&data.samples(0)) - 0.999).abs() < 1e-4);
    assert!(loudness::rms_dbfs(&data.samples(0)) < -25.0);
    assert!((data.utterances()[0].gain_db - 6.01).abs() < 0.02);
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let corpus = Corpus::new();
    corpus.prepare(&Options::default()).unwrap();
    let first = files(&corpus.output());
    assert_eq!(first.keys().collect::<Vec<_>>(), ["audio.s16", "dataset.json", "manifest.jsonl"]);
    corpus.prepare(&Options::default()).unwrap();
    assert_eq!(files(&corpus.output()), first);
}

#[test]
fn splits_follow_speakers_then_rules() {
    let corpus = Corpus::new();
    let options = Options {
        test_speakers: vec!["cy".into()],
        id_rules: vec!["ann=test:0,validation:1".parse().unwrap(), "an=test:2".parse().unwrap()],
        ..Options::default()
    };
    let data = corpus.open(&options);
    let of = |split| data.split(split).map(|(_, u)| u.id.as_str()).collect::<Vec<_>>();
    assert_eq!(of(Split::Test), ["ann/te/ann_00", "ann/te/ann_10", "cy/te/cy_00", "cy/te/cy_01"]);
    assert_eq!(of(Split::Validation), ["ann/te/ann_01", "ann/te/ann_11"]);
    assert_eq!(of(Split::Train).len(), 12);
    let all = corpus.open(&Options { test_fraction: 1.0, ..Options::default() });
    assert_eq!(all.split(Split::Train).count(), 0);
}

#[test]
fn rules_that_say_nothing_clear_are_refused() {
    for bad in ["ann", "ann=test", "ann=test:", "ann=exam:0", "ann=test:0,"] {
        assert!(bad.parse::<IdRule>().is_err(), "{bad}");
    }
    for bad in ["rms", "rms:loud", "lufs:3", "peak:-1"] {
        assert!(bad.parse::<Loudness>().is_err(), "{bad}");
    }
}

#[test]
fn long_files_are_cut_where_they_are_quiet_and_nothing_is_lost() {
    let corpus = Corpus(tempfile::tempdir().unwrap());
    let mut samples = Vec::new();
    for i in 0..9 {
        samples.extend(voice(i, 2.7, 0.05));
        samples.extend([0.0; 4800]);
    }
    corpus.add("a/b/long.wav", &samples);
    let data = corpus.open(&Options { max_seconds: 8.0, ..Options::default() });
    let pieces = data.utterances();
    assert_eq!(pieces[0].id, "a/b/long#1");
    assert!(pieces.len() >= 3 && pieces.iter().all(|u| u.samples <= 8 * u64::from(RATE)));
    let held: u64 = pieces.iter().map(|u| u.samples).sum();
    // At most the 0.3 s between two voices is trimmed at each cut.
    assert!(samples.len() as u64 - held <= pieces.len() as u64 * 4800, "{held} of {}", samples.len());
    for u in pieces {
        let end = (u.start + u.samples) as usize;
        assert!(end >= samples.len() || samples[end.min(samples.len() - 1)].abs() < 1e-3, "{} cut in a voice", u.id);
    }
}

#[test]
fn silent_clipped_short_and_unreadable_files_are_counted() {
    let corpus = Corpus(tempfile::tempdir().unwrap());
    corpus.add("a/b/good.wav", &[vec![0.0; 16_000], voice(1, 1.0, 0.05), vec![0.0; 16_000]].concat());
    corpus.add("a/b/silent.wav", &[1e-5; 16_000]);
    corpus.add("a/b/short.wav", &voice(1, 0.1, 0.05));
    corpus.add("a/b/clipped.wav", &voice(1, 1.0, 5.0).iter().map(|x| x.clamp(-1.0, 1.0)).collect::<Vec<_>>());
    fs::write(corpus.input().join("a/b/bad.wav"), b"text").unwrap();
    fs::write(corpus.input().join("a/b/notes.txt"), b"text").unwrap();
    corpus.add("a/.cache/good.wav", &voice(1, 1.0, 0.05));
    let report = corpus.prepare(&Options::default()).unwrap();
    assert_eq!(report.description.dropped, Dropped { unreadable: 1, silent: 1, clipped: 1, short: 1 });
    assert!(report.unreadable[0].to_string().contains("bad.wav"));
    let data = Dataset::open(corpus.output()).unwrap();
    assert_eq!(data.utterances().len(), 1);
    let u = &data.utterances()[0];
    assert!((u.samples as i64 - 16_000 - 3200).abs() < 700, "{u:?}");
    assert!((u.start as i64 - 14_400).abs() < 400, "{u:?}");
}

#[test]
fn nothing_to_prepare_is_an_error_that_leaves_nothing() {
    let corpus = Corpus(tempfile::tempdir().unwrap());
    assert!(corpus.prepare(&Options::default()).unwrap_err().to_string().contains("no such directory"));
    fs::create_dir(corpus.input()).unwrap();
    assert!(corpus.prepare(&Options::default()).unwrap_err().to_string().contains("no audio file"));
    corpus.add("a/b/silent.wav", &[0.0; 16_000]);
    assert!(corpus.prepare(&Options::default()).unwrap_err().to_string().contains("nothing left"));
    assert!(files(&corpus.output()).is_empty());
    let wrong = Options { max_seconds: f64::NAN, ..Options::default() };
    assert!(corpus.prepare(&wrong).unwrap_err().to_string().contains("max_seconds"));
}

#[test]
fn each_damage_to_a_dataset_is_noticed() {
    let corpus = Corpus::new();
    corpus.prepare(&Options::default()).unwrap();
    let good = files(&corpus.output());
    let text = |name: &str| String::from_utf8(good[name].clone()).unwrap();
    let manifest = text(MANIFEST);
    let lines: Vec<_> = manifest.lines().collect();
    let cases: [(&str, Option<Vec<u8>>, &str); 8] = [
        (DESCRIPTION, None, "not a prepared dataset"),
        (DESCRIPTION, Some(b"{}".to_vec()), "dataset.json"),
        (DESCRIPTION, Some(text(DESCRIPTION).replace("\"version\": 1", "\"version\": 2").into()), "version 2, expected 1"),
        (AUDIO, Some(good[AUDIO][1..].to_vec()), "bytes, expected"),
        (MANIFEST, Some(manifest.replacen("ann_03", "ann_02", 1).into()), "appears twice"),
        (MANIFEST, Some(manifest.replacen("\"offset\":0", "\"offset\":1", 1).into()), "line 1: offset 1, expected 0"),
        (MANIFEST, Some(manifest.replacen("\"speaker\":\"ann\"", "\"speaker\":\"amy\"", 1).into()), "not the one"),
        (MANIFEST, Some(lines[1..].join("\n").into()), "line 1"),
    ];
    for (name, bytes, part) in cases {
        let path = corpus.output().join(name);
        match bytes {
            None => fs::remove_file(&path).unwrap(),
            Some(bytes) => fs::write(&path, bytes).unwrap(),
        }
        let error = Dataset::open(corpus.output()).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
        fs::write(&path, &good[name]).unwrap();
    }
    Dataset::open(corpus.output()).unwrap();
}

#[test]
fn a_batch_depends_on_seed_and_step_alone() {
    let corpus = Corpus::new();
    let data = corpus.open(&Options::default());
    let options = SamplerOptions { crop: 20_000, gain_db: Some((-6.0, 6.0)), ..SamplerOptions::default() };
    let (one, two) = (Sampler::new(&data, options.clone()).unwrap(), Sampler::new(&data, options.clone()).unwrap());
    (0..5).for_each(|step| drop(one.batch(step)));
    assert_eq!(one.batch(7), two.batch(7));
    assert_ne!(one.batch(7), one.batch(8));
    let other = Sampler::new(&data, SamplerOptions { seed: 1, ..options }).unwrap();
    assert_ne!(one.batch(7), other.batch(7));
    assert_eq!(one.batch(7).samples.len(), 8 * 20_000);
    assert!(one.batch(3).samples.iter().all(|x| x.abs() <= 1.0));
}

#[test]
fn crops_are_pieces_of_utterances() {
    let corpus = Corpus::new();
    let data = corpus.open(&Options::default());
    let crop = 4000;
    let sampler = Sampler::new(&data, SamplerOptions { crop, ..SamplerOptions::default() }).unwrap();
    let batch = sampler.batch(0);
    for (samples, &u) in batch.samples.chunks(crop).zip(&batch.utterances) {
        assert!(data.samples(u).windows(crop).any(|w| w == samples));
    }
}

#[test]
fn short_utterances_are_filled_up_by_speech_or_by_silence() {
    let corpus = Corpus::new();
    let data = corpus.open(&Options { test_speakers: vec!["ann".into(), "bob".into()], ..Options::default() });
    let options = SamplerOptions { crop: 3 * RATE as usize, batch: 1, ..SamplerOptions::default() };
    let padded = Sampler::new(&data, SamplerOptions { concatenate: false, ..options.clone() }).unwrap().batch(0);
    let first = data.samples(padded.utterances[0]);
    assert_eq!(padded.samples[..first.len()], first);
    assert!(padded.samples[first.len()..].iter().all(|&x| x == 0.0));
    let joined = Sampler::new(&data, options).unwrap().batch(0);
    assert_eq!(joined.samples[..first.len()], first);
    assert!(joined.samples.chunks(1600).all(|c| c.iter().any(|&x| x != 0.0)));
}

#[test]
fn temperature_moves_from_hours_to_speakers() {
    let corpus = Corpus::new();
    let data = corpus.open(&Options::default());
    let share = |temperature: f64, speaker: &str| {
        let options = SamplerOptions { temperature, batch: 4000, crop: 1, ..SamplerOptions::default() };
        let batch = Sampler::new(&data, options).unwrap().batch(0);
        batch.utterances.iter().filter(|&&u| data.utterances()[u].speaker == speaker).count() as f64 / 4000.0
    };
    let hours = &data.description().hours;
    let total: f64 = hours.speaker.values().sum();
    assert!((share(1.0, "cy") - hours.speaker["cy"] / total).abs() < 0.02);
    assert!((share(f64::INFINITY, "cy") - 1.0 / 3.0).abs() < 0.03);
    let roots: f64 = hours.speaker.values().map(|h| h.sqrt()).sum();
    assert!((share(2.0, "cy") - hours.speaker["cy"].sqrt() / roots).abs() < 0.03);
}

#[test]
fn impossible_samplers_are_refused() {
    let corpus = Corpus::new();
    let data = corpus.open(&Options::default());
    let refused = |options| Sampler::new(&data, options).unwrap_err().to_string();
    let options = SamplerOptions::default();
    assert!(refused(SamplerOptions { split: Split::Test, ..options.clone() }).contains("split test is empty"));
    assert!(refused(SamplerOptions { batch: 0, ..options.clone() }).contains("batch"));
    assert!(refused(SamplerOptions { temperature: 0.0, ..options.clone() }).contains("temperature"));
    assert!(refused(SamplerOptions { gain_db: Some((1.0, f64::NAN)), ..options }).contains("gain_db"));
}

/// As many rows as a teacher of 50 frames a second has, its last one short.
fn rows_of(data: &Dataset, index: usize) -> usize {
    (data.utterances()[index].samples / 320) as usize - 1
}

#[test]
fn a_teachers_features_come_back_and_an_interrupted_cache_goes_on() {
    let corpus = Corpus::new();
    let data = corpus.open(&Options::default());
    assert!(TeacherCache::open(&data).unwrap_err().to_string().contains("no teacher.json"));
    let features = |index: usize| TeacherRows::Features((0..rows_of(&data, index) * 3).map(|i| i as f32 / 8.0).collect());
    let cache = TeacherCache::create(&data, "t", 50.0, TeacherOutput::Dim(3)).unwrap();
    let text = fs::read_to_string(corpus.output().join("teacher/teacher.json")).unwrap();
    assert!(text.contains("\"dim\": 3") && text.contains("\"rate\": 50.0"), "{text}");
    cache.write(0, &features(0)).unwrap();
    cache.write(2, &features(2)).unwrap();
    fs::write(cache.path(3).unwrap(), b"half a file").unwrap();

    let again = TeacherCache::create(&data, "t", 50.0, TeacherOutput::Dim(3)).unwrap();
    assert_eq!(again.missing().unwrap()[..3], [1, 3, 4]);
    for index in again.missing().unwrap() {
        again.write(index, &features(index)).unwrap();
    }
    assert!(again.missing().unwrap().is_empty());
    assert_eq!(TeacherCache::open(&data).unwrap().read(5).unwrap(), features(5));
    for other in [TeacherOutput::Dim(4), TeacherOutput::Classes(3)] {
        assert!(TeacherCache::create(&data, "t", 50.0, other).unwrap_err().to_string().contains("remove the folder"));
    }

    drop(data);
    let data = corpus.open(&Options { loudness: Loudness::Rms(-20.0), ..Options::default() });
    assert!(TeacherCache::open(&data).unwrap_err().to_string().contains("another preparation"));
}

#[test]
fn a_teachers_labels_come_back_with_nothing_as_minus_one() {
    let corpus = Corpus::new();
    let data = corpus.open(&Options::default());
    let cache = TeacherCache::create(&data, "phones", 50.0, TeacherOutput::Classes(40)).unwrap();
    let mut labels: Vec<i32> = (0..rows_of(&data, 0) as i32).map(|i| i % 40).collect();
    labels[1] = -7;
    cache.write(0, &TeacherRows::Labels(labels.clone())).unwrap();
    labels[1] = -1;
    assert_eq!(cache.read(0).unwrap(), TeacherRows::Labels(labels.clone()));
    labels[1] = 40;
    assert!(cache.write(0, &TeacherRows::Labels(labels)).unwrap_err().to_string().contains("beyond the classes"));
    assert!(cache.write(0, &TeacherRows::Features(vec![0.0; 30])).is_err());
}

#[test]
fn each_damage_to_a_teachers_cache_is_noticed() {
    let corpus = Corpus::new();
    let data = corpus.open(&Options::default());
    let cache = TeacherCache::create(&data, "t", 50.0, TeacherOutput::Dim(2)).unwrap();
    let rows = rows_of(&data, 0);
    for bad in [vec![0.0; 2 * rows - 1], vec![0.0; 2 * rows + 8], vec![f32::NAN; 2 * rows], vec![1e6; 2 * rows]] {
        assert!(cache.write(0, &TeacherRows::Features(bad)).is_err());
    }
    let path = cache.path(0).unwrap();
    let save = |name: &str, dtype, shape: &[usize], value: [u8; 2]| {
        let bytes = value.repeat(shape.iter().product());
        crate::weights::save(&path, &[crate::weights::TensorRef { name, dtype, shape, bytes: &bytes }], &BTreeMap::new()).unwrap();
    };
    use crate::weights::Dtype::{Bf16, F16};
    let cases: [(&str, _, &[usize], [u8; 2], &str); 6] = [
        ("labels", F16, &[rows, 2], [0; 2], "no features"),
        ("features", Bf16, &[rows, 2], [0; 2], "no features"),
        ("features", F16, &[rows, 3], [0; 2], "no features"),
        ("features", F16, &[rows, 2, 1], [0; 2], "no features"),
        ("features", F16, &[rows + 9, 2], [0; 2], "the utterance lasts"),
        ("features", F16, &[rows, 2], [0, 0x7c], "not finite"),
    ];
    for (name, dtype, shape, value, part) in cases {
        save(name, dtype, shape, value);
        let error = cache.read(0).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains(".safetensors"), "{part}: {error}");
    }
    save("features", F16, &[rows, 2], [0, 0x3c]);
    assert_eq!(cache.read(0).unwrap(), TeacherRows::Features(vec![1.0; 2 * rows]));

    let json = corpus.output().join("teacher/teacher.json");
    let good = fs::read_to_string(&json).unwrap();
    for (from, to) in [("\"dim\": 2", "\"dim\": 0"), ("\"dim\": 2", "\"dim\": 99999999"), ("50.0", "-1.0"), ("\"rate\"", "\"rats\"")] {
        fs::write(&json, good.replace(from, to)).unwrap();
        assert!(TeacherCache::open(&data).unwrap_err().to_string().contains("teacher.json"), "{to}");
    }
}

#[test]
fn ids_that_lead_out_of_the_cache_are_refused() {
    let corpus = Corpus::new();
    corpus.prepare(&Options::default()).unwrap();
    let manifest = fs::read_to_string(corpus.output().join(MANIFEST)).unwrap().replacen("\"ann/te/ann_00\"", "\"../te/ann_00\"", 1);
    fs::write(corpus.output().join(MANIFEST), &manifest).unwrap();
    let description = fs::read_to_string(corpus.output().join(DESCRIPTION)).unwrap();
    let mut description: serde_json::Value = serde_json::from_str(&description).unwrap();
    description["manifest_sha256"] = hex(&Sha256::digest(manifest.as_bytes())).into();
    fs::write(corpus.output().join(DESCRIPTION), description.to_string()).unwrap();
    let data = Dataset::open(corpus.output()).unwrap();
    let cache = TeacherCache::create(&data, "t", 50.0, TeacherOutput::Dim(2)).unwrap();
    assert!(cache.path(0).unwrap_err().to_string().contains("names no file"));
    assert!(cache.path(1).is_ok() && cache.path(99).is_err());
}

#[test]
fn crops_get_the_teachers_rows_of_their_own_times() {
    let corpus = Corpus::new();
    let data = corpus.open(&Options::default());
    let cache = TeacherCache::create(&data, "t", 50.0, TeacherOutput::Dim(2)).unwrap();
    // A row says which one it is, and of whom.
    for index in 0..data.utterances().len() {
        let rows = (0..rows_of(&data, index)).flat_map(|t| [t as f32, index as f32]);
        cache.write(index, &TeacherRows::Features(rows.collect())).unwrap();
    }
    let crops = |crops: &[Vec<Piece>], frames, hop| match cache.crops(crops, frames, hop).unwrap() {
        TeacherRows::Features(rows) => rows,
        TeacherRows::Labels(_) => panic!(),
    };
    let piece = |utterance, start, samples| Piece { utterance, start, samples };
    // At the teacher's own rate: the rows themselves, the second utterance after the first.
    let rows = crops(&[vec![piece(4, 640, 960), piece(5, 0, 640)]], 5, 320);
    assert_eq!(rows, [2.0, 4.0, 3.0, 4.0, 4.0, 4.0, 0.0, 5.0, 1.0, 5.0]);
    // At a fourth of it: the mean of the eight rows around each frame, of fewer at the ends.
    let rows = crops(&[vec![piece(4, 0, 1280 * 4)]], 4, 1280);
    let means: Vec<f32> = rows.chunks(2).map(|row| row[0]).collect();
    assert_eq!(means, [2.5, 5.5, 9.5, 12.5]);
    // At four times: each row four times.
    let rows = crops(&[vec![piece(4, 320, 640)]], 8, 80);
    assert_eq!(rows.chunks(2).map(|row| row[0]).collect::<Vec<_>>(), [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0]);
    // Silence after the end.
    assert_eq!(crops(&[vec![piece(4, 320, 320)]], 2, 320), [1.0, 4.0, 0.0, 0.0]);

    let options = SamplerOptions { crop: 24_000, batch: 4, ..SamplerOptions::default() };
    let batch = Sampler::new(&data, options).unwrap().batch(3);
    for (pieces, samples) in batch.pieces.iter().zip(batch.samples.chunks(24_000)) {
        let parts = pieces.iter().flat_map(|p| data.samples(p.utterance)[p.start..p.start + p.samples].to_vec());
        assert_eq!(parts.collect::<Vec<_>>(), samples);
    }
}

fn noisy(kinds: Vec<Kind>) -> Augmentation {
    let noise = Noise { probability: 1.0, snr_db: (3.0, 12.0), kinds, folder: None };
    Augmentation { target: Target::Clean, noise: Some(noise), ..Augmentation::default() }
}

/// Everything at once, quiet enough for no peak to pass full scale.
fn everything() -> Augmentation {
    Augmentation {
        gain: Some(Gain { probability: 0.5, db: (-12.0, -6.0) }),
        phase: Some(Phase { probability: 0.5, radians: (-3.0, 3.0) }),
        reverb: Some(Reverb { probability: 0.5, rt60: (0.1, 0.4), direct_db: (3.0, 12.0) }),
        echo: Some(Echo { probability: 0.5, delay_ms: (100.0, 300.0), gain: (0.0, 0.2) }),
        ..noisy(vec![Kind::White, Kind::Pink, Kind::Brown, Kind::Babble])
    }
}

#[test]
fn noise_stands_at_the_ratio_asked_for() {
    let corpus = Corpus::new();
    let data = corpus.open(&Options { loudness: Loudness::Rms(-40.0), ..Options::default() });
    let loose = tempfile::tempdir().unwrap();
    write(loose.path().join("hum.wav"), &voice(9, 0.7, 0.02), RATE, WavFormat::F32).unwrap();
    prepare(&[loose.path()], loose.path().join("out"), &Options { speaker_depth: 9, ..Options::default() }, |_| {}).unwrap();
    for kind in [Kind::White, Kind::Pink, Kind::Brown, Kind::Babble, Kind::Recorded] {
        for snr in [-3.0, 10.0] {
            let mut augment = noisy(vec![kind]);
            let noise = augment.noise.as_mut().unwrap();
            noise.snr_db = (snr, snr);
            noise.folder = (kind == Kind::Recorded).then(|| loose.path().join("out"));
            let options = SamplerOptions { crop: 12_000, batch: 6, ..SamplerOptions::default() };
            let plain = Sampler::new(&data, options.clone()).unwrap().batch(3);
            let batch = Sampler::new(&data, SamplerOptions { augment: Some(augment), ..options }).unwrap().batch(3);
            // The same crops, clean.
            assert_eq!((&batch.targets, &batch.utterances), (&plain.samples, &plain.utterances));
            for (heard, clean) in batch.samples.chunks(12_000).zip(batch.targets.chunks(12_000)) {
                let added: f64 = heard.iter().zip(clean).map(|(y, x)| f64::from(y - x).powi(2)).sum::<f64>() / 12_000.0;
                let found = 10.0 * (augment::active_power(clean, f64::from(RATE)) / added).log10();
                assert!((found - snr).abs() < 0.1, "{kind:?}: {found} dB, asked for {snr}");
            }
        }
    }
}

#[test]
fn an_augmented_batch_depends_on_seed_and_step_alone() {
    let corpus = Corpus::new();
    let data = corpus.open(&Options::default());
    let options = SamplerOptions { crop: 8000, augment: Some(everything()), loudness: Loudness::Lufs(-16.0), ..SamplerOptions::default() };
    let sampler = || Sampler::new(&data, options.clone()).unwrap();
    let one = sampler();
    (0..3).for_each(|step| drop(one.batch(step)));
    assert_eq!(one.batch(7), sampler().batch(7));
    assert_ne!(one.batch(7).samples, one.batch(8).samples);
    let batch = one.batch(7);
    assert_ne!(batch.samples, batch.targets);
    assert!(batch.samples.iter().chain(&batch.targets).all(|x| x.abs() <= 1.0 + 1e-6));
    // A noisy target is what is heard.
    let noisy = Augmentation { target: Target::Noisy, ..everything() };
    let same = Sampler::new(&data, SamplerOptions { augment: Some(noisy), ..options.clone() }).unwrap().batch(7);
    assert_eq!(same.samples, same.targets);
}

#[test]
fn what_is_rare_happens_as_often_as_asked() {
    let corpus = Corpus::new();
    let data = corpus.open(&Options::default());
    let mut augment = noisy(vec![Kind::White]);
    augment.noise.as_mut().unwrap().probability = 0.3;
    let options = SamplerOptions { crop: 50, batch: 2000, augment: Some(augment), ..SamplerOptions::default() };
    let batch = Sampler::new(&data, options).unwrap().batch(0);
    let changed = batch.samples.chunks(50).zip(batch.targets.chunks(50)).filter(|(x, y)| x != y).count();
    assert!((changed as f64 / 2000.0 - 0.3).abs() < 0.05, "{changed} of 2000");
}

#[test]
fn crops_reach_their_loudness_and_an_echo_is_a_copy() {
    let corpus = Corpus::new();
    let data = corpus.open(&Options { loudness: Loudness::Rms(-40.0), ..Options::default() });
    let crop = 8000;
    for (wanted, measure) in [(Loudness::Rms(-26.0), true), (Loudness::Lufs(-27.0), false)] {
        let options = SamplerOptions { crop, loudness: wanted, ..SamplerOptions::default() };
        for x in Sampler::new(&data, options).unwrap().batch(1).samples.chunks(crop) {
            let off = if measure { loudness::rms_dbfs(x) + 26.0 } else { loudness::lufs(x, RATE) + 27.0 };
            assert!(off.abs() < 0.02, "{wanted}: off by {off}");
        }
    }
    // Never over full scale.
    let loud = SamplerOptions { crop, loudness: Loudness::Lufs(0.0), ..SamplerOptions::default() };
    for x in Sampler::new(&data, loud).unwrap().batch(1).samples.chunks(crop) {
        assert!((loudness::peak(x) - 1.0).abs() < 1e-5);
    }
    let echo = Some(Echo { probability: 1.0, delay_ms: (125.0, 125.0), gain: (0.5, 0.5) });
    let augment = Some(Augmentation { target: Target::Clean, echo, ..Augmentation::default() });
    let batch = Sampler::new(&data, SamplerOptions { crop, augment, ..SamplerOptions::default() }).unwrap().batch(1);
    for (y, x) in batch.samples.chunks(crop).zip(batch.targets.chunks(crop)) {
        assert!((0..crop).all(|t| (y[t] - x[t] - if t < 2000 { 0.0 } else { 0.5 * x[t - 2000] }).abs() < 1e-6));
    }
}

#[test]
fn augmentations_that_cannot_be_meant_are_refused() {
    let corpus = Corpus::new();
    let data = corpus.open(&Options::default());
    let refused = |augment: Augmentation| {
        let options = SamplerOptions { augment: Some(augment), ..SamplerOptions::default() };
        Sampler::new(&data, options).unwrap_err().to_string()
    };
    let gain = |db, probability| Augmentation { gain: Some(Gain { probability, db }), ..Augmentation::default() };
    assert!(refused(gain((3.0, -3.0), 0.5)).contains("gain.db"));
    assert!(refused(gain((0.0, f64::NAN), 0.5)).contains("gain.db"));
    assert!(refused(gain((0.0, 1.0), 1.5)).contains("gain.probability"));
    assert!(refused(noisy(Vec::new())).contains("noise.kinds"));
    assert!(refused(noisy(vec![Kind::Recorded])).contains("noise.folder"));
    let mut elsewhere = noisy(vec![Kind::Recorded]);
    elsewhere.noise.as_mut().unwrap().folder = Some(corpus.input());
    assert!(refused(elsewhere).contains("not a prepared dataset"));
    let reverb = Some(Reverb { probability: 1.0, rt60: (0.1, 1e9), direct_db: (0.0, 0.0) });
    assert!(refused(Augmentation { reverb, ..Augmentation::default() }).contains("reverb.rt60"));
}
