//! Whether readers of the output topic have a batch: decided by the records that are there, for each batch wholly or not
//! at all. A batch of which some rows are there and others not is refused.

use std::collections::{BTreeMap, BTreeSet};

use rdkafka::message::Message;
use uuid::Uuid;

use super::change::{Case, Resend, refuse};
use super::compare::Compare;
use super::mission::Mission;
use super::topic;
use crate::dead_letter::{self, Letter};
use crate::encode::chunk;
use crate::error::Result;
use crate::job::setup;
use crate::kafka;
use crate::ledger::ailment::Verb;
use crate::ledger::store::{ChunkKind, Ledger, PartHead};
use crate::messages::MessagesBuilder;

/// What is to be sent, and what has been.
#[derive(Default)]
pub struct Verdict {
    pub emit: Vec<PartHead>,
    pub resend: Option<Resend>,
    /// Batches that readers have.
    pub done: Vec<(Uuid, i32)>,
    pub says: Vec<String>,
}

/// How much of a batch the topic lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    All,
    Nothing,
    /// It cannot be known, for this reason, and `--accept-lost-messages` says not to send it.
    GivenUp(String),
}

/// Weighs a batch of `expected` rows, of which `missing` are not in the topic.
pub fn weigh(what: &str, expected: i64, missing: i64) -> Result<Missing> {
    match missing {
        0 => Ok(Missing::Nothing),
        missing if missing == expected => Ok(Missing::All),
        missing => Err(refuse(
            format!(
                "{what}: {missing} of its {expected} rows are in the sink table and not in the output topic, the others \
                 are in both or not in the table: rows were changed or deleted since, or the topic has lost some"
            ),
            "put the sink table's rows back as they were; nothing can be decided before",
        )),
    }
}

/// Weighs a stored batch of `expected` rows: `absent` of them are not in the topic, `owed` of them the table has more often
/// than the topic.
fn weigh_stored(what: &str, expected: i64, absent: i64, owed: i64) -> Result<Missing> {
    match (absent, owed) {
        // Nothing of it is there, whatever has become of its rows in the table.
        (absent, _) if absent == expected => Ok(Missing::All),
        // What is there are equal rows of other batches: the table has all of them once more.
        (_, owed) if owed == expected => Ok(Missing::All),
        (0, 0) => Ok(Missing::Nothing),
        (absent, owed) => Err(refuse(
            format!(
                "{what}: {absent} of its {expected} rows are not in the output topic, and {owed} are in the sink table more \
                 often than in the topic: equal rows of other batches cannot be told apart from it once the sink table was \
                 changed, or the topic has lost some"
            ),
            "put the sink table's rows back as they were; nothing can be decided before",
        )),
    }
}

/// What was weighed, if the topic can be asked: one that has lost records since the batch was made proves by those that are
/// there, and by none that are not.
async fn proven(
    case: &Case<'_>,
    what: &str,
    topic: &str,
    since: Option<i64>,
    weighed: Result<Missing>,
) -> Result<Missing> {
    if matches!(weighed, Ok(Missing::Nothing)) {
        return weighed;
    }
    let Some(why) = topic::uncovered(case.site, topic, since).await? else { return weighed };
    if case.verbs.contains(&Verb::AcceptLostMessages) {
        return Ok(Missing::GivenUp(why));
    }
    Err(refuse(
        format!(
            "whether readers have had {what} cannot be known: it is not all in {topic}, and may have been there before: {why}"
        ),
        "ask the topic's readers. Add --accept-lost-messages to take it for sent: it is not sent again, and its rows stay in the \
         sink table, from where those that readers never had can be sent by hand",
    ))
}

fn given_up(what: &str, why: &str) -> String {
    format!("{what}: whether readers have had it cannot be known ({why}): it is given up, and not sent again")
}

fn name(part: &PartHead) -> String {
    format!("the stored batch [{}, {}) of partition {}", part.from, part.to, part.partition)
}

/// Judges stored batches, readable or not.
///
/// # Errors
/// [`Error::Halt`] where it cannot be decided.
pub async fn judge(case: &Case<'_>, parts: &[PartHead]) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    let Some(first) = parts.first() else {
        verdict.says.push("no stored batch waits: all output that the ledger knows of is confirmed".into());
        return Ok(verdict);
    };
    if parts.iter().any(|part| part.output_topic != first.output_topic) {
        return Err(refuse(
            "the stored batches are for different output topics",
            "please report it, with the rows of the ledger's parts table",
        ));
    }
    let (broken, sound): (Vec<&PartHead>, Vec<&PartHead>) =
        parts.iter().partition(|part| case.picture.is_unreadable(part));
    if !sound.is_empty() {
        judge_sound(case, &sound, &mut verdict).await?;
    }
    if !broken.is_empty() {
        judge_broken(case, &broken, &mut verdict).await?;
    }
    Ok(verdict)
}

/// Batches whose rows the ledger has.
async fn judge_sound(case: &Case<'_>, parts: &[&PartHead], verdict: &mut Verdict) -> Result<()> {
    let ledger = case.ledger()?;
    let shape = setup::describe_table(&case.site.config, &case.site.postgres).await?;
    let mut comparison: Option<(Vec<String>, Compare<'_>)> = None;
    let mut trimmed = None;
    for part in parts {
        let missing = if part.rows == 0 {
            judge_letters(case, part).await?
        } else {
            let columns = columns_of(case, ledger, part).await?;
            if comparison.as_ref().is_none_or(|(of, _)| *of != columns) {
                let fresh = Compare::new(case.site, &shape, &columns)?;
                fresh.stage_topic(&part.output_topic).await?;
                trimmed = topic::is_whole(case.site, &part.output_topic).await?;
                comparison = Some((columns, fresh));
            }
            let Some((_, comparison)) = &comparison else { continue };
            let stored = comparison.stage_parts(ledger, &[(*part).clone()]).await?;
            if let (Some(why), true) = (&trimmed, comparison.stored_twice().await? > 0) {
                return Err(refuse(
                    format!("{} has rows that the table also has from other batches, and {why}", name(part)),
                    "equal rows cannot be told apart: look at the output topic by hand",
                ));
            }
            let absent = comparison.stored_and_not_in_topic().await?;
            let weighed = weigh_stored(&name(part), stored, absent, comparison.stored_and_not_sent().await?);
            let made = ledger.made_at(&case.site.postgres, part.commit_id).await?;
            proven(case, &name(part), &part.output_topic, made, weighed).await?
        };
        match missing {
            Missing::All => {
                verdict.says.push(format!(
                    "{}: none of its {} rows and {} dead letters are in the topics: it is sent",
                    name(part),
                    part.rows,
                    part.letters
                ));
                verdict.emit.push((*part).clone());
            }
            Missing::Nothing => verdict.says.push(format!(
                "{}: all of its {} rows and {} dead letters are in the topics: it is not sent again",
                name(part),
                part.rows,
                part.letters
            )),
            Missing::GivenUp(why) => verdict.says.push(given_up(&name(part), &why)),
        }
        verdict.done.push((part.commit_id, part.partition));
    }
    Ok(())
}

async fn columns_of(case: &Case<'_>, ledger: &Ledger, part: &PartHead) -> Result<Vec<String>> {
    let mut number = 0;
    while let Some((kind, body)) = ledger.chunk(&case.site.postgres, part, number).await? {
        if kind == ChunkKind::Rows {
            let batch = chunk::unpack(&body)?;
            return Ok(batch.schema_ref().fields().iter().map(|field| field.name().clone()).collect());
        }
        number += 1;
    }
    Err(refuse(format!("{} has no rows", name(part)), "please report it"))
}

/// Batches that cannot be read: the sink table has their rows, by the transaction that stored them.
async fn judge_broken(case: &Case<'_>, parts: &[&PartHead], verdict: &mut Verdict) -> Result<()> {
    let (ledger, postgres) = (case.ledger()?, &case.site.postgres);
    let mission = Mission::load(case.site).await?;
    let commits: BTreeSet<Uuid> = parts.iter().map(|part| part.commit_id).collect();
    let mut transactions = Vec::new();
    for commit in &commits {
        let hash = ledger.sql_hash_of(postgres, *commit).await?.unwrap_or_default();
        if hash != mission.hash {
            return Err(refuse(
                format!(
                    "the batch of commit {commit} was made with other SQL files (hash {hash}, now {})",
                    mission.hash
                ),
                "put those files back until the repair is done: they say which columns a row has",
            ));
        }
        transactions.extend(ledger.transactions_of(postgres, *commit).await?);
    }
    let all = || case.picture.parts.iter().chain(&case.picture.old_parts);
    let siblings: Vec<PartHead> =
        all().filter(|part| commits.contains(&part.commit_id) && !case.picture.is_unreadable(part)).cloned().collect();
    let comparison = Compare::new(case.site, &mission.shape, &mission.engine.columns)?;
    comparison.stage_topic(&parts[0].output_topic).await?;
    comparison.stage_parts(ledger, &siblings).await?;
    let there = comparison.lost_of_transactions(&transactions).await?;
    let missing = comparison.lost_and_not_sent().await?;
    let expected = parts.iter().map(|part| part.rows).sum::<i64>();
    let table = mission.shape.quoted();
    if there < expected {
        return Err(refuse(
            format!(
                "{table} has {there} rows of the transaction that stored the batch, {expected} are to be sent: some were \
                 changed or deleted since, or the database was restored from a dump"
            ),
            "restore the ledger's parts and chunks tables",
        ));
    }
    let outcome = match expected {
        0 => judge_letters(case, parts[0]).await?,
        expected => {
            let what = "the unreadable batch";
            let made = ledger.made_at(postgres, parts[0].commit_id).await?;
            proven(case, what, &parts[0].output_topic, made, weigh(what, expected, missing)).await?
        }
    };
    verdict.done.extend(parts.iter().map(|part| (part.commit_id, part.partition)));
    if let Missing::GivenUp(why) = outcome {
        verdict.says.push(given_up("the unreadable batch", &why));
        return Ok(());
    }
    if outcome == Missing::Nothing {
        verdict
            .says
            .push(format!("all {expected} rows of the unreadable batch are in the output topic: nothing is sent"));
        return Ok(());
    }
    let mut letters = Vec::new();
    for part in parts {
        letters.extend(letters_of(case, ledger, &mission, part).await?);
    }
    verdict.says.push(format!(
        "{expected} rows are in {table}, written by the transaction that stored the batch, and not in {}: they are sent, \
         with {} dead letters",
        parts[0].output_topic,
        letters.len()
    ));
    verdict.resend = Some(Resend {
        mission,
        topic: parts[0].output_topic.clone(),
        key: parts[0].output_key.clone(),
        rows: expected,
        letter_topic: parts[0].letter_topic.clone(),
        letters,
    });
    Ok(())
}

/// Batches of which the ledger has nothing left: whatever the table has and the topic has not.
pub async fn search(case: &Case<'_>, partitions: &[i32]) -> Result<Verdict> {
    let (site, ledger) = (case.site, case.ledger()?);
    let mission = Mission::load(site).await?;
    let output = site.config.sink_kafka.topic.clone();
    let comparison = Compare::new(site, &mission.shape, &mission.engine.columns)?;
    comparison.stage_topic(&output).await?;
    comparison.stage_nothing().await?;
    let rows = case.picture.rows.iter().filter(|row| partitions.contains(&row.partition));
    let commits: BTreeSet<Uuid> = rows.filter_map(|row| row.commit).collect();
    let table = mission.shape.quoted();
    let since = read_at(case, partitions).await?;
    let missing = match topic::is_whole(site, &output).await? {
        None => {
            let (missing, writers) = comparison.lost_of_table().await?;
            if writers.len() > commits.len() {
                return Err(refuse(
                    format!(
                        "{missing} rows of {table} are not in {output}, written by {} transactions: a lost batch is one. Rows \
                         of other origin are among them, or {output} was made anew",
                        writers.len()
                    ),
                    "restore the ledger's parts and chunks tables",
                ));
            }
            missing
        }
        Some(why) => {
            let (mut writers, mut unknown) = (Vec::new(), false);
            for commit in &commits {
                let found = ledger.transactions_of(&site.postgres, *commit).await?;
                unknown |= found.is_empty();
                writers.extend(found);
            }
            if unknown {
                return Err(refuse(
                    format!("which rows of {table} are not in {output} cannot be told: {why}"),
                    "restore the ledger's parts and chunks tables",
                ));
            }
            let there = comparison.lost_of_transactions(&writers).await?;
            let missing = comparison.lost_and_not_sent().await?;
            let weighed = weigh("the lost batch", there, missing);
            if let Missing::GivenUp(why) = proven(case, "the lost batch", &output, since, weighed).await? {
                return Ok(Verdict { says: vec![given_up("the lost batch", &why)], ..Verdict::default() });
            }
            missing
        }
    };
    let mut letters = Vec::new();
    for partition in partitions {
        let Some(seen) = case.picture.seen(*partition) else { continue };
        let from = seen.kafka.as_ref().map_or(seen.progress.next_offset, |kafka| kafka.offset);
        let to = seen.progress.last_output_to;
        let sent = letters_sent(case, &site.config.dead_letters.topic, *partition, from, to).await?;
        let again = decode_again(case, &mission, *partition, from, to).await?;
        letters.extend(again.into_iter().filter(|(offset, _)| !sent.contains(offset)).map(|(_, letter)| letter));
    }
    if !letters.is_empty() {
        let (what, to) = ("the lost batch's dead letters", &site.config.dead_letters.topic);
        if let Missing::GivenUp(_) = proven(case, what, to, since, Ok(Missing::All)).await? {
            letters.clear();
        }
    }
    let says = vec![format!(
        "{missing} rows of {table} are not in {output}: they are sent, with {} dead letters that decode as such again",
        letters.len()
    )];
    let resend = (missing > 0 || !letters.is_empty()).then(|| Resend {
        topic: output,
        key: site.config.sink_kafka.key.clone(),
        rows: missing,
        letter_topic: site.config.dead_letters.topic.clone(),
        letters,
        mission,
    });
    Ok(Verdict { resend, says, ..Verdict::default() })
}

/// When the oldest message after Kafka's offsets was written: what the job made of it is younger.
async fn read_at(case: &Case<'_>, partitions: &[i32]) -> Result<Option<i64>> {
    let mut oldest = None;
    for partition in partitions {
        let kafka = case.picture.offsets.get(partition).map(|kafka| kafka.offset);
        let Some(written) = case.written_at(*partition, kafka.unwrap_or_default()).await? else { return Ok(None) };
        oldest = Some(oldest.map_or(written, |oldest: i64| oldest.min(written)));
    }
    Ok(oldest)
}

/// A batch of dead letters alone: by the letters in their topic.
async fn judge_letters(case: &Case<'_>, part: &PartHead) -> Result<Missing> {
    let sent = letters_sent(case, &part.letter_topic, part.partition, part.from, part.to).await?;
    let what = format!("{}, dead letters", name(part));
    let weighed = weigh(&what, part.letters, part.letters - sent.len() as i64);
    let made = case.ledger()?.made_at(&case.site.postgres, part.commit_id).await?;
    proven(case, &what, &part.letter_topic, made, weighed).await
}

/// The offsets of this partition's messages in the range that have a letter in the topic.
async fn letters_sent(case: &Case<'_>, topic: &str, partition: i32, from: i64, to: i64) -> Result<BTreeSet<i64>> {
    let (reader, topic) = (case.site.config.source.clone(), topic.to_owned());
    let (source, range) = (case.picture.topic.clone(), from..to);
    kafka::blocking(move || {
        let mut found = BTreeSet::new();
        topic::read(&reader, &topic, |message| {
            // The last ones are the newest.
            let mut ours: BTreeMap<String, String> = BTreeMap::new();
            for (name, value) in kafka::headers(message) {
                ours.insert(name, String::from_utf8_lossy(&value.unwrap_or_default()).into_owned());
            }
            let is = |key: &str, value: &str| ours.get(key).is_some_and(|found| found == value);
            if is("dinnerbell.topic", &source) && is("dinnerbell.partition", &partition.to_string()) {
                let offset = ours.get("dinnerbell.offset").and_then(|offset| offset.parse().ok());
                found.extend(offset.filter(|offset| range.contains(offset)));
            }
            Ok(())
        })?;
        Ok(found)
    })
    .await
}

/// The letters of an unreadable batch: from its chunks where those can be read, from the input topic otherwise.
async fn letters_of(case: &Case<'_>, ledger: &Ledger, mission: &Mission, part: &PartHead) -> Result<Vec<Letter>> {
    if part.letters == 0 {
        return Ok(Vec::new());
    }
    let mut stored = Vec::new();
    let mut number = 0;
    while let Some((kind, body)) = ledger.chunk(&case.site.postgres, part, number).await? {
        if kind == ChunkKind::Letters {
            let read = chunk::unpack(&body).and_then(|batch| dead_letter::from_record_batch(&batch));
            stored.extend(read.unwrap_or_default());
        }
        number += 1;
    }
    if stored.len() as i64 == part.letters {
        return Ok(stored);
    }
    let again = decode_again(case, mission, part.partition, part.from, part.to).await?;
    if again.len() as i64 != part.letters {
        return Err(refuse(
            format!(
                "{}: {} of its {} dead letters can be made again from the input topic; the others were refused later than by \
                 decoding, or their messages are gone",
                name(part),
                again.len(),
                part.letters
            ),
            "restore the ledger's parts and chunks tables",
        ));
    }
    Ok(again.into_iter().map(|(_, letter)| letter).collect())
}

/// The messages of a range that do not decode, as letters.
async fn decode_again(
    case: &Case<'_>,
    mission: &Mission,
    partition: i32,
    from: i64,
    to: i64,
) -> Result<Vec<(i64, Letter)>> {
    let (reader, source) = (case.site.config.source.clone(), case.picture.topic.clone());
    let asked = source.clone();
    let messages = kafka::blocking(move || {
        let mut builder = MessagesBuilder::default();
        topic::read_partition(&reader, &asked, partition, from, to, |message| {
            let timestamp = message.timestamp().to_millis();
            let headers = kafka::headers(message);
            builder.push(message.offset(), timestamp, message.key(), message.payload(), headers);
        })?;
        Ok(builder.finish())
    })
    .await?;
    let decoded = mission.engine.decoder.decode(&messages)?;
    let letters = dead_letter::collect(&source, partition, &messages, &decoded.rejects, &mission.hash);
    let offsets = decoded.rejects.iter().map(|reject| messages.offset(reject.row as usize));
    Ok(offsets.zip(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn a_stored_batch_is_judged_by_the_topic_and_then_by_the_table() {
        let weigh = |absent, owed| weigh_stored("b", 10, absent, owed);
        // Also where its rows were deleted from the table, some or all.
        for owed in [0, 4, 10] {
            assert_eq!(weigh(10, owed).unwrap(), Missing::All);
        }
        assert_eq!(weigh(0, 0).unwrap(), Missing::Nothing);
        // Equal rows of other batches are there.
        assert_eq!(weigh(0, 10).unwrap(), Missing::All);
        for (absent, owed) in [(3, 0), (3, 3), (0, 3)] {
            assert!(matches!(weigh(absent, owed), Err(Error::Halt { .. })), "{absent} {owed}");
        }
    }

    #[test]
    fn a_batch_is_there_wholly_or_not_at_all() {
        assert_eq!(weigh("b", 10, 0).unwrap(), Missing::Nothing);
        assert_eq!(weigh("b", 10, 10).unwrap(), Missing::All);
        for half in [1, 9, 11] {
            let Err(Error::Halt { what, .. }) = weigh("b", 10, half) else { panic!("{half}") };
            assert!(what.contains(&format!("{half} of its 10 rows")), "{what}");
        }
    }
}
