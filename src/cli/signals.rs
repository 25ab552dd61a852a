//! SIGTERM and Ctrl-C: the first asks the job to stop, the second ends the process at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{Error, Result};

/// Takes over both signals; the token is cancelled by the first that comes. Needs a runtime.
pub fn shutdown() -> Result<CancellationToken> {
    let listen = |kind| signal(kind).map_err(Error::io("cannot listen for signals"));
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let token = CancellationToken::new();
    let asked = token.clone();
    tokio::spawn(async move {
        let (name, _) = next(&mut interrupt, &mut terminate).await;
        tracing::info!("{name}: stopping; once more to exit at once");
        asked.cancel();
        let (name, code) = next(&mut interrupt, &mut terminate).await;
        tracing::warn!("{name} again: exiting at once; the next start finds out what was committed");
        // SAFETY: ends the process and touches nothing. Not `exit`: the C libraries' handlers could wait for threads.
        unsafe { libc::_exit(code) }
    });
    Ok(token)
}

/// The next signal's name, and the exit code that shells give to its victims.
async fn next(interrupt: &mut Signal, terminate: &mut Signal) -> (&'static str, i32) {
    tokio::select! {
        _ = interrupt.recv() => ("SIGINT", 128 + libc::SIGINT),
        _ = terminate.recv() => ("SIGTERM", 128 + libc::SIGTERM),
    }
}
