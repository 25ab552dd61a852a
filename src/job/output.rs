//! From decoded micro-batches to the pieces that both sinks take: the transform's rows, made to fit the sink table, and
//! the dead letters. Computed once, streamed, never held.

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{Array, AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::UInt32Type;
use chrono::{DateTime, Utc};
use futures::TryStreamExt;

use super::engine::Engine;
use crate::dead_letter::{self, Letter, Reject, Stage};
use crate::decode::ROW;
use crate::error::{Error, Result};
use crate::lookup::LookupSet;
use crate::offsets::OffsetRange;
use crate::sink::Piece;
use crate::source::Messages;
use crate::transform::{Outcomes, Triggers};

/// A micro-batch on its way: decoded, with what had to be left out of it.
#[derive(Clone)]
pub struct Work {
    pub partition: i32,
    pub range: OffsetRange,
    pub messages: Arc<Messages>,
    /// Accepted messages, by the declared columns and their row numbers.
    pub batch: RecordBatch,
    pub rejects: Vec<Reject>,
}

impl Work {
    /// How many messages it covers: each is a row or a reject.
    pub fn messages(&self) -> usize {
        self.batch.num_rows() + self.rejects.len()
    }

    /// The first `most` messages of all works, in their order, and the rest.
    pub fn split_all(works: &[Work], most: usize) -> Result<(Vec<Work>, Vec<Work>)> {
        let (mut first, mut rest, mut left) = (Vec::new(), Vec::new(), most);
        for work in works {
            match work.messages() {
                // Ranges may cover more offsets than messages: a work without any goes along.
                all if all <= left => first.push(work.clone()),
                _ if left == 0 => rest.push(work.clone()),
                _ => {
                    let (head, tail) = work.split(left)?;
                    first.push(head);
                    rest.push(tail);
                }
            }
            left = left.saturating_sub(work.messages());
        }
        Ok((first, rest))
    }

    /// Its first `count` messages, fewer than all and more than none, and the others.
    fn split(&self, count: usize) -> Result<(Work, Work)> {
        let rows = row_numbers(&self.batch);
        let mut all: Vec<u32> = rows.iter().copied().chain(self.rejects.iter().map(|reject| reject.row)).collect();
        all.sort_unstable();
        let Some(&row) = all.get(count) else {
            return Err(Error::Claim { what: "a batch has fewer messages than were counted".into() });
        };
        let boundary = self.messages.offset(row as usize);
        let accepted = rows.partition_point(|number| *number < row);
        let refused = self.rejects.partition_point(|reject| reject.row < row);
        let part = |range, start: usize, len, rejects: &[Reject]| Work {
            partition: self.partition,
            range,
            messages: self.messages.clone(),
            batch: self.batch.slice(start, len),
            rejects: rejects.to_vec(),
        };
        let head = OffsetRange { to: boundary, ..self.range };
        let tail = OffsetRange { from: boundary, ..self.range };
        let (before, after) = self.rejects.split_at(refused);
        Ok((part(head, 0, accepted, before), part(tail, accepted, rows.len() - accepted, after)))
    }

    /// Takes messages out of the batch that a sink has refused.
    pub fn exclude(&mut self, rejects: impl IntoIterator<Item = Reject>) -> Result<()> {
        self.rejects.extend(rejects);
        self.rejects.sort_by_key(|reject| reject.row);
        self.rejects.dedup_by_key(|reject| reject.row);
        let rows = row_numbers(&self.batch);
        let keep = BooleanArray::from_iter(
            rows.iter().map(|row| Some(self.rejects.binary_search_by_key(row, |reject| reject.row).is_err())),
        );
        self.batch = filter_record_batch(&self.batch, &keep)
            .map_err(|error| Error::engine("leaving out refused messages")(error.into()))?;
        Ok(())
    }
}

/// Letters in a piece: a flood of them is not held at once.
const LETTERS: usize = 4096;

/// What became of one micro-batch, known once its rows have all gone by.
#[derive(Debug, Default)]
pub struct PartResult {
    pub outcomes: Outcomes,
    /// Dead letters that no topic can take: for the ledger's own table.
    pub over_size: Vec<(i64, Letter, Reject)>,
}

/// The pieces of one commit, pulled one by one.
pub struct Output<'a> {
    engine: &'a mut Engine,
    works: &'a [Work],
    now: DateTime<Utc>,
    lookups: &'a LookupSet,
    part: usize,
    state: State,
    triggered: Vec<bool>,
    pub results: Vec<PartResult>,
    /// Messages whose rows don't fit the table. From the first one on, nothing is handed out: the commit is redone.
    pub refused: Vec<(usize, Reject)>,
    pub transform_seconds: f64,
}

enum State {
    /// From this reject on.
    Letters(usize),
    Rows(Box<Triggers>),
}

impl<'a> Output<'a> {
    pub fn new(engine: &'a mut Engine, works: &'a [Work], now: DateTime<Utc>, lookups: &'a LookupSet) -> Self {
        Output {
            engine,
            works,
            now,
            lookups,
            part: 0,
            state: State::Letters(0),
            triggered: Vec::new(),
            results: Vec::new(),
            refused: Vec::new(),
            transform_seconds: 0.0,
        }
    }

    /// The instant of the commit.
    pub fn now(&self) -> DateTime<Utc> {
        self.now
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// [`Error::Engine`] where the SQL fails on the data, [`Error::Halt`] where a row cannot be traced to its message.
    pub async fn next(&mut self) -> Result<Option<Piece>> {
        let works = self.works;
        while let Some(work) = works.get(self.part) {
            match &mut self.state {
                State::Letters(from) => {
                    let from = *from;
                    if from == 0 {
                        self.results.push(PartResult::default());
                    }
                    if from < work.rejects.len() {
                        let to = (from + LETTERS).min(work.rejects.len());
                        self.state = State::Letters(to);
                        let letters = self.letters(work, &work.rejects[from..to]);
                        if !letters.is_empty() {
                            return Ok(Some(Piece::Letters { part: self.part, letters: letters.into() }));
                        }
                        continue;
                    }
                    self.triggered = vec![false; work.messages.len()];
                    let rows = self.engine.transform.run(work.batch.clone(), self.now, self.lookups).await?;
                    self.state = State::Rows(Box::new(rows));
                }
                State::Rows(stream) => {
                    let began = Instant::now();
                    let next = stream.try_next().await?;
                    self.transform_seconds += began.elapsed().as_secs_f64();
                    match next {
                        None => self.end_part(work).await?,
                        Some(rows) => {
                            if let Some(piece) = self.piece(rows)? {
                                return Ok(Some(piece));
                            }
                        }
                    }
                }
            }
        }
        Ok(None)
    }

    /// The letters of these rejects; what does not fit the topic goes to the ledger.
    fn letters(&mut self, work: &Work, rejects: &[Reject]) -> Vec<Letter> {
        let mut fitting = Vec::new();
        let engine = &self.engine;
        let letters =
            dead_letter::collect(&engine.source_topic, work.partition, &work.messages, rejects, &engine.sql_hash);
        for (letter, reject) in letters.into_iter().zip(rejects) {
            if self.engine.letters_to.fits_letter(&letter) {
                fitting.push(letter);
            } else if let Some(result) = self.results.get_mut(self.part) {
                result.over_size.push((work.messages.offset(reject.row as usize), letter, reject.clone()));
            }
        }
        fitting
    }

    fn piece(&mut self, rows: RecordBatch) -> Result<Option<Piece>> {
        if rows.num_rows() == 0 {
            return Ok(None);
        }
        self.engine.transform.mark_triggered(&rows, &mut self.triggered);
        let (mut rows, mut messages) = if self.engine.transform.carries_rows() { split(rows)? } else { (rows, None) };
        let batch = loop {
            let refused = match self.engine.conform.apply(&rows)? {
                Ok(batch) => break batch,
                Err(refused) => refused,
            };
            let Some(numbers) = &messages else {
                return Err(untraceable(&format!("column {}: {}", refused.column, refused.reason)));
            };
            let row = numbers[refused.index];
            if !self.refused.iter().any(|(part, reject)| *part == self.part && reject.row == row) {
                let path = format!("$.{}", refused.column);
                self.refused.push((self.part, Reject { row, stage: Stage::Encode, path, reason: refused.reason }));
            }
            // All of a batch's refused messages are found at once: the commit is redone for each round of them.
            let keep = BooleanArray::from_iter(numbers.iter().map(|number| Some(*number != row)));
            rows = filter_record_batch(&rows, &keep)
                .map_err(|error| Error::engine("leaving out a refused message")(error.into()))?;
            messages = Some(numbers.iter().copied().filter(|number| *number != row).collect());
        };
        let piece = Piece::Rows { part: self.part, batch, messages };
        Ok(self.refused.is_empty().then_some(piece))
    }

    async fn end_part(&mut self, work: &Work) -> Result<()> {
        let outcomes = self.engine.transform.outcomes(&work.batch, self.now, &self.triggered).await?;
        if let Some(result) = self.results.get_mut(self.part) {
            result.outcomes = outcomes;
        }
        self.part += 1;
        self.state = State::Letters(0);
        Ok(())
    }
}

/// Takes the row numbers off the rows.
fn split(rows: RecordBatch) -> Result<(RecordBatch, Option<Arc<[u32]>>)> {
    let messages: Arc<[u32]> = row_numbers(&rows).into();
    let columns: Vec<usize> = (0..rows.num_columns() - 1).collect();
    let rows = rows.project(&columns).map_err(|error| Error::engine("taking off the row numbers")(error.into()))?;
    Ok((rows, Some(messages)))
}

/// The hidden row numbers, which are the last column.
pub fn row_numbers(batch: &RecordBatch) -> &[u32] {
    let last = batch.columns().last();
    debug_assert_eq!(batch.schema().fields().last().map(|field| field.name().as_str()), Some(ROW));
    last.filter(|column| column.null_count() == 0)
        .and_then(|column| column.as_primitive_opt::<UInt32Type>())
        .map_or(&[], |rows| rows.values())
}

/// A refused row that cannot be traced to one message.
pub fn untraceable(why: &str) -> Error {
    Error::Halt {
        what: format!("a sink refuses a row of the output, and this SELECT does not tell which message it came from: {why}"),
        remedy: "aggregates, window functions, DISTINCT and UNION lose the message behind a row, so it cannot become a dead \
                 letter: mend the data or the SELECT"
            .into(),
    }
}
