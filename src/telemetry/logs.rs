//! Logs on stderr: text on a terminal, one JSON object a line elsewhere. ERROR means that a person is needed.

use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;

use indicatif::{MultiProgress, ProgressBar};
use tracing_subscriber::EnvFilter;

use crate::{Error, Result};

/// librdkafka and its wrapper tell every lost connection and each goodbye that no broker hears; the job says itself what an
/// outage means.
const DEFAULT_FILTER: &str = "info,librdkafka=warn,rdkafka=off";

/// Starts logging for the whole process; `RUST_LOG` overrides what is shown. Once per process.
pub fn init() -> Result<()> {
    init_with(DEFAULT_FILTER)
}

/// As [`init`], with another filter where `RUST_LOG` says nothing.
pub fn init_with(default_filter: &str) -> Result<()> {
    let wanted = std::env::var("RUST_LOG").unwrap_or_default();
    let filter = if wanted.trim().is_empty() { default_filter } else { wanted.as_str() };
    let filter = EnvFilter::try_new(filter).map_err(|error| Error::Setting {
        key: "RUST_LOG".into(),
        problem: error.to_string(),
        remedy: "write a level, or levels by module: RUST_LOG=debug or RUST_LOG=info,dinnerbell::ledger=debug".into(),
    })?;
    // An error of the log would be told where the log could not be written, which panics.
    let logs = tracing_subscriber::fmt().with_env_filter(filter).log_internal_errors(false);
    let done = if io::stderr().is_terminal() {
        logs.with_writer(|| AboveBars).with_target(false).try_init()
    } else {
        logs.with_writer(io::stderr).json().flatten_event(true).try_init()
    };
    done.map_err(|error| Error::Halt { what: format!("cannot start logging: {error}"), remedy: String::new() })
}

/// What moves on the terminal. Log lines go above it.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Shows a bar on stderr, where it and the log lines leave each other whole.
pub fn show_bar(bar: ProgressBar) -> ProgressBar {
    BARS.add(bar)
}

struct AboveBars;

impl Write for AboveBars {
    /// All of it: a bar must not come between the parts of a line.
    ///
    /// Without the bars once the terminal is gone: they would panic.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let written = if io::stderr().is_terminal() {
            BARS.suspend(|| io::stderr().write_all(line))
        } else {
            io::stderr().write_all(line)
        };
        written.map(|()| line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// The last word of a process that failed: readable text, or a log line where logs are for machines.
pub fn report(error: &Error) {
    if !io::stderr().is_terminal() && tracing::dispatcher::has_been_set() {
        tracing::error!(what_to_do = error.remedy(), "{error}");
    } else {
        // `eprintln!` panics where the terminal is gone.
        let _ = writeln!(io::stderr(), "{}", explain(error));
    }
}

fn explain(error: &Error) -> String {
    match error.remedy() {
        Some(remedy) => format!("error: {error}\nwhat to do: {remedy}"),
        None => format!("error: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_filter_is_one() {
        assert_eq!(EnvFilter::try_new(DEFAULT_FILTER).unwrap().max_level_hint(), Some(tracing::Level::INFO.into()));
    }

    #[test]
    fn an_error_comes_with_what_to_do() {
        let error = Error::Halt { what: "the topic was made anew".into(), remedy: "run repair".into() };
        assert_eq!(explain(&error), "error: the topic was made anew\nwhat to do: run repair");
        assert_eq!(explain(&Error::Away { what: "gone".into() }), "error: gone");
    }
}
