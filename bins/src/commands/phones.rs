//! `bench phones`: which sounds a codec keeps apart.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use swara_engine::codec::Codec;
use swara_engine::metrics::Spoken;
use swara_loader::audio::AudioReader;
use swara_loader::output;

use crate::cli::{BenchPhones, Common};
use crate::codec;
use crate::failure::{Failure, Result};
use crate::terminal;

/// Longest word, and most pairs.
const MOST_SECONDS: usize = 30;
const MOST_PAIRS: usize = 10_000;

/// A contrast at a number of codebooks.
#[derive(Serialize)]
struct Row {
    contrast: String,
    codebooks: usize,
    pairs: usize,
    /// Shares of the words said again that are nearer to the same word than to the other one: as recorded, and from codes.
    recorded: f64,
    decoded: f64,
}

/// Both words of a pair, and both said again.
struct Pair {
    words: [Vec<f32>; 2],
    again: [Vec<f32>; 2],
}

#[derive(Default)]
struct Sums {
    pairs: usize,
    recorded: usize,
    decoded: usize,
}

pub fn run(common: &Common, args: &BenchPhones) -> Result {
    let contrasts = contrasts(&args.dir)?;
    let codec = codec::open(common, &args.model)?;
    let format = codec.format();
    if format.channels != 1 {
        return Err(Failure::usage(format!("bench: {} has {} channels, words have one", codec.name(), format.channels)));
    }
    let all = codec.codebooks();
    let numbers = if args.codebooks.is_empty() { vec![all] } else { args.codebooks.clone() };
    if let Some(n) = numbers.iter().find(|n| !(1..=all).contains(n)) {
        return Err(Failure::usage(format!("--codebooks: {n}, expected 1 to {all}")));
    }
    let bar = terminal::progress(Some((contrasts.values().map(Vec::len).sum::<usize>()) as u64), "phones");
    let mut rows = Vec::new();
    for (contrast, stems) in &contrasts {
        let mut sums: Vec<Sums> = numbers.iter().map(|_| Sums::default()).collect();
        for stem in stems {
            let pair = Pair::read(stem, format.sample_rate)?;
            for (&n, sums) in numbers.iter().zip(&mut sums) {
                pair.add(&codec, n, stem, sums)?;
            }
            bar.inc(1);
        }
        rows.extend(numbers.iter().zip(sums).map(|(&codebooks, sums)| sums.row(contrast, codebooks)));
    }
    bar.finish_and_clear();
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&rows).map_err(|e| Failure::work(e.to_string()))? + "\n";
        return if path.as_os_str() == "-" { terminal::write(&text) } else { Ok(output::write(path, text.as_bytes())?) };
    }
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let cells = |r: &Row| {
        let numbers = [r.codebooks.to_string(), r.pairs.to_string(), percent(r.recorded), percent(r.decoded)];
        [r.contrast.clone()].into_iter().chain(numbers).collect()
    };
    let head = ["contrast", "codebooks", "pairs", "told as recorded", "told from codes"];
    terminal::say(terminal::table(&head, &rows.iter().map(cells).collect::<Vec<Vec<String>>>()))
}

/// What stands before `_a.EXT` and so on, by the folder it is in.
fn contrasts(dir: &Path) -> Result<BTreeMap<String, Vec<PathBuf>>> {
    let fail = |e: std::io::Error, path: &Path| Failure::file("cannot read folder", e, path);
    let mut contrasts = BTreeMap::<String, Vec<PathBuf>>::new();
    let mut pairs = 0;
    for folder in std::fs::read_dir(dir).map_err(|e| fail(e, dir))? {
        let folder = folder.map_err(|e| fail(e, dir))?.path();
        if !folder.is_dir() {
            continue;
        }
        for file in std::fs::read_dir(&folder).map_err(|e| fail(e, &folder))? {
            let file = file.map_err(|e| fail(e, &folder))?.path();
            let (Some(stem), Some(name)) = (file.file_stem().and_then(|s| s.to_str()), folder.file_name()) else { continue };
            if stem.ends_with("_a") {
                pairs += 1;
                contrasts.entry(name.to_string_lossy().into_owned()).or_default().push(file);
            }
        }
        if pairs > MOST_PAIRS {
            return Err(Failure::file("cannot compare", format!("more than {MOST_PAIRS} pairs"), dir));
        }
    }
    contrasts.values_mut().for_each(|files| files.sort());
    match pairs {
        0 => Err(Failure::file("cannot compare", "no pairs: expected CONTRAST/NAME_a.wav, NAME_b.wav, NAME_a_x.wav, NAME_b_x.wav", dir)),
        _ => Ok(contrasts),
    }
}

impl Pair {
    /// `first`: the file that ends in `_a`.
    fn read(first: &Path, rate: u32) -> Result<Pair> {
        let (stem, extension) = (first.file_stem().unwrap_or_default().to_string_lossy(), first.extension().unwrap_or_default());
        let stem = stem.strip_suffix('a').unwrap_or(&stem);
        let word = |which: &str| {
            let path = first.with_file_name(format!("{stem}{which}")).with_extension(extension);
            let mut samples = Vec::new();
            for piece in &mut AudioReader::open(&path, Some(rate))? {
                samples.extend(piece?);
                if samples.len() > MOST_SECONDS * rate as usize {
                    return Err(Failure::file("cannot compare", format!("longer than {MOST_SECONDS} s"), &path));
                }
            }
            Ok(samples)
        };
        Ok(Pair { words: [word("a")?, word("b")?], again: [word("a_x")?, word("b_x")?] })
    }

    fn add(&self, codec: &Codec, codebooks: usize, file: &Path, sums: &mut Sums) -> Result {
        let rate = codec.format().sample_rate;
        let spoken = |wave: &[f32]| Spoken::new(wave, rate).ok_or_else(|| Failure::file("cannot compare", "a word without a frame", file));
        let heard = |wave: &Vec<f32>| -> Result<Spoken> {
            let mut decoded = codec.decode(&codec.encode(wave, codebooks)?)?;
            decoded.truncate(wave.len());
            spoken(&decoded)
        };
        if self.words[0] == self.words[1] {
            return Err(Failure::file("cannot compare", "two words that are one", file));
        }
        let [a, b] = [spoken(&self.words[0])?, spoken(&self.words[1])?];
        let told = |again: [Spoken; 2]| {
            usize::from(again[0].distance(&a) < again[0].distance(&b)) + usize::from(again[1].distance(&b) < again[1].distance(&a))
        };
        sums.recorded += told([spoken(&self.again[0])?, spoken(&self.again[1])?]);
        sums.decoded += told([heard(&self.again[0])?, heard(&self.again[1])?]);
        sums.pairs += 1;
        Ok(())
    }
}

impl Sums {
    fn row(self, contrast: &str, codebooks: usize) -> Row {
        let n = self.pairs as f64;
        let share = |told: usize| told as f64 / (2.0 * n);
        let (recorded, decoded) = (share(self.recorded), share(self.decoded));
        Row { contrast: contrast.to_owned(), codebooks, pairs: self.pairs, recorded, decoded }
    }
}
