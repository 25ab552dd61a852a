//! Figures and bars, on the screen as they come and as Markdown at the end.

use std::fmt::Write as _;
use std::path::Path;

use crate::Options;

/// What is measured must be at most, or at least, so much.
#[derive(Debug, Clone, Copy)]
pub enum Bar {
    AtMost(f64),
    AtLeast(f64),
    /// Told, not judged.
    Told,
}

impl Bar {
    fn is_met(self, value: f64) -> Option<bool> {
        match self {
            Bar::AtMost(limit) => Some(value <= limit),
            Bar::AtLeast(limit) => Some(value >= limit),
            Bar::Told => None,
        }
    }
}

pub struct Report {
    head: String,
    /// A scaled workload is another one: its figures are told, and meet no bar.
    is_whole: bool,
    runs: Vec<String>,
    bars: Vec<String>,
    figures: String,
}

impl Report {
    pub fn new(options: &Options) -> Report {
        let build = if cfg!(debug_assertions) { "unoptimised" } else { "release" };
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let head = format!(
            "{build} build, {cores} cores shared by job, Kafka and Postgres; scale {}, medians of {} runs",
            options.scale, options.runs
        );
        println!("{head}");
        Report { head, is_whole: options.scale == 1.0, runs: Vec::new(), bars: Vec::new(), figures: String::new() }
    }

    /// One workload's figures of one program.
    pub fn run(&mut self, workload: &str, program: &str, figures: &[(&str, String)]) {
        let names: Vec<&str> = figures.iter().map(|(name, _)| *name).collect();
        let values: Vec<&str> = figures.iter().map(|(_, value)| value.as_str()).collect();
        if self.runs.is_empty() {
            self.runs.push(format!("| workload | program | {} |", names.join(" | ")));
            self.runs.push(format!("|---|---|{}", "---|".repeat(names.len())));
        }
        let line = format!("| {workload} | {program} | {} |", values.join(" | "));
        println!("{line}");
        self.runs.push(line);
    }

    /// A figure that stands in no table.
    pub fn figure(&mut self, text: &str) {
        println!("{text}");
        let _ = writeln!(self.figures, "- {text}");
    }

    pub fn bar(&mut self, what: &str, bar: Bar, value: f64, unit: &str) {
        let wanted = match bar {
            Bar::AtMost(limit) => format!("<= {limit}{unit}"),
            Bar::AtLeast(limit) => format!(">= {limit}{unit}"),
            Bar::Told => String::new(),
        };
        let verdict = match bar.is_met(value) {
            Some(_) if !self.is_whole => "scaled",
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        let line = format!("| {what} | {wanted} | {value:.3}{unit} | {verdict} |");
        println!("{line}");
        self.bars.push(line);
    }

    /// Writes all that is known so far.
    pub fn write(&self, file: Option<&Path>) {
        let Some(file) = file else { return };
        let mut text = format!("{}\n\n", self.head);
        for line in &self.runs {
            text += &format!("{line}\n");
        }
        text += "\n| bar | wanted | measured | |\n|---|---|---|---|\n";
        for line in &self.bars {
            text += &format!("{line}\n");
        }
        text += &format!("\n{}", self.figures);
        std::fs::write(file, text).unwrap_or_else(|error| panic!("writing {}: {error}", file.display()));
    }
}

/// The middle one; of an even number the mean of both.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    percentile(values, 0.5)
}

/// By linear interpolation between the two nearest.
pub fn percentile(values: impl IntoIterator<Item = f64>, share: f64) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    assert!(!values.is_empty(), "no values");
    values.sort_by(f64::total_cmp);
    let place = share * (values.len() - 1) as f64;
    let (below, above) = (values[place.floor() as usize], values[place.ceil() as usize]);
    below + (above - below) * place.fract()
}
