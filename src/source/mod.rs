//! From Kafka to micro-batches: the consumer, its rebalances, and the batches it hands out.

mod assembly;
mod consumer;
mod messages;

pub use consumer::{Cycle, Event, REVOKE_WAIT, Source, Watcher};
pub use messages::{Header, Messages, MessagesBuilder};

use crate::offsets::OffsetRange;

/// One partition's messages of one poll cycle: the unit that the transform runs on.
#[derive(Debug, Clone)]
pub struct MicroBatch {
    pub partition: i32,
    pub range: OffsetRange,
    pub messages: Messages,
}
