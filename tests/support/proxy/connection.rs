//! One client's connection through the proxy: two streams of whole messages, and what the faults make of them.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::matching::{Fault, Request};
use super::postgres::Verdict;
use super::{Protocol, Shared, kafka, postgres};

/// How long the server's answer to a request that came late is waited for.
const LATE_REPLY: Duration = Duration::from_secs(20);

/// How a connection ends.
enum End {
    /// One side has closed it, in order or not.
    Closed,
    Reset,
}

/// What both directions of a connection know.
enum Exchange {
    Kafka(kafka::Exchange),
    Postgres(postgres::Exchange),
}

struct Link {
    shared: Arc<Shared>,
    exchange: Mutex<Exchange>,
    /// The request that is held back now.
    held: Mutex<Option<(Fault, Bytes)>>,
}

/// Serves one client to the end of its connection.
pub(super) async fn serve(shared: Arc<Shared>, mut client: TcpStream) {
    let mut cuts = shared.cuts.subscribe();
    let exchange = match shared.protocol {
        Protocol::Kafka => Exchange::Kafka(kafka::Exchange::default()),
        Protocol::Postgres => Exchange::Postgres(postgres::Exchange::default()),
    };
    let link = Link { shared: shared.clone(), exchange: Mutex::new(exchange), held: Mutex::default() };
    shared.open.fetch_add(1, Ordering::SeqCst);
    let opened = tokio::select! {
        opened = link.open(&mut client) => opened.ok(),
        _ = cuts.changed() => None,
    };
    if let Some((mut server, framed)) = opened {
        let end = tokio::select! {
            end = link.exchange(&mut client, &mut server, framed) => end,
            _ = cuts.changed() => End::Reset,
        };
        shared.open.fetch_sub(1, Ordering::SeqCst);
        let held = link.held.lock().unwrap().take();
        match (held, end) {
            (Some((fault, request)), _) => {
                reset(client);
                let _ = deliver_late(&link, fault, &request, server).await;
            }
            (None, End::Reset) => {
                reset(client);
                reset(server);
            }
            (None, End::Closed) => {}
        }
    } else {
        shared.open.fetch_sub(1, Ordering::SeqCst);
        reset(client);
    }
}

/// RST instead of FIN: what is on its way is gone.
fn reset(stream: TcpStream) {
    let _ = stream.set_zero_linger();
}

impl Link {
    /// Connects to the server. The second value: whether whole messages can be told from now on.
    async fn open(&self, client: &mut TcpStream) -> io::Result<(TcpStream, bool)> {
        client.set_nodelay(true)?;
        self.shared.pass().await;
        let mut server = TcpStream::connect(self.shared.target).await?;
        server.set_nodelay(true)?;
        let framed = match self.shared.protocol {
            Protocol::Kafka => true,
            Protocol::Postgres => postgres::begin(client, &mut server).await?,
        };
        Ok((server, framed))
    }

    async fn exchange(&self, client: &mut TcpStream, server: &mut TcpStream, framed: bool) -> End {
        if !framed {
            let _ = tokio::io::copy_bidirectional(client, server).await;
            return End::Closed;
        }
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::select! {
            end = self.requests(self.frames(from_client), to_server) => end,
            end = self.responses(self.frames(from_server), to_client) => end,
        }
    }

    fn frames<R: AsyncRead + Unpin>(&self, stream: R) -> Frames<R> {
        let length = match self.shared.protocol {
            Protocol::Kafka => kafka::length,
            Protocol::Postgres => postgres::length,
        };
        Frames { stream, bytes: BytesMut::new(), length }
    }

    async fn requests(&self, mut from: Frames<impl AsyncRead + Unpin>, mut to: impl AsyncWrite + Unpin) -> End {
        while let Ok(Some(frame)) = from.next().await {
            self.shared.pass().await;
            let find = |request: &Request<'_>| self.shared.fault(request);
            let delay = match &mut *self.exchange.lock().unwrap() {
                Exchange::Kafka(exchange) => exchange.request(&frame, find),
                Exchange::Postgres(exchange) => exchange.request(&frame, find),
            };
            if let Some(fault) = delay {
                *self.held.lock().unwrap() = Some((fault.clone(), frame.clone()));
                fault.happened();
                tokio::select! {
                    () = fault.over() => {}
                    () = fault.was_cut() => return End::Closed,
                    () = from.closed() => return End::Closed,
                }
                self.held.lock().unwrap().take();
            }
            if to.write_all(&frame).await.is_err() {
                break;
            }
        }
        End::Closed
    }

    async fn responses(&self, mut from: Frames<impl AsyncRead + Unpin>, mut to: impl AsyncWrite + Unpin) -> End {
        while let Ok(Some(frame)) = from.next().await {
            self.shared.pass().await;
            let verdict = match &mut *self.exchange.lock().unwrap() {
                Exchange::Kafka(exchange) => exchange.response(&frame).map_or(Verdict::Pass, Verdict::Lost),
                Exchange::Postgres(exchange) => exchange.response(&frame),
            };
            let passed = match verdict {
                Verdict::Pass => to.write_all(&frame).await,
                Verdict::PassWith(withheld) => to.write_all(&[&withheld[..], &frame].concat()).await,
                Verdict::Withhold => Ok(()),
                Verdict::Lost(fault) => {
                    fault.happened();
                    return End::Reset;
                }
            };
            if passed.is_err() {
                break;
            }
        }
        End::Closed
    }
}

/// Brings a request to the server whose client has gone meanwhile, and takes its reply.
async fn deliver_late(link: &Link, fault: Fault, request: &[u8], mut server: TcpStream) -> io::Result<()> {
    fault.over().await;
    let (from_server, mut to_server) = server.split();
    to_server.write_all(request).await?;
    let mut replies = link.frames(from_server);
    let answered = async {
        while let Some(reply) = replies.next().await? {
            let ends = match link.shared.protocol {
                Protocol::Kafka => kafka::answers(request, &reply),
                Protocol::Postgres => postgres::ends_a_reply(&reply),
            };
            if ends {
                fault.was_answered_late(reply.to_vec());
                break;
            }
        }
        Ok(())
    };
    tokio::time::timeout(LATE_REPLY, answered).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Cuts a stream into messages. Both waits may be dropped at any time: nothing that was read is lost.
struct Frames<R> {
    stream: R,
    bytes: BytesMut,
    length: fn(&[u8]) -> Option<usize>,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(length) = (self.length)(&self.bytes).filter(|length| *length <= self.bytes.len()) {
                return Ok(Some(self.bytes.split_to(length).freeze()));
            }
            if self.stream.read_buf(&mut self.bytes).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Waits until the other side closes; what it still sends before is kept.
    async fn closed(&mut self) {
        while self.stream.read_buf(&mut self.bytes).await.is_ok_and(|read| read > 0) {}
    }
}
