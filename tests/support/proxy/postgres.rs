//! Postgres' framing, version 3: a type byte and a length; a reply ends with ReadyForQuery, one for each simple query and
//! each Sync. The start of a connection has no type byte and is done apart.

use std::collections::{HashMap, VecDeque};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::matching::{Effect, Fault, Request};

const CANCEL: i32 = 80_877_102;
const SSL: i32 = 80_877_103;
const GSS: i32 = 80_877_104;

/// One connection's prepared statements, and what is on its way to the server.
#[derive(Default)]
pub(super) struct Exchange {
    statements: HashMap<Vec<u8>, String>,
    /// Requests that have not been answered, each up to its ReadyForQuery.
    cycles: VecDeque<Cycle>,
    /// For the Sync that ends the present extended query.
    lost: Option<Fault>,
    /// The server reads no Sync while it copies in; the one after CopyDone ends the query that began the COPY.
    skip_sync: bool,
    withheld: Vec<u8>,
}

struct Cycle {
    extended: bool,
    copying: bool,
    lost: Option<Fault>,
}

/// What becomes of a message from the server.
pub(super) enum Verdict {
    Pass,
    /// First what was withheld, then this.
    PassWith(Vec<u8>),
    Withhold,
    Lost(Fault),
}

impl Exchange {
    /// Looks at a message of the client's; the fault by which it has to be held back.
    pub fn request(&mut self, frame: &[u8], find: impl Fn(&Request<'_>) -> Option<Fault>) -> Option<Fault> {
        let mut words = frame.get(5..)?.split(|byte| *byte == 0);
        match frame[0] {
            b'P' => {
                let (name, text) = (words.next()?.to_vec(), words.next()?);
                self.statements.insert(name, String::from_utf8_lossy(text).into_owned());
                None
            }
            b'B' => {
                let text = self.statements.get(words.nth(1)?)?;
                let fault = find(&Request::Postgres { text })?;
                self.held_or_lost(fault, |exchange, fault| exchange.lost = Some(fault))
            }
            b'Q' => {
                let text = String::from_utf8_lossy(words.next()?).into_owned();
                self.cycles.push_back(Cycle { extended: false, copying: false, lost: None });
                let fault = find(&Request::Postgres { text: &text })?;
                self.held_or_lost(fault, |exchange, fault| {
                    if let Some(cycle) = exchange.cycles.back_mut() {
                        cycle.lost = Some(fault);
                    }
                })
            }
            b'S' => {
                if !std::mem::take(&mut self.skip_sync) {
                    let lost = self.lost.take();
                    self.cycles.push_back(Cycle { extended: true, copying: false, lost });
                }
                None
            }
            b'c' | b'f' => {
                self.skip_sync = self.cycles.front().is_some_and(|cycle| cycle.extended && cycle.copying);
                None
            }
            _ => None,
        }
    }

    fn held_or_lost(&mut self, fault: Fault, lose: impl FnOnce(&mut Self, Fault)) -> Option<Fault> {
        match fault.effect() {
            Effect::Delay(_) => Some(fault),
            Effect::LoseReply => {
                lose(self, fault);
                None
            }
        }
    }

    /// Looks at a message of the server's. Of a reply that is to be lost only the invitation to copy gets through.
    pub fn response(&mut self, frame: &[u8]) -> Verdict {
        let Some(cycle) = self.cycles.front_mut() else { return Verdict::Pass };
        if frame[0] == b'G' {
            cycle.copying = true;
            return Verdict::PassWith(std::mem::take(&mut self.withheld));
        }
        if frame[0] == b'Z' {
            return self.cycles.pop_front().and_then(|cycle| cycle.lost).map_or(Verdict::Pass, Verdict::Lost);
        }
        if cycle.lost.is_none() {
            return Verdict::Pass;
        }
        self.withheld.extend_from_slice(frame);
        Verdict::Withhold
    }
}

/// Whether this message ends a reply.
pub(super) fn ends_a_reply(frame: &[u8]) -> bool {
    frame[0] == b'Z'
}

/// The length of the message that begins here, once it is known.
pub(super) fn length(bytes: &[u8]) -> Option<usize> {
    bytes.get(1..5)?.try_into().map(|length| 1 + i32::from_be_bytes(length) as usize).ok()
}

/// Passes on what comes before the first message with a type byte. False where no such message will come: encryption, or
/// a request to cancel.
pub(super) async fn begin(client: &mut TcpStream, server: &mut TcpStream) -> std::io::Result<bool> {
    loop {
        let size = client.read_i32().await?;
        let mut body = vec![0; (size as usize).saturating_sub(4)];
        client.read_exact(&mut body).await?;
        server.write_i32(size).await?;
        server.write_all(&body).await?;
        let code = body.get(..4).and_then(|code| code.try_into().map(i32::from_be_bytes).ok());
        match code {
            Some(SSL | GSS) => {
                let answer = server.read_u8().await?;
                client.write_u8(answer).await?;
                if answer != b'N' {
                    return Ok(false);
                }
            }
            Some(CANCEL) => return Ok(false),
            _ => return Ok(true),
        }
    }
}
