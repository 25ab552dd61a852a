//! What a commit writes into the ledger beside the chunks: the stored parts' heads, and dead letters that fit nowhere else.

use std::time::SystemTime;

use chrono::{DateTime, Utc};

use super::output::PartResult;
use super::stream::Transaction;
use crate::dead_letter::to_record_batch;
use crate::decode::Work;
use crate::encode::chunk;
use crate::error::Result;
use crate::ledger::claim::{Held, Tenure};
use crate::ledger::store::{PART_FORMAT, PartFacts, PartHead, Step};
use crate::sink::postgres::Written;

impl Transaction {
    /// Writes the parts' heads and the letters that fit nowhere else; says how far each partition goes.
    pub async fn store(
        &self,
        tenure: &Tenure,
        works: &[Work],
        now: DateTime<Utc>,
        written: &[Written],
        results: &[PartResult],
    ) -> Result<(Vec<Step>, Vec<PartHead>)> {
        let (ledger, postgres) = (&tenure.ledger, &tenure.postgres);
        let mut steps = Vec::new();
        let mut parts = Vec::new();
        for ((work, written), result) in works.iter().zip(written).zip(results) {
            let Some(held) = tenure.held.get(&work.partition) else { continue };
            let has_output = written.rows + written.letters > 0;
            if has_output {
                parts.push((self.head(work, held, written), self.facts(now, result)));
            }
            for (offset, letter, reject) in &result.over_size {
                let body = chunk::pack(&to_record_batch(std::slice::from_ref(letter))?)?;
                let facts = [&*self.letters_to.topic, reject.stage.as_str(), &reject.path, &reject.reason];
                ledger.insert_letter(postgres, work.partition, *offset, facts, &body).await?;
            }
            steps.push(Step {
                partition: work.partition,
                epoch: held.epoch,
                from: held.next_offset,
                to: work.range.to,
                has_output,
                metadata: ledger.metadata(held.epoch, self.id),
            });
        }
        // Sent together: nobody waits for one before the next. Confirmed parts go no earlier than here: whoever stands still
        // in a COPY must not hold locks on what the next owner deletes as well.
        let stored = parts.iter().map(|(part, facts)| ledger.insert_part(postgres, part, facts));
        let stored = futures::future::join_all(stored);
        // All answers are waited for: the first error is the cause, and those after it say no more than that all is lost.
        let (deleted, stored) = futures::join!(ledger.delete_parts(postgres, &tenure.confirmed), stored);
        deleted?;
        stored.into_iter().collect::<Result<()>>()?;
        steps.sort_by_key(|step| step.partition);
        Ok((steps, parts.into_iter().map(|(part, _)| part).collect()))
    }

    fn head(&self, work: &Work, held: &Held, written: &Written) -> PartHead {
        PartHead {
            commit_id: self.id,
            partition: work.partition,
            from: held.next_offset,
            to: work.range.to,
            format: PART_FORMAT,
            previous_metadata: held.metadata.clone(),
            output_topic: self.output_to.topic.to_string(),
            output_key: self.output_key.clone(),
            letter_topic: self.letters_to.topic.to_string(),
            rows: written.rows,
            letters: written.letters,
        }
    }

    fn facts(&self, now: DateTime<Utc>, result: &PartResult) -> PartFacts {
        PartFacts {
            outcomes: result.outcomes_as_json(),
            triggered_at: SystemTime::from(now),
            sql_hash: self.sql_hash.clone(),
            sink_table: self.copy.table.clone(),
        }
    }
}
