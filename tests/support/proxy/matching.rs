//! Which request a fault strikes, and what has become of it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

/// Says which request: of a kind, holding certain bytes, the n-th such since the fault was armed.
#[derive(Debug, Clone)]
pub struct Match {
    kind: Kind,
    contains: Option<String>,
    nth: u32,
    every: bool,
}

#[derive(Debug, Clone)]
enum Kind {
    Kafka(i16),
    Postgres(String),
}

impl Match {
    /// Requests of this API key, see [`super::api`].
    pub fn kafka(key: i16) -> Match {
        Match { kind: Kind::Kafka(key), contains: None, nth: 1, every: false }
    }

    /// Simple queries with this text in them, and executions of prepared statements with it.
    pub fn postgres(text: &str) -> Match {
        Match { kind: Kind::Postgres(text.to_owned()), contains: None, nth: 1, every: false }
    }

    /// Only Kafka requests that hold this text somewhere: a client id, a transactional id, a topic.
    pub fn containing(self, text: &str) -> Match {
        Match { contains: Some(text.to_owned()), ..self }
    }

    /// The n-th such request, from 1, since the fault was armed.
    pub fn nth(self, nth: u32) -> Match {
        Match { nth, ..self }
    }

    /// That one and all after it.
    pub fn every(self) -> Match {
        Match { every: true, ..self }
    }

    pub fn is_for_kafka(&self) -> bool {
        matches!(self.kind, Kind::Kafka(_))
    }

    fn is(&self, request: &Request<'_>) -> bool {
        match (&self.kind, request) {
            (Kind::Kafka(key), Request::Kafka { key: found, frame }) => {
                let holds = |text: &String| frame.windows(text.len()).any(|window| window == text.as_bytes());
                key == found && self.contains.as_ref().is_none_or(holds)
            }
            (Kind::Postgres(text), Request::Postgres { text: found }) => found.contains(text),
            _ => false,
        }
    }
}

/// What a proxy makes out of a request.
pub(super) enum Request<'a> {
    Kafka { key: i16, frame: &'a [u8] },
    Postgres { text: &'a str },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    LoseReply,
    /// `None`: until released.
    Delay(Option<Duration>),
}

/// A fault that was armed: how often it has happened, and the way to end it.
#[derive(Debug, Clone)]
pub struct Fault(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    which: Match,
    effect: Effect,
    seen: AtomicU32,
    armed: AtomicBool,
    injected: AtomicU64,
    released: watch::Sender<bool>,
    cut: watch::Sender<bool>,
    late: Mutex<Vec<Vec<u8>>>,
}

impl Fault {
    pub(super) fn new(which: Match, effect: Effect) -> Fault {
        Fault(Arc::new(Inner {
            which,
            effect,
            seen: AtomicU32::new(0),
            armed: AtomicBool::new(true),
            injected: AtomicU64::new(0),
            released: watch::Sender::new(false),
            cut: watch::Sender::new(false),
            late: Mutex::default(),
        }))
    }

    /// How often it has happened: replies dropped, requests held back.
    pub fn injected(&self) -> u64 {
        self.0.injected.load(Ordering::SeqCst)
    }

    /// Strikes no more, and lets go on what is held.
    pub fn release(&self) {
        self.0.armed.store(false, Ordering::SeqCst);
        self.0.released.send_replace(true);
    }

    /// Ends for their clients, and for them alone, the connections whose requests are held.
    pub fn cut(&self) {
        self.0.cut.send_replace(true);
    }

    /// The server's replies to requests that were delivered after their client had gone.
    pub fn late_replies(&self) -> Vec<Vec<u8>> {
        self.0.late.lock().unwrap().clone()
    }

    pub(super) fn effect(&self) -> Effect {
        self.0.effect
    }

    /// Whether it strikes this request, which counts as seen.
    pub(super) fn strikes(&self, request: &Request<'_>) -> bool {
        let Inner { which, seen, armed, .. } = &*self.0;
        if !armed.load(Ordering::SeqCst) || !which.is(request) {
            return false;
        }
        let count = seen.fetch_add(1, Ordering::SeqCst) + 1;
        count == which.nth || (which.every && count > which.nth)
    }

    pub(super) fn happened(&self) {
        self.0.injected.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn was_answered_late(&self, reply: Vec<u8>) {
        self.0.late.lock().unwrap().push(reply);
    }

    /// Waits for [`Fault::cut`].
    pub(super) async fn was_cut(&self) {
        // The sender lives as long as we do.
        let _ = self.0.cut.subscribe().wait_for(|cut| *cut).await;
    }

    /// Waits as long as its requests are to be held.
    pub(super) async fn over(&self) {
        let mut released = self.0.released.subscribe();
        let released = released.wait_for(|released| *released);
        match self.0.effect {
            // The sender lives as long as we do.
            Effect::Delay(Some(time)) => drop(tokio::time::timeout(time, released).await),
            Effect::Delay(None) => drop(released.await),
            Effect::LoseReply => {}
        }
    }
}
