//! `swara speak` with a small CSM and a small Mimi of random weights (verify/golden).

mod common;

use std::collections::BTreeMap;

use common::{Room, golden, wav};
use serde_json::Value;
use swara_loader::weights::{TensorRef, Weights, save};

/// Codebooks of the model.
const K: usize = 6;
/// Samples of a frame.
const HOP: usize = 96;

/// What transformers says, and of what.
struct Case {
    file: Weights,
    frames: usize,
}

impl Case {
    fn open() -> Case {
        let file = Weights::open(golden("csm/frames.safetensors")).unwrap();
        let frames = file.view("codes").unwrap().shape[0];
        Case { file, frames }
    }

    /// `[K, N]`
    fn codes(&self) -> Vec<i32> {
        let codes = self.file.to_i32("codes").unwrap();
        (0..K).flat_map(|k| (0..self.frames).map(move |t| t * K + k)).map(|at| codes[at]).collect()
    }

    fn prompt(&self, room: &Room) {
        let (ids, mask) = (self.file.to_i32("ids").unwrap(), self.file.to_i32("mask").unwrap());
        // What is not there may be anything.
        let ids: Vec<i32> = ids.iter().zip(&*mask).map(|(&id, &there)| if there == 1 { id } else { -77 }).collect();
        prompt(room, "prompt.safetensors", &ids, &mask.iter().map(|&there| there as u8).collect::<Vec<_>>());
    }

    fn context(&self, room: &Room) {
        wav(room, "context.wav", 24000, 1, &self.file.to_f32("wave").unwrap());
    }
}

fn prompt(room: &Room, name: &str, ids: &[i32], mask: &[u8]) {
    let ids_bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let shape = [ids.len() / (K + 1), K + 1];
    let header = serde_json::json!({
        "ids": {"dtype": "I32", "shape": shape, "data_offsets": [0, ids_bytes.len()]},
        "mask": {"dtype": "U8", "shape": shape, "data_offsets": [ids_bytes.len(), ids_bytes.len() + mask.len()]},
    })
    .to_string();
    let head = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    room.write(name, &[&head[..], &ids_bytes, mask].concat());
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn tensors(path: &str) -> Tensors {
    let file = Weights::open(golden(path)).unwrap();
    let tensor = |name: &str| (file.view(name).unwrap().shape.to_vec(), file.to_f32(name).unwrap().into_owned());
    file.names().map(|name| (name.to_owned(), tensor(name))).collect()
}

/// The model, its codec beside it as it is published, and its tokenizer, changed.
fn model(room: &Room, name: &str, change: impl FnOnce(&mut Tensors, &mut Value)) {
    let mut all = tensors("csm/weights");
    all.extend(tensors("mimi/weights/hf").into_iter().map(|(name, tensor)| (format!("codec_model.{name}"), tensor)));
    let mut config = serde_json::from_slice(&std::fs::read(golden("csm/weights/config.json")).unwrap()).unwrap();
    change(&mut all, &mut config);
    std::fs::create_dir(room.path(name)).unwrap();
    let refs: Vec<TensorRef> = all.iter().map(|(name, (shape, values))| TensorRef::f32(name, shape, values)).collect();
    save(room.path(name).join("model.safetensors"), &refs, &Default::default()).unwrap();
    std::fs::write(room.path(name).join("config.json"), config.to_string()).unwrap();
    std::fs::copy(golden("csm/weights/tokenizer.json"), room.path(name).join("tokenizer.json")).unwrap();
}

fn dumped(room: &Room) -> Vec<i32> {
    Weights::open(room.path("d.safetensors")).unwrap().to_i32("codes").unwrap().into_owned()
}

#[test]
fn what_it_says_to_rows_is_what_transformers_says() {
    let (room, case) = (Room::new(), Case::open());
    case.prompt(&room);
    let weights = golden("csm/weights");
    let frames = case.frames.to_string();
    for device in ["cpu", "emulator"] {
        let args = ["speak", "--prompt-ids", "prompt.safetensors", "--greedy", "--frames", &frames, "--dump", "d.safetensors", "--model"];
        let report = room.json(&[&args[..], &[&weights, "--device", device, "--json"]].concat());
        assert_eq!((&report["steps"], &report["ended"], &report["first_audio_ms"]), (&case.frames.into(), &false.into(), &Value::Null));
        assert_eq!(dumped(&room), case.codes(), "{device}");
        assert_eq!(Weights::open(room.path("d.safetensors")).unwrap().view("codes").unwrap().shape, [K, case.frames]);
        let report = room.json(&[&args[..], &[&weights, "--device", device, "--json", "--draft", "2:1"]].concat());
        assert_eq!(dumped(&room), case.codes(), "{device}");
        let [passes, right] = ["passes_per_frame", "right_per_pass"].map(|key| report["draft"][key].as_f64().unwrap());
        assert!((2.0..=5.0).contains(&passes) && (passes * (1.0 + right) - 5.0).abs() < 1e-9, "{report}");
    }
}

#[test]
fn text_and_sound_are_the_rows_that_transformers_makes_of_them() {
    let (room, case) = (Room::new(), Case::open());
    model(&room, "csm", |_, _| {});
    case.context(&room);
    let frames = case.frames.to_string();
    let args = ["speak", "--model", "csm", "--context", "context.wav=[0]Hello, తెలుగు.", "--text", "What they said.", "--speaker", "1"];
    let args = [&args[..], &["--greedy", "--frames", &frames, "--dump", "d.safetensors", "--device", "cpu", "--json", "out.wav"]].concat();
    let report = room.json(&args);
    assert_eq!(dumped(&room), case.codes());
    assert_eq!(report["prompt_rows"], case.file.view("ids").unwrap().shape[0]);
    for key in ["lm_p50", "decode_p50", "total_p50", "total_p99"] {
        assert!(report["frame_ms"][key].as_f64().unwrap() > 0.0, "{report}");
    }
    assert!(report["first_audio_ms"].as_f64().unwrap() > 0.0 && report["audio_seconds"].as_f64().unwrap() > 0.1, "{report}");
    // Frame by frame it sounds as the codec decodes the whole; 16 bits round it.
    let said = hound::WavReader::open(room.path("out.wav")).unwrap().into_samples::<i16>().map(Result::unwrap).collect::<Vec<_>>();
    assert_eq!(said.len(), case.frames * HOP);
    let codec =
        swara_engine::codec::Codec::open(golden("mimi/weights/hf").as_ref(), &swara_kernels::Device::Cpu, swara_kernels::DType::F32)
            .unwrap();
    // What the model knows beyond the codec's codes is said as the first.
    let values = case.codes().into_iter().map(|code| if code < 32 { code } else { 0 }).collect();
    let whole = codec.decode(&swara_engine::codec::Codes { codebooks: K, frames: case.frames, values, scales: Vec::new() }).unwrap();
    let off = said.iter().zip(&whole).map(|(&a, &b)| (f32::from(a) / 32768.0 - b.clamp(-1.0, 1.0)).abs()).fold(0.0, f32::max);
    assert!(off < 1e-4, "{off}");
    // The same codec in a file of its own.
    let mimi = golden("mimi/weights/hf");
    let first = std::fs::read(room.path("out.wav")).unwrap();
    room.works(&[&args[..], &["--mimi", &mimi]].concat());
    assert_eq!(std::fs::read(room.path("out.wav")).unwrap(), first);
}

#[test]
fn it_draws_by_its_seed() {
    let room = Room::new();
    model(&room, "csm", |_, _| {});
    let says = |more: &[&str]| {
        let args =
            ["speak", "--model", "csm", "--text", "నమస్కారం", "--frames", "12", "--device", "cpu", "--dump", "d.safetensors", "out.wav"];
        room.works(&[&args[..], more].concat());
        dumped(&room)
    };
    let first = says(&["--seed", "5"]);
    assert_eq!(first.len(), K * 12);
    assert_eq!(says(&["--seed", "5"]), first);
    assert_eq!(says(&["--seed", "5", "--draft", "3"]), first);
    assert_ne!(says(&["--seed", "6"]), first);
    assert_ne!(says(&["--seed", "5", "--temp", "0.3"]), first);
    assert_ne!(says(&["--seed", "5", "--speaker", "2"]), first);
    assert_eq!(says(&["--top-k", "1"]), says(&["--greedy"]));
    for format in ["bf16", "int8", "int4", "int4-all"] {
        assert_eq!(says(&["--greedy", "--format", format]).len(), K * 12, "{format}");
    }
    assert_eq!(says(&["--greedy", "--dtype", "int8"]).len(), K * 12);
    assert_eq!(says(&["--greedy", "--kv", "f32"]), says(&["--greedy"]));
    for kv in ["bf16", "int8"] {
        assert_eq!(says(&["--greedy", "--kv", kv]).len(), K * 12, "{kv}");
    }
}

/// What a file allows is not what is taken.
#[test]
fn memory_is_for_what_is_said() {
    let (room, case) = (Room::new(), Case::open());
    case.prompt(&room);
    model(&room, "csm", |_, _| {});
    model(&room, "long", |_, config| config["max_position_embeddings"] = (1 << 20).into());
    let taken = ["csm", "long"].map(|model| {
        let args =
            ["speak", "--prompt-ids", "prompt.safetensors", "--greedy", "--frames", "9", "--dump", "d.safetensors", "--model", model];
        let report = room.json(&[&args[..], &["--device", "emulator", "--json"]].concat());
        (report["peak_vram_mb"].as_f64().unwrap(), dumped(&room))
    });
    assert!(taken[0].0 > 0.0 && taken[0] == taken[1], "{taken:?}");
    let of = |kv: &str| {
        let args =
            ["speak", "--prompt-ids", "prompt.safetensors", "--greedy", "--frames", "9", "--dump", "d.safetensors", "--model", "csm"];
        room.json(&[&args[..], &["--device", "emulator", "--json", "--kv", kv]].concat())["peak_vram_mb"].as_f64().unwrap()
    };
    assert!(of("int8") < of("f32"), "codes take less");
}

/// A model whose first frame is (5, 0, ..), and whose second ends: the layers add nothing, and the head tells text from sound.
#[test]
fn a_frame_of_zeros_ends_it_and_is_not_heard() {
    let room = Room::new();
    model(&room, "ends", |all, _| {
        let fill = |tensor: &mut (Vec<usize>, Vec<f32>), dimension: usize| {
            let width = *tensor.0.last().unwrap();
            tensor.1.chunks_mut(width).for_each(|row| row.iter_mut().enumerate().for_each(|(i, v)| *v = f32::from(i == dimension)));
        };
        for (name, tensor) in all.iter_mut() {
            if name.contains("o_proj") || name.contains("down_proj") || name.contains("codebooks_head") {
                tensor.1.fill(0.0);
            }
        }
        fill(all.get_mut("embed_text_tokens.weight").unwrap(), 0);
        fill(all.get_mut("backbone_model.embed_tokens.embed_audio_tokens.weight").unwrap(), 1);
        let head = all.get_mut("lm_head.weight").unwrap();
        head.1.fill(0.0);
        (head.1[5 * 48], head.1[1]) = (1.0, 1.0);
    });
    let args = ["speak", "--model", "ends", "--text", "x", "--greedy", "--device", "cpu", "--dump", "d.safetensors", "out.wav", "--json"];
    let report = room.json(&args);
    assert_eq!((&report["steps"], &report["ended"]), (&1.into(), &true.into()));
    assert_eq!(dumped(&room), [5, 0, 0, 0, 0, 0]);
    assert_eq!(hound::WavReader::open(room.path("out.wav")).unwrap().duration() as usize, HOP);
}

#[test]
fn what_a_model_is_can_be_seen() {
    let room = Room::new();
    model(&room, "csm", |_, _| {});
    model(&room, "half", |all, _| drop(all.remove("lm_head.weight")));
    let says =
        "CSM, in the names of transformers, complete, with a codec: 2 layers of 48, 6 of 35 codes a frame, depth decoder of 2 layers of 24";
    let shown = room.works(&["inspect", "csm"]);
    assert!(shown.contains(says), "{shown}");
    assert!(room.works(&["inspect", &golden("csm/weights")]).contains("transformers, complete: 2 layers"));
    let shown = room.works(&["inspect", "half"]);
    assert!(shown.contains("that does not run") && shown.contains("lm_head.weight"), "{shown}");
    let rows = room.json(&["bench", "lm", "--model", "csm", "--steps", "3", "--device", "cpu", "--json", "-"]);
    assert!(rows[0]["bytes_per_step"].as_u64().unwrap() > 100_000 && rows[0]["context"] == 128, "{rows}");
    let drafts = ["--draft", "4", "--draft", "1:1", "--right", "1", "--right", "0"];
    let rows = room.json(&[&["bench", "lm", "--model", "csm", "--steps", "3", "--device", "cpu", "--json", "-"][..], &drafts].concat());
    let rows = rows.as_array().unwrap();
    assert_eq!(
        rows.iter().map(|row| row["draft"].as_str()).collect::<Vec<_>>(),
        [None, Some("4:0"), Some("4:0"), Some("1:1"), Some("1:1")]
    );
    let of = |key: &str| rows.iter().map(|row| row["guesses"][key].as_f64()).collect::<Vec<_>>();
    assert_eq!(of("passes_per_step"), [None, Some(1.0), Some(5.0), Some(3.0), Some(5.0)]);
    assert_eq!(of("right_per_pass"), [None, Some(4.0), Some(0.0), Some(2.0 / 3.0), Some(0.0)]);
    let bytes = |row: usize| rows[row]["bytes_per_step"].as_u64().unwrap();
    assert!(bytes(1) < bytes(0) && bytes(2) == bytes(0) && bytes(3) < bytes(4), "{rows:?}");
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_said() {
    let (room, case) = (Room::new(), Case::open());
    model(&room, "csm", |_, _| {});
    model(&room, "deaf", |all, _| all.retain(|name, _| !name.starts_with("codec_model.")));
    model(&room, "hostile", |_, config| config["num_key_value_heads"] = 3.into());
    model(&room, "small", |all, config| {
        config["text_vocab_size"] = 399.into();
        let table = all.get_mut("embed_text_tokens.weight").unwrap();
        *table = (vec![399, 48], table.1[..399 * 48].to_vec());
    });
    case.prompt(&room);
    case.context(&room);
    wav(&room, "silent.wav", 24000, 1, &[]);
    wav(&room, "long.wav", 24000, 1, &vec![0.1; 128 * HOP]);
    room.write("none.json", b"{}");
    let other = std::fs::read_to_string(golden("csm/weights/tokenizer.json")).unwrap().replace("<|end_of_text|>", "<|end_of_song|>");
    room.write("other.json", other.as_bytes());
    let speak = |more: &[&str], code, says: &str| room.refuses(&[&["speak", "--device", "cpu", "out.wav"], more].concat(), code, says);
    let text = |more: &[&str], code, says: &str| speak(&[&["--model", "csm", "--text", "x"], more].concat(), code, says);
    speak(&["--model", "csm", "--text", " \n"], 2, "nothing to say");
    speak(&["--model", "csm"], 2, "--text");
    speak(&["--model", "nowhere", "--text", "x"], 1, "nowhere");
    speak(&["--model", "deaf", "--text", "x"], 1, "no codec beside the model");
    speak(&["--model", "hostile", "--text", "x"], 1, "no multiple of the 3 of num_key_value_heads");
    speak(&["--model", "small", "--text", "x"], 1, "400 tokens, the model has 399");
    speak(&["--model", &golden("moshi_lm/weights/moshi"), "--text", "x"], 1, "no CSM");
    text(&["--mimi", "swara-te50"], 1, "codebooks of 1024, the model knows at most 35");
    text(&["--mimi", "context.wav"], 1, "context.wav");
    text(&["--tokenizer", "none.json"], 1, "no tokenizer.json");
    text(&["--tokenizer", "other.json"], 1, "no token <|end_of_text|>");
    text(&["--context", "context.wav"], 2, "expected WAV=TEXT");
    text(&["--context", "context.wav= "], 2, "expected WAV=TEXT");
    text(&["--context", "nowhere.wav=x"], 1, "nowhere.wav");
    text(&["--context", "silent.wav=x"], 1, "0 samples (silent.wav)");
    text(&["--context", "long.wav=x"], 1, "longer than the model's memory of 128 frames");
    text(&["--frames", "0"], 2, "1..=1125");
    text(&["--frames", "1126"], 2, "1..=1125");
    text(&["--frames", "124"], 1, "a prompt of 6 rows leaves room for 122 frames, not for 124 in a memory of 128");
    text(&["--dump", "out.wav"], 2, "the same file as OUT.wav");
    text(&["--speaker", "-1"], 2, "-1");
    text(&["--temp", "nan"], 2, "expected 0 to 100");
    text(&["--greedy", "--temp", "0.5"], 2, "cannot be used with");
    text(&["--draft", "2:2"], 2, "2 layers, expected 1 or more codes by 0 to 1");
    text(&["--prompt-ids", "prompt.safetensors"], 2, "cannot be used with");
    speak(&["--model", "csm", "--text", &"word ".repeat(100)], 1, "leaves room for no frame");
    // Before the weights are read, which are none.
    model(&room, "nan", |all, _| {
        all.iter_mut().filter(|(name, _)| !name.starts_with("codec_model.")).for_each(|(_, (_, values))| values.fill(f32::NAN));
    });
    let unread = |more: &[&str], code, says: &str| speak(&[&["--model", "nan", "--text", "x"], more].concat(), code, says);
    unread(&[], 1, "NaN");
    unread(&["--draft", "2:2"], 2, "--draft");
    unread(&["--mimi", "context.wav"], 1, "context.wav");
    unread(&["--tokenizer", "none.json"], 1, "none.json");
    unread(&["--context", "nowhere.wav=x"], 1, "nowhere.wav");
    unread(&["--frames", "124"], 1, "leaves room for 122 frames");
    unread(&["--dump", "nowhere/d.safetensors"], 1, "nowhere/d.safetensors");
    let speak_to = |output: &str| room.refuses(&["speak", "--device", "cpu", "--model", "nan", "--text", "x", output], 1, output);
    speak_to("nowhere/out.wav");
    room.refuses(&["speak", "--device", "cpu", "--model", "nan", "--prompt-ids", "gone", "--dump", "d.safetensors"], 1, "gone");
    let rows = |name: &str, ids: &[i32], mask: &[u8], says: &str| {
        prompt(&room, name, ids, mask);
        speak(&["--model", "csm", "--prompt-ids", name], 1, says);
    };
    rows("none.safetensors", &[], &[], "expected [1 or more, 7]");
    rows("negative.safetensors", &[0, 0, -1, 0, 0, 0, 0], &[1; 7], "id -1 of row 0, column 2");
    rows("far.safetensors", &[0, 0, 35, 0, 0, 0, 0], &[1; 7], "id 35");
    rows("text.safetensors", &[0, 0, 0, 0, 0, 0, 400], &[1; 7], "id 400");
    speak(&["--model", "csm", "--prompt-ids", &golden("csm/weights/model.safetensors")], 1, "ids");
}
