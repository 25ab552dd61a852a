//! `--adopt`: partitions are registered again where Kafka's offsets stand. The offsets say how far the output topic has come;
//! that the sink table has come as far, and no farther, is looked up, row for row.

use super::change::{Case, Change, at, refuse};
use super::compare::Compare;
use super::inspect::Books;
use super::mission::Mission;
use super::topic;
use crate::config::Start;
use crate::error::{Error, Result};
use crate::ledger::ailment::Verb;
use crate::ledger::decide::{self, KafkaOffset};
use crate::ledger::repairs::Position;
use crate::ledger::replay;
use crate::ledger::store::{Ledger, PartHead, metadata};

impl Case<'_> {
    pub async fn adopt(&self) -> Result<Change> {
        let picture = self.picture;
        let mut change = Change::default();
        if picture.books == Books::WithoutIdentity {
            change.says.push(
                "the ledger gets its identity back, from the metadata of its own rows and Kafka's offsets".into(),
            );
            return Ok(change);
        }
        if !picture.offsets.is_empty() {
            self.compare_sinks(&mut change).await?;
        }
        let some: Vec<i32> = self.patients(Verb::Adopt).into_iter().map(|patient| patient.0).collect();
        let all = picture.marks.keys().copied().collect();
        let partitions: Vec<i32> = if some.is_empty() { all } else { some };
        for partition in partitions {
            let place = self.place(partition);
            let parts: Vec<PartHead> =
                picture.parts.iter().filter(|part| part.partition == partition).cloned().collect();
            let fresh = self.ledger.map_or(String::new(), Ledger::fresh_metadata);
            let to = match picture.offsets.get(&partition) {
                Some(kafka) if self.is_ours(kafka) => adopted(partition, kafka, &parts).map_err(|why| {
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

    fn is_ours(&self, kafka: &KafkaOffset) -> bool {
        !self.picture.job.is_empty() && decide::is_of(&self.picture.job, &kafka.metadata)
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

    async fn compare_sinks(&self, change: &mut Change) -> Result<()> {
        let mission = Mission::load(self.site).await?;
        let comparison = Compare::new(self.site, &mission.shape, &mission.engine.columns)?;
        let records = comparison.stage_topic(&self.site.config.sink_kafka.topic).await?;
        let missing = comparison.missing_in_table().await?;
        let table = mission.shape.quoted();
        let insert = self.nothing_lost(change, &table, records, missing).await?;
        self.nothing_half_done(change, &table, &comparison).await?;
        change.insert = insert.then_some(mission);
        Ok(())
    }

    /// A database that was restored from before the ledger's rows looks like one whose rows were deleted; its table tells.
    /// True where the rows that it lacks are to be inserted.
    async fn nothing_lost(&self, change: &mut Change, table: &str, records: i64, missing: i64) -> Result<bool> {
        let output = &self.site.config.sink_kafka.topic;
        let (rebuilds, gives_up) =
            (self.verbs.contains(&Verb::RebuildTable), self.verbs.contains(&Verb::AcceptLostMessages));
        let cut = topic::is_whole(self.site, output).await?;
        if missing == 0 && (records > 0 || cut.is_none()) {
            return Ok(false);
        }
        if missing > 0 && !rebuilds && !gives_up {
            return Err(refuse(
                format!(
                    "{missing} of the {records} rows in {output} are not in {table}: the database was restored from a backup \
                     or has lost commits, or rows were deleted or changed there, or others write to {output}, too"
                ),
                "add --rebuild-table to insert them with the same repair, or --accept-lost-messages to go on without them",
            ));
        }
        if let Some(why) = cut.filter(|_| !gives_up) {
            return Err(refuse(
                format!("whether {output} still has all rows that {table} may have lost cannot be known: {why}"),
                "add --accept-lost-messages to go on without those that it does not have",
            ));
        }
        if missing > 0 {
            let what = if rebuilds { "they are inserted" } else { "they are given up" };
            change.says.push(format!("{missing} of the {records} rows in {output} are not in {table}: {what}"));
        } else {
            change.says.push(format!("{output} is empty: what {table} may have lost is given up"));
        }
        Ok(missing > 0 && rebuilds)
    }

    /// With the ledger's rows gone, a batch that Postgres had and Kafka had not would be made a second time.
    async fn nothing_half_done(&self, change: &mut Change, table: &str, comparison: &Compare<'_>) -> Result<()> {
        let output = &self.site.config.sink_kafka.topic;
        let unreadable = self.stage_waiting(comparison).await?;
        let half = comparison.missing_in_topic_and_stored().await? - unreadable;
        if half <= 0 {
            change
                .says
                .push(format!("every row of {table} is in {output}: no batch was half done when the ledger was lost"));
            return Ok(());
        }
        let why = topic::is_whole(self.site, output).await?.map_or(String::new(), |why| format!(" ({why})"));
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

    /// Stages the stored batches that wait for their Kafka commit; the number of rows of those that cannot be read, for which
    /// there is another repair.
    async fn stage_waiting(&self, comparison: &Compare<'_>) -> Result<i64> {
        let Some(ledger) = self.ledger else {
            comparison.stage_nothing().await?;
            return Ok(0);
        };
        let (mut readable, mut unreadable) = (Vec::new(), 0);
        for part in &self.picture.parts {
            let kafka = self.picture.offsets.get(&part.partition).filter(|kafka| self.is_ours(kafka));
            if kafka.is_some_and(|kafka| part.to <= kafka.offset) {
                continue;
            }
            match replay::verify(ledger, &self.site.postgres, part).await {
                Ok(()) => readable.push(part.clone()),
                Err(Error::Halt { .. }) => unreadable += part.rows,
                Err(error) => return Err(error),
            }
        }
        comparison.stage_parts(ledger, &readable).await?;
        Ok(unreadable)
    }
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

#[cfg(test)]
mod tests {
    use uuid::Uuid;

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
