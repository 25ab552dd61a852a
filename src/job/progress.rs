//! Loading shown to whoever waits for it: a line that moves on a terminal, a log line now and then elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};

use crate::telemetry::logs;

/// Between two log lines: 10 million rows take less than a minute.
const LOG_EVERY: Duration = Duration::from_secs(5);

pub struct LoadProgress {
    bar: Option<ProgressBar>,
    logged: Instant,
    last: (String, u64, u64),
    began: Instant,
}

impl LoadProgress {
    pub fn new() -> LoadProgress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = logs::show_bar(ProgressBar::new_spinner().with_finish(ProgressFinish::AndClear));
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        let now = Instant::now();
        LoadProgress { bar, logged: now, last: Default::default(), began: now }
    }

    pub fn show(&mut self, lookup: &str, rows: u64, bytes: u64) {
        self.last = (lookup.to_owned(), rows, bytes);
        if let Some(bar) = &self.bar {
            bar.set_message(format!("loading lookup {lookup}: {rows} rows, {}", ByteSize(bytes)));
        } else if self.logged.elapsed() >= LOG_EVERY {
            self.logged = Instant::now();
            tracing::info!(lookup, rows, bytes, "loading");
        }
    }

    /// All is there.
    pub fn end(self) {
        let (lookup, rows, bytes) = &self.last;
        if !lookup.is_empty() {
            let seconds = self.began.elapsed().as_secs_f64();
            tracing::info!(lookup, rows_received = rows, bytes, seconds, "lookups loaded");
        }
    }
}
