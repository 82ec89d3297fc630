use std::f64::consts::TAU;
use std::fs;

use sha2::{Digest, Sha256};

use super::*;

fn sine(hz: f64, rate: u32, frames: usize) -> Vec<f32> {
    (0..frames).map(|i| (0.5 * (TAU * hz * i as f64 / f64::from(rate)).sin()) as f32).collect()
}

/// A WAV header by hand, so that it can lie.
fn header(tag: u16, bits: u16, channels: u16, rate: u32, data: u32) -> Vec<u8> {
    let align = channels * (bits / 8);
    let mut h = b"RIFF".to_vec();
    h.extend(data.wrapping_add(36).to_le_bytes());
    h.extend(b"WAVEfmt \x10\0\0\0");
    h.extend(tag.to_le_bytes());
    h.extend(channels.to_le_bytes());
    h.extend(rate.to_le_bytes());
    h.extend(rate.wrapping_mul(u32::from(align)).to_le_bytes());
    h.extend(align.to_le_bytes());
    h.extend(bits.to_le_bytes());
    h.extend(b"data");
    h.extend(data.to_le_bytes());
    h
}

fn file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

fn read_bytes(name: &str, bytes: &[u8]) -> Result<Audio> {
    let (_dir, path) = file(name, bytes);
    read(path, None)
}

fn why(result: Result<Audio>) -> AudioError {
    match result {
        Err(Error::Audio { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_wav_format_reads_as_an_independent_writer_wrote_it() {
    let want = sine(440.0, 16_000, 1000);
    for (bits, format, worst) in [
        (8, hound::SampleFormat::Int, 1.0 / 127.0),
        (16, hound::SampleFormat::Int, 1.0 / 32767.0),
        (24, hound::SampleFormat::Int, 2e-7),
        (32, hound::SampleFormat::Int, 1e-7),
        (32, hound::SampleFormat::Float, 0.0),
    ] {
        for channels in [1, 3] {
            let (_dir, path) = file("a.wav", b"");
            let spec = hound::WavSpec { channels, sample_rate: 16_000, bits_per_sample: bits, sample_format: format };
            let mut writer = hound::WavWriter::create(&path, spec).unwrap();
            for &x in want.iter().flat_map(|x| std::iter::repeat_n(x, usize::from(channels))) {
                match format {
                    hound::SampleFormat::Float => writer.write_sample(x).unwrap(),
                    hound::SampleFormat::Int => {
                        let full = (1_i64 << (bits - 1)) as f64;
                        writer.write_sample((f64::from(x) * full) as i32).unwrap();
                    }
                }
            }
            writer.finalize().unwrap();
            let audio = read(&path, None).unwrap();
            assert_eq!((audio.samples.len(), audio.sample_rate), (1000, 16_000));
            let error = audio.samples.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(error <= worst, "{bits} {format:?} x{channels}: {error}");
        }
    }
}

#[test]
fn what_is_written_an_independent_reader_reads() {
    let (_dir, path) = file("a.wav", b"");
    let samples = [0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0];
    write(&path, &samples, 24_000, WavFormat::S16).unwrap();
    let mut wav = hound::WavReader::open(&path).unwrap();
    assert_eq!((wav.spec().sample_rate, wav.spec().channels, wav.spec().bits_per_sample), (24_000, 1, 16));
    let read: Vec<i16> = wav.samples().map(Result::unwrap).collect();
    assert_eq!(read, [0, 16384, -16384, 32767, -32767, 32767, -32767]);

    write(&path, &samples, 24_000, WavFormat::F32).unwrap();
    let read: Vec<f32> = hound::WavReader::open(&path).unwrap().samples().map(Result::unwrap).collect();
    assert_eq!(read, samples);
    assert_eq!(super::read(&path, None).unwrap().samples, samples);
}

#[test]
fn a_wav_of_more_than_4_gib_is_refused_before_it_is_written() {
    let (_dir, path) = file("a.wav", b"old");
    let mut writer = WavWriter::create(&path, 16_000, WavFormat::S16).unwrap();
    writer.frames = u64::from(u32::MAX) / 2 - 100;
    let error = writer.write(&[0.0; 200]).unwrap_err();
    assert!(error.to_string().contains("4 GiB"), "{error}");
    drop(writer);
    assert_eq!(fs::read(&path).unwrap(), b"old");
}

#[cfg(unix)]
#[test]
fn a_wav_goes_through_a_pipe_and_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let writer = std::thread::spawn({
        let path = path.clone();
        move || write(path, &[0.25; 5000], 16_000, WavFormat::F32).unwrap()
    });
    let audio = read(&path, None).unwrap();
    writer.join().unwrap();
    assert_eq!(audio.samples, [0.25; 5000]);
    assert_eq!(audio.warnings, []);
}

#[test]
fn g711_decodes_to_its_known_values() {
    for (tag, bytes, want) in [(6, [0xd5, 0x55, 0xaa, 0x2a], [8, -8, 32256, -32256]), (7, [0xff, 0x7f, 0x80, 0x00], [0, 0, 32124, -32124])]
    {
        let mut wav = header(tag, 8, 1, 8000, 4);
        wav.extend(bytes);
        let read: Vec<_> = read_bytes("a.wav", &wav).unwrap().samples.iter().map(|x| (x * 32768.0) as i32).collect();
        assert_eq!(read, want);
    }
}

#[test]
fn eight_channels_at_192_khz_are_downmixed_and_resampled() {
    let tone = sine(440.0, 192_000, 96_001);
    let mut wav = header(3, 32, 8, 192_000, 96_001 * 32);
    for x in &tone {
        // The mean of the channels is the tone.
        (0..8).for_each(|c| wav.extend((x * c as f32 / 3.5).to_le_bytes()));
    }
    let (_dir, path) = file("a.wav", &wav);
    let audio = read(&path, Some(16_000)).unwrap();
    let want = sine(440.0, 16_000, 8000);
    assert_eq!(audio.samples.len(), 8000);
    let error = (500..7500).map(|i| (audio.samples[i] - want[i]).abs()).fold(0.0, f32::max);
    assert!(error < 1e-3, "{error}");
}

#[test]
fn a_header_that_claims_too_much_gets_what_is_there_and_a_warning() {
    let mut wav = header(1, 16, 1, 16_000, 1_000_000);
    wav.extend([0_u8, 64].repeat(300));
    let audio = read_bytes("a.wav", &wav).unwrap();
    assert_eq!(audio.samples, [0.5; 300]);
    assert_eq!(audio.warnings, [Warning::Short { claimed: 500_000, found: 300 }]);
}

#[test]
fn a_header_of_unknown_length_reads_to_the_end_without_a_warning() {
    for size in [u32::MAX, 0] {
        let mut wav = header(1, 16, 1, 16_000, size);
        wav.extend([0_u8, 64].repeat(5000));
        let audio = read_bytes("a.wav", &wav).unwrap();
        assert_eq!((audio.samples.len(), audio.warnings.len()), (5000, 0));
    }
}

#[test]
fn chunks_after_the_data_are_not_audio() {
    let mut wav = header(1, 16, 1, 16_000, 4);
    wav.extend([0, 64, 0, 64]);
    wav.extend(b"LIST\x04\0\0\0abcd");
    assert_eq!(read_bytes("a.wav", &wav).unwrap().samples, [0.5, 0.5]);
}

#[test]
fn each_bad_file_is_refused_for_its_reason() {
    let good = header(1, 16, 1, 16_000, 4);
    let with = |h: Vec<u8>| [h, vec![0; 64]].concat();
    assert_eq!(why(read_bytes("a.wav", b"")), AudioError::Empty);
    assert_eq!(why(read_bytes("a.g722", b"")), AudioError::Empty);
    assert_eq!(why(read_bytes("a.wav", b"hello, this is text")), AudioError::NotAudio);
    assert_eq!(why(read_bytes("a.wav", b"RIFF\0\0\0\0AVI LIST")), AudioError::NotAudio);
    assert_eq!(why(read_bytes("a.wav", b"RI")), AudioError::NotAudio);
    for end in [4, 11, 20, 37] {
        assert_eq!(why(read_bytes("a.wav", &good[..end])), AudioError::Truncated, "{end}");
    }
    assert_eq!(why(read_bytes("a.wav", &good)), AudioError::Truncated);
    assert_eq!(why(read_bytes("a.wav", &header(1, 16, 1, 16_000, 0))), AudioError::NoSamples);
    assert_eq!(why(read_bytes("a.wav", &with(header(1, 16, 0, 16_000, 64)))), AudioError::Channels(0));
    assert_eq!(why(read_bytes("a.wav", &with(header(1, 8, 65, 16_000, 64)))), AudioError::Channels(65));
    assert_eq!(why(read_bytes("a.wav", &with(header(1, 16, 1, 0, 64)))), AudioError::Rate(0));
    assert_eq!(why(read_bytes("a.wav", &with(header(1, 16, 1, 768_001, 64)))), AudioError::Rate(768_001));
    assert!(matches!(why(read_bytes("a.wav", &with(header(2, 4, 1, 8000, 64)))), AudioError::Unsupported(_)));
    assert!(matches!(why(read_bytes("a.wav", &with(header(1, 0, 1, 8000, 64)))), AudioError::Unsupported(_)));
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(why(read(dir.path(), None)), AudioError::Directory);
    let missing = read(dir.path().join("no.wav"), None).unwrap_err().to_string();
    assert!(missing.contains("no such file") && missing.contains("no.wav"), "{missing}");
}

#[test]
fn nan_and_infinity_are_refused_with_their_place() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut wav = header(3, 32, 2, 16_000, 8 * 10_000);
        for i in 0..20_000 {
            wav.extend((if i == 2 * 7777 + 1 { bad } else { 0.1 }).to_le_bytes());
        }
        match why(read_bytes("a.wav", &wav)) {
            AudioError::NonFinite { index: 7777, channel: 1, .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn g722_decodes_random_bytes_to_the_reference_decoders_samples() {
    let mut x = 1_u32;
    let mut decoder = g722::Decoder::default();
    let mut sha = Sha256::new();
    for _ in 0..20_000 {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        decoder.decode((x >> 24) as u8).iter().for_each(|s| sha.update(s.to_le_bytes()));
    }
    let digest: String = sha.finalize().iter().map(|b| format!("{b:02x}")).collect();
    // Of `ffmpeg -f g722 -i ... -f s16le`, version 5.1, on the same bytes.
    assert_eq!(digest, "b2e59b97d34aecd1e3ba3d0c16967078b39cf460c4002f337055cd6e09b82b9d");
}

const TONE_FLAC: &[u8] = include_bytes!("testdata/tone.flac");
const TONE_MP3: &[u8] = include_bytes!("testdata/tone.mp3");
const TONE_OGG: &[u8] = include_bytes!("testdata/tone.ogg");

#[test]
fn flac_mp3_and_vorbis_hold_the_same_tone_in_the_same_place() {
    // ffmpeg's `sine` has amplitude 1/8.
    let want: Vec<_> = sine(440.0, 16_000, 4000).iter().map(|x| x / 4.0).collect();
    // A vorbis stream of a single page cannot say that it ends within its last block: ffmpeg, too, gives 4480.
    for (name, bytes, len, worst) in [("a.flac", TONE_FLAC, 4000, 1e-4), ("a.mp3", TONE_MP3, 4000, 0.01), ("a.ogg", TONE_OGG, 4480, 0.02)] {
        let audio = read_bytes(name, bytes).unwrap();
        assert_eq!((audio.sample_rate, audio.samples.len()), (16_000, len), "{name}");
        let error = (200..3800).map(|i| (audio.samples[i] - want[i]).abs()).fold(0.0, f32::max);
        assert!(error < worst, "{name}: {error}");
    }
}

#[test]
fn the_first_bytes_decide_not_the_extension() {
    assert_eq!(read_bytes("a.wav", TONE_FLAC).unwrap().samples.len(), 4000);
    assert_eq!(read_bytes("a.flac", TONE_OGG).unwrap().samples.len(), 4480);
}

#[test]
fn damaged_and_truncated_files_never_panic() {
    let mut wav = header(1, 16, 1, 16_000, 2000);
    wav.extend([7; 2000]);
    let mut x = 7_u32;
    let mut next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 8) as usize
    };
    for (name, bytes) in [("a.wav", &wav[..]), ("a.flac", TONE_FLAC), ("a.mp3", TONE_MP3), ("a.ogg", TONE_OGG)] {
        for _ in 0..150 {
            let mut bytes = bytes.to_vec();
            bytes.truncate(1 + next() % bytes.len());
            for _ in 0..next() % 4 {
                let at = next() % bytes.len().min(200);
                bytes[at] = next() as u8;
            }
            match read_bytes(name, &bytes) {
                Ok(audio) => assert!(!audio.samples.is_empty() && audio.samples.iter().all(|x| x.is_finite())),
                Err(error) => assert!(error.to_string().contains(name), "{error}"),
            }
        }
    }
}

#[test]
fn pieces_together_are_the_whole() {
    let mut wav = header(1, 16, 1, 44_100, 2 * 50_001);
    (0..50_001_i32).for_each(|i| wav.extend(((i * 37 % 2000) as i16).to_le_bytes()));
    let (_dir, path) = file("a.wav", &wav);
    let whole = read(&path, Some(16_000)).unwrap().samples;
    let reader = AudioReader::open(&path, Some(16_000)).unwrap();
    assert_eq!(reader.expected_samples(), Some(whole.len() as u64));
    let pieces: Vec<_> = reader.map(Result::unwrap).collect();
    assert!(pieces.iter().all(|p| p.len() < 4 * BLOCK));
    assert_eq!(pieces.concat(), whole);
}

#[test]
fn a_rate_that_would_need_a_huge_resampler_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.wav");
    let mut bytes = header(1, 16, 1, 1, 200);
    bytes.extend([1; 200]);
    std::fs::write(&path, &bytes).unwrap();
    let error = read(&path, Some(16_000)).unwrap_err().to_string();
    assert!(error.contains("sample rate 1 Hz, expected 1000 to"), "{error}");
}
