//! Fits the SELECT's output to the sink table: checked once before the first message, applied to every batch.
//!
//! Promises: after [`Conform::new`] no batch fails for names or types; after [`Conform::apply`] no value of the batch is
//! out of range, null where the table forbids it, or text that Postgres cannot hold (U+0000). Both sinks get the
//! conformed batch, so both show the same values. Does not check what only Postgres knows: lengths of `varchar(n)`,
//! labels of enums, JSON syntax, constraints.

mod types;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringViewArray, make_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Date32Type, Field, Schema, SchemaRef, TimestampMicrosecondType};
use arrow::util::display::array_value_to_string;
use tokio_postgres::types::Type;

use self::types::{Check, Fit};
use super::arrow;
use super::repeats::each_change;
use crate::config::quote_identifier;
use crate::sink::table::{Column, TableShape};
use crate::{Error, Result, view};

/// The way from the SELECT's output columns to the sink table's, in the SELECT's order.
#[derive(Debug, Clone)]
pub struct Conform {
    columns: Vec<Step>,
    schema: SchemaRef,
    types: Vec<Type>,
}

/// The first row of a batch that the sink table cannot take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedRow {
    /// Row number in the batch given to [`Conform::apply`].
    pub index: usize,
    /// The output column.
    pub column: String,
    /// What is wrong with the value, and what the table wants.
    pub reason: String,
}

#[derive(Debug, Clone)]
struct Step {
    name: String,
    given: DataType,
    fit: Fit,
    sql_type: String,
    not_null: bool,
}

impl Conform {
    /// Checks `output`, the SELECT's columns without hidden ones, against the table. `file` is the SELECT's and `place`
    /// gives line and column of an output column in it, for errors.
    /// [`Error::Sql`] for a column that the table lacks, cannot take or misses; [`Error::Halt`] for a missing right.
    pub fn new(
        output: &Schema,
        table: &TableShape,
        file: &Path,
        place: impl Fn(&str) -> Option<(u64, u64)>,
    ) -> Result<Conform> {
        let checker = Checker { table, file };
        let mut steps = Vec::with_capacity(output.fields().len());
        let mut types = Vec::with_capacity(output.fields().len());
        for (position, field) in output.fields().iter().enumerate() {
            if output.fields()[..position].iter().any(|earlier| earlier.name() == field.name()) {
                return Err(checker.error(
                    format!("two output columns are named \"{}\"", field.name()),
                    "give one of them another name with AS".into(),
                ));
            }
            let here = |error: Error| error.at(place(field.name()));
            let column = checker.column(field).map_err(here)?;
            let fit = checker.fit(field, column).map_err(here)?;
            types.push(column.wire_type.clone());
            steps.push(Step {
                name: field.name().clone(),
                given: field.data_type().clone(),
                fit,
                sql_type: column.sql_type.clone(),
                not_null: column.not_null,
            });
        }
        checker.complete(output)?;
        let fields = steps.iter().map(|step| Field::new(&step.name, step.fit.data_type.clone(), !step.not_null));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        Ok(Conform { columns: steps, schema, types })
    }

    /// The conformed columns: the SELECT's names and order, one Arrow type per Postgres type.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The table's type of each column, as COPY writes it.
    pub fn types(&self) -> &[Type] {
        &self.types
    }

    /// Casts and checks a batch of the output columns given to [`Conform::new`]. The inner error names the first row
    /// that does not fit; the outer one means a batch of another shape and is a defect of the caller.
    pub fn apply(&self, batch: &RecordBatch) -> Result<Result<RecordBatch, RefusedRow>> {
        if batch.num_columns() != self.columns.len() {
            return Err(unexpected(format!("{} columns instead of {}", batch.num_columns(), self.columns.len())));
        }
        let mut arrays = Vec::with_capacity(self.columns.len());
        let mut refused: Option<RefusedRow> = None;
        for (step, given) in self.columns.iter().zip(batch.columns()) {
            if *given.data_type() != step.given {
                return Err(unexpected(format!(
                    "column \"{}\" of {} instead of {}",
                    step.name,
                    given.data_type(),
                    step.given
                )));
            }
            let array = step.cast(given)?;
            if let Some((index, reason)) = step.refuse(given, &array)
                && refused.as_ref().is_none_or(|earlier| index < earlier.index)
            {
                refused = Some(RefusedRow { index, column: step.name.clone(), reason });
            }
            arrays.push(array);
        }
        if let Some(row) = refused {
            return Ok(Err(row));
        }
        RecordBatch::try_new(self.schema.clone(), arrays).map(Ok).map_err(arrow("fitting rows to the sink table"))
    }
}

fn unexpected(found: String) -> Error {
    arrow("fitting rows to the sink table")(arrow::error::ArrowError::SchemaError(found))
}

impl Step {
    /// The column in its conformed type; values that do not fit become null, and [`Step::refuse`] finds them.
    fn cast(&self, given: &ArrayRef) -> Result<ArrayRef> {
        let target = &self.fit.data_type;
        if given.data_type() == target {
            return Ok(given.clone());
        }
        let options = CastOptions { safe: true, ..CastOptions::default() };
        let doing = "fitting rows to the sink table";
        if let (DataType::Timestamp(unit, _), DataType::Timestamp(_, zone)) = (given.data_type(), target) {
            // Both are counted in UTC here: only the unit may change, and the zone is a label.
            let bare = DataType::Timestamp(*unit, None);
            let data = given.to_data().into_builder().data_type(bare).build().map_err(arrow(doing))?;
            let micros = DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, None);
            let cast = cast_with_options(&make_array(data), &micros, &options).map_err(arrow(doing))?;
            return Ok(Arc::new(
                cast.as_primitive::<TimestampMicrosecondType>().clone().with_timezone_opt(zone.clone()),
            ));
        }
        cast_with_options(given, target, &options).map_err(arrow(doing))
    }

    /// The first row that the table cannot take, and why.
    fn refuse(&self, given: &ArrayRef, array: &ArrayRef) -> Option<(usize, String)> {
        [self.lost(given, array), self.null(given, array), self.check(array)]
            .into_iter()
            .flatten()
            .min_by_key(|(row, _)| *row)
    }

    /// The first value that the cast could not carry over.
    fn lost(&self, given: &ArrayRef, array: &ArrayRef) -> Option<(usize, String)> {
        if Arc::ptr_eq(given, array) || array.null_count() == 0 {
            return None;
        }
        let before = given.logical_nulls();
        let valid_before = |row| before.as_ref().is_none_or(|nulls| nulls.is_valid(row));
        let row = (0..array.len()).find(|&row| array.is_null(row) && valid_before(row))?;
        let value = array_value_to_string(given, row).unwrap_or_else(|_| "the value".into());
        Some((row, format!("{} does not fit the table's type {}", shorten(&value), self.sql_type)))
    }

    fn null(&self, given: &ArrayRef, array: &ArrayRef) -> Option<(usize, String)> {
        if !self.not_null || array.null_count() == 0 {
            return None;
        }
        let nulls = given.logical_nulls()?;
        let row = (0..array.len()).find(|&row| nulls.is_null(row))?;
        Some((row, "null, and the table's column is NOT NULL".into()))
    }

    fn check(&self, array: &ArrayRef) -> Option<(usize, String)> {
        match self.fit.check {
            Check::Nothing => None,
            Check::Text => first_zero(array.as_string_view())
                .map(|row| (row, "text with the character U+0000, which Postgres cannot store".into())),
            Check::Uuid => first_text(array.as_string_view(), |_, text| uuid::Uuid::try_parse(text).is_err())
                .map(|row| (row, format!("{} is not a uuid", shorten(array.as_string_view().value(row))))),
            Check::Date => {
                let dates = array.as_primitive::<Date32Type>();
                let row =
                    (0..dates.len()).find(|&row| dates.is_valid(row) && !types::DAYS.contains(&dates.value(row)))?;
                Some((row, OUTSIDE_YEARS.into()))
            }
            Check::Timestamp => {
                let times = array.as_primitive::<TimestampMicrosecondType>();
                let row =
                    (0..times.len()).find(|&row| times.is_valid(row) && !types::MICROS.contains(&times.value(row)))?;
                Some((row, OUTSIDE_YEARS.into()))
            }
        }
    }
}

const OUTSIDE_YEARS: &str = "a time outside the years 0001 to 9999, which RFC 3339 cannot write";

/// The first row whose text, given with its view, is `bad`. What repeats from row to row is looked at once.
fn first_text(array: &StringViewArray, bad: impl Fn(u128, &str) -> bool) -> Option<usize> {
    let mut first = None;
    let mut look = |row: usize| {
        if first.is_none() && array.is_valid(row) && bad(array.views()[row], array.value(row)) {
            first = Some(row);
        }
    };
    if !array.is_empty() {
        look(0);
    }
    each_change(array, look);
    first
}

/// The first row whose text has the character U+0000.
fn first_zero(array: &StringViewArray) -> Option<usize> {
    let buffers = array.data_buffers();
    let bytes: usize = buffers.iter().map(|buffer| buffer.len()).sum();
    // Looked at whole where they can hardly be more than the texts of these rows: many short searches cost more than one.
    let none_behind_views =
        bytes <= WHOLE * array.len() && buffers.iter().all(|buffer| memchr::memchr(0, buffer).is_none());
    let bad = |text: &str| memchr::memchr(0, text.as_bytes()).is_some();
    first_text(array, |view, text| (view::len(view) <= view::INLINE || !none_behind_views) && bad(text))
}

/// Bytes in an array's buffers per row up to which they are looked at whole: two ids or so.
const WHOLE: usize = 64;

/// At most 80 characters of a value, for a message.
fn shorten(value: &str) -> String {
    match value.char_indices().nth(80) {
        Some((end, _)) => format!("{}...", &value[..end]),
        None => value.into(),
    }
}

/// The checks before the first message, with what their errors need.
struct Checker<'a> {
    table: &'a TableShape,
    file: &'a Path,
}

impl<'a> Checker<'a> {
    fn error(&self, problem: String, remedy: String) -> Error {
        Error::Sql { file: PathBuf::from(self.file), line: None, column: None, problem, remedy }
    }

    /// The table's column of that name, if COPY may write it.
    fn column(&self, field: &Field) -> Result<&'a Column> {
        let (name, table) = (field.name(), self.table.quoted());
        let Some(column) = self.table.column(name) else {
            return Err(self.error(format!("the sink table {table} has no column \"{name}\""), self.similar(name)));
        };
        if column.generated {
            return Err(self.error(
                format!("column \"{name}\" of {table} is generated by Postgres and takes no value"),
                "leave it out of the SELECT, or give the output column another name".into(),
            ));
        }
        if !column.may_insert {
            let user = quote_identifier(&self.table.user);
            return Err(Error::Halt {
                what: format!("{user} may not insert into column \"{name}\" of {table}"),
                remedy: format!("GRANT INSERT ON {table} TO {user};"),
            });
        }
        Ok(column)
    }

    /// "Did you mean" where a name is near, else all the names.
    fn similar(&self, name: &str) -> String {
        let names = || self.table.columns.iter().filter(|column| !column.generated).map(|column| column.name.as_str());
        let near = names().map(|near| (strsim::damerau_levenshtein(name, near), near)).min();
        let longer = names().find(|near| !name.is_empty() && near.starts_with(name)).map(|near| (0, near));
        match longer.or(near) {
            Some((distance, near)) if distance <= name.len().div_ceil(3) => {
                format!("did you mean \"{near}\"? Name the output column with AS \"{near}\"")
            }
            _ => format!("its columns are {}", names().collect::<Vec<_>>().join(", ")),
        }
    }

    fn fit(&self, field: &Field, column: &Column) -> Result<Fit> {
        if *field.data_type() == DataType::Null && column.not_null {
            return Err(self.error(
                format!("column \"{}\" is always null, and {} has it NOT NULL", field.name(), self.table.quoted()),
                format!("give \"{}\" a value in the SELECT", field.name()),
            ));
        }
        types::fit(field.data_type(), column).map_err(|remedy| {
            let problem = format!(
                "column \"{}\": the SELECT gives {}, the table {} wants {}",
                field.name(),
                types::engine_name(field.data_type()),
                self.table.quoted(),
                column.sql_type
            );
            self.error(problem, remedy)
        })
    }

    /// Columns that the SELECT leaves out must be able to fill themselves.
    fn complete(&self, output: &Schema) -> Result<()> {
        let table = self.table.quoted();
        let left_out = self.table.columns.iter().filter(|column| output.column_with_name(&column.name).is_none());
        for column in left_out {
            if column.not_null && !column.has_default {
                return Err(self.error(
                    format!(
                        "column \"{}\" of {table} is NOT NULL without a default, and the SELECT does not give it",
                        column.name
                    ),
                    format!(
                        "add an output column \"{}\" ({}), or give the table's column a default",
                        column.name, column.sql_type
                    ),
                ));
            }
            if let Some(sequence) = &column.forbidden_sequence {
                let user = quote_identifier(&self.table.user);
                return Err(Error::Halt {
                    what: format!(
                        "{user} may not use the sequence {sequence}, which fills column \"{}\" of {table}",
                        column.name
                    ),
                    remedy: format!("GRANT USAGE ON SEQUENCE {sequence} TO {user};"),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
