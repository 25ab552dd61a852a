//! The demo's broker: librdkafka's mock cluster, in this process, on a loopback port of its own.
//!
//! It answers like a Kafka of one node, transactions included, so the job runs on it unchanged. It keeps nothing on
//! disk, no more than 5 MiB or 100,000 record sets in a partition, shows readers what was aborted, and forgets offsets
//! committed in transactions: a stage for a demo, no witness for delivery.

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

use crate::error::{Error, Result};

/// A running broker; it goes when this is dropped. It cannot be sent to another thread: keep it in the function that
/// blocks on the demo.
pub struct Broker {
    cluster: MockCluster<'static, DefaultProducerContext>,
}

impl Broker {
    /// Starts one node; it answers when this returns.
    pub fn start() -> Result<Broker> {
        let cluster = MockCluster::new(1).map_err(Error::kafka("starting the demo broker"))?;
        Ok(Broker { cluster })
    }

    /// For `bootstrap.servers`, and for `kcat -b`.
    pub fn bootstrap(&self) -> String {
        self.cluster.bootstrap_servers()
    }

    /// Creates a topic. (The broker knows no CreateTopics request, so no admin client can.)
    pub fn create_topic(&self, name: &str, partitions: i32) -> Result<()> {
        let doing = format!("creating topic {name} on the demo broker");
        self.cluster.create_topic(name, partitions, 1).map_err(Error::kafka(doing))
    }
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker").field("bootstrap", &self.bootstrap()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rdkafka::ClientConfig;
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

    use super::*;

    #[test]
    fn a_committed_transaction_can_be_read() {
        let broker = Broker::start().unwrap();
        broker.create_topic("campaigns", 1).unwrap();
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", broker.bootstrap());
        let wait = Duration::from_secs(20);

        let producer: BaseProducer = config.clone().set("transactional.id", "t").create().unwrap();
        producer.init_transactions(wait).unwrap();
        producer.begin_transaction().unwrap();
        producer.send(BaseRecord::to("campaigns").key("k").payload("one")).unwrap();
        producer.commit_transaction(wait).unwrap();

        config.set("group.id", "g").set("auto.offset.reset", "earliest");
        let consumer: BaseConsumer = config.create().unwrap();
        consumer.subscribe(&["campaigns"]).unwrap();
        let end = std::time::Instant::now() + wait;
        let value = loop {
            assert!(std::time::Instant::now() < end, "nothing came");
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
                break rdkafka::Message::payload(&message).unwrap().to_vec();
            }
        };
        assert_eq!(value, b"one");
    }
}
