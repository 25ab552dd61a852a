//! The real stack for the tests: Apache Kafka and Postgres without Docker, and the built binary as a job on them.
//!
//! Most tests share one Kafka and one Postgres, started when first asked for; each [`Stack`] has topics, a group, a
//! database and a directory of its own. Where KAFKA_BOOTSTRAP_SERVERS or DATABASE_URL is set, that server is used
//! instead. A test that stops a server or needs other options starts its own with [`Kafka::start`] or
//! [`Postgres::start`]. Whatever was started ends with this process, however it ends.
//!
//! Between the job and its servers a test may put a network that fails on demand: [`Stack::behind_proxies`].
//!
//! Everything here blocks, so tests are plain `#[test]` functions; [`block_on`] runs a future from anywhere.

#![allow(dead_code, unused_imports, reason = "a toolbox: not every test uses every tool, nor every import of it")]

mod acls;
mod campaigns;
mod certs;
pub mod chaos;
pub mod checker;
#[cfg(target_os = "linux")]
mod disk;
mod job;
mod kafka;
mod load;
mod messages;
pub mod model;
mod places;
mod postgres;
mod proxy;
mod run;
mod stack;
mod terminal;
mod witness;

pub use acls::{Acl, Acls};
pub use campaigns::{Campaign, TWO_COPIES, client, long_id, restaurant, sample};
pub use certs::{Certs, Signed};
pub use dinnerbell::demo::postgres::{Options as PostgresOptions, Shutdown};
#[cfg(target_os = "linux")]
pub use disk::Disk;
pub use job::Job;
pub use kafka::{Kafka, KafkaOptions, alter_topic, create_topic, shared as shared_kafka};
pub use load::{Load, rows_of_table};
pub use messages::{Message, Record, consume_all, consume_each, produce, produce_compressed};
pub use places::home;
pub use postgres::{Postgres, connect};
pub use proxy::{Fault, Match, Network, Proxy, api};
pub use run::{block_on, random, run, tail, wait_until};
pub use stack::Stack;
pub use terminal::Terminal;
pub use witness::{LONG_PATIENCE, PATIENCE, Witness, now, stop, taken};
