//! Finds the rows of a table that are there already: what a `DISTINCT` over the query would have left out.
//!
//! Rows that are equal have one key, so they stand together in a table that is in the key's order, and only the rows of
//! one key are compared: a few at a time, close together in memory. Nulls are equal to each other, as they are to
//! `DISTINCT`. What this does not do: compare as a collation or a number type would; it is for columns whose values are
//! equal just where their bytes are.

use std::cmp::Ordering;
use std::hash::{BuildHasher, Hash, Hasher};
use std::ops::Range;

use arrow::array::{ArrayRef, DynComparator, make_comparator};
use arrow::compute::SortOptions;
use datafusion::common::hash_utils::{RandomState, create_hashes};
use datafusion::common::{Result, internal_err};
use hashbrown::HashTable;

use super::column::Column;
use super::text::TextColumn;

/// The columns with each of their `rows` rows once, and how many are left. One column must be the key whose order they are
/// in.
pub(super) fn once(columns: Vec<Column>, rows: usize) -> Result<(Vec<Column>, usize)> {
    let key = columns.iter().find_map(|column| if let Column::Key(index) = column { Some(index) } else { None });
    let Some(index) = key else { return internal_err!("repeats are looked for among the rows of a key") };
    let compared = Compared::new(&columns, rows)?;
    let mut repeats = Vec::new();
    index.groups(rows).for_each(|group| compared.find_repeats(group, &mut repeats));
    if repeats.is_empty() {
        return Ok((columns, rows));
    }
    let columns = columns.into_iter().map(|column| column.without(&repeats)).collect::<Result<_>>()?;
    Ok((columns, rows - repeats.len()))
}

/// Up to so many rows are compared with each other; a table of their hashes would cost more.
const FEW: usize = 8;

/// All columns but the key.
struct Compared<'a> {
    texts: Vec<&'a TextColumn>,
    arrays: Vec<DynComparator>,
    /// By row, of all arrays together; empty where there are none.
    array_hashes: Vec<u64>,
    hash: RandomState,
}

impl<'a> Compared<'a> {
    fn new(columns: &'a [Column], rows: usize) -> Result<Compared<'a>> {
        let hash = RandomState::with_seed(0);
        let (mut texts, mut arrays) = (Vec::new(), Vec::<&ArrayRef>::new());
        for column in columns {
            match column {
                Column::Text(text) => texts.push(text),
                Column::Array(array) => arrays.push(array),
                Column::Key(_) => {}
            }
        }
        let mut array_hashes = vec![0; if arrays.is_empty() { 0 } else { rows }];
        create_hashes(arrays.iter().copied(), &hash, &mut array_hashes)?;
        let comparator = |array: &&ArrayRef| make_comparator(array, array, SortOptions::default());
        let arrays = arrays.iter().map(comparator).collect::<Result<_, _>>()?;
        Ok(Compared { texts, arrays, array_hashes, hash })
    }

    /// Adds those rows of `group`, in ascending order, that equal an earlier one.
    fn find_repeats(&self, group: Range<usize>, repeats: &mut Vec<u32>) {
        if group.len() <= FEW {
            let repeated = |row: &usize| (group.start..*row).any(|other| self.are_equal(*row, other));
            repeats.extend(group.clone().filter(repeated).map(|row| row as u32));
            return;
        }
        let mut seen: HashTable<u32> = HashTable::with_capacity(group.len());
        for row in group {
            let hash = self.hash_of(row);
            if seen.find(hash, |&other| self.are_equal(row, other as usize)).is_some() {
                repeats.push(row as u32);
            } else {
                seen.insert_unique(hash, row as u32, |&other| self.hash_of(other as usize));
            }
        }
    }

    fn hash_of(&self, row: usize) -> u64 {
        let mut hasher = self.hash.build_hasher();
        self.texts.iter().for_each(|texts| texts.get(row).hash(&mut hasher));
        self.array_hashes.get(row).hash(&mut hasher);
        hasher.finish()
    }

    fn are_equal(&self, one: usize, other: usize) -> bool {
        self.texts.iter().all(|texts| texts.get(one) == texts.get(other))
            && self.arrays.iter().all(|compare| compare(one, other) == Ordering::Equal)
    }
}
