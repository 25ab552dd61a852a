//! What is wrong, and which repair is for it. Pure.

use super::inspect::{Books, Picture};
use crate::config::Start;
use crate::ledger::ailment::{Ailment, Verb, found};
use crate::ledger::decide::{self, Decision, Seen, diagnose, is_of};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// A partition as `topic[3]`, or what else it is about.
    pub place: String,
    pub partition: Option<i32>,
    pub what: String,
    /// `None` where no repair is for it; `remedy` says what is.
    pub verb: Option<Verb>,
    pub remedy: String,
}

/// A line of the picture: a place, and its state where nothing is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fine {
    pub place: String,
    pub state: String,
}

/// Everything that is wrong, and what is not.
pub fn findings(picture: &Picture) -> (Vec<Finding>, Vec<Fine>) {
    let mut wrong: Vec<Finding> = picture.missing_topics.iter().map(|topic| missing_topic(topic)).collect();
    let mut fine = Vec::new();
    let Some((id, partitions)) = &picture.source else { return (wrong, fine) };
    if let Some(finding) = books(picture, id) {
        wrong.push(finding);
        return (wrong, fine);
    }
    let ahead = (0..*partitions)
        .filter_map(|partition| picture.seen(partition))
        .any(|seen| diagnose(&picture.job, &seen) == Err(Ailment::KafkaAhead));
    for partition in 0..*partitions {
        let place = format!("{}[{partition}]", picture.topic);
        let judged = match picture.seen(partition) {
            Some(seen) => registered(picture, &place, partition, &seen),
            None => unregistered(picture, &place, partition, ahead),
        };
        match judged {
            Ok(state) => fine.push(Fine { place, state }),
            Err(finding) => wrong.push(finding),
        }
    }
    (wrong, fine)
}

fn missing_topic(topic: &str) -> Finding {
    Finding {
        place: format!("topic {topic}"),
        partition: None,
        what: "it does not exist in Kafka, or this user may not see it".into(),
        verb: None,
        remedy: "`dinnerbell init` creates it; then start the job again, or this command where the input topic was \
                 missing. What readers had of an output topic that was deleted is not sent again"
            .into(),
    }
}

/// What is wrong with the ledger as a whole.
fn books(picture: &Picture, id: &str) -> Option<Finding> {
    let finding = |place: &str, what: String, verb: Verb| {
        Some(Finding { place: place.into(), partition: None, what, verb: Some(verb), remedy: verb.does().into() })
    };
    if picture.books == Books::WithoutIdentity {
        return finding("ledger", "it has lost its identity: its table ledger is empty".into(), Verb::Adopt);
    }
    if let Some(old) = picture.old_topics().into_iter().next() {
        let waiting: i64 = picture.old_parts.iter().map(|part| part.rows).sum();
        let what = format!(
            "it was deleted and made anew: the ledger knows the one with id {old}, Kafka has {id}. Found: {} stored \
             batches of the old one, with {waiting} rows",
            picture.old_parts.len()
        );
        return finding(&format!("topic {}", picture.topic), what, Verb::NewTopic);
    }
    if !picture.rows.is_empty() {
        return None;
    }
    let writer = picture.offsets.values().find_map(|kafka| decide::writer(&kafka.metadata));
    let offsets: Vec<String> =
        picture.offsets.iter().map(|(partition, kafka)| format!("{partition}: {}", kafka.offset)).collect();
    let offsets = offsets.join(", ");
    match writer {
        Some(writer) if writer == picture.job => {
            let what = format!("it has lost all progress of group {}. Found: Kafka's offsets {offsets}", picture.group);
            finding("ledger", what, Verb::Adopt)
        }
        Some(writer) => {
            let now = if picture.job.is_empty() { "there is none" } else { "it is another one, or new" };
            let what = format!(
                "group {} has offsets in Kafka that were committed under the ledger {writer}, and {now}. Found: Kafka's \
                 offsets {offsets}",
                picture.group
            );
            finding("ledger", what, Verb::Adopt)
        }
        None if !picture.parts.is_empty() => {
            let what = format!(
                "it has lost all progress of group {}, and Kafka has no offset either. Found: {} stored batches",
                picture.group,
                picture.parts.len()
            );
            finding("ledger", what, Verb::Adopt)
        }
        None if !picture.offsets.is_empty() && picture.start != Start::Committed => Some(Finding {
            place: format!("group {}", picture.group),
            partition: None,
            what: format!("it has offsets in Kafka that no dinnerbell has committed. Found: {offsets}"),
            verb: None,
            remedy: "set [source] start = \"committed\" to go on from them, or choose another [source] group_id".into(),
        }),
        None => None,
    }
}

fn registered(picture: &Picture, place: &str, partition: i32, seen: &Seen) -> Result<String, Finding> {
    let finding = |what: String, verb: Verb| Finding {
        place: place.into(),
        partition: Some(partition),
        what,
        verb: Some(verb),
        remedy: verb.does().into(),
    };
    let unreadable = seen.unconfirmed(&picture.job).into_iter().find(|part| picture.is_unreadable(part));
    let why = |part| picture.unreadable.iter().find(|(other, _)| other == part).map(|(_, why)| why.clone());
    match (diagnose(&picture.job, seen), unreadable) {
        (Ok(Decision::Reemit(_)), Some(part)) => {
            Err(finding(format!("{}. Found: {}", why(&part).unwrap_or_default(), found(seen)), Verb::ResendFromTable))
        }
        (Ok(decision), _) => Ok(state(&decision, seen)),
        // What costs messages comes last: the stored batch has its rows, and is sent from them before.
        (Err(ailment), Some(part)) if matches!(ailment.verb(), Verb::Offsets | Verb::AcceptLostMessages) => {
            let what = format!("{}; {}. Found: {}", ailment.what(), why(&part).unwrap_or_default(), found(seen));
            Err(finding(what, Verb::ResendFromTable))
        }
        (Err(ailment), _) => Err(finding(format!("{}. Found: {}", ailment.what(), found(seen)), ailment.verb())),
    }
}

fn state(decision: &Decision, seen: &Seen) -> String {
    let next = seen.progress.next_offset;
    match decision {
        Decision::Resume => format!("ledger and Kafka at {next}"),
        Decision::CommitOffset { .. } => match &seen.kafka {
            Some(kafka) if kafka.offset == next => format!("ledger and Kafka at {next}"),
            Some(kafka) => format!("ledger at {next}, Kafka at {}: `run` catches it up", kafka.offset),
            None => format!("ledger at {next}, no offset in Kafka and nothing stored: `run` commits it"),
        },
        Decision::Reemit(part) => {
            format!("ledger at {next}, Kafka at {}: `run` sends the stored batch of {} rows", part.from, part.rows)
        }
    }
}

fn unregistered(picture: &Picture, place: &str, partition: i32, ahead: bool) -> Result<String, Finding> {
    let kafka = picture.offsets.get(&partition);
    let ours = kafka.filter(|kafka| is_of(&picture.job, &kafka.metadata));
    let older = picture.rows.iter().any(|row| row.partition > partition);
    if picture.rows.is_empty() || (ours.is_none() && !older) {
        return Ok("new: `run` registers it".into());
    }
    let verb = if ahead { Verb::RebuildTable } else { Verb::Adopt };
    let found =
        kafka.map_or("no Kafka offset".into(), |kafka| format!("Kafka offset {} ({:?})", kafka.offset, kafka.metadata));
    Err(Finding {
        place: place.into(),
        partition: Some(partition),
        what: format!("{}. Found: {found}", Ailment::RowMissing.what()),
        verb: Some(verb),
        remedy: verb.does().into(),
    })
}

#[cfg(test)]
mod tests;
