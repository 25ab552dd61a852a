//! The names under which the fuzzed modules know the SQL parser and the engine's error.

pub mod sql {
    pub use sqlparser;
}

pub mod error {
    use std::fmt;

    use arrow::error::ArrowError;

    /// What an error of Arrow becomes on its way out.
    #[derive(Debug)]
    pub struct DataFusionError(ArrowError);

    impl From<ArrowError> for DataFusionError {
        fn from(error: ArrowError) -> Self {
            Self(error)
        }
    }

    impl fmt::Display for DataFusionError {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.fmt(f)
        }
    }

    impl std::error::Error for DataFusionError {}
}
