//! The current lookup tables, their first load and their refresh: all of them are loaded anew, then swapped in whole.
//!
//! A refresh that fails keeps the old set: a job with lookup rows an hour old is worth more than none. It says so once,
//! with the set's age, until one succeeds. What this does not do: it never merges two loads, and it never waits for anybody.

use std::future::Future;
use std::ops::Deref;
use std::time::Duration;

use tokio::sync::watch;
use tokio_postgres::Client;

use super::load::{LookupQuery, load};
use super::table::{LookupKeys, LookupSet, LookupTable};
use crate::{Error, Result};

/// Size and age of one lookup table, for metrics.
#[derive(Debug, Clone, PartialEq)]
pub struct LookupStatus {
    pub name: String,
    pub rows: u64,
    /// Memory held by the rows and their indexes, in bytes.
    pub bytes: u64,
    pub age: Duration,
}

/// The current set of lookup tables, shared by all lanes of the process.
#[derive(Debug)]
pub struct Lookups {
    queries: Vec<LookupQuery>,
    keys: LookupKeys,
    /// `None` before the first load.
    current: watch::Sender<Option<LookupSet>>,
}

impl Lookups {
    /// Of these queries, joined by `keys`. Nothing is loaded yet.
    pub fn new(queries: Vec<LookupQuery>, keys: LookupKeys) -> Lookups {
        Lookups { queries, keys, current: watch::Sender::new(None) }
    }

    /// Loads every table for the first time. `progress` is told the table's name, rows and bytes so far.
    pub async fn load(&self, client: &Client, progress: impl FnMut(&str, u64, u64)) -> Result<()> {
        let set = load_all(client, &self.queries, &self.keys, progress).await?;
        self.current.send_replace(Some(set));
        Ok(())
    }

    /// The set as it is now; waits for the first load. Take it once per micro-batch: a swap must not happen in the middle
    /// of one.
    pub async fn current(&self) -> LookupSet {
        let mut current = self.current.subscribe();
        loop {
            if let Some(set) = current.borrow_and_update().clone() {
                return set;
            }
            // It cannot end before `self` does, which holds the other side.
            let _ = current.changed().await;
        }
    }

    /// Of no table before the first load.
    pub fn status(&self) -> Vec<LookupStatus> {
        let set = self.current.borrow().clone();
        let status = |table: &LookupTable| LookupStatus {
            name: table.name.clone(),
            rows: table.rows,
            bytes: table.bytes + table.index_bytes(),
            age: table.loaded_at.elapsed(),
        };
        set.iter().flat_map(LookupSet::tables).map(|table| status(table)).collect()
    }

    /// Refreshes every `interval`, until dropped. `connect` gives a connected client each time, its connection already
    /// driven by a task; `refreshed` is told what was swapped in.
    pub async fn refresh_forever<C, F, K>(&self, interval: Duration, connect: C, refreshed: impl Fn(&[LookupStatus]))
    where
        C: Fn() -> F,
        F: Future<Output = Result<K>>,
        K: Deref<Target = Client>,
    {
        let mut failing = false;
        loop {
            tokio::time::sleep(interval).await;
            let outcome = self.refresh(&connect).await;
            if outcome.is_ok() {
                refreshed(&self.status());
            }
            match outcome {
                Ok(()) if failing => {
                    failing = false;
                    tracing::info!("the lookup tables are fresh again");
                }
                Ok(()) => {}
                Err(error) if failing => tracing::debug!(%error, "the lookup refresh fails still"),
                Err(error) => {
                    failing = true;
                    let age = self.status().iter().map(|table| table.age).max().unwrap_or_default();
                    let age = humantime::format_duration(Duration::from_secs(age.as_secs())).to_string();
                    tracing::warn!(%error, age, "the lookup refresh failed; the tables loaded before stay in use");
                }
            }
        }
    }

    /// Loads all tables and swaps them in, or changes nothing.
    pub async fn refresh<C, F, K>(&self, connect: &C) -> Result<()>
    where
        C: Fn() -> F,
        F: Future<Output = Result<K>>,
        K: Deref<Target = Client>,
    {
        let client = connect().await?;
        let set = load_all(&client, &self.queries, &self.keys, |_, _, _| {}).await?;
        let old = self.current().await;
        for (query, table) in self.queries.iter().filter_map(|query| Some((query, set.get(&query.name)?))) {
            if old.get(&query.name).is_some_and(|old| old.schema != table.schema) {
                return Err(Error::Sql {
                    file: query.file.clone(),
                    line: None,
                    column: None,
                    problem: "the columns or types of its result have changed since the job began".into(),
                    remedy: "restart the job, so that triggers.sql is checked against them".into(),
                });
            }
        }
        // Runs go on with the old set meanwhile. An index that could not be built is built, or its error reported, by
        // the run that needs it.
        let new = set.clone();
        let _ = tokio::task::spawn_blocking(move || new.index_as(&old)).await;
        self.current.send_replace(Some(set));
        Ok(())
    }
}

async fn load_all(
    client: &Client,
    queries: &[LookupQuery],
    keys: &LookupKeys,
    mut progress: impl FnMut(&str, u64, u64),
) -> Result<LookupSet> {
    let mut tables = Vec::with_capacity(queries.len());
    for query in queries {
        let keys = keys.get(&query.name).map_or(&[][..], Vec::as_slice);
        tables.push(load(client, query, keys, |rows, bytes| progress(&query.name, rows, bytes)).await?);
    }
    Ok(LookupSet::new(tables))
}
