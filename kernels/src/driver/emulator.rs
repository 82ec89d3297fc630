use super::Driver;
use crate::{Error, Result};

pub fn open(arch: Option<&str>) -> Result<Box<dyn Driver>> {
    Err(Error::Unavailable { device: format!("emulator {}", arch.unwrap_or("")), why: "not built yet".into(), hint: None })
}
