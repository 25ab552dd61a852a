use std::collections::HashSet;

use arrow::array::Array;
use arrow::compute::concat_batches;
use arrow::datatypes::{Date32Type, Int32Type, TimestampMicrosecondType};
use proptest::prelude::*;

use super::*;

fn columns() -> Vec<(String, Type)> {
    let kinds = [Type::VARCHAR, Type::INT4, Type::UUID, Type::BOOL, Type::DATE, Type::TIMESTAMPTZ];
    kinds.into_iter().enumerate().map(|(i, kind)| (format!("c{i}"), kind)).collect()
}

fn field(stream: &mut Vec<u8>, value: Option<&[u8]>) {
    stream.extend(value.map_or(-1, |value| value.len() as i32).to_be_bytes());
    stream.extend(value.unwrap_or_default());
}

fn stream(rows: usize) -> Vec<u8> {
    let mut stream = SIGNATURE.to_vec();
    stream.extend([0; 4]);
    stream.extend(3u32.to_be_bytes());
    stream.extend([1, 2, 3]);
    for row in 0..rows {
        stream.extend(6i16.to_be_bytes());
        field(&mut stream, Some(format!("the restaurant {}", row % 2).as_bytes()));
        field(&mut stream, (row % 2 == 0).then_some(&(row as i32).to_be_bytes()));
        field(&mut stream, Some(&[7; 16]));
        field(&mut stream, Some(&[1]));
        field(&mut stream, Some(&1i32.to_be_bytes()));
        field(&mut stream, Some(&(-1i64).to_be_bytes()));
    }
    stream.extend((-1i16).to_be_bytes());
    stream
}

#[test]
fn the_same_rows_wherever_the_stream_is_cut() {
    let stream = stream(3);
    let decode = |size: usize, key: Option<usize>| {
        let mut decoder = CopyDecoder::new(&columns(), key).expect("known types");
        stream.chunks(size).for_each(|chunk| decoder.feed(chunk).expect("a good stream"));
        decoder.check_end().expect("a whole stream");
        let table = Arc::new(decoder.table("t").expect("a table"));
        table.scan().collect::<Result<Vec<_>, _>>().expect("rows")
    };
    let whole = decode(stream.len(), None);
    for size in 1..40 {
        assert_eq!(decode(size, None), whole, "chunks of {size}");
        assert_eq!(decode(size, Some(2)), whole, "in the order of a key that all rows have");
    }
    let by_name = decode(stream.len(), Some(0));
    assert_eq!(
        by_name[0].column(0).as_string_view().iter().map(Option::unwrap).collect::<Vec<_>>().join(", "),
        "the restaurant 0, the restaurant 0, the restaurant 1"
    );
    assert_eq!(by_name[0].column(1).as_primitive::<Int32Type>().iter().collect::<Vec<_>>(), [Some(0), Some(2), None]);
    let by_number = decode(stream.len(), Some(1));
    assert_eq!(by_number[0].column(1).as_primitive::<Int32Type>().iter().collect::<Vec<_>>(), [Some(0), Some(2), None]);
    let [batch] = whole.as_slice() else { panic!("{} batches", whole.len()) };
    assert_eq!(batch.column(0).as_string_view().value(2), "the restaurant 0");
    let numbers = batch.column(1).as_primitive::<Int32Type>();
    assert_eq!(numbers.iter().collect::<Vec<_>>(), [Some(0), None, Some(2)]);
    assert_eq!(batch.column(2).as_string_view().value(0), "07070707-0707-0707-0707-070707070707");
    assert_eq!(batch.column(4).as_primitive::<Date32Type>().value(0), 10_958);
    assert_eq!(batch.column(5).as_primitive::<TimestampMicrosecondType>().value(0), 946_684_799_999_999);
}

#[test]
fn no_length_is_trusted_and_no_byte_makes_it_panic() {
    let good = stream(2);
    for at in 0..good.len() {
        for byte in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] = byte;
            for key in [None, Some(0), Some(1), Some(2)] {
                let mut decoder = CopyDecoder::new(&columns(), key).expect("known types");
                if decoder.feed(&bad).and_then(|()| decoder.check_end()).is_ok() {
                    let table = Arc::new(decoder.table("t").expect("a table"));
                    assert_eq!(table.scan().map(|batch| batch.expect("rows").num_rows()).sum::<usize>(), 2);
                }
            }
        }
        let mut decoder = CopyDecoder::new(&columns(), None).expect("known types");
        let cut = decoder.feed(&good[..at]).and_then(|()| decoder.check_end());
        assert!(cut.is_err(), "a stream that ends after {at} bytes is not whole");
    }
}

#[test]
fn what_has_no_arrow_value_is_refused_by_column_and_row() {
    let columns = [("day".to_owned(), Type::DATE)];
    let mut decoder = CopyDecoder::new(&columns, None).expect("known types");
    let mut stream = SIGNATURE.to_vec();
    stream.extend([0; 8]);
    stream.extend(1i16.to_be_bytes());
    field(&mut stream, Some(&i32::MAX.to_be_bytes()));
    let problem = decoder.feed(&stream).expect_err("infinity");
    assert_eq!(problem, "column day, row 1: an infinite date has no place in Arrow");
}

type Row = (Option<String>, Option<String>, Option<i32>);

fn feed(decoder: &mut CopyDecoder, stream: &[u8]) {
    for chunk in stream.chunks(100) {
        decoder.feed(chunk).expect("a good stream");
        if decoder.is_full() {
            decoder.compact().expect("known columns");
        }
    }
}

/// What a decoder makes of these rows that looks for repeats from `some` of them on, and the bytes of its table.
fn distinct(rows: &[Row], key: usize, some: usize) -> (Vec<Row>, u64) {
    let columns =
        [("a", Type::TEXT), ("b", Type::VARCHAR), ("n", Type::INT4)].map(|(name, kind)| (name.to_owned(), kind));
    let mut decoder = CopyDecoder::new(&columns, Some(key)).expect("known types");
    decoder.remove_repeats(some);
    let mut stream = SIGNATURE.to_vec();
    stream.extend([0; 8]);
    for (a, b, n) in rows {
        stream.extend(3i16.to_be_bytes());
        field(&mut stream, a.as_deref().map(str::as_bytes));
        field(&mut stream, b.as_deref().map(str::as_bytes));
        field(&mut stream, n.map(i32::to_be_bytes).as_ref().map(|number| &number[..]));
    }
    stream.extend((-1i16).to_be_bytes());
    feed(&mut decoder, &stream);
    assert_eq!(decoder.rows(), rows.len() as u64);
    let table = Arc::new(decoder.table("t").expect("a table"));
    let scanned: Vec<_> = table.scan().collect::<Result<_, _>>().expect("rows");
    let all = concat_batches(&table.schema, &scanned).expect("one schema");
    assert_eq!(all.num_rows() as u64, table.rows);
    // Of each row's key just those rows are listed that have it.
    let index = table.built_index(key).expect("an index");
    for (row, places) in index.find(all.column(key)).expect("places").into_iter().enumerate().take(200) {
        let listed: Vec<usize> = places.into_iter().flatten().map(|place| place as usize).collect();
        let cell = all.column(key).slice(row, 1);
        let same = |other: &usize| cell.is_valid(0) && all.column(key).slice(*other, 1).as_ref() == cell.as_ref();
        assert_eq!(listed, (0..all.num_rows()).filter(same).collect::<Vec<_>>(), "row {row}");
    }
    let text = |column: usize, row: usize| {
        let texts = all.column(column).as_string_view();
        texts.is_valid(row).then(|| texts.value(row).to_owned())
    };
    let numbers = all.column(2).as_primitive::<Int32Type>();
    let number = |row: usize| numbers.is_valid(row).then(|| numbers.value(row));
    ((0..all.num_rows()).map(|row| (text(0, row), text(1, row), number(row))).collect(), table.bytes)
}

fn any_row() -> impl Strategy<Value = Row> {
    let ids = ["0123e456-789a-bcde-f012-3456789abcde", "74657874-ffff-ffff-0000-000000000000", "a", "", "an other"];
    let text = move || proptest::option::of(proptest::sample::select(ids.map(str::to_owned).to_vec()));
    (text(), text(), proptest::option::of(0..3i32))
}

proptest! {
    #[test]
    fn every_row_is_there_once_and_in_its_order_among_those_of_its_key(
        rows in proptest::collection::vec(any_row(), 0..200),
        key in prop_oneof![Just(0), Just(2)],
        some in 1..300usize,
    ) {
        let (mut found, _) = distinct(&rows, key, some);
        let mut seen = HashSet::new();
        let mut expected: Vec<Row> = rows.iter().filter(|row| seen.insert(*row)).cloned().collect();
        let keyed = |row: &Row| if key == 0 { row.0.clone() } else { row.2.map(|number| number.to_string()) };
        found.sort_by_key(keyed);
        expected.sort_by_key(keyed);
        prop_assert_eq!(found, expected);
    }
}

/// Texts that are kept once for many rows stay so, and those of rows that repeat go.
#[test]
fn what_repeats_takes_no_room() {
    let row = |restaurant: usize, city: usize| {
        (Some(format!("restaurant {restaurant}")), Some(format!("a city of some length {city}")), None)
    };
    // By city as they come, by restaurant as they are put.
    let once: Vec<Row> = (0..2_000).map(|n| row(n % 50, n / 50 * 7)).collect();
    let (rows, bytes) = distinct(&once, 0, usize::MAX);
    assert_eq!(rows.len(), once.len());
    let few = [once.clone(), once[..50].to_vec()].concat();
    let often: Vec<Row> = (0..5).flat_map(|_| once.clone()).collect();
    let some_each_time: Vec<Row> = once.chunks(300).flat_map(|rows| [rows, &rows[..60]].concat()).collect();
    let seldom = (&some_each_time, 300);
    for (repeated, some) in [seldom, (&few, usize::MAX), (&few, 1_000), (&often, usize::MAX), (&often, 1_000)] {
        let (again, room) = distinct(repeated, 0, some);
        assert!(again == rows && room <= bytes + bytes / 50, "{room} bytes instead of {bytes}");
    }
}

/// Values of every type that may be there go on behind those that are left.
#[test]
fn every_type_goes_on_after_a_look_for_repeats() {
    let kinds = [
        Type::TEXT,
        Type::UUID,
        Type::INT2,
        Type::INT4,
        Type::INT8,
        Type::BOOL,
        Type::DATE,
        Type::TIMESTAMP,
        Type::TIMESTAMPTZ,
    ];
    assert!(kinds.iter().all(is_equal_by_bytes));
    let columns: Vec<_> = (0..).zip(&kinds).map(|(i, kind): (usize, _)| (format!("c{i}"), kind.clone())).collect();
    let mut stream = SIGNATURE.to_vec();
    stream.extend([0; 8]);
    for row in (0..20u8).chain(0..30) {
        stream.extend((kinds.len() as i16).to_be_bytes());
        for len in [20, 16, 2, 4, 8, 1, 4, 8, 8] {
            // Only the last byte tells rows apart: one of a text that is no id, and of a small number.
            let mut value = vec![if len == 20 { b'a' } else { 0 }; len];
            value[len - 1] = if len == 1 { row % 2 } else { row };
            field(&mut stream, (row % 7 != 0 || len == 4).then_some(&value));
        }
    }
    stream.extend((-1i16).to_be_bytes());
    for key in 0..5 {
        let rows_of = |some: usize| {
            let mut decoder = CopyDecoder::new(&columns, Some(key)).expect("known types");
            decoder.remove_repeats(some);
            feed(&mut decoder, &stream);
            let table = Arc::new(decoder.table("t").expect("a table"));
            table.scan().collect::<Result<Vec<_>, _>>().expect("rows")
        };
        let at_the_end = rows_of(usize::MAX);
        assert_eq!(at_the_end.iter().map(|batch| batch.num_rows()).sum::<usize>(), 30);
        assert_eq!(rows_of(5), at_the_end, "by column {key}");
    }
}
