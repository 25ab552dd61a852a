//! Fills a lookup table: the user's query, run by Postgres, streamed out by binary COPY in a read-only transaction.
//!
//! A `DISTINCT` that stands over all of the query is done here where it can be (see [`super::distinct`]): Postgres then
//! sends the rows as it finds them, instead of hashing or sorting all of them first, mostly on disk. That does not suit a
//! query which leaves few of many rows, since all of them are sent; written with `GROUP BY`, it stays with Postgres.

use std::path::PathBuf;
use std::pin::pin;

use datafusion::common::{DataFusionError, Result as EngineResult};
use futures::TryStreamExt;
use tokio_postgres::Client;
use tokio_postgres::error::{DbError, ErrorPosition, SqlState};
use tokio_postgres::types::Type;

use super::copy::{CopyDecoder, SOME_ROWS, arrow_schema, arrow_type, is_equal_by_bytes};
use super::sql::{line_and_column, without_distinct, without_semicolon};
use super::table::LookupTable;
use crate::{Error, Result};

/// One file of `lookups/`: the query that Postgres runs to fill the lookup table `name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookupQuery {
    pub name: String,
    pub file: PathBuf,
    pub sql: String,
}

/// Rows between two calls of a load's `progress`.
const PROGRESS_ROWS: u64 = 64 * 1024;

/// The query's columns, as a table without rows: what `triggers.sql` can be compiled against before anything is loaded.
///
/// Errors: as for [`load`].
pub async fn describe(client: &Client, query: &LookupQuery) -> Result<LookupTable> {
    let schema = arrow_schema(&columns(client, query).await?).map_err(|problem| in_file(query, problem))?;
    Ok(LookupTable::empty(&query.name, schema))
}

/// Runs the query on `client`, which must not be used for anything else meanwhile. `keys`: the columns that the table is
/// joined by; it is put into the order of the first, and has an index over each of the others. `progress` is told rows
/// and bytes received so far, every 64k rows and at the end.
///
/// Errors: [`Error::Sql`] with file, line and column for what Postgres says about the query or for a column of a type
/// that lookups do not know; [`Error::Postgres`] for everything else.
pub async fn load(
    client: &Client,
    query: &LookupQuery,
    keys: &[usize],
    progress: impl FnMut(u64, u64),
) -> Result<LookupTable> {
    let doing = || format!("loading the lookup table {}", query.name);
    client.batch_execute("BEGIN READ ONLY").await.map_err(Error::postgres(doing()))?;
    let loaded = copy_out(client, query, keys.first().copied(), progress).await;
    // There is nothing to commit. What a function in the query did to the session (`set_config`, `pg_notify`, advisory
    // locks) must not outlive the query: other work of the job may follow on this connection.
    let undo = "ROLLBACK; SELECT pg_advisory_unlock_all()";
    let ended = client.batch_execute(undo).await.map_err(Error::postgres(doing()));
    let decoder = loaded?;
    ended?;
    let (name, keys) = (query.name.clone(), keys.to_vec());
    build(query, move || {
        let table = decoder.table(&name)?;
        table.index_all(&keys);
        Ok(table)
    })
    .await
}

/// Work that takes its time, on a thread that nobody else waits for.
async fn build<T: Send + 'static>(
    query: &LookupQuery,
    work: impl FnOnce() -> EngineResult<T> + Send + 'static,
) -> Result<T> {
    let built = tokio::task::spawn_blocking(work).await;
    let built = built.unwrap_or_else(|failure| Err(DataFusionError::External(Box::new(failure))));
    built.map_err(Error::engine(format!("building the lookup table {}", query.name)))
}

async fn copy_out(
    client: &Client,
    query: &LookupQuery,
    key: Option<usize>,
    mut progress: impl FnMut(u64, u64),
) -> Result<CopyDecoder> {
    let columns = columns(client, query).await?;
    let mut decoder = CopyDecoder::new(&columns, key).map_err(|problem| in_file(query, problem))?;
    let mut sql = without_semicolon(&query.sql);
    if let Some(repeating) = without_distinct(&sql)
        && decoder.is_keyed()
        && columns.iter().all(|(_, kind)| is_equal_by_bytes(kind))
        && !compares_loosely(client).await?
    {
        decoder.remove_repeats(SOME_ROWS);
        tracing::debug!(lookup = query.name, "its DISTINCT is done by the job");
        sql = repeating;
    }

    // The newline ends a comment on the query's last line.
    let copy = format!("COPY (\n{sql}\n) TO STDOUT (FORMAT binary)");
    let stream = client.copy_out(&copy).await.map_err(|error| failed(query, error))?;
    let mut stream = pin!(stream);
    let mut bytes = 0;
    let mut told = 0;
    while let Some(chunk) = stream.try_next().await.map_err(|error| failed(query, error))? {
        decoder.feed(&chunk).map_err(|problem| in_file(query, problem))?;
        bytes += chunk.len() as u64;
        if decoder.rows() - told >= PROGRESS_ROWS {
            told = decoder.rows();
            progress(told, bytes);
        }
        if decoder.is_full() {
            decoder = build(query, move || decoder.compact().map(|()| decoder)).await?;
        }
    }
    progress(decoder.rows(), bytes);
    decoder.check_end().map_err(|problem| in_file(query, problem))?;
    Ok(decoder)
}

/// Whether some texts of other bytes may be equal in this database: there are collations that say so only where somebody
/// has made one. Which column has which is not asked.
async fn compares_loosely(client: &Client) -> Result<bool> {
    let loose = "SELECT EXISTS (SELECT FROM pg_collation WHERE NOT collisdeterministic)";
    let row = client.query_one(loose, &[]).await.map_err(Error::postgres("looking for nondeterministic collations"))?;
    Ok(row.get(0))
}

/// Names and types of the query's columns, as Postgres sees them.
async fn columns(client: &Client, query: &LookupQuery) -> Result<Vec<(String, Type)>> {
    let statement = client.prepare(&query.sql).await.map_err(|error| refused(query, error))?;
    let mut columns: Vec<(String, Type)> = Vec::new();
    for column in statement.columns() {
        let (name, kind) = (column.name().to_owned(), column.type_().clone());
        if arrow_type(&kind).is_none() {
            return Err(Error::Sql {
                file: query.file.clone(),
                line: None,
                column: None,
                problem: format!("column {name} is of type {kind}, which a lookup table cannot hold"),
                remedy: format!("cast it to text: {name}::text AS {name}"),
            });
        }
        if columns.iter().any(|(other, _)| *other == name) {
            return Err(in_file(query, format!("two columns are named {name}: give one of them another name with AS")));
        }
        columns.push((name, kind));
    }
    if columns.is_empty() {
        return Err(Error::Sql {
            file: query.file.clone(),
            line: None,
            column: None,
            problem: "this returns no columns".into(),
            remedy: "write one SELECT; its rows are the lookup table".into(),
        });
    }
    Ok(columns)
}

fn in_file(query: &LookupQuery, problem: String) -> Error {
    Error::Sql { file: query.file.clone(), line: None, column: None, problem, remedy: String::new() }
}

/// What the server says while the query runs. Its transaction is one that may only read, so the complaint that it writes is
/// about the query, and not about a server that will take writes again in a while.
fn failed(query: &LookupQuery, error: tokio_postgres::Error) -> Error {
    match error.as_db_error() {
        Some(db) if *db.code() == SqlState::READ_ONLY_SQL_TRANSACTION => Error::Sql {
            file: query.file.clone(),
            line: None,
            column: None,
            problem: words(db),
            remedy: "write a query that only reads, with functions that only read".into(),
        },
        _ => {
            let doing = format!("loading the lookup table {} by {}", query.name, query.file.display());
            Error::Postgres { doing, source: error }
        }
    }
}

fn words(db: &DbError) -> String {
    let detail = db.detail().map_or_else(String::new, |detail| format!("; {detail}"));
    format!("Postgres says: {} (SQLSTATE {}){detail}", db.message(), db.code().code())
}

/// What the server says about the query is the file's error; a broken connection is not.
fn refused(query: &LookupQuery, error: tokio_postgres::Error) -> Error {
    let Some(db) = error.as_db_error() else {
        return Error::Postgres { doing: format!("preparing the lookup query {}", query.name), source: error };
    };
    let Some(ErrorPosition::Original(position)) = db.position() else {
        return Error::Postgres { doing: format!("preparing {}", query.file.display()), source: error };
    };
    let (line, column) = line_and_column(&query.sql, *position as usize);
    let missing = matches!(db.code().code(), "42P01" | "3F000");
    let remedy = db.hint().unwrap_or(if missing {
        "correct the name, or create it: `dinnerbell init` runs the DDL in sql/postgres"
    } else {
        "correct the query; it runs in Postgres, as the job's user"
    });
    let (problem, remedy) = (words(db), remedy.to_owned());
    Error::Sql { file: query.file.clone(), line: Some(line), column: Some(column), problem, remedy }
}
