use std::path::{Path, PathBuf};
use std::process::Command;

use plotters::prelude::{DrawingBackend, IntoDrawingArea, SVGBackend};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use swara_benches::ceilings::Ceilings;
use swara_benches::codec::Streams;
use swara_benches::compare::Verdict;
use swara_benches::kernels::Selection;
use swara_benches::lm::{How, Model, Times};
use swara_benches::{ceilings, picture, turns};
use swara_engine::codec::{self, mimi};
use swara_engine::csm::{self, Csm};
use swara_engine::lm::{self, Config, Lm};
use swara_kernels::ops::REGISTRY;
use swara_kernels::{Device, release_idle};
use swara_loader::weights::Weights;
use swara_loader::{input, output};

use crate::cli::{BenchCodec, BenchCompare, BenchKernels, BenchLm, BenchPlot, Common, Results};
use crate::codec as models;
use crate::failure::{Failure, Result};
use crate::picture::{Canvas, Pixels, save};
use crate::process::{forget_peak, peak_rss_mb, release_freed_memory};
use crate::terminal;

pub fn kernels(common: &Common, args: &BenchKernels) -> Result {
    let known: Vec<&str> = REGISTRY.iter().map(|op| op.name).collect();
    if let Some(name) = args.names.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(Failure::usage(format!("bench: no operation is called {name:?}")).hint(format!("known: {}", known.join(" "))));
    }
    let device = open(common)?;
    let selection = Selection { ops: &args.names, dtype: common.dtype()? };
    if args.in_turns {
        let cases = swara_benches::kernels::cases(&device, selection);
        return Ok(turns::serve(&device, &cases, std::io::stdin().lock(), std::io::stdout().lock())?);
    }
    let bar = terminal::progress(Some(0), "bench");
    let result = swara_benches::kernels::run(&device, selection, |op, done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        bar.set_message(op.to_owned());
    });
    bar.finish_and_clear();
    let (rows, ceilings) = result?;
    let dropped: usize = rows.iter().map(|row| row.throttled).sum();
    if dropped > 0 {
        let all = dropped + rows.iter().map(|row| row.samples).sum::<usize>();
        terminal::note(format!("{dropped} of {all} samples dropped: the machine was throttled or busy"));
    }
    let sheet = rows.iter().any(|row| row.share_of_datasheet.is_some());
    let head = ["op", "case", "dtype", "us", "p10", "p90", "warm us", "GB/s", "GFLOP/s", "ceiling", "data sheet"];
    let head = if sheet { &head[..] } else { &head[..head.len() - 1] };
    report(common, &args.results, "kernels", &device, &ceilings, &rows, head, |r| {
        let numbers = [r.median_us, r.p10_us, r.p90_us, r.batch_us, r.gb_s, r.gflop_s].map(|v| format!("{v:.1}"));
        let shares = [Some(r.share_of_ceiling), r.share_of_datasheet].into_iter().flatten().map(percent);
        [r.op.clone(), r.case.clone(), r.dtype.clone()].into_iter().chain(numbers).chain(shares).collect()
    })
}

pub fn codec(common: &Common, args: &BenchCodec) -> Result {
    let device = open(common)?;
    let codecs = args.models.iter().map(|model| models::open(common, model)).collect::<Result<Vec<_>>>()?;
    if let Some(codec) = codecs.iter().find(|codec| !codec.format().causal) {
        return Err(Failure::usage(format!("bench: {} is not causal and has no frames to time", codec.name())));
    }
    for codec in &codecs {
        models::codebooks(codec, args.codebooks)?;
    }
    let batches: Vec<usize> = args.batch.iter().map(|&n| n.into()).collect();
    let streams = args.streams.map_or(Streams::These(&batches), |most| Streams::UpTo(most.into()));
    let (rows, ceilings) =
        swara_benches::codec::run(&device, &codecs, args.codebooks.unwrap_or(usize::MAX), streams, args.frames as usize)?;
    let head = [
        "model",
        "dtype",
        "streams",
        "encode ms",
        "p99",
        "max",
        "decode ms",
        "p99",
        "max",
        "both p99",
        "real time",
        "launches/kernels",
        "KB/frame",
        "ceiling",
    ];
    report(common, &args.results, "codec", &device, &ceilings, &rows, &head, |r| {
        let encode = [r.encode_ms_p50, r.encode_ms_p99, r.encode_ms_max];
        let times = encode.into_iter().chain([r.decode_ms_p50, r.decode_ms_p99, r.decode_ms_max, r.total_ms_p99]);
        let factor = format!("{:.1} x", r.frame_ms / (r.encode_ms_p50 + r.decode_ms_p50));
        let counts = r.launches_per_frame.zip(r.kernels_per_frame);
        let launches = counts.map_or("-".to_owned(), |(launches, kernels)| format!("{launches}/{kernels}"));
        [r.model.clone(), r.dtype.clone(), r.batch.to_string()]
            .into_iter()
            .chain(times.map(|v| format!("{v:.3}")))
            .chain([factor, launches, (r.bytes_per_frame / 1000).to_string(), percent(r.share_of_ceiling)])
            .collect()
    })?;
    if args.streams.is_some() && args.results.json.is_none() && !common.json {
        for codec in &codecs {
            let most = rows.iter().filter(|row| row.model == codec.name() && row.in_time).map(|row| row.batch).max().unwrap_or(0);
            let frame = 1e3 / codec.format().frame_rate();
            terminal::say(format!("{}: {most} streams keep 99 of 100 frames within the {frame} ms that a frame lasts", codec.name()))?;
        }
    }
    Ok(())
}

pub fn lm(common: &Common, args: &BenchLm) -> Result {
    let device = open(common)?;
    let name = args.model.as_ref().map_or_else(|| args.config.clone(), |path| path.display().to_string());
    let codec = args.mimi.as_deref().map(|mimi| heard_and_said(common, &device, mimi)).transpose()?;
    if !args.draft.is_empty() && !is_csm(args)? {
        return Err(Failure::usage(
            "--draft: only the depth decoder of a CSM is drafted: that of a Moshi has other weights for every code",
        ));
    }
    let pdl = args.pdl && terminal::dependent_launches(&device);
    device.dependent_launches(false)?;
    let mut rows = Vec::new();
    let mut measured = None;
    for format in &args.format {
        // Else the peak of one format would be that of those before it.
        forget_peak();
        let format_of = match args.mimi {
            Some(_) => common.lm_format(Some(*format))?,
            None => format.of(common.dtype()?)?,
        };
        let lm = language_model(args, &device, args.memory.of(format_of))?;
        let loading = peak_rss_mb();
        release_freed_memory();
        forget_peak();
        let hows = hows(args, codec.as_ref(), pdl);
        let take = || args.batch.iter().map(|&batch| Times::take(&lm, batch.into(), args.steps as usize, &hows)).collect::<Vec<_>>();
        let (times, ceilings) = ceilings::around(&device, || take().into_iter().collect::<swara_engine::Result<Vec<_>>>())?;
        for times in times.iter().flatten() {
            terminal::warn_without_graph(times.no_graph.as_deref());
            terminal::warn_with_plain_depth(times.plain_depth_why.as_deref());
        }
        // Without what the bandwidth is measured with, which stays until here.
        let peaks = [loading, peak_rss_mb().map(|mb| if device == Device::Cpu { mb - ceilings::Reading::MIB } else { mb })];
        release_idle();
        for in_turns in &times {
            rows.extend(in_turns.iter().map(|times| times.row(&in_turns[0], &lm, &name, &format.name(), &ceilings, peaks)));
        }
        measured = Some(ceilings);
    }
    let Some(ceilings) = measured else { return Err(Failure::usage("bench: no format")) };
    let head = [
        "config",
        "format",
        "streams",
        "context",
        "kv",
        "pdl",
        "draft",
        "right",
        "passes",
        "ratio",
        "step ms",
        "p99",
        "max",
        "MB/step",
        "GB/s",
        "ceiling",
        "reading",
        "launches/kernels",
        "peak MB",
        "in steps",
    ];
    report(common, &args.results, "lm", &device, &ceilings, &rows, &head, |r| {
        let times = [r.step_ms_p50, r.step_ms_p99, r.step_ms_max].map(|v| format!("{v:.2}"));
        let rate = r.share_of_ceiling * r.ceiling_gb_s;
        let counts = r.launches_per_step.zip(r.kernels_per_step);
        let launches = counts.map_or("-".to_owned(), |(launches, kernels)| format!("{launches}/{kernels}"));
        let [peak, steps] = [r.peak_rss_mb, r.steps_peak_rss_mb].map(|mb| mb.map_or("-".to_owned(), |mb| format!("{mb:.0}")));
        let made = r.right.map_or(String::new(), |right| format!(" @{right}"));
        let draft = r.draft.as_ref().map(|draft| format!("{draft}{made}"));
        let guesses = r.guesses.as_ref().map(|g| [g.right_per_pass, g.passes_per_step, g.time_ratio].map(|v| format!("{v:.2}")));
        let guesses = [draft].into_iter().chain(guesses.map_or([const { None }; 3], |guesses| guesses.map(Some)));
        let pdl = if r.pdl { "yes" } else { "-" };
        [r.config.clone(), r.format.clone(), r.batch.to_string(), r.context.to_string(), r.kv.clone(), pdl.to_owned()]
            .into_iter()
            .chain(guesses.map(|cell| cell.unwrap_or_else(|| "-".to_owned())))
            .chain(times)
            .chain([(r.bytes_per_step / 1_000_000).to_string(), format!("{rate:.1}"), percent(r.share_of_ceiling)])
            .chain([r.share_of_reading.map_or("-".to_owned(), percent), launches, peak, steps])
            .collect()
    })
}

/// Without guesses, then with dependent launches, then with each draft, and with each share of them right.
fn hows<'a>(args: &BenchLm, codec: Option<&'a codec::Codec>, pdl: bool) -> Vec<How<'a>> {
    let plain = How { graphs: !args.no_graph, plain_depth: args.plain_depth, pdl: false, codec, draft: None, right: None };
    let shares = || if args.right.is_empty() { vec![None] } else { args.right.iter().copied().map(Some).collect() };
    let drafted = args.draft.iter().flat_map(|&draft| shares().into_iter().map(move |right| How { draft: Some(draft), right, ..plain }));
    [plain].into_iter().chain(pdl.then_some(How { pdl, ..plain })).chain(drafted).collect()
}

/// The Mimi of whole frames, with the codebooks of Moshi if it is random.
fn heard_and_said(common: &Common, device: &Device, mimi: &str) -> Result<codec::Codec> {
    match mimi {
        "random" => {
            let config = mimi::Config { num_quantizers: 8, ..mimi::Config::default() };
            Ok(codec::Codec::random_mimi(&config, device, models::stored(common, device)?)?)
        }
        file => models::open_file(common, device, Path::new(file)),
    }
}

/// Of a model's configuration.
const CONFIG_BYTES: u64 = 1 << 20;

/// Whether it is none of moshi's.
fn is_csm(args: &BenchLm) -> Result<bool> {
    Ok(match &args.model {
        Some(path) => csm::Layout::of(&Weights::open(path)?).is_some(),
        None => args.config == "csm-1b",
    })
}

fn language_model(args: &BenchLm, device: &Device, format: lm::Format) -> Result<Model> {
    if is_csm(args)? && (format.sinks > 0 || format.int8_tables) {
        return Err(Failure::usage("--sinks, --embeddings: a CSM has neither"));
    }
    if let Some(path) = &args.model {
        if is_csm(args)? {
            return Ok(Model::Csm(Box::new(Csm::open(path, device, format)?)));
        }
        args.memory.check(&lm::check(&Weights::open(path)?)?)?;
        return Ok(Model::Moshi(Box::new(Lm::open(path, device, format)?)));
    }
    let config = match args.config.as_str() {
        "csm-1b" => {
            return Ok(Model::Csm(Box::new(Csm::random(csm::Config::csm_1b(), device, format)?)));
        }
        "moshi-7b" => Config::moshi(),
        "moshi-1b" => Config::moshi_1b(),
        file => Config::from_json(&input::read_text(file, "read configuration", CONFIG_BYTES)?)?,
    };
    args.memory.check(&config)?;
    Ok(Model::Moshi(Box::new(Lm::random(config, device, format)?)))
}

/// A time on the emulator says nothing about a GPU, so none is given.
fn open(common: &Common) -> Result<Device> {
    let device = common.open_device()?;
    if device.name().starts_with("emulator") {
        return Err(
            Failure::usage("bench: the emulator's times say nothing about a GPU").hint("--device cpu or cuda; swara verify runs there")
        );
    }
    Ok(device)
}

pub fn compare(common: &Common, args: &BenchCompare) -> Result {
    let margin = args.margin / 100.0;
    let rows = if args.run {
        in_turns(common, args, margin)?
    } else {
        let (old, new) = (swara_benches::compare::read(&args.old)?, swara_benches::compare::read(&args.new)?);
        let files = format!("{}, {}", args.old.display(), args.new.display());
        swara_benches::compare::files(old, new, margin).map_err(|e| Failure::work(format!("cannot compare: {e} ({files})")))?
    };
    if !rows.iter().any(|row| row.ratio.is_some()) {
        return Err(Failure::work("cannot compare: nothing is in both"));
    }
    let of = |verdict| rows.iter().filter(|row| row.verdict == verdict).count();
    let (slower, ambiguous) = (of(Verdict::Slower), of(Verdict::Ambiguous));
    match json_file(common, args.json.as_deref()) {
        Some(path) => write(path, &rows)?,
        None => {
            let number = |v: Option<f64>, digits| v.map_or("-".to_owned(), |v| format!("{v:.digits$}"));
            let cells = rows.iter().map(|row| {
                let r = row.ratio;
                let interval = r.map_or("-".to_owned(), |r| format!("{:.3} - {:.3}", r.low, r.high));
                let verdict = format!("{:?}", row.verdict).to_lowercase();
                vec![
                    row.name(),
                    row.measure.to_owned(),
                    number(row.old, 3),
                    number(row.new, 3),
                    number(r.map(|r| r.ratio), 3),
                    interval,
                    verdict,
                ]
            });
            terminal::say(terminal::table(&["", "time", "old", "new", "ratio", "interval", "verdict"], &cells.collect::<Vec<_>>()))?;
            let counts = [Verdict::Same, Verdict::Faster, Verdict::Slower, Verdict::Ambiguous, Verdict::Added, Verdict::Removed];
            let counts = counts.map(|v| format!("{} {}", of(v), format!("{v:?}").to_lowercase())).join(", ");
            terminal::say(format!("{counts}; less than {} % is no difference", args.margin))?;
        }
    }
    if ambiguous > 0 && !args.run {
        terminal::note("ambiguous: the runs were disturbed; swara bench compare --run OLD_SWARA NEW_SWARA times two builds in turns");
    }
    match slower > 0 && !args.allow_slower {
        true => Err(Failure::said()),
        false => Ok(()),
    }
}

fn in_turns(common: &Common, args: &BenchCompare, margin: f64) -> Result<Vec<swara_benches::compare::Row>> {
    let build = |program: &Path| {
        // A bare name is a file here, as it is without --run.
        let path = if program.components().count() == 1 { Path::new(".").join(program) } else { program.to_owned() };
        let mut command = Command::new(path);
        command.args(["bench", "kernels", "--in-turns", "--device", common.device_spec()]).args(&args.names);
        command.args(common.arguments());
        command
    };
    let bar = terminal::progress(Some(0), "compare");
    let plan = turns::Plan { margin, ..Default::default() };
    let rows = turns::compare(&mut build(&args.old), &mut build(&args.new), plan, |op, done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
        bar.set_message(op.to_owned());
    });
    bar.finish_and_clear();
    Ok(rows?)
}

pub fn plot(args: &BenchPlot) -> Result {
    let ending = args.output.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    let svg = match ending.as_deref() {
        Some("svg") => true,
        Some("png") => false,
        _ => return Err(Failure::usage(format!("bench plot: the picture's name ends in .svg or .png ({})", args.output.display()))),
    };
    let rows = swara_benches::compare::read(&args.results)?;
    if rows[0].contains_key("op") {
        let rows: Vec<swara_benches::kernels::Row> = typed(rows, &args.results)?;
        draw(&args.output, svg, picture::roofline_size(&rows), Kernels(&rows))
    } else {
        let rows: Vec<swara_benches::codec::Row> = typed(rows, &args.results)?;
        draw(&args.output, svg, picture::latency_size(&rows), Codec(&rows))
    }
}

/// More rows, or a higher picture in pixels, are no picture.
const MAX_ROWS: usize = 500;
const MAX_HEIGHT: u32 = 10_000;

fn typed<R: DeserializeOwned>(rows: Vec<Map<String, Value>>, path: &Path) -> Result<Vec<R>> {
    if rows.len() > MAX_ROWS {
        return Err(Failure::file("cannot draw", format!("{} rows, expected at most {MAX_ROWS}", rows.len()), path));
    }
    let row = |(n, row)| {
        serde_json::from_value(Value::Object(row)).map_err(|e| Failure::file("cannot draw", format!("row {}: {e}", n + 1), path))
    };
    rows.into_iter().enumerate().map(row).collect()
}

/// What is drawn on whatever backend.
trait Drawing {
    fn on<B: DrawingBackend>(&self, area: &plotters::drawing::DrawingArea<B, plotters::coord::Shift>) -> Option<()>;
}

struct Kernels<'a>(&'a [swara_benches::kernels::Row]);
struct Codec<'a>(&'a [swara_benches::codec::Row]);

impl Drawing for Kernels<'_> {
    fn on<B: DrawingBackend>(&self, area: &plotters::drawing::DrawingArea<B, plotters::coord::Shift>) -> Option<()> {
        picture::roofline(area, self.0).ok()
    }
}

impl Drawing for Codec<'_> {
    fn on<B: DrawingBackend>(&self, area: &plotters::drawing::DrawingArea<B, plotters::coord::Shift>) -> Option<()> {
        picture::latency(area, self.0).ok()
    }
}

fn draw(path: &Path, svg: bool, (width, height): (u32, u32), drawing: impl Drawing) -> Result {
    let failed = || Failure::file("cannot draw", "the drawing library refused", path);
    if height > MAX_HEIGHT {
        return Err(Failure::file("cannot draw", "too many models or types for one picture", path));
    }
    if svg {
        let mut text = String::new();
        drawing.on(&SVGBackend::with_string(&mut text, (width, height)).into_drawing_area()).ok_or_else(failed)?;
        Ok(output::write(path, text.as_bytes())?)
    } else {
        let mut canvas = Canvas::new(width as usize, height as usize);
        drawing.on(&Pixels(&mut canvas).into_drawing_area()).ok_or_else(failed)?;
        save(&canvas, path)
    }
}

fn percent(share: f64) -> String {
    format!("{:.0}%", 100.0 * share)
}

fn json_file<'a>(common: &Common, json: Option<&'a Path>) -> Option<&'a Path> {
    json.or(common.json.then_some(Path::new("-")))
}

/// A JSON array to a file, or a table; and a file in the device's folder if asked.
#[allow(clippy::too_many_arguments, reason = "two callers")]
fn report<R: Serialize>(
    common: &Common,
    results: &Results,
    what: &str,
    device: &Device,
    ceilings: &Ceilings,
    rows: &[R],
    head: &[&str],
    cells: impl Fn(&R) -> Vec<String>,
) -> Result {
    if rows.is_empty() {
        return Err(Failure::work("bench: nothing was timed").hint("the CPU computes in f32 only"));
    }
    if ceilings.drift > 0.1 {
        let drift = percent(ceilings.drift);
        terminal::warn(format!("the ceilings before and after differ by {drift}: this machine is busy or throttled"));
    }
    if let Some(folder) = &results.save {
        let path = saved(folder, what, device)?;
        write(&path, rows)?;
        terminal::note(format!("results in {}", path.display()));
    }
    match json_file(common, results.json.as_deref()) {
        Some(path) => write(path, rows),
        None => {
            terminal::say(terminal::table(head, &rows.iter().map(cells).collect::<Vec<_>>()))?;
            say_ceilings(device, ceilings)
        }
    }
}

/// `FOLDER/DEVICE/bench-WHAT.json`; the CPU goes by its maker's name for it.
fn saved(folder: &Path, what: &str, device: &Device) -> Result<PathBuf> {
    let name = match device {
        Device::Cpu => swara_benches::cpu_name(),
        Device::Cuda(_) => device.name(),
    };
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    let folder = folder.join(words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-"));
    std::fs::create_dir_all(&folder).map_err(|e| Failure::file("cannot create folder", e, &folder))?;
    Ok(folder.join(format!("bench-{what}.json")))
}

fn say_ceilings(device: &Device, c: &Ceilings) -> Result {
    let narrow = match c.sgemm_flops {
        Some(sgemm) => format!(", gemm library {:.2}", sgemm * 1e-12),
        None => format!(", mma.sync f16 {:.1}, bf16 {:.1}", c.f16_flops * 1e-12, c.bf16_flops * 1e-12),
    };
    let (what, bytes, f32) = (if *device == Device::Cpu { "read" } else { "copy" }, c.bytes * 1e-9, c.f32_flops * 1e-12);
    terminal::say(format!("ceilings measured on {}: {what} {bytes:.1} GB/s; TFLOP/s: f32 {f32:.2}{narrow}", device.name()))
}

fn write<T: Serialize>(path: &Path, rows: &[T]) -> Result {
    if path == Path::new("-") {
        return terminal::say_json(&rows);
    }
    let mut text = serde_json::to_vec_pretty(rows).map_err(|e| Failure::work(format!("cannot write results: {e}")))?;
    text.push(b'\n');
    Ok(output::write(path, &text)?)
}
