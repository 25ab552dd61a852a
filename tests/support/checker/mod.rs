//! The checker: reads everything that a run has left, and says what breaks which promise. It shares nothing with the code
//! under test: what must come out is computed by [`Model`], the history is written by triggers of the harness's own.
//!
//! | name | promise |
//! |---|---|
//! | I1 | both sinks hold the same rows, and those are the model's: none lost, none doubled, none different, under the right keys |
//! | I2 | every input offset has one outcome, the model's: by rows, dead letters (whole messages), the ledger's counts and the job's log |
//! | I3 | `next_offset` never goes back |
//! | I4 | Kafka's offset is never ahead of the ledger's |
//! | I5 | advances tile each partition, without gap and without overlap |
//! | I6 | what is sent again is what was sent first, aborted records included, rows and dead letters |
//!
//! I7 (bounded memory) and I8 (it catches up by itself) need a running job and belong to the harness.
//!
//! Memory: a row is 16 bytes here, whichever its size, in at most four lists at a time; a message some 60.

mod digests;
mod expected;
mod history;
mod letters;
mod offsets;
mod places;
mod sinks;
mod sources;
mod told;

use std::collections::BTreeMap;
use std::fmt;

use super::messages::Record;
use super::model::Model;

pub use expected::Expected;
pub use history::{Change, History, Part};
pub use offsets::{GroupOffset, decode as decode_group_offset};
pub use sources::{last_stable_and_end, of_stack};
pub use told::Told;

/// Something that can be read again and again, item by item.
pub type Stream<'a, T> = Box<dyn Fn(&mut dyn FnMut(T)) + Send + Sync + 'a>;

/// All that is looked at.
pub struct Evidence<'a> {
    pub model: &'a Model,
    /// The topic of campaigns: its name, and all of it.
    pub source: &'a str,
    pub input: Stream<'a, Record>,
    /// The sink table's rows as JSON, by Postgres's own writer.
    pub table: Stream<'a, String>,
    /// The output topic, `read_committed`.
    pub committed: Stream<'a, Record>,
    /// The output topic, aborted records included.
    pub uncommitted: Stream<'a, Record>,
    /// The dead-letter topic, `read_committed`.
    pub letters: Stream<'a, Record>,
    /// The dead-letter topic, aborted records included.
    pub uncommitted_letters: Stream<'a, Record>,
    pub history: History,
    /// What the group has ever committed to Kafka, in the order of the log.
    pub offsets: Vec<GroupOffset>,
    /// Stored parts that processes said they sent again: partition, from, to.
    pub sent_again: Vec<(i32, i64, i64)>,
    /// Micro-batches that processes said they counted.
    pub told: Vec<Told>,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub invariant: &'static str,
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

/// What was looked at, by name, and what was found wrong with it.
#[derive(Debug, Default)]
pub struct Examination {
    pub facts: BTreeMap<String, u64>,
    pub findings: Vec<Finding>,
}

impl Examination {
    pub fn find(&mut self, invariant: &'static str, what: impl Into<String>) {
        self.findings.push(Finding { invariant, what: what.into() });
    }

    pub fn fact(&mut self, name: impl Into<String>, count: u64) {
        self.facts.insert(name.into(), count);
    }

    /// Whether any finding breaks this promise.
    pub fn breaks(&self, invariant: &str) -> bool {
        self.findings.iter().any(|finding| finding.invariant == invariant)
    }
}

/// Examples of what is wrong, the first few of them, and how many there are in all.
#[derive(Debug, Default)]
struct Examples {
    count: u64,
    first: Vec<String>,
}

impl Examples {
    fn add(&mut self, example: impl FnOnce() -> String) {
        self.count += 1;
        if self.first.len() < 5 {
            self.first.push(example());
        }
    }

    /// A finding, where there is anything to find.
    fn report(self, invariant: &'static str, what: &str, to: &mut Examination) {
        if self.count > 0 {
            to.find(invariant, format!("{} {what}; the first: {}", self.count, self.first.join(" | ")));
        }
    }
}

/// Looks at everything.
pub fn examine(evidence: &Evidence<'_>) -> Examination {
    let mut examination = Examination::default();
    let mut expected = Expected::of(evidence, &mut examination);
    history::check(&evidence.history, &expected, &mut examination);
    offsets::check(&evidence.offsets, &evidence.history, &mut examination);
    told::check(&evidence.told, &expected, &mut examination);
    letters::check(evidence, &expected, &mut examination);
    sinks::check(evidence, &mut expected, &mut examination);
    examination
}
