//! States that the ledger cannot explain: what they are called, and which repair is theirs. The words that `run` halts with
//! and `dinnerbell repair` prints.

use super::decide::Seen;
use crate::error::Error;

/// What `dinnerbell repair` can be told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    NewTopic,
    Adopt,
    RebuildTable,
    ResendFromTable,
    Offsets,
    AcceptLostMessages,
}

impl Verb {
    /// In the order in which they are carried out.
    pub const ALL: [Verb; 6] = [
        Verb::NewTopic,
        Verb::Adopt,
        Verb::RebuildTable,
        Verb::ResendFromTable,
        Verb::Offsets,
        Verb::AcceptLostMessages,
    ];

    /// On the command line.
    pub fn flag(self) -> &'static str {
        match self {
            Verb::NewTopic => "--new-topic",
            Verb::Adopt => "--adopt",
            Verb::RebuildTable => "--rebuild-table",
            Verb::ResendFromTable => "--resend-from-table",
            Verb::Offsets => "--offsets",
            Verb::AcceptLostMessages => "--accept-lost-messages",
        }
    }

    /// What it does, in a sentence.
    pub fn does(self) -> &'static str {
        match self {
            Verb::NewTopic => {
                "sends what was stored and is not in the output topic yet, and reads the new topic from its beginning"
            }
            Verb::Adopt => "registers the partitions again, from where Kafka says that the job has come",
            Verb::RebuildTable => {
                "inserts the rows that are in the output topic and not in the table, and sets the ledger to Kafka's offset"
            }
            Verb::ResendFromTable => {
                "sends the batch's rows from the sink table, those that the output topic does not have"
            }
            Verb::Offsets => {
                "looks into the output topic for the stored batches, sends those that are not there, and puts Kafka's \
                 offset back to the ledger's"
            }
            Verb::AcceptLostMessages => {
                "gives up the messages that Kafka does not hold any more, and goes on after them"
            }
        }
    }

    /// The end of a remedy.
    pub fn advice(self) -> String {
        format!(
            "`dinnerbell repair` shows all of it and changes nothing; `dinnerbell repair {} --execute` {}",
            self.flag(),
            self.does()
        )
    }
}

/// What is wrong with one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ailment {
    /// The ledger's position is older than the topic's first message.
    RetentionPassed,
    /// The ledger's position lies behind the topic's end.
    BeyondEnd,
    /// The group's offset carries no metadata of a job: somebody has set it.
    OffsetReset,
    /// The group's offset was committed under another ledger, whose id this is.
    OtherJob(String),
    /// The group has no offset, and a stored batch waits for its Kafka commit.
    OffsetAbsent,
    /// This job's offset, but not the one before the stored batches.
    OffsetElsewhere,
    /// This job's offset lies beyond the ledger's.
    KafkaAhead,
    /// This job's offset lies before output that the ledger has, and nothing is stored for it.
    BatchMissing,
    /// Kafka has an offset of this job, the ledger no row.
    RowMissing,
}

impl Ailment {
    pub fn verb(&self) -> Verb {
        match self {
            Ailment::RetentionPassed | Ailment::BeyondEnd => Verb::AcceptLostMessages,
            Ailment::OffsetReset | Ailment::OtherJob(_) | Ailment::OffsetAbsent | Ailment::OffsetElsewhere => {
                Verb::Offsets
            }
            Ailment::KafkaAhead => Verb::RebuildTable,
            Ailment::BatchMissing => Verb::ResendFromTable,
            Ailment::RowMissing => Verb::Adopt,
        }
    }

    /// What it is, without the numbers.
    pub fn what(&self) -> String {
        match self {
            Ailment::RetentionPassed => "Kafka's retention has passed the job: messages are gone that it had not read".into(),
            Ailment::BeyondEnd => {
                "the ledger stands beyond the topic's end: Kafka has lost records that it had acknowledged".into()
            }
            Ailment::OffsetReset => "the group's offset was not committed by this job: somebody has reset it".into(),
            Ailment::OtherJob(job) => {
                format!("the group's offset was committed by another job, whose ledger is {job}: two jobs share the group")
            }
            Ailment::OffsetAbsent => {
                "the group's offset is gone (expired, or the group was deleted), and a stored batch waits for its Kafka \
                 commit"
                    .into()
            }
            Ailment::OffsetElsewhere => {
                "the group's offset is this job's, but is not where the ledger left it: Kafka has lost offsets, or \
                 somebody has set them"
                    .into()
            }
            Ailment::KafkaAhead => {
                "Kafka is ahead of the ledger, by this job's own commits: Postgres has lost commits (restored from a \
                 backup, or failed over)"
                    .into()
            }
            Ailment::BatchMissing => {
                "Postgres has output that Kafka's offset does not cover, and the stored batch of it is gone: rows of the \
                 ledger's parts table were deleted, or Kafka has lost an offset"
                    .into()
            }
            Ailment::RowMissing => {
                "Kafka has an offset of this job, the ledger's progress table no row: it was deleted by hand".into()
            }
        }
    }

    /// What a person should know or do before the repair.
    fn before(&self) -> &'static str {
        match self {
            Ailment::RetentionPassed => "give the topic a longer retention, or the job more lanes; ",
            Ailment::OtherJob(_) => "stop the other job, or give this one another [source] group_id; ",
            Ailment::KafkaAhead => "restore a newer state of Postgres if there is one; otherwise ",
            _ => "",
        }
    }

    pub fn remedy(&self) -> String {
        format!("{}{}", self.before(), self.verb().advice())
    }

    /// The error that `run` ends with.
    pub fn halt(&self, place: &str, seen: &Seen) -> Error {
        Error::Halt { what: format!("{place}: {}. Found: {}", self.what(), found(seen)), remedy: self.remedy() }
    }
}

/// All numbers of a partition, for messages.
pub fn found(seen: &Seen) -> String {
    let kafka = match &seen.kafka {
        Some(kafka) => format!("Kafka offset {} ({:?})", kafka.offset, kafka.metadata),
        None => "no Kafka offset".into(),
    };
    let stored: Vec<String> = seen.parts.iter().map(|part| format!("[{}, {})", part.from, part.to)).collect();
    format!(
        "{kafka}; ledger next_offset {}, last_output_to {}; stored batches: {}; the topic holds [{}, {})",
        seen.progress.next_offset,
        seen.progress.last_output_to,
        if stored.is_empty() { "none".into() } else { stored.join(", ") },
        seen.low,
        seen.high,
    )
}

/// A partition that the ledger has no row for although the job has worked on it.
pub fn row_missing(place: &str, why: &str) -> Error {
    Error::Halt {
        what: format!("{place}: {}. Found: {why}", Ailment::RowMissing.what()),
        remedy: Ailment::RowMissing.remedy(),
    }
}

/// The topic's id is not the one that the ledger knows.
pub fn topic_anew(topic: &str, known: &str, now: &str) -> Error {
    Error::Halt {
        what: format!(
            "topic {topic} was deleted and made anew: the ledger knows the one with id {known}, Kafka has {now}"
        ),
        remedy: Verb::NewTopic.advice(),
    }
}

/// No ledger, or one that is new, and offsets that were committed under another one.
pub fn ledger_lost(group: &str, job: &str, writer: &str) -> Error {
    let what = if writer == job {
        format!("the ledger has no progress of group {group}, but Kafka holds offsets that it has committed ({writer})")
    } else {
        format!(
            "group {group} has offsets in Kafka of a ledger that is not this one: theirs is {writer}, this one {job}"
        )
    };
    Error::Halt {
        what,
        remedy: format!(
            "if another dinnerbell runs with this group, choose another [source] group_id. If the ledger's tables were \
             lost, restore them if you can; otherwise {}",
            Verb::Adopt.advice()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::decide::KafkaOffset;
    use crate::ledger::store::{PartHead, Progress};

    #[test]
    fn a_halt_says_what_was_found_and_what_to_type() {
        let progress = Progress { next_offset: 50, last_output_to: 50, epoch: 3, metadata: "job;3;b".into() };
        let seen = Seen {
            progress,
            parts: vec![PartHead::example(40, 50, "job;3;a")],
            kafka: Some(KafkaOffset { offset: 40, metadata: String::new() }),
            low: 7,
            high: 90,
        };
        let error = Ailment::OffsetReset.halt("campaigns[3]", &seen);
        insta::assert_snapshot!(error, @r#"campaigns[3]: the group's offset was not committed by this job: somebody has reset it. Found: Kafka offset 40 (""); ledger next_offset 50, last_output_to 50; stored batches: [40, 50); the topic holds [7, 90)"#);
        insta::assert_snapshot!(error.remedy().unwrap(), @"`dinnerbell repair` shows all of it and changes nothing; `dinnerbell repair --offsets --execute` looks into the output topic for the stored batches, sends those that are not there, and puts Kafka's offset back to the ledger's");
    }

    #[test]
    fn every_ailment_has_words_of_its_own() {
        let all = [
            Ailment::RetentionPassed,
            Ailment::BeyondEnd,
            Ailment::OffsetReset,
            Ailment::OtherJob("x".into()),
            Ailment::OffsetAbsent,
            Ailment::OffsetElsewhere,
            Ailment::KafkaAhead,
            Ailment::BatchMissing,
            Ailment::RowMissing,
        ];
        let words: std::collections::BTreeSet<String> = all.iter().map(Ailment::what).collect();
        assert_eq!(words.len(), all.len());
        for ailment in all {
            assert!(ailment.remedy().contains(&format!("`dinnerbell repair {} --execute`", ailment.verb().flag())));
        }
    }
}
