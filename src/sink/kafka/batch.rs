//! Many records to one topic in one call: the topic is looked up and locked once for all of them, and their time is read once.

use std::ffi::CString;

use rdkafka::bindings as ffi;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::Producer as _;
use rdkafka::types::RDKafkaRespErr;

use super::{NO_NEWS, Producer};
use crate::error::{Error, Result};

/// Records handed over at once: enough that a call costs nothing beside them.
const AT_ONCE: usize = 1_024;

/// `RD_KAFKA_PARTITION_UA`, a macro that the bindings leave out.
const BY_PARTITIONER: i32 = -1;

/// A record without headers: key and value.
pub type Record<'a> = (Option<&'a [u8]>, &'a [u8]);

impl Producer {
    /// As [`Producer::produce`], for many records.
    ///
    /// # Errors
    /// What librdkafka says of a record, or of an earlier one. Which of those after it were taken is not known.
    pub fn produce_all<'a>(&self, topic: &str, records: impl IntoIterator<Item = Record<'a>>) -> Result<()> {
        let handle = Topic::new(self, topic)?;
        let mut records = records.into_iter().map(message);
        loop {
            let mut messages: Vec<_> = records.by_ref().take(AT_ONCE).collect();
            let mut begin = 0;
            while begin < messages.len() && !self.has_given_up() {
                let rest = &mut messages[begin..];
                let (partition, copied) = (BY_PARTITIONER, ffi::RD_KAFKA_MSG_F_COPY);
                // SAFETY: the topic and its client are alive; each message points into its record, and its bytes are copied.
                let taken = unsafe {
                    ffi::rd_kafka_produce_batch(handle.native, partition, copied, rest.as_mut_ptr(), rest.len() as i32)
                };
                if taken as usize == rest.len() {
                    break;
                }
                // After the first one without room none was taken.
                let taken = self.untaken(topic, rest)?;
                begin += taken;
                self.wait_for_room(topic, taken)?;
            }
            self.keep_moving(messages.len() - begin, NO_NEWS);
            if messages.len() < AT_ONCE {
                return Ok(());
            }
        }
    }

    /// The first message for which there was no room.
    fn untaken(&self, topic: &str, messages: &[ffi::rd_kafka_message_t]) -> Result<usize> {
        let failed = |message: &ffi::rd_kafka_message_t| message.err != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR;
        let Some(first) = messages.iter().position(failed) else {
            return Err(Error::Claim {
                what: format!("producing to {topic}: librdkafka took fewer records, without a word"),
            });
        };
        match RDKafkaErrorCode::from(messages[first].err) {
            RDKafkaErrorCode::QueueFull => Ok(first),
            code => {
                let error = KafkaError::MessageProduction(code);
                Err(self.producer.context().explain(format!("producing to {topic}"), error))
            }
        }
    }
}

fn message((key, value): Record<'_>) -> ffi::rd_kafka_message_t {
    ffi::rd_kafka_message_t {
        err: RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR,
        rkt: std::ptr::null_mut(),
        partition: 0,
        payload: value.as_ptr().cast_mut().cast(),
        len: value.len(),
        key: key.map_or(std::ptr::null_mut(), |key| key.as_ptr().cast_mut().cast()),
        key_len: key.map_or(0, <[u8]>::len),
        offset: 0,
        _private: std::ptr::null_mut(),
    }
}

/// librdkafka's handle of a topic.
struct Topic<'a> {
    native: *mut ffi::rd_kafka_topic_t,
    /// The handle must not outlive its client.
    _producer: &'a Producer,
}

impl<'a> Topic<'a> {
    fn new(producer: &'a Producer, topic: &str) -> Result<Topic<'a>> {
        let unknown = || Error::kafka(format!("producing to {topic}"))(KafkaError::Subscription(topic.to_owned()));
        let name = CString::new(topic).map_err(|_| unknown())?;
        // SAFETY: the client is alive, the name is copied, and without a configuration the client's own is used.
        let native = unsafe {
            ffi::rd_kafka_topic_new(producer.producer.client().native_ptr(), name.as_ptr(), std::ptr::null_mut())
        };
        if native.is_null() { Err(unknown()) } else { Ok(Topic { native, _producer: producer }) }
    }
}

impl Drop for Topic<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once; librdkafka counts its own uses.
        unsafe { ffi::rd_kafka_topic_destroy(self.native) }
    }
}
