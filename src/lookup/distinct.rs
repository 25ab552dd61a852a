//! Finds the rows of a table that are there already: what a `DISTINCT` over the query would have left out.
//!
//! Rows that are equal have one key, so they stand together in a table that is in the key's order, and only the rows of
//! one key are compared: a few at a time, close together in memory. Nulls are equal to each other, as they are to
//! `DISTINCT`. What this does not do: compare as a collation or a number type would; it is for columns whose values are
//! equal just where their bytes are.

use std::cmp::Ordering;
use std::hash::{BuildHasher, Hash, Hasher};
use std::ops::Range;

use arrow::array::{Array, ArrayRef, DynComparator, make_comparator};
use arrow::compute::SortOptions;
use datafusion::common::hash_utils::{RandomState, create_hashes};
use datafusion::common::{Result, internal_err};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::column::Column;
use super::text::TextColumn;

/// The columns with each of their `rows` rows once, and how many are left. One column must be the key whose order they are
/// in.
pub(super) fn once(columns: Vec<Column>, rows: usize) -> Result<(Vec<Column>, usize)> {
    let key = columns.iter().find_map(|column| if let Column::Key(index) = column { Some(index) } else { None });
    let Some(index) = key else { return internal_err!("repeats are looked for among the rows of a key") };
    let compared = Compared::new(&columns)?;
    let mut repeats = Vec::new();
    index.groups(rows).try_for_each(|group| compared.find_repeats(group, &mut repeats))?;
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
    arrays: Vec<&'a ArrayRef>,
    /// By array.
    comparators: Vec<DynComparator>,
    hash: RandomState,
}

impl<'a> Compared<'a> {
    fn new(columns: &'a [Column]) -> Result<Compared<'a>> {
        let (mut texts, mut arrays) = (Vec::new(), Vec::new());
        for column in columns {
            match column {
                Column::Text(text) => texts.push(text),
                Column::Array(array) => arrays.push(array),
                Column::Key(_) => {}
            }
        }
        let comparator = |array: &&ArrayRef| make_comparator(array, array, SortOptions::default());
        let comparators = arrays.iter().map(comparator).collect::<Result<_, _>>()?;
        Ok(Compared { texts, arrays, comparators, hash: RandomState::with_seed(0) })
    }

    /// Adds those rows of `group`, in ascending order, that equal an earlier one.
    fn find_repeats(&self, group: Range<usize>, repeats: &mut Vec<u32>) -> Result<()> {
        if group.len() <= FEW {
            let repeated = |row: &usize| (group.start..*row).any(|other| self.are_equal(*row, other));
            repeats.extend(group.clone().filter(repeated).map(|row| row as u32));
            return Ok(());
        }
        let hashes = self.hashes(group.clone())?;
        let mut seen: HashTable<u32> = HashTable::with_capacity(group.len());
        for (row, &hash) in group.clone().zip(&hashes) {
            let equal = |&other: &u32| self.are_equal(row, other as usize);
            match seen.entry(hash, equal, |&other| hashes[other as usize - group.start]) {
                Entry::Occupied(_) => repeats.push(row as u32),
                Entry::Vacant(place) => _ = place.insert(row as u32),
            }
        }
        Ok(())
    }

    /// By row of `rows`.
    fn hashes(&self, rows: Range<usize>) -> Result<Vec<u64>> {
        let mut hashes = vec![0; rows.len()];
        let arrays = self.arrays.iter().map(|array| array.slice(rows.start, rows.len()));
        create_hashes(arrays, &self.hash, &mut hashes)?;
        for (row, hash) in rows.zip(&mut hashes) {
            let mut hasher = self.hash.build_hasher();
            self.texts.iter().for_each(|texts| texts.get(row).hash(&mut hasher));
            hash.hash(&mut hasher);
            *hash = hasher.finish();
        }
        Ok(hashes)
    }

    fn are_equal(&self, one: usize, other: usize) -> bool {
        self.texts.iter().all(|texts| texts.get(one) == texts.get(other))
            && self.comparators.iter().all(|compare| compare(one, other) == Ordering::Equal)
    }
}
