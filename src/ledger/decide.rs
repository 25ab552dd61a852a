//! What a claim finds and what it means. Pure: the table of the protocol, row by row.

use super::store::{PartHead, Progress};
use crate::error::{Error, Result};

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

/// Decides by the protocol's table, with C = Kafka's offset, N = `next_offset`, L = `last_output_to`:
///
/// | seen | decision |
/// |---|---|
/// | N below the first or above the last offset of the topic | halt |
/// | C = N | resume |
/// | L <= C < N, no stored part beyond C | commit N, resume |
/// | C = `from` of the one stored part beyond C, metadata names the commit before it | re-emit it |
/// | C absent, nothing stored | commit N, resume, say so |
/// | C = N, nothing was ever committed under the ledger | commit N, resume: `start = "committed"` took the offset over |
/// | C > N | halt: Postgres has lost commits |
/// | anything else: C absent with something stored, C < L, metadata missing or of another job | halt |
///
/// # Errors
/// [`Error::Halt`] with what was found and the way out.
pub fn decide(place: &str, job: &str, seen: &Seen) -> Result<Decision> {
    let next = seen.progress.next_offset;
    if next < seen.low || next > seen.high {
        return Err(outside_the_topic(place, seen));
    }
    let Some(kafka) = &seen.kafka else {
        if seen.parts.is_empty() {
            return Ok(Decision::CommitOffset {
                because: Some("Kafka held no offset for the group, and nothing was unconfirmed"),
            });
        }
        return Err(halt(
            place,
            seen,
            "Kafka holds no offset for the group, but a stored batch waits for its Kafka commit",
            RESET,
        ));
    };
    if kafka.offset > next {
        return Err(halt(place, seen, "Kafka's offset is ahead of the ledger: Postgres has lost commits", RESTORED));
    }
    if seen.progress.is_new(job) && seen.parts.is_empty() && kafka.offset == next {
        return Ok(Decision::CommitOffset { because: Some("the group's offset is taken over") });
    }
    if !kafka.metadata.starts_with(&format!("{job};")) {
        return Err(halt(place, seen, "Kafka's offset was not committed by this ledger's job", RESET));
    }
    let beyond: Vec<&PartHead> = seen.parts.iter().filter(|part| part.to > kafka.offset).collect();
    match beyond.as_slice() {
        [] if kafka.offset == next => Ok(Decision::Resume),
        [] if kafka.offset >= seen.progress.last_output_to => Ok(Decision::CommitOffset { because: None }),
        [] => Err(halt(place, seen, "Kafka's offset lies before output that is already confirmed", RESET)),
        [part] if part.from == kafka.offset && part.to == next && part.previous_metadata == kafka.metadata => {
            Ok(Decision::Reemit((*part).clone()))
        }
        [_] => Err(halt(place, seen, "Kafka's offset is not the one before the stored batch", RESET)),
        _ => Err(halt(place, seen, "more than one stored batch waits for its Kafka commit", UNKNOWN)),
    }
}

const RESET: &str = "somebody reset or deleted the group's offsets, they expired, or another job uses the group; find out which, \
    and stop the other job if there is one. Change nothing in the ledger before you know whether readers of the output topic \
    have the stored batch: its rows are in the sink table, so look for one of them in the topic (read_committed). Only a batch \
    that is there may have its rows deleted from the ledger's parts and chunks tables; one that is not has to be sent first";
const RESTORED: &str = "Postgres was restored from a backup or failed over without its last commits. Rows after the ledger's \
    next_offset are in the output topic but not in the table: restore a newer state, or rebuild the rows from the topic \
    before the group's offset is set back";
const UNKNOWN: &str = "please report it, with the rows of the ledger's progress and parts tables";

fn halt(place: &str, seen: &Seen, what: &str, remedy: &str) -> Error {
    let kafka = match &seen.kafka {
        Some(kafka) => format!("Kafka offset {} ({:?})", kafka.offset, kafka.metadata),
        None => "no Kafka offset".into(),
    };
    let stored: Vec<String> = seen.parts.iter().map(|part| format!("[{}, {})", part.from, part.to)).collect();
    Error::Halt {
        what: format!(
            "{place}: {what}. Found: {kafka}; ledger next_offset {}, last_output_to {}; stored batches: {}",
            seen.progress.next_offset,
            seen.progress.last_output_to,
            if stored.is_empty() { "none".into() } else { stored.join(", ") },
        ),
        remedy: remedy.into(),
    }
}

fn outside_the_topic(place: &str, seen: &Seen) -> Error {
    let next = seen.progress.next_offset;
    let (what, remedy) = if next < seen.low {
        (
            format!(
                "Kafka's retention has passed the job: the ledger stands at {next}, the topic begins at {}",
                seen.low
            ),
            "the messages between are gone. If that is acceptable, set next_offset in the ledger's progress table to the \
             topic's first offset while the job is stopped",
        )
    } else {
        (
            format!("the ledger stands at {next}, beyond the topic's end at {}", seen.high),
            "Kafka has lost records that it had acknowledged, or the topic was made anew under the same id; find out which \
             before the ledger is changed",
        )
    };
    Error::Halt { what: format!("{place}: {what}"), remedy: remedy.into() }
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
        assert!(found.contains("holds no offset"), "{found}");
    }

    #[test]
    fn what_the_ledger_cannot_explain_halts() {
        for (seen, says) in [
            (seen(50, 50, Some((60, "job;3;b")), &[]), "ahead of the ledger"),
            (seen(50, 50, Some((40, "job;3;a")), &[]), "before output that is already confirmed"),
            (seen(50, 40, Some((50, "")), &[]), "not committed by this ledger's job"),
            (seen(50, 40, Some((50, "other;3;b")), &[]), "not committed by this ledger's job"),
            (seen(50, 50, Some((40, "job;1;z")), &[(40, 50, "job;3;a")]), "not the one before the stored batch"),
            (seen(50, 50, Some((30, "job;3;a")), &[(40, 50, "job;3;a")]), "not the one before the stored batch"),
            (seen(50, 50, Some((30, "job;3;a")), &[(30, 40, "job;3;a"), (40, 50, "job;3;b")]), "more than one"),
            (Seen { low: 60, ..seen(50, 50, Some((50, "job;3;b")), &[]) }, "retention has passed"),
            (Seen { high: 45, ..seen(50, 50, Some((50, "job;3;b")), &[]) }, "beyond the topic's end"),
        ] {
            let found = decision(&seen).unwrap_err();
            assert!(found.contains(says), "{found} should say {says}");
        }
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
