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
use datafusion::common::Result;
use datafusion::common::hash_utils::{RandomState, create_hashes};
use hashbrown::HashTable;

use super::column::Column;
use super::index::KeyIndex;
use super::text::TextColumn;

/// The rows, in ascending order, that equal an earlier one. `columns` have `rows` rows each, in the order of `index`,
/// the one that is the key among them.
pub(super) fn repeats(columns: &[Column], index: &KeyIndex, rows: usize) -> Result<Vec<u32>> {
    let compared = Compared::new(columns, rows)?;
    let mut repeats = Vec::new();
    for group in index.groups(rows).filter(|group| group.len() > 1) {
        compared.find_repeats(group, &mut repeats);
    }
    Ok(repeats)
}

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

    fn find_repeats(&self, group: Range<usize>, repeats: &mut Vec<u32>) {
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use arrow::array::{Array, ArrayRef, AsArray, Int32Array, RecordBatch, StringViewArray};
    use arrow::compute::concat_batches;
    use arrow::datatypes::{DataType, Field, Int32Type, Schema};
    use proptest::prelude::*;

    use super::super::table::LookupTable;

    type Row = (Option<String>, Option<String>, Option<i32>);

    fn rows_of(batch: &RecordBatch) -> Vec<Row> {
        let text = |column: usize, row: usize| {
            let texts = batch.column(column).as_string_view();
            texts.is_valid(row).then(|| texts.value(row).to_owned())
        };
        let numbers = batch.column(2).as_primitive::<Int32Type>();
        let number = |row: usize| numbers.is_valid(row).then(|| numbers.value(row));
        (0..batch.num_rows()).map(|row| (text(0, row), text(1, row), number(row))).collect()
    }

    fn table(rows: &[Row], key: usize) -> Vec<Row> {
        let schema = Arc::new(Schema::new(vec![
            Field::new("a", DataType::Utf8View, true),
            Field::new("b", DataType::Utf8View, true),
            Field::new("n", DataType::Int32, true),
        ]));
        let texts =
            |of: fn(&Row) -> Option<&str>| -> ArrayRef { Arc::new(StringViewArray::from_iter(rows.iter().map(of))) };
        let numbers: ArrayRef = Arc::new(Int32Array::from_iter(rows.iter().map(|row| row.2)));
        let columns = vec![texts(|row| row.0.as_deref()), texts(|row| row.1.as_deref()), numbers];
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns).expect("a batch");
        let table = LookupTable::new("t", Arc::clone(&schema), vec![batch], Some(key)).expect("a table");
        let table = Arc::new(table.distinct().expect("a table"));
        let scanned: Vec<_> = table.scan().collect::<Result<_, _>>().expect("rows");
        let all = rows_of(&concat_batches(&schema, &scanned).expect("one schema"));
        assert_eq!(all.len() as u64, table.rows);
        // Each row is found by its key, and no other.
        let index = table.built_index(key).expect("an index");
        let probes = scanned.iter().map(|batch| index.find(batch.column(key)).expect("keys")).flatten();
        for (row, places) in probes.enumerate() {
            let keyed = (key == 0 && all[row].0.is_some()) || (key == 2 && all[row].2.is_some());
            assert_eq!(places.map(|places| places.contains(&(row as u32))), keyed.then_some(true), "row {row}");
        }
        all
    }

    fn once(rows: &[Row]) -> Vec<Row> {
        let mut seen = HashSet::new();
        rows.iter().filter(|row| seen.insert(*row)).cloned().collect()
    }

    fn any_row() -> impl Strategy<Value = Row> {
        let ids = ["0123e456-789a-bcde-f012-3456789abcde", "74657874-ffff-ffff-0000-000000000000", "a", "", "an other"];
        let text = move || proptest::option::of(proptest::sample::select(ids.map(str::to_owned).to_vec()));
        (text(), text(), proptest::option::of(0..3i32))
    }

    proptest! {
        #[test]
        fn every_row_is_there_once(rows in proptest::collection::vec(any_row(), 0..200), key in prop_oneof![Just(0), Just(2)]) {
            let (mut found, mut expected) = (table(&rows, key), once(&rows));
            // The rows of one key stand in the order in which they came.
            let keyed = |row: &Row| if key == 0 { row.0.clone() } else { row.2.map(|number| number.to_string()) };
            found.sort_by_key(keyed);
            expected.sort_by_key(keyed);
            prop_assert_eq!(found, expected);
        }
    }
}
