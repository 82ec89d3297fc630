use std::path::{Path, PathBuf};

use proptest::prelude::*;

use crate::weights::{Dtype, Format, Weights};
use crate::{Error, GgufError, WeightsError};

fn golden(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../verify/golden/quantized")).join(name)
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn pair(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&text(key)[..], &kind.to_le_bytes(), value].concat()
}

/// `dims` from the innermost.
fn info(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let dims = [&(dims.len() as u32).to_le_bytes()[..], bytemuck::cast_slice(dims)].concat();
    [&text(name)[..], &dims, &kind.to_le_bytes(), &offset.to_le_bytes()].concat()
}

fn head(version: u32, infos: u64, pairs: u64) -> Vec<u8> {
    [&b"GGUF"[..], &version.to_le_bytes(), &infos.to_le_bytes(), &pairs.to_le_bytes()].concat()
}

/// With `bytes` bytes of data, aligned to 32.
fn file(pairs: &[Vec<u8>], infos: &[Vec<u8>], bytes: usize) -> Vec<u8> {
    let mut file = [head(3, infos.len() as u64, pairs.len() as u64), pairs.concat(), infos.concat()].concat();
    file.resize(file.len().next_multiple_of(32) + bytes, 0);
    file
}

fn why(bytes: &[u8]) -> WeightsError {
    match Weights::from_bytes("x", bytes) {
        Err(Error::Weights { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

fn gguf(bytes: &[u8]) -> GgufError {
    match why(bytes) {
        WeightsError::Gguf(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_tensor_is_as_the_reference_reader_has_it() {
    let expected = Weights::open(golden("blocks.safetensors")).unwrap();
    let mut seen = 0;
    for name in ["blocks.gguf", "aligned.gguf"] {
        let weights = Weights::open(golden(name)).unwrap();
        assert_eq!(weights.format(), Format::Gguf);
        for name in weights.names() {
            let (found, expected) = (weights.to_f32(name).unwrap(), expected.to_f32(name).unwrap());
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&found), bits(&expected), "{name}");
            seen += 1;
        }
        for name in weights.names() {
            assert_eq!(weights.info(name).unwrap().1, expected.info(name).unwrap().1, "{name}");
            let view = weights.view(name).unwrap();
            assert_eq!(view.count(), view.shape.iter().product::<usize>(), "{name}");
            let quantized = weights.quantized(name).unwrap();
            assert_eq!(quantized.is_some(), name.contains('q') || name == "stacked", "{name}");
            assert!(quantized.is_none_or(|q| q.dequantize() == *weights.to_f32(name).unwrap()), "{name}");
        }
    }
    assert_eq!(seen, expected.names().count());
    assert_eq!(Weights::open(golden("blocks.gguf")).unwrap().info("q4_k"), Some((Dtype::Q4K, &[3, 512][..])));
}

#[test]
fn metadata_are_text_or_json() {
    let weights = Weights::open(golden("aligned.gguf")).unwrap();
    for (key, value) in [
        ("general.architecture", "swara"),
        ("general.alignment", "128"),
        ("a.text", "a \"text\"\n"),
        ("a.bool", "true"),
        ("a.i8", "-3"),
        ("a.u64", "9223372036854775808"),
        ("a.f32", "0.1"),
        ("a.f64", "1e-300"),
        ("a.nan", "null"),
        ("an.array", "[1,-2,3]"),
        ("a.vocabulary", r#"["<s>","▁swära","\""]"#),
    ] {
        assert_eq!(weights.metadata()[key], value, "{key}");
    }
}

#[test]
fn a_directory_with_a_single_gguf_opens() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(golden("blocks.gguf"), dir.path().join("model.q8.gguf")).unwrap();
    assert!(Weights::open(dir.path()).unwrap().contains("q8_0"));
    std::fs::copy(golden("blocks.safetensors"), dir.path().join("model.safetensors")).unwrap();
    assert_eq!(Weights::open(dir.path()).unwrap().format(), Format::Safetensors);
}

#[test]
fn a_file_may_be_empty_and_may_hold_empty_tensors() {
    assert_eq!(Weights::from_bytes("x", &head(2, 0, 0)).unwrap().names().count(), 0);
    let weights = Weights::from_bytes("x", &file(&[], &[info("none", &[0, 1 << 60], 0, 0), info("blocks", &[32, 0], 8, 0)], 0)).unwrap();
    assert_eq!(weights.info("none").unwrap().1, [1 << 60, 0]);
    assert_eq!((weights.to_f32("none").unwrap().len(), weights.to_f32("blocks").unwrap().len()), (0, 0));
}

#[test]
fn other_versions_byte_orders_and_types_are_named() {
    assert_eq!(gguf(&head(1, 0, 0)), GgufError::Version(1));
    assert_eq!(gguf(&head(4, 0, 0)), GgufError::Version(4));
    assert_eq!(gguf(&head(3_u32.swap_bytes(), 0, 0)), GgufError::ByteOrder);
    for (kind, name) in [(14, "Q6_K"), (4, "ggml type 4"), (u32::MAX, "ggml type 4294967295")] {
        let found = why(&file(&[], &[info("w", &[256], kind, 0)], 256));
        assert_eq!(found, WeightsError::UnknownDtype { tensor: "w".into(), found: name.into() });
    }
}

#[test]
fn every_prefix_of_a_file_is_refused() {
    for name in ["blocks.gguf", "aligned.gguf"] {
        let whole = std::fs::read(golden(name)).unwrap();
        // The last tensor is followed by padding.
        for len in 4..whole.len() - 128 {
            let _ = why(&whole[..len]);
        }
    }
    let unpadded = [head(3, 1, 0), info("none", &[0], 0, 0)].concat();
    assert!(matches!(gguf(&unpadded), GgufError::Truncated { field: "the padding", .. }));
    assert!(matches!(gguf(b"GGUF"), GgufError::Truncated { field: "the version", at: 4, limit: 4 }));
}

#[test]
fn counts_and_lengths_that_lie_are_refused() {
    let truncated = |bytes: &[u8], expected: &str| {
        assert!(matches!(gguf(bytes), GgufError::Truncated { field, .. } if field == expected), "{:?}", why(bytes));
    };
    truncated(&head(3, u64::MAX, 0), "a tensor's name");
    truncated(&head(3, 0, u64::MAX), "a metadata key");
    truncated(&[head(3, 0, 1), u64::MAX.to_le_bytes().to_vec()].concat(), "a metadata key");
    let array = |kind: u32, count: u64| pair("k", 9, &[&kind.to_le_bytes()[..], &count.to_le_bytes()].concat());
    truncated(&[head(3, 0, 1), array(8, u64::MAX)].concat(), "a metadata value");
    truncated(&[head(3, 0, 1), array(0, 1 << 40)].concat(), "a metadata value");
    let nested =
        |depth: usize| [&[9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0].repeat(depth)[..], &[0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7]].concat();
    let weights = Weights::from_bytes("x", &file(&[pair("k", 9, &nested(3))], &[], 0)).unwrap();
    assert_eq!(weights.metadata()["k"], "[[[[7]]]]");
    for depth in [4, 100_000] {
        assert_eq!(gguf(&file(&[pair("k", 9, &nested(depth))], &[], 0)), GgufError::Nested { key: "k".into(), max: 4 });
    }
    assert_eq!(gguf(&file(&[], &[info("w", &[1; 5], 0, 0)], 32)), GgufError::Rank { tensor: "w".into(), found: 5, max: 4 });
}

#[test]
fn fields_that_lie_are_refused() {
    assert_eq!(gguf(&file(&[pair("k", 13, &[0])], &[], 0)), GgufError::ValueType { key: "k".into(), found: 13 });
    assert_eq!(gguf(&file(&[pair("k", 0, &[1]), pair("k", 0, &[1])], &[], 0)), GgufError::DuplicateKey("k".into()));
    let not_text = [&1_u64.to_le_bytes()[..], &[0xff]].concat();
    assert_eq!(gguf(&file(&[pair("k", 8, &not_text)], &[], 0)), GgufError::Text { field: "a metadata text", at: 45 });
    for (kind, value) in [(4, &[0_u8; 4][..]), (4, &[48, 0, 0, 0]), (10, &[32, 0, 0, 0, 0, 0, 0, 0]), (8, &text("32"))] {
        assert!(matches!(gguf(&file(&[pair("general.alignment", kind, value)], &[], 0)), GgufError::Alignment(_)));
    }
}

#[test]
fn tensors_that_lie_are_refused() {
    use WeightsError::*;
    let one = |dims: &[u64], kind, offset, bytes| why(&file(&[], &[info("w", dims, kind, offset)], bytes));
    let w = || "w".to_owned();
    assert_eq!(one(&[9], 0, 0, 32), OffsetRange { tensor: w(), begin: 0, end: 36, available: 32 });
    assert_eq!(one(&[1], 0, 64, 64), OffsetRange { tensor: w(), begin: 64, end: 68, available: 64 });
    assert!(matches!(one(&[1], 0, u64::MAX - 31, 64), OffsetRange { .. }));
    assert_eq!(one(&[1], 0, 4, 32), GgufError::Misaligned { tensor: w(), offset: 4, alignment: 32 }.into());
    for (dims, kind) in [(&[33_u64][..], 8), (&[16, 2], 2), (&[128, 2], 12), (&[], 8)] {
        assert!(matches!(one(dims, kind, 0, 512), Gguf(GgufError::Blocks { .. })), "{dims:?}");
    }
    for dims in [&[u64::MAX, u64::MAX][..], &[1 << 62, 4], &[0, 1 << 62, 8], &[1 << 62]] {
        assert!(matches!(one(dims, 0, 0, 32), ShapeOverflow { .. }), "{dims:?}");
    }
    let two = |second: &str, offset| why(&file(&[], &[info("w", &[16], 0, 0), info(second, &[8], 0, offset)], 128));
    assert_eq!(two("v", 32), Overlap { first: w(), second: "v".into() });
    assert_eq!(two("w", 64), Duplicate(w()));
    assert!(matches!(two("v", 96), Unused { bytes: 32, .. }));
    assert!(matches!(two("v", 64), Unused { bytes: 32, .. }));
}

#[test]
fn a_scale_that_is_no_number_is_an_error_of_that_tensor_alone() {
    let mut bytes = file(&[], &[info("bad", &[64], 8, 0), info("good", &[1], 0, 96)], 128);
    let data = bytes.len() - 128;
    bytes[data + 34..data + 36].copy_from_slice(&half::f16::NAN.to_le_bytes());
    let weights = Weights::from_bytes("x", &bytes).unwrap();
    assert_eq!(*weights.to_f32("good").unwrap(), [0.0]);
    for error in [weights.to_f32("bad").unwrap_err(), weights.quantized("bad").unwrap_err()] {
        assert!(error.to_string().contains("tensor bad: scale in row 0, group 1 is NaN"), "{error}");
    }
    assert_eq!(weights.view("bad").unwrap().bytes.len(), 68);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn corrupt_files_never_panic_and_never_lie(
        second in any::<bool>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..8),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = std::fs::read(golden(if second { "aligned.gguf" } else { "blocks.gguf" })).unwrap();
        for (at, to, early) in changes {
            // Headers have most of what can be wrong.
            let at = at.index(if early { 900 } else { bytes.len() });
            bytes[at] = to;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()).max(4));
        }
        if let Ok(weights) = Weights::from_bytes("x", &bytes) {
            for name in weights.names() {
                let view = weights.view(name).unwrap();
                prop_assert_eq!(view.shape.iter().product::<usize>(), view.count());
                prop_assert!(weights.to_f32(name).is_err() || weights.to_f32(name).unwrap().len() == view.count());
                prop_assert!(weights.quantized(name).is_err() || view.dtype.block() == 1 || weights.quantized(name).unwrap().is_some());
            }
        }
    }
}
