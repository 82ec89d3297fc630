//! `prepare OUT_DIR IN_DIR [--test-speaker S] [--id-rule R] ...`
use swara_loader::dataset::{Options, prepare};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let out = args.next().ok_or("OUT_DIR")?;
    let (mut dirs, mut options) = (Vec::new(), Options::default());
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--test-speaker" => options.test_speakers.push(args.next().ok_or("speaker")?),
            "--id-rule" => options.id_rules.push(args.next().ok_or("rule")?.parse()?),
            _ => dirs.push(arg),
        }
    }
    let report = prepare(&dirs, out, &options, |p| {
        if p.done % 500 == 0 {
            eprintln!("{}/{} {}", p.done, p.files, p.file.display());
        }
    })?;
    for e in &report.unreadable {
        eprintln!("{e}");
    }
    for (path, w) in &report.warnings {
        eprintln!("{}: {w}", path.display());
    }
    println!("{:#?}", report.description);
    Ok(())
}
