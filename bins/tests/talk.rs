//! `swara talk` with a small language model and a small Mimi of random weights (verify/golden).

mod common;

use common::{Room, golden, samples, vocabulary, wav};
use swara_engine::lm::ConditionRows;
use swara_loader::weights::{TensorRef, Weights, save};

/// The codes that the first stream of the case hears, as a codes file.
fn user_codes(room: &Room) -> Weights {
    let case = Weights::open(golden("moshi_lm/moshi.safetensors")).unwrap();
    let &[_, steps, width] = case.view("user").unwrap().shape else { panic!("user is [B, S, U]") };
    let user = case.to_i32("user").unwrap();
    let codes: Vec<i32> = (0..width).flat_map(|k| (0..steps).map(move |t| t * width + k)).map(|i| user[i]).collect();
    save(room.path("user.safetensors"), &[TensorRef::i32("codes", &[width, steps], &codes)], &Default::default()).unwrap();
    case
}

#[test]
fn what_it_says_is_what_moshi_says() {
    let room = Room::new();
    let case = user_codes(&room);
    let model = golden("moshi_lm/weights/moshi");
    for device in ["cpu", "emulator"] {
        let args =
            ["talk", "--user-codes", "user.safetensors", "--dump", "d.safetensors", "--greedy", "--model", &model, "--device", device];
        let report = room.json(&[&args[..], &["--json"]].concat());
        let steps = case.view("said").unwrap().shape[1];
        assert_eq!((&report["steps"], &report["first_audio_ms"]), (&steps.into(), &serde_json::Value::Null));
        assert_eq!(report["graphs"], if device == "cpu" { 0 } else { steps - 1 });
        let dump = Weights::open(room.path("d.safetensors")).unwrap();
        // Complete one step later.
        let out = case.to_i32("out").unwrap();
        let column = |k: usize| (1..steps).map(|t| out[t * 5 + k]).collect::<Vec<i32>>();
        assert_eq!(dump.to_i32("text").unwrap(), column(0));
        assert_eq!(dump.to_i32("codes").unwrap(), (1..5).flat_map(column).collect::<Vec<i32>>());
        assert_eq!(dump.view("codes").unwrap().shape, [4, steps - 1]);
        assert_eq!(dump.view("text_logits").unwrap().shape, [10, 40]);
        let (found, expected) = (dump.to_f32("text_logits").unwrap(), case.to_f32("text_logits").unwrap());
        let worst = found.iter().zip(&*expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4, "text logits are off by {worst}");
    }
}

/// What the first stream of a case hears, as a codes file, and what is complete from the second step on.
fn first_stream(room: &Room, case: &str) -> (Weights, Vec<i32>) {
    let case = Weights::open(golden(&format!("moshi_lm/{case}.safetensors"))).unwrap();
    let &[_, steps, width] = case.view("user").unwrap().shape else { panic!("user is [B, S, U]") };
    let user = case.to_i32("user").unwrap();
    let codes: Vec<i32> = (0..width).flat_map(|k| (0..steps).map(move |t| t * width + k)).map(|i| user[i]).collect();
    save(room.path("user.safetensors"), &[TensorRef::i32("codes", &[width, steps], &codes)], &Default::default()).unwrap();
    let (out, said) = (case.to_i32("out").unwrap(), case.view("out").unwrap().shape[2]);
    let text = (1..steps).map(|t| out[t * said]).collect();
    (case, text)
}

#[test]
fn it_is_conditioned_and_led_as_moshi_is() {
    let room = Room::new();
    let (_, expected) = first_stream(&room, "conditioned");
    let talk = ["talk", "--user-codes", "user.safetensors", "--dump", "d.safetensors", "--greedy"];
    let arguments = |model: &str, more: &[&str]| -> Vec<String> {
        talk.iter().chain(&["--model", &golden(&format!("moshi_lm/weights/{model}"))]).chain(more).map(|s| (*s).to_owned()).collect()
    };
    let text = |model: &str, more: &[&str]| {
        let args = arguments(model, more);
        room.works(&args.iter().map(String::as_str).collect::<Vec<_>>());
        Weights::open(room.path("d.safetensors")).unwrap().to_i32("text").unwrap().into_owned()
    };
    // Guidance is not one launch, and that is said once.
    let guided = ["--cfg", "2.5", "--device", "emulator"];
    let said = String::from_utf8(room.swara(arguments("conditioned", &guided)).stderr).unwrap();
    let warnings: Vec<&str> = said.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert!(matches!(warnings[..], [one] if one.contains("kernel by kernel: guidance")), "{said}");
    let plain = room.swara(arguments("conditioned", &[&guided[..], &["--plain-depth"]].concat()));
    assert_eq!(String::from_utf8(plain.stderr).unwrap().matches("warning: ").count(), 0);
    // Led away from Hibiki's worst description, as moshi leads it.
    for device in ["cpu", "emulator"] {
        assert_eq!(text("conditioned", &["--cfg", "2.5", "--device", device]), expected, "{device}");
    }
    let asked = ["--condition", "description=very_good", "--cfg", "2.5", "--against", "description=very_bad", "--device", "cpu"];
    assert_eq!(text("conditioned", &asked), expected);
    let plain = text("conditioned", &["--device", "cpu"]);
    assert_eq!(text("conditioned", &["--cfg", "1", "--device", "cpu"]), plain);
    assert!(plain != expected && text("conditioned", &["--condition", "speed=fast", "--device", "cpu"]) != plain);

    let (case, expected) = first_stream(&room, "crossed");
    let mut more = vec!["--condition".to_owned(), "genre=Jeff Buckley".to_owned()];
    for name in ["speaker", "melody", "mood"] {
        let find = |b: usize| format!("condition.{name}.{b}");
        // As long as the second stream's.
        let width = case.view(&find(0)).unwrap().shape[1];
        let rows = [0, 1].map(|b| case.view(&find(b)).unwrap().shape[0]).into_iter().max().unwrap();
        let (mut values, mut there) =
            (case.to_f32(&find(0)).unwrap().into_owned(), case.to_i32(&(find(0) + ".mask")).unwrap().into_owned());
        values.resize(rows * width, 0.5);
        there.resize(rows, 0);
        let mask = format!("{name}.mask");
        let shape = [1, rows, width];
        let tensors = [TensorRef::f32(name, &shape, &values), TensorRef::i32(&mask, &shape[1..2], &there)];
        save(room.path(&format!("{name}.safetensors")), &tensors, &Default::default()).unwrap();
        more.extend(["--condition".to_owned(), format!("{name}={name}.safetensors")]);
    }
    let more: Vec<&str> = more.iter().map(String::as_str).chain(["--device", "cpu"]).collect();
    assert_eq!(text("crossed", &more), expected);

    std::fs::remove_file(room.path("d.safetensors")).unwrap();
    let refuses = |model: &str, more: &[&str], code: i32, says: &str| {
        let args = arguments(model, &[more, &["--device", "cpu"]].concat());
        room.refuses(&args.iter().map(String::as_str).collect::<Vec<_>>(), code, says);
    };
    refuses("conditioned", &["--condition", "mood=good"], 1, "condition mood is none of the model's: which are description, speed");
    refuses("conditioned", &["--condition", "speed=late"], 1, "condition speed is \"late\", expected one of slow, fast");
    refuses("conditioned", &["--condition", "speed"], 2, "expected NAME=WORD");
    refuses("conditioned", &["--condition", "speed=fast", "--condition", "speed=slow"], 2, "speed twice");
    refuses("conditioned", &["--cfg", "nan"], 2, "expected -100 to 100");
    refuses("conditioned", &["--against", "speed=slow"], 2, "--cfg");
    refuses("sines", &["--cfg", "2"], 1, "guidance of a model that has no conditions");
    refuses("crossed", &["--condition", "speaker=nothing.safetensors"], 1, "nothing.safetensors");
    refuses("crossed", &["--condition", "speaker=melody.safetensors"], 1, "no tensor speaker");
    save(room.path("flat.safetensors"), &[TensorRef::f32("speaker", &[6], &[0.0; 6])], &Default::default()).unwrap();
    refuses("crossed", &["--condition", "speaker=flat.safetensors"], 1, "expected [T, D]");
    save(room.path("narrow.safetensors"), &[TensorRef::f32("speaker", &[2, 5], &[0.0; 10])], &Default::default()).unwrap();
    refuses("crossed", &["--condition", "speaker=narrow.safetensors"], 1, "rows of 5, expected of 6");
    let many = vec![0; 6 * (ConditionRows::MOST + 1)];
    let shape = [ConditionRows::MOST + 1, 6];
    save(room.path("many.safetensors"), &[TensorRef::i32("speaker", &shape, &many)], &Default::default()).unwrap();
    refuses("crossed", &["--condition", "speaker=many.safetensors"], 1, "condition speaker: 98310 values, expected 1 to 16384 rows of 6");
    let masked = [TensorRef::f32("speaker", &[2, 6], &[0.0; 12]), TensorRef::i32("speaker.mask", &[3], &[1; 3])];
    save(room.path("masked.safetensors"), &masked, &Default::default()).unwrap();
    refuses("crossed", &["--condition", "speaker=masked.safetensors"], 1, "condition speaker: 12 values and a mask of 3");
}

#[test]
fn with_sinks_it_says_what_streaming_llm_says() {
    let room = Room::new();
    let (_, expected) = first_stream(&room, "sinks/moshi");
    let model = golden("moshi_lm/weights/moshi");
    let talk = ["talk", "--user-codes", "user.safetensors", "--greedy", "--device", "cpu", "--model", &model];
    let says = |more: &[&str]| {
        room.works(&[&talk[..], &["--dump", "d.safetensors"], more].concat());
        Weights::open(room.path("d.safetensors")).unwrap().to_i32("text").unwrap().into_owned()
    };
    assert_eq!(says(&["--sinks", "4"]), expected);
    assert_ne!(says(&["--sinks", "3"]), expected);
    assert_eq!(says(&["--sinks", "0"]), says(&[]));
    assert_eq!(says(&["--embeddings", "int8"]).len(), expected.len());
    std::fs::remove_file(room.path("d.safetensors")).unwrap();
    let sinks = |more: &[&str], says: &str| room.refuses(&[&talk[..], &["--dump", "d.safetensors"], more].concat(), 2, says);
    sinks(&["--sinks", "24"], "--sinks: 24 sinks of a context of 24");
    sinks(&["--sinks", "9", "--context", "9"], "--sinks: 9 sinks of a context of 9");
    let bench = ["bench", "lm", "--model", &model, "--device", "cpu", "--sinks", "24"];
    room.refuses(&bench, 2, "--sinks: 24 sinks of a context of 24");
    room.refuses(&[&talk[..], &["--dump", "d.safetensors", "--embeddings", "int4"]].concat(), 2, "int4");
}

/// What it is conditioned on, and files that are not those of its configuration: of a model whose weights are none.
#[test]
fn what_is_asked_wrongly_is_said_before_a_model_is_read() {
    let room = Room::new();
    first_stream(&room, "conditioned");
    std::fs::create_dir(room.path("broken")).unwrap();
    let file = Weights::open(golden("moshi_lm/weights/conditioned/model.safetensors")).unwrap();
    let mut tensors: Vec<(&str, Vec<f32>)> = file.names().map(|name| (name, file.to_f32(name).unwrap().into_owned())).collect();
    tensors.iter_mut().for_each(|(_, values)| values[0] = f32::NAN);
    let refs: Vec<TensorRef> = tensors.iter().map(|(name, values)| TensorRef::f32(name, file.view(name).unwrap().shape, values)).collect();
    save(room.path("broken/model.safetensors"), &refs, &Default::default()).unwrap();
    let config = std::fs::read_to_string(golden("moshi_lm/weights/conditioned/config.json")).unwrap();
    std::fs::write(room.path("broken/config.json"), &config).unwrap();
    let talk = ["talk", "--user-codes", "user.safetensors", "--dump", "d.safetensors", "--model", "broken", "--device", "cpu"];
    let refuses = |more: &[&str], code: i32, says: &str| room.refuses(&[&talk[..], more].concat(), code, says);
    refuses(&[], 1, "NaN");
    refuses(&["--sinks", "3000"], 2, "--sinks: 3000 sinks of a context of");
    let mimi = golden("mimi/weights/kyutai.safetensors");
    let files = |more: &[&str], code: i32, says: &str| {
        let talk = ["talk", "--model", "broken", "--device", "cpu", "--mimi", &mimi];
        room.refuses(&[&talk[..], more].concat(), code, says);
    };
    wav(&room, "in.wav", 24000, 1, &samples(2000));
    files(&["in.wav", "out.wav"], 1, "NaN");
    files(&["gone.wav", "out.wav"], 1, "gone.wav");
    files(&["broken/config.json", "out.wav"], 1, "config.json");
    files(&["in.wav", "nowhere/out.wav"], 1, "nowhere/out.wav");
    files(&["in.wav", "out.wav", "--dump", "nowhere/d.safetensors"], 1, "nowhere/d.safetensors");
    files(&["--user-codes", "gone.safetensors", "--dump", "d.safetensors"], 1, "gone.safetensors");
    files(&["--user-codes", "in.wav", "--dump", "d.safetensors"], 1, "in.wav");
    refuses(&["--condition", "mood=good"], 1, "condition mood is none of the model's");
    refuses(&["--condition", "speed=late"], 1, "condition speed is \"late\"");
    refuses(&["--cfg", "2", "--against", "speed=late"], 1, "condition speed is \"late\"");
    refuses(&["--cfg", "1", "--against", "speed=slow"], 2, "nothing is led away from");
    refuses(&["--prompt", "You are kind."], 2, "wants a vocabulary");
    room.refuses(&["bench", "lm", "--model", "broken", "--draft", "2", "--device", "cpu"], 2, "only the depth decoder of a CSM");
    std::fs::write(room.path("broken/config.json"), config.replacen('{', "{\"moshi_name\": \"gone.safetensors\",", 1)).unwrap();
    let said = String::from_utf8(room.swara(talk).stderr).unwrap();
    assert!(
        said.lines().any(|line| line.contains("moshi_name") && line.contains("gone.safetensors") && line.contains("model.safetensors")),
        "{said}"
    );
}

#[test]
fn a_lora_is_of_what_it_says() {
    let room = Room::new();
    user_codes(&room);
    let case = Weights::open(golden("moshi_lm/lora/said.safetensors")).unwrap();
    let user = case.to_i32("user").unwrap();
    let &[_, steps, width] = case.view("user").unwrap().shape else { panic!("user is [B, S, U]") };
    let codes: Vec<i32> = (0..width).flat_map(|k| (0..steps).map(move |t| t * width + k)).map(|i| user[i]).collect();
    save(room.path("user.safetensors"), &[TensorRef::i32("codes", &[width, steps], &codes)], &Default::default()).unwrap();
    let model = golden("moshi_lm/weights/moshi");
    std::fs::create_dir(room.path("model")).unwrap();
    std::fs::copy(format!("{model}/model.safetensors"), room.path("model/model.safetensors")).unwrap();
    let config = std::fs::read_to_string(format!("{model}/config.json")).unwrap();
    std::fs::write(room.path("model/config.json"), config.replacen('{', "{\"lora_scaling\": 1.5,", 1)).unwrap();
    let lora = golden("moshi_lm/lora/lora.safetensors");
    let fixed = ["talk", "--user-codes", "user.safetensors", "--dump", "d.safetensors", "--greedy", "--device", "cpu", "--model", "model"];
    let text = |more: &[&str]| {
        room.works(&[&fixed[..], more].concat());
        Weights::open(room.path("d.safetensors")).unwrap().to_i32("text").unwrap().into_owned()
    };
    let out = case.to_i32("out").unwrap();
    let expected: Vec<i32> = (1..steps).map(|t| out[t * 5]).collect();
    assert_eq!(text(&["--lora", &lora]), expected);
    assert_ne!(text(&[]), expected);
    let wrong = golden("moshi_lm/weights/listener/model.safetensors");
    room.refuses(&[&fixed[..], &["--lora", &wrong]].concat(), 1, "listener/model.safetensors");
}

#[test]
fn a_quantized_model_says_what_the_rounded_one_says() {
    let room = Room::new();
    user_codes(&room);
    let model = golden("moshi_lm/weights/moshi");
    let talk = |arguments: &[&str]| {
        let fixed = ["talk", "--user-codes", "user.safetensors", "--dump", "d.safetensors", "--greedy", "--device", "cpu"];
        room.works(&[&fixed[..], arguments].concat());
        let dump = Weights::open(room.path("d.safetensors")).unwrap();
        (
            dump.to_i32("text").unwrap().into_owned(),
            dump.to_i32("codes").unwrap().into_owned(),
            dump.to_f32("text_logits").unwrap().into_owned(),
        )
    };
    let report = room.json(&["quantize", &model, "eight", "--format", "int8", "--json"]);
    assert!(report["parts"]["temporal, 8 bits"]["relative_error"].as_f64().unwrap() < 0.01, "{report}");
    assert!(Weights::open(room.path("eight")).unwrap().contains("text_linear.weight_scb"));
    let eight = talk(&["--model", "eight"]);
    assert!(eight == talk(&["--model", &model, "--format", "int8", "--dtype", "f32"]) && eight != talk(&["--model", &model]));

    let shown = room.works(&["quantize", &model, "four", "--format", "int4-all", "--group", "32"]);
    assert!(shown.contains("temporal, 4 bits") && shown.contains("head, 8 bits"), "{shown}");
    assert!(Weights::open(room.path("four")).unwrap().contains("transformer.layers.0.self_attn.in_proj_qweight"));
    assert!(room.works(&["inspect", "four"]).contains("complete"));
    assert_ne!(talk(&["--model", "four"]), eight);
    assert_eq!(talk(&["--model", "four", "--format", "int8", "--dtype", "f32"]), talk(&["--model", "four"]));

    // Tables as codes are those of the flag, and smaller.
    let report = room.json(&["quantize", &model, "tables", "--format", "int8", "--packed", "--embeddings", "int8", "--json"]);
    assert_eq!(report["parts"]["table, 8 bits"]["matrices"], 9, "{report}");
    let bytes = |model: &str| std::fs::metadata(room.path(&format!("{model}/model.safetensors"))).unwrap().len();
    assert!(bytes("tables") + 20_000 < bytes("eight"), "{} of {}", bytes("tables"), bytes("eight"));
    let tables = talk(&["--model", "tables"]);
    assert!(tables == talk(&["--model", "eight", "--embeddings", "int8"]) && tables != eight);
    assert_eq!(talk(&["--model", "tables", "--embeddings", "int8"]), tables);
    assert!(room.works(&["inspect", "tables"]).contains("complete"));
    // With a row that stands for another's.
    let hibiki = golden("moshi_lm/weights/conditioned");
    room.works(&["quantize", &hibiki, "hibiki", "--format", "int8", "--embeddings", "int8"]);
    let by_flags = ["--model", &hibiki, "--format", "int8", "--dtype", "f32", "--embeddings", "int8"];
    assert_eq!(talk(&["--model", "hibiki"]), talk(&by_flags));
    room.refuses(&["quantize", &model, "out", "--format", "q8_0", "--embeddings", "int8"], 2, "--embeddings");
    let mimi = golden("mimi/weights/kyutai.safetensors");
    room.refuses(&["quantize", &mimi, "out", "--format", "int8", "--embeddings", "int8"], 2, "--embeddings");

    room.refuses(&["quantize", "eight", "again", "--format", "int8"], 1, "has codes already");
    room.refuses(&["quantize", "eight", "eight", "--format", "int8"], 2, "would overwrite what it reads");
    room.refuses(&["quantize", "nothing", "out", "--format", "int8"], 1, "nothing");
    assert!(!room.path("again").exists() && !room.path("out").exists());
}

#[test]
fn what_a_model_is_can_be_seen() {
    let room = Room::new();
    let shown = room.works(&["inspect", &golden("moshi_lm/weights/moshi")]);
    assert!(shown.contains("in the names of moshi, complete: 2 layers of 32, 4 of 32 codes a frame are heard and 4 said"), "{shown}");
    std::fs::create_dir(room.path("half")).unwrap();
    std::fs::copy(golden("moshi_lm/weights/moshi/model.safetensors"), room.path("half/model.safetensors")).unwrap();
    assert!(room.works(&["inspect", "half"]).contains("that does not run"));
}

#[test]
fn it_answers_frame_by_frame_and_prints_its_words() {
    let room = Room::new();
    let (model, mimi) = (golden("moshi_lm/weights/moshi"), golden("mimi/weights/kyutai.safetensors"));
    let (frames, hop) = (40, 96);
    wav(&room, "in.wav", 24000, 1, &samples(frames * hop - 5));
    room.write("words.model", &vocabulary((0..40).map(|i| (format!("\u{2581}w{i}"), 1))));
    let with = |more: &[&str]| -> Vec<String> {
        let args = ["talk", "in.wav", "out.wav", "--mimi", &mimi, "--model", &model, "--tokenizer", "words.model", "--device", "cpu"];
        args.iter().chain(more).map(|a| (*a).to_string()).collect()
    };
    let works = |more: &[&str]| room.works(&with(more).iter().map(String::as_str).collect::<Vec<_>>());
    let words = works(&["--seed", "5"]);
    assert!(words.split_whitespace().count() > 5 && words.contains(" w"), "{words:?}");
    assert_eq!(hound::WavReader::open(room.path("out.wav")).unwrap().duration() as usize, (frames - 1) * hop);
    let first = std::fs::read(room.path("out.wav")).unwrap();
    assert_eq!(works(&["--seed", "5"]), words);
    assert_eq!(std::fs::read(room.path("out.wav")).unwrap(), first);
    assert_ne!(works(&["--seed", "6"]), words);
    let args = with(&["--json", "--temp", "0.5", "--top-k", "3", "--text-temp", "0", "--dump", "d.safetensors"]);
    let report = room.json(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(report["steps"], frames);
    for key in ["encode_p50", "lm_p50", "decode_p50", "total_p50", "total_p99"] {
        assert!(report["frame_ms"][key].as_f64().unwrap() > 0.0, "{report}");
    }
    assert!(report["first_audio_ms"].as_f64().unwrap() > 0.0 && report["peak_rss_mb"].as_f64().is_some_and(|mb| mb > 1.0), "{report}");
    assert_eq!(Weights::open(room.path("d.safetensors")).unwrap().view("text").unwrap().shape, [frames - 1]);
}

#[test]
fn on_cuda_a_frame_is_a_graph_and_says_the_same() {
    let room = Room::new();
    let (model, mimi) = (golden("moshi_lm/weights/moshi"), golden("mimi/weights/kyutai.safetensors"));
    wav(&room, "in.wav", 24000, 1, &samples(12 * 96));
    let talk = |device: &str| {
        let out = format!("{device}.wav");
        let args =
            ["talk", "in.wav", &out, "--mimi", &mimi, "--model", &model, "--greedy", "--format", "f32", "--device", device, "--json"];
        let report = room.json(&args);
        (report, hound::WavReader::open(room.path(&out)).unwrap().into_samples::<i16>().map(Result::unwrap).collect::<Vec<_>>())
    };
    let ((cpu, expected), (emulator, found)) = (talk("cpu"), talk("emulator"));
    // The first says nothing, and the second is the first of its kind.
    assert_eq!((&cpu["graphs"], &emulator["graphs"]), (&0.into(), &10.into()));
    assert!(emulator["frame_ms"]["lm_p50"].is_null() && emulator["frame_ms"]["total_p50"].as_f64().unwrap() > 0.0, "{emulator}");
    assert_eq!(found.len(), expected.len());
    let worst = found.iter().zip(&expected).map(|(a, b)| (i32::from(*a) - i32::from(*b)).abs()).max().unwrap();
    assert!(worst <= 2, "samples differ by {worst}");
}

#[test]
fn whole_frames_can_be_timed() {
    let room = Room::new();
    let (model, mimi) = (golden("moshi_lm/weights/moshi"), golden("mimi/weights/kyutai.safetensors"));
    let bench = ["bench", "lm", "--model", &model, "--steps", "3", "--device", "cpu", "--json", "-"];
    let step = &room.json(&bench)[0];
    let frame = &room.json(&[&bench[..], &["--mimi", &mimi, "--no-graph"]].concat())[0];
    assert_eq!((&step["codec"], &frame["codec"]), (&serde_json::Value::Null, &"kyutai".into()));
    assert!(frame["bytes_per_step"].as_u64() > step["bytes_per_step"].as_u64(), "{frame}");
    assert!(frame["launches_per_step"].is_null() && frame["step_ms_p50"].as_f64().unwrap() > 0.0, "{frame}");
    assert!(step["share_of_reading"].as_f64().is_some_and(|share| share.is_finite() && share > 0.0), "{step}");
    // No device here has dependent launches, which is said, and nothing is timed with them.
    let early = room.swara([&bench[..], &["--pdl"]].concat());
    let (rows, said) = (String::from_utf8(early.stdout).unwrap(), String::from_utf8(early.stderr).unwrap());
    assert_eq!((rows.matches("\"pdl\"").count(), said.matches("--pdl is without effect: cpu: ").count()), (1, 1), "{rows}{said}");
    let both = [&bench[..], &["--mimi", &mimi, "--batch", "2"]].concat();
    room.refuses(&both, 2, "cannot be used with");
    room.refuses(&[&bench[..], &["--mimi", "nowhere"]].concat(), 1, "no such file");
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_said() {
    let room = Room::new();
    user_codes(&room);
    let (model, mimi) = (golden("moshi_lm/weights/moshi"), golden("mimi/weights/kyutai.safetensors"));
    wav(&room, "in.wav", 24000, 1, &samples(2000));
    room.write("few.model", &vocabulary((0..7).map(|i| (format!("p{i}"), 1))));
    room.write("none.model", b"{}");
    let all = |args: &[&str]| -> Vec<String> { [&["talk", "--device", "cpu"], args].concat().iter().map(|a| (*a).to_string()).collect() };
    let refuses = |args: &[&str], code, says: &str| room.refuses(&all(args).iter().map(String::as_str).collect::<Vec<_>>(), code, says);
    let talk = ["in.wav", "out.wav", "--model", &model];
    let with = |more: &[&'static str]| -> Vec<&str> { [&talk[..], &["--mimi", &mimi], more].concat() };
    refuses(&with(&["--tokenizer", "few.model"]), 1, "7 pieces, the model has 40");
    refuses(&with(&["--tokenizer", "none.model"]), 1, "no sentencepiece model");
    refuses(&[&talk[..], &["--mimi", "swara-te50"]].concat(), 1, "codebooks of 1024, the model wants 32");
    refuses(&talk, 2, "--mimi");
    refuses(&["in.wav", "--model", &model, "--mimi", &mimi], 2, "OUT.wav");
    refuses(&["out.wav", "--user-codes", "user.safetensors", "--model", &model], 2, "cannot be used with");
    refuses(&with(&["--greedy", "--temp", "0.5"]), 2, "cannot be used with");
    refuses(&with(&["--dump", "out.wav"]), 2, "the same file as OUT.wav");
    refuses(&with(&["--dump", "./out.wav"]), 2, "the same file as OUT.wav");
    refuses(&with(&["--temp", "nan"]), 2, "expected 0 to 100");
    refuses(&["--user-codes", "in.wav", "--dump", "d.safetensors", "--model", &model], 1, "cannot read weights");
    refuses(&["--user-codes", "user.safetensors", "--dump", "d.safetensors", "--model", &mimi], 1, "no language model");
    refuses(&["--user-codes", "user.safetensors", "--dump", "d.safetensors", "--model", "nowhere"], 1, "no such file");
    let listener = golden("moshi_lm/weights/listener");
    refuses(&["--user-codes", "user.safetensors", "--dump", "d.safetensors", "--model", &listener], 1, "does not both hear and speak");
    let codes = vec![31, 32, 0, 0];
    save(room.path("far.safetensors"), &[TensorRef::i32("codes", &[4, 1], &codes)], &Default::default()).unwrap();
    refuses(
        &["--user-codes", "far.safetensors", "--dump", "d.safetensors", "--model", &model],
        1,
        "code 32 of codebook 1, frame 0, is not below 32",
    );
    save(room.path("thin.safetensors"), &[TensorRef::i32("codes", &[3, 1], &codes[..3])], &Default::default()).unwrap();
    refuses(&["--user-codes", "thin.safetensors", "--dump", "d.safetensors", "--model", &model], 1, "at least 4 codebooks");
}
