//! Conformed batches as `COPY ... FROM STDIN (FORMAT binary)`, in chunks that suit the socket.
//!
//! Promises: header, rows and trailer as Postgres reads them, whole rows only, chunks of [`CHUNK`] bytes and little more
//! unless one row is larger. Does not send anything; pgpq writes the rows, see [`rows`].
//!
//! Usage, once per COPY statement: [`header`], then [`CopyEncoder::chunks`] for each batch, then [`trailer`].

mod rows;
mod step;

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, FixedSizeBinaryBuilder, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use bytes::{Bytes, BytesMut};
use datafusion::error::DataFusionError;
use pgpq::ArrowToPostgresBinaryEncoder;
use pgpq::encoders::{EncoderBuilder, StringViewEncoderBuilder};
use pgpq::pg_schema::PostgresType;
use tokio_postgres::types::Type;

use self::rows::Rows;
use self::step::STEP;
use super::arrow;
use super::repeats::Fresh;
use crate::config::quote_identifier;
use crate::sink::table::TableShape;
use crate::{Error, Result};

/// Bytes after which a chunk is handed out. Below 256 KiB the cost per message shows, above 1 MiB nothing is gained
/// and memory is; some rows (about [`STEP`] bytes, or a single row) may come on top.
pub const CHUNK: usize = 256 * 1024;

/// `PGCOPY\n\xff\r\n\0`, no flags, no header extension.
const HEADER: &[u8; 19] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const TRAILER: [u8; 2] = (-1i16).to_be_bytes();

/// Encodes batches of one schema; lives as long as the schema does, over any number of COPY statements.
#[derive(Debug)]
pub struct CopyEncoder {
    schema: SchemaRef,
    types: Vec<Type>,
    rows: Rows,
}

/// `COPY "s"."t" ("a","b") FROM STDIN (FORMAT binary)`.
pub fn statement(table: &TableShape, schema: &Schema) -> String {
    let columns: Vec<_> = schema.fields().iter().map(|field| quote_identifier(field.name())).collect();
    format!("COPY {} ({}) FROM STDIN (FORMAT binary)", table.quoted(), columns.join(","))
}

/// Begins a COPY.
pub fn header(out: &mut BytesMut) {
    out.extend_from_slice(HEADER);
}

/// Ends a COPY.
pub fn trailer(out: &mut BytesMut) {
    out.extend_from_slice(&TRAILER);
}

impl CopyEncoder {
    /// For batches of `schema` into columns of `types`, both as [`super::conform::Conform`] gives them.
    pub fn new(schema: &SchemaRef, types: &[Type]) -> Result<CopyEncoder> {
        let mut fields = Vec::with_capacity(types.len());
        let mut builders = HashMap::with_capacity(types.len());
        let mut plain = Vec::with_capacity(types.len());
        for (field, wire) in schema.fields().iter().zip(types) {
            let (field, builder) = builder(field, wire).map_err(failed("preparing COPY"))?;
            builders.insert(field.name().clone(), builder);
            plain.push(field.data_type() == &DataType::Utf8View && *wire != Type::JSONB);
            fields.push(field);
        }
        let wire_schema = Schema::new(fields);
        let mut pgpq = ArrowToPostgresBinaryEncoder::try_new_with_encoders(&wire_schema, &builders)
            .map_err(failed("preparing COPY"))?;
        // pgpq writes one header per encoder; this encoder outlives many COPYs and writes its own.
        pgpq.write_header(&mut BytesMut::new()).map_err(failed("preparing COPY"))?;
        Ok(CopyEncoder { schema: schema.clone(), types: types.to_vec(), rows: Rows::new(pgpq, &plain) })
    }

    /// Appends all rows of `batch` to `out`.
    pub fn encode(&mut self, batch: &RecordBatch, out: &mut BytesMut) -> Result<()> {
        let batch = self.wire_batch(batch)?;
        let fresh = Fresh::find(batch.columns(), batch.num_rows());
        self.rows.write(&batch, &fresh, 0, usize::MAX, out).map_err(failed("encoding rows for COPY"))?;
        Ok(())
    }

    /// Appends the rows of `batch` to `out` and hands out what is there whenever it reaches [`CHUNK`] bytes. The rest
    /// stays in `out`, for the next batch or the trailer.
    pub fn chunks<'a>(&'a mut self, batch: &RecordBatch, out: &'a mut BytesMut) -> Result<Chunks<'a>> {
        let batch = self.wire_batch(batch)?;
        let fresh = Fresh::find(batch.columns(), batch.num_rows());
        Ok(Chunks { rows: &mut self.rows, batch, fresh, next: 0, out })
    }

    /// The batch as pgpq takes it: uuids as their 16 bytes.
    fn wire_batch(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        if batch.schema_ref().fields() != self.schema.fields() {
            let found = format!("a batch of another schema: {}", batch.schema_ref());
            return Err(arrow("encoding rows for COPY")(arrow::error::ArrowError::SchemaError(found)));
        }
        if !self.types.contains(&Type::UUID) {
            return Ok(batch.clone());
        }
        let mut fields = batch.schema_ref().fields().to_vec();
        let mut columns = batch.columns().to_vec();
        for (position, _) in self.types.iter().enumerate().filter(|(_, wire)| **wire == Type::UUID) {
            fields[position] = uuid_field(&fields[position]);
            columns[position] = uuid_bytes(&columns[position])?;
        }
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(arrow("encoding uuids for COPY"))
    }
}

/// Chunks of one batch; see [`CopyEncoder::chunks`]. After an error the COPY cannot go on.
pub struct Chunks<'a> {
    rows: &'a mut Rows,
    batch: RecordBatch,
    fresh: Fresh,
    next: usize,
    out: &'a mut BytesMut,
}

impl Iterator for Chunks<'_> {
    type Item = Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        // Room for the whole chunk at once: growing would copy it.
        self.out.reserve((CHUNK + STEP).saturating_sub(self.out.len()));
        match self.rows.write(&self.batch, &self.fresh, self.next, CHUNK, self.out) {
            Ok(next) => self.next = next,
            Err(error) => {
                self.next = self.batch.num_rows();
                return Some(Err(failed("encoding rows for COPY")(error)));
            }
        }
        if self.out.len() < CHUNK {
            return None;
        }
        Some(Ok(self.out.split().freeze()))
    }
}

/// The field as pgpq sees it, and its encoder.
fn builder(
    field: &Arc<Field>,
    wire: &Type,
) -> std::result::Result<(Arc<Field>, EncoderBuilder), pgpq::error::ErrorKind> {
    let text_as = |output| {
        StringViewEncoderBuilder::new_with_output(field.clone(), output)
            .map(|it| (field.clone(), EncoderBuilder::StringView(it)))
    };
    match (field.data_type(), wire) {
        (DataType::Utf8View, &Type::JSONB) => text_as(PostgresType::Jsonb),
        (DataType::Utf8View, &Type::JSON) => text_as(PostgresType::Json),
        (DataType::Utf8View, &Type::UUID) => {
            let field = uuid_field(field);
            EncoderBuilder::try_new(field.clone()).map(|it| (field, it))
        }
        _ => EncoderBuilder::try_new(field.clone()).map(|it| (field.clone(), it)),
    }
}

fn uuid_field(field: &Field) -> Arc<Field> {
    Arc::new(Field::new(field.name(), DataType::FixedSizeBinary(16), field.is_nullable()))
}

/// The 16 bytes of each uuid, which is what Postgres reads; pgpq writes any bytes as they are.
fn uuid_bytes(column: &ArrayRef) -> Result<ArrayRef> {
    let texts = column.as_string_view();
    let mut bytes = FixedSizeBinaryBuilder::with_capacity(texts.len(), 16);
    for text in texts {
        match text {
            None => bytes.append_null(),
            Some(text) => {
                let parsed = uuid::Uuid::try_parse(text).map_err(|error| {
                    arrow("encoding uuids for COPY")(arrow::error::ArrowError::ParseError(error.to_string()))
                })?;
                bytes.append_value(parsed.as_bytes()).map_err(arrow("encoding uuids for COPY"))?;
            }
        }
    }
    Ok(Arc::new(bytes.finish()))
}

fn failed(doing: &'static str) -> impl FnOnce(pgpq::error::ErrorKind) -> Error {
    move |source| Error::Engine { doing: doing.into(), source: DataFusionError::External(Box::new(source)) }
}

#[cfg(test)]
mod tests;
