//! The Postgres part of `check`: server, sink table, lookups and ledger.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytesize::ByteSize;

use super::kafka::Cluster;
use super::lacking;
use crate::cli::report::{Report, grouped, plural};
use crate::config::{Config, Start, quote_identifier};
use crate::error::{Error, Result};
use crate::job::setup::{self, Mission};
use crate::kafka;
use crate::ledger::store::{self, Ledger};
use crate::lookup::{self, LookupSet};
use crate::postgres::Connection;
use crate::sink::table::{self, TableShape};

/// The ledger's DDL calls `gen_random_uuid`, which is in the server itself since this one.
const OLDEST_VERSION: i32 = 13;

pub async fn connect(report: &mut Report, config: &Config) -> Option<Connection> {
    let Some(connection) = report.take("Postgres", store::connect(&config.postgres).await) else {
        report.skip("sink table", "no answer from Postgres");
        return None;
    };
    let server = report.take("Postgres", server(&connection).await)?;
    report.ok("Postgres", format!("{}, version {}", config.postgres.display(), server.version));
    if server.fsync == "off" {
        report.warn(
            "Postgres",
            "fsync is off: a crash of the server may lose rows that Kafka has already",
            "set fsync = on in postgresql.conf",
        );
    }
    if matches!(server.synchronous_commit.as_str(), "off" | "local") {
        report.warn(
            "Postgres",
            format!(
                "synchronous_commit is {} by default here; the job turns it on for its own sessions, other writers of \
                 the table may lose rows in a crash",
                server.synchronous_commit
            ),
            "",
        );
    }
    Some(connection)
}

struct Server {
    version: String,
    fsync: String,
    synchronous_commit: String,
}

async fn server(connection: &Connection) -> Result<Server> {
    // The session has settings of its own by now; what it began with is the server's.
    let sql = "SELECT current_setting('server_version'), current_setting('server_version_num')::int4, \
               pg_is_in_recovery(), current_setting('fsync'), \
               (SELECT reset_val FROM pg_catalog.pg_settings WHERE name = 'synchronous_commit')";
    let row = connection.query_one(sql, &[]).await.map_err(Error::postgres("asking Postgres for its version"))?;
    let (version, number): (String, i32) = (row.get(0), row.get(1));
    if number / 10_000 < OLDEST_VERSION {
        return Err(Error::Halt {
            what: format!("Postgres {version} is too old"),
            remedy: format!("the job needs version {OLDEST_VERSION} or newer"),
        });
    }
    if row.get(2) {
        return Err(Error::Halt {
            what: "this Postgres is a standby, which takes no rows".into(),
            remedy: "name the primary in [postgres] url".into(),
        });
    }
    Ok(Server { version, fsync: row.get(3), synchronous_commit: row.get(4) })
}

pub async fn sink_table(report: &mut Report, config: &Config, postgres: &Connection) -> Option<TableShape> {
    let name = &config.sink_postgres.table;
    let described = table::describe(postgres, &name.schema, &name.name).await;
    let shape = report.take("sink table", described)?;
    report.ok("sink table", format!("{name}: {}", plural(shape.columns.len() as u64, "column")));
    let headroom = table::serial_headroom(postgres, &name.schema, &name.name).await;
    let Some(headroom) = report.take("serial numbers", headroom) else { return Some(shape) };
    let Some(warnings) = report.take("serial numbers", table::judge_headroom(&headroom)) else { return Some(shape) };
    for warning in &warnings {
        report.warn("serial numbers", warning, "");
    }
    if warnings.is_empty() {
        for column in &headroom {
            report.ok(
                "serial numbers",
                format!("column {}: {} of {} used", column.column, of(column.last), of(column.limit)),
            );
        }
    }
    Some(shape)
}

fn of(number: i64) -> String {
    grouped(number.unsigned_abs())
}

/// Loads every table, each with a line. `None` if one of them failed.
pub async fn lookups(
    report: &mut Report,
    config: &Config,
    mission: &Mission,
    postgres: &Connection,
) -> Option<LookupSet> {
    // What is wrong with a query is told by what comes after this.
    let keys = setup::lookup_keys(config, mission, postgres).await.unwrap_or_default();
    let mut tables = Vec::new();
    for query in &mission.files.lookups {
        let began = Instant::now();
        let loaded = lookup::load(postgres, query, keys.get(&query.name).map_or(&[], Vec::as_slice), |_, _| {}).await;
        if let Some(table) = report.take("lookup", loaded) {
            let (rows, size) = (plural(table.rows, "row"), ByteSize(table.bytes));
            let seconds = began.elapsed().as_secs_f64();
            report.ok("lookup", format!("{}: {rows}, {size} in memory, loaded in {seconds:.2} s", table.name));
            tables.push(table);
        }
    }
    (tables.len() == mission.files.lookups.len()).then(|| LookupSet::new(tables))
}

pub async fn ledger(report: &mut Report, config: &Arc<Config>, postgres: &Connection, cluster: Option<&Cluster>) {
    let Some(exists) = report.take("ledger", ledger_exists(config, postgres).await) else { return };
    let (cluster_id, source) = match cluster {
        Some(Cluster { id, source: Some((topic_id, partitions)) }) => (id.as_str(), Some((topic_id, *partitions))),
        _ => ("", None),
    };
    let topic_id = source.map_or("", |(topic_id, _)| topic_id.as_str());
    let (mut registered, mut job) = (Vec::new(), None);
    if exists {
        let (group, topic) = (&config.source.group_id, &config.source.topic);
        let opened = Ledger::open(postgres, &config.ledger_schema, cluster_id, group, topic, topic_id).await;
        let Some(ledger) = report.take("ledger", opened) else { return };
        report.ok("ledger", format!("schema {}, this version's protocol", config.ledger_schema));
        if source.is_some() {
            let Some(known) = report.take("group", ledger.registered(postgres).await) else { return };
            registered = known;
        }
        job = Some(ledger.job);
    } else {
        report.ok("ledger", format!("schema {}: not there yet, `run` may create it", config.ledger_schema));
    }
    match source {
        None => report.skip("group", "its offsets cannot be compared without the source topic"),
        Some((_, partitions)) if registered.is_empty() => first_start(report, config, partitions, job).await,
        Some((_, partitions)) => {
            let (group, known) = (&config.source.group_id, registered.len());
            let known =
                format!("group {group} goes on from the ledger, which knows {known} of {partitions} partitions");
            report.ok("group", known);
        }
    }
}

/// Whether all of it is there and ours to use; if not, whether it may be created.
async fn ledger_exists(config: &Config, postgres: &Connection) -> Result<bool> {
    let schema = &config.ledger_schema;
    let doing = || Error::postgres(format!("looking for the ledger in schema {schema}"));
    let quoted = quote_identifier(schema);
    let sql = "SELECT to_regclass($1 || '.letters') IS NOT NULL, current_user::text, current_database()::text, \
               has_database_privilege(current_database(), 'CREATE')";
    let row = postgres.query_one(sql, &[&quoted]).await.map_err(doing())?;
    let (exists, user, database): (bool, String, String) = (row.get(0), row.get(1), row.get(2));
    let user = quote_identifier(&user);
    if !exists {
        return match row.get(3) {
            true => Ok(false),
            false => Err(lacking(
                format!("there is no ledger in schema {schema}, and {user} may not create it"),
                format!(
                    "GRANT CREATE ON DATABASE {} TO {user}; or let an administrator run what `dinnerbell init --print` shows",
                    quote_identifier(&database)
                ),
            )),
        };
    }
    let rows = postgres.query(MISSING_RIGHTS, &[&quoted]).await.map_err(doing())?;
    let mut missing: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in &rows {
        missing.entry(row.get(0)).or_default().push(row.get(1));
    }
    if missing.is_empty() {
        return Ok(true);
    }
    let grants = missing.iter().map(|(table, rights)| format!("GRANT {} ON {table} TO {user};", rights.join(", ")));
    Err(lacking(
        format!("{user} may not do all that the job does in the ledger's schema {schema}"),
        grants.collect::<Vec<_>>().join(" "),
    ))
}

/// What the protocol does with each of the ledger's tables.
const MISSING_RIGHTS: &str = "
SELECT $1 || '.' || need.name, need.privilege
FROM (VALUES ('ledger', 'SELECT'),
             ('progress', 'SELECT'), ('progress', 'INSERT'), ('progress', 'UPDATE'),
             ('parts', 'SELECT'), ('parts', 'INSERT'), ('parts', 'DELETE'),
             ('chunks', 'SELECT'), ('chunks', 'INSERT'), ('chunks', 'DELETE'),
             ('letters', 'SELECT'), ('letters', 'INSERT'), ('letters', 'UPDATE')) AS need (name, privilege)
WHERE NOT has_table_privilege($1 || '.' || need.name, need.privilege)
ORDER BY 1, 2";

/// Where the group would begin, if the settings let it.
async fn first_start(report: &mut Report, config: &Arc<Config>, partitions: i32, job: Option<String>) {
    let asked = config.clone();
    let found = kafka::blocking(move || setup::first_offsets(&asked, partitions, job.as_deref())).await;
    let Some(starts) = report.take("group", found) else { return };
    let place = match config.source.start {
        Start::Earliest => "at the oldest messages",
        Start::Latest => "at the end of the topic",
        Start::Committed => "at the offsets that Kafka has of it",
    };
    const SHOWN: usize = 6;
    let mut offsets: Vec<String> =
        starts.iter().take(SHOWN).map(|(partition, offset)| format!("{partition}: {offset}")).collect();
    if starts.len() > SHOWN {
        offsets.push("...".into());
    }
    let group = &config.source.group_id;
    report.ok("group", format!("group {group} is new and begins {place} (by partition {})", offsets.join(", ")));
}
