//! The bundled codec is trained by this very program: before it exists, `swara` builds without one and says so.

fn main() {
    let model = "data/swara-te50.safetensors";
    println!("cargo::rerun-if-changed={model}");
    println!("cargo::rustc-check-cfg=cfg(bundled_model)");
    if std::path::Path::new(model).is_file() {
        println!("cargo::rustc-cfg=bundled_model");
    }
}
