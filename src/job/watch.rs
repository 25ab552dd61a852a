//! Looks at the three topics now and then. A claim looks at the input topic's id, but a job that runs well claims once a
//! day; and a producer waits minutes for a topic that is gone, because it might only be late.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::consumer::Consumer;
use tokio_util::sync::CancellationToken;

use super::setup::{self, Brokers};
use crate::config::Config;
use crate::error::{Action, Error, Result};
use crate::kafka;
use crate::ledger::ailment::topic_anew;
use crate::ledger::store::Ledger;

/// Between two looks: six small requests of one process, whatever its load.
const EVERY: Duration = Duration::from_secs(15);

/// Between a look that finds something and the one that confirms it: a broker may not have heard of all topics yet when
/// it begins to answer.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// Ends when the job is stopped. `brokers` are asked until they fail, others then: each client has threads that wake up every
/// second, so there are no more of them than are needed.
///
/// # Errors
/// [`Error::Halt`] where a topic is gone, the input topic is not the ledger's, one of the others is not that of the first look,
/// or source and sink are two clusters by now: seen twice.
pub async fn topics(config: Arc<Config>, ledger: Arc<Ledger>, brokers: Brokers, stop: CancellationToken) -> Result<()> {
    let (mut brokers, mut known): (Option<Brokers>, Option<SinkTopics>) = (Some(brokers), None);
    // The first look comes soon: it learns with which topics the job has begun.
    let (mut suspected, mut pause) = (false, AGAIN_AFTER);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
        let looked = look(&config, &ledger, &mut brokers).await.and_then(|now| same_topics(&mut known, now));
        pause = EVERY;
        match looked {
            Err(error) if matches!(error, Error::Halt { .. }) && suspected => return Err(error),
            Err(error) if matches!(error, Error::Halt { .. }) => {
                tracing::warn!("{error}; looking again");
                (suspected, pause) = (true, AGAIN_AFTER);
            }
            Err(error) => {
                // The lanes tell of outages and refused rights.
                tracing::debug!(halts = error.action() == Action::Halt, "looking at the topics: {error}");
                brokers = None;
            }
            Ok(()) => suspected = false,
        }
    }
}

/// The output topic and the dead-letter topic, each with its id.
type SinkTopics = [(String, String); 2];

/// Whether they are those of the first look, which is remembered.
fn same_topics(known: &mut Option<SinkTopics>, now: SinkTopics) -> Result<()> {
    tracing::debug!(topics = ?now, "looked at the topics");
    let before = known.get_or_insert_with(|| now.clone());
    match before.iter().zip(&now).find(|(before, now)| before != now) {
        None => Ok(()),
        Some(((topic, old), (_, new))) => Err(Error::Halt {
            what: format!(
                "topic {topic} was deleted and made anew while the job ran (its id was {old} and is {new}): records of the \
                 last seconds may have gone into the old one"
            ),
            remedy:
                "the sink table has every row, and the input topic every message: send the topic's readers what they \
                     lack; `dinnerbell run` goes on with the new topic"
                    .into(),
        }),
    }
}

async fn look(config: &Arc<Config>, ledger: &Arc<Ledger>, brokers: &mut Option<Brokers>) -> Result<SinkTopics> {
    let asked = match brokers {
        Some(held) => held.clone(),
        None => brokers.insert(setup::brokers(config).await?).clone(),
    };
    let (config, ledger) = (config.clone(), ledger.clone());
    kafka::blocking(move || {
        // Serves librdkafka's callbacks, which nobody else does on these clients.
        for client in [&asked.source, &asked.sink] {
            kafka::serve(&client.context().heard, || drop(client.poll(Duration::ZERO)));
        }
        look_at(&asked, &config, &ledger)
    })
    .await
}

fn look_at(Brokers { source, sink, .. }: &Brokers, config: &Config, ledger: &Ledger) -> Result<SinkTopics> {
    let id = kafka::topic_id(source.client(), &ledger.topic)?;
    if id != ledger.topic_id {
        return Err(topic_anew(&ledger.topic, &ledger.topic_id, &id));
    }
    let with_id = |topic: &String| Ok((topic.clone(), kafka::topic_id(sink.client(), topic)?));
    Ok([with_id(&config.sink_kafka.topic)?, with_id(&config.dead_letters.topic)?])
}
