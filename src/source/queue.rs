//! One partition's queue of fetched messages, read many at a time: a call for each of them would cost more than the copy.

use std::ffi::CString;
use std::sync::Arc;

use rdkafka::bindings as ffi;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaRespErr;

use super::consumer::{Waker, Watcher};
use crate::kafka;
use crate::messages::Header;

/// Messages taken at once: enough to make the call cheap, and so few that a processor's nearest cache still has librdkafka's
/// notes of each when it is given back.
const AT_ONCE: usize = 32;

/// The version of librdkafka that was looked at for [`Message::is_bare`].
const KNOWN_VERSION: i32 = 0x020c_01ff;

/// Reads one partition. To be dropped before its consumer closes.
pub struct Queue {
    /// Taken from the queue and not yet asked for, the next one last.
    taken: Vec<Message>,
    native: Native,
    /// Keeps the partition's messages out of the consumer's own queue, and the wake-ups coming.
    _split: PartitionQueue<Watcher>,
}

impl Queue {
    /// Splits the partition's queue from the consumer's; `waker` is called whenever messages come into it while it is
    /// empty.
    pub fn split(consumer: &Arc<BaseConsumer<Watcher>>, topic: &str, partition: i32, waker: Waker) -> Option<Queue> {
        let name = CString::new(topic).ok()?;
        let mut split = consumer.split_partition_queue(topic, partition)?;
        split.set_nonempty_callback(move || waker.wake());
        // SAFETY: the client is alive, and the name is only read. The handle is a second one of the same queue.
        let native =
            unsafe { ffi::rd_kafka_queue_get_partition(consumer.client().native_ptr(), name.as_ptr(), partition) };
        (!native.is_null()).then(|| Queue { taken: Vec::new(), native: Native(native), _split: split })
    }

    /// Whether [`Queue::next`] has nothing. What librdkafka counts may be no message: then nothing comes out, and it is gone.
    pub fn is_empty(&self) -> bool {
        // SAFETY: the queue is alive.
        self.taken.is_empty() && unsafe { ffi::rd_kafka_queue_length(self.native.0) } == 0
    }

    /// The next message that is there; does not wait for one.
    ///
    /// # Errors
    /// What librdkafka says of the partition in the place of a message.
    pub fn next(&mut self) -> Option<Result<Message, KafkaError>> {
        if self.taken.is_empty() {
            self.take();
        }
        let message = self.taken.pop()?;
        Some(match message.native().err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(message),
            error => Err(KafkaError::MessageConsumption(error.into())),
        })
    }

    fn take(&mut self) {
        let mut messages = [std::ptr::null_mut(); AT_ONCE];
        // SAFETY: the queue is alive; at most as many messages are written as there are places.
        let count = unsafe { ffi::rd_kafka_consume_batch_queue(self.native.0, 0, messages.as_mut_ptr(), AT_ONCE) };
        // It has no errors of its own: what there is to say comes as a message.
        let count = usize::try_from(count).unwrap_or(0);
        self.taken.extend(messages[..count].iter().rev().map(|message| Message(*message)));
    }
}

/// librdkafka's handle of a queue.
struct Native(*mut ffi::rd_kafka_queue_t);

impl Drop for Native {
    fn drop(&mut self) {
        // SAFETY: got once, given back once.
        unsafe { ffi::rd_kafka_queue_destroy(self.0) }
    }
}

/// A message in librdkafka's memory. Never null.
pub struct Message(*mut ffi::rd_kafka_message_t);

impl Message {
    fn native(&self) -> &ffi::rd_kafka_message_t {
        // SAFETY: librdkafka's pointer, valid until it is given back in `drop`.
        unsafe { &*self.0 }
    }

    pub fn offset(&self) -> i64 {
        self.native().offset
    }

    /// Milliseconds since the epoch.
    pub fn timestamp(&self) -> Option<i64> {
        let mut kind = ffi::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is alive.
        let time = unsafe { ffi::rd_kafka_message_timestamp(self.0, &mut kind) };
        (time >= 0 && kind != ffi::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE).then_some(time)
    }

    pub fn key(&self) -> Option<&[u8]> {
        // SAFETY: key and length belong together.
        unsafe { kafka::bytes(self.native().key, self.native().key_len) }
    }

    pub fn value(&self) -> Option<&[u8]> {
        // SAFETY: as above.
        unsafe { kafka::bytes(self.native().payload, self.native().len) }
    }

    pub fn headers(&self) -> Vec<Header> {
        if self.is_bare() {
            return Vec::new();
        }
        // SAFETY: the message is alive.
        unsafe { kafka::copy_headers(self.0) }
    }

    /// Whether it surely has no headers. librdkafka's own answer takes a fifth of all reading: two allocations, to read one
    /// byte that nearly always is zero.
    ///
    /// In a record of format 2 the number of headers stands behind the value (<https://kafka.apache.org/documentation/#record>),
    /// and librdkafka hands values out where they lie in what it fetched (`rd_kafka_msgset_reader_msg_v2`), unless they are
    /// empty. Another version may do otherwise, and is asked. Older formats know neither headers nor a leader's epoch; one of
    /// their messages may have that of a batch before it, and whatever stands behind its value, it is answered rightly.
    fn is_bare(&self) -> bool {
        let message = self.native();
        // SAFETY: the message is alive.
        let has_epoch = unsafe { ffi::rd_kafka_message_leader_epoch(self.0) } >= 0;
        let is_known = ffi::RD_KAFKA_VERSION == KNOWN_VERSION && has_epoch && message.len > 0;
        // SAFETY: a record of format 2 has at least this byte behind its value, in the same buffer, which lives as long as the
        // message; what follows a message of an older format is read as well, and is the next one or the end of the answer.
        // (Not where a broker older than 2.7 ends its answer with such a message behind a batch of format 2: a byte too far.)
        is_known && unsafe { *message.payload.cast::<u8>().add(message.len) } == 0
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: ours since `take`, given back once.
        unsafe { ffi::rd_kafka_message_destroy(self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_in_the_librdkafka_that_is_built_in() {
        let why = "see whether Message::is_bare still holds in this version, and name it: until then headers cost a fifth of all reading";
        assert_eq!(ffi::RD_KAFKA_VERSION, KNOWN_VERSION, "{why}");
    }
}
