//! What the model makes of the whole input, and the dead letters against it.

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
struct Letter {
    stage: &'static str,
    path: String,
    original: Digest,
    headers: Headers,
    timestamp: Option<i64>,
}

type Headers = Vec<(String, Option<Vec<u8>>)>;

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
    letters: BTreeMap<(i32, i64), Letter>,
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
fn whole(record: &Record) -> Digest {
    let part = |bytes: &Option<Vec<u8>>| match bytes {
        Some(bytes) => [&b"+"[..], &(bytes.len() as u64).to_be_bytes(), bytes].concat(),
        None => b"-".to_vec(),
    };
    digest(&[part(&record.key), part(&record.value)].concat())
}

/// The last one of this name, as text: the newest, where a letter came in again as a message.
fn last_header(record: &Record, name: &str) -> String {
    let found = record.headers.iter().rfind(|(header, _)| header == name).and_then(|(_, value)| value.as_deref());
    String::from_utf8_lossy(found.unwrap_or_default()).into_owned()
}

/// What is wrong with the headers that the job has added: these and no other, in this order, each with something to say.
fn labels(own: &[(String, Option<Vec<u8>>)], source: &str, timestamp: Option<i64>) -> Option<String> {
    let mut names = vec!["topic", "partition", "offset", "timestamp", "stage", "path", "reason", "sql_hash"];
    names.retain(|name| *name != "timestamp" || timestamp.is_some());
    if !own.iter().map(|(name, _)| name.strip_prefix("dinnerbell.")).eq(names.into_iter().map(Some)) {
        return Some(format!("{own:?}"));
    }
    let text = |name: &str| {
        let (_, value) = own.iter().find(|(header, _)| header.ends_with(name)).expect("it is one of the names");
        String::from_utf8_lossy(value.as_deref().unwrap_or_default())
    };
    let silent = own.iter().any(|(_, value)| value.as_deref().is_none_or(<[u8]>::is_empty));
    let elsewhere = text(".topic") != source;
    let then = timestamp.is_some_and(|timestamp| text(".timestamp") != timestamp.to_string());
    (silent || elsewhere || then).then(|| format!("{own:?}; expected {source}, {timestamp:?}"))
}

/// Every message that the model condemns has one letter, with the message untouched and the reason's place; and there is no
/// other letter.
pub fn check_letters(evidence: &Evidence<'_>, expected: &Expected, to: &mut Examination) {
    let (mut foreign, mut changed, mut misjudged) = (Examples::default(), Examples::default(), Examples::default());
    let (mut stripped, mut mislabelled) = (Examples::default(), Examples::default());
    let mut found: BTreeMap<(i32, i64), u64> = BTreeMap::new();
    (evidence.letters)(&mut |record| {
        let header = |name: &str| last_header(&record, &format!("dinnerbell.{name}"));
        let number = |name: &str| header(name).parse::<i64>().unwrap_or(-1);
        let place = (number("partition") as i32, number("offset"));
        let Some(letter) = expected.letters.get(&place) else {
            return foreign.add(|| format!("{place:?}: {}", header("reason")));
        };
        *found.entry(place).or_default() += 1;
        if letter.original != whole(&record) {
            changed.add(|| format!("{place:?}"));
        }
        let own = record.headers.strip_prefix(letter.headers.as_slice());
        match own {
            None => stripped.add(|| format!("{place:?}: {:?} instead of {:?}", record.headers, letter.headers)),
            Some(own) => {
                let wrong = labels(own, evidence.source, letter.timestamp);
                wrong.into_iter().for_each(|wrong| mislabelled.add(|| format!("{place:?}: {wrong}")));
            }
        }
        let (stage, path) = (header("stage"), header("path"));
        if (letter.stage, letter.path.as_str()) != (&stage, &path) {
            misjudged.add(|| {
                let reason = header("reason");
                format!("{place:?}: {stage} {path} ({reason}) instead of {} {}", letter.stage, letter.path)
            });
        }
    });
    let (mut missing, mut doubled) = (Examples::default(), Examples::default());
    for place in expected.letters.keys() {
        match found.get(place) {
            None => missing.add(|| format!("{place:?}")),
            Some(1) => {}
            Some(times) => doubled.add(|| format!("{place:?}, {times} times")),
        }
    }
    foreign.report("I2", "dead letters of messages that are none", to);
    missing.report("I2", "dead letters are lost", to);
    doubled.report("I2", "dead letters are doubled", to);
    changed.report("I2", "dead letters differ from their message", to);
    stripped.report("I2", "dead letters have not kept the headers of their message", to);
    mislabelled.report("I2", "dead letters are labelled wrongly", to);
    misjudged.report("I2", "dead letters give another stage or path than the model", to);
    to.fact("dead letters", found.values().sum());
}
