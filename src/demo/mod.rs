//! What `dinnerbell demo` runs on: an in-process broker, a private Postgres and a trickle of campaigns.
//!
//! The broker is librdkafka's mock cluster: it speaks the protocol, transactions included, and keeps nothing; it shows
//! the job at work and is no witness for delivery. The private Postgres is a real one, and the tests use it too.
//!
//! [`run`] sets the stage and lets the job of `dinnerbell run` loose on it, unchanged. What the screen says went out was
//! read back from the sinks ([`watch`]), never taken from what ought to be there.

pub mod broker;
pub mod generator;
pub mod postgres;
pub mod process;

mod outcomes;
mod screen;
mod seen;
mod stage;
mod story;
mod verdict;
mod watch;

use std::path::Path;

use tokio_util::sync::CancellationToken;

pub use stage::sql_directory;

use crate::error::Result;
use crate::job;
use screen::Screen;
use stage::Stage;
use story::Story;

/// What is logged during a demo: the screen says the rest. The demo broker cannot tell the limits of its topics, which
/// the set-up would warn of.
pub const LOG_FILTER: &str = "warn,librdkafka=error,rdkafka=error,dinnerbell::job::setup=error";

/// Runs the demo with the SQL files in `sql` until `shutdown`; with `once`, until every kind of campaign went through and
/// both sinks were compared.
///
/// # Errors
/// Where something is missing on this machine, where the job halts, and where `once` finds a difference.
pub async fn run(sql: &Path, once: bool, shutdown: CancellationToken) -> Result<()> {
    let mut screen = Screen::new();
    screen.opening()?;
    let stage = Stage::set(sql).await?;
    if shutdown.is_cancelled() {
        return Ok(());
    }
    screen.header(&stage)?;
    let (stop, ended) = (CancellationToken::new(), shutdown.child_token());
    let ringing = async {
        let result = job::run(stage.config.clone(), stop.clone()).await;
        ended.cancel();
        result
    };
    let told = async {
        let result = match Story::begin(&stage, once, ended.clone()).await {
            Ok(mut story) => story.tell(&mut screen, &shutdown).await,
            Err(error) => Err(error),
        };
        stop.cancel();
        result
    };
    let (ringing, told) = tokio::join!(ringing, told);
    // A job that halted is why the story broke off.
    ringing.and(told)
}
