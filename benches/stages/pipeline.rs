//! The job's stages in memory: messages and lookup tables of a known shape, the shipped SQL, and sinks that keep nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringViewArray};
use arrow::datatypes::{DataType, Field, Schema};
use bytes::BytesMut;
use chrono::Utc;
use dinnerbell::decode::{CampaignSchema, Decoder, Limits};
use dinnerbell::encode::conform::Conform;
use dinnerbell::encode::copy::CopyEncoder;
use dinnerbell::encode::{
    chunk,
    json::{JsonRows, Texts},
};
use dinnerbell::lookup::{LookupSet, LookupTable};
use dinnerbell::messages::{Messages, MessagesBuilder};
use dinnerbell::sink::postgres::SLICE_ROWS;
use dinnerbell::sink::table::{Column, TableShape};
use dinnerbell::transform::{SqlFiles, Transform};
use futures::TryStreamExt;
use tokio_postgres::types::Type;

const MEMORY: usize = 512 * 1024 * 1024;

/// Rows in a batch of a lookup table, as the loader makes them.
const TABLE_BATCH_ROWS: usize = 64 * 1024;

/// An id that no dictionary and no compression can guess, and always the same: SplitMix64, twice.
pub fn uuid(kind: u64, n: usize) -> String {
    let mix = |seed: u64| {
        let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let seed = kind << 56 | n as u64;
    uuid::Uuid::from_u64_pair(mix(seed), mix(!seed)).to_string()
}

pub fn restaurant(n: usize) -> String {
    uuid(1, n)
}

/// A campaign of restaurant `of`, with `content` as its text.
pub fn campaign(n: usize, of: usize, content: &str) -> String {
    let (restaurant, id) = (restaurant(of), uuid(2, n));
    let content = serde_json::Value::from(content);
    format!(
        r#"{{"restaurant_id": "{restaurant}","adv_campaign_id": "{id}","adv_campaign_content": {content},"adv_campaign_owner": "Ivanov Ivan Ivanovich","adv_campaign_owner_contact": "iiivanov@restaurant.ru","adv_campaign_datetime_start": 1659203516,"adv_campaign_datetime_end": 2659207116,"datetime_created": 1659131516}}"#
    )
}

/// Campaigns of these restaurants.
pub fn campaigns(of: impl IntoIterator<Item = usize>) -> Messages {
    messages(of.into_iter().enumerate().map(|(n, of)| campaign(n, of, &format!("campaign {n}: a second dessert"))))
}

pub fn messages(values: impl IntoIterator<Item = String>) -> Messages {
    let mut builder = MessagesBuilder::default();
    for (offset, value) in values.into_iter().enumerate() {
        builder.push(offset as i64, None, None, Some(value.as_bytes()), Vec::new());
    }
    builder.finish()
}

/// `restaurants` times `subscribers` subscriptions. Neighbours in the table are of different restaurants, as Postgres's hash
/// aggregate puts them out: a key's rows lie all over the memory.
pub fn lookups(restaurants: usize, subscribers: usize) -> LookupSet {
    let schema = Arc::new(Schema::new(vec![
        Field::new("restaurant_id", DataType::Utf8View, true),
        Field::new("client_id", DataType::Utf8View, true),
    ]));
    let ids: Vec<String> = (0..restaurants).map(restaurant).collect();
    let rows = restaurants * subscribers;
    let batches = (0..rows).step_by(TABLE_BATCH_ROWS).map(|from| {
        let range = from..rows.min(from + TABLE_BATCH_ROWS);
        let restaurants = StringViewArray::from_iter_values(range.clone().map(|row| ids[row % restaurants].as_str()));
        let clients = StringViewArray::from_iter_values(range.map(|row| uuid(3, row)));
        let columns: Vec<ArrayRef> = vec![Arc::new(restaurants), Arc::new(clients)];
        RecordBatch::try_new(schema.clone(), columns).expect("two columns of one length")
    });
    let table = LookupTable::new("subscribers_restaurants", schema.clone(), batches.collect(), Some(0));
    LookupSet::new([table.expect("a table of two columns")])
}

/// What a lane computes with.
pub struct Pipeline {
    pub files: SqlFiles,
    pub campaigns: CampaignSchema,
    pub decoder: Decoder,
    pub transform: Transform,
    pub conform: Conform,
    runtime: tokio::runtime::Runtime,
}

fn files() -> SqlFiles {
    SqlFiles::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("sql")).expect("the shipped SQL")
}

impl Pipeline {
    /// The shipped SQL.
    pub fn new(lookups: &LookupSet) -> Pipeline {
        let files = files();
        let campaigns = schema(&files);
        let runtime = runtime();
        let compiled = runtime.block_on(Transform::compile(&files, campaigns.schema(), lookups, MEMORY));
        let transform = compiled.expect("the shipped SQL");
        let conform = Conform::new(&transform.output_schema(), &sink_table(), &PathBuf::from("triggers.sql"), |_| None)
            .expect("the shipped table");
        let decoder = Decoder::new(&campaigns, Limits { max_value_bytes: 1 << 20 });
        Pipeline { files, campaigns, decoder, transform, conform, runtime }
    }

    /// Another `triggers.sql`, and nothing behind it.
    pub fn of_query(sql: &str, lookups: &LookupSet) -> (Transform, tokio::runtime::Runtime) {
        let mut files = files();
        files.triggers.text = sql.to_owned();
        let campaigns = schema(&files);
        let runtime = runtime();
        let compiled = runtime.block_on(Transform::compile(&files, campaigns.schema(), lookups, MEMORY));
        (compiled.expect("the query"), runtime)
    }

    /// Plans the query anew.
    pub fn compile(&self, lookups: &LookupSet) -> Transform {
        let compiled = Transform::compile(&self.files, self.campaigns.schema(), lookups, MEMORY);
        self.runtime.block_on(compiled).expect("the shipped SQL")
    }

    pub fn decode(&self, messages: &Messages) -> RecordBatch {
        self.decoder.decode(messages).expect("campaigns").batch
    }

    /// All rows of one run.
    pub fn run(&self, batch: &RecordBatch, lookups: &LookupSet) -> usize {
        rows_of(&self.transform, &self.runtime, batch, lookups)
    }

    /// The conformed rows of one run.
    pub fn rows(&self, batch: &RecordBatch, lookups: &LookupSet) -> Vec<RecordBatch> {
        let run = async {
            let rows = self.transform.run(batch.clone(), Utc::now(), lookups).await.expect("the SQL runs");
            rows.try_collect::<Vec<_>>().await.expect("the SQL runs")
        };
        self.runtime.block_on(run).into_iter().map(|batch| self.fit(&batch)).collect()
    }

    fn fit(&self, batch: &RecordBatch) -> RecordBatch {
        let columns: Vec<usize> = (0..batch.num_columns() - 1).collect();
        let batch = batch.project(&columns).expect("columns");
        self.conform.apply(&batch).expect("a batch").expect("rows that fit")
    }

    /// Messages to bytes for both sinks and the ledger, which go nowhere: all that the job computes for a commit.
    pub fn ring(&self, messages: &Messages, lookups: &LookupSet, sinks: &mut NullSinks) -> usize {
        let batch = self.decode(messages);
        let now = Utc::now();
        let mut triggered = vec![false; messages.len()];
        let run = async {
            let mut rows = self.transform.run(batch.clone(), now, lookups).await.expect("the SQL runs");
            let mut count = 0;
            while let Some(rows) = rows.try_next().await.expect("the SQL runs") {
                self.transform.mark_triggered(&rows, &mut triggered);
                count += rows.num_rows();
                sinks.take(self.fit(&rows));
            }
            self.transform.outcomes(&batch, now, &triggered).await.expect("outcomes");
            count
        };
        let count = self.runtime.block_on(run);
        sinks.end_slice();
        count
    }

    pub fn sinks(&self) -> NullSinks {
        NullSinks {
            copy: CopyEncoder::new(self.conform.schema(), self.conform.types()).expect("a conformed schema"),
            json: JsonRows::new(self.conform.schema()).expect("a conformed schema"),
            buffer: BytesMut::new(),
            slice: Vec::new(),
            rows: 0,
            bytes: 0,
        }
    }
}

/// All rows of one run of a query.
pub fn rows_of(
    transform: &Transform,
    runtime: &tokio::runtime::Runtime,
    batch: &RecordBatch,
    lookups: &LookupSet,
) -> usize {
    runtime.block_on(async {
        let mut rows = transform.run(batch.clone(), Utc::now(), lookups).await.expect("the SQL runs");
        let mut count = 0;
        while let Some(rows) = rows.try_next().await.expect("the SQL runs") {
            count += rows.num_rows();
        }
        count
    })
}

/// Encodes for both sinks and the ledger, and drops the bytes.
pub struct NullSinks {
    copy: CopyEncoder,
    json: JsonRows,
    buffer: BytesMut,
    slice: Vec<RecordBatch>,
    rows: usize,
    /// All that was encoded: keeps the compiler from leaving it out.
    pub bytes: usize,
}

impl NullSinks {
    fn take(&mut self, batch: RecordBatch) {
        self.bytes += self.copy(&batch) + self.json(&batch);
        self.rows += batch.num_rows();
        self.slice.push(batch);
        if self.rows >= SLICE_ROWS {
            self.end_slice();
        }
    }

    /// COPY BINARY in chunks.
    pub fn copy(&mut self, batch: &RecordBatch) -> usize {
        let NullSinks { copy, buffer, .. } = self;
        copy.chunks(batch, buffer).expect("conformed rows").map(|chunk| chunk.expect("conformed rows").len()).sum()
    }

    pub fn json(&mut self, batch: &RecordBatch) -> usize {
        let mut bytes = 0;
        let take = |texts: &Texts| {
            bytes += texts.rows().map(<[u8]>::len).sum::<usize>();
            Ok(())
        };
        self.json.pieces(batch, take).expect("conformed rows");
        bytes
    }

    fn end_slice(&mut self) {
        self.rows = 0;
        let slice = std::mem::take(&mut self.slice);
        if !slice.is_empty() {
            self.bytes += chunk::pack_all(&slice).expect("conformed rows").len();
        }
    }
}

fn schema(files: &SqlFiles) -> CampaignSchema {
    CampaignSchema::parse(&files.campaigns.path, &files.campaigns.text).expect("the shipped SQL")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().expect("a tokio runtime")
}

/// As `sql/postgres/` creates it.
fn sink_table() -> TableShape {
    let column = |name: &str, wire_type: Type, not_null: bool, has_default: bool| Column {
        name: name.into(),
        sql_type: wire_type.name().into(),
        wire_type,
        modifier: -1,
        not_null,
        has_default,
        generated: false,
        may_insert: true,
        forbidden_sequence: None,
    };
    let mut columns = vec![column("id", Type::INT4, true, true)];
    for name in
        ["restaurant_id", "adv_campaign_id", "adv_campaign_content", "adv_campaign_owner", "adv_campaign_owner_contact"]
    {
        columns.push(column(name, Type::TEXT, true, false));
    }
    for name in ["adv_campaign_datetime_start", "adv_campaign_datetime_end", "datetime_created"] {
        columns.push(column(name, Type::INT8, true, false));
    }
    columns.push(column("client_id", Type::TEXT, true, false));
    columns.push(column("trigger_datetime_created", Type::INT4, true, false));
    columns.push(column("feedback", Type::VARCHAR, false, false));
    TableShape { schema: "public".into(), table: "subscribers_feedback".into(), user: "bench".into(), columns }
}
