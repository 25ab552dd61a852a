//! The report of a run in Markdown. Runs that are appended to one file are added up at its top.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::checker::{Examination, Finding};
use super::super::stack::Stack;
use super::Options;

/// The promises that a run examines.
const PROMISES: [(&str, &str); 8] = [
    ("I1", "both sinks hold the model's rows: none lost, doubled or different"),
    ("I2", "every input offset has one outcome, the model's"),
    ("I3", "next_offset never goes back"),
    ("I4", "Kafka's offset is never ahead of the ledger's"),
    ("I5", "advances tile every partition, without gap or overlap"),
    ("I6", "what is sent again is what was sent first, aborted records included"),
    ("I7", "memory is bounded"),
    ("I8", "the job catches up by itself"),
];

/// Everything that was counted.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Tally {
    pub seed: u64,
    pub date: String,
    pub command: String,
    pub versions: String,
    /// What adds up over several runs.
    pub facts: BTreeMap<String, u64>,
    /// What the greatest of several runs is told of.
    pub most: BTreeMap<String, u64>,
    pub findings: Vec<String>,
    /// By name, those that were broken.
    pub broken: Vec<String>,
}

impl Tally {
    pub fn new(options: &Options, seed: u64) -> Tally {
        let date = chrono::Utc::now().format("%Y-%m-%d %H:%M UTC").to_string();
        Tally { seed, date, command: command(options, seed), ..Tally::default() }
    }

    pub fn fact(&mut self, name: impl Into<String>, count: u64) {
        self.facts.insert(name.into(), count);
    }

    pub fn most(&mut self, name: &str, count: u64) {
        self.most.insert(name.into(), count);
    }

    /// What the checker has found and counted, and on what all this ran.
    pub fn finish(&mut self, stack: &Stack, took: Duration, examination: &Examination) {
        self.facts.extend(examination.facts.clone());
        for name in ["milliseconds to catch up", "messages behind when the faults stopped"] {
            if let Some(count) = self.facts.remove(name) {
                self.most(name, count);
            }
        }
        self.fact("seconds in all", took.as_secs());
        self.findings = examination.findings.iter().map(Finding::to_string).collect();
        self.broken = examination.findings.iter().map(|finding| finding.invariant.to_owned()).collect();
        let postgres = stack.psql("SHOW server_version");
        let build = first_line(Command::new(env!("CARGO_BIN_EXE_dinnerbell")).arg("--version"));
        let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
        self.versions = format!(
            "{build} ({profile} build, commit {}), Apache Kafka 4.1.2, Postgres {}",
            first_line(Command::new("git").args(["describe", "--always", "--dirty"])),
            postgres.trim(),
        );
    }

    /// The section of this run.
    pub fn markdown(&self) -> String {
        let verdict = if self.findings.is_empty() { "all promises held" } else { "FAILED" };
        let mut text =
            format!("## Seed {}: {verdict}\n\n{}, `{}`\n{}\n\n", self.seed, self.date, self.command, self.versions);
        for finding in &self.findings {
            let _ = writeln!(text, "- {finding}");
        }
        text + &self.tables()
    }

    fn tables(&self) -> String {
        let mut text = String::new();
        for (name, promise) in PROMISES {
            let held = if self.broken.iter().any(|broken| broken == name) { "BROKEN" } else { "held" };
            let _ = writeln!(text, "- {name} {held}: {promise}");
        }
        let steps: Vec<String> = self
            .facts
            .iter()
            .filter_map(|(name, count)| Some(format!("{} {count}", name.strip_prefix("step ")?)))
            .collect();
        let _ = writeln!(text, "\nDeaths at each step: {}\n\n| what | how much |\n|---|---|", steps.join(", "));
        for (name, count) in self.facts.iter().filter(|(name, _)| !name.starts_with("step ")) {
            let _ = writeln!(text, "| {name} | {count} |");
        }
        for (name, count) in &self.most {
            let _ = writeln!(text, "| most: {name} | {count} |");
        }
        text
    }

    fn add(&mut self, other: &Tally) {
        for (name, count) in &other.facts {
            *self.facts.entry(name.clone()).or_default() += count;
        }
        for (name, count) in &other.most {
            let most = self.most.entry(name.clone()).or_default();
            *most = (*most).max(*count);
        }
        self.broken.extend(other.broken.clone());
    }
}

const MARK: &str = "<!-- run ";
const SECTIONS: &str = "<!-- the runs -->\n";

/// Appends the run to the file and adds all of its runs up anew.
pub fn append(file: &Path, tally: &Tally) {
    let before = std::fs::read_to_string(file).unwrap_or_default();
    let sections = before.split_once(SECTIONS).map_or("", |(_, sections)| sections);
    let data = serde_json::to_string(tally).expect("a tally is JSON").replace("-->", "--\\u003e");
    let sections = format!("{sections}{}\n{MARK}{data} -->\n\n", tally.markdown());
    let mut sum = Tally::default();
    let mut seeds = Vec::new();
    for line in sections.lines().filter_map(|line| line.strip_prefix(MARK)?.strip_suffix(" -->")) {
        let run: Tally = serde_json::from_str(line).expect("what was written here before");
        sum.add(&run);
        seeds.push(run.seed.to_string());
    }
    let failed = if sum.broken.is_empty() { "none failed" } else { "SOME FAILED" };
    let text = format!(
        "# Chaos runs\n\n{} runs, {failed}; seeds {}. Added up:\n\n{}\n{SECTIONS}{sections}",
        seeds.len(),
        seeds.join(", "),
        sum.tables()
    );
    std::fs::write(file, text).unwrap_or_else(|error| panic!("writing {}: {error}", file.display()));
}

/// What repeats the run's plan.
pub fn command(options: &Options, seed: u64) -> String {
    let Options { minutes, cycles, rows, per_step, at_most, replicas, partitions, .. } = options;
    let Options { malformed, rate, dynamic, life, fault_every, memory, catch_up, key, .. } = options;
    let key = key.as_ref().map(|key| format!(" --key {key}")).unwrap_or_default();
    format!(
        "make chaos ARGS='--seed {seed} --minutes {minutes} --cycles {cycles} --rows {rows} --per-step {per_step} \
         --at-most {at_most} --replicas {replicas} --partitions {partitions} --malformed {malformed} --rate {rate} \
         --dynamic {dynamic} --life {life} --fault-every {fault_every} --memory {memory} --catch-up {catch_up}{key}'"
    )
}

fn first_line(command: &mut Command) -> String {
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).lines().next().unwrap_or("unknown").to_owned()
}
