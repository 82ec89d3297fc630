//! `bench phones`: which sounds a codec keeps apart.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use swara_engine::codec::Codec;
use swara_engine::metrics::Spoken;
use swara_loader::audio::{AudioReader, EXTENSIONS};
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

/// Both words of a pair, both said again, and how many of these are nearer to their own.
struct Pair {
    words: [Spoken; 2],
    again: [(PathBuf, Vec<f32>); 2],
    told: usize,
}

#[derive(Default)]
struct Sums {
    pairs: usize,
    recorded: usize,
    decoded: usize,
}

pub fn run(common: &Common, args: &BenchPhones) -> Result {
    let contrasts = contrasts(&args.dir)?;
    if let Some(path) = args.json.as_deref().filter(|path| path.as_os_str() != "-") {
        output::check(path)?;
    }
    let codec = codec::open(common, &args.model)?;
    let format = codec.format();
    if format.channels != 1 {
        return Err(Failure::usage(format!("--model: {} has {} channels, words have one", codec.name(), format.channels)));
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
                pair.add(&codec, n, sums)?;
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
            let audio = file.extension().is_some_and(|e| EXTENSIONS.iter().any(|known| e.eq_ignore_ascii_case(known)));
            if stem.ends_with("_a") && !stem.starts_with('.') && audio && file.is_file() {
                pairs += 1;
                if pairs > MOST_PAIRS {
                    return Err(Failure::file("cannot compare", format!("more than {MOST_PAIRS} pairs"), dir));
                }
                contrasts.entry(name.to_string_lossy().into_owned()).or_default().push(file);
            }
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
            let path = first.with_file_name(format!("{stem}{which}.{}", extension.to_string_lossy()));
            let mut samples = Vec::new();
            for piece in &mut AudioReader::open(&path, Some(rate))? {
                samples.extend(piece?);
                if samples.len() > MOST_SECONDS * rate as usize {
                    return Err(Failure::file("cannot compare", format!("longer than {MOST_SECONDS} s"), &path));
                }
            }
            Ok((path, samples))
        };
        let heard = |(path, samples): &(PathBuf, Vec<f32>)| spoken(path, samples, rate);
        let (words, again) = ([word("a")?, word("b")?], [word("a_x")?, word("b_x")?]);
        if words[0].1 == words[1].1 {
            return Err(Failure::file("cannot compare", "the same word twice", &words[1].0));
        }
        let words = [heard(&words[0])?, heard(&words[1])?];
        let told = told(&words, &[heard(&again[0])?, heard(&again[1])?]);
        Ok(Pair { words, again, told })
    }

    fn add(&self, codec: &Codec, codebooks: usize, sums: &mut Sums) -> Result {
        let decoded = |(path, samples): &(PathBuf, Vec<f32>)| {
            let mut decoded = codec.decode(&codec.encode(samples, codebooks)?)?;
            decoded.truncate(samples.len());
            spoken(path, &decoded, codec.format().sample_rate)
        };
        sums.recorded += self.told;
        sums.decoded += told(&self.words, &[decoded(&self.again[0])?, decoded(&self.again[1])?]);
        sums.pairs += 1;
        Ok(())
    }
}

fn spoken(path: &Path, samples: &[f32], rate: u32) -> Result<Spoken> {
    Spoken::new(samples, rate).ok_or_else(|| Failure::file("cannot compare", "a word without a frame", path))
}

/// How many of two words said again are nearer to their own than to the other.
fn told(words: &[Spoken; 2], again: &[Spoken; 2]) -> usize {
    (0..2).filter(|&i| again[i].distance(&words[i]) < again[i].distance(&words[1 - i])).count()
}

impl Sums {
    fn row(self, contrast: &str, codebooks: usize) -> Row {
        let n = self.pairs as f64;
        let share = |told: usize| told as f64 / (2.0 * n);
        let (recorded, decoded) = (share(self.recorded), share(self.decoded));
        Row { contrast: contrast.to_owned(), codebooks, pairs: self.pairs, recorded, decoded }
    }
}
