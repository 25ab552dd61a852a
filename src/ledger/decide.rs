//! What a claim finds and what it means. Pure: the table of the protocol, row by row.

use super::ailment::Ailment;
use super::store::{PartHead, Progress};
use crate::error::Result;

/// What Kafka holds for the group in one partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaOffset {
    pub offset: i64,
    pub metadata: String,
}

/// All that is known of one partition when it is claimed.
#[derive(Debug, Clone)]
pub struct Seen {
    pub progress: Progress,
    pub parts: Vec<PartHead>,
    pub kafka: Option<KafkaOffset>,
    /// First offset that Kafka still holds.
    pub low: i64,
    /// The offset after the last one.
    pub high: i64,
}

impl Seen {
    /// The stored batches that Kafka's offset does not vouch for: all of them where it is absent or not this job's.
    pub fn unconfirmed(&self, job: &str) -> Vec<PartHead> {
        let vouches = |kafka: &&KafkaOffset| is_of(job, &kafka.metadata);
        let upto = self.kafka.as_ref().filter(vouches).map_or(i64::MIN, |kafka| kafka.offset);
        self.parts.iter().filter(|part| part.to > upto).cloned().collect()
    }
}

/// What the claim does before it resumes at the ledger's `next_offset`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Kafka and the ledger agree.
    Resume,
    /// Kafka lags behind without anything to send: commit `next_offset` there.
    CommitOffset { because: Option<&'static str> },
    /// The crash came between the two commits: send the stored part's bytes, with its `to` as offset.
    Reemit(PartHead),
}

/// As [`diagnose`], with an error that a person can act on.
///
/// # Errors
/// [`crate::Error::Halt`] with what was found and the way out.
pub fn decide(place: &str, job: &str, seen: &Seen) -> Result<Decision> {
    diagnose(job, seen).map_err(|ailment| ailment.halt(place, seen))
}

/// Decides by the protocol's table, with C = Kafka's offset, N = `next_offset`, L = `last_output_to`:
///
/// | seen | decision |
/// |---|---|
/// | N above the last offset of the topic | halt |
/// | C = N | resume |
/// | L <= C < N, no stored part beyond C | commit N, resume |
/// | C = `from` of the one stored part beyond C, metadata names the commit before it | re-emit it |
/// | C absent, nothing stored | commit N, resume, say so |
/// | C = N, nothing was ever committed under the ledger | commit N, resume: `start = "committed"` took the offset over |
/// | metadata missing or of another job; C absent with something stored | halt: the offset was reset |
/// | C > N | halt: Postgres has lost commits |
/// | C < L and nothing stored | halt: the stored batch is gone |
/// | none of these halts, and N below the first offset of the topic | halt: retention has passed |
pub fn diagnose(job: &str, seen: &Seen) -> Result<Decision, Ailment> {
    if seen.progress.next_offset > seen.high {
        return Err(Ailment::BeyondEnd);
    }
    let decision = compare(job, seen)?;
    // Last, because it is the one that costs messages: whatever else is wrong is put right before.
    if seen.progress.next_offset < seen.low { Err(Ailment::RetentionPassed) } else { Ok(decision) }
}

/// The rows of the table that compare ledger and group offset, whatever the topic still holds.
pub fn compare(job: &str, seen: &Seen) -> Result<Decision, Ailment> {
    let next = seen.progress.next_offset;
    let Some(kafka) = &seen.kafka else {
        if seen.parts.is_empty() {
            return Ok(Decision::CommitOffset {
                because: Some("Kafka held no offset for the group, and nothing was unconfirmed"),
            });
        }
        return Err(Ailment::OffsetAbsent);
    };
    if seen.progress.is_new(job) && seen.parts.is_empty() && kafka.offset == next {
        return Ok(Decision::CommitOffset { because: Some("the group's offset is taken over") });
    }
    if !is_of(job, &kafka.metadata) {
        return Err(match writer(&kafka.metadata) {
            Some(other) => Ailment::OtherJob(other.to_owned()),
            None => Ailment::OffsetReset,
        });
    }
    if kafka.offset > next {
        // Also of a row that nothing was committed to: it is from before the first commit, as the table may be.
        return Err(Ailment::KafkaAhead);
    }
    let beyond: Vec<&PartHead> = seen.parts.iter().filter(|part| part.to > kafka.offset).collect();
    match beyond.as_slice() {
        [] if kafka.offset == next => Ok(Decision::Resume),
        [] if kafka.offset >= seen.progress.last_output_to => Ok(Decision::CommitOffset { because: None }),
        [] => Err(Ailment::BatchMissing),
        [part] if part.from == kafka.offset && part.to == next && part.previous_metadata == kafka.metadata => {
            Ok(Decision::Reemit((*part).clone()))
        }
        _ => Err(Ailment::OffsetElsewhere),
    }
}

/// Whether an offset with this metadata was committed under the ledger `job`.
pub fn is_of(job: &str, metadata: &str) -> bool {
    metadata.strip_prefix(job).is_some_and(|rest| rest.starts_with(';'))
}

/// The ledger under which an offset was committed, if its metadata is one of dinnerbell's: `job;epoch;commit`.
pub fn writer(metadata: &str) -> Option<&str> {
    let mut fields = metadata.split(';');
    let (job, epoch, commit) = (fields.next()?, fields.next()?, fields.next()?);
    let is_id = |text: &str| uuid::Uuid::try_parse(text).is_ok();
    (fields.next().is_none() && is_id(job) && epoch.parse::<i64>().is_ok() && is_id(commit)).then_some(job)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seen(next: i64, last_output: i64, kafka: Option<(i64, &str)>, parts: &[(i64, i64, &str)]) -> Seen {
        Seen {
            progress: Progress { next_offset: next, last_output_to: last_output, epoch: 3, metadata: "job;3;b".into() },
            parts: parts.iter().map(|&(from, to, previous)| PartHead::example(from, to, previous)).collect(),
            kafka: kafka.map(|(offset, metadata)| KafkaOffset { offset, metadata: metadata.into() }),
            low: 0,
            high: 1_000,
        }
    }

    const OTHER: &str = "0b0b0b0b-0000-4000-8000-000000000001;3;0b0b0b0b-0000-4000-8000-000000000002";

    fn decision(seen: &Seen) -> Result<Decision, String> {
        decide("campaigns[0]", "job", seen).map_err(|error| error.to_string())
    }

    #[test]
    fn confirmed_states_resume() {
        assert_eq!(decision(&seen(50, 40, Some((50, "job;3;b")), &[])), Ok(Decision::Resume));
        assert_eq!(decision(&seen(50, 40, Some((40, "job;3;a")), &[])), Ok(Decision::CommitOffset { because: None }));
        // A part that Kafka has passed only waits for its deletion.
        assert_eq!(decision(&seen(50, 50, Some((50, "job;3;b")), &[(40, 50, "job;3;a")])), Ok(Decision::Resume));
    }

    #[test]
    fn a_crash_between_the_commits_re_emits() {
        let found = decision(&seen(50, 50, Some((40, "job;3;a")), &[(40, 50, "job;3;a")]));
        assert!(matches!(found, Ok(Decision::Reemit(part)) if part.from == 40 && part.to == 50));
    }

    #[test]
    fn an_absent_offset_is_replaced_only_with_nothing_stored() {
        let found = decision(&seen(50, 50, None, &[]));
        assert!(matches!(found, Ok(Decision::CommitOffset { because: Some(_) })));
        let found = decision(&seen(50, 50, None, &[(40, 50, "job;3;a")])).unwrap_err();
        assert!(found.contains("the group's offset is gone"), "{found}");
    }

    #[test]
    fn what_the_ledger_cannot_explain_halts() {
        for (seen, says) in [
            (seen(50, 50, Some((60, "job;3;b")), &[]), "Postgres has lost commits"),
            // An operator's reset to a later offset erases the metadata, a restored database does not.
            (seen(50, 50, Some((60, "")), &[]), "was not committed by this job"),
            (Seen { low: 60, ..seen(50, 50, Some((50, "")), &[]) }, "was not committed by this job"),
            (seen(50, 50, Some((40, "job;3;a")), &[]), "the stored batch of it is gone"),
            (seen(50, 40, Some((50, "")), &[]), "was not committed by this job"),
            (seen(50, 40, Some((50, OTHER)), &[]), "was committed by another job"),
            (seen(50, 50, Some((40, "job;1;z")), &[(40, 50, "job;3;a")]), "is not where the ledger left it"),
            (seen(50, 50, Some((30, "job;3;a")), &[(40, 50, "job;3;a")]), "is not where the ledger left it"),
            (
                seen(50, 50, Some((30, "job;3;a")), &[(30, 40, "job;3;a"), (40, 50, "job;3;b")]),
                "is not where the ledger left it",
            ),
            (Seen { low: 60, ..seen(50, 50, Some((50, "job;3;b")), &[]) }, "retention has passed"),
            (Seen { high: 45, ..seen(50, 50, Some((50, "job;3;b")), &[]) }, "beyond the topic's end"),
        ] {
            let found = decision(&seen).unwrap_err();
            assert!(found.contains(says), "{found} should say {says}");
        }
    }

    #[test]
    fn a_row_from_before_the_first_commit_is_a_restored_database() {
        let mut fresh = seen(0, 0, Some((50, "job;3;b")), &[]);
        fresh.progress.metadata = format!("job;0;{}", uuid::Uuid::nil());
        assert_eq!(diagnose("job", &fresh), Err(Ailment::KafkaAhead));
    }

    #[test]
    fn metadata_names_its_writer() {
        assert_eq!(writer(OTHER), Some("0b0b0b0b-0000-4000-8000-000000000001"));
        for foreign in ["", "consumer-1", "a;b;c", "job;3;b", &format!("{OTHER};more")] {
            assert_eq!(writer(foreign), None, "{foreign}");
        }
        assert!(is_of("job", "job;1;x") && !is_of("job", "jobs;1;x") && !is_of("job", "job"));
    }

    #[test]
    fn batches_are_unconfirmed_unless_kafka_vouches_for_them() {
        let parts = [(30, 40, "job;3;a"), (40, 50, "job;3;b")];
        let count = |kafka| seen(50, 50, kafka, &parts).unconfirmed("job").len();
        assert_eq!([count(Some((40, "job;3;b"))), count(Some((50, "job;3;c")))], [1, 0]);
        assert_eq!([count(None), count(Some((50, ""))), count(Some((50, OTHER)))], [2, 2, 2]);
    }

    proptest! {
        /// Whatever is found, re-emission never happens unless Kafka stands exactly before the stored part, and nothing
        /// is resumed while a part beyond Kafka's offset is stored.
        #[test]
        fn no_guess(next in 0i64..60, last in 0i64..60, offset in proptest::option::of(0i64..60), from in 0i64..60, len in 1i64..20, stored: bool) {
            let parts: Vec<_> = stored.then_some((from, from + len, "job;3;a")).into_iter().collect();
            let seen = seen(next, last.min(next), offset.map(|offset| (offset, "job;3;a")), &parts);
            match (decision(&seen), offset) {
                (Ok(Decision::Reemit(part)), Some(offset)) => prop_assert!(part.from == offset && part.to == next),
                (Ok(Decision::Reemit(_)), None) => prop_assert!(false, "re-emitted with no offset in Kafka"),
                (Ok(_), Some(offset)) => prop_assert!(parts.iter().all(|part| part.1 <= offset) && offset >= last.min(next)),
                (Ok(_), None) => prop_assert!(parts.is_empty()),
                (Err(_), _) => {}
            }
        }
    }
}
