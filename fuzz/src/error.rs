//! The errors that the fuzzed modules make, out of all that the job knows.

use std::path::PathBuf;

use datafusion::error::DataFusionError;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: {problem}", file.display())]
    Sql { file: PathBuf, line: Option<u64>, column: Option<u64>, problem: String, remedy: String },
    #[error("{doing}: {source}")]
    Engine { doing: String, source: DataFusionError },
    #[error("{doing}: {source}")]
    Io { doing: String, source: std::io::Error },
    #[error("{what}")]
    Halt { what: String, remedy: String },
    #[error("{what}")]
    Claim { what: String },
}

impl Error {
    pub fn engine(doing: impl Into<String>) -> impl FnOnce(DataFusionError) -> Error {
        let doing = doing.into();
        move |source| Error::Engine { doing, source }
    }

    pub fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        let doing = doing.into();
        move |source| Error::Io { doing, source }
    }
}
