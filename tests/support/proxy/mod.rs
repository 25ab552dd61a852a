//! A network that fails on demand: a TCP proxy on loopback in front of Kafka or Postgres, on the tests' runtime.
//!
//! It works on bytes and knows of both protocols only where a message ends, what kind of request it is, and which reply
//! belongs to it. Every fault counts how often it really happened; a test asserts that.
//!
//! ```text
//! let (stack, network) = Stack::behind_proxies("name");
//! let lost = network.kafka.lose_reply(Match::kafka(api::END_TXN).nth(3));
//! ...
//! assert_eq!(lost.injected(), 1);
//! ```

mod connection;
mod kafka;
mod matching;
mod postgres;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::kafka::Kafka;
use super::run::spawn;
pub use kafka::api;
use matching::{Effect, Request};
pub use matching::{Fault, Match};

/// A proxy in front of one server. Dropped, it resets its connections and listens no more.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    listening: JoinHandle<()>,
}

/// The proxies in front of a job's two servers.
#[derive(Debug)]
pub struct Network {
    pub kafka: Proxy,
    pub postgres: Proxy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Kafka,
    Postgres,
}

/// What the proxy and its connections have in common.
#[derive(Debug)]
struct Shared {
    protocol: Protocol,
    target: SocketAddr,
    faults: Mutex<Vec<Fault>>,
    hole: watch::Sender<bool>,
    /// Grows with each cut; connections watch it.
    cuts: watch::Sender<u64>,
    open: AtomicUsize,
    cut: AtomicU64,
    caught: AtomicU64,
}

impl Proxy {
    /// In front of a broker started with [`super::KafkaOptions::proxied`]: takes one of its proxied listeners.
    pub fn kafka(kafka: &Kafka) -> Proxy {
        let (listener, port) = kafka.take_proxied();
        Self::start(Protocol::Kafka, listener, SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    }

    /// In front of the Postgres of this URL, which must name a loopback address.
    pub fn postgres(url: &str) -> Proxy {
        let target = host_of(url).parse().unwrap_or_else(|error| panic!("{}: {error}", host_of(url)));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        Self::start(Protocol::Postgres, listener, target)
    }

    fn start(protocol: Protocol, listener: TcpListener, target: SocketAddr) -> Proxy {
        let address = listener.local_addr().expect("it is bound");
        listener.set_nonblocking(true).expect("a socket");
        let shared = Arc::new(Shared {
            protocol,
            target,
            faults: Mutex::default(),
            hole: watch::Sender::new(false),
            cuts: watch::Sender::new(0),
            open: AtomicUsize::new(0),
            cut: AtomicU64::new(0),
            caught: AtomicU64::new(0),
        });
        let accepting = shared.clone();
        let listening = spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("inside the runtime");
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connection::serve(accepting.clone(), client));
            }
        });
        Proxy { address, shared, listening }
    }

    /// Where clients connect.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The URL with the proxy's address in the place of the server's.
    pub fn url(&self, url: &str) -> String {
        url.replacen(host_of(url), &self.address(), 1)
    }

    /// The request goes to the server; its complete reply is awaited and dropped; then both sides are reset.
    pub fn lose_reply(&self, which: Match) -> Fault {
        self.arm(which, Effect::LoseReply)
    }

    /// The request is held back for so long, also while its connection dies for the client, and then delivered.
    pub fn delay(&self, which: Match, time: Duration) -> Fault {
        self.arm(which, Effect::Delay(Some(time)))
    }

    /// As [`Proxy::delay`], until [`Fault::release`].
    pub fn hold(&self, which: Match) -> Fault {
        self.arm(which, Effect::Delay(None))
    }

    fn arm(&self, which: Match, effect: Effect) -> Fault {
        let fault = Fault::new(which, effect);
        self.shared.faults.lock().unwrap().push(fault.clone());
        fault
    }

    /// From now on nothing passes and nothing is closed; new connections are accepted and stay silent.
    pub fn black_hole(&self) {
        self.shared.hole.send_replace(true);
    }

    /// What was held in the black hole goes on its way.
    pub fn restore(&self) {
        self.shared.hole.send_replace(false);
    }

    /// Resets all present connections, on both sides; how many.
    pub fn cut_all(&self) -> usize {
        let open = self.shared.open.load(Ordering::SeqCst);
        self.shared.cut.fetch_add(open as u64, Ordering::SeqCst);
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
        open
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// How many messages and connections the black hole has caught so far.
    pub fn caught(&self) -> u64 {
        self.shared.caught.load(Ordering::SeqCst)
    }

    /// How often any fault has happened: connections cut, messages and connections caught in the black hole, replies
    /// lost, requests delayed.
    pub fn injected(&self) -> u64 {
        let faults = self.shared.faults.lock().unwrap().iter().map(Fault::injected).sum::<u64>();
        self.shared.cut.load(Ordering::SeqCst) + self.caught() + faults
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
        self.restore();
        self.cut_all();
    }
}

impl Shared {
    /// The fault that this request meets, if any. The first armed one has it.
    fn fault(&self, request: &Request<'_>) -> Option<Fault> {
        let faults = self.faults.lock().unwrap();
        faults.iter().find(|fault| fault.strikes(request)).cloned()
    }

    /// Waits in the black hole, where there is one.
    async fn pass(&self) {
        if *self.hole.borrow() {
            self.caught.fetch_add(1, Ordering::SeqCst);
            // The sender lives as long as we do.
            let _ = self.hole.subscribe().wait_for(|hole| !hole).await;
        }
    }
}

fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or(rest);
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}
