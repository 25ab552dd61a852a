//! The rows: both sinks against the model and against each other (I1), each message's rows counted (I2), and the aborted
//! records against the committed ones (I6).
//!
//! What I6 proves: every aborted record is, its time left out, a row of the model, or of a message that Postgres refused; and
//! where its time is that of the stored part which its message ended in, the very same bytes stand committed in the topic. Every
//! re-emission that a process told of is of a part that Postgres had committed. What it does not prove: which transaction an aborted record belonged to. An
//! attempt that Postgres rolled back and that was made in the same second as the stored one cannot be told from it, and
//! need not be: its bytes are compared all the same.

use std::collections::{BTreeMap, BTreeSet};

use super::super::messages::Record;
use super::super::model::{Verdict, id_in, split_time};
use super::digests::{Digest, Rows, difference, digest};
use super::expected::Expected;
use super::history::Part;
use super::places::Places;
use super::{Evidence, Examination, Examples, Stream};

pub fn check(evidence: &Evidence<'_>, expected: &mut Expected, to: &mut Examination) {
    let parts = Parts(evidence.history.parts_by_start());
    let topic = Topic::read(evidence, expected, &parts, to);
    compare("the output topic and the model", "I1", &expected.rows, &topic.timeless, to, || {
        (model_rows(evidence), timeless_rows(records(&evidence.committed)))
    });
    let Topic { whole, offsets, .. } = topic;
    aborted(evidence, expected, &parts, &whole, &offsets, to);
    sent_again(evidence, &parts, to);
    let (mut table, mut timeless) = (Vec::with_capacity(whole.len()), Vec::with_capacity(whole.len()));
    (evidence.table)(&mut |row| {
        table.push(digest(row.as_bytes()));
        timeless.push(digest(split_time(row.as_bytes()).map_or(row.as_bytes(), |(timeless, _)| timeless)));
    });
    table.sort_unstable();
    timeless.sort_unstable();
    to.fact("rows in the table", table.len() as u64);
    compare("the sink table and the model", "I1", &expected.rows, &timeless, to, || {
        (model_rows(evidence), timeless_rows(texts(&evidence.table)))
    });
    compare("the sink table and the output topic, whole rows", "I1", &whole, &table, to, || {
        (records(&evidence.committed), texts(&evidence.table))
    });
}

fn compare<'a>(
    what: &str,
    invariant: &'static str,
    expected: &[Digest],
    found: &[Digest],
    to: &mut Examination,
    again: impl FnOnce() -> (Rows<'a>, Rows<'a>),
) {
    let difference = difference(expected, found);
    if !difference.is_none() {
        let (expected, found) = again();
        to.find(invariant, format!("{what}: {}", difference.describe(&expected, &found)));
    }
}

fn records<'a>(stream: &'a Stream<'_, Record>) -> Rows<'a> {
    Box::new(move |each| stream(&mut |record| each(record.value.as_deref().unwrap_or_default())))
}

fn texts<'a>(stream: &'a Stream<'_, String>) -> Rows<'a> {
    Box::new(move |each| stream(&mut |text| each(text.as_bytes())))
}

fn timeless_rows(rows: Rows<'_>) -> Rows<'_> {
    Box::new(move |each| rows(&mut |row| each(split_time(row).map_or(row, |(timeless, _)| timeless))))
}

fn model_rows<'a>(evidence: &'a Evidence<'_>) -> Rows<'a> {
    Box::new(move |each| {
        (evidence.input)(&mut |record| {
            if let Verdict::Triggered { campaign } = evidence.model.judge(record.value.as_deref()) {
                evidence.model.rows(&campaign, &mut *each);
            }
        });
    })
}

/// The stored parts by where they begin.
struct Parts<'a>(BTreeMap<(i32, i64), &'a Part>);

impl Parts<'_> {
    /// The part that a message ended in.
    fn of(&self, (partition, offset): (i32, i64)) -> Option<&Part> {
        let (_, part) = self.0.range(..=(partition, offset)).next_back()?;
        (part.partition == partition && offset < part.to).then_some(part)
    }
}

/// What the committed records come to.
struct Topic {
    whole: Vec<Digest>,
    timeless: Vec<Digest>,
    offsets: Places,
}

impl Topic {
    fn read(evidence: &Evidence<'_>, expected: &Expected, parts: &Parts<'_>, to: &mut Examination) -> Topic {
        let room = expected.rows.len();
        let (mut whole, mut timeless) = (Vec::with_capacity(room), Vec::with_capacity(room));
        let mut offsets = Places::default();
        let mut counts: BTreeMap<i32, Vec<u32>> =
            expected.messages.iter().map(|(partition, messages)| (*partition, vec![0; messages.len()])).collect();
        let (mut strange, mut late) = (Examples::default(), Examples::default());
        let (mut misplaced, mut adorned) = (Examples::default(), Examples::default());
        (evidence.committed)(&mut |record| {
            let row = record.value.as_deref().unwrap_or_default();
            look_beside(evidence, &record, &mut misplaced, &mut adorned);
            offsets.insert(record.partition, record.offset);
            whole.push(digest(row));
            let split = split_time(row);
            timeless.push(digest(split.map_or(row, |(timeless, _)| timeless)));
            let place = place_of(row, expected);
            let (Some((_, time)), Some(place)) = (split, place) else {
                return strange.add(|| String::from_utf8_lossy(row).into_owned());
            };
            if let Some(count) = counts.get_mut(&place.0).and_then(|counts| counts.get_mut(place.1 as usize)) {
                *count += 1;
            }
            let stored = parts.of(place).map(|part| part.triggered_at);
            if stored != Some(time) {
                late.add(|| format!("message {place:?}: a row of {time}, its part of {stored:?}"));
            }
        });
        whole.sort_unstable();
        timeless.sort_unstable();
        strange.report("I1", "records of the output topic come from no message that triggers", to);
        misplaced.report("I1", KEYS, to);
        adorned.report("I1", HEADERS, to);
        late.report("I1", "rows have another time than the stored part of their message", to);
        miscounted(&counts, expected, to);
        to.fact("rows in the topic", whole.len() as u64);
        Topic { whole, timeless, offsets }
    }
}

const KEYS: &str = "records of the output topic have another key than their row";
const HEADERS: &str = "records of the output topic have headers";

/// A record's key and headers: the one that the settings name, and none.
fn look_beside(evidence: &Evidence<'_>, record: &Record, misplaced: &mut Examples, adorned: &mut Examples) {
    let (row, shown) = (record.value.as_deref().unwrap_or_default(), String::from_utf8_lossy);
    let key = evidence.model.key_of(row);
    if record.key != key {
        misplaced.add(|| {
            let [found, wanted] = [&record.key, &key].map(|key| key.as_deref().map(shown));
            format!("{found:?} instead of {wanted:?} with {}", shown(row))
        });
    }
    if !record.headers.is_empty() {
        adorned.add(|| format!("{:?} with {}", record.headers, shown(row)));
    }
}

/// Which message a row comes from.
fn place_of(row: &[u8], expected: &Expected) -> Option<(i32, i64)> {
    expected.campaigns.get(&digest(id_in(row, "adv_campaign_id")?)).copied()
}

fn miscounted(counts: &BTreeMap<i32, Vec<u32>>, expected: &Expected, to: &mut Examination) {
    let mut wrong = Examples::default();
    for (partition, counts) in counts {
        let messages = &expected.messages[partition];
        for (offset, (found, judged)) in counts.iter().zip(messages).enumerate() {
            if *found != judged.rows {
                let outcome = &expected.outcomes[usize::from(judged.outcome)];
                let rows = judged.rows;
                wrong.add(|| format!("({partition}, {offset}): {found} rows, its outcome is {outcome} with {rows}"));
            }
        }
    }
    wrong.report("I2", "messages have another number of rows than their outcome", to);
}

/// Looks at every record that a `read_committed` reader does not see.
fn aborted(
    evidence: &Evidence<'_>,
    expected: &Expected,
    parts: &Parts<'_>,
    committed: &[Digest],
    offsets: &Places,
    to: &mut Examination,
) {
    let (mut wrong, mut changed) = (Examples::default(), Examples::default());
    let (mut misplaced, mut adorned) = (Examples::default(), Examples::default());
    let (mut count, mut refused, mut of_stored, mut in_parts) = (0, 0, 0, BTreeSet::new());
    (evidence.uncommitted)(&mut |record| {
        if offsets.contains(record.partition, record.offset) {
            return;
        }
        count += 1;
        look_beside(evidence, &record, &mut misplaced, &mut adorned);
        let row = record.value.as_deref().unwrap_or_default();
        let shown = || String::from_utf8_lossy(row).into_owned();
        let Some((timeless, time)) = split_time(row) else { return wrong.add(shown) };
        let timeless = digest(timeless);
        if expected.refused.contains(&timeless) {
            refused += 1;
            return;
        }
        let Some(place) = place_of(row, expected) else { return wrong.add(shown) };
        if expected.rows.binary_search(&timeless).is_err() {
            return wrong.add(shown);
        }
        if let Some(part) = parts.of(place).filter(|part| part.triggered_at == time) {
            of_stored += 1;
            in_parts.insert((part.partition, part.from));
            if committed.binary_search(&digest(row)).is_err() {
                changed.add(shown);
            }
        }
    });
    misplaced.report("I6", KEYS, to);
    adorned.report("I6", HEADERS, to);
    wrong.report("I6", "aborted records are no rows of the model", to);
    changed.report("I6", "aborted records of a stored part do not stand committed, byte for byte", to);
    to.fact("aborted records", count);
    to.fact("aborted records of messages that Postgres refused", refused);
    to.fact("aborted records of stored parts, committed with the same bytes", of_stored);
    to.fact("stored parts with aborted records", in_parts.len() as u64);
}

fn sent_again(evidence: &Evidence<'_>, parts: &Parts<'_>, to: &mut Examination) {
    let mut unknown = Examples::default();
    for &(partition, from, end) in &evidence.sent_again {
        if parts.0.get(&(partition, from)).is_none_or(|part| part.to != end) {
            unknown.add(|| format!("partition {partition}: [{from}, {end})"));
        }
    }
    unknown.report("I6", "re-emissions are of no part that Postgres has committed", to);
    to.fact("re-emissions begun", evidence.sent_again.len() as u64);
}
