//! What has arrived in each partition since the last time, gathered into micro-batches.

use std::time::Duration;

use rdkafka::error::KafkaError;

use super::arenas::Arenas;
use super::queue::Queue;
use crate::decode::{Decoder, Work};
use crate::error::Result;
use crate::messages::{MessagesBuilder, MicroBatch};
use crate::offsets::OffsetRange;

/// Messages taken from one partition before the next has its turn, so that a long backlog in one of them does not fill
/// the whole cycle. Large enough that changing partitions costs nothing.
const TURN: usize = 1_000;

/// One message goes at once. Where as many as these have come together, more are on their way: an answer of Kafka's is handed
/// over partition by partition, and what came a moment too late would wait for a whole commit.
const BURST: usize = 2;

/// How long the next ones are waited for, each time that a burst has gone on, and how often at most.
const BURST_WAIT: Duration = Duration::from_millis(1);
const BURST_ROUNDS: usize = 10;

/// The most that one cycle holds, over all partitions: `[batch] max_messages` and `max_bytes`.
pub struct Limits {
    pub messages: usize,
    pub bytes: usize,
}

/// What a cycle holds already.
#[derive(Default)]
struct Taken {
    messages: usize,
    bytes: usize,
}

impl Taken {
    fn fills(&self, limits: &Limits) -> bool {
        self.messages >= limits.messages || self.bytes >= limits.bytes
    }
}

/// The partitions of one assignment that are being read.
pub struct Reading {
    pub session: u64,
    pub number: u64,
    decoder: Decoder,
    arenas: Arenas,
    partitions: Vec<Partition>,
    /// Who comes first in the next cycle.
    first: usize,
}

struct Partition {
    id: i32,
    queue: Queue,
    /// The offset after the last message handed out.
    position: i64,
    /// How many messages the last cycle had that had any: the next one of a backlog will have as many.
    last: usize,
}

impl Reading {
    pub fn new(session: u64, number: u64, decoder: Decoder, arenas: Arenas) -> Self {
        Reading { session, number, decoder, arenas, partitions: Vec::new(), first: 0 }
    }

    pub fn add(&mut self, id: i32, position: i64, queue: Queue) {
        self.partitions.push(Partition { id, queue, position, last: 0 });
    }

    /// Takes what is there, up to `limits`, without waiting but for the rest of a burst; empty if nothing is. Whether the
    /// limits ended it.
    ///
    /// # Errors
    /// The partition, its position, and what librdkafka says of it. What was taken from the queues before the error is lost
    /// to this reading, which must end; the next one starts at the ledger's offsets.
    pub fn assemble(&mut self, limits: &Limits) -> Result<(Vec<MicroBatch>, bool), (i32, i64, KafkaError)> {
        // No arena and no builders for nothing: with an idle process it comes to that twice a second.
        if self.partitions.iter().all(|partition| partition.queue.is_empty()) {
            return Ok((Vec::new(), false));
        }
        let room = limits.bytes / self.partitions.len().max(1);
        let builder = |partition: &Partition| MessagesBuilder::with_room(self.arenas.take(room), partition.last);
        let mut builders: Vec<MessagesBuilder> = self.partitions.iter().map(builder).collect();
        let mut taken = Taken::default();
        for round in 0..BURST_ROUNDS {
            if round > 0 {
                std::thread::sleep(BURST_WAIT);
            }
            let before = taken.messages;
            self.take_all(&mut builders, &mut taken, limits)?;
            if taken.messages - before < BURST || taken.fills(limits) {
                break;
            }
        }
        Ok((self.finish(builders), taken.fills(limits)))
    }

    /// Takes what is there, from each partition in its turn.
    fn take_all(
        &mut self,
        builders: &mut [MessagesBuilder],
        taken: &mut Taken,
        limits: &Limits,
    ) -> Result<(), (i32, i64, KafkaError)> {
        let count = self.partitions.len();
        let mut dry = 0;
        while dry < count && !taken.fills(limits) {
            let index = self.first % count;
            let (partition, builder) = (&mut self.partitions[index], &mut builders[index]);
            let before = (builder.len(), builder.bytes());
            let most = TURN.min(limits.messages - taken.messages);
            partition.take(builder, most, limits.bytes - taken.bytes)?;
            dry = if builder.len() == before.0 { dry + 1 } else { 0 };
            taken.messages += builder.len() - before.0;
            taken.bytes += builder.bytes() - before.1;
            self.first = (self.first + 1) % count;
        }
        Ok(())
    }

    /// Here and not in the lane, which in a backlog commits one cycle while the next one is made.
    ///
    /// # Errors
    /// As for [`Decoder::decode`].
    pub fn decode(&self, batches: Vec<MicroBatch>) -> Result<Vec<Work>> {
        batches.into_iter().map(|micro| self.decoder.work(micro)).collect()
    }

    fn finish(&mut self, builders: Vec<MessagesBuilder>) -> Vec<MicroBatch> {
        let mut batches = Vec::new();
        for (partition, builder) in self.partitions.iter_mut().zip(builders) {
            partition.last = builder.len();
            let messages = builder.finish_with(|arena| self.arenas.lend(arena));
            if messages.is_empty() {
                continue;
            }
            let to = messages.offset(messages.len() - 1) + 1;
            let range = OffsetRange::new(partition.position, to);
            partition.position = to;
            batches.push(MicroBatch { partition: partition.id, range, messages });
        }
        batches
    }
}

impl Partition {
    fn take(&mut self, into: &mut MessagesBuilder, most: usize, bytes: usize) -> Result<(), (i32, i64, KafkaError)> {
        let (messages, size) = (into.len(), into.bytes());
        while into.len() - messages < most && into.bytes() - size < bytes {
            let message = match self.queue.next() {
                None => break,
                Some(Ok(message)) => message,
                Some(Err(error)) => return Err((self.id, self.position, error)),
            };
            // A seek may leave older messages in flight; what lies before our position was dealt with.
            if message.offset() >= self.position {
                into.push(message.offset(), message.timestamp(), message.key(), message.value(), message.headers());
            }
        }
        Ok(())
    }
}
