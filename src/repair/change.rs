//! What a repair would do, worked out in full before anything is done. Only reads (and temporary tables).

use rdkafka::topic_partition_list::Offset;
use uuid::Uuid;

use super::compare::Compare;
use super::evidence::{self, Verdict};
use super::findings::Finding;
use super::inspect::{Picture, Site};
use super::mission::Mission;
use super::topic;
use crate::dead_letter::Letter;
use crate::error::{Error, Result};
use crate::kafka;
use crate::ledger::ailment::{Ailment, Verb};
use crate::ledger::decide::{Decision, Seen, compare, diagnose};
use crate::ledger::repairs::Position;
use crate::ledger::store::{Ledger, PartHead};
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

    pub fn place(&self, partition: i32) -> String {
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
        // Rows are younger than the message they come from: a topic that begins before that message has them all.
        let since = match self.picture.seen(partition) {
            Some(seen) => self.written_at(partition, seen.progress.next_offset).await?,
            None => None,
        };
        topic::uncovered(self.site, output, since).await
    }

    /// The time of the input topic's message at an offset, or of the next one, in milliseconds; `None` where it is gone.
    pub async fn written_at(&self, partition: i32, offset: i64) -> Result<Option<i64>> {
        if self.picture.marks.get(&partition).is_none_or(|marks| offset < marks.0) {
            return Ok(None);
        }
        let (reader, source) = (self.site.config.source.clone(), self.picture.topic.clone());
        kafka::blocking(move || topic::time_at(&reader, &source, partition, Offset::Offset(offset))).await
    }
}

/// Where a partition is put.
pub fn at(partition: i32, next_offset: i64, last_output_to: i64, metadata: &str) -> Position {
    Position { partition, next_offset, last_output_to, metadata: metadata.into() }
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
