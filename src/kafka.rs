//! What source and sinks share of Kafka: client properties, identities of cluster and topic, group metadata.
//!
//! Every call here blocks on the network for at most [`CALL_TIMEOUT`]; async callers go through [`blocking`].

mod certificate;
// Elsewhere librdkafka brings its own waits, the C library lacks this one by the monotonic clock, or its times are narrower.
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod wait;

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::bindings as ffi;
use rdkafka::client::Client;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::groups::GroupMemberInfo;
use rdkafka::message::BorrowedMessage;

use crate::error::{Error, Result};
use crate::messages::Header;

/// How long one request to Kafka may take before the server counts as away.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The broker's default ceiling (`transaction.max.timeout.ms`), so that a slow commit is not aborted under us.
pub const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// Group members that stop answering are replaced after this long. librdkafka's default is 45 s.
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(10);

/// How many events are served at once: with `debug`, librdkafka may log as fast as its lines are read.
const EVENTS_AT_ONCE: usize = 10_000;

/// For clients whose statistics nobody reads: where the user asks for them, they would wait in a queue for as long as the
/// client is not used.
pub const NO_STATISTICS: (&str, &str) = ("statistics.interval.ms", "0");

/// Properties with the user's on top, then ours that the delivery protocol needs.
pub fn client_config(user: &BTreeMap<String, String>, owned: &[(&str, &str)]) -> ClientConfig {
    let mut config = ClientConfig::new();
    // librdkafka would log its own connection attempts at every retry; outages are reported once, by the lane.
    config.set("log.connection.close", "false").set("client.id", "dinnerbell");
    // A new client comes to know its brokers by the first of them, closes that connection, and opens the next one no sooner
    // than half of this later. It doubles with each attempt, up to reconnect.backoff.max.ms.
    config.set("reconnect.backoff.ms", "20");
    for (key, value) in user {
        config.set(key, value);
    }
    for (key, value) in owned {
        config.set(*key, *value);
    }
    config
}

/// A client that only asks questions, made once the brokers have answered it.
///
/// # Errors
/// [`Error::Kafka`] with the reason that librdkafka's connections give (credentials, certificates), where they give one.
pub fn probe(user: &BTreeMap<String, String>) -> Result<BaseConsumer<Asker>> {
    probe_within(user, CALL_TIMEOUT)
}

/// As [`probe`], with less patience for brokers that are away.
pub fn probe_within(user: &BTreeMap<String, String>, limit: Duration) -> Result<BaseConsumer<Asker>> {
    let client: BaseConsumer<Asker> = client_config(user, &[("enable.auto.commit", "false"), NO_STATISTICS])
        .create_with_context(Asker::default())
        .map_err(Error::kafka("creating a client from [kafka]"))?;
    let servers = user.get("bootstrap.servers").map_or("", String::as_str);
    let doing = format!("connecting to Kafka at {servers}");
    // Short waits, so that refused credentials are told as what they are and not as a time-out.
    let deadline = std::time::Instant::now() + limit;
    let mut why = None;
    loop {
        let failure = match client.fetch_metadata(Some("__consumer_offsets"), Duration::from_secs(1)) {
            Ok(_) => return Ok(client),
            Err(failure) => failure,
        };
        // Serves the error callback.
        serve(&client.context().heard, || drop(client.poll(Duration::ZERO)));
        let cause = client.context().cause.lock().ok().and_then(|mut cause| cause.take());
        match cause {
            Some((cause, reason)) if Error::kafka("")(cause.clone()).action() == crate::error::Action::Halt => {
                let reason = certificate::problem(user, &reason).unwrap_or(reason);
                return Err(Error::kafka(format!("{doing}: {reason}"))(cause));
            }
            Some((_, reason)) => why = why.or(Some(reason)),
            None => {}
        }
        if std::time::Instant::now() > deadline {
            let doing = why.map_or(doing.clone(), |why| format!("{doing}: {why}"));
            return Err(Error::kafka(doing)(failure));
        }
    }
}

/// Who is in the group now: each member's id and host. Every broker is asked, since each knows only the groups it
/// coordinates; among several, one that cannot answer may go unnoticed, so nobody's rows may depend on the answer.
///
/// # Errors
/// [`Error::Kafka`] where no broker answers.
pub fn group_members<C: ClientContext>(client: &Client<C>, group: &str) -> Result<Vec<String>> {
    let found = client
        .fetch_group_list(Some(group), CALL_TIMEOUT)
        .map_err(Error::kafka(format!("asking for the members of group {group}")))?;
    let ours = found.groups().iter().filter(|found| found.name() == group);
    let name = |member: &GroupMemberInfo| format!("{} at {}", member.id(), member.client_host());
    Ok(ours.flat_map(|group| group.members().iter().map(name)).collect())
}

/// Serves what has come: one `poll` takes one event, and each line of librdkafka's log is one. What stands behind it must not wait
/// for the next turn, since a queue that is not empty wakes nobody. `heard` is what the client's context counts them in. False
/// where more may be left than are served at once.
pub fn serve(heard: &AtomicU64, mut poll: impl FnMut()) -> bool {
    (0..EVENTS_AT_ONCE).any(|_| {
        let before = heard.load(Ordering::Relaxed);
        poll();
        heard.load(Ordering::Relaxed) == before
    })
}

/// Remembers why connections fail.
#[derive(Default)]
pub struct Asker {
    /// Lines of the log and errors so far, see [`serve`].
    pub heard: AtomicU64,
    cause: std::sync::Mutex<Option<(KafkaError, String)>>,
}

impl ClientContext for Asker {
    fn log(&self, level: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
        self.heard.fetch_add(1, Ordering::Relaxed);
        log_librdkafka(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.heard.fetch_add(1, Ordering::Relaxed);
        let worse = Error::kafka("")(error.clone()).action() == crate::error::Action::Halt;
        if let Ok(mut cause) = self.cause.lock()
            && (worse || cause.is_none())
        {
            *cause = Some((error, reason.to_owned()));
        }
    }
}

impl ConsumerContext for Asker {}

/// Runs a blocking client call away from the async workers.
///
/// # Errors
/// The call's own, or [`Error::Halt`] if it panicked.
pub async fn blocking<T: Send + 'static>(call: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(call).await.unwrap_or_else(abnormal)
}

/// What a thread's panic comes to.
pub fn abnormal<T>(failure: tokio::task::JoinError) -> Result<T> {
    let what = format!("a blocking call ended abnormally: {failure}");
    Err(Error::Halt { what, remedy: "please report it".into() })
}

/// The cluster's own id, which tells two clusters apart behind equal or changing addresses.
pub fn cluster_id<C: ClientContext>(client: &Client<C>) -> Result<String> {
    client.fetch_cluster_id(CALL_TIMEOUT).ok_or_else(|| Error::Away {
        what: "asking Kafka for its cluster id: no answer; check \"bootstrap.servers\" under [kafka]".into(),
    })
}

/// A group member's identity at one moment: what makes an offset commit refusable after a rebalance.
pub struct GroupMetadata(ConsumerGroupMetadata);

impl GroupMetadata {
    /// Captures the membership. To be called on the polling thread, so that no rebalance can come between the last
    /// message and the capture. `None` while the consumer is no member: the broker accepts offsets that carry
    /// generation -1 or no member id without any fence, so such metadata is never handed out.
    pub fn capture<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Option<GroupMetadata> {
        let metadata = consumer.group_metadata()?;
        // The wrapper hides generation and member id; a second look at the same client has them. A generation can only
        // grow by a rebalance that this thread serves itself, so a valid second look vouches for the first.
        // SAFETY: the client is alive for the whole call and the metadata is destroyed once.
        let (generation, is_member) = unsafe {
            let raw = ffi::rd_kafka_consumer_group_metadata(consumer.client().native_ptr());
            if raw.is_null() {
                return None;
            }
            let generation = ffi::rd_kafka_consumer_group_metadata_generation_id(raw);
            let member = ffi::rd_kafka_consumer_group_metadata_member_id(raw);
            let is_member = !member.is_null() && *member != 0;
            ffi::rd_kafka_consumer_group_metadata_destroy(raw);
            (generation, is_member)
        };
        (generation >= 0 && is_member).then_some(GroupMetadata(metadata))
    }

    pub fn get(&self) -> &ConsumerGroupMetadata {
        &self.0
    }
}

impl std::fmt::Debug for GroupMetadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GroupMetadata")
    }
}

/// The headers of a message that the wrapper has read.
pub fn headers(message: &BorrowedMessage<'_>) -> Vec<Header> {
    // SAFETY: the message is alive.
    unsafe { copy_headers(message.ptr()) }
}

/// A message's headers. Names that are not UTF-8 (Kafka's protocol forbids them, brokers don't look) are read lossily; the
/// wrapper's own accessor would panic on them.
///
/// # Safety
/// `message` is a message of librdkafka's, and alive.
pub unsafe fn copy_headers(message: *mut ffi::rd_kafka_message_t) -> Vec<Header> {
    let mut native = std::ptr::null_mut();
    // SAFETY: the message is alive, and so are its headers.
    unsafe {
        match ffi::rd_kafka_message_headers(message, &mut native) {
            ffi::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => list_headers(native),
            _ => Vec::new(),
        }
    }
}

/// # Safety
/// `native` is a list of librdkafka's, and alive.
unsafe fn list_headers(native: *const ffi::rd_kafka_headers_t) -> Vec<Header> {
    let mut copied = Vec::new();
    loop {
        let (mut name, mut value, mut size) = (std::ptr::null(), std::ptr::null(), 0usize);
        // SAFETY: name and value are only read while the list is alive.
        unsafe {
            let found = ffi::rd_kafka_header_get_all(native, copied.len(), &mut name, &mut value, &mut size);
            if found != ffi::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return copied;
            }
            let name = CStr::from_ptr(name).to_string_lossy().into_owned();
            copied.push((name, bytes(value, size).map(<[u8]>::to_vec)));
        }
    }
}

/// Bytes as librdkafka hands them out.
///
/// # Safety
/// `at` is null or the begin of `len` bytes that live as long as `'a`.
pub unsafe fn bytes<'a>(at: *const std::ffi::c_void, len: usize) -> Option<&'a [u8]> {
    // SAFETY: the caller's promise.
    (!at.is_null()).then(|| unsafe { std::slice::from_raw_parts(at.cast(), len) })
}

/// The id that a topic gets when it is made: a topic deleted and made anew has another one.
///
/// # Errors
/// [`Error::Halt`] where the topic does not exist, [`Error::Kafka`] where the broker does not answer.
pub fn topic_id<C: ClientContext>(client: &Client<C>, topic: &str) -> Result<String> {
    describe_topic(client, topic, false).map(|facts| facts.id)
}

/// What a broker says of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicFacts {
    /// As for [`topic_id`].
    pub id: String,
    pub may_read: bool,
    pub may_write: bool,
}

/// The topic's id and, where `rights` asks for them, what this user may do; without an answer about rights, everything.
///
/// # Errors
/// As for [`topic_id`].
pub fn describe_topic<C: ClientContext>(client: &Client<C>, topic: &str, rights: bool) -> Result<TopicFacts> {
    let name = CString::new(topic).map_err(|_| missing_topic(topic))?;
    let doing = || format!("asking Kafka for the id of topic {topic}");
    let broker = answering_broker(client, topic)?;
    // SAFETY: all pointers come from librdkafka's own constructors and are destroyed once, after their last use; the
    // topic's name outlives the call that reads it; results are read before their event is destroyed.
    unsafe {
        let queue = ffi::rd_kafka_queue_new(client.native_ptr());
        let mut names = [name.as_ptr()];
        let topics = ffi::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), 1);
        let options = ffi::rd_kafka_AdminOptions_new(
            client.native_ptr(),
            ffi::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
        );
        let timeout = CALL_TIMEOUT.as_millis() as i32;
        ffi::rd_kafka_AdminOptions_set_request_timeout(options, timeout, std::ptr::null_mut(), 0);
        ffi::rd_kafka_AdminOptions_set_broker(options, broker, std::ptr::null_mut(), 0);
        ffi::rd_kafka_AdminOptions_set_include_authorized_operations(options, i32::from(rights));
        ffi::rd_kafka_DescribeTopics(client.native_ptr(), topics, options, queue);
        let event = ffi::rd_kafka_queue_poll(queue, timeout + 1_000);
        let found = if event.is_null() { Err(RDKafkaErrorCode::OperationTimedOut) } else { read_topic_facts(event) };
        if !event.is_null() {
            ffi::rd_kafka_event_destroy(event);
        }
        ffi::rd_kafka_AdminOptions_destroy(options);
        ffi::rd_kafka_TopicCollection_destroy(topics);
        ffi::rd_kafka_queue_destroy(queue);
        found.map_err(|code| match code {
            RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic => missing_topic(topic),
            code => Error::kafka(doing())(KafkaError::AdminOp(code)),
        })
    }
}

/// # Safety
/// `event` is a live event of a DescribeTopics call for one topic.
unsafe fn read_topic_facts(event: *mut ffi::rd_kafka_event_t) -> Result<TopicFacts, RDKafkaErrorCode> {
    unsafe {
        let error = ffi::rd_kafka_event_error(event);
        if error != ffi::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(error.into());
        }
        let result = ffi::rd_kafka_event_DescribeTopics_result(event);
        let mut count = 0usize;
        let descriptions = ffi::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        if descriptions.is_null() || count == 0 {
            return Err(RDKafkaErrorCode::UnknownTopic);
        }
        let description = *descriptions;
        let error = ffi::rd_kafka_error_code(ffi::rd_kafka_TopicDescription_error(description));
        if error != ffi::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(error.into());
        }
        let uuid = ffi::rd_kafka_Uuid_base64str(ffi::rd_kafka_TopicDescription_topic_id(description));
        let mut count = 0usize;
        let operations = ffi::rd_kafka_TopicDescription_authorized_operations(description, &mut count);
        let may = |operation| operations.is_null() || (0..count).any(|at| *operations.add(at) == operation);
        Ok(TopicFacts {
            id: CStr::from_ptr(uuid).to_string_lossy().into_owned(),
            may_read: may(ffi::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_READ),
            may_write: may(ffi::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_WRITE),
        })
    }
}

/// A broker that is up, for questions that any broker can answer: librdkafka would put them to the controller and wait for
/// one that is being elected, or that the brokers do not name.
///
/// # Errors
/// [`Error::Kafka`] where no broker answers.
pub fn answering_broker<C: ClientContext>(client: &Client<C>, topic: &str) -> Result<i32> {
    let metadata = client
        .fetch_metadata(Some(topic), CALL_TIMEOUT)
        .map_err(Error::kafka(format!("reading the metadata of topic {topic}")))?;
    metadata
        .brokers()
        .first()
        .map(|broker| broker.id())
        .ok_or_else(|| Error::Away { what: "Kafka names no broker that is up".into() })
}

/// How many partitions a topic has.
///
/// # Errors
/// [`Error::Halt`] where the topic does not exist, [`Error::Kafka`] where the broker does not answer.
pub fn partition_count<C: ClientContext>(client: &Client<C>, topic: &str) -> Result<i32> {
    let metadata = client
        .fetch_metadata(Some(topic), CALL_TIMEOUT)
        .map_err(Error::kafka(format!("reading the metadata of topic {topic}")))?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    match found {
        Some(found) if found.error().is_none() && !found.partitions().is_empty() => Ok(found.partitions().len() as i32),
        _ => Err(missing_topic(topic)),
    }
}

pub fn missing_topic(topic: &str) -> Error {
    Error::Halt {
        what: format!("topic {topic} does not exist in Kafka, or this user may not see it"),
        remedy: "create it (`dinnerbell init` does), correct its name in the settings, or grant DESCRIBE on it".into(),
    }
}

/// Forwards librdkafka's own words to the log, below what a person needs: outages are told once, by whoever waits.
pub fn log_librdkafka(level: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
    tracing::debug!(target: "librdkafka", ?level, facility, "{message}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_has_come_is_served_or_it_is_told_that_more_is_left() {
        let asker = Asker::default();
        for (waiting, served, polls) in [(0, true, 1), (3, true, 4), (EVENTS_AT_ONCE, false, EVENTS_AT_ONCE)] {
            let (mut left, mut polled) = (waiting, 0);
            let done = serve(&asker.heard, || {
                polled += 1;
                if left > 0 {
                    asker.log(rdkafka::config::RDKafkaLogLevel::Debug, "TEST", "a line");
                    left -= 1;
                }
            });
            assert_eq!((done, polled), (served, polls), "{waiting} events");
        }
    }

    #[test]
    fn headers_whose_names_are_not_utf8_are_read() {
        // SAFETY: the list is ours and destroyed once; names and values are copied into it.
        let read = unsafe {
            let list = ffi::rd_kafka_headers_new(2);
            for (name, value) in [(&b"a\xff"[..], Some(&b"\xfe"[..])), (b"null", None), (b"empty", Some(b""))] {
                let (at, size) = value.map_or((std::ptr::null(), 0), |value| (value.as_ptr(), value.len() as isize));
                ffi::rd_kafka_header_add(list, name.as_ptr().cast(), name.len() as isize, at.cast(), size);
            }
            let read = list_headers(list);
            ffi::rd_kafka_headers_destroy(list);
            read
        };
        let expected = [("a\u{fffd}", Some(b"\xfe".to_vec())), ("null", None), ("empty", Some(Vec::new()))];
        assert_eq!(read, expected.map(|(name, value)| (name.to_owned(), value)));
    }
}
