//! Which cells of a batch repeat the one above. In a fan-out nearly all of them do: a campaign's columns are the same for
//! each of its clients, and need no second escape, format or check.

use std::ops::Range;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{ArrowNativeType, DataType};

/// Values compared at once.
const BLOCK: usize = 64;

/// Which cells differ from the one above: a bit per cell, rows of whole words. The first row is fresh throughout.
pub(super) struct Fresh {
    bits: Vec<u64>,
    words: usize,
    columns: usize,
}

impl Fresh {
    /// A cell that is fresh may still equal the one above: equal text behind two views is not looked at.
    pub(super) fn find(columns: &[ArrayRef], rows: usize) -> Fresh {
        let words = columns.len().div_ceil(64).max(1);
        let mut bits = vec![0; rows * words];
        for (position, column) in columns.iter().enumerate() {
            let (word, bit) = (position / 64, 1 << (position % 64));
            if rows > 0 {
                bits[word] |= bit;
            }
            each_change(column, |row| bits[row * words + word] |= bit);
        }
        Fresh { bits, words, columns: columns.len() }
    }

    /// The run that begins with the first of `rows`, all of whose other rows differ from the one above only as `repeats`
    /// allows, which is given their fresh columns, a bit each: where it ends, and the columns that are fresh in any of its
    /// other rows, in order.
    pub(super) fn run(&self, rows: Range<usize>, repeats: impl Fn(&[u64]) -> bool) -> (usize, Vec<usize>) {
        let mut end = rows.start + 1;
        let (mut last, mut any): (&[u64], Vec<u64>) = (&[], Vec::new());
        for fresh in self.bits[end * self.words..rows.end * self.words].chunks_exact(self.words) {
            // In a fan-out nearly every row differs from the one above just where that one did.
            if !fresh.iter().eq(last) {
                if !repeats(fresh) {
                    break;
                }
                any.resize(self.words, 0);
                any.iter_mut().zip(fresh).for_each(|(any, fresh)| *any |= fresh);
                last = fresh;
            }
            end += 1;
        }
        let is_fresh = |&column: &usize| any.get(column / 64).is_some_and(|word| word >> (column % 64) & 1 == 1);
        let columns = if any.is_empty() { Vec::new() } else { (0..self.columns).filter(is_fresh).collect() };
        (end, columns)
    }
}

/// A bit for each column, as [`Fresh`] has them.
pub(super) fn bits(columns: &[bool]) -> Vec<u64> {
    let word = |columns: &[bool]| columns.iter().rev().fold(0, |word, &column| word << 1 | u64::from(column));
    columns.chunks(64).map(word).collect()
}

/// Calls `changed` for every row, the first one left out, whose value may differ from that of the row above.
pub(super) fn each_change(array: &dyn Array, mut changed: impl FnMut(usize)) {
    let len = array.len();
    match array.data_type() {
        DataType::Null => {}
        DataType::Boolean => {
            let array = array.as_boolean();
            each(len, array.nulls(), |a, b| array.value(a) == array.value(b), changed);
        }
        DataType::Binary => {
            let array = array.as_binary::<i32>();
            each(len, array.nulls(), |a, b| array.value(a) == array.value(b), changed);
        }
        DataType::FixedSizeBinary(_) => {
            let array = array.as_fixed_size_binary();
            each(len, array.nulls(), |a, b| array.value(a) == array.value(b), changed);
        }
        // Equal views of one array are equal text.
        DataType::Utf8View => fixed::<u128>(array, changed),
        // By their bits: 0.0 and -0.0 are equal and look different.
        other => match other.primitive_width() {
            Some(1) => fixed::<u8>(array, changed),
            Some(2) => fixed::<u16>(array, changed),
            Some(4) => fixed::<u32>(array, changed),
            Some(8) => fixed::<u64>(array, changed),
            Some(16) => fixed::<i128>(array, changed),
            _ => (1..len).for_each(&mut changed),
        },
    }
}

fn fixed<T: ArrowNativeType + PartialEq>(array: &dyn Array, mut changed: impl FnMut(usize)) {
    let data = array.to_data();
    let values = &data.buffer::<T>(0)[..array.len()];
    if array.null_count() > 0 {
        return each(array.len(), array.nulls(), |a, b| values[a] == values[b], changed);
    }
    // Block by block against the same one row further up: in a fan-out nearly every block is one comparison of memory.
    let mut row = 1;
    while row < values.len() {
        let end = values.len().min(row + BLOCK);
        if values[row - 1..end - 1] != values[row..end] {
            (row..end).filter(|&row| values[row - 1] != values[row]).for_each(&mut changed);
        }
        row = end;
    }
}

fn each(len: usize, nulls: Option<&NullBuffer>, same: impl Fn(usize, usize) -> bool, mut changed: impl FnMut(usize)) {
    match nulls {
        None => (1..len).filter(|&row| !same(row - 1, row)).for_each(changed),
        Some(nulls) => {
            for row in 1..len {
                let (above, here) = (nulls.is_valid(row - 1), nulls.is_valid(row));
                if above != here || (here && !same(row - 1, row)) {
                    changed(row);
                }
            }
        }
    }
}
