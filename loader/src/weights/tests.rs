use std::fs;

use proptest::prelude::*;

use super::*;

fn file(header: &str, data: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat();
    raw(&bytes)
}

fn raw(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

fn why(header: &str, data: &[u8]) -> WeightsError {
    let (_dir, path) = file(header, data);
    match Weights::open(&path) {
        Err(Error::Weights { path: named, why }) if named == path => why,
        other => panic!("{other:?}"),
    }
}

fn tensor(name: &str, dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

fn one(dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!("{{{}}}", tensor("a", dtype, shape, begin, end))
}

fn two(a: (u64, u64), b: (u64, u64)) -> String {
    format!("{{{},{}}}", tensor("a", "U8", &format!("[{}]", a.1 - a.0), a.0, a.1), tensor("b", "U8", &format!("[{}]", b.1 - b.0), b.0, b.1))
}

#[test]
fn what_is_saved_is_read_by_us_and_by_the_reference_reader() {
    let (_dir, path) = raw(b"old");
    let (w, codes, half_bytes) = ([1.5_f32, -2.0, 0.25, 7.0, 8.0, 9.0], [1_i32, -1], [0x80_u8, 0x3f, 0x00]);
    let metadata: BTreeMap<String, String> = [("format".into(), "pt".into()), ("a\"b".into(), "ü".into())].into();
    let tensors = [
        TensorRef { name: "odd", dtype: Dtype::I8, shape: &[3], bytes: &half_bytes },
        TensorRef::f32("layer.weight", &[2, 3], &w),
        TensorRef::i32("codes", &[2, 1], &codes),
        TensorRef::f32("empty", &[0, 4], &[]),
        TensorRef::f32("scalar", &[], &w[..1]),
        TensorRef::u64("step", &[1], &[1 << 60]),
    ];
    save(&path, &tensors, &metadata).unwrap();

    let weights = Weights::open(&path).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["codes", "empty", "layer.weight", "odd", "scalar", "step"]);
    assert_eq!(weights.metadata(), &metadata);
    assert_eq!(weights.view("layer.weight").unwrap().shape, [2, 3]);
    assert!(matches!(weights.to_f32("layer.weight").unwrap(), Cow::Borrowed(v) if v == w));
    assert_eq!(*weights.to_f32("odd").unwrap(), [-128.0, 63.0, 0.0]);
    assert_eq!(*weights.to_i32("codes").unwrap(), codes);
    assert_eq!(*weights.to_u64("step").unwrap(), [1 << 60]);

    let bytes = fs::read(&path).unwrap();
    let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(reference.len(), tensors.len());
    for t in &tensors {
        let theirs = reference.tensor(t.name).unwrap();
        assert_eq!((theirs.shape(), theirs.data()), (t.shape, t.bytes), "{}", t.name);
    }
    let reversed: Vec<_> = tensors.iter().rev().copied().collect();
    save(&path, &reversed, &metadata).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn what_the_reference_writer_saves_is_read() {
    let data: Vec<u8> = (0..24).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, vec![3, 4], &data).unwrap();
    let bytes = safetensors::serialize([("x", view)], None).unwrap();
    let (_dir, path) = raw(&bytes);
    let weights = Weights::open(&path).unwrap();
    let view = weights.view("x").unwrap();
    assert_eq!((view.dtype, view.shape, view.bytes, view.count()), (Dtype::Bf16, &[3, 4][..], &data[..], 12));
    assert_eq!(weights.to_f32("x").unwrap()[1], half::bf16::from_bits(0x0302).to_f32());
}

#[test]
fn unaligned_tensors_are_copied() {
    let values = [1.0_f32, 2.0];
    // An odd header leaves the data unaligned.
    let mut header = one("F32", "[2]", 0, 8);
    while (8 + header.len()) % 4 != 1 {
        header.push(' ');
    }
    let (_dir, path) = file(&header, bytemuck::cast_slice(&values));
    assert!(matches!(Weights::open(&path).unwrap().to_f32("a").unwrap(), Cow::Owned(v) if v == values));
}

#[test]
fn each_lie_of_a_header_is_named() {
    use WeightsError::*;
    assert_eq!(why(&one("F32", "[2]", 0, 4), &[0; 4]), ByteCount { tensor: "a".into(), expected: 8, found: 4 });
    assert_eq!(why(&one("F32", "[2]", 0, 8), &[0; 4]), OffsetRange { tensor: "a".into(), begin: 0, end: 8, available: 4 });
    assert!(matches!(why(&one("F32", "[1]", 4, 0), &[0; 4]), OffsetRange { .. }));
    assert!(matches!(why(&one("F32", "[1]", u64::MAX, u64::MAX), &[0; 4]), OffsetRange { .. }));
    assert_eq!(why(&one("F9", "[1]", 0, 4), &[0; 4]), UnknownDtype { tensor: "a".into(), found: "F9".into() });
    for shape in
        ["[9223372036854775808]", "[4611686018427387904,4]", "[18446744073709551615,18446744073709551615]", "[0,9223372036854775808,8]"]
    {
        assert!(matches!(why(&one("F32", shape, 0, 4), &[0; 4]), ShapeOverflow { .. }), "{shape}");
    }
    assert_eq!(why(&two((0, 4), (2, 6)), &[0; 6]), Overlap { first: "a".into(), second: "b".into() });
    assert_eq!(why(&two((0, 4), (0, 4)), &[0; 4]), Overlap { first: "a".into(), second: "b".into() });
    assert_eq!(why(&two((0, 2), (4, 6)), &[0; 6]), Unused { at: 2 + 8 + two((0, 2), (4, 6)).len() as u64, bytes: 2 });
    assert!(matches!(why(&one("U8", "[2]", 0, 2), &[0; 5]), Unused { bytes: 3, .. }));
    let twice = format!("{{{},{}}}", tensor("a", "U8", "[1]", 0, 1), tensor("a", "U8", "[1]", 1, 2));
    assert_eq!(why(&twice, &[0; 2]), Duplicate("a".into()));
    for text in [
        "",
        "{",
        "[]",
        "null",
        r#"{"a":1}"#,
        r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,0]}}"#,
        "{} x",
        r#"{"__metadata__":{"k":1}}"#,
    ] {
        assert!(matches!(why(text, &[]), Header(_)), "{text}");
    }
    assert!(matches!(why(&one("F32", "[1.5]", 0, 4), &[0; 4]), Header(m) if m.contains("tensor a")));
}

#[test]
fn truncated_headers_are_refused() {
    let keep = |bytes: &[u8]| {
        let (_dir, path) = raw(bytes);
        match Weights::open(&path) {
            Err(Error::Weights { why, .. }) => why,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(keep(b""), WeightsError::TooShort { found: 0 });
    assert_eq!(keep(&[0; 7]), WeightsError::TooShort { found: 7 });
    assert_eq!(keep(&u64::MAX.to_le_bytes()), WeightsError::HeaderLength { claimed: u64::MAX, available: 0 });
    assert_eq!(keep(b"\x09\0\0\0\0\0\0\0{}"), WeightsError::HeaderLength { claimed: 9, available: 2 });
}

#[test]
fn every_difference_is_reported_at_once() {
    let (_dir, path) = raw(b"");
    let values = [0.0_f32; 4];
    let names: Vec<String> = (0..13).map(|i| format!("extra.{i:02}")).collect();
    let mut tensors = vec![TensorRef::f32("good", &[4], &values), TensorRef::f32("bent", &[2, 2], &values)];
    tensors.extend(names.iter().map(|n| TensorRef::f32(n, &[1], &values[..1])));
    save(&path, &tensors, &BTreeMap::new()).unwrap();
    let weights = Weights::open(&path).unwrap();
    let expected = [("good", vec![4]), ("bent", vec![4]), ("gone", vec![7, 1])].map(|(n, s)| (n.to_owned(), s));
    let error = weights.check(expected.clone()).unwrap_err().to_string();
    for part in ["1 missing: gone [7, 1]", "13 unknown: extra.00 [1]; ", "; and 3 more", "bent [2, 2], expected [4]", "w.safetensors"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert!(!error.contains("good") && !error.contains("extra.10"), "{error}");
    assert_eq!(weights.compare(expected).unknown.len(), 13);
    weights.check(weights.shapes()).unwrap();
}

#[test]
fn missing_tensors_and_wrong_dtypes_are_named() {
    let (_dir, path) = raw(b"");
    save(&path, &[TensorRef::f32("a", &[1], &[1.0])], &BTreeMap::new()).unwrap();
    let weights = Weights::open(&path).unwrap();
    assert!(weights.view("b").unwrap_err().to_string().contains("no tensor b"));
    assert!(weights.to_i32("a").unwrap_err().to_string().contains("tensor a: dtype F32, expected I32"));
}

#[test]
fn a_directory_opens_by_its_index() {
    let dir = tempfile::tempdir().unwrap();
    let index = |map: &str| fs::write(dir.path().join("model.safetensors.index.json"), format!(r#"{{"weight_map":{map}}}"#)).unwrap();
    for (file, name) in [("m-1.safetensors", "a"), ("m-2.safetensors", "b")] {
        save(dir.path().join(file), &[TensorRef::f32(name, &[1], &[3.0])], &BTreeMap::new()).unwrap();
    }
    let error = Weights::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("several weights (m-1.safetensors, m-2.safetensors), name one"), "{error}");
    index(r#"{"a":"m-1.safetensors","b":"m-2.safetensors"}"#);
    let weights = Weights::open(dir.path()).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(*weights.to_f32("b").unwrap(), [3.0]);

    for (map, part) in [
        (r#"{"a":"m-2.safetensors"}"#, "does not have it"),
        (r#"{"a":"../m-1.safetensors"}"#, "plain name"),
        (r#"{"a":"/etc/passwd"}"#, "plain name"),
        (r#"{"a":"no.safetensors"}"#, "no.safetensors"),
        (r#"{"a":7}"#, "not valid"),
    ] {
        index(map);
        let error = Weights::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_directory_opens_by_its_only_file_with_the_published_name_first() {
    let dir = tempfile::tempdir().unwrap();
    let names = || Weights::open(dir.path()).map(|w| w.names().map(str::to_owned).collect::<Vec<_>>()).map_err(|e| e.to_string());
    let data = |name| Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data")).join(name);
    fs::write(dir.path().join("README.md"), "").unwrap();
    assert!(names().unwrap_err().contains("is a directory without"));
    fs::copy(data("small.pt"), dir.path().join("any.th")).unwrap();
    assert_eq!(names().unwrap(), ["w"]);
    fs::copy(data("small.pt"), dir.path().join("other.bin")).unwrap();
    assert!(names().unwrap_err().contains("several weights (any.th, other.bin)"));
    let tensor = |name: &str, file: &str| save(dir.path().join(file), &[TensorRef::f32(name, &[1], &[3.0])], &BTreeMap::new()).unwrap();
    tensor("a", "one.safetensors");
    assert_eq!(names().unwrap(), ["a"]);
    fs::copy(data("untyped.pt"), dir.path().join("part.bin")).unwrap();
    fs::write(dir.path().join("pytorch_model.bin.index.json"), r#"{"weight_map":{"w":"other.bin","uint16":"part.bin"}}"#).unwrap();
    assert_eq!(names().unwrap(), ["float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64", "w"]);
    fs::copy(data("small.pt"), dir.path().join("pytorch_model.bin")).unwrap();
    assert_eq!(names().unwrap(), ["w"]);
    tensor("b", "model.safetensors");
    assert_eq!(names().unwrap(), ["b"]);
}

#[test]
fn a_configuration_names_files_beside_it_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str| save(dir.path().join(name), &[TensorRef::f32(&name[..1], &[1], &[3.0])], &BTreeMap::new()).unwrap();
    let names = |config: &str| {
        fs::write(dir.path().join("config.json"), config).unwrap();
        Weights::open(dir.path()).map(|weights| weights.names().map(str::to_owned).collect::<Vec<_>>())
    };
    write("q8.safetensors");
    write("codec.safetensors");
    assert!(names("{}").is_err());
    assert_eq!(names(r#"{"moshi_name": "q8.safetensors"}"#).unwrap(), ["q"]);
    write("model.safetensors");
    assert_eq!(names(r#"{"moshi_name": "q8.safetensors"}"#).unwrap(), ["q"]);
    for other in [r#"{"moshi_name": "gone.safetensors"}"#, r#"{"moshi_name": ""}"#, r#"{"moshi_name": null}"#, "["] {
        assert_eq!(names(other).unwrap(), ["m"], "{other}");
    }
    assert_eq!(named(dir.path(), "mimi_name").unwrap(), None);
    for outside in ["../q8.safetensors", "/etc/passwd", "a/..", ".."] {
        let error = names(&serde_json::json!({"moshi_name": outside}).to_string()).unwrap_err().to_string();
        assert!(error.contains("plain name"), "{error}");
    }
}

#[test]
fn the_config_of_a_directory_is_an_object_or_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    save(&path, &[TensorRef::f32("a", &[1], &[3.0])], &BTreeMap::new()).unwrap();
    let config = |text: &str| {
        fs::write(dir.path().join("config.json"), text).unwrap();
        Weights::open(dir.path()).unwrap().config()
    };
    assert_eq!(Weights::open(dir.path()).unwrap().config().unwrap(), None);
    assert_eq!(config(r#"{"sampling_rate":24000}"#).unwrap().unwrap()["sampling_rate"], 24000);
    assert_eq!(Weights::open(&path).unwrap().config().unwrap(), None);
    for text in ["", "{", "[]", "7", &"[".repeat(100_000)] {
        assert!(config(text).unwrap_err().to_string().contains("config.json"), "{text:.9}");
    }
}

#[test]
fn saving_what_does_not_fit_leaves_the_old_file() {
    let (_dir, path) = raw(b"old");
    let none = BTreeMap::new();
    assert!(save(&path, &[TensorRef::f32("a", &[3], &[0.0])], &none).is_err());
    assert!(save(&path, &[TensorRef::f32("a", &[usize::MAX, 2], &[0.0])], &none).is_err());
    let a = TensorRef::f32("a", &[1], &[0.0]);
    assert!(save(&path, &[a, a], &none).unwrap_err().to_string().contains("twice"));
    assert_eq!(fs::read(&path).unwrap(), b"old");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn corrupt_files_never_panic_and_never_lie(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let (_dir, path) = raw(b"");
        let values: Vec<f32> = (0..40).map(|i| i as f32).collect();
        let tensors = [TensorRef::f32("w", &[4, 5], &values[..20]), TensorRef::f32("b", &[20], &values[20..])];
        save(&path, &tensors, &[("k".to_owned(), "v".to_owned())].into()).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        for (at, to) in changes {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        fs::write(&path, &bytes).unwrap();
        if let Ok(weights) = Weights::open(&path) {
            for name in weights.names() {
                let view = weights.view(name).unwrap();
                prop_assert_eq!(view.shape.iter().product::<usize>(), view.count());
                let _ = weights.to_f32(name);
            }
            // What we take, the reference reader takes.
            prop_assert!(safetensors::SafeTensors::deserialize(&bytes).is_ok());
        }
    }
}

#[cfg(unix)]
#[test]
fn a_device_or_a_pipe_is_refused_without_being_opened() {
    let error = Weights::open("/dev/zero").unwrap_err().to_string();
    assert!(error.contains("not a regular file"), "{error}");
}
