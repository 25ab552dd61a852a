//! The lookup tables' task: loads them, then keeps them fresh. Lanes wait for the first load, and for nothing after it.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{patiently, setup};
use crate::config::Config;
use crate::error::Result;
use crate::lookup::{LookupStatus, Lookups};
use crate::postgres;
use crate::telemetry::Health;

/// Ends when the job is stopped.
///
/// # Errors
/// What keeps the first load from ever working. A refresh that fails is told and tried again.
pub async fn keep(config: Arc<Config>, lookups: Arc<Lookups>, health: Health, stop: CancellationToken) -> Result<()> {
    let connect = || postgres::connect(&config.postgres, "dinnerbell lookups");
    let load = || async { setup::load(&lookups, &connect().await?).await };
    health.lookups_waiting("the lookup tables are loading");
    let loaded = patiently(load, |reason| health.lookups_waiting(&format!("loading again, after: {reason}")));
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        loaded = loaded => loaded?,
    }
    health.lookups_ready();
    report(&health, &lookups.status());
    for empty in lookups.status().iter().filter(|table| table.rows == 0) {
        tracing::warn!(
            lookup = empty.name,
            "the lookup table is empty: nothing can match it before a refresh fills it"
        );
    }
    let Some(every) = config.lookup_refresh else {
        stop.cancelled().await;
        return Ok(());
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = lookups.refresh_forever(every, connect, |tables| report(&health, tables)) => {}
    }
    Ok(())
}

fn report(health: &Health, tables: &[LookupStatus]) {
    for table in tables {
        health.lookup_loaded(&table.name, table.rows as usize);
    }
}
