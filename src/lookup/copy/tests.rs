use arrow::array::AsArray;
use arrow::datatypes::{Date32Type, Int32Type, TimestampMicrosecondType};

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
