//! What `swara diagnose` makes of the folder of a run, whoever wrote it.

mod common;

use common::{CONFIG, Room, samples, wav};
use swara_engine::train::TrainConfig;

const HEADER: &str = "step,learning_rate,mel,wave,spectrum,adversarial,feature,commitment,codebook,discriminator,gradient_norm,snr_db,rho,amplitude,verdict,perplexities\n";

/// A line of a log: discriminator's loss (0: it did not learn), rho, amplitude, perplexities.
fn line(step: u64, discriminator: f64, rho: f64, amplitude: f64, perplexities: &str) -> String {
    let (adversarial, discriminator) = if discriminator > 0.0 { (1.0, discriminator.to_string()) } else { (0.0, String::new()) };
    format!("{step},1e-3,1.2,0.05,0.0,{adversarial},{adversarial},0.1,0.0,{discriminator},0.5,3.0,{rho},{amplitude},ok,{perplexities}\n")
}

/// The folder `name` of a run of the model in [`CONFIG`], whose codebooks have 16, 8 and 8 entries.
fn folder(room: &Room, name: &str, log: &str) {
    std::fs::create_dir_all(room.path(name).join("samples")).unwrap();
    // With all scales of the mel distance, and discriminators.
    let config = CONFIG.replace("crop_frames = 20", "crop_frames = 64").replace("mel_scales = [[10, 64], [20, 128]]\n", "");
    let against =
        "\n[adversarial]\nrule = { form = \"hinge\", reduction = \"mean\" }\n[adversarial.discriminators]\nstft = { windows = [64] }\n";
    room.write(&format!("{name}/config.toml"), (config + against).as_bytes());
    room.write(&format!("{name}/log.csv"), log.as_bytes());
}

fn well() -> String {
    let lines: String = (1..=4).map(|i| line(3 * i, 2.0, 0.9, 95.0, "12.0;6.0;7.5")).collect();
    format!("{HEADER}{lines}")
}

/// What is wrong with a run is not lost with the report of it.
#[track_caller]
fn says_the_verdict_and_fails(room: &Room, args: &[&str], says: &str) {
    let output = room.swara(args);
    let [found, error] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(found.contains("verdict") && found.contains("ok") && !found.contains("report: "), "{found}");
    assert!(error.starts_with("error: ") && error.contains(says), "{error}");
}

#[test]
fn a_run_becomes_one_page_that_needs_nothing_else() {
    let room = Room::new();
    folder(&room, "run", &well());
    let validation = "step,utterances,mel_distance,stoi,si_sdr_db,rho,amplitude\n6,2,1.5,0.7,2.0,0.8,90\n12,2,1.2,0.8,3.0,0.9,95\n";
    room.write("run/validation.csv", validation.as_bytes());
    let x = samples(32_000);
    for step in ["0000006", "0000012"] {
        wav(&room, &format!("run/samples/{step}-a_b-input.wav"), 16000, 1, &x);
        wav(&room, &format!("run/samples/{step}-a_b-output.wav"), 16000, 1, &x.iter().map(|v| 0.9 * v).collect::<Vec<_>>());
    }
    let report = room.json(&["diagnose", "run", "--json"]);
    assert_eq!((&report["verdict"], &report["since"], &report["step"]), (&"ok".into(), &3.into(), &12.into()));
    let page = std::fs::read_to_string(room.path("run/report.html")).unwrap();
    for part in [
        "<!doctype html>",
        "name=\"viewport\"",
        "color-scheme:light dark",
        "<b>ok</b>",
        "mel loss",
        "rho",
        "amplitude, %",
        "codebook 2",
        "discriminator",
        "si_sdr_db",
        "a_b, step 12",
        "PESQ",
        "data:audio/wav;base64,UklGR",
        "data:image/png;base64,iVBORw0KGgo",
        "</html>",
    ] {
        assert!(page.contains(part), "{part} in {}", &page[..2000]);
    }
    assert_eq!((page.matches("<svg").count(), page.matches("<audio").count(), page.matches("a_b, step").count()), (11, 2, 1));
    // Nothing is fetched, nothing runs.
    assert!(!page.contains("http") && !page.contains("<script") && !page.contains("url("));
    assert_eq!(page.matches("src=\"").count(), page.matches("src=\"data:").count());

    room.works(&["diagnose", "run", "--out", "elsewhere.html"]);
    assert_eq!(std::fs::read_to_string(room.path("elsewhere.html")).unwrap(), page);
    says_the_verdict_and_fails(&room, &["diagnose", "run", "--out", "nowhere/report.html"], "nowhere");
    says_the_verdict_and_fails(&room, &["diagnose", "run", "--json", "--out", "nowhere/report.html"], "nowhere");
    says_the_verdict_and_fails(&room, &["diagnose", "run", "--plot", "nowhere/plot.png"], "nowhere");
    room.refuses(&["diagnose", "run/samples/0000006-a_b-input.wav", "elsewhere.html", "--out", "r.html"], 2, "--out");
}

#[test]
fn each_failure_in_a_log_is_called_by_its_name_with_what_to_do() {
    let room = Room::new();
    let cases = [
        ("codebook-collapse", line(30, 0.0, 0.9, 95.0, "12.0;1.0;7.5"), "expire_below"),
        ("starved", line(30, 0.0, 0.05, 7.0, "12.0;6.0;7.5"), "k-means"),
        ("gain-collapse", line(30, 0.0, 0.9, 40.0, "12.0;6.0;7.5"), "loudness"),
        ("discriminator-won", line(30, 0.3, 0.9, 95.0, "12.0;6.0;7.5"), "learning rate"),
        ("phase-free", line(30, 1.9, 0.3, 98.0, "12.0;6.0;7.5"), "normal"),
    ];
    for (verdict, last, advice) in cases {
        let bad: String = (0..5).map(|i| last.replacen("30", &(18 + 3 * i).to_string(), 1)).collect();
        folder(&room, verdict, &format!("{}{bad}", well()));
        // The medians of five lines are bad from the third bad line on; codebooks count at once, discriminators once they are there.
        let since = if verdict == "codebook-collapse" { 18 } else { 24 };
        let report = room.json(&["diagnose", verdict, "--json"]);
        assert_eq!((&report["verdict"], &report["since"]), (&verdict.into(), &since.into()), "{report}");
        let page = std::fs::read_to_string(room.path(verdict).join("report.html")).unwrap();
        assert!(page.contains(&format!("<b>{verdict}</b>, since step {since}")) && page.contains(advice), "{}", &page[..3000]);
        assert_eq!(page.contains("class=\"verdict bad\""), verdict != "phase-free", "{verdict}");
        let text = room.works(&["diagnose", verdict]);
        assert!(text.contains(&format!("verdict: {verdict} since step {since}")) && text.contains("report.html"), "{text}");
    }
    // A log of before there were discriminators.
    let old = "step,mel,rho,amplitude,perplexities\n3,1.2,0.9,95,12.0;6.0;7.5\n6,1.2,0.9,95,12.0\n9,half";
    folder(&room, "old", old);
    assert_eq!(room.json(&["diagnose", "old", "--json"])["verdict"], "ok");
}

#[test]
fn what_somebody_else_wrote_stays_text_and_is_bounded() {
    let room = Room::new();
    let many = vec!["1e3"; 20_000].join(";");
    let log = format!(
        "{HEADER}{}{}{}",
        line(3, f64::INFINITY, 1e308, -1e308, &many),
        line(6, f64::NAN, -1e308, f64::INFINITY, "<script>"),
        line(9, 2.0, 0.9, 95.0, "12.0;6.0;7.5")
    );
    let name = "<script>alert(1)&lt;";
    folder(&room, name, &log);
    let model = CONFIG.replace("model = \"tiny\"", "model = \"<script>\\\"'&\"");
    room.write(&format!("{name}/config.toml"), model.as_bytes());
    room.write(&format!("{name}/samples/7-<script>-output.wav"), b"RIFF no sound at all");
    wav(&room, &format!("{name}/samples/9-<img src=x>-output.wav"), 48_000, 2, &samples(48_000 * 30));
    room.write(&format!("{name}/samples/notes.txt"), b"?");
    let output = room.swara(["diagnose", name]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && error.lines().count() == 1 && error.starts_with("warning: cannot read audio"), "{error}");
    let page = std::fs::read_to_string(room.path(name).join("report.html")).unwrap();
    assert!(!page.contains("<script") && !page.contains("<img src=x") && page.contains("&lt;script&gt;"));
    // Ten seconds at 24 kHz, though there were thirty at 48 kHz.
    assert!(page.len() < 3_000_000, "{}", page.len());

    folder(&room, "run", &well());
    std::fs::create_dir(room.path("run/report.html")).unwrap();
    says_the_verdict_and_fails(&room, &["diagnose", "run"], "report.html");
    folder(&room, "empty", HEADER);
    room.refuses(&["diagnose", "empty"], 1, "nothing has been logged");
    folder(&room, "unset", &well());
    std::fs::remove_file(room.path("unset/config.toml")).unwrap();
    room.refuses(&["diagnose", "unset"], 1, "config.toml");
    room.write("unset/config.toml", b"model = 3");
    room.refuses(&["diagnose", "unset"], 1, "config.toml");
    std::fs::create_dir_all(room.path("odd/log.csv")).unwrap();
    room.refuses(&["diagnose", "odd"], 1, "log.csv");
}

/// A run that went well, to its end: `bins/train/swara-te50`.
#[test]
fn the_run_of_the_bundled_codec_raises_no_alarm_at_any_line() {
    let room = Room::new();
    let own = |name: &str| std::fs::read_to_string(format!("{}/train/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let (toml, log) = (own("swara-te50-more.toml"), own("swara-te50/log.csv"));
    let config = TrainConfig::from_toml(&toml).unwrap();
    std::fs::create_dir(room.path("run")).unwrap();
    room.write("run/config.toml", toml.as_bytes());
    room.write("run/validation.csv", own("swara-te50/validation.csv").as_bytes());
    room.write("run/log.csv", log.as_bytes());
    let report = room.json(&["diagnose", "run", "--json"]);
    assert_eq!((&report["verdict"], &report["since"], &report["step"]), (&"ok".into(), &50.into(), &config.train.steps.into()));
    assert_eq!(report["alarms"].as_array().unwrap().len(), 0);
    let column = log.lines().next().unwrap().split(',').position(|name| name == "perplexities").unwrap();
    let last = log.lines().last().unwrap().split(',').nth(column).unwrap();
    assert_eq!(last.split(';').count(), config.architecture().unwrap().codebooks().len());
}

/// Harmonics of a gliding pitch.
fn voiced(n: usize, pitch: f32) -> Vec<f32> {
    let wave = |t: f32| {
        let angle = std::f32::consts::TAU * pitch * t * (1.0 + 0.3 * t);
        (1..6).map(|h| (angle * h as f32).sin() / h as f32).sum::<f32>() * (0.15 + 0.1 * (50.0 * t).sin())
    };
    (0..n).map(|i| wave(i as f32 / 16000.0)).collect()
}

/// A real run: the codec hardly learns, its discriminators do. Its sister, where both learn as they should, is called by no such name.
#[test]
fn a_run_whose_discriminators_won_is_called_so() {
    let room = Room::new();
    std::fs::create_dir_all(room.path("raw/a/en")).unwrap();
    for i in 0..3 {
        wav(&room, &format!("raw/a/en/{i}.wav"), 16000, 1, &voiced(20_000, 110.0 + 40.0 * i as f32));
    }
    room.works(&["prepare", "raw", "data"]);
    let wider = [("[4, 6, 8]", "[8, 16, 24]"), ("[8, 6, 4]", "[24, 16, 8]"), ("[4, 8]", "[4, 2]"), ("latent = 8", "latent = 16")];
    let longer =
        [("[16, 8, 8]", "[32, 16]"), ("crop_frames = 20", "crop_frames = 80"), ("steps = 12", "steps = 90"), ("_dim = 4", "_dim = 8")];
    let config = wider.into_iter().chain(longer).fold(CONFIG.to_owned(), |config, (from, to)| config.replace(from, to));
    for (name, codec, discriminators) in [("lost", 1e-7, 5e-3), ("kept", 1e-3, 5e-4)] {
        let against = format!(
            "[optimizer]\nlearning_rate = {codec}\n[adversarial]\nrule = {{ form = \"hinge\", reduction = \"mean\" }}\n\
             optimizer = {{ learning_rate = {discriminators}, warmup = 0, final_rate = 1.0 }}\n[adversarial.discriminators]\n\
             stft = {{ windows = [128, 64], filters = 16 }}\n"
        );
        room.write("config.toml", (config.clone() + &against).as_bytes());
        room.works(&["train", "codec", "--config", "config.toml", "--data", "data", "--out", name, "--device", "cpu", "-q"]);
        let diagnosis = room.json(&["diagnose", name, "--json"]);
        assert_eq!(diagnosis["verdict"] == "discriminator-won", name == "lost", "{name}: {diagnosis}");
        let page = std::fs::read_to_string(room.path(name).join("report.html")).unwrap();
        assert_eq!(page.contains("discriminator-won"), name == "lost", "{name}");
    }
}
