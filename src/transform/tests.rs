//! `cases` walks `tests/sql_cases`: query, input, lookups, clock; golden rows, outcomes or error. `runs` is about what
//! files cannot show: plans that are used again, streaming, memory and rows; `data_errors` about values on which SQL fails;
//! `refused` about SQL that would write, read files or reach the network.

mod cases;
mod data_errors;
mod refused;
mod runs;

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::json::ReaderBuilder;
use arrow::json::reader::infer_json_schema;
use datafusion::sql::sqlparser::ast::{ColumnOption, DataType as SqlType, Statement};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;
use futures::TryStreamExt;

use crate::Error;

use super::{ROW, SqlFile, SqlFiles, Transform, Triggers};
use crate::lookup::{LookupSet, LookupTable};

const MEMORY: usize = 64 << 20;

fn files(campaigns: &str, triggers: &str) -> SqlFiles {
    let file = |name: &str, text: &str| SqlFile { path: Path::new(name).to_owned(), text: text.to_owned() };
    SqlFiles {
        campaigns: file("campaigns.sql", campaigns),
        triggers: file("triggers.sql", triggers),
        lookups: Vec::new(),
    }
}

/// The declared columns, as far as cases use types.
fn declared(campaigns: &str) -> SchemaRef {
    let statements = Parser::parse_sql(&GenericDialect {}, campaigns).expect("campaigns.sql");
    let [Statement::CreateTable(table)] = statements.as_slice() else { panic!("one CREATE TABLE") };
    let fields = table.columns.iter().map(|column| {
        let data_type = match &column.data_type {
            SqlType::Varchar(_) => DataType::Utf8View,
            SqlType::BigInt(_) => DataType::Int64,
            SqlType::Int(_) => DataType::Int32,
            SqlType::Boolean => DataType::Boolean,
            SqlType::Double(_) => DataType::Float64,
            other => panic!("no case has used {other} yet"),
        };
        let required = column.options.iter().any(|option| option.option == ColumnOption::NotNull);
        Field::new(&column.name.value, data_type, !required)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

fn read_json(schema: &SchemaRef, lines: &str) -> RecordBatch {
    let batches = ReaderBuilder::new(Arc::clone(schema)).with_batch_size(1 << 20).build(lines.as_bytes());
    let batches: Vec<_> = batches.expect("a reader").collect::<Result<_, _>>().expect("rows");
    arrow::compute::concat_batches(schema, &batches).expect("one batch")
}

fn campaigns(schema: &SchemaRef, lines: &str) -> RecordBatch {
    let batch = read_json(schema, lines);
    let mut fields = schema.fields().to_vec();
    fields.push(Arc::new(Field::new(ROW, DataType::UInt32, false)));
    let mut columns: Vec<ArrayRef> = batch.columns().to_vec();
    // Numbers with gaps, as rejected messages leave them.
    columns.push(Arc::new(UInt32Array::from_iter_values((0..batch.num_rows() as u32).map(|row| row * 2 + 1))));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("a batch")
}

fn lookup(name: &str, lines: &str) -> LookupTable {
    let (inferred, _) = infer_json_schema(lines.as_bytes(), None).expect("a schema");
    let fields = inferred.fields().iter().map(|field| match field.data_type() {
        DataType::Utf8 => Field::new(field.name(), DataType::Utf8View, true),
        other => Field::new(field.name(), other.clone(), true),
    });
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let batch = read_json(&schema, lines);
    LookupTable::new(name, schema, vec![batch], None).expect("a table")
}

async fn collect(rows: Triggers) -> crate::Result<Vec<RecordBatch>> {
    rows.try_collect().await
}

/// Which message numbers have rows, for batches of at most `messages` messages.
fn triggered(transform: &Transform, output: &[RecordBatch], messages: usize) -> Vec<bool> {
    let mut marks = vec![false; messages * 2 + 1];
    output.iter().for_each(|batch| transform.mark_triggered(batch, &mut marks));
    marks
}

fn json_lines(transform: &Transform, output: &[RecordBatch]) -> Vec<String> {
    let width = transform.output_schema().fields().len();
    let mut writer = arrow::json::LineDelimitedWriter::new(Vec::new());
    for batch in output {
        assert_eq!(batch.num_columns(), width + usize::from(transform.carries_rows()));
        let row = batch.columns().last().expect("columns");
        assert!(!transform.carries_rows() || row.null_count() == 0 && row.data_type() == &DataType::UInt32);
        writer.write(&batch.project(&(0..width).collect::<Vec<_>>()).expect("columns")).expect("json");
    }
    writer.finish().expect("json");
    let text = String::from_utf8(writer.into_inner()).expect("utf-8");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn set(tables: impl IntoIterator<Item = LookupTable>) -> LookupSet {
    LookupSet::new(tables)
}
