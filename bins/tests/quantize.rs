//! `swara quantize --calib` with a small language model and a small Mimi of random weights (verify/golden).

mod common;

use common::{Room, golden, samples, wav};
use swara_engine::lm::{self, Conversation, Drawing, Lm, Session};
use swara_engine::rounding::{Method, Observed, Target, round};
use swara_kernels::{DType, Device, Tensor};
use swara_loader::quantized::Bits;
use swara_loader::weights::{Dtype, TensorRef, Weights, save};

/// Two streams of the case, frame by frame, as `text` and `codes`, and what the last of them hears as `heard.safetensors`.
fn conversations(room: &Room) -> Vec<(Vec<i32>, Vec<i32>)> {
    let case = Weights::open(golden("moshi_lm/moshi.safetensors")).unwrap();
    let &[streams, steps, width] = case.view("user").unwrap().shape else { panic!("user is [B, S, U]") };
    let (user, out) = (case.to_i32("user").unwrap(), case.to_i32("out").unwrap());
    let frames = steps - 1;
    std::fs::create_dir(room.path("talks")).unwrap();
    (0..streams.min(2))
        .map(|b| {
            // Complete one step later.
            let said = |k: usize| (1..steps).map(move |t| (b * steps + t) * 5 + k).map(|at| out[at]).collect::<Vec<i32>>();
            let heard = |k: usize| (0..frames).map(move |t| (b * steps + t) * width + k).map(|at| user[at]).collect::<Vec<i32>>();
            let theirs: Vec<i32> = (0..width).flat_map(heard).collect();
            let (text, codes) = (said(0), [(1..5).flat_map(said).collect(), theirs.clone()].concat());
            let shape = [8, frames];
            let tensors = [TensorRef::i32("codes", &shape, &codes), TensorRef::i32("text", &shape[1..], &text)];
            save(room.path(&format!("talks/{b}.safetensors")), &tensors, &Default::default()).unwrap();
            save(room.path("heard.safetensors"), &[TensorRef::i32("codes", &[4, frames], &theirs)], &Default::default()).unwrap();
            (text, codes)
        })
        .collect()
}

#[test]
fn calibrated_files_hold_what_was_chosen_and_talk() {
    let (room, model) = (Room::new(), golden("moshi_lm/weights/moshi"));
    let talks = conversations(&room);
    let quantize = |method: &str| {
        let fixed = ["quantize", &model, method, "--format", "int4-all", "--group", "32", "--calib", "talks", "--json"];
        room.json(&[&fixed[..], &["--method", method, "--device", "cpu"]].concat())
    };
    let error = |report: &serde_json::Value| report["parts"]["temporal, 4 bits"]["relative_output_error"].as_f64().unwrap();
    let nearest = quantize("rtn");
    assert_eq!(nearest["calibration_steps"], talks.iter().map(|(text, _)| text.len()).sum::<usize>());
    room.works(&["quantize", &model, "plain", "--format", "int4-all", "--group", "32"]);
    let bytes = |name: &str| std::fs::read(room.path(name).join("model.safetensors")).unwrap();
    assert!(bytes("plain") == bytes("rtn"), "a calibration changes nothing of the nearest codes");

    let file = Weights::open(&model).unwrap();
    let config = lm::check(&file).unwrap();
    let shown: Vec<_> = talks.iter().map(|(text, codes)| Conversation::of_frames(&config, text, codes).unwrap()).collect();
    for (name, method) in [("gptq", Method::Gptq), ("awq", Method::Awq)] {
        let report = quantize(name);
        assert!(error(&report) < 0.98 * error(&nearest), "{name}: {report} {nearest}");
        assert_eq!(report["parts"]["temporal, 4 bits"]["matrices"], nearest["parts"]["temporal, 4 bits"]["matrices"]);
        let (written, mut compared) = (Weights::open(room.path(name)).unwrap(), 0);
        lm::observe(&file, &shown, |site| {
            let observed = |seen: &lm::Seen| {
                let eight = !written.contains(&seen.places[0].0.replace("weight", "qweight"));
                let (bits, group) = if eight { (Bits::Eight, seen.columns) } else { (Bits::Four, 32) };
                let target = Target { bits, group, f16_scales: !eight };
                Observed { target, columns: seen.columns, values: seen.values.clone(), inputs: seen.inputs.clone() }
            };
            let matrices: Vec<Observed> = site.matrices.iter().map(observed).collect();
            let chosen = round(method, &matrices, site.norm.as_ref().map(|(norm, _)| norm))?;
            for ((codes, _), seen) in chosen.matrices.iter().zip(&site.matrices) {
                let (tensor, rows) = &seen.places[0];
                let values = written.quantized(tensor).unwrap().unwrap().dequantize();
                let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert!(bits(&codes.dequantize()) == bits(&values[rows.start * seen.columns..rows.end * seen.columns]), "{name}: {tensor}");
                compared += 1;
            }
            for (norm, names) in chosen.norm.iter().zip(site.norm.iter().map(|(_, names)| names)) {
                let tensor = &names[0][0];
                assert_eq!(written.to_f32(tensor).unwrap(), norm.tensors[0], "{tensor}");
                assert_ne!(written.to_f32(tensor).unwrap(), file.to_f32(tensor).unwrap(), "{tensor}");
            }
            Ok(())
        })
        .unwrap();
        assert!(compared > 20);
        assert!(room.works(&["inspect", name]).contains("complete"));
        let shown =
            room.works(&["talk", "--user-codes", "heard.safetensors", "--dump", "d.safetensors", "--model", name, "--device", "cpu"]);
        assert!(!shown.contains("error"));
    }
    let table =
        room.works(&["quantize", &model, "table", "--format", "int8", "--method", "gptq", "--calib", "heard.safetensors", "--steps", "9"]);
    assert!(table.contains("of outputs") && table.contains("temporal, 8 bits"), "{table}");
}

#[test]
fn audio_is_heard_and_answered() {
    let room = Room::new();
    let (model, mimi) = (golden("moshi_lm/weights/moshi"), golden("mimi/weights/kyutai.safetensors"));
    std::fs::create_dir(room.path("sounds")).unwrap();
    wav(&room, "sounds/a.wav", 24000, 1, &samples(30 * 96));
    wav(&room, "sounds/b.wav", 24000, 1, &samples(90 * 96));
    let args = ["quantize", &model, "out", "--format", "int4", "--group", "32", "--method", "awq", "--calib", "sounds", "--steps", "100"];
    let report = room.json(&[&args[..], &["--mimi", &mimi, "--device", "cpu", "--json"]].concat());
    assert_eq!((&report["calibration_steps"], &report["method"]), (&100.into(), &"awq".into()));
    room.refuses(&["quantize", &model, "no", "--format", "int4", "--method", "awq", "--calib", "sounds"], 2, "wants --mimi");
}

#[test]
fn calibrations_that_cannot_be_are_refused() {
    let (room, model) = (Room::new(), golden("moshi_lm/weights/moshi"));
    let refuses = |calib: &str, code: i32, says: &str| {
        let args =
            ["quantize", &model, "out", "--format", "int4", "--group", "32", "--method", "gptq", "--calib", calib, "--device", "cpu"];
        room.refuses(&args, code, says);
    };
    room.refuses(&["quantize", &model, "out", "--format", "int4", "--method", "gptq"], 2, "want --calib");
    std::fs::create_dir(room.path("empty")).unwrap();
    refuses("empty", 1, "neither audio nor codes");
    refuses("nowhere", 1, "nowhere");
    let store = |name: &str, tensors: &[TensorRef]| save(room.path(name), tensors, &Default::default()).unwrap();
    store("few.safetensors", &[TensorRef::i32("codes", &[3, 2], &[0; 6])]);
    refuses("few.safetensors", 1, "at least the 4 that the model hears");
    store("far.safetensors", &[TensorRef::i32("codes", &[4, 2], &[0, 0, 0, 32, 0, 0, 0, 0])]);
    refuses("far.safetensors", 1, "code 32 of codebook 1, frame 1, expected 0 to 31");
    store("none.safetensors", &[TensorRef::i32("codes", &[4, 0], &[])]);
    refuses("none.safetensors", 1, "expected [codebooks, frames]");
    store("text.safetensors", &[TensorRef::i32("codes", &[4, 1], &[0; 4]), TensorRef::i32("text", &[1], &[0])]);
    refuses("text.safetensors", 1, "expected 8 codebooks");
    store("word.safetensors", &[TensorRef::i32("codes", &[8, 1], &[0; 8]), TensorRef::i32("text", &[1], &[-5])]);
    refuses("word.safetensors", 1, "text -5");
    room.write("noise.safetensors", b"noise");
    refuses("noise.safetensors", 1, "noise.safetensors");
}

#[test]
fn gguf_files_say_what_their_codes_say() {
    let (room, model) = (Room::new(), golden("moshi_lm/weights/moshi"));
    conversations(&room);
    let said = |model: &str| {
        room.works(&[
            "talk",
            "--user-codes",
            "heard.safetensors",
            "--dump",
            "d.safetensors",
            "--greedy",
            "--model",
            model,
            "--device",
            "cpu",
        ]);
        let dump = Weights::open(room.path("d.safetensors")).unwrap();
        let logits: Vec<u32> = dump.to_f32("text_logits").unwrap().iter().map(|v| v.to_bits()).collect();
        (dump.to_i32("text").unwrap().into_owned(), dump.to_i32("codes").unwrap().into_owned(), logits)
    };
    for (format, four) in [("q8_0", false), ("q4_0", true), ("q4_k", true)] {
        let report = room.json(&["quantize", &model, format, "--format", format, "--json"]);
        let part = if four { "temporal, 4 bits" } else { "temporal, 8 bits" };
        let error = report["parts"][part]["relative_error"].as_f64().unwrap();
        assert!(error > 1e-3 && error < if four { 0.12 } else { 0.01 }, "{report}");
        let file = Weights::open(room.path(format)).unwrap();
        assert_eq!(file.metadata()["general.architecture"], "moshi");
        let projection = file.info("transformer.layers.0.self_attn.in_proj_weight").unwrap().0.name();
        assert_eq!(projection, if four { "Q4_0" } else { "Q8_0" });
        assert!(room.works(&["inspect", format]).contains("complete"));
        // The same values in f32.
        std::fs::create_dir(room.path("values")).unwrap();
        std::fs::copy(room.path(format).join("config.json"), room.path("values/config.json")).unwrap();
        let values: Vec<_> = file.names().map(|n| (n, file.info(n).unwrap().1, file.to_f32(n).unwrap())).collect();
        let refs: Vec<TensorRef> = values.iter().map(|(name, shape, values)| TensorRef::f32(name, shape, values)).collect();
        save(room.path("values/model.safetensors"), &refs, &Default::default()).unwrap();
        assert!(said(format) == said("values") && said(format) != said(&model), "{format}");
        std::fs::remove_dir_all(room.path("values")).unwrap();
    }
    let calibrated = ["--format", "q4_0", "--method", "gptq", "--calib", "talks", "--json", "--device", "cpu"];
    let report = room.json(&[&["quantize", &model, "gptq"], &calibrated[..]].concat());
    let nearest = room.json(&["quantize", &model, "rtn", "--format", "q4_0", "--calib", "talks", "--json", "--device", "cpu"]);
    let error = |report: &serde_json::Value| report["parts"]["temporal, 4 bits"]["relative_output_error"].as_f64().unwrap();
    assert!(error(&report) < 0.98 * error(&nearest), "{report} {nearest}");
    assert!(std::fs::read(room.path("rtn/model.gguf")).unwrap() == std::fs::read(room.path("q4_0/model.gguf")).unwrap());
    said("gptq");
    // Rows of 16 are no block: they stay, and so does the norm before them.
    room.works(&["quantize", &model, "awq", "--format", "q4_0", "--method", "awq", "--calib", "talks", "--device", "cpu"]);
    let [awq, whole] = [room.path("awq"), model.clone().into()].map(|path| Weights::open(path).unwrap());
    let same = |name: &str| awq.to_f32(name).unwrap() == whole.to_f32(name).unwrap();
    assert!(same("depformer.layers.0.norm1.alpha") && same("depformer.layers.0.self_attn.in_proj_weight"));
    assert!(!same("transformer.layers.0.norm1.alpha") && !same("transformer.layers.0.self_attn.in_proj_weight"));
    said("awq");
    room.refuses(&["quantize", &model, "no", "--format", "q4_k", "--calib", "talks"], 2, "without --calib");
    room.refuses(&["quantize", "q4_0", "no", "--format", "int8"], 1, "has codes already");
    room.refuses(&["quantize", "q4_0", "q4_0", "--format", "q8_0"], 2, "would overwrite what it reads");
    room.works(&["quantize", &model, "both", "--format", "int8"]);
    room.refuses(&["quantize", &model, "both", "--format", "q8_0"], 1, "read instead of model.gguf");
}

#[test]
fn packed_files_are_the_same_models() {
    let (room, model) = (Room::new(), golden("moshi_lm/weights/moshi"));
    conversations(&room);
    let said = |model: &str| {
        let shared = ["talk", "--user-codes", "heard.safetensors", "--dump", "d.safetensors", "--greedy", "--device", "cpu", "--model"];
        room.works(&[&shared[..], &[model]].concat());
        std::fs::read(room.path("d.safetensors")).unwrap()
    };
    for format in ["int8", "int4", "int4-all"] {
        let [plain, packed] = [vec![], vec!["--packed"]].map(|more| {
            let out = format!("{format}{}", more.len());
            let report = room.json(&[&["quantize", &model, &out, "--format", format, "--group", "32", "--json"], &more[..]].concat());
            (out, report)
        });
        assert_eq!(plain.1["parts"], packed.1["parts"]);
        let names = |of: &str| Weights::open(room.path(of)).unwrap().names().map(str::to_owned).collect::<Vec<_>>();
        assert!(names(&packed.0).iter().any(|name| name.ends_with("panels")) && names(&packed.0) != names(&plain.0));
        assert!(said(&packed.0) == said(&plain.0), "{format}");
        assert!(room.works(&["inspect", &packed.0]).contains("complete"));
        room.refuses(&["quantize", &packed.0, "no", "--format", "int8"], 1, "has codes already");
    }
    room.refuses(&["quantize", &model, "no", "--format", "q8_0", "--packed"], 2, "--packed");
}

/// What every tensor of `whole` is worth in `written`.
fn values(whole: &Weights, written: &Weights) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let value = |name: &str| {
        let codes = if written.contains(name) { written.quantized(name).unwrap() } else { Some(written.quantized(name).unwrap().unwrap()) };
        codes.map_or_else(|| written.to_f32(name).unwrap().into_owned(), |codes| codes.dequantize())
    };
    whole.names().map(|name| (name.to_owned(), whole.info(name).unwrap().1.to_vec(), value(name))).collect()
}

#[test]
fn matrices_in_the_names_of_transformers_are_rounded_one_by_one() {
    let room = Room::new();
    conversations(&room);
    let case = Weights::open(golden("csm/frames.safetensors")).unwrap();
    let mask: Vec<u8> = case.to_i32("mask").unwrap().iter().map(|&there| there as u8).collect();
    let (ids, shape) = (case.to_i32("ids").unwrap(), case.view("ids").unwrap().shape);
    let mask = TensorRef { name: "mask", dtype: Dtype::U8, shape, bytes: &mask };
    save(room.path("prompt.safetensors"), &[TensorRef::i32("ids", shape, &ids), mask], &Default::default()).unwrap();
    let talk = ["talk", "--user-codes", "heard.safetensors"];
    let speak = ["speak", "--prompt-ids", "prompt.safetensors", "--frames", "12"];
    for (model, command) in [(golden("moshi_hf"), &talk[..]), (golden("csm/weights"), &speak)] {
        let said = |model: &str| {
            room.works(
                &[command, &["--dump", "d.safetensors", "--greedy", "--device", "cpu", "--dtype", "f32", "--model", model]].concat(),
            );
            std::fs::read(room.path("d.safetensors")).unwrap()
        };
        let whole = Weights::open(&model).unwrap();
        for (format, more) in [("int8", &[][..]), ("int8", &["--packed"]), ("int4-all", &[]), ("int4-all", &["--packed"])] {
            let report = room.json(&[&["quantize", &model, "out", "--format", format, "--group", "32", "--json"], more].concat());
            // Two layers of six matrices or seven.
            let temporal = report["parts"].as_object().unwrap().iter().filter(|(part, _)| part.starts_with("temporal"));
            assert!(temporal.map(|(_, part)| part["matrices"].as_u64().unwrap()).sum::<u64>() >= 12, "{report}");
            let written = Weights::open(room.path("out")).unwrap();
            // The CSM has no rows that fill panels.
            let panels = written.names().any(|name| name.ends_with("panels"));
            assert_eq!(panels, !more.is_empty() && command == talk, "{model} {format}");
            std::fs::create_dir(room.path("values")).unwrap();
            std::fs::copy(room.path("out/config.json"), room.path("values/config.json")).unwrap();
            let values = values(&whole, &written);
            let refs: Vec<TensorRef> = values.iter().map(|(name, shape, values)| TensorRef::f32(name, shape, values)).collect();
            save(room.path("values/model.safetensors"), &refs, &Default::default()).unwrap();
            assert!(said("out") == said("values"), "{model} {format} {more:?}");
            assert!(said("out") != said(&model), "{model} {format}");
            assert!(room.works(&["inspect", "out"]).contains("complete"));
            std::fs::remove_dir_all(room.path("values")).unwrap();
            std::fs::remove_dir_all(room.path("out")).unwrap();
        }
    }
    let calibrated = ["--format", "int4", "--group", "32", "--method", "gptq", "--calib", "talks", "--device", "cpu"];
    room.refuses(&[&["quantize", &golden("moshi_hf"), "no"], &calibrated[..]].concat(), 1, "in the names of transformers");
    room.refuses(&[&["quantize", &golden("csm/weights"), "no"], &calibrated[..]].concat(), 2, "without --calib");
}

#[test]
fn a_codec_is_packed() {
    let (room, mimi) = (Room::new(), golden("mimi/weights/kyutai.safetensors"));
    wav(&room, "a.wav", 24000, 1, &samples(30 * 96));
    let report = room.json(&["quantize", &mimi, "out", "--format", "int8", "--json"]);
    assert!(report["parts"]["codec, 8 bits"]["matrices"].as_u64().unwrap() > 4, "{report}");
    let heard = |model: &str, more: &[&str]| {
        room.works(&[&["encode", "a.wav", "a.safetensors", "--device", "cpu", "--model", model], more].concat());
        room.works(&[&["decode", "a.safetensors", "b.wav", "--device", "cpu", "--float", "--model", model], more].concat());
        (
            Weights::open(room.path("a.safetensors")).unwrap().to_i32("codes").unwrap().into_owned(),
            std::fs::read(room.path("b.wav")).unwrap(),
        )
    };
    assert!(heard("out", &[]) == heard(&mimi, &["--dtype", "int8"]));
    assert!(heard("out", &[]).1 != heard(&mimi, &[]).1);
    assert!(room.works(&["inspect", "out"]).contains("complete"));
    room.refuses(&["quantize", "out", "no", "--format", "int8"], 1, "has codes already");
    room.refuses(&["quantize", &mimi, "no", "--format", "int4"], 2, "int8 alone");
    room.refuses(&["quantize", &mimi, "no", "--format", "q8_0"], 2, "int8 alone");
    room.refuses(&["quantize", &golden("snac/weights/24khz"), "no", "--format", "int8"], 1, "of other codecs");
}

/// A model that listens, with rows of 256.
fn wide(room: &Room) {
    let config = r#"{"card": 20, "text_card": 40, "dim": 256, "num_heads": 4, "num_layers": 1, "hidden_scale": 1.5, "context": 8, "norm": "rms_norm_f32",
        "gating": "silu", "positional_embedding": "rope", "n_q": 2, "dep_q": 0, "delays": [0, 0, 1]}"#;
    std::fs::create_dir(room.path("wide")).unwrap();
    std::fs::write(room.path("wide/config.json"), config).unwrap();
    let layer = "transformer.layers.0";
    let shapes = [
        ("text_emb.weight".to_owned(), vec![41, 256]),
        ("emb.0.weight".to_owned(), vec![21, 256]),
        ("emb.1.weight".to_owned(), vec![21, 256]),
        (format!("{layer}.norm1.alpha"), vec![1, 1, 256]),
        (format!("{layer}.norm2.alpha"), vec![1, 1, 256]),
        (format!("{layer}.self_attn.in_proj_weight"), vec![768, 256]),
        (format!("{layer}.self_attn.out_proj.weight"), vec![256, 256]),
        (format!("{layer}.gating.linear_in.weight"), vec![512, 256]),
        (format!("{layer}.gating.linear_out.weight"), vec![256, 256]),
        ("out_norm.alpha".to_owned(), vec![1, 1, 256]),
        ("text_linear.weight".to_owned(), vec![40, 256]),
    ];
    let tensors: Vec<_> = shapes.into_iter().map(|(name, shape)| (name, samples(shape.iter().product()), shape)).collect();
    let refs: Vec<TensorRef> = tensors.iter().map(|(name, values, shape)| TensorRef::f32(name, shape, values)).collect();
    save(room.path("wide/model.safetensors"), &refs, &Default::default()).unwrap();
}

#[test]
fn rows_of_whole_blocks_are_q4_k() {
    let room = Room::new();
    wide(&room);
    let report = room.json(&["quantize", "wide", "k", "--format", "q4_k", "--json"]);
    let error = report["parts"]["temporal, 4 bits"]["relative_error"].as_f64().unwrap();
    assert!(error > 0.01 && error < 0.12, "{report}");
    let file = Weights::open(room.path("k")).unwrap();
    let dtype = |name: &str| file.info(name).unwrap().0.name();
    assert_eq!([dtype("transformer.layers.0.gating.linear_in.weight"), dtype("text_linear.weight")], ["Q4_K", "Q8_0"]);
    let values: Vec<_> = file.names().map(|n| (n, file.info(n).unwrap().1, file.to_f32(n).unwrap())).collect();
    let refs: Vec<TensorRef> = values.iter().map(|(name, shape, values)| TensorRef::f32(name, shape, values)).collect();
    std::fs::create_dir(room.path("values")).unwrap();
    std::fs::copy(room.path("k/config.json"), room.path("values/config.json")).unwrap();
    save(room.path("values/model.safetensors"), &refs, &Default::default()).unwrap();
    let logits = |name: &str| -> Vec<Vec<f32>> {
        let lm = Lm::open(&room.path(name), &Device::Cpu, DType::F32).unwrap();
        let mut session = Session::new(&lm, &[Drawing::GREEDY]).unwrap();
        let codes = |t: i32| Tensor::from_slice(&Device::Cpu, &[t % 20, t * 7 % 20], [1, 2]).unwrap();
        (0..12).map(|t| session.step(&codes(t), None).unwrap().text_logits.to_vec().unwrap()).collect()
    };
    assert!(logits("k") == logits("values") && logits("k") != logits("wide"));
}
