//! `--voice` and `--prompt` of `swara talk` and `swara-live`, with a small PersonaPlex whose codes are as many as the published one's.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Room, golden, samples, wav};
use swara_engine::codec::Codec;
use swara_engine::lm::{Drawing, Lm, Prompt, Quiet, Session};
use swara_kernels::case::SplitMix;
use swara_kernels::{DType, Device, Tensor};
use swara_loader::audio::to_s16;
use swara_loader::loudness::lufs;
use swara_loader::tokenizer::Tokenizer;
use swara_loader::weights::{TensorRef, Weights, save};

const CODES: usize = 2048;
const HOP: usize = 96;
const FRAMES: usize = 30;

fn random(name: &str, shape: &[usize], scale: f64) -> Vec<f32> {
    let mut rng = SplitMix(name.bytes().fold(7, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(byte.into())));
    (0..shape.iter().product()).map(|_| ((2.0 * rng.uniform() - 1.0) * scale) as f32).collect()
}

/// Tensors of a file under the names that `names` gives them, those that `rows` says having other rows and random values.
fn copy(
    from: &str,
    to: &Path,
    metadata: BTreeMap<String, String>,
    names: impl Fn(&str) -> Vec<String>,
    rows: impl Fn(&str) -> Option<usize>,
) {
    let file = Weights::open(from).unwrap();
    let tensor = |from: &str, name: String| {
        let mut shape = file.info(from).unwrap().1.to_vec();
        let values = match rows(from) {
            Some(rows) => {
                shape[0] = rows;
                let noise = random(&name, &shape, 1.0);
                // How often codes are used is no sign.
                if shape.len() == 1 { noise.iter().map(|v| 1.0 + v.abs()).collect() } else { noise }
            }
            None => file.to_f32(from).unwrap().into_owned(),
        };
        (name, shape, values)
    };
    let tensors: Vec<_> = file
        .names()
        .flat_map(|from| names(from).into_iter().map(move |name| (from, name)))
        .map(|(from, name)| tensor(from, name))
        .collect();
    let refs: Vec<TensorRef> = tensors.iter().map(|(name, shape, values)| TensorRef::f32(name, shape, values)).collect();
    save(to, &refs, &metadata).unwrap();
}

/// `model/`, with a vocabulary in it, `mimi.safetensors`, `voice.wav`, `in.wav` and `user.safetensors`.
fn room() -> Room {
    let room = Room::new();
    let vocabulary = golden("sentencepiece/unigram.model");
    let words = Tokenizer::open(&vocabulary).unwrap().size();
    std::fs::create_dir(room.path("model")).unwrap();
    std::fs::copy(&vocabulary, room.path("model/tokenizer.model")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(golden("personaplex/weights/config.json")).unwrap()).unwrap();
    // All of a prompt is remembered.
    (config["card"], config["text_card"], config["context"]) = (CODES.into(), words.into(), 300.into());
    room.write("model/config.json", config.to_string().as_bytes());
    copy(
        &golden("personaplex/weights"),
        &room.path("model/model.safetensors"),
        BTreeMap::new(),
        |name| vec![name.to_owned()],
        |name| match name {
            "text_emb.weight" | "depformer_text_emb.weight" => Some(words + 1),
            "text_linear.weight" => Some(words),
            _ if name.starts_with("emb.") || name.starts_with("depformer_emb.") => Some(CODES + 1),
            _ if name.starts_with("linears.") => Some(CODES),
            _ => None,
        },
    );
    let mimi = golden("mimi/weights/kyutai.safetensors");
    let file = Weights::open(&mimi).unwrap();
    let mut metadata = file.metadata().clone();
    let config = metadata["config"]
        .replace("\"codebook_size\": 32", "\"codebook_size\": 2048")
        .replace("\"num_quantizers\": 6", "\"num_quantizers\": 8");
    metadata.insert("config".into(), config);
    // Of 6 codebooks it becomes one of 8.
    let more = |name: &str| -> Vec<String> {
        let last = name.contains("rvq_rest.vq.layers.4.");
        (4..if last { 7 } else { 5 }).map(|k| name.replace("rvq_rest.vq.layers.4.", &format!("rvq_rest.vq.layers.{k}."))).collect()
    };
    copy(&mimi, &room.path("mimi.safetensors"), metadata, more, |name| {
        (name.ends_with("embedding_sum") || name.ends_with("cluster_usage")).then_some(CODES)
    });
    wav(&room, "voice.wav", 24000, 1, &samples(24000 / 2 + 5));
    wav(&room, "in.wav", 24000, 1, &samples(FRAMES * HOP));
    let codes: Vec<i32> = (0..8 * FRAMES as i32).map(|i| i * 37 % CODES as i32).collect();
    save(room.path("user.safetensors"), &[TensorRef::i32("codes", &[8, FRAMES], &codes)], &BTreeMap::new()).unwrap();
    room
}

const PROMPT: &str = "You enjoy having a good conversation. నమస్కారం!";

/// `codes [8, frames]` of a dump.
fn dumped(room: &Room, name: &str) -> (Vec<i32>, Vec<i32>) {
    let file = Weights::open(room.path(name)).unwrap();
    (file.to_i32("text").unwrap().into_owned(), file.to_i32("codes").unwrap().into_owned())
}

#[test]
fn a_prompt_and_a_voice_are_said_before_the_first_frame() {
    let room = room();
    let talk = |more: &[&str]| {
        let fixed =
            ["talk", "--model", "model", "--user-codes", "user.safetensors", "--dump", "dump.safetensors", "--greedy", "--device", "cpu"];
        let report = room.json(&[&fixed[..], &["--dtype", "f32", "--json"], more].concat());
        (report["prompt_steps"].as_u64().unwrap(), dumped(&room, "dump.safetensors"))
    };
    let (steps, found) = talk(&["--voice", "voice.wav", "--mimi", "mimi.safetensors", "--prompt", PROMPT]);

    let codec = Codec::open(&room.path("mimi.safetensors"), &Device::Cpu, DType::F32).unwrap();
    let lm = Lm::open(&room.path("model"), &Device::Cpu, DType::F32).unwrap();
    let text = Tokenizer::open(golden("sentencepiece/unigram.model")).unwrap().encode(&format!("<system> {PROMPT} <system>")).unwrap();
    let mut voice = samples(24000 / 2 + 5);
    let gain = 10f64.powf((-24.0 - lufs(&voice, 24000)) / 20.0) as f32;
    voice.iter_mut().for_each(|sample| *sample *= gain);
    let codes = codec.encode(&voice, 8).unwrap();
    let voice: Vec<i32> = (0..8 * codes.frames).map(|at| codes.values[at % 8 * codes.frames + at / 8]).collect();
    let prompt = Prompt::new(lm.config(), &Quiet::personaplex(), &voice, &text).unwrap();
    assert_eq!(steps, prompt.frames() as u64);
    assert_eq!(prompt.frames(), 126 + 6 + text.len() + 6);
    let mut session = Session::new(&lm, &[Drawing::GREEDY]).unwrap();
    session.prompt(&prompt, None).unwrap();
    let user = Weights::open(room.path("user.safetensors")).unwrap().to_i32("codes").unwrap().into_owned();
    let expected: Vec<Vec<i32>> = (0..FRAMES)
        .map(|t| {
            let heard: Vec<i32> = (0..8).map(|k| user[k * FRAMES + t]).collect();
            let step = session.step(&Tensor::from_slice(&Device::Cpu, &heard, [1, 8]).unwrap(), None).unwrap();
            step.complete.to_vec::<i32>().unwrap()
        })
        .collect();
    assert_eq!(found.0, expected.iter().map(|frame| frame[0]).collect::<Vec<_>>());
    assert_eq!(found.1, (1..9).flat_map(|k| expected.iter().map(move |frame| frame[k])).collect::<Vec<_>>());

    // Each has a say, and neither is told twice.
    let (only, words) = talk(&["--prompt", PROMPT]);
    assert_eq!((only, words.0.len()), (text.len() as u64 + 12, FRAMES));
    assert_ne!(words, found);
    assert_eq!(talk(&["--prompt", &format!("<system> {PROMPT} <system>")]), (only, words));
    assert_eq!(talk(&[]).1.0.len(), FRAMES - 1);
}

#[test]
fn every_frame_is_answered_live_as_over_a_file() {
    let room = room();
    let fixed = ["--model", "model", "--mimi", "mimi.safetensors", "--greedy", "--voice", "voice.wav", "--prompt", PROMPT];
    let (graphs, expected): (Vec<_>, Vec<_>) = ["cpu", "emulator"]
        .map(|device| {
            let talk = ["talk", "in.wav", "out.wav", "--device", device, "--format", "f32", "--json"];
            let report = room.json(&[&talk[..], &fixed].concat());
            let said: Vec<i16> = hound::WavReader::open(room.path("out.wav")).unwrap().into_samples().map(Result::unwrap).collect();
            (report["graphs"].as_u64().unwrap(), said)
        })
        .into_iter()
        .unzip();
    assert_eq!((expected[0].len(), graphs), (FRAMES * HOP, vec![0, FRAMES as u64 - 1]));
    let input: Vec<u8> = samples(FRAMES * HOP).iter().flat_map(|x| x.to_le_bytes()).collect();
    for (device, expected) in ["cpu", "emulator"].into_iter().zip(&expected) {
        let live = ["--device", device, "--weights", "f32", "--format", "f32", "--json", "live.json"];
        let output = room.live(&[&live[..], &fixed].concat(), &input);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said: Vec<i16> = output.stdout.chunks_exact(4).map(|x| to_s16(f32::from_le_bytes(x.try_into().unwrap()))).collect();
        assert_eq!(said, *expected, "{device}");
        let report: serde_json::Value = serde_json::from_slice(&std::fs::read(room.path("live.json")).unwrap()).unwrap();
        assert!(report["prompt_steps"].as_u64().unwrap() > 130, "{report}");
        assert_eq!(report["graphs"], if device == "cpu" { 0 } else { FRAMES });
    }
}

#[test]
fn what_cannot_be_told_is_refused() {
    let room = room();
    room.write("voice.pt", b"PK\x03\x04");
    room.write("text.wav", b"no sound");
    wav(&room, "silence.wav", 24000, 1, &[0.0; 24000]);
    wav(&room, "nothing.wav", 24000, 1, &[]);
    let user = ["--user-codes", "user.safetensors", "--dump", "d.safetensors", "--device", "cpu"];
    let refuses = |model: &str, more: &[&str], code: i32, says: &str| {
        room.refuses(&[&["talk", "--model", model], &user[..], more].concat(), code, says);
    };
    let mimi = ["--mimi", "mimi.safetensors", "--voice"];
    let voice = |file| [mimi[0], mimi[1], mimi[2], file];
    refuses("model", &voice("voice.pt"), 1, "expected a recording");
    refuses("model", &voice("text.wav"), 1, "text.wav");
    refuses("model", &voice("nowhere.wav"), 1, "nowhere.wav");
    refuses("model", &voice("silence.wav"), 1, "nothing but silence");
    refuses("model", &voice("nothing.wav"), 1, "nothing.wav");
    refuses("model", &["--voice", "voice.wav"], 2, "sound wants --mimi");
    refuses("model", &["--prompt", " \n"], 2, "--prompt: no words");
    refuses("model", &["--prompt", &"a ".repeat(40_000)], 1, "bytes, at most 65536 are encoded");
    refuses("model", &["--prompt", &"a ".repeat(11_000)], 1, "expected 1 to 10000");
    std::fs::rename(room.path("model/tokenizer.model"), room.path("vocabulary")).unwrap();
    refuses("model", &["--prompt", "hello"], 2, "wants a vocabulary");
    let [duplex, shared] = ["moshi", "shared"].map(|name| golden(&format!("moshi_lm/weights/{name}")));
    let narrow = [TensorRef::i32("codes", &[4, 1], &[0; 4])];
    save(room.path("narrow.safetensors"), &narrow, &BTreeMap::new()).unwrap();
    for (model, says) in [(&duplex, "pauses have 8 codes a frame, the model has 4"), (&shared, "says 5 codes a frame and hears 1")] {
        let args = ["talk", "--user-codes", "narrow.safetensors", "--dump", "d.safetensors", "--device", "cpu", "--model", model];
        let persona = ["--mimi", &golden("mimi/weights/kyutai.safetensors"), "--voice", "voice.wav"];
        room.refuses(&[&args[..], &persona].concat(), 1, says);
    }
    let live = ["--model", "model", "--mimi", "mimi.safetensors", "--device", "cpu"];
    room.live_refuses(&[&live[..], &["--voice", "voice.pt"]].concat(), 1, "expected a recording");
    room.live_refuses(&[&live[..], &["--prompt", ""]].concat(), 2, "--prompt: no words");
    room.live_refuses(&["--model", "model", "--device", "cpu"], 2, "--mimi: wants a codec");
}

#[test]
fn a_configuration_names_what_lies_beside_it() {
    let room = room();
    let config = std::fs::read_to_string(room.path("model/config.json")).unwrap();
    let talk = |more: &[&str]| {
        let args = ["talk", "in.wav", "out.wav", "--model", "model", "--greedy", "--prompt", PROMPT, "--device", "cpu"];
        room.works(&[&args[..], more].concat());
        std::fs::read(room.path("out.wav")).unwrap()
    };
    let expected = talk(&["--mimi", "mimi.safetensors"]);
    for (from, to) in [("model/model.safetensors", "model/model.q8.safetensors"), ("mimi.safetensors", "model/mimi-of-1.safetensors")] {
        std::fs::rename(room.path(from), room.path(to)).unwrap();
    }
    std::fs::copy(room.path("model/tokenizer.model"), room.path("model/other.model")).unwrap();
    let names = r#"{"moshi_name": "model.q8.safetensors", "mimi_name": "mimi-of-1.safetensors", "tokenizer_name": "tokenizer.model","#;
    room.write("model/config.json", config.replacen('{', names, 1).as_bytes());
    assert_eq!(talk(&[]), expected);
    room.write("model/config.json", config.replacen('{', r#"{"mimi_name": "../mimi.safetensors","#, 1).as_bytes());
    room.live_refuses(&["--model", "model", "--device", "cpu"], 1, "plain name");
}

#[test]
fn a_smaller_model_is_written_without_what_is_not_read() {
    let room = room();
    assert!(room.works(&["inspect", "model"]).contains("complete: 2 layers of 32, 8 of 2048 codes a frame are heard and 8 said"));
    let talk = |model: &str, more: &[&str]| {
        let args = ["talk", "--model", model, "--user-codes", "user.safetensors", "--dump", "d.safetensors", "--greedy", "--device", "cpu"];
        room.works(&[&args[..], more].concat());
        dumped(&room, "d.safetensors")
    };
    for (format, name) in [("int8", "eight"), ("int4-all", "four"), ("q8_0", "blocks")] {
        let output = room.swara(["quantize", "model", name, "--format", format, "--group", "32"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("are left out"), "{said}");
        let file = Weights::open(room.path(name)).unwrap();
        assert!(file.names().all(|name| !name.starts_with("linears.8") && !name.contains("gating.15")), "{name}");
        let stacked = ["depformer.layers.0.self_attn.out_proj.weight", "depformer.layers.0.self_attn.out_proj.qweight"];
        let rows = stacked.iter().find_map(|name| file.info(name)).unwrap().1[0];
        assert!(rows == 64 || rows == 1, "{name}: {rows} rows");
        assert!(room.works(&["inspect", name]).contains("complete"), "{name}");
        assert_eq!(talk(name, &["--prompt", PROMPT]).0.len(), FRAMES);
    }
    assert_eq!(talk("eight", &["--dtype", "f32"]), talk("model", &["--format", "int8", "--dtype", "f32"]));
}
