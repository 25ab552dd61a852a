//! What the job makes of a lookup query's answer: COPY BINARY, a row at a time as the client library hands it on, to a table
//! in the order of its key. The server's part of a load is measured by `end_to_end load`.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringViewArray};
use bytes::BytesMut;
use criterion::{Criterion, Throughput};
use dinnerbell::encode::copy::{self, CopyEncoder};
use dinnerbell::lookup::{CopyDecoder, LookupTable, SOME_ROWS};
use tokio_postgres::types::Type;

use crate::largest;
use crate::pipeline::{restaurant, uuid};

const SUBSCRIBERS: usize = 1_000;
const HEADER_BYTES: usize = 19;
/// The number of fields, and two UUIDs as text with their lengths.
const ROW_BYTES: usize = 2 + 2 * (4 + 36);

pub fn bench(criterion: &mut Criterion) {
    for rows in [1_000_000, 10_000_000].into_iter().filter(|&rows| rows <= largest()) {
        let mut group = criterion.benchmark_group(format!("lookup load/{rows} rows"));
        group.sample_size(10).throughput(Throughput::Elements(rows as u64));
        let (once, twice) = (stream(rows, 1), stream(rows, 2));
        group.bench_function("plain", |bench| bench.iter(|| assert_eq!(table(&once, false).rows, rows as u64)));
        group.bench_function("DISTINCT", |bench| bench.iter(|| assert_eq!(table(&once, true).rows, rows as u64)));
        group.bench_function("DISTINCT, each twice", |bench| {
            bench.iter(|| assert_eq!(table(&twice, true).rows, rows as u64 / 2));
        });
    }
}

/// `rows` subscriptions as Postgres sends them, `times` each. Neighbours are of different restaurants.
fn stream(rows: usize, times: usize) -> Vec<u8> {
    let subscriptions = rows / times;
    let restaurants: Vec<String> = (0..subscriptions / SUBSCRIBERS).map(restaurant).collect();
    let mut stream = BytesMut::with_capacity(HEADER_BYTES + rows * ROW_BYTES + 2);
    copy::header(&mut stream);
    let client_ids = StringViewArray::from_iter_values((0..subscriptions).map(|n| uuid(3, n)));
    let restaurant_ids = (0..subscriptions).map(|n| restaurants[n % restaurants.len()].as_str());
    let columns: [(_, ArrayRef); 2] = [
        ("restaurant_id", Arc::new(StringViewArray::from_iter_values(restaurant_ids))),
        ("client_id", Arc::new(client_ids)),
    ];
    let batch = RecordBatch::try_from_iter(columns).expect("two columns of one length");
    let mut encoder = CopyEncoder::new(&batch.schema(), &[Type::TEXT, Type::TEXT]).expect("texts");
    (0..times).for_each(|_| encoder.encode(&batch, &mut stream).expect("texts"));
    copy::trailer(&mut stream);
    assert_eq!(stream.len(), HEADER_BYTES + rows * ROW_BYTES + 2);
    stream.into()
}

/// As the loader does it.
fn table(stream: &[u8], is_distinct: bool) -> LookupTable {
    let columns = ["restaurant_id", "client_id"].map(|name| (name.to_owned(), Type::VARCHAR));
    let mut decoder = CopyDecoder::new(&columns, Some(0)).expect("known types");
    if is_distinct {
        decoder.remove_repeats(SOME_ROWS);
    }
    let (header, rows) = stream.split_at(HEADER_BYTES);
    for chunk in [header].into_iter().chain(rows.chunks(ROW_BYTES)) {
        decoder.feed(chunk).expect("a good stream");
        if decoder.is_full() {
            decoder.compact().expect("columns of known types");
        }
    }
    decoder.check_end().expect("a whole stream");
    decoder.table("subscribers_restaurants").expect("a table")
}
