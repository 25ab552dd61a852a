//! From Kafka to micro-batches: the consumer, its rebalances, and the decoded batches it hands out.

mod arenas;
mod assembly;
mod consumer;
mod queue;

pub use consumer::{Cycle, Event, REVOKE_WAIT, Source, Watcher};
