//! Lookup tables from files, so that SQL can be tried with no Postgres: JSON objects, one a line, or CSV with a heading.
//!
//! Columns come in the order of their first appearance; a column is of integers, floats or booleans where all its values
//! are, and text otherwise. In CSV an empty field without quotes is null, and `007` stays text. Not a fast way: the
//! whole file is held as values before it becomes a table.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, RecordBatchOptions, StringViewArray,
};
use arrow::datatypes::{DataType, Field, Schema};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::lookup::LookupTable;

/// Reads the table `name` from `file`: CSV where the name ends in `.csv`, else JSON lines.
///
/// # Errors
/// [`Error::Setting`] for a file that cannot be read, with its line.
pub fn read(name: &str, file: &Path) -> Result<LookupTable> {
    let refuse = |problem: String| Error::Setting {
        key: "--lookup-file".into(),
        problem: format!("{}: {problem}", file.display()),
        remedy: "give JSON objects of texts, numbers and booleans, one a line, or a .csv file with a heading".into(),
    };
    let text = std::fs::read_to_string(file).map_err(|error| refuse(error.to_string()))?;
    let is_csv = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    let grid = if is_csv { csv(&text) } else { json_lines(&text) }.map_err(refuse)?;
    let batch = grid.batch().map_err(|error| refuse(error.to_string()))?;
    LookupTable::new(name, batch.schema(), vec![batch], None)
        .map_err(Error::engine(format!("making a lookup table of {}", file.display())))
}

/// Rows of values, not all of them as long as the heading: what is missing is null.
#[derive(Debug, Default)]
struct Grid {
    names: Vec<String>,
    rows: Vec<Vec<Value>>,
}

impl Grid {
    fn column(&self, index: usize) -> impl Iterator<Item = &Value> {
        self.rows.iter().map(move |row| row.get(index).unwrap_or(&Value::Null))
    }

    fn array(&self, index: usize) -> ArrayRef {
        let all = |fits: fn(&Value) -> bool| self.column(index).all(|value| value.is_null() || fits(value));
        let any = self.column(index).any(|value| !value.is_null());
        if any && all(Value::is_i64) {
            Arc::new(Int64Array::from_iter(self.column(index).map(Value::as_i64)))
        } else if any && all(Value::is_number) {
            Arc::new(Float64Array::from_iter(self.column(index).map(Value::as_f64)))
        } else if any && all(Value::is_boolean) {
            Arc::new(BooleanArray::from_iter(self.column(index).map(Value::as_bool)))
        } else {
            Arc::new(StringViewArray::from_iter(self.column(index).map(|value| match value {
                Value::Null => None,
                Value::String(text) => Some(text.clone()),
                other => Some(other.to_string()),
            })))
        }
    }

    fn batch(&self) -> Result<RecordBatch, arrow::error::ArrowError> {
        let arrays: Vec<ArrayRef> = (0..self.names.len()).map(|index| self.array(index)).collect();
        let field = |(name, array): (&String, &ArrayRef)| Field::new(name, DataType::clone(array.data_type()), true);
        let fields: Vec<Field> = self.names.iter().zip(&arrays).map(field).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows.len()));
        RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options)
    }
}

fn json_lines(text: &str) -> Result<Grid, String> {
    let mut grid = Grid::default();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let object: Map<String, Value> =
            serde_json::from_str(line).map_err(|error| format!("line {number} is no JSON object: {error}"))?;
        let mut row = vec![Value::Null; grid.names.len()];
        for (name, value) in object {
            if value.is_array() || value.is_object() {
                return Err(format!("line {number}: {name} is a list or an object"));
            }
            match grid.names.iter().position(|known| *known == name) {
                Some(index) => row[index] = value,
                None => {
                    grid.names.push(name);
                    row.push(value);
                }
            }
        }
        grid.rows.push(row);
    }
    if grid.names.is_empty() { Err("there is no row, and so no column".into()) } else { Ok(grid) }
}

fn csv(text: &str) -> Result<Grid, String> {
    let mut records = records(text)?.into_iter();
    let (_, heading) = records.next().ok_or("there is no heading")?;
    let names: Vec<String> = heading.into_iter().map(|field| field.text.trim().to_owned()).collect();
    if let Some(twice) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
        return Err(format!("two columns are named {:?}", twice.1));
    }
    let mut rows = Vec::new();
    for (line, record) in records {
        if record.len() != names.len() {
            return Err(format!("line {line} has {} fields, the heading {}", record.len(), names.len()));
        }
        rows.push(record.into_iter().map(Cell::value).collect());
    }
    Ok(Grid { names, rows })
}

#[derive(Debug, Default)]
struct Cell {
    text: String,
    quoted: bool,
}

impl Cell {
    fn value(self) -> Value {
        if self.quoted {
            return Value::String(self.text);
        }
        match self.text.parse::<i64>() {
            _ if self.text.is_empty() => Value::Null,
            Ok(number) if number.to_string() == self.text => number.into(),
            _ => Value::String(self.text),
        }
    }
}

/// Records by RFC 4180, each with the line that it begins on; blank lines are none.
fn records(text: &str) -> Result<Vec<(usize, Vec<Cell>)>, String> {
    let mut records = Vec::new();
    let (mut record, mut cell) = (Vec::new(), Cell::default());
    let (mut line, mut began, mut in_quotes) = (1, 1, false);
    let mut characters = text.strip_prefix('\u{feff}').unwrap_or(text).chars().peekable();
    while let Some(character) = characters.next() {
        line += usize::from(character == '\n');
        match character {
            '"' if in_quotes && characters.peek() == Some(&'"') => {
                characters.next();
                cell.text.push('"');
            }
            '"' if in_quotes => in_quotes = false,
            _ if in_quotes => cell.text.push(character),
            '"' if cell.text.is_empty() && !cell.quoted => (in_quotes, cell.quoted) = (true, true),
            ',' => record.push(std::mem::take(&mut cell)),
            '\r' if characters.peek() == Some(&'\n') => {}
            '\n' => {
                end_record(&mut records, began, &mut record, &mut cell);
                began = line;
            }
            _ => cell.text.push(character),
        }
    }
    if in_quotes {
        return Err(format!("the quotes of a field in the record of line {began} never close"));
    }
    end_record(&mut records, began, &mut record, &mut cell);
    Ok(records)
}

fn end_record(records: &mut Vec<(usize, Vec<Cell>)>, began: usize, record: &mut Vec<Cell>, cell: &mut Cell) {
    if record.is_empty() && cell.text.is_empty() && !cell.quoted {
        return;
    }
    record.push(std::mem::take(cell));
    records.push((began, std::mem::take(record)));
}

#[cfg(test)]
mod tests {
    use arrow::util::pretty::pretty_format_batches;

    use super::*;

    fn show(grid: Grid) -> String {
        pretty_format_batches(&[grid.batch().unwrap()]).unwrap().to_string()
    }

    #[test]
    fn json_lines_become_columns_of_one_type() {
        let grid =
            json_lines("{\"id\": \"a\", \"n\": 1}\n\n{\"n\": 2, \"id\": 7, \"ok\": true, \"x\": 1.5}\n").unwrap();
        insta::assert_snapshot!(show(grid), @r"
        +----+---+------+-----+
        | id | n | ok   | x   |
        +----+---+------+-----+
        | a  | 1 |      |     |
        | 7  | 2 | true | 1.5 |
        +----+---+------+-----+
        ");
        assert_eq!(json_lines("").unwrap_err(), "there is no row, and so no column");
        assert_eq!(json_lines("{\"a\": [1]}").unwrap_err(), "line 1: a is a list or an object");
        assert!(json_lines("{\"a\": 1}\nx").unwrap_err().starts_with("line 2 is no JSON object"));
    }

    #[test]
    fn csv_is_read_with_its_quotes() {
        let grid = csv("id,text,n\r\n007,\"say \"\"a,b\"\"\",1\r\n\r\n8,\"two\nlines\",\n").unwrap();
        insta::assert_snapshot!(show(grid), @r#"
        +-----+-----------+---+
        | id  | text      | n |
        +-----+-----------+---+
        | 007 | say "a,b" | 1 |
        | 8   | two       |   |
        |     | lines     |   |
        +-----+-----------+---+
        "#);
        assert_eq!(csv("a,b\n1\n").unwrap_err(), "line 2 has 1 fields, the heading 2");
        assert_eq!(csv("a,a\n").unwrap_err(), "two columns are named \"a\"");
        assert!(csv("a\n\"x").unwrap_err().contains("never close"));
        assert_eq!(csv("a\n\"\"\n").unwrap().rows, [[Value::String(String::new())]]);
    }
}
