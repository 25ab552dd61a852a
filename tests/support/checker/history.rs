//! The ledger's history, as triggers of the harness wrote it down: I3, I5, and what the ledger counted (I2).

use std::collections::BTreeMap;

use super::expected::{Expected, Judged};
use super::{Examination, Examples};

/// One insert or update of a row of `progress`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub partition: i32,
    /// `next_offset` and epoch before; `None` for an insert.
    pub old: Option<(i64, i64)>,
    pub next_offset: i64,
    pub last_output_to: i64,
    pub epoch: i64,
    pub metadata: String,
    /// Milliseconds since the epoch, before the commit.
    pub at: i64,
}

/// A stored part's head, and how often it was deleted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    pub partition: i32,
    pub from: i64,
    pub to: i64,
    pub commit: String,
    pub rows: u64,
    pub letters: u64,
    pub outcomes: BTreeMap<String, u64>,
    /// Unix seconds.
    pub triggered_at: i64,
    pub deleted: u32,
}

/// Everything that was committed to the ledger, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    pub changes: Vec<Change>,
    pub parts: Vec<Part>,
    /// The end of each partition of the input.
    pub ends: BTreeMap<i32, i64>,
}

impl History {
    /// The parts of each partition, by where they begin.
    pub fn parts_by_start(&self) -> BTreeMap<(i32, i64), &Part> {
        self.parts.iter().map(|part| ((part.partition, part.from), part)).collect()
    }
}

pub fn check(history: &History, expected: &Expected, to: &mut Examination) {
    let mut parts: BTreeMap<(i32, i64, i64), Vec<&Part>> = BTreeMap::new();
    for part in &history.parts {
        parts.entry((part.partition, part.from, part.to)).or_default().push(part);
    }
    let mut walk = Walk::default();
    for change in &history.changes {
        walk.step(change, &mut parts, expected);
    }
    for (&partition, &end) in &history.ends {
        let reached = walk.reached.get(&partition).map(|(next, ..)| *next);
        if reached != Some(end) {
            walk.gaps.add(|| format!("partition {partition} ends at {end}, the ledger at {reached:?}"));
        }
    }
    let mut orphans = Examples::default();
    parts.into_values().flatten().for_each(|part| orphans.add(|| format!("{part:?}")));
    let mut kept = Examples::default();
    history.parts.iter().filter(|part| part.deleted != 1).for_each(|part| kept.add(|| format!("{part:?}")));
    let Walk { back, gaps, mixed, output, counts, advances, claims, .. } = walk;
    back.report("I3", "times next_offset or an epoch went back", to);
    gaps.report("I5", "places where advances do not tile a partition", to);
    mixed.report("I5", "changes of progress that are neither a claim nor an advance", to);
    orphans.report("I5", "stored parts belong to no advance", to);
    kept.report("I5", "stored parts were not deleted exactly once", to);
    output.report("I2", "advances whose stored part is missing or has other rows or letters than the model", to);
    counts.report("I2", "stored parts whose outcomes are not the model's", to);
    to.fact("advances", advances);
    to.fact("claims of a partition", claims);
    to.fact("stored parts", history.parts.len() as u64);
}

#[derive(Default)]
struct Walk {
    /// `next_offset`, epoch and `last_output_to` of each partition.
    reached: BTreeMap<i32, (i64, i64, i64)>,
    advances: u64,
    claims: u64,
    back: Examples,
    gaps: Examples,
    mixed: Examples,
    output: Examples,
    counts: Examples,
}

impl Walk {
    fn step(&mut self, change: &Change, parts: &mut BTreeMap<(i32, i64, i64), Vec<&Part>>, expected: &Expected) {
        let Change { partition, next_offset, last_output_to, epoch, .. } = *change;
        let before = self.reached.insert(partition, (next_offset, epoch, last_output_to));
        let (from, old_epoch, old_output) = match (before, change.old) {
            (None, None) => return,
            (Some(before), Some(old)) if (before.0, before.1) == old => before,
            (before, old) => {
                return self.gaps.add(|| format!("partition {partition}: {old:?} follows {before:?} in {change:?}"));
            }
        };
        if next_offset < from || epoch < old_epoch {
            self.back.add(|| format!("partition {partition}: from {from} (epoch {old_epoch}) in {change:?}"));
            return;
        }
        if next_offset == from {
            self.claims += u64::from(epoch > old_epoch);
            if last_output_to != old_output || epoch > old_epoch + 1 {
                self.mixed.add(|| format!("{change:?}"));
            }
            return;
        }
        self.advances += 1;
        if epoch != old_epoch {
            self.mixed.add(|| format!("{change:?}"));
        }
        let stored = parts.get_mut(&(partition, from, next_offset)).and_then(Vec::pop);
        let messages = expected.range(partition, from, next_offset);
        if messages.len() as i64 != next_offset - from {
            self.gaps.add(|| format!("partition {partition}: [{from}, {next_offset}) reaches beyond the input"));
        }
        match stored {
            Some(part) => self.advance_with(part, change, messages, expected),
            None => {
                if messages.iter().any(Expected::has_output) || last_output_to != old_output {
                    let counted = expected.count(messages);
                    self.output
                        .add(|| format!("partition {partition}: [{from}, {next_offset}) has no part: {counted:?}"));
                }
            }
        }
    }

    fn advance_with(&mut self, part: &Part, change: &Change, messages: &[Judged], expected: &Expected) {
        let mut fields = change.metadata.split(';').skip(1);
        let names_it = fields.next() == Some(&change.epoch.to_string()) && fields.next() == Some(&part.commit);
        let rows: u64 = messages.iter().map(|judged| u64::from(judged.rows)).sum();
        let whole = expected.count(messages);
        let letters = whole.get("dead_letter").copied().unwrap_or_default();
        if !names_it || change.last_output_to != part.to || (part.rows, part.letters) != (rows, letters) {
            self.output.add(|| format!("{part:?} by {change:?}; expected {rows} rows, {letters} letters"));
        }
        // A range may begin with messages of earlier cycles, without output and without a commit of their own: they were
        // counted then. What is counted here are the last ones.
        let counted = part.outcomes.values().sum::<u64>() + part.letters;
        let earlier = messages.len().saturating_sub(usize::try_from(counted).unwrap_or(usize::MAX));
        let mut here = expected.count(&messages[earlier..]);
        here.remove("dead_letter");
        if here != part.outcomes || messages[..earlier].iter().any(Expected::has_output) {
            self.counts.add(|| format!("{part:?}; expected {here:?} of the last {counted} messages"));
        }
    }
}
