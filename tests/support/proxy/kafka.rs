//! Kafka's framing: size, API key, version, correlation id; a reply carries the correlation id of its request.

use std::collections::HashMap;

use super::matching::{Effect, Fault, Request};

/// API keys of requests, as in <https://kafka.apache.org/protocol#protocol_api_keys>.
pub mod api {
    pub const PRODUCE: i16 = 0;
    pub const FETCH: i16 = 1;
    pub const METADATA: i16 = 3;
    pub const OFFSET_FETCH: i16 = 9;
    pub const FIND_COORDINATOR: i16 = 10;
    pub const JOIN_GROUP: i16 = 11;
    pub const HEARTBEAT: i16 = 12;
    pub const SYNC_GROUP: i16 = 14;
    pub const INIT_PRODUCER_ID: i16 = 22;
    pub const ADD_PARTITIONS_TO_TXN: i16 = 24;
    pub const ADD_OFFSETS_TO_TXN: i16 = 25;
    pub const END_TXN: i16 = 26;
    pub const TXN_OFFSET_COMMIT: i16 = 28;
}

/// One connection's requests whose replies are to be lost.
#[derive(Default)]
pub(super) struct Exchange {
    lost: HashMap<i32, Fault>,
}

impl Exchange {
    /// Looks at a request; the fault by which it has to be held back.
    pub fn request(&mut self, frame: &[u8], find: impl Fn(&Request<'_>) -> Option<Fault>) -> Option<Fault> {
        let key = frame.get(4..6)?.try_into().map(i16::from_be_bytes).ok()?;
        let fault = find(&Request::Kafka { key, frame })?;
        if fault.effect() != Effect::LoseReply {
            return Some(fault);
        }
        self.lost.insert(i32_at(frame, 8)?, fault);
        None
    }

    /// The fault that takes this reply away.
    pub fn response(&mut self, frame: &[u8]) -> Option<Fault> {
        self.lost.remove(&i32_at(frame, 4)?)
    }
}

/// Whether the reply is that of the request.
pub(super) fn answers(request: &[u8], response: &[u8]) -> bool {
    i32_at(request, 8) == i32_at(response, 4)
}

/// The length of the frame that begins here, once its size has come.
pub(super) fn length(bytes: &[u8]) -> Option<usize> {
    i32_at(bytes, 0).map(|size| 4 + size as usize)
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    bytes.get(at..at + 4)?.try_into().map(i32::from_be_bytes).ok()
}
