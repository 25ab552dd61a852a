//! The rows of a lookup table by one of its columns: key -> places of its rows, one after the other.
//!
//! ```text
//! numbers   hash of a key -> its number                         5 to 11 bytes a key
//! keys      by number: the key                                 16 bytes a key
//! starts    by number: the first of its rows                    4 bytes a key
//! rows      the rows of key 0, then those of key 1, ...         4 bytes a row
//! ```
//!
//! `rows` is not there where the table itself stands in this order, and neither is the key's column: the index is it.
//!
//! What this promises: finding a key costs the same in a table of ten rows and of ten million, its rows are listed in
//! the order in which they came, a null is no key, and two keys with one hash stay two keys.

use std::fmt;
use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use datafusion::common::hash_utils::RandomState;
use datafusion::common::{Result, exec_err, internal_datafusion_err};
use hashbrown::HashTable;

use super::NO_ROW;
use super::text::{Text, TextColumn};
use crate::pages::{self, LargePages};

/// Whether a column of this type can be a key.
pub(super) fn is_key_type(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8View | DataType::Int16 | DataType::Int32 | DataType::Int64)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Key<'a> {
    Text(Text<'a>),
    Number(i64),
}

/// The keys of `array`, which is of a type that [`is_key_type`] knows, row by row.
pub(super) fn each_key<'a>(array: &'a ArrayRef, mut key: impl FnMut(Option<Key<'a>>)) -> Result<()> {
    match array.data_type() {
        DataType::Utf8View => {
            array.as_string_view().iter().for_each(|text| key(text.map(|text| Key::Text(text.into()))));
        }
        data_type if is_key_type(data_type) => {
            let numbers = cast(array, &DataType::Int64)?;
            numbers.as_primitive::<Int64Type>().iter().for_each(|number| key(number.map(Key::Number)));
        }
        other => return exec_err!("no index over a column of type {other}"),
    }
    Ok(())
}

/// Keys, each once, numbered as they come.
pub(super) struct Keys {
    numbers: HashTable<u32, LargePages>,
    values: Values,
    hash: fn(Key<'_>) -> u64,
}

enum Values {
    Texts(TextColumn),
    Numbers(DataType, Vec<i64>),
}

impl Values {
    fn get(&self, number: u32) -> Option<Key<'_>> {
        match self {
            Values::Texts(texts) => texts.get(number as usize).map(Key::Text),
            Values::Numbers(_, numbers) => Some(Key::Number(numbers[number as usize])),
        }
    }

    /// The keys of many numbers; `None` for [`NO_KEY`].
    fn get_all(&self, numbers: &[u32]) -> Vec<Option<Key<'_>>> {
        match self {
            Values::Texts(texts) => texts.get_all(numbers).into_iter().map(|text| text.map(Key::Text)).collect(),
            Values::Numbers(_, values) => {
                numbers.iter().map(|&number| values.get(number as usize).copied().map(Key::Number)).collect()
            }
        }
    }
}

impl Keys {
    pub(super) fn new(data_type: &DataType) -> Result<Self> {
        Self::with_hash(data_type, |key| RandomState::with_seed(0).hash_one(key))
    }

    fn with_hash(data_type: &DataType, hash: fn(Key<'_>) -> u64) -> Result<Self> {
        let values = match data_type {
            DataType::Utf8View => Values::Texts(TextColumn::default()),
            other if is_key_type(other) => Values::Numbers(other.clone(), Vec::new()),
            other => return exec_err!("no index over a column of type {other}"),
        };
        Ok(Self { numbers: HashTable::new_in(LargePages), values, hash })
    }

    pub(super) fn len(&self) -> usize {
        match &self.values {
            Values::Texts(texts) => texts.len(),
            Values::Numbers(_, numbers) => numbers.len(),
        }
    }

    pub(super) fn data_type(&self) -> &DataType {
        match &self.values {
            Values::Texts(_) => &DataType::Utf8View,
            Values::Numbers(data_type, _) => data_type,
        }
    }

    fn find(&self, key: Key<'_>) -> Option<u32> {
        self.numbers.find((self.hash)(key), |&number| self.values.get(number) == Some(key)).copied()
    }

    /// As [`Keys::find`], of many keys: each step is taken for all of them before the next. What it reads lies all over a large
    /// table, and a processor waits for many such places at once where none depends on another.
    fn find_all(&self, keys: &[Option<Key<'_>>]) -> Vec<Option<u32>> {
        let hashes: Vec<u64> = keys.iter().map(|key| key.map_or(0, self.hash)).collect();
        let likely: Vec<u32> =
            hashes.iter().map(|&hash| self.numbers.iter_hash(hash).next().copied().unwrap_or(NO_KEY)).collect();
        let there = self.values.get_all(&likely);
        let found = keys.iter().zip(likely).zip(there).map(|((&key, number), there)| match number {
            NO_KEY => None,
            number if there == key => Some(number),
            _ => self.find(key?),
        });
        found.collect()
    }

    /// The number of `key`, a new one if it is new.
    pub(super) fn number(&mut self, key: Key<'_>) -> u32 {
        if let Some(number) = self.find(key) {
            return number;
        }
        let number = self.len() as u32;
        match (&mut self.values, key) {
            (Values::Texts(texts), Key::Text(text)) => texts.push(Some(text)),
            (Values::Numbers(_, numbers), Key::Number(value)) => numbers.push(value),
            // Never: a column has one type.
            _ => return NO_KEY,
        }
        let (hash, values) = (self.hash, &self.values);
        self.numbers.insert_unique(hash(key), number, |&number| values.get(number).map_or(0, hash));
        number
    }

    fn shrink_to_fit(&mut self) {
        match &mut self.values {
            Values::Texts(texts) => texts.shrink_to_fit(),
            Values::Numbers(_, numbers) => numbers.shrink_to_fit(),
        }
        let (hash, values) = (self.hash, &self.values);
        self.numbers.shrink_to_fit(|&number| values.get(number).map_or(0, hash));
    }

    /// See [`crate::pages`]. The hash table has large pages from the start.
    fn collapse(&self) {
        match &self.values {
            Values::Texts(texts) => texts.collapse(),
            Values::Numbers(_, numbers) => pages::collapse(numbers),
        }
    }

    /// The keys of these numbers; null for [`NO_KEY`].
    fn gather(&self, numbers: &[u32]) -> Result<ArrayRef> {
        Ok(match &self.values {
            Values::Texts(texts) => Arc::new(texts.gather(numbers)),
            Values::Numbers(data_type, values) => {
                let array: Int64Array = numbers.iter().map(|&number| values.get(number as usize).copied()).collect();
                cast(&array, data_type)?
            }
        })
    }

    fn bytes(&self) -> usize {
        let values = match &self.values {
            Values::Texts(texts) => texts.bytes(),
            Values::Numbers(_, numbers) => size_of::<i64>() * numbers.capacity(),
        };
        self.numbers.allocation_size() + values
    }
}

/// Stands for the number of a null.
pub(super) const NO_KEY: u32 = NO_ROW;

/// An index over one column. Rows are numbered through the table, keys in the order of their first rows.
pub(super) struct KeyIndex {
    keys: Keys,
    /// By number: where the key's rows begin. One more than there are keys.
    starts: Vec<u32>,
    /// `None` where the table's rows stand in this order, those without a key at the end.
    rows: Option<Vec<u32>>,
}

impl fmt::Debug for KeyIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyIndex({} keys)", self.keys.len())
    }
}

impl KeyIndex {
    /// `number_of_row`: by row, the number of its key among `keys`, or [`NO_KEY`].
    pub(super) fn listed(keys: Keys, number_of_row: &[u32]) -> KeyIndex {
        let (index, mut rows) = Self::ordered(keys, number_of_row);
        rows.truncate(index.keyed_rows());
        rows.shrink_to_fit();
        KeyIndex { rows: Some(rows), ..index }
    }

    /// The index over a table that is put into the index's order, and that order: all rows, by number of their key.
    pub(super) fn ordered(mut keys: Keys, number_of_row: &[u32]) -> (KeyIndex, Vec<u32>) {
        keys.shrink_to_fit();
        let (starts, rows) = rows_by_number(number_of_row, keys.len());
        (KeyIndex { keys, starts, rows: None }, rows)
    }

    /// For each of `probes`, which are of the key's type: where the rows of the key that equals it are listed; `None` if
    /// no key does.
    pub(super) fn find(&self, probes: &ArrayRef) -> Result<Vec<Option<Range<u32>>>> {
        if probes.data_type() != self.keys.data_type() {
            return exec_err!("the index is over {}, not {}", self.keys.data_type(), probes.data_type());
        }
        let mut keys = Vec::with_capacity(probes.len());
        each_key(probes, |key| keys.push(key))?;
        let numbers = self.keys.find_all(&keys).into_iter();
        Ok(numbers.map(|number| number.map(|number| self.places(number))).collect())
    }

    /// Where the rows of the key `number` are listed.
    fn places(&self, number: u32) -> Range<u32> {
        self.starts[number as usize]..self.starts[number as usize + 1]
    }

    /// Of a table that stands in this index's order and has so many rows: those of each key, and at last those without.
    pub(super) fn groups(&self, rows: usize) -> impl Iterator<Item = Range<usize>> {
        let keyed = self.starts.windows(2).map(|ends| ends[0] as usize..ends[1] as usize);
        keyed.chain(std::iter::once(self.keyed_rows()..rows))
    }

    /// The index itself, of a table that is still being made: nobody else has it yet.
    pub(super) fn unshared(index: Arc<KeyIndex>) -> Result<KeyIndex> {
        Arc::into_inner(index).ok_or_else(|| internal_datafusion_err!("the table is in use already"))
    }

    /// The index once these rows, in ascending order, have left the table that stands in its order. A key keeps one.
    pub(super) fn without(mut self, rows: &[u32]) -> KeyIndex {
        let mut gone = 0;
        for start in &mut self.starts {
            while rows.get(gone).is_some_and(|row| *row < *start) {
                gone += 1;
            }
            *start -= gone as u32;
        }
        self
    }

    /// The keys, and the number of each row's, of a table that stands in this index's order and has so many rows.
    pub(super) fn into_numbers(self, rows: usize) -> (Keys, Vec<u32>) {
        let mut numbers = Vec::with_capacity(rows);
        for (number, ends) in (0..).zip(self.starts.windows(2)) {
            numbers.resize(ends[1] as usize, number);
        }
        numbers.resize(rows, NO_KEY);
        (self.keys, numbers)
    }

    /// Adds the rows at `places` to `rows`.
    pub(super) fn list(&self, places: Range<u32>, rows: &mut Vec<u32>) {
        match &self.rows {
            Some(listed) => rows.extend_from_slice(&listed[places.start as usize..places.end as usize]),
            None => rows.extend(places),
        }
    }

    /// The keys of `rows` of a table that stands in this index's order; null for [`NO_ROW`].
    pub(super) fn gather(&self, rows: &[u32]) -> Result<ArrayRef> {
        let (mut number, mut places) = (NO_KEY, 0..0);
        let numbers = rows.iter().map(|&row| {
            if !places.contains(&row) {
                let place = self.starts.partition_point(|&start| start <= row);
                (number, places) = match place == self.starts.len() {
                    true => (NO_KEY, 0..0),
                    false => (place as u32 - 1, self.places(place as u32 - 1)),
                };
            }
            number
        });
        self.keys.gather(&numbers.collect::<Vec<_>>())
    }

    /// Rows that have a key.
    fn keyed_rows(&self) -> usize {
        self.starts.last().map_or(0, |&end| end as usize)
    }

    /// See [`crate::pages`].
    pub(super) fn collapse(&self) {
        self.keys.collapse();
        pages::collapse(&self.starts);
        self.rows.iter().for_each(|rows| pages::collapse(rows));
    }

    /// Memory held, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let rows = self.rows.as_ref().map_or(0, Vec::capacity);
        self.keys.bytes() + size_of::<u32>() * (self.starts.capacity() + rows)
    }
}

/// Sorts rows by the number of their key, by counting: where each number's rows start, and the rows, those without a
/// key at the end.
fn rows_by_number(number_of_row: &[u32], numbers: usize) -> (Vec<u32>, Vec<u32>) {
    // Two places further, so that each start can move on to the next one while rows are put.
    let mut starts = vec![0u32; numbers + 2];
    let place_of = |number: u32| (number as usize).min(numbers);
    for &number in number_of_row.iter().filter(|&&number| number != NO_KEY) {
        starts[number as usize + 2] += 1;
    }
    (2..starts.len()).for_each(|number| starts[number] += starts[number - 1]);
    let mut rows = vec![0; number_of_row.len()];
    for (row, &number) in number_of_row.iter().enumerate() {
        let place = &mut starts[place_of(number) + 1];
        rows[*place as usize] = row as u32;
        *place += 1;
    }
    starts.truncate(numbers + 1);
    (starts, rows)
}

#[cfg(test)]
mod tests {
    use arrow::array::{StringViewArray, new_null_array};

    use super::*;

    fn strings(values: &[Option<&str>]) -> ArrayRef {
        Arc::new(StringViewArray::from_iter(values.iter().copied()))
    }

    fn numbers(values: &[Option<i64>]) -> ArrayRef {
        Arc::new(Int64Array::from(values.to_vec()))
    }

    fn number_all(mut keys: Keys, column: &[ArrayRef]) -> (Keys, Vec<u32>) {
        let mut numbers = Vec::new();
        let mut number = |key: Option<Key<'_>>| numbers.push(key.map_or(NO_KEY, |key| keys.number(key)));
        column.iter().for_each(|array| each_key(array, &mut number).expect("keys"));
        (keys, numbers)
    }

    fn found(index: &KeyIndex, probes: &ArrayRef) -> Vec<Option<Vec<u32>>> {
        let rows = |places| {
            let mut rows = Vec::new();
            index.list(places, &mut rows);
            rows
        };
        index.find(probes).expect("places").into_iter().map(|places| places.map(rows)).collect()
    }

    /// What is found of `probes`, as rows of `column`, by both kinds of index.
    fn both(keys: impl Fn() -> Keys, column: &[ArrayRef], probes: &ArrayRef) -> Vec<Option<Vec<u32>>> {
        let (listed, number_of_row) = number_all(keys(), column);
        let listed = found(&KeyIndex::listed(listed, &number_of_row), probes);
        let (ordered, order) = KeyIndex::ordered(number_all(keys(), column).0, &number_of_row);
        let as_they_came = |rows: Vec<u32>| rows.into_iter().map(|row| order[row as usize]).collect();
        let by_order: Vec<_> = found(&ordered, probes).into_iter().map(|rows| rows.map(as_they_came)).collect();
        assert_eq!(by_order, listed);

        // A table in this order gets its keys back from the index.
        let mut rows: Vec<u32> = (0..order.len() as u32).rev().collect();
        rows.push(NO_ROW);
        let came = column.iter().scan(0, |at, array| Some(std::mem::replace(at, *at + array.len())).zip(Some(array)));
        let came: Vec<_> = came.flat_map(|(_, array)| (0..array.len()).map(move |row| array.slice(row, 1))).collect();
        let gathered = ordered.gather(&rows).expect("keys");
        assert!(gathered.is_null(order.len()));
        for (place, &row) in rows.iter().enumerate().take(order.len()) {
            assert_eq!(gathered.slice(place, 1).as_ref(), came[order[row as usize] as usize].as_ref());
        }
        listed
    }

    const LONG: &str = "longer than twelve bytes, a";
    const ID: &str = "0123e456-789a-bcde-f012-3456789abcde";
    const UPPER: &str = "0123E456-789A-BCDE-F012-3456789ABCDE";

    #[test]
    fn rows_of_a_key_are_found_through_all_batches() {
        let column = [
            strings(&[Some("a"), None, Some(LONG), Some("a"), Some(ID)]),
            strings(&[]),
            strings(&[Some(LONG), Some(""), Some("a"), Some(UPPER), Some(ID)]),
        ];
        let other = "longer than twelve bytes, b";
        let probes = strings(&[Some("a"), None, Some("b"), Some(LONG), Some(""), Some(other), Some(UPPER), Some(ID)]);
        let expected =
            [Some(vec![0, 3, 7]), None, None, Some(vec![2, 5]), Some(vec![6]), None, Some(vec![8]), Some(vec![4, 9])];
        assert_eq!(both(|| Keys::new(&DataType::Utf8View).expect("keys"), &column, &probes), expected);
    }

    #[test]
    fn keys_with_one_hash_stay_apart() {
        let keys = |data_type: DataType| move || Keys::with_hash(&data_type, |_| 7).expect("keys");
        let column = [strings(&[Some("a"), Some(LONG), Some(ID)]), strings(&[Some(LONG), Some("a"), None])];
        let probes = strings(&[Some(ID), Some(LONG), Some("a"), Some(UPPER), None]);
        let expected = [Some(vec![2]), Some(vec![1, 3]), Some(vec![0, 4]), None, None];
        assert_eq!(both(keys(DataType::Utf8View), &column, &probes), expected);

        let column = [numbers(&[Some(1), Some(2), None, Some(1)])];
        let expected = [Some(vec![0, 3]), Some(vec![1]), None, Some(vec![0, 3])];
        assert_eq!(both(keys(DataType::Int64), &column, &column[0]), expected);
    }

    #[test]
    fn an_empty_table_has_no_keys_and_another_type_is_refused() {
        let probes = numbers(&[Some(0)]);
        let keys = || Keys::new(&DataType::Int64).expect("keys");
        for column in [vec![], vec![probes.slice(0, 0)], vec![new_null_array(&DataType::Int64, 2)]] {
            assert_eq!(both(keys, &column, &probes), [None]);
        }
        let index = KeyIndex::listed(keys(), &[]);
        assert!(index.find(&strings(&[Some("a")])).is_err());
        assert!(Keys::new(&DataType::Float64).is_err());
    }

    #[test]
    fn small_numbers_keep_their_type() {
        let column: ArrayRef = Arc::new(arrow::array::Int16Array::from(vec![Some(3), None, Some(-3), Some(3)]));
        let keys = || Keys::new(&DataType::Int16).expect("keys");
        assert_eq!(
            both(keys, &[Arc::clone(&column)], &column),
            [Some(vec![0, 3]), None, Some(vec![2]), Some(vec![0, 3])]
        );
    }
}
