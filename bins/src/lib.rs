//! What `swara` and `swara-live` share.

pub mod codec;
pub mod common;
pub mod dialogue;
pub mod failure;
pub mod process;
pub mod terminal;
