//! `bench phones`: words of two tones.

mod common;

use common::{Room, wav};

fn word(second: f64, seconds: f64) -> Vec<f32> {
    let n = (seconds * 16_000.0) as usize;
    let tone = |i: usize| (if 2 * i < n { 400.0 } else { second }) * std::f64::consts::TAU * i as f64 / 16_000.0;
    (0..n).map(|i| 0.3 * tone(i).sin() as f32).collect()
}

#[test]
fn pairs_of_words_are_told_apart() {
    let room = Room::new();
    std::fs::create_dir_all(room.path("pairs/pitch")).unwrap();
    for (name, second, seconds) in [("a", 600.0, 0.3), ("b", 900.0, 0.3), ("a_x", 600.0, 0.4), ("b_x", 900.0, 0.4)] {
        wav(&room, &format!("pairs/pitch/1_{name}.wav"), 16_000, 1, &word(second, seconds));
    }
    let rows = room.json(&["bench", "phones", "pairs", "--json", "-", "--codebooks", "4", "--codebooks", "12", "--device", "cpu"]);
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for row in rows {
        assert_eq!((&row["contrast"], &row["pairs"]), (&"pitch".into(), &1.into()));
        assert_eq!((&row["recorded"], &row["decoded"]), (&1.0.into(), &1.0.into()), "{row}");
    }
    assert!(room.works(&["bench", "phones", "pairs", "--device", "cpu"]).contains("told from codes"));

    room.refuses(&["bench", "phones", "pairs", "--codebooks", "13", "--device", "cpu"], 2, "--codebooks: 13, expected 1 to 12");
    room.refuses(&["bench", "phones", "nothing"], 1, "cannot read folder");
    std::fs::remove_file(room.path("pairs/pitch/1_b_x.wav")).unwrap();
    room.refuses(&["bench", "phones", "pairs", "--device", "cpu"], 1, "1_b_x.wav");
    std::fs::remove_file(room.path("pairs/pitch/1_a.wav")).unwrap();
    room.refuses(&["bench", "phones", "pairs", "--device", "cpu"], 1, "no pairs");
}
