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
    let decode = |size: usize| {
        let mut decoder = CopyDecoder::new(&columns()).expect("known types");
        stream.chunks(size).for_each(|chunk| decoder.feed(chunk).expect("a good stream"));
        decoder.finish().expect("a whole stream").1
    };
    let whole = decode(stream.len());
    for size in 1..40 {
        assert_eq!(decode(size), whole, "chunks of {size}");
    }
    let [batch] = whole.as_slice() else { panic!("{} batches", whole.len()) };
    assert_eq!(batch.column(0).as_string_view().value(2), "the restaurant 0");
    let numbers = batch.column(1).as_primitive::<Int32Type>();
    assert_eq!(numbers.iter().collect::<Vec<_>>(), [Some(0), None, Some(2)]);
    assert_eq!(batch.column(2).as_string_view().value(0), "07070707-0707-0707-0707-070707070707");
    assert_eq!(batch.column(4).as_primitive::<Date32Type>().value(0), 10_958);
    assert_eq!(batch.column(5).as_primitive::<TimestampMicrosecondType>().value(0), 946_684_799_999_999);
}

#[test]
fn batches_are_cut_and_repeated_strings_kept_once() {
    let mut decoder = CopyDecoder::new(&columns()).expect("known types");
    decoder.feed(&stream(TABLE_BATCH_ROWS + 1)).expect("a good stream");
    let (_, batches) = decoder.finish().expect("a whole stream");
    assert_eq!(batches.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [TABLE_BATCH_ROWS, 1]);
    assert_eq!(kept_bytes(batches[0].column(0).as_string_view()), 2 * "the restaurant 0".len());
}

#[test]
fn no_length_is_trusted_and_no_byte_makes_it_panic() {
    let good = stream(2);
    for at in 0..good.len() {
        for byte in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] = byte;
            let mut decoder = CopyDecoder::new(&columns()).expect("known types");
            let _ = decoder.feed(&bad).and_then(|()| decoder.finish().map(drop));
        }
        let mut decoder = CopyDecoder::new(&columns()).expect("known types");
        let cut = decoder.feed(&good[..at]).and_then(|()| decoder.finish().map(drop));
        assert!(cut.is_err(), "a stream that ends after {at} bytes is not whole");
    }
}

#[test]
fn what_has_no_arrow_value_is_refused_by_column_and_row() {
    let columns = [("day".to_owned(), Type::DATE)];
    let mut decoder = CopyDecoder::new(&columns).expect("known types");
    let mut stream = SIGNATURE.to_vec();
    stream.extend([0; 8]);
    stream.extend(1i16.to_be_bytes());
    field(&mut stream, Some(&i32::MAX.to_be_bytes()));
    let problem = decoder.feed(&stream).expect_err("infinity");
    assert_eq!(problem, "column day, row 1: an infinite date has no place in Arrow");
}
