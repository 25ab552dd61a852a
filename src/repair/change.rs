//! What a repair would do, worked out in full before anything is done. Only reads (and temporary tables).

use uuid::Uuid;

use super::compare::Compare;
use super::evidence::{self, Verdict};
use super::findings::Finding;
use super::inspect::{Books, Picture, Site};
use super::mission::Mission;
use super::topic;
use crate::config::Start;
use crate::dead_letter::Letter;
use crate::error::{Error, Result};
use crate::kafka;
use crate::ledger::ailment::{Ailment, Verb};
use crate::ledger::decide::{self, Decision, KafkaOffset, Seen, compare, diagnose};
use crate::ledger::repairs::Position;
use crate::ledger::store::{Ledger, PartHead, metadata};
use crate::sink::kafka::OffsetCommit;

/// One repair, ready to be carried out: first Kafka's side, in one transaction, then Postgres's, in one transaction.
/// After a crash between the two the next `dinnerbell repair` finds the rows in the topic.
#[derive(Default)]
pub struct Change {
    pub verb: Option<Verb>,
    /// What was wrong, for the record.
    pub reason: String,
    /// What it does, line by line.
    pub says: Vec<String>,
    /// Stored batches that are sent as they are.
    pub emit: Vec<PartHead>,
    /// Rows of the temporary table, and letters, that are sent in their place.
    pub resend: Option<Resend>,
    pub offsets: Vec<OffsetCommit>,
    /// Inserts the topic's rows that the table lacks.
    pub insert: Option<Mission>,
    pub positions: Vec<Position>,
    pub forget_old_topics: bool,
    /// Stored batches that have done their work.
    pub done_parts: Vec<(Uuid, i32)>,
}

/// Output that is sent without a stored batch.
pub struct Resend {
    pub mission: Mission,
    pub topic: String,
    pub key: Option<String>,
    pub rows: i64,
    pub letter_topic: String,
    pub letters: Vec<Letter>,
}

/// What a repair is worked out from.
pub struct Case<'a> {
    pub site: &'a Site,
    pub picture: &'a Picture,
    pub ledger: Option<&'a Ledger>,
    pub findings: &'a [Finding],
    /// The verbs that were asked for: consent to a loss may go with another repair.
    pub verbs: &'a [Verb],
}

impl Case<'_> {
    /// # Errors
    /// [`Error::Halt`] where the repair cannot be done, with why.
    pub async fn work_out(&self, verb: Verb) -> Result<Change> {
        let mut change = match verb {
            Verb::NewTopic => self.new_topic().await?,
            Verb::Adopt => self.adopt().await?,
            Verb::RebuildTable => self.rebuild_table().await?,
            Verb::ResendFromTable => self.resend().await?,
            Verb::Offsets => self.offsets().await?,
            Verb::AcceptLostMessages => self.accept_lost()?,
        };
        change.verb = Some(verb);
        let reasons = self.findings.iter().filter(|finding| finding.verb == Some(verb));
        change.reason =
            reasons.map(|finding| format!("{}: {}", finding.place, finding.what)).collect::<Vec<_>>().join("\n");
        Ok(change)
    }

    pub fn ledger(&self) -> Result<&Ledger> {
        self.ledger.ok_or_else(|| refuse("there is no ledger", "`dinnerbell repair --adopt` makes one"))
    }

    /// The partitions that the verb's findings are about, as they are seen.
    pub fn patients(&self, verb: Verb) -> Vec<(i32, Option<Seen>)> {
        let about = self.findings.iter().filter(|finding| finding.verb == Some(verb));
        about.filter_map(|finding| finding.partition).map(|at| (at, self.picture.seen(at))).collect()
    }

    fn place(&self, partition: i32) -> String {
        format!("{}[{partition}]", self.picture.topic)
    }

    async fn new_topic(&self) -> Result<Change> {
        let ledger = self.ledger()?;
        let mut change = Change { forget_old_topics: true, ..Change::default() };
        let verdict = evidence::judge(self, &self.picture.old_parts).await?;
        verdict.into_change(&mut change);
        let fresh = ledger.fresh_metadata();
        for (&partition, &(low, _)) in &self.picture.marks {
            change.offsets.push(OffsetCommit { partition, offset: low, metadata: fresh.clone() });
            change.positions.push(at(partition, low, low, &fresh));
            change.says.push(format!("{}: begins at {low}", self.place(partition)));
        }
        change.says.push("the old topic's rows of the ledger go into its table repairs".into());
        Ok(change)
    }

    async fn offsets(&self) -> Result<Change> {
        let ledger = self.ledger()?;
        let mut change = Change::default();
        let patients = self.patients(Verb::Offsets);
        let waiting: Vec<PartHead> = patients
            .iter()
            .filter_map(|(_, seen)| seen.as_ref())
            .flat_map(|seen| seen.unconfirmed(&ledger.job))
            .collect();
        let verdict = evidence::judge(self, &waiting).await?;
        verdict.into_change(&mut change);
        for (partition, seen) in patients {
            let Some(seen) = seen else { continue };
            self.put_back(&mut change, partition, &seen);
        }
        Ok(change)
    }

    /// Kafka's offset, as the ledger has it.
    fn put_back(&self, change: &mut Change, partition: i32, seen: &Seen) {
        let (offset, metadata) = (seen.progress.next_offset, seen.progress.metadata.clone());
        let was = seen.kafka.as_ref().map_or("none".into(), |kafka| kafka.offset.to_string());
        change.says.push(format!("{}: Kafka's offset {was} becomes {offset}", self.place(partition)));
        change.offsets.push(OffsetCommit { partition, offset, metadata });
    }

    async fn resend(&self) -> Result<Change> {
        let ledger = self.ledger()?;
        let mut change = Change::default();
        let patients = self.patients(Verb::ResendFromTable);
        let mut waiting = Vec::new();
        let mut missing = Vec::new();
        for (partition, seen) in &patients {
            let Some(seen) = seen else { continue };
            let parts = seen.unconfirmed(&ledger.job);
            if parts.is_empty() {
                missing.push(*partition);
            }
            waiting.extend(parts);
        }
        let verdict = if missing.is_empty() {
            evidence::judge(self, &waiting).await?
        } else {
            evidence::search(self, &missing).await?
        };
        verdict.into_change(&mut change);
        for (partition, seen) in patients {
            let Some(seen) = seen else { continue };
            change.done_parts.extend(seen.unconfirmed(&ledger.job).iter().map(|part| (part.commit_id, part.partition)));
            self.put_back(&mut change, partition, &seen);
        }
        Ok(change)
    }

    fn accept_lost(&self) -> Result<Change> {
        let ledger = self.ledger()?;
        let mut change = Change::default();
        for (partition, seen) in self.patients(Verb::AcceptLostMessages) {
            let Some(seen) = seen else { continue };
            let place = self.place(partition);
            // A batch that waits for its Kafka commit lost nothing: its rows are stored.
            if let Ok(Decision::Reemit(part)) = compare(&ledger.job, &seen) {
                let (offset, metadata) = (seen.progress.next_offset, seen.progress.metadata.clone());
                change.says.push(format!("{place}: the stored batch of {} rows is sent first", part.rows));
                change.done_parts.push((part.commit_id, partition));
                change.offsets.push(OffsetCommit { partition, offset, metadata });
                change.emit.push(part);
            }
            let next = seen.progress.next_offset;
            let metadata = ledger.metadata(seen.progress.epoch, Uuid::new_v4());
            if diagnose(&ledger.job, &seen) == Err(Ailment::BeyondEnd) {
                let text = format!("{place}: next_offset {next} becomes {}, the topic's end", seen.high);
                change.says.push(format!("{text}; what Kafka lost before it was dealt with when it was there"));
                change.offsets.retain(|commit| commit.partition != partition);
                change.offsets.push(OffsetCommit { partition, offset: seen.high, metadata: metadata.clone() });
                change.positions.push(at(partition, seen.high, seen.progress.last_output_to.min(seen.high), &metadata));
            } else {
                let lost = seen.low - next;
                change.says.push(format!(
                    "{place}: gives up {lost} offsets, [{next}, {}): next_offset becomes {}",
                    seen.low, seen.low
                ));
                change.positions.push(at(partition, seen.low, seen.progress.last_output_to, &metadata));
            }
        }
        Ok(change)
    }

    async fn rebuild_table(&self) -> Result<Change> {
        let mission = Mission::load(self.site).await?;
        let output = &self.site.config.sink_kafka.topic;
        let comparison = Compare::new(self.site, &mission.shape, &mission.engine.columns)?;
        let records = comparison.stage_topic(output).await?;
        let missing = comparison.missing_in_table().await?;
        let table = mission.shape.quoted();
        let mut change = Change {
            says: vec![format!(
                "{missing} of the {records} rows in {output} are not in {table}: they are inserted. Rows that were deleted \
                 from the table on purpose, and are still in the topic, come back with them"
            )],
            ..Change::default()
        };
        for (partition, seen) in self.patients(Verb::RebuildTable) {
            let Some(kafka) = self.picture.offsets.get(&partition) else { continue };
            let old = seen.as_ref().map_or("none".into(), |seen| seen.progress.next_offset.to_string());
            change.says.push(format!("{}: next_offset {old} becomes {}", self.place(partition), kafka.offset));
            change.positions.push(at(partition, kafka.offset, kafka.offset, &kafka.metadata));
            let parts = seen.map(|seen| seen.parts).unwrap_or_default();
            change.done_parts.extend(parts.iter().map(|part| (part.commit_id, partition)));
            if let Some(why) = self.uncovered(output, partition).await? {
                let consents = self.verbs.contains(&Verb::AcceptLostMessages);
                let text = format!("whether the topic still has all rows that the table lost cannot be known: {why}");
                if !consents {
                    return Err(refuse(
                        text,
                        "add --accept-lost-messages to insert those that are there, and give up the rest",
                    ));
                }
                change.says.push(text);
            }
        }
        change.insert = Some(mission);
        Ok(change)
    }

    /// Why the output topic may not hold all that came after the ledger's position; `None` where it does.
    async fn uncovered(&self, output: &str, partition: i32) -> Result<Option<String>> {
        let Some(why) = topic::is_whole(self.site, output).await? else { return Ok(None) };
        if !why.starts_with("retention") {
            return Ok(Some(why));
        }
        // Rows are younger than the message they come from: a topic that begins before that message has them all.
        let Some(seen) = self.picture.seen(partition) else { return Ok(Some(why)) };
        let (properties, source) = (self.site.config.source.kafka.clone(), self.picture.topic.clone());
        let (output, next) = (output.to_owned(), seen.progress.next_offset);
        let covered = kafka::blocking(move || {
            use rdkafka::topic_partition_list::Offset;
            let Some(message) = topic::time_at(&properties, &source, partition, Offset::Offset(next))? else {
                return Ok(false);
            };
            let reader = kafka::probe(&properties)?;
            let count = kafka::partition_count(rdkafka::consumer::Consumer::client(&reader), &output)?;
            for partition in 0..count {
                let first = topic::time_at(&properties, &output, partition, Offset::Beginning)?;
                if first.is_none_or(|first| first >= message) {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await?;
        Ok((!covered).then_some(why))
    }

    async fn adopt(&self) -> Result<Change> {
        let picture = self.picture;
        let mut change = Change::default();
        if picture.books == Books::WithoutIdentity {
            change.says.push(
                "the ledger gets its identity back, from the metadata of its own rows and Kafka's offsets".into(),
            );
            return Ok(change);
        }
        let some: Vec<i32> = self.patients(Verb::Adopt).into_iter().map(|patient| patient.0).collect();
        let all = picture.marks.keys().copied().collect();
        let partitions: Vec<i32> = if some.is_empty() { all } else { some };
        let is_ours = |kafka: &KafkaOffset| decide::is_of(&picture.job, &kafka.metadata) && !picture.job.is_empty();
        if !picture.offsets.is_empty() && !picture.offsets.values().any(is_ours) {
            self.nothing_half_done(&mut change).await?;
        }
        for partition in partitions {
            let place = self.place(partition);
            let parts: Vec<PartHead> =
                picture.parts.iter().filter(|part| part.partition == partition).cloned().collect();
            let fresh = self.ledger.map_or(String::new(), Ledger::fresh_metadata);
            let to = match picture.offsets.get(&partition) {
                Some(kafka) if is_ours(kafka) => adopted(partition, kafka, &parts).map_err(|why| {
                    refuse(format!("{place}: {why}"), "restore the ledger's progress table, or report it")
                })?,
                Some(kafka) => at(partition, kafka.offset, kafka.offset, &fresh),
                None => self.start(partition, &fresh)?,
            };
            let waits =
                parts.iter().find(|part| part.to == to.next_offset && part.to > to.last_output_to.min(part.from));
            let then = waits
                .map_or(String::new(), |part| format!("; `run` then sends its stored batch of {} rows", part.rows));
            change.says.push(format!("{place}: goes on at {}{then}", to.next_offset));
            change.positions.push(to);
        }
        Ok(change)
    }

    /// Where a partition begins of which neither ledger nor Kafka knows anything.
    fn start(&self, partition: i32, fresh: &str) -> Result<Position> {
        let (low, high) = self.picture.marks.get(&partition).copied().unwrap_or_default();
        let offset = match self.picture.start {
            Start::Earliest => low,
            Start::Latest => high,
            Start::Committed => {
                return Err(refuse(
                    format!(
                        "{}: Kafka has no offset of it, and [source] start says \"committed\"",
                        self.place(partition)
                    ),
                    "set [source] start to \"earliest\" (what it has done already is done again) or \"latest\" (what it has \
                     not done is left out) for this repair",
                ));
            }
        };
        Ok(at(partition, offset, offset, fresh))
    }

    /// With the ledger gone, a batch that Postgres had and Kafka had not would be made a second time.
    async fn nothing_half_done(&self, change: &mut Change) -> Result<()> {
        let mission = Mission::load(self.site).await?;
        let output = &self.site.config.sink_kafka.topic;
        let comparison = Compare::new(self.site, &mission.shape, &mission.engine.columns)?;
        comparison.stage_topic(output).await?;
        let half = comparison.missing_in_topic().await?;
        let table = mission.shape.quoted();
        let whole = topic::is_whole(self.site, output).await?;
        if half == 0 {
            change
                .says
                .push(format!("every row of {table} is in {output}: no batch was half done when the ledger was lost"));
            return Ok(());
        }
        let why = whole.map_or(String::new(), |why| format!(" ({why})"));
        let text = format!(
            "{half} rows of {table} are not in {output}{why}: the last batches before the ledger was lost may be among them, \
             and would be made a second time"
        );
        if self.picture.start != Start::Committed {
            return Err(refuse(
                text,
                "restore the ledger's tables, or delete those rows that belong to messages from Kafka's offsets on; rows of \
                 other origin do no harm: set [source] start = \"committed\" to say that they are",
            ));
        }
        change.says.push(format!("{text}. [source] start = \"committed\" says that they are of other origin"));
        Ok(())
    }
}

fn at(partition: i32, next_offset: i64, last_output_to: i64, metadata: &str) -> Position {
    Position { partition, next_offset, last_output_to, metadata: metadata.into() }
}

/// Where a partition stood, by Kafka's offset and the stored batches: as the ledger would have it.
fn adopted(partition: i32, kafka: &KafkaOffset, parts: &[PartHead]) -> Result<Position, String> {
    let beyond: Vec<&PartHead> = parts.iter().filter(|part| part.to > kafka.offset).collect();
    match beyond.as_slice() {
        [] => Ok(at(partition, kafka.offset, kafka.offset, &kafka.metadata)),
        [part] if part.from == kafka.offset && part.previous_metadata == kafka.metadata => {
            let mut fields = kafka.metadata.split(';');
            let job = fields.next().unwrap_or_default();
            let epoch = fields.next().and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
            Ok(at(partition, part.to, part.to, &metadata(job, epoch, part.commit_id)))
        }
        _ => Err("the stored batches do not follow Kafka's offset".into()),
    }
}

/// A repair that cannot be done as things are.
pub fn refuse(what: impl Into<String>, remedy: &str) -> Error {
    Error::Halt { what: what.into(), remedy: remedy.into() }
}

impl Verdict {
    fn into_change(self, change: &mut Change) {
        change.done_parts.extend(self.done);
        change.emit = self.emit;
        change.resend = self.resend;
        change.says.extend(self.says);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset(offset: i64, metadata: &str) -> KafkaOffset {
        KafkaOffset { offset, metadata: metadata.into() }
    }

    #[test]
    fn a_partition_is_adopted_where_kafka_or_its_stored_batch_ends() {
        let place = |parts: &[PartHead]| {
            adopted(0, &offset(40, "job;3;a"), parts).map(|to| (to.next_offset, to.last_output_to, to.metadata))
        };
        assert_eq!(place(&[]), Ok((40, 40, "job;3;a".into())));
        // Confirmed, only not deleted yet.
        assert_eq!(place(&[PartHead::example(30, 40, "job;3;z")]), Ok((40, 40, "job;3;a".into())));
        let (next, last, metadata) = place(&[PartHead::example(40, 50, "job;3;a")]).unwrap();
        assert_eq!((next, last), (50, 50));
        assert_eq!(metadata, format!("job;3;{}", Uuid::nil()));
        assert!(place(&[PartHead::example(40, 50, "job;3;other")]).is_err());
        assert!(place(&[PartHead::example(42, 50, "job;3;a")]).is_err());
        assert!(place(&[PartHead::example(40, 45, "job;3;a"), PartHead::example(45, 50, "x")]).is_err());
    }
}
