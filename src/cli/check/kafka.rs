//! The Kafka part of `check`: one cluster, three topics, rights, and room for dead letters.

use std::sync::Arc;
use std::time::Duration;

use super::{lacking, remedy_for_size};
use crate::Result;
use crate::cli::report::{Report, grouped, plural};
use crate::config::Config;
use crate::job::setup::{self, Brokers, LETTER_ROOM};
use crate::kafka;

/// Long enough for a TLS handshake over a slow line; `run` is more patient.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the ledger's check needs to know of Kafka.
pub struct Cluster {
    pub id: String,
    /// Id and partitions of the source topic, if it is there.
    pub source: Option<(String, i32)>,
}

/// A topic by its use.
struct Topic {
    subject: &'static str,
    name: String,
    is_source: bool,
}

pub async fn check(report: &mut Report, config: &Arc<Config>) -> Option<Cluster> {
    let asked = config.clone();
    let connected = kafka::blocking(move || setup::connect_kafka(&asked, PATIENCE)).await;
    let Some(brokers) = report.take("Kafka", connected) else {
        report.skip("topics", "no answer from Kafka");
        return None;
    };
    let servers = config.source.kafka.get("bootstrap.servers").map_or("", String::as_str);
    report.ok("Kafka", format!("{servers}, cluster {}", brokers.cluster_id));
    let brokers = Arc::new(brokers);
    let mut source = None;
    let mut all_there = true;
    for topic in topics(config) {
        let (asked, name, is_source) = (brokers.clone(), topic.name.clone(), topic.is_source);
        let looked = kafka::blocking(move || look(&asked, &name, is_source)).await;
        let found = report.take(topic.subject, looked);
        all_there &= found.is_some();
        if let Some((id, partitions)) = found {
            report.ok(topic.subject, format!("{}: {}", topic.name, plural(partitions as u64, "partition")));
            if topic.is_source {
                source = Some((id, partitions));
            }
        }
    }
    if all_there {
        letter_room(report, config).await;
    }
    Some(Cluster { id: brokers.cluster_id.clone(), source })
}

fn topics(config: &Config) -> [Topic; 3] {
    [
        Topic { subject: "source topic", name: config.source.topic.clone(), is_source: true },
        Topic { subject: "output topic", name: config.sink_kafka.topic.clone(), is_source: false },
        Topic { subject: "dead letters", name: config.dead_letters.topic.clone(), is_source: false },
    ]
}

/// The topic's id and number of partitions, once it is sure that the job may use it.
fn look(brokers: &Brokers, topic: &str, is_source: bool) -> Result<(String, i32)> {
    let client = if is_source { &brokers.source } else { &brokers.sink };
    let client = rdkafka::consumer::Consumer::client(client.as_ref());
    let partitions = kafka::partition_count(client, topic)?;
    let facts = kafka::describe_topic(client, topic, true)?;
    let (may, right) = if is_source { (facts.may_read, "READ") } else { (facts.may_write, "WRITE") };
    if !may {
        return Err(lacking(
            format!("this user has no right to {right} topic {topic}"),
            format!("kafka-acls.sh --add --allow-principal User:... --operation {right} --topic {topic}"),
        ));
    }
    Ok((facts.id, partitions))
}

/// Whether the dead-letter topic takes whatever the source topic takes, with the job's headers on top.
pub async fn letter_room(report: &mut Report, config: &Config) {
    const SUBJECT: &str = "message sizes";
    let names = [config.source.topic.as_str(), config.sink_kafka.topic.as_str(), config.dead_letters.topic.as_str()];
    let limits = match setup::max_message_bytes(config, &names).await {
        Ok(limits) => limits,
        Err(error) => {
            return report.warn(
                SUBJECT,
                format!("{error}; Kafka's default is assumed"),
                "grant DESCRIBE_CONFIGS on the topics",
            );
        }
    };
    if let Some(untold) = setup::untold(&limits, &names) {
        report.warn(SUBJECT, format!("{untold}: Kafka's default is assumed"), "grant DESCRIBE_CONFIGS on the topics");
    }
    let limit = |topic: &str| limits.get(topic).copied().unwrap_or(setup::DEFAULT_MAX_MESSAGE_BYTES);
    let (source, letters) = (limit(names[0]), limit(names[2]));
    let wanted = source + LETTER_ROOM;
    let of = |bytes: usize| grouped(bytes as u64);
    if letters >= wanted {
        report.ok(SUBJECT, format!("{} takes {} bytes, {} up to {}", names[2], of(letters), names[0], of(source)));
    } else {
        let servers = config.sink_kafka.kafka.get("bootstrap.servers").map_or("", String::as_str);
        report.warn(
            SUBJECT,
            format!(
                "{} takes {} bytes, too few for the largest message of {} ({}) and its headers; such dead letters go \
                 into the ledger's table `letters` instead",
                names[2],
                of(letters),
                names[0],
                of(source)
            ),
            &remedy_for_size(servers, names[2], wanted),
        );
    }
}
