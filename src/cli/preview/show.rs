//! Tables for people. Numbers stay numbers, times among them; long text is cut; what is wider than the terminal is shown
//! one field a line instead.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, StringViewArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow::util::pretty::pretty_format_batches;
use bytesize::ByteSize;

use super::input::{Chunk, Place};
use crate::cli::report::{grouped, plural};
use crate::dead_letter::Reject;
use crate::error::{Error, Result};
use crate::lookup::{BATCH_ROWS, LookupTable};
use crate::transform::Outcomes;

/// A uuid is 36 characters long and stays whole.
const LONGEST_TEXT: usize = 40;
const LONGEST_REASON: usize = 100;

/// The first rows of a table, and how many there were.
#[derive(Debug)]
pub struct Head {
    rows: Vec<RecordBatch>,
    left: usize,
    pub total: u64,
}

impl Head {
    pub fn new(limit: usize) -> Head {
        Head { rows: Vec::new(), left: limit, total: 0 }
    }

    pub fn add(&mut self, batch: &RecordBatch) {
        self.total += batch.num_rows() as u64;
        let taken = batch.num_rows().min(self.left);
        self.left -= taken;
        if taken > 0 {
            self.rows.push(batch.slice(0, taken));
        }
    }

    /// ` (first 20 shown)` where not all are, and the rows below.
    fn text(&self, heading: &str) -> Result<String> {
        let shown: u64 = self.rows.iter().map(|batch| batch.num_rows() as u64).sum();
        let part = match shown {
            _ if shown == self.total => String::new(),
            0 => " (none shown)".into(),
            1 => " (the first one shown)".into(),
            _ => format!(" (the first {} shown)", grouped(shown)),
        };
        let table = table(&self.rows, LONGEST_TEXT)?;
        Ok(format!("{heading}{part}\n{table}"))
    }
}

/// What was seen of the messages, summed up over chunks.
#[derive(Debug)]
pub struct Shown {
    from_kafka: bool,
    came_in: u64,
    campaigns: Head,
    rejected: u64,
    rejects: Vec<(Place, Reject)>,
    limit: usize,
    outcomes: Vec<(String, u64)>,
}

impl Shown {
    pub fn new(from_kafka: bool, limit: usize) -> Shown {
        let campaigns = Head::new(limit);
        Shown { from_kafka, came_in: 0, campaigns, rejected: 0, rejects: Vec::new(), limit, outcomes: Vec::new() }
    }

    /// The messages that could be decoded, with their places before them.
    pub fn campaigns(&mut self, chunk: &Chunk, batch: &RecordBatch) -> Result<()> {
        self.came_in += chunk.messages.len() as u64;
        let rows = crate::decode::row_numbers(batch);
        let places: Vec<Place> = rows.iter().map(|row| chunk.places[*row as usize]).collect();
        let (mut fields, mut arrays) = self.places(&places);
        let count = batch.num_columns() - 1;
        fields.extend(batch.schema().fields()[..count].iter().cloned());
        arrays.extend(batch.columns()[..count].iter().cloned());
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(engine)?;
        self.campaigns.add(&batch);
        Ok(())
    }

    fn places(&self, places: &[Place]) -> (Vec<Arc<Field>>, Vec<ArrayRef>) {
        let field = |name: &str, data_type| Arc::new(Field::new(name, data_type, false));
        let seconds: ArrayRef = Arc::new(Int64Array::from_iter_values(places.iter().map(|place| place.1)));
        if !self.from_kafka {
            return (vec![field("line", DataType::Int64)], vec![seconds]);
        }
        let firsts: ArrayRef = Arc::new(Int32Array::from_iter_values(places.iter().map(|place| place.0)));
        (vec![field("partition", DataType::Int32), field("offset", DataType::Int64)], vec![firsts, seconds])
    }

    pub fn rejects(&mut self, chunk: &Chunk, rejects: &[Reject]) {
        self.rejected += rejects.len() as u64;
        let room = self.limit - self.rejects.len();
        let taken = rejects.iter().take(room);
        self.rejects.extend(taken.map(|reject| (chunk.places[reject.row as usize], reject.clone())));
    }

    pub fn outcomes(&mut self, found: Outcomes) {
        for (name, count) in found.counts {
            match self.outcomes.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += count,
                None => self.outcomes.push((name, count)),
            }
        }
    }

    /// Everything, `triggers` among it.
    pub fn text(&self, triggers: &Head) -> Result<String> {
        let mut text = match self.came_in {
            0 => "No campaign came in.\n".to_owned(),
            count => format!("{} came in", plural(count, "message")),
        };
        if self.came_in == 0 {
            return Ok(text);
        }
        let good = self.campaigns.total;
        text = self.campaigns.text(&format!(
            "{text}, {} can be read",
            if good == self.came_in { "all".into() } else { grouped(good) }
        ))?;
        if self.rejected > 0 {
            text.push_str(&format!(
                "\n{}\n{}",
                plural(self.rejected, "dead letter"),
                table(&[self.reject_rows()?], LONGEST_REASON)?
            ));
        }
        text.push_str(&format!("\n{}\n{}", triggers.text(&plural(triggers.total, "trigger"))?, self.outcome_table()?));
        Ok(text)
    }

    fn reject_rows(&self) -> Result<RecordBatch> {
        let places: Vec<Place> = self.rejects.iter().map(|(place, _)| *place).collect();
        let (mut fields, mut arrays) = self.places(&places);
        let mut text = |name: &str, of: fn(&Reject) -> String| {
            fields.push(Arc::new(Field::new(name, DataType::Utf8View, false)));
            arrays.push(Arc::new(StringViewArray::from_iter_values(self.rejects.iter().map(|(_, reject)| of(reject)))));
        };
        text("stage", |reject| reject.stage.to_string());
        text("field", |reject| reject.path.clone());
        text("reason", |reject| reject.reason.clone());
        RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(engine)
    }

    /// All outcomes, so that they add up to what came in.
    fn counts(&self) -> Vec<(&str, u64)> {
        let mut counts: Vec<(&str, u64)> = self.outcomes.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        counts.push(("dead_letter", self.rejected));
        counts
    }

    fn outcome_table(&self) -> Result<String> {
        let counts = self.counts();
        let schema = Schema::new(vec![
            Field::new("outcome", DataType::Utf8View, false),
            Field::new("messages", DataType::Int64, false),
        ]);
        let names = StringViewArray::from_iter_values(counts.iter().map(|(name, _)| *name));
        let sums = Int64Array::from_iter_values(counts.iter().map(|(_, count)| *count as i64));
        let batch = RecordBatch::try_new(Arc::new(schema), vec![Arc::new(names), Arc::new(sums)]).map_err(engine)?;
        table(&[batch], LONGEST_REASON)
    }

    /// Rejects and outcomes in a few lines, for beside the JSON.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        for ((partition, at), reject) in &self.rejects {
            let place = if self.from_kafka { format!("{partition}@{at}") } else { format!("line {at}") };
            text.push_str(&format!("dead letter: {place}: {}: {}\n", reject.path, reject.reason));
        }
        let counts = self.counts();
        let counts: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {}", grouped(*count))).collect();
        text + &format!("{}: {}", plural(self.came_in, "message"), counts.join(", "))
    }
}

/// A lookup table's head and size.
pub fn lookup(table: &Arc<LookupTable>, limit: usize) -> Result<String> {
    let mut head = Head::new(limit);
    for batch in table.scan().take(limit.div_ceil(BATCH_ROWS)) {
        head.add(&batch.map_err(Error::engine("reading a lookup table"))?);
    }
    head.total = table.rows;
    let (rows, bytes) = (plural(table.rows, "row"), ByteSize(table.bytes));
    head.text(&format!("Lookup table {}: {rows}, {bytes} in memory", table.name))
}

/// As a table where that fits the terminal, or where there is none; else a field a line.
fn table(rows: &[RecordBatch], longest_text: usize) -> Result<String> {
    if rows.is_empty() {
        return Ok(String::new());
    }
    let rows: Vec<RecordBatch> = rows.iter().map(|batch| shortened(batch, longest_text)).collect::<Result<_>>()?;
    let text = pretty_format_batches(&rows).map_err(engine)?.to_string();
    let width = text.lines().next().map_or(0, |line| line.chars().count());
    match terminal_width() {
        Some(columns) if width > columns => fields(&rows),
        _ => Ok(text + "\n"),
    }
}

fn fields(rows: &[RecordBatch]) -> Result<String> {
    let mut text = String::new();
    let mut number = 0u64;
    for batch in rows {
        let names: Vec<String> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
        let widest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let options = FormatOptions::default().with_display_error(true);
        let formatters: Vec<ArrayFormatter> = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column, &options).map_err(engine))
            .collect::<Result<_>>()?;
        for row in 0..batch.num_rows() {
            number += 1;
            text.push_str(&format!("-- {number} {}\n", "-".repeat(widest)));
            for (name, formatter) in names.iter().zip(&formatters) {
                text.push_str(&format!("{name:widest$}  {}\n", formatter.value(row)));
            }
        }
    }
    Ok(text)
}

/// Long texts cut, control characters made visible: one of them could move the cursor.
fn shortened(batch: &RecordBatch, longest_text: usize) -> Result<RecordBatch> {
    let columns = batch.columns().iter().map(|column| match column.as_string_view_opt() {
        Some(texts) => {
            let cut = texts.iter().map(|text| text.map(|text| cut(text, longest_text)));
            Arc::new(StringViewArray::from_iter(cut)) as ArrayRef
        }
        None => column.clone(),
    });
    RecordBatch::try_new(batch.schema(), columns.collect()).map_err(engine)
}

fn cut(text: &str, limit: usize) -> String {
    let visible = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    match text.char_indices().nth(limit) {
        Some((end, _)) => text[..end].chars().take(limit - 1).map(visible).chain(['…']).collect(),
        None => text.chars().map(visible).collect(),
    }
}

/// Columns of the terminal that standard output is; `None` where it is none.
fn terminal_width() -> Option<usize> {
    // SAFETY: the kernel fills in the struct that it is given, and says whether it did.
    unsafe {
        let mut size: libc::winsize = std::mem::zeroed();
        let done = libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &mut size) == 0;
        (done && size.ws_col > 0).then_some(size.ws_col as usize)
    }
}

fn engine(error: arrow::error::ArrowError) -> Error {
    Error::engine("showing a table")(error.into())
}
