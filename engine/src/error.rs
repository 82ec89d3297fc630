use std::path::PathBuf;

pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong between files, models and kernels.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Kernel(#[from] swara_kernels::Error),
    #[error(transparent)]
    Loader(#[from] swara_loader::Error),
    #[error("configuration: {0}")]
    Config(String),
    #[error("{path}: {why}")]
    File { path: PathBuf, why: String },
    #[error("model has no tensor {0}")]
    MissingTensor(String),
    #[error("{0}")]
    Argument(String),
}
