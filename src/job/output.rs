//! From decoded micro-batches to the pieces that both sinks take: the transform's rows, made to fit the sink table, and
//! the dead letters. Computed once, streamed, never held.

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use chrono::{DateTime, Utc};
use futures::TryStreamExt;

use super::engine::Engine;
use crate::dead_letter::{self, Letter, Reject, Stage};
use crate::decode::{Work, row_numbers};
use crate::error::{Error, Result};
use crate::lookup::LookupSet;
use crate::sink::Piece;
use crate::transform::{Outcomes, Triggers};

/// Letters in a piece: a flood of them is not held at once.
const LETTERS: usize = 4096;

/// What became of one micro-batch, known once its rows have all gone by.
#[derive(Debug, Default)]
pub struct PartResult {
    pub outcomes: Outcomes,
    /// Dead letters that no topic can take: for the ledger's own table.
    pub over_size: Vec<(i64, Letter, Reject)>,
}

impl PartResult {
    /// Messages by outcome, those that occur; dead letters are none of them.
    pub fn outcomes_as_json(&self) -> serde_json::Value {
        self.outcomes.counts.iter().filter(|(_, count)| *count > 0).cloned().collect()
    }
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

/// A refused row that cannot be traced to one message.
pub fn untraceable(why: &str) -> Error {
    Error::Halt {
        what: format!("a sink refuses a row of the output, and this SELECT does not tell which message it came from: {why}"),
        remedy: "aggregates, window functions, DISTINCT and UNION lose the message behind a row, so it cannot become a dead \
                 letter: mend the data or the SELECT"
            .into(),
    }
}
