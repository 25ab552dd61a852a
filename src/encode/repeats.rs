//! Which cells of a batch repeat the one above. In a fan-out nearly all of them do: a campaign's columns are the same for
//! each of its clients, and need no second escape, format or check.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{ArrowNativeType, DataType};

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

    /// The first fresh column of `row` from `column` on, or the number of columns.
    pub(super) fn next(&self, row: usize, column: usize) -> usize {
        let words = &self.bits[row * self.words..(row + 1) * self.words];
        let mut mask = u64::MAX << (column % 64);
        for (position, word) in words.iter().enumerate().skip(column / 64) {
            if word & mask != 0 {
                return position * 64 + (word & mask).trailing_zeros() as usize;
            }
            mask = u64::MAX;
        }
        self.columns
    }

    /// The fresh columns of `row`, in order.
    pub(super) fn of(&self, row: usize) -> impl Iterator<Item = usize> {
        let mut column = 0;
        std::iter::from_fn(move || {
            let found = self.next(row, column);
            column = found + 1;
            (found < self.columns).then_some(found)
        })
    }
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

fn fixed<T: ArrowNativeType + PartialEq>(array: &dyn Array, changed: impl FnMut(usize)) {
    let data = array.to_data();
    let values = &data.buffer::<T>(0)[..array.len()];
    each(array.len(), array.nulls(), |a, b| values[a] == values[b], changed);
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
