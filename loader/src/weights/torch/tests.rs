//! Files of `torch.save` (verify/reference/torch_files.py wrote them) against the tensors that were in them, and files that lie.

use std::io::Write as _;
use std::path::PathBuf;

use super::*;
use crate::weights::{Dtype, Weights};
use crate::{Error, Result};

fn data(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data")).join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(data(name)).unwrap()
}

fn open(name: &str) -> Weights {
    Weights::open(data(name)).unwrap_or_else(|e| panic!("{e}"))
}

#[track_caller]
fn assert_same(found: &Weights, expected: &Weights) {
    assert_eq!(found.names().collect::<Vec<_>>(), expected.names().collect::<Vec<_>>());
    for name in expected.names() {
        let (found, expected) = (found.view(name).unwrap(), expected.view(name).unwrap());
        assert_eq!((found.dtype, found.shape, found.bytes), (expected.dtype, expected.shape, expected.bytes), "{name}");
    }
}

fn refusal(result: Result<Weights>) -> String {
    match result {
        Err(Error::Weights { why, .. }) => why.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_state_dict_is_found_however_a_project_wraps_it() {
    let expected = open("codec.safetensors");
    for name in ["codec.th", "codec.pth", "codec.bin", "codec.ckpt"] {
        assert_same(&open(name), &expected);
    }
    assert_same(&open("halves.pt"), &open("halves.safetensors"));
    assert!(open("codec.th").metadata().is_empty() && open("halves.pt").metadata().is_empty());
}

#[test]
fn every_layout_and_dtype_is_read_in_every_container() {
    let expected = open("layouts.safetensors");
    for name in ["layouts.pt", "layouts4.pt", "layouts-legacy.pt", "layouts-deflated.pt", "layouts-zip64.pt"] {
        assert_same(&open(name), &expected);
    }
    assert_eq!((open("layouts.pt").format(), expected.format()), (Format::TorchZip, Format::Safetensors));
    assert_eq!(open("layouts-legacy.pt").format(), Format::TorchLegacy);
    assert_same(&open("untyped.pt"), &open("untyped.safetensors"));
}

#[test]
fn tensors_are_read_in_place_where_the_file_holds_them_row_by_row() {
    let file = std::fs::File::open(data("layouts.pt")).unwrap().metadata().unwrap().len() as usize;
    let weights = open("layouts.pt");
    let base = weights.view("base").unwrap().bytes.as_ptr() as usize;
    for (name, in_place) in [("slice", true), ("corner", true), ("transposed", false), ("steps", false)] {
        let at = weights.view(name).unwrap().bytes.as_ptr() as usize;
        assert_eq!(at.abs_diff(base) < file, in_place, "{name}");
    }
    assert_eq!(weights.info("permuted"), Some((Dtype::F32, &[5, 3, 4][..])));
}

#[test]
fn what_lies_beside_the_state_dict_is_metadata() {
    let json = |name: &str, key: &str| -> serde_json::Value { serde_json::from_str(&open(name).metadata()[key]).unwrap() };
    let kwargs = serde_json::json!({
        "encoder_dim": 64, "encoder_rates": [2, 4, 8, 8], "latent_dim": null, "quantizer_dropout": 0.5, "causal": false,
    });
    assert_eq!(json("codec.pth", "metadata"), serde_json::json!({ "kwargs": kwargs }));
    let weights = open("codec.bin");
    let pairs = weights.metadata().iter().map(|(k, v)| (k.as_str(), v.as_str()));
    let expected = [("exported", "true"), ("version", "1.3.0"), ("xp.cfg", "sample_rate: 24000\n")];
    assert_eq!(pairs.collect::<Vec<_>>(), expected);
    // Whatever is neither text nor number nor a list of them is left out.
    let weights = open("codec.ckpt");
    let pairs = weights.metadata().iter().map(|(k, v)| (k.as_str(), v.as_str()));
    assert_eq!(pairs.collect::<Vec<_>>(), [("epoch", "7"), ("shape", "[1,2]")]);
}

#[test]
fn what_is_no_tensor_is_refused_by_name_and_never_executed() {
    for name in ["command.pt", "command4.pt", "command-legacy.pt"] {
        assert!(refusal(Weights::open(data(name))).contains("posix.system"), "{name}");
        assert!(!std::path::Path::new("executed").exists());
    }
    for (name, why) in [
        ("module.pt", "torch.nn.modules.linear.Linear"),
        ("complex.pt", "torch.ComplexFloatStorage"),
        ("nothing.pt", "no tensors in it, but a dict of 2 entries: epoch, losses"),
        ("tensor.pt", "a tensor without a name"),
        ("big-endian.pt", "big-endian"),
    ] {
        assert!(refusal(Weights::open(data(name))).contains(why), "{name}");
    }
}

#[test]
fn every_truncation_is_refused() {
    for name in ["small.pt", "small-legacy.pt", "small-deflated.pt"] {
        let file = bytes(name);
        Weights::from_bytes(name, &file).unwrap();
        for len in 0..file.len() {
            refusal(Weights::from_bytes(name, &file[..len]));
        }
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n.max(1) as u64) as usize
    }
}

#[test]
fn mutations_never_panic_and_never_lie() {
    let names = ["codec.pth", "codec.ckpt", "layouts.pt", "layouts4.pt", "layouts-legacy.pt", "layouts-deflated.pt", "layouts-zip64.pt"];
    let mut random = Random(4);
    let mut opened = 0;
    for name in names {
        let good = bytes(name);
        for _ in 0..1500 {
            let mut file = good.clone();
            for _ in 0..1 << random.below(4) {
                let (at, from) = (random.below(file.len()), random.below(file.len()));
                match random.below(4) {
                    0 => file[at] = random.below(256) as u8,
                    1 => file[at] ^= 1 << random.below(8),
                    2 => file[at] = file[from],
                    _ => file[at] = [0, 1, 0x7f, 0x80, 0xff, b'R', b'h', b't', b'u', b'q'][random.below(10)],
                }
            }
            let Ok(weights) = Weights::from_bytes(name, &file) else { continue };
            opened += 1;
            for name in weights.names() {
                if let Ok(view) = weights.view(name) {
                    assert_eq!(view.shape.iter().product::<usize>(), view.count());
                }
            }
        }
    }
    assert!((1000..10_000).contains(&opened), "{opened}");
}

/// A zip archive by hand: name, contents, method (0 stored, 8 deflated), claimed size.
fn zip(entries: &[(&str, &[u8], u16, u32)]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for &(name, contents, method, size) in entries {
        let mut crc = flate2::Crc::new();
        crc.update(contents);
        let contents = match method {
            8 => {
                let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
                encoder.write_all(contents).unwrap();
                encoder.finish().unwrap()
            }
            _ => contents.to_vec(),
        };
        let mut common = vec![20, 0, 0, 0];
        common.extend(method.to_le_bytes());
        common.extend([0; 4]);
        common.extend(crc.sum().to_le_bytes());
        common.extend((contents.len() as u32).to_le_bytes());
        common.extend(size.to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0; 2]);
        directory.extend([&b"PK\x01\x02\x14\0"[..], &common, &[0; 10], &(file.len() as u32).to_le_bytes(), name.as_bytes()].concat());
        file.extend([&b"PK\x03\x04"[..], &common, name.as_bytes(), &contents].concat());
    }
    let count = (entries.len() as u16).to_le_bytes();
    let sizes = [(directory.len() as u32).to_le_bytes(), (file.len() as u32).to_le_bytes()].concat();
    file.extend([&directory[..], b"PK\x05\x06\0\0\0\0", &count, &count, &sizes, &[0; 2]].concat());
    file
}

/// A pickle in an archive with one storage `0` of these bytes.
fn archive(pickle: &[u8], storage: &[u8]) -> Vec<u8> {
    zip(&[("x/data.pkl", pickle, 0, pickle.len() as u32), ("x/data/0", storage, 0, storage.len() as u32)])
}

fn int(n: u64) -> Vec<u8> {
    match i64::try_from(n) {
        Ok(n) => [&[0x8a, 8][..], &n.to_le_bytes()].concat(),
        Err(_) => [&[0x8a, 9][..], &n.to_le_bytes(), &[0]].concat(),
    }
}

fn text(s: &str) -> Vec<u8> {
    [b"X", &(s.len() as u32).to_le_bytes()[..], s.as_bytes()].concat()
}

fn tuple(parts: &[Vec<u8>]) -> Vec<u8> {
    [b"(", &parts.concat()[..], b"t"].concat()
}

fn tensor(elements: u64, offset: u64, shape: &[u64], stride: &[u64]) -> Vec<u8> {
    let ints = |list: &[u64]| tuple(&list.iter().map(|&n| int(n)).collect::<Vec<_>>());
    let id = tuple(&[text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text("0"), text("cpu"), int(elements)]);
    let args = tuple(&[id, b"Q".to_vec(), int(offset), ints(shape), ints(stride)]);
    [&b"ctorch._utils\n_rebuild_tensor\n"[..], &args, b"R"].concat()
}

fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<u8> = entries.iter().flat_map(|(name, value)| [text(name), value.clone()].concat()).collect();
    [b"\x80\x02}(", &items[..], b"u."].concat()
}

fn one(elements: u64, offset: u64, shape: &[u64], stride: &[u64]) -> Result<Weights> {
    let pickle = dict(&[("w", tensor(elements, offset, shape, stride))]);
    let storage: Vec<u8> = (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect();
    Weights::from_bytes("x", &archive(&pickle, &storage))
}

#[test]
fn tensors_that_reach_beyond_their_storage_are_refused() {
    assert_eq!(*one(6, 1, &[2, 2], &[1, 2]).unwrap().to_f32("w").unwrap(), [1.0, 3.0, 2.0, 4.0]);
    assert_eq!(*one(6, 5, &[1], &[u64::MAX >> 1]).unwrap().to_f32("w").unwrap(), [5.0]);
    assert_eq!(one(6, 99, &[3, 0], &[9, 9]).unwrap().view("w").unwrap().count(), 0);
    const HALF: u64 = 1 << 62;
    for (offset, shape, stride) in [
        (6, &[1][..], &[1][..]),
        (0, &[7], &[1]),
        (1, &[6], &[1]),
        (0, &[2, 2], &[5, 1]),
        (HALF, &[1], &[1]),
        (0, &[2], &[HALF]),
        (HALF, &[2, 2, 2], &[HALF, HALF, HALF]),
        (0, &[HALF], &[0]),
        (0, &[7], &[0]),
        (0, &[4, 4], &[0, 1]),
    ] {
        let why = refusal(one(6, offset, shape, stride));
        assert!(why.starts_with("tensor w: shape"), "{why}");
    }
    for shape in [&[HALF, 4][..], &[HALF, HALF, HALF], &[HALF, 4, 0]] {
        assert!(refusal(one(6, 0, shape, &vec![0; shape.len()])).contains("overflows"), "{shape:?}");
    }
    assert!(refusal(one(6, u64::MAX, &[1], &[1])).contains("without storage, offset"));
    assert!(refusal(one(6, 0, &[1], &[1, 1])).contains("more or fewer strides"));
    assert!(refusal(one(6, 0, &[1; 9], &[1; 9])).contains("8 dimensions"));
    assert!(refusal(one(7, 0, &[1], &[1])).contains("data/0 has 24 bytes, expected 28"));
    assert!(refusal(one(HALF, 0, &[1], &[1])).contains("overflows"));
}

#[test]
fn bombs_are_refused_before_they_go_off() {
    let tensor = |elements| dict(&[("w", tensor(elements, 0, &[elements], &[1]))]);
    let zeros = vec![0; 8 << 20];
    let file = |claim: u32| {
        let pickle = tensor(u64::from(claim) / 4);
        zip(&[("x/data.pkl", &pickle, 0, pickle.len() as u32), ("x/data/0", &zeros, 8, claim)])
    };
    let view = |claim| match Weights::from_bytes("x", &file(claim)) {
        Ok(weights) => weights.view("w").map(|v| v.count()).map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    };
    assert_eq!(view(8 << 20), Ok(2 << 20));
    assert!(view(60 << 20).unwrap_err().contains("claims more than deflate can hold"));
    assert!(view((8 << 20) - 4).unwrap_err().contains("another size"));
    assert!(view((8 << 20) + 4).unwrap_err().contains("another size"));
    assert!(view(1 << 31).unwrap_err().contains("allowed for a file of this size"));
}

#[test]
fn one_storage_under_many_strides_is_bounded() {
    let storage = vec![0; 4 << 20];
    let tensor = tensor(1 << 20, 0, &[1 << 10, 1 << 10], &[1, 1 << 10]);
    let names: Vec<String> = (0..64).map(|i| i.to_string()).collect();
    let tensors = |n: usize| dict(&names[..n].iter().map(|name| (name.as_str(), tensor.clone())).collect::<Vec<_>>());
    let open = |n| Weights::from_bytes("x", &archive(&tensors(n), &storage));
    assert_eq!(open(16).unwrap().names().count(), 16);
    assert!(refusal(open(64)).contains("allowed for a file of this size"));
}

#[test]
fn lists_that_hold_themselves_or_double_at_each_step_end_soon() {
    // l.append(l)
    let endless = b"]q\x00h\x00a".to_vec();
    // [x, x], [[x, x], [x, x]], ...: 2^60 items.
    let doubling = [&text("x")[..], &b"q\x01h\x01\x86".repeat(60)].concat();
    let twice = [&b"}"[..], &text("a"), b"h\x01s", &text("b"), b"h\x01sq\x010"].concat();
    let dicts = [&text("x")[..], b"q\x010", &twice.repeat(60), b"h\x01"].concat();
    let deep = [b"]".repeat(100_000), b"a".repeat(99_999)].concat();
    for (what, value) in [("endless", endless), ("doubling", doubling), ("dicts", dicts), ("deep", deep)] {
        let pickle = dict(&[("k", value.clone()), ("w", tensor(1, 0, &[1], &[1]))]);
        let weights = Weights::from_bytes(what, &archive(&pickle, &[0; 4])).unwrap();
        assert_eq!(weights.names().collect::<Vec<_>>(), ["w"]);
        // And in place of the state dict.
        let pickle = dict(&[("k", value)]);
        let why = refusal(Weights::from_bytes(what, &archive(&pickle, &[0; 4])));
        assert!(why.contains("no tensors in it"), "{what}: {why}");
    }
}

#[test]
fn pickles_that_no_writer_makes_are_refused() {
    let steps = [&b"\x80\x02"[..], &vec![b'N'; pickle::MAX_STEPS], b"."].concat();
    for (pickle, why) in [
        (&b""[..], "ends early"),
        (b"\x80\x01.", "protocol"),
        (b"\x80\x02.", "stack is empty"),
        (b"\x80\x02N(.", "stack is empty"),
        (b"\x80\x02N(\x85.", "stack is empty"),
        (b"\x80\x02t.", "no mark"),
        (b"\x80\x02h\x00.", "reference to nothing"),
        (b"\x80\x02NNa.", "contents for something"),
        (b"\x80\x02}Na.", "no list"),
        (b"\x80\x02}(Nu.", "without a value"),
        (b"\x80\x02X\xff\xff\xff\xff.", "beyond the pickle"),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff.", "beyond the pickle"),
        (b"\x80\x02X\x01\0\0\0\xff.", "UTF-8"),
        (b"\x80\x02cos\nsystem\n.", "os.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "builtins.eval"),
        (b"\x80\x02c__builtin__\neval\n.", "__builtin__.eval"),
        (b"\x80\x02ctorch\nload\n.", "torch.load"),
        (b"\x80\x02ctorch.hub\nload\n.", "torch.hub.load"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor\n)R.", "without storage"),
        (b"\x80\x02ctorch\nFloatStorage\n)R.", "no function"),
        (b"\x80\x02NQ.", "no tuple"),
        (b"\x80\x02)Q.", "no storage"),
        (b"\x80\x02Nb.", "stack is empty"),
        (b"\x80\x02(i.", "no state dict needs"),
        (b"\x80\x02NN.N", "something follows"),
        (&steps, "more than"),
    ] {
        let found = refusal(Weights::from_bytes("x", &archive(pickle, &[])));
        let end = pickle.len().min(40);
        assert!(found.contains(why), "{}: {found}", pickle[..end].escape_ascii());
    }
}

#[test]
fn archives_that_no_writer_makes_are_refused() {
    let good = dict(&[("w", tensor(1, 0, &[1], &[1]))]);
    let (pickle, storage) = (("x/data.pkl", &good[..], 0, good.len() as u32), ("x/data/0", &[0; 4][..], 0, 4));
    assert!(Weights::from_bytes("x", &zip(&[pickle, storage])).is_ok());
    assert!(Weights::from_bytes("x", &zip(&[("data.pkl", pickle.1, 0, pickle.3), ("data/0", storage.1, 0, 4)])).is_ok());
    for (entries, why) in [
        (&[storage][..], "without data.pkl"),
        (&[pickle], "no storage 0"),
        (&[("a/b/data.pkl", pickle.1, 0, pickle.3), storage], "without data.pkl"),
        (&[pickle, storage, ("y/data.pkl", pickle.1, 0, pickle.3)], "both x/data.pkl and y/data.pkl"),
        (&[pickle, storage, storage], "two entries are called x/data/0"),
        (&[pickle, ("x/data/0", &[0; 4], 0, 8)], "has 4 bytes, expected 8"),
        (&[pickle, ("x/data/0", &[0; 4], 12, 4)], "BZIP2"),
        (&[pickle, storage, ("x/byteorder", b"big", 0, 3)], "big-endian"),
        (&[pickle, storage, ("x/byteorder", &[b'l'; 17], 0, 17)], "byteorder has 17 bytes, expected 16"),
    ] {
        assert!(refusal(Weights::from_bytes("x", &zip(entries))).contains(why), "{why}");
    }
    let twice = dict(&[("w", tensor(1, 0, &[1], &[1])), ("w", tensor(1, 0, &[1], &[1]))]);
    assert!(refusal(Weights::from_bytes("x", &archive(&twice, &[0; 4]))).contains("tensor w appears twice"));
}
