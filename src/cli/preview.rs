//! `dinnerbell preview`: what the SQL makes of campaigns, shown as tables or as the JSON that the push service would get.
//!
//! Promises: nothing is written anywhere, no group is joined, no offset moves; Postgres is asked only for lookup tables
//! that the query reads and no fixture gives, Kafka only with `--from-kafka`. Decoding, SQL and encoding are the job's
//! own. Does not refuse SQL that the sink table would not take: `check` does, here it is a note.

mod fixture;
mod input;
mod show;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use chrono::{DateTime, Utc};
use futures::TryStreamExt;

use self::input::{Chunk, Input};
use self::show::{Head, Shown};
use super::Preview;
use crate::config::Config;
use crate::dead_letter::{Reject, Stage};
use crate::decode::Decoder;
use crate::decode::row_numbers;
use crate::encode::conform::Conform;
use crate::encode::json::{JsonRows, Texts};
use crate::error::{Error, Result};
use crate::job::setup::{self, Mission};
use crate::ledger::store;
use crate::lookup::{LookupKeys, LookupSet, LookupTable};
use crate::postgres::Connection;
use crate::sink::table;
use crate::transform::{CAMPAIGNS, Transform, table_names};

/// Rows of each table that are shown where `--limit` says nothing.
const SHOWN_ROWS: usize = 20;

/// Shows what was asked for.
///
/// # Errors
/// [`Error::Sql`] and [`Error::Setting`] for what the job would refuse, and what the servers say.
pub async fn run(config: Config, asked: Preview) -> Result<()> {
    let mission = Mission::load(&config)?;
    let now = match asked.now {
        None => Utc::now(),
        Some(seconds) => DateTime::from_timestamp(seconds, 0).ok_or_else(|| Error::Setting {
            key: "--now".into(),
            problem: format!("{seconds} is out of range"),
            remedy: "give unix seconds, as `date +%s` does".into(),
        })?,
    };
    let limit = asked.limit.unwrap_or(SHOWN_ROWS);
    let tables = Tables::open(&config, &mission, &asked)?;
    let has_input = asked.file.is_some() || asked.from_kafka.is_some();
    let loaded = match has_input {
        true => tables.for_query(asked.lookup.as_deref()).await?,
        false => tables.load(&asked.lookup.iter().cloned().collect()).await?,
    };
    if let Some(table) = asked.lookup.as_deref().and_then(|name| loaded.set.get(name)) {
        let text = show::lookup(table, limit)?;
        match asked.json {
            true => super::say_aside(&text),
            false => super::say(&text)?,
        }
        if has_input && !asked.json {
            super::write_out(b"\n")?;
        }
    }
    if !has_input {
        return Ok(());
    }
    let stand = Stand::build(&config, &mission, loaded, now).await?;
    let mut shown = Shown::new(asked.from_kafka.is_some(), limit);
    let mut rows = Rows::new(&stand, &asked)?;
    let mut input = Input::open(&config, &asked).await?;
    while let Some(chunk) = input.next()? {
        stand.run(&chunk, &mut shown, &mut rows).await?;
    }
    match rows {
        Rows::Shown(triggers) => super::say(&shown.text(&triggers)?),
        Rows::Json { .. } => {
            super::say_aside(&shown.summary());
            Ok(())
        }
    }
}

/// Where lookup tables come from.
struct Tables<'a> {
    config: &'a Config,
    mission: &'a Mission,
    fixtures: BTreeMap<String, Arc<LookupTable>>,
}

/// Lookup tables, and the connection by which they came, if one was needed.
struct Loaded {
    set: LookupSet,
    postgres: Option<Connection>,
}

impl<'a> Tables<'a> {
    fn open(config: &'a Config, mission: &'a Mission, asked: &Preview) -> Result<Tables<'a>> {
        let known: Vec<&str> = mission.files.lookups.iter().map(|query| query.name.as_str()).collect();
        let check = |flag: &str, name: &str| match known.contains(&name) {
            true => Ok(()),
            false => Err(Error::Setting {
                key: flag.into(),
                problem: format!("there is no lookup table {name:?}"),
                remedy: match known.as_slice() {
                    [] => format!("{}/lookups has no files", config.sql_directory.display()),
                    known => format!("name one of {}: the files in lookups/", known.join(", ")),
                },
            }),
        };
        if let Some(name) = &asked.lookup {
            check("--lookup", name)?;
        }
        let mut fixtures = BTreeMap::new();
        for given in &asked.lookup_file {
            check("--lookup-file", &given.name)?;
            fixtures.insert(given.name.clone(), Arc::new(fixture::read(&given.name, &given.file)?));
        }
        Ok(Tables { config, mission, fixtures })
    }

    /// The tables that the query reads, and `also`.
    async fn for_query(self, also: Option<&str>) -> Result<Loaded> {
        let names = table_names(&self.mission.files.triggers)?;
        let all: BTreeSet<String> = self.mission.files.lookups.iter().map(|query| query.name.clone()).collect();
        let known = |name: &String| name == CAMPAIGNS || names.defined.contains(name) || all.contains(name);
        if !names.read.iter().all(known) {
            // A misspelled table is told before a server is asked for the others.
            setup::compile_query(self.config, self.mission, &self.placeholders()).await?;
            return self.load(&all).await;
        }
        let mut wanted: BTreeSet<String> = names.read.intersection(&all).cloned().collect();
        wanted.extend(also.map(str::to_owned));
        self.load(&wanted).await
    }

    /// The wanted tables; the others without columns, so that errors can name the nearest.
    async fn load(mut self, wanted: &BTreeSet<String>) -> Result<Loaded> {
        let is_missing = |name: &String| wanted.contains(name) && !self.fixtures.contains_key(name);
        let mut missing = Mission { files: self.mission.files.clone(), campaigns: self.mission.campaigns.clone() };
        missing.files.lookups.retain(|query| is_missing(&query.name));
        let mut tables = BTreeMap::new();
        let mut postgres = None;
        if !missing.files.lookups.is_empty() {
            let connection = store::connect(&self.config.postgres).await.inspect_err(|_| {
                super::say_aside(
                    "note: lookup tables come from Postgres; --lookup-file NAME=FILE takes one from a file instead",
                );
            })?;
            // An index is built where the query turns out to need one: it may read files too, and is not compiled yet.
            let set = setup::load_lookups(&missing, &connection, LookupKeys::new()).await?;
            for table in set.tables() {
                tables.insert(table.name.clone(), Arc::clone(table));
            }
            postgres = Some(connection);
        }
        tables.append(&mut self.fixtures);
        for table in self.placeholders().tables() {
            tables.entry(table.name.clone()).or_insert_with(|| Arc::clone(table));
        }
        Ok(Loaded { set: LookupSet::shared(tables.into_values()), postgres })
    }

    fn placeholders(&self) -> LookupSet {
        let empty = |name: &String| LookupTable::empty(name, arrow::datatypes::Schema::empty().into());
        LookupSet::new(self.mission.files.lookups.iter().map(|query| empty(&query.name)))
    }
}

/// Everything that a chunk of messages runs through.
struct Stand {
    decoder: Decoder,
    transform: Transform,
    /// Only where Postgres was asked anyway and has the sink table.
    conform: Option<Conform>,
    lookups: LookupSet,
    now: DateTime<Utc>,
}

impl Stand {
    async fn build(config: &Config, mission: &Mission, loaded: Loaded, now: DateTime<Utc>) -> Result<Stand> {
        let transform = setup::compile_query(config, mission, &loaded.set).await?;
        let conform = match &loaded.postgres {
            None => None,
            Some(postgres) => {
                let name = &config.sink_postgres.table;
                let fitted = table::describe(postgres, &name.schema, &name.name)
                    .await
                    .and_then(|shape| setup::fit(config, mission, &transform, &shape));
                fitted.inspect_err(note).ok()
            }
        };
        Ok(Stand { decoder: setup::decoder(config, mission), transform, conform, lookups: loaded.set, now })
    }

    async fn run(&self, chunk: &Chunk, shown: &mut Shown, rows: &mut Rows) -> Result<()> {
        let decoded = self.decoder.decode(&chunk.messages)?;
        shown.campaigns(chunk, &decoded.batch)?;
        let mut rejects = decoded.rejects;
        let mut batch = decoded.batch;
        // As in the job: a message of which one row is refused has no rows at all.
        loop {
            let refused = self.refused(&batch).await?;
            if refused.is_empty() {
                break;
            }
            batch = without(&batch, &refused)?;
            rejects.extend(refused);
        }
        rejects.sort_by_key(|reject| reject.row);
        shown.rejects(chunk, &rejects);

        let mut triggered = vec![false; chunk.messages.len()];
        let mut stream = self.transform.run(batch.clone(), self.now, &self.lookups).await?;
        while let Some(output) = stream.try_next().await? {
            self.transform.mark_triggered(&output, &mut triggered);
            let output = self.visible(&output)?;
            let fitted = match &self.conform {
                Some(conform) => conform.apply(&output)?.map_err(|row| untraceable(&row.column, &row.reason))?,
                None => output,
            };
            rows.take(fitted)?;
        }
        shown.outcomes(self.transform.outcomes(&batch, self.now, &triggered).await?);
        Ok(())
    }

    /// Messages of which the sink table would not take a row: at least one, if there are any.
    async fn refused(&self, batch: &RecordBatch) -> Result<Vec<Reject>> {
        let (Some(conform), true) = (&self.conform, self.transform.carries_rows()) else { return Ok(Vec::new()) };
        let mut refused: BTreeMap<u32, Reject> = BTreeMap::new();
        let mut stream = self.transform.run(batch.clone(), self.now, &self.lookups).await?;
        while let Some(output) = stream.try_next().await? {
            if let Err(found) = conform.apply(&self.visible(&output)?)? {
                let row = row_numbers(&output)[found.index];
                let path = format!("$.{}", found.column);
                refused.entry(row).or_insert(Reject { row, stage: Stage::Encode, path, reason: found.reason });
            }
        }
        Ok(refused.into_values().collect())
    }

    /// The user's columns of an output batch.
    fn visible(&self, output: &RecordBatch) -> Result<RecordBatch> {
        let count = output.num_columns() - usize::from(self.transform.carries_rows());
        let columns: Vec<usize> = (0..count).collect();
        output.project(&columns).map_err(|error| Error::engine("taking off the row numbers")(error.into()))
    }
}

fn without(batch: &RecordBatch, refused: &[Reject]) -> Result<RecordBatch> {
    let out: BTreeSet<u32> = refused.iter().map(|reject| reject.row).collect();
    let keep: BooleanArray = row_numbers(batch).iter().map(|row| Some(!out.contains(row))).collect();
    filter_record_batch(batch, &keep).map_err(|error| Error::engine("leaving out refused messages")(error.into()))
}

fn untraceable(column: &str, reason: &str) -> Error {
    Error::Halt {
        what: format!("the sink table would refuse a row: column {column}: {reason}"),
        remedy: "this SELECT does not tell which message the row came from, so the job would halt here".into(),
    }
}

/// What `run` would stop at, and a preview need not.
fn note(error: &Error) {
    let remedy = error.remedy().map_or(String::new(), |remedy| format!("\n      {remedy}"));
    super::say_aside(&format!("note: `dinnerbell run` would refuse to start: {error}{remedy}\n"));
}

/// What becomes of output rows.
enum Rows {
    Shown(Head),
    Json { encoder: JsonRows, left: usize },
}

impl Rows {
    fn new(stand: &Stand, asked: &Preview) -> Result<Rows> {
        let schema =
            stand.conform.as_ref().map_or_else(|| stand.transform.output_schema(), |conform| conform.schema().clone());
        Ok(match asked.json {
            false => Rows::Shown(Head::new(asked.limit.unwrap_or(SHOWN_ROWS))),
            // Every row, unless a limit is asked for.
            true => Rows::Json { encoder: JsonRows::new(&schema)?, left: asked.limit.unwrap_or(usize::MAX) },
        })
    }

    fn take(&mut self, batch: RecordBatch) -> Result<()> {
        match self {
            Rows::Shown(head) => head.add(&batch),
            Rows::Json { encoder, left } => {
                let batch = batch.slice(0, batch.num_rows().min(*left));
                *left -= batch.num_rows();
                encoder.pieces(&batch, print_json)?;
            }
        }
        Ok(())
    }
}

/// One row a line, each byte for byte the value of a record.
fn print_json(texts: &Texts) -> Result<()> {
    super::write_out(&texts.rows().flat_map(|row| [row, b"\n"]).collect::<Vec<_>>().concat())
}
