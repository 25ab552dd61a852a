//! librdkafka's own properties: passed through, except for those that the delivery protocol owns.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Deref;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

use super::document::{Setting, nearest};
use crate::Result;

/// Properties by name. `Debug` hides the values that may be secrets.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct KafkaProperties(BTreeMap<String, String>);

impl KafkaProperties {
    /// `[kafka]`, and over it what one side adds.
    pub(super) fn merged(
        common: &BTreeMap<String, Setting<String>>,
        side: &BTreeMap<String, Setting<String>>,
    ) -> KafkaProperties {
        common.iter().chain(side).map(|(name, setting)| (usual(name).to_owned(), setting.value.clone())).collect()
    }

    /// The addresses in `bootstrap.servers`.
    pub fn bootstrap_servers(&self) -> BTreeSet<&str> {
        let servers = self.0.get("bootstrap.servers").map_or("", String::as_str);
        servers.split(',').map(str::trim).filter(|server| !server.is_empty()).collect()
    }
}

impl FromIterator<(String, String)> for KafkaProperties {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(properties: I) -> Self {
        Self(properties.into_iter().collect())
    }
}

impl Deref for KafkaProperties {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<'a> IntoIterator for &'a KafkaProperties {
    type Item = (&'a String, &'a String);
    type IntoIter = std::collections::btree_map::Iter<'a, String, String>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Debug for KafkaProperties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |name: &str, value| if is_secret(name) { "***" } else { value };
        f.debug_map().entries(self.0.iter().map(|(name, value)| (name, shown(name, value)))).finish()
    }
}

fn is_secret(name: &str) -> bool {
    ["password", "secret", "key.pem", "oauthbearer.config", "jaas", "passphrase", "assertion"]
        .iter()
        .any(|part| name.contains(part))
}

/// The properties that decide what is delivered, and how often: not the user's to set.
/// (name, why, what to do instead)
const OWNED: &[(&str, &str, &str)] = &[
    ("group.id", "it is also the ledger's key", "set [source] group_id"),
    ("group.instance.id", "each lane needs its own", "set [job] instance"),
    ("auto.offset.reset", "offsets come from the ledger; a reset would skip or repeat messages", "set [source] start"),
    ("enable.auto.commit", COMMITS, REMOVE),
    ("auto.commit.enable", COMMITS, REMOVE),
    ("auto.commit.interval.ms", COMMITS, REMOVE),
    ("enable.auto.offset.store", COMMITS, REMOVE),
    ("offset.store.method", COMMITS, REMOVE),
    ("isolation.level", "committed offsets are stable for read_committed readers only", REMOVE),
    ("group.protocol", "fencing rests on the classic protocol's generations", REMOVE),
    ("group.protocol.type", "fencing rests on the classic protocol's generations", REMOVE),
    ("group.remote.assignor", "fencing rests on the classic protocol's generations", REMOVE),
    ("partition.assignment.strategy", "a cooperative one refuses commits in flight at every rebalance", REMOVE),
    ("enable.partition.eof", "the source reads the end of a partition otherwise", REMOVE),
    ("transactional.id", "each lane's producers have their own, and the ledger fences by them", REMOVE_GROUP),
    ("transaction.timeout.ms", "a claim's waiting times are computed from it", REMOVE),
    ("enable.idempotence", PRODUCER, REMOVE),
    ("enable.gapless.guarantee", PRODUCER, REMOVE),
    ("acks", PRODUCER, REMOVE),
    ("request.required.acks", PRODUCER, REMOVE),
    ("delivery.report.only.error", "the sink rests on it to learn of refused records", REMOVE),
    ("allow.auto.create.topics", "a topic that is gone must not come back by itself, empty", REMOVE),
    ("metadata.broker.list", "it is the old name of bootstrap.servers", "use bootstrap.servers"),
];
const COMMITS: &str = "progress is committed with each transaction, and by nothing else";
const PRODUCER: &str = "transactions need idempotence and all acknowledgements";
const REMOVE: &str = "remove it";
const REMOVE_GROUP: &str = "remove it; its prefix is [source] group_id";

/// librdkafka's two names of one property: the usual one, to which all are brought, and the other. A client given both would
/// have the value of either. Those of topics have one more, which begins with [`OF_TOPICS`].
const SYNONYMS: &[(&str, &str)] = &[
    ("compression.type", "compression.codec"),
    ("delivery.timeout.ms", "message.timeout.ms"),
    ("linger.ms", "queue.buffering.max.ms"),
    ("max.in.flight", "max.in.flight.requests.per.connection"),
    ("max.partition.fetch.bytes", "fetch.message.max.bytes"),
    ("retries", "message.send.max.retries"),
    ("sasl.mechanism", "sasl.mechanisms"),
    ("sasl.oauthbearer.client.id", "sasl.oauthbearer.client.credentials.client.id"),
    ("sasl.oauthbearer.client.secret", "sasl.oauthbearer.client.credentials.client.secret"),
    ("topic.compression.type", "topic.compression.codec"),
];

const OF_TOPICS: &str = "topic.";

/// So begin properties that are not another name of the one without `topic.`: some are the client's own, and a topic's
/// compression may differ from its client's.
const NOT_THE_SAME: &[&str] =
    &["topic.metadata.", "topic.blacklist", "topic.compression.type", "topic.compression.codec"];

fn usual(name: &str) -> &str {
    let differs = NOT_THE_SAME.iter().any(|start| name.starts_with(start));
    let name = name.strip_prefix(OF_TOPICS).filter(|_| !differs).unwrap_or(name);
    SYNONYMS.iter().find(|(_, other)| *other == name).map_or(name, |(usual, _)| usual)
}

/// Those that people write most, to find the nearest to a misspelled one. librdkafka can list only what has a default.
const COMMON: &[&str] = &[
    "bootstrap.servers",
    "broker.address.family",
    "client.id",
    "client.rack",
    "compression.codec",
    "compression.type",
    "debug",
    "fetch.max.bytes",
    "fetch.wait.max.ms",
    "heartbeat.interval.ms",
    "linger.ms",
    "max.partition.fetch.bytes",
    "max.poll.interval.ms",
    "message.max.bytes",
    "queue.buffering.max.kbytes",
    "queued.max.messages.kbytes",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.password",
    "sasl.username",
    "security.protocol",
    "session.timeout.ms",
    "socket.keepalive.enable",
    "socket.timeout.ms",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.endpoint.identification.algorithm",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.keystore.location",
    "ssl.keystore.password",
    "statistics.interval.ms",
];

/// Refuses what the protocol owns, and what librdkafka does not know or cannot read, each with its line.
/// `beside` are the typed settings of the same table, for those that are misspelled.
pub(super) fn check(properties: &BTreeMap<String, Setting<String>>, beside: &[&str]) -> Result<()> {
    for (name, setting) in properties {
        let probe: ClientConfig = [(name.clone(), setting.value.clone())].into_iter().collect();
        let taken = probe.create_native_config();
        if let Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) = taken {
            let near = nearest(name, COMMON.iter().chain(beside).copied());
            let remedy =
                near.map_or("its CONFIGURATION.md lists all of them".into(), |near| format!("did you mean {near:?}?"));
            return Err(setting.refuse("librdkafka has no such property", remedy));
        }
        if let Some((_, why, instead)) = OWNED.iter().find(|(owned, ..)| *owned == usual(name)) {
            return Err(setting.refuse(format!("this property is the job's own: {why}"), *instead));
        }
        if let Some(other) = set_as(name, properties) {
            return Err(
                setting.refuse(format!("this is {other:?} by another name, which is set as well"), "keep one of them")
            );
        }
        match taken {
            Ok(_) => {}
            // librdkafka's own words, unless they quote the value: it may be a secret in the wrong place.
            Err(KafkaError::ClientConfig(_, why, ..)) if !why.contains(&setting.value) => {
                return Err(setting.refuse(why, "see librdkafka's CONFIGURATION.md"));
            }
            Err(_) => {
                return Err(setting.refuse("librdkafka does not take this value", "see librdkafka's CONFIGURATION.md"));
            }
        }
    }
    Ok(())
}

/// The other name under which this property is set as well, where `name` is not the usual one.
fn set_as<'a>(name: &str, properties: &'a BTreeMap<String, Setting<String>>) -> Option<&'a String> {
    let is_other = |other: &&String| *other != name && usual(other) == usual(name);
    if usual(name) == name { None } else { properties.keys().find(is_other) }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use rdkafka::bindings as ffi;

    use super::*;

    /// librdkafka's own list of its properties, as in its CONFIGURATION.md: the client's, then those of topics.
    fn configuration() -> String {
        let (mut text, mut length) = (std::ptr::null_mut(), 0);
        // SAFETY: the file is closed before its text is read, and the text is freed once.
        unsafe {
            let file = libc::open_memstream(&mut text, &mut length);
            ffi::rd_kafka_conf_properties_show(file.cast());
            assert_eq!(libc::fclose(file), 0);
            let shown = std::slice::from_raw_parts(text.cast::<u8>(), length).to_vec();
            libc::free(text.cast());
            String::from_utf8(shown).unwrap()
        }
    }

    /// The names in a part of it, each with the one that it is an alias of.
    fn names(part: &str) -> Vec<(&str, Option<&str>)> {
        // Behind the head of the table and the line under it.
        let rows = part.lines().filter_map(|line| line.split_once('|')).skip(2);
        rows.map(|(name, row)| (name.trim(), row.split_once("Alias for `").and_then(|(_, of)| of.split('`').next())))
            .collect()
    }

    fn is_owned(name: &str) -> bool {
        OWNED.iter().any(|(owned, ..)| *owned == name)
    }

    #[test]
    fn every_name_that_librdkafka_has_twice_is_known() {
        let configuration = configuration();
        let (clients, topics) = configuration.split_once("## Topic").expect("two parts");
        let (clients, topics) = (names(clients), names(topics));
        assert!(clients.len() > 100 && topics.len() > 10, "{configuration}");
        for (name, of) in clients.iter().chain(&topics) {
            let same = of.is_none_or(|of| usual(name) == usual(of) || is_owned(name) || is_owned(of));
            assert!(same, "{name} and {of:?}");
        }
        for (name, _) in &clients {
            assert!(!name.starts_with(OF_TOPICS) || usual(name) == *name, "{name}");
        }
        // A pointer, which no setting can be.
        for (name, _) in topics.iter().filter(|(name, _)| *name != "opaque") {
            // What both have by one name are two properties.
            let is_both = clients.iter().any(|(client, _)| client == name);
            let prefixed = format!("{OF_TOPICS}{name}");
            assert!((usual(&prefixed) == usual(name)) != is_both || is_owned(name), "{name}");
        }
    }
}
