//! A text column in 16 bytes a row, and the bytes of those texts that are no canonical UUIDs.
//!
//! ```text
//! a cell:   the 16 bytes of an id                        "0123e456-789a-bcde-f012-3456789abcde"
//!       or  "text" | length, 4 bytes | place, 8 bytes    any other text: there it stands among `texts`
//!       or  "text" | u32::MAX        | 0                 null
//! ```
//!
//! What this promises: every text comes out byte for byte as it went in, and each has one form only (an id that begins
//! with the mark is kept as text). Ids are printed when they are read, into a buffer of the reader's batch: a batch
//! never keeps a table alive.

use std::hash::BuildHasher;

use arrow::array::{NullBufferBuilder, StringViewArray};
use arrow::buffer::{Buffer, ScalarBuffer};
use datafusion::common::hash_utils::RandomState;

use super::NO_ROW;
use crate::id::{self, Id};
use crate::pages;
use crate::view;

type Cell = [u8; 16];

const MARK: [u8; 4] = *b"text";
const NULL: Cell = [b't', b'e', b'x', b't', 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0];

/// 4 KiB of cells are fetched before they are printed.
const CELLS_AT_ONCE: usize = 256;

/// A text in its one form: never `Other` where it is an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Text<'a> {
    Id(Id),
    Other(&'a str),
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        id::parse(text.as_bytes()).map_or(Text::Other(text), Text::Id)
    }
}

/// Where the text of a cell stands; `None` for an id and for null.
fn place(cell: Cell) -> Option<u64> {
    let [.., p0, p1, p2, p3, p4, p5, p6, p7] = cell;
    (cell.starts_with(&MARK) && cell != NULL).then(|| u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7]))
}

#[derive(Debug, Default)]
pub(super) struct TextColumn {
    cells: Vec<Cell>,
    texts: String,
    /// Bytes of texts whose rows have gone; too many where other rows have them as well.
    unused: usize,
}

impl TextColumn {
    pub(super) fn len(&self) -> usize {
        self.cells.len()
    }

    /// `None` is null.
    pub(super) fn get(&self, row: usize) -> Option<Text<'_>> {
        self.text_of(self.cells[row])
    }

    /// As [`TextColumn::get`], of many rows, null for [`NO_ROW`]: their cells first, see [`TextColumn::cells`].
    pub(super) fn get_all(&self, rows: &[u32]) -> Vec<Option<Text<'_>>> {
        let mut cells = Vec::with_capacity(rows.len());
        self.cells(rows, &mut cells);
        cells.into_iter().map(|cell| self.text_of(cell)).collect()
    }

    /// Puts the cells of `rows` into `cells`. A loop that does nothing else: where they lie all over a large table, a processor
    /// fetches many of them at once, as long as little stands between one and the next.
    fn cells(&self, rows: &[u32], cells: &mut Vec<Cell>) {
        cells.clear();
        cells.extend(rows.iter().map(|&row| if row == NO_ROW { NULL } else { self.cells[row as usize] }));
    }

    fn text_of(&self, cell: Cell) -> Option<Text<'_>> {
        if cell.starts_with(&MARK) { self.text(cell).map(Text::from) } else { Some(Text::Id(cell)) }
    }

    /// The text of a cell that has the mark.
    fn text(&self, cell: Cell) -> Option<&str> {
        let [_, _, _, _, len @ .., _, _, _, _, _, _, _, _] = cell;
        let place = place(cell)? as usize;
        Some(&self.texts[place..place + u32::from_le_bytes(len) as usize])
    }

    pub(super) fn push(&mut self, text: Option<Text<'_>>) {
        let cell = match text {
            None => NULL,
            Some(Text::Id(id)) if !id.starts_with(&MARK) => id,
            Some(Text::Id(id)) => self.add(&String::from_utf8_lossy(&id::print(id))),
            Some(Text::Other(text)) => self.add(text),
        };
        self.cells.push(cell);
    }

    fn add(&mut self, text: &str) -> Cell {
        let place = self.texts.len() as u64;
        self.texts.push_str(text);
        let mut cell = NULL;
        // Postgres sends no text of more than 1 GiB.
        cell[4..8].copy_from_slice(&(text.len() as u32).to_le_bytes());
        cell[8..].copy_from_slice(&place.to_le_bytes());
        cell
    }

    /// The column without these rows, which are in ascending order.
    pub(super) fn without(mut self, rows: &[u32]) -> TextColumn {
        let text_len = |&row: &u32| self.text(self.cells[row as usize]).map_or(0, str::len);
        self.unused += rows.iter().map(text_len).sum::<usize>();
        let (mut gone, mut row) = (rows.iter().peekable(), 0);
        self.cells.retain(|_| {
            let stays = gone.next_if_eq(&&row).is_none();
            row += 1;
            stays
        });
        // Little is not worth the time that it takes to find it; nor are texts that many rows share, which count here as often
        // as they are shared.
        let may_be_much = self.texts.len() > self.cells.len() / 4;
        if may_be_much && self.unused > self.texts.len() / 4 {
            self.drop_unused_texts();
        }
        self.shrink_to_fit();
        self
    }

    /// Texts that several cells have stay one.
    fn drop_unused_texts(&mut self) {
        let mut used: Vec<u32> = (0..self.cells.len() as u32).collect();
        used.retain(|&row| place(self.cells[row as usize]).is_some());
        // By place and length: an empty text stands where another one does.
        used.sort_unstable_by_key(|&row| u128::from_le_bytes(self.cells[row as usize]));
        let old = TextColumn { texts: std::mem::take(&mut self.texts), ..TextColumn::default() };
        self.unused = 0;
        let (mut last, mut kept) = (NULL, NULL);
        for row in used {
            let cell = self.cells[row as usize];
            if cell != last {
                (last, kept) = (cell, old.text(cell).map_or(NULL, |text| self.add(text)));
            }
            self.cells[row as usize] = kept;
        }
    }

    pub(super) fn shrink_to_fit(&mut self) {
        self.cells.shrink_to_fit();
        self.texts.shrink_to_fit();
    }

    /// See [`crate::pages`].
    pub(super) fn collapse(&self) {
        pages::collapse(&self.cells);
        pages::collapse(self.texts.as_bytes());
    }

    /// Memory held, in bytes.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Cell>() * self.cells.capacity() + self.texts.capacity()
    }

    /// The texts of `rows`; null for [`NO_ROW`]. A row that is wanted several times in a row is printed once.
    pub(super) fn gather(&self, rows: &[u32]) -> StringViewArray {
        let mut printed = Printed::with_capacity(rows.len());
        let (mut last, mut cells) = (None, Vec::with_capacity(CELLS_AT_ONCE.min(rows.len())));
        for rows in rows.chunks(CELLS_AT_ONCE) {
            self.cells(rows, &mut cells);
            for (&row, &cell) in rows.iter().zip(&cells) {
                if last.replace(row) == Some(row) {
                    printed.repeat();
                } else if !cell.starts_with(&MARK) {
                    printed.push(&id::print(cell));
                } else if let Some(text) = self.text(cell) {
                    printed.push(text.as_bytes());
                } else {
                    printed.push_null();
                }
            }
        }
        printed.finish()
    }
}

/// Texts become an array.
struct Printed {
    views: Vec<u128>,
    nulls: NullBufferBuilder,
    block: Vec<u8>,
    full: Vec<Buffer>,
}

/// No block is longer: places in it are of 32 bits.
const LONGEST_BLOCK: usize = i32::MAX as usize;

impl Printed {
    fn with_capacity(rows: usize) -> Self {
        let block = Vec::with_capacity(rows * id::TEXT_LEN);
        Self { views: Vec::with_capacity(rows), nulls: NullBufferBuilder::new(rows), block, full: Vec::new() }
    }

    /// `text` is UTF-8.
    // Inlined: of an id's text the length is known, so that no comparison and no copy of unknown length is left.
    #[inline]
    fn push(&mut self, text: &[u8]) {
        if self.block.len() + text.len() > LONGEST_BLOCK {
            self.full.push(std::mem::take(&mut self.block).into());
        }
        self.views.push(view::make(text, self.full.len() as u32, self.block.len() as u32));
        self.nulls.append_non_null();
        // A short text stands in the view itself.
        if text.len() > view::INLINE {
            self.block.extend_from_slice(text);
        }
    }

    fn push_null(&mut self) {
        self.views.push(0);
        self.nulls.append_null();
    }

    /// The last one again.
    fn repeat(&mut self) {
        if let Some(&view) = self.views.last() {
            self.nulls.append(self.nulls.is_valid(self.views.len() - 1));
            self.views.push(view);
        }
    }

    fn finish(mut self) -> StringViewArray {
        let mut blocks = self.full;
        if !self.block.is_empty() {
            // Room for an id a row was more than enough where rows repeat.
            self.block.shrink_to_fit();
            blocks.push(self.block.into());
        }
        // SAFETY: each view is of a whole text, made for the place where it was put, and texts are UTF-8.
        unsafe { StringViewArray::new_unchecked(ScalarBuffer::from(self.views), blocks, self.nulls.finish()) }
    }
}

/// A text column that grows. A text that was just there, as the names of a few cities are in each row, is kept once.
#[derive(Debug)]
pub(super) struct TextBuilder {
    column: TextColumn,
    hash: RandomState,
    /// By the end of its hash: the cell of a text.
    recent: Vec<Cell>,
}

/// 64 KiB of cells: about what a processor keeps at hand.
const RECENT: usize = 4096;

impl TextBuilder {
    pub(super) fn new() -> Self {
        Self::of(TextColumn::default())
    }

    /// Goes on behind the rows of `column`.
    pub(super) fn of(column: TextColumn) -> Self {
        Self { column, hash: RandomState::with_seed(0), recent: Vec::new() }
    }

    pub(super) fn push(&mut self, text: Option<Text<'_>>) {
        let Some(Text::Other(text)) = text else { return self.column.push(text) };
        if self.recent.is_empty() {
            self.recent.resize(RECENT, NULL);
        }
        let place = self.hash.hash_one(text) as usize % RECENT;
        let mut cell = self.recent[place];
        if self.column.text(cell) != Some(text) {
            cell = self.column.add(text);
            self.recent[place] = cell;
        }
        self.column.cells.push(cell);
    }

    /// The column, its rows put into `order` if there is one.
    pub(super) fn finish(self, order: Option<&[u32]>) -> TextColumn {
        let mut column = self.column;
        if let Some(order) = order {
            column.cells = order.iter().map(|&row| column.cells[row as usize]).collect();
        }
        column.shrink_to_fit();
        column
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::Array;
    use proptest::prelude::*;

    use super::*;

    fn builder(texts: &[Option<String>]) -> TextBuilder {
        let mut builder = TextBuilder::new();
        texts.iter().for_each(|text| builder.push(text.as_deref().map(Text::from)));
        builder
    }

    fn column(texts: &[Option<String>]) -> TextColumn {
        builder(texts).finish(None)
    }

    /// Ids in all spellings, and anything.
    pub(super) fn text() -> impl Strategy<Value = String> {
        let id = any::<[u8; 16]>().prop_map(|id| uuid::Uuid::from_bytes(id).hyphenated().to_string());
        let marked = Just("74657874-0000-4000-8000-000000000000".to_owned());
        prop_oneof![
            4 => id.clone(),
            1 => id.clone().prop_map(|id| id.to_uppercase()),
            1 => id.clone().prop_map(|id| id.replace('-', "")),
            1 => id.prop_map(|id| format!("{{{id}}}")),
            1 => marked,
            1 => ".{0,40}",
            1 => "[а-яё]{0,30}",
        ]
    }

    proptest! {
        #[test]
        fn texts_come_out_as_they_went_in(
            texts in proptest::collection::vec(proptest::option::weighted(0.9, text()), 0..40),
            picks in proptest::collection::vec(any::<prop::sample::Index>(), 0..80),
        ) {
            let column = column(&texts);
            let mut rows: Vec<u32> = picks.iter().filter(|_| !texts.is_empty()).map(|i| i.index(texts.len()) as u32).collect();
            rows.push(NO_ROW);
            let rows: Vec<u32> = rows.iter().flat_map(|&row| std::iter::repeat_n(row, 1 + row as usize % 3)).collect();
            let array = column.gather(&rows);
            // What `new_unchecked` did not look at.
            StringViewArray::try_new(array.views().clone(), array.data_buffers().to_vec(), array.nulls().cloned()).expect("whole");
            let expected: Vec<_> = rows.iter().map(|&row| texts.get(row as usize).and_then(Option::as_deref)).collect();
            prop_assert_eq!(array.iter().collect::<Vec<_>>(), expected.clone());
            let there: Vec<u32> = rows.iter().copied().filter(|&row| row != NO_ROW).collect();
            let reordered = builder(&texts).finish(Some(&there));
            let again = reordered.gather(&(0..there.len() as u32).collect::<Vec<_>>());
            prop_assert_eq!(again.iter().collect::<Vec<_>>(), &expected[..there.len()]);
        }
    }

    #[test]
    fn ids_take_sixteen_bytes_and_repeated_texts_are_kept_once() {
        let id = "0123e456-789a-bcde-f012-3456789abcde".to_owned();
        assert_eq!(column(&[Some(id.clone()), None]).texts, "");
        let city = Some("Нижний Новгород".to_owned());
        let names = column(&[city.clone(), Some(id.to_uppercase()), city.clone(), None, city]);
        assert_eq!(names.texts, format!("Нижний Новгород{}", id.to_uppercase()));
        assert_eq!((names.get(3), names.len()), (None, 5));
    }

    #[test]
    fn an_id_that_looks_like_the_mark_is_kept_as_text() {
        let marked = "74657874-ffff-ffff-0000-000000000000";
        let column = column(&[Some(marked.to_owned())]);
        assert_eq!((column.texts.as_str(), column.get(0)), (marked, Some(Text::from(marked))));
        assert!(matches!(Text::from(marked), Text::Id(_)), "it is found as an id");
    }
}
