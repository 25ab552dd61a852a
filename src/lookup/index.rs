//! The rows of a lookup table by one of its columns: key -> places of its rows, one after the other.
//!
//! What this promises: finding a key costs the same in a table of ten rows and of ten million, its rows are listed in
//! the table's order, a null is no key, and two keys with one hash stay two keys. What it does not do: it holds no
//! rows, only their numbers; ten million rows of a thousand keys take 40 MB.

use std::fmt;

use arrow::array::{Array, ArrayRef, PrimitiveArray, StringViewArray, new_empty_array};
use arrow::compute::interleave;
use arrow::datatypes::{ArrowPrimitiveType, DataType, Int16Type, Int32Type, Int64Type};
use datafusion::common::hash_utils::{RandomState, create_hashes};
use datafusion::common::{Result, exec_datafusion_err, exec_err};
use hashbrown::HashTable;

/// Whether a column of this type can be a key.
pub(super) fn is_key_type(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8View | DataType::Int16 | DataType::Int32 | DataType::Int64)
}

/// One hash per row; what it gives for nulls does not matter.
type Hash = fn(&ArrayRef) -> Result<Vec<u64>>;

/// An index over one column. Rows are numbered through all batches of the table, keys in the order of their first rows.
pub(super) struct KeyIndex {
    /// By hash: the number of the key.
    numbers: HashTable<u32>,
    /// By number: the key. Shares the strings of the table.
    keys: ArrayRef,
    /// By number: where the key's rows begin in `rows`. One more than there are keys.
    starts: Vec<u32>,
    rows: Vec<u32>,
    hash: Hash,
}

impl fmt::Debug for KeyIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyIndex({} keys, {} rows)", self.keys.len(), self.rows.len())
    }
}

impl KeyIndex {
    /// `column`: the key column of each batch, all of one type that [`is_key_type`] knows.
    pub(super) fn build(data_type: &DataType, column: &[ArrayRef]) -> Result<KeyIndex> {
        Self::build_with(data_type, column, |keys| {
            let mut hashes = vec![0; keys.len()];
            create_hashes([keys], &RandomState::with_seed(0), &mut hashes)?;
            Ok(hashes)
        })
    }

    fn build_with(data_type: &DataType, column: &[ArrayRef], hash: Hash) -> Result<KeyIndex> {
        match data_type {
            DataType::Utf8View => build::<StringViewArray>(data_type, column, hash),
            DataType::Int16 => build::<PrimitiveArray<Int16Type>>(data_type, column, hash),
            DataType::Int32 => build::<PrimitiveArray<Int32Type>>(data_type, column, hash),
            DataType::Int64 => build::<PrimitiveArray<Int64Type>>(data_type, column, hash),
            other => exec_err!("no index over a column of type {other}"),
        }
    }

    /// For each of `probes`, which are of the key's type: the number of the key that equals it.
    pub(super) fn find(&self, probes: &ArrayRef) -> Result<Vec<Option<u32>>> {
        if probes.data_type() != self.keys.data_type() {
            return exec_err!("the index is over {}, not {}", self.keys.data_type(), probes.data_type());
        }
        let hashes = (self.hash)(probes)?;
        match probes.data_type() {
            DataType::Utf8View => self.find_typed::<StringViewArray>(probes, &hashes),
            DataType::Int16 => self.find_typed::<PrimitiveArray<Int16Type>>(probes, &hashes),
            DataType::Int32 => self.find_typed::<PrimitiveArray<Int32Type>>(probes, &hashes),
            DataType::Int64 => self.find_typed::<PrimitiveArray<Int64Type>>(probes, &hashes),
            other => exec_err!("no index over a column of type {other}"),
        }
    }

    fn find_typed<A: Keys>(&self, probes: &ArrayRef, hashes: &[u64]) -> Result<Vec<Option<u32>>> {
        let (probes, keys) = (A::of(probes)?, A::of(&self.keys)?);
        let find = |(row, &hash): (usize, &u64)| {
            let same = |&number: &u32| probes.same(row, keys, number as usize);
            if probes.is_null(row) { None } else { self.numbers.find(hash, same).copied() }
        };
        Ok(hashes.iter().enumerate().map(find).collect())
    }

    /// The rows of the key `number`: never none, ascending.
    pub(super) fn rows(&self, number: u32) -> &[u32] {
        let number = number as usize;
        &self.rows[self.starts[number] as usize..self.starts[number + 1] as usize]
    }

    /// Memory held, in bytes, without the strings, which are the table's.
    pub(super) fn bytes(&self) -> u64 {
        let (numbers, views) = (self.numbers.allocation_size(), size_of::<u128>() * self.keys.len());
        (numbers + views + size_of::<u32>() * (self.starts.capacity() + self.rows.capacity())) as u64
    }
}

/// An array of keys. Both rows that [`Keys::same`] compares hold values.
trait Keys: Array + Sized + 'static {
    fn of(array: &ArrayRef) -> Result<&Self> {
        let found = array.as_any().downcast_ref();
        found.ok_or_else(|| exec_datafusion_err!("a key column is of type {}", array.data_type()))
    }

    fn same(&self, row: usize, others: &Self, other: usize) -> bool;
}

impl Keys for StringViewArray {
    fn same(&self, row: usize, others: &Self, other: usize) -> bool {
        self.value(row) == others.value(other)
    }
}

impl<T: ArrowPrimitiveType<Native: Eq>> Keys for PrimitiveArray<T> {
    fn same(&self, row: usize, others: &Self, other: usize) -> bool {
        self.value(row) == others.value(other)
    }
}

/// A key's hash, and batch and row of where it was first seen.
struct First {
    hash: u64,
    batch: usize,
    row: usize,
}

/// Stands for the number of a null.
const NO_KEY: u32 = u32::MAX;

fn build<A: Keys>(data_type: &DataType, column: &[ArrayRef], hash: Hash) -> Result<KeyIndex> {
    let total: usize = column.iter().map(|keys| keys.len()).sum();
    if total >= NO_KEY as usize {
        return exec_err!("{total} rows are too many for an index");
    }
    let typed = column.iter().map(A::of).collect::<Result<Vec<_>>>()?;
    let mut numbers = HashTable::new();
    let mut firsts: Vec<First> = Vec::new();
    let mut number_of_row = Vec::with_capacity(total);
    for (batch, (keys, array)) in typed.iter().zip(column).enumerate() {
        for (row, hash) in hash(array)?.into_iter().enumerate() {
            if keys.is_null(row) {
                number_of_row.push(NO_KEY);
                continue;
            }
            let same = |&number: &u32| {
                let first = &firsts[number as usize];
                first.hash == hash && keys.same(row, typed[first.batch], first.row)
            };
            let number = numbers.find(hash, same).copied().unwrap_or_else(|| {
                let number = firsts.len() as u32;
                numbers.insert_unique(hash, number, |&number| firsts[number as usize].hash);
                firsts.push(First { hash, batch, row });
                number
            });
            number_of_row.push(number);
        }
    }
    numbers.shrink_to_fit(|&number| firsts[number as usize].hash);
    let keys = first_keys(data_type, column, &firsts)?;
    let (starts, rows) = rows_by_number(&number_of_row, firsts.len());
    Ok(KeyIndex { numbers, keys, starts, rows, hash })
}

fn first_keys(data_type: &DataType, column: &[ArrayRef], firsts: &[First]) -> Result<ArrayRef> {
    if firsts.is_empty() {
        return Ok(new_empty_array(data_type));
    }
    let arrays: Vec<&dyn Array> = column.iter().map(|keys| keys.as_ref()).collect();
    let places: Vec<_> = firsts.iter().map(|first| (first.batch, first.row)).collect();
    Ok(interleave(&arrays, &places)?)
}

/// Sorts rows by the number of their key, by counting: where each number's rows start, and the rows.
fn rows_by_number(number_of_row: &[u32], numbers: usize) -> (Vec<u32>, Vec<u32>) {
    let mut starts = vec![0u32; numbers + 1];
    let keyed = || number_of_row.iter().enumerate().filter(|&(_, &number)| number != NO_KEY);
    keyed().for_each(|(_, &number)| starts[number as usize + 1] += 1);
    for number in 0..numbers {
        starts[number + 1] += starts[number];
    }
    let mut next = starts.clone();
    let mut rows = vec![0; starts[numbers] as usize];
    for (row, &number) in keyed() {
        let place = &mut next[number as usize];
        rows[*place as usize] = row as u32;
        *place += 1;
    }
    (starts, rows)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, new_null_array};

    use super::*;

    fn strings(values: &[Option<&str>]) -> ArrayRef {
        Arc::new(StringViewArray::from_iter(values.iter().copied()))
    }

    fn found<'a>(index: &'a KeyIndex, probes: &ArrayRef) -> Vec<Option<&'a [u32]>> {
        let numbers = index.find(probes).expect("numbers");
        numbers.into_iter().map(|number| number.map(|number| index.rows(number))).collect()
    }

    const LONG: &str = "longer than twelve bytes, a";

    #[test]
    fn rows_of_a_key_are_found_through_all_batches() {
        let column = [
            strings(&[Some("a"), None, Some(LONG), Some("a")]),
            strings(&[]),
            strings(&[Some(LONG), Some(""), Some("a")]),
        ];
        let index = KeyIndex::build(&DataType::Utf8View, &column).expect("an index");
        let probes = strings(&[Some("a"), None, Some("b"), Some(LONG), Some(""), Some("longer than twelve bytes, b")]);
        let expected: [Option<&[u32]>; 6] = [Some(&[0, 3, 6]), None, None, Some(&[2, 4]), Some(&[5]), None];
        assert_eq!(found(&index, &probes), expected);
    }

    #[test]
    fn keys_with_one_hash_stay_apart() {
        let one_hash = |keys: &ArrayRef| Ok(vec![7; keys.len()]);
        let column = [strings(&[Some("a"), Some(LONG), Some("c")]), strings(&[Some(LONG), Some("a"), None])];
        let index = KeyIndex::build_with(&DataType::Utf8View, &column, one_hash).expect("an index");
        let probes = strings(&[Some("c"), Some(LONG), Some("a"), Some("d"), None]);
        assert_eq!(found(&index, &probes), [Some(&[2u32][..]), Some(&[1, 3]), Some(&[0, 4]), None, None]);

        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), Some(2), None, Some(1)]));
        let index = KeyIndex::build_with(&DataType::Int64, &[Arc::clone(&numbers)], one_hash).expect("an index");
        assert_eq!(found(&index, &numbers), [Some(&[0u32, 3][..]), Some(&[1]), None, Some(&[0, 3])]);
    }

    #[test]
    fn an_empty_table_has_no_keys_and_another_type_is_refused() {
        let probes: ArrayRef = Arc::new(Int64Array::from(vec![0]));
        for column in [vec![], vec![probes.slice(0, 0)], vec![new_null_array(&DataType::Int64, 2)]] {
            let index = KeyIndex::build(&DataType::Int64, &column).expect("an index");
            assert_eq!(found(&index, &probes), [None]);
        }
        let index = KeyIndex::build(&DataType::Int64, &[]).expect("an index");
        assert!(index.find(&strings(&[Some("a")])).is_err());
        assert!(KeyIndex::build(&DataType::Float64, &[]).is_err());
    }
}
