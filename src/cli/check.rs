//! `dinnerbell check`: proves all that `run` needs, and writes nothing.
//!
//! Promises: no offset moves, no row and no table is made, no group is joined; one line a check as it goes, on to the
//! next one after a failure, unless that one needs what has failed. Servers that are away are reported, not waited for.

mod kafka;
mod postgres;

pub(super) use kafka::letter_room;

use std::path::Path;
use std::sync::Arc;

use super::report::{Report, plural};
use crate::config::{Config, DEFAULT_FILE};
use crate::job::setup::{self, Mission};
use crate::lookup::{LookupSet, LookupTable};
use crate::sink::table::TableShape;
use crate::transform::{Transform, table_names};
use crate::{Error, Result};

/// Runs every check. `file` is what `--config` names; `explain` shows the plan of the query as well.
///
/// # Errors
/// After all lines are out: exit code 2 where settings or SQL are wrong, 1 where something else failed.
pub async fn run(file: Option<&Path>, explain: bool) -> Result<()> {
    let mut report = Report::new("check");
    if let Some(config) = report.take("settings", Config::load(file)) {
        report.ok("settings", settings_name(file));
        servers_and_sql(&mut report, &Arc::new(config), explain).await;
    }
    report.end("All is ready: `dinnerbell run` can start")
}

fn settings_name(file: Option<&Path>) -> String {
    match file {
        Some(file) => file.display().to_string(),
        None if Path::new(DEFAULT_FILE).exists() => DEFAULT_FILE.into(),
        None => format!("built-in defaults, as there is no {DEFAULT_FILE} here"),
    }
}

async fn servers_and_sql(report: &mut Report, config: &Arc<Config>, explain: bool) {
    let mission = sql_files(report, config);
    let cluster = kafka::check(report, config).await;
    let postgres = postgres::connect(report, config).await;
    let shape = match &postgres {
        Some(postgres) => postgres::sink_table(report, config, postgres).await,
        None => None,
    };
    if let Some(mission) = &mission {
        let lookups = match &postgres {
            Some(postgres) => postgres::lookups(report, config, mission, postgres).await,
            None => None,
        };
        // A query that reads no lookup table needs no server.
        match lookups.or_else(|| mission.files.lookups.is_empty().then(|| LookupSet::new([]))) {
            Some(lookups) => query(report, config, mission, &lookups, shape.as_ref(), explain).await,
            None => report.skip("query", "triggers.sql needs the lookup tables"),
        }
    }
    match &postgres {
        Some(postgres) => postgres::ledger(report, config, postgres, cluster.as_ref()).await,
        None => report.skip("ledger", "it is in Postgres, which did not answer"),
    }
}

/// What can be said of the files without a server.
fn sql_files(report: &mut Report, config: &Config) -> Option<Mission> {
    let loaded = Mission::load(config).and_then(|mission| table_names(&mission.files.triggers).map(|_| mission));
    let mission = report.take("SQL files", loaded)?;
    report.ok(
        "SQL files",
        format!(
            "{}: campaigns.sql has {}, triggers.sql is one query, {}",
            config.sql_directory.display(),
            plural(mission.campaigns.schema().fields().len() as u64, "column"),
            plural(mission.files.lookups.len() as u64, "lookup"),
        ),
    );
    Some(mission)
}

/// The query over the lookup tables, and its columns in the sink table.
async fn query(
    report: &mut Report,
    config: &Config,
    mission: &Mission,
    lookups: &LookupSet,
    shape: Option<&TableShape>,
    explain: bool,
) {
    let compiled = setup::compile_query(config, mission, lookups).await;
    let Some(transform) = report.take("query", compiled) else { return };
    report.ok("query", format!("outcomes: {}", transform.outcome_names().join(", ")));
    if !transform.carries_rows() {
        report.warn(
            "query",
            "this SELECT loses the message behind a row: outcomes say only `processed`, and a row that a sink refuses \
             halts the job instead of making a dead letter",
            "aggregates, window functions, DISTINCT and UNION do that; leave them to Postgres in lookups/ where you can",
        );
    }
    joins(report, &transform, lookups);
    if explain {
        report.line("plan", "triggers.sql", transform.explain());
    }
    let Some(shape) = shape else {
        return report.skip("output columns", "there is no sink table to compare them with");
    };
    let fitted = setup::fit(config, mission, &transform, shape);
    if let Some(conform) = report.take("output columns", fitted) {
        let count = plural(conform.schema().fields().len() as u64, "column");
        report.ok("output columns", format!("{count}, as {} takes them", config.sink_postgres.table));
    }
}

/// Which lookup tables are read by index, and which from end to end: that costs each batch the whole table.
fn joins(report: &mut Report, transform: &Transform, lookups: &LookupSet) {
    let (keys, scanned) = (transform.lookup_keys(), transform.scanned_lookups());
    let by_index = |table: &LookupTable| {
        let columns = keys.get(&table.name)?.iter().map(|&column| table.schema.field(column).name().as_str());
        Some(format!("{} by index on {}", table.name, columns.collect::<Vec<_>>().join(", ")))
    };
    let found: Vec<String> = lookups.tables().filter_map(|table| by_index(table)).collect();
    if !found.is_empty() {
        report.ok("joins", found.join("; "));
    }
    for table in lookups.tables().filter(|table| scanned.contains(&table.name)) {
        report.warn(
            "joins",
            format!("every batch reads all of {}", table.name),
            "it is read by index where a text, UUID or integer column of it equals one of the campaigns' and nothing else \
             decides the match: let sql/lookups compute the column, or leave the rows out; `check --explain` shows the plan",
        );
    }
}

/// What a person has to run because dinnerbell does not change topics that are there.
fn remedy_for_size(bootstrap: &str, topic: &str, bytes: usize) -> String {
    format!(
        "kafka-configs.sh --bootstrap-server {bootstrap} --alter --entity-type topics --entity-name {topic} \
         --add-config max.message.bytes={bytes}"
    )
}

/// A right that the job needs and does not have.
fn lacking(what: String, remedy: String) -> Error {
    Error::Halt { what, remedy }
}
