//! What the model makes of the whole input.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::super::messages::Record;
use super::super::model::Verdict;
use super::digests::{Digest, digest};
use super::{Evidence, Examination, Examples};

/// One message's outcome, by its place in [`Expected::outcomes`], and its number of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judged {
    pub outcome: u8,
    pub rows: u32,
}

/// A dead letter as it has to be.
#[derive(Debug)]
pub struct Letter {
    pub stage: &'static str,
    pub path: String,
    /// Key and value.
    pub original: Digest,
    pub headers: Headers,
    pub timestamp: Option<i64>,
}

pub type Headers = Vec<(String, Option<Vec<u8>>)>;

/// The model's answer to the input.
#[derive(Debug, Default)]
pub struct Expected {
    /// By partition, from offset 0 on.
    pub messages: BTreeMap<i32, Vec<Judged>>,
    /// The names of the outcomes.
    pub outcomes: Vec<String>,
    /// Sorted digests of all rows, without the time of their making.
    pub rows: Vec<Digest>,
    /// Which message a row comes from, by its campaign's id.
    pub campaigns: HashMap<Digest, (i32, i64)>,
    /// Rows of messages that Postgres refuses: each may have been produced, and none committed.
    pub refused: HashSet<Digest>,
    /// By where their messages stand.
    pub letters: BTreeMap<(i32, i64), Letter>,
}

/// The outcome that makes rows.
const TRIGGERED: &str = "triggered";
const DEAD_LETTER: &str = "dead_letter";

impl Expected {
    pub fn of(evidence: &Evidence<'_>, to: &mut Examination) -> Expected {
        let mut expected = Expected { outcomes: vec![TRIGGERED.into(), DEAD_LETTER.into()], ..Expected::default() };
        let (mut twice, mut holes) = (Examples::default(), Examples::default());
        (evidence.input)(&mut |record| expected.add(evidence, &record, &mut twice, &mut holes));
        expected.rows.sort_unstable();
        // Both are faults of the harness: the checks below rely on them.
        twice.report("I2", "campaign ids stand in two messages of the input", to);
        holes.report("I2", "offsets of the input topic hold no message", to);
        to.fact("input messages", expected.messages.values().map(|messages| messages.len() as u64).sum());
        to.fact("rows", expected.rows.len() as u64);
        for (number, name) in expected.outcomes.iter().enumerate() {
            let all = expected.messages.values().flatten();
            to.fact(
                format!("outcome {name}"),
                all.filter(|judged| usize::from(judged.outcome) == number).count() as u64,
            );
        }
        expected
    }

    fn add(&mut self, evidence: &Evidence<'_>, record: &Record, twice: &mut Examples, holes: &mut Examples) {
        let verdict = evidence.model.judge(record.value.as_deref());
        let outcome = self.number(&verdict.outcome());
        let place = (record.partition, record.offset);
        let mut rows = 0;
        match verdict {
            Verdict::Triggered { campaign } => {
                evidence.model.rows(&campaign, |row| {
                    rows += 1;
                    self.rows.push(digest(row));
                });
                let known = self.campaigns.insert(digest(campaign.adv_campaign_id.as_bytes()), place);
                if let Some(known) = known {
                    twice.add(|| format!("{} at {known:?} and {place:?}", campaign.adv_campaign_id));
                }
            }
            Verdict::DeadLetter { stage, path } => {
                if let Some(campaign) = evidence.model.refused(record.value.as_deref()) {
                    evidence.model.rows(&campaign, |row| self.refused.extend([digest(row)]));
                }
                let (original, headers, timestamp) = (whole(record), record.headers.clone(), record.timestamp);
                self.letters.insert(place, Letter { stage, path, original, headers, timestamp });
            }
            Verdict::NotStarted | Verdict::Expired | Verdict::NoMatch => {}
        }
        let messages = self.messages.entry(record.partition).or_default();
        if messages.len() as i64 != record.offset {
            holes.add(|| format!("partition {}, before {}", record.partition, record.offset));
        }
        messages.push(Judged { outcome, rows });
    }

    fn number(&mut self, name: &str) -> u8 {
        let known = self.outcomes.iter().position(|known| known == name);
        let number = known.unwrap_or_else(|| {
            self.outcomes.push(name.to_owned());
            self.outcomes.len() - 1
        });
        u8::try_from(number).expect("a handful of outcomes")
    }

    /// The messages of a range; fewer where the input ends before.
    pub fn range(&self, partition: i32, from: i64, to: i64) -> &[Judged] {
        let messages = self.messages.get(&partition).map_or(&[][..], Vec::as_slice);
        let place = |offset: i64| usize::try_from(offset).unwrap_or_default().min(messages.len());
        &messages[place(from)..place(to).max(place(from))]
    }

    /// Whether a message makes rows or a letter.
    pub fn has_output(judged: &Judged) -> bool {
        judged.outcome <= 1
    }

    /// Messages by the name of their outcome.
    pub fn count(&self, messages: &[Judged]) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for judged in messages {
            *counts.entry(self.outcomes[usize::from(judged.outcome)].clone()).or_default() += 1;
        }
        counts
    }
}

/// Key and value, told apart from each other and from null.
pub fn whole(record: &Record) -> Digest {
    let part = |bytes: &Option<Vec<u8>>| match bytes {
        Some(bytes) => [&b"+"[..], &(bytes.len() as u64).to_be_bytes(), bytes].concat(),
        None => b"-".to_vec(),
    };
    digest(&[part(&record.key), part(&record.value)].concat())
}
