use arrow::array::{Int32Array, StringArray, StringViewArray, UInt32Array};
use futures::SinkExt;
use proptest::prelude::*;

use super::*;
use crate::encode::conform::Conform;
use crate::encode::samples;
use crate::sink::table::describe;
use crate::testdb::TestDb;

/// Reads the format as its description has it: header, rows of counted fields, trailer, nothing after.
fn parse(mut bytes: &[u8]) -> Vec<Vec<Option<Vec<u8>>>> {
    fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
        bytes.split_off(..count).expect("cut short")
    }
    let i16_of = |bytes: &mut &[u8]| i16::from_be_bytes(take(bytes, 2).try_into().unwrap());
    let i32_of = |bytes: &mut &[u8]| i32::from_be_bytes(take(bytes, 4).try_into().unwrap());
    assert_eq!(take(&mut bytes, 11), b"PGCOPY\n\xff\r\n\0");
    assert_eq!((i32_of(&mut bytes), i32_of(&mut bytes)), (0, 0));
    let mut rows = Vec::new();
    loop {
        match i16_of(&mut bytes) {
            -1 => break,
            fields => rows.push(
                (0..fields)
                    .map(|_| match i32_of(&mut bytes) {
                        -1 => None,
                        length => Some(take(&mut bytes, length as usize).to_vec()),
                    })
                    .collect(),
            ),
        }
    }
    assert!(bytes.is_empty(), "{} bytes behind the trailer", bytes.len());
    rows
}

fn copy(batches: &[RecordBatch], types: &[Type]) -> (Vec<usize>, Vec<u8>) {
    let mut encoder = CopyEncoder::new(batches[0].schema_ref(), types).unwrap();
    let (mut out, mut all, mut sizes) = (BytesMut::new(), Vec::new(), Vec::new());
    header(&mut out);
    for batch in batches {
        for chunk in encoder.chunks(batch, &mut out).unwrap() {
            let chunk = chunk.unwrap();
            sizes.push(chunk.len());
            all.extend_from_slice(&chunk);
        }
    }
    trailer(&mut out);
    sizes.push(out.len());
    all.extend_from_slice(&out);
    (sizes, all)
}

/// The bytes that Postgres reads for each value, computed without pgpq.
fn reference(row: &samples::Row) -> Vec<Option<Vec<u8>>> {
    let ((a, b, bytes, truth), (int2, int4, int8, float4, float8), (date, time, micros, _)) = row;
    vec![
        a.as_ref().map(|it| it.as_bytes().to_vec()),
        b.as_ref().map(|it| it.as_bytes().to_vec()),
        bytes.clone(),
        truth.map(|it| vec![u8::from(it)]),
        int2.map(|it| it.to_be_bytes().to_vec()),
        int4.map(|it| it.to_be_bytes().to_vec()),
        int8.map(|it| it.to_be_bytes().to_vec()),
        float4.map(|it| it.to_be_bytes().to_vec()),
        float8.map(|it| it.to_be_bytes().to_vec()),
        // Postgres counts from 2000-01-01, 10957 days after 1970-01-01.
        date.map(|it| (it - 10_957).to_be_bytes().to_vec()),
        time.map(|it| it.to_be_bytes().to_vec()),
        micros.map(|it| (it - 10_957 * 86_400_000_000).to_be_bytes().to_vec()),
    ]
}

proptest! {
    #[test]
    fn every_type_is_written_as_postgres_reads_it(rows in samples::rows()) {
        // numeric is left to the test with the real server.
        let batch = samples::batch(&rows).project(&(0..12).collect::<Vec<_>>()).unwrap();
        let types = vec![Type::TEXT; 12];
        let (_, bytes) = copy(&[batch], &types);
        prop_assert_eq!(parse(&bytes), rows.iter().map(reference).collect::<Vec<_>>());
    }
}

proptest! {
    /// Fan-outs of any length, whose rows differ in texts and nulls, between rows that differ in everything.
    #[test]
    fn a_fan_out_is_written_as_its_rows_are(
        rows in samples::rows(),
        runs in proptest::collection::vec((0..30usize, proptest::option::of("[a-z]{0,20}"), any::<bool>()), 0..12),
    ) {
        let mut all = Vec::new();
        for (row, (times, text, both)) in rows.iter().zip(runs) {
            for time in 0..times {
                let mut row = row.clone();
                row.0.0 = text.as_ref().filter(|_| time % 5 != 3).map(|text| format!("{text}{time}"));
                if both && time % 2 == 1 {
                    row.0.1 = None;
                }
                all.push(row);
            }
            all.push(row.clone());
        }
        let batch = samples::batch(&all).project(&(0..12).collect::<Vec<_>>()).unwrap();
        let (_, bytes) = copy(&[batch], &vec![Type::TEXT; 12]);
        prop_assert_eq!(parse(&bytes), all.iter().map(reference).collect::<Vec<_>>());
    }
}

/// After each of them as the row that is repeated: of the same length, shorter, longer, empty, none.
#[test]
fn texts_take_the_place_of_any_other() {
    let texts = [Some("abc"), Some("xyz"), Some("a"), Some("abcdefghijklmnopqrst"), Some(""), None];
    for first in texts {
        let clients: Vec<_> = [first].into_iter().chain(texts).chain(texts).collect();
        // Short, so that its views are equal, as a campaign's are.
        let contents = StringViewArray::from_iter_values(vec!["one text"; clients.len()]);
        let batch = RecordBatch::try_from_iter_with_nullable([
            ("client", Arc::new(StringViewArray::from(clients.clone())) as ArrayRef, true),
            ("content", Arc::new(contents) as ArrayRef, true),
        ]);
        let (_, bytes) = copy(&[batch.unwrap()], &[Type::TEXT, Type::TEXT]);
        let cell = |text: &str| text.as_bytes().to_vec();
        let row = |text: &Option<&str>| vec![text.map(cell), Some(cell("one text"))];
        assert_eq!(parse(&bytes), clients.iter().map(row).collect::<Vec<_>>(), "after {first:?}");
    }
}

/// A fan-out of texts in which a number changes, far to the right.
#[test]
fn more_columns_than_a_word_has_bits() {
    let text = |row: i32, column: i32| if column % 33 == 0 { format!("{row:02}") } else { column.to_string() };
    let columns = (0..70).map(|column| {
        let array: ArrayRef = match column {
            68 => Arc::new(Int32Array::from_iter_values((0..30).map(|row| row / 10))),
            _ => Arc::new(StringViewArray::from_iter_values((0..30).map(|row| text(row, column)))),
        };
        (format!("c{column}"), array)
    });
    let types: Vec<Type> = (0..70).map(|column| if column == 68 { Type::INT4 } else { Type::TEXT }).collect();
    let (_, bytes) = copy(&[RecordBatch::try_from_iter(columns).unwrap()], &types);
    let cell = |row: i32, column| match column {
        68 => Some((row / 10).to_be_bytes().to_vec()),
        _ => Some(text(row, column).into_bytes()),
    };
    let rows: Vec<Vec<_>> = (0..30).map(|row| (0..70).map(|column| cell(row, column)).collect()).collect();
    assert_eq!(parse(&bytes), rows);
}

#[test]
fn json_and_uuid_columns_have_their_own_form() {
    let texts =
        || Arc::new(StringViewArray::from(vec![Some("123e4567-e89b-12d3-a456-426614174000"), None])) as ArrayRef;
    let names = ["text", "jsonb", "json", "uuid"];
    let batch = RecordBatch::try_from_iter_with_nullable(names.map(|name| (name, texts(), true))).unwrap();
    let (_, bytes) = copy(&[batch], &[Type::TEXT, Type::JSONB, Type::JSON, Type::UUID]);
    let text = b"123e4567-e89b-12d3-a456-426614174000".to_vec();
    let uuid = 0x123e4567e89b12d3a456426614174000u128.to_be_bytes().to_vec();
    let first = vec![Some(text.clone()), Some([&b"\x01"[..], &text].concat()), Some(text), Some(uuid)];
    assert_eq!(parse(&bytes), [first, vec![None; 4]]);
}

#[test]
fn chunks_fill_up_across_batches_and_stay_near_their_size() {
    let batch = samples::fan_out(3, 10_000);
    let small: Vec<RecordBatch> = (0..300).map(|part| batch.slice(part * 100, 100)).collect();
    let (sizes, bytes) = copy(&small, &vec![Type::TEXT; 4]);
    assert_eq!(parse(&bytes).len(), 30_000);
    let (last, full) = sizes.split_last().unwrap();
    assert!(full.len() > 5, "{sizes:?}");
    assert!(full.iter().all(|size| (CHUNK..=CHUNK + STEP).contains(size)), "{sizes:?}");
    assert!(*last < CHUNK + STEP, "{sizes:?}");
    assert_eq!(copy(&[batch], &vec![Type::TEXT; 4]).1, bytes);
}

#[test]
fn chunks_are_the_rows_as_they_are_written_at_once() {
    let batch = samples::fan_out(40, 300);
    // Fan-outs, rows apart, and fan-outs again, of several chunks each: every kind of row is cut somewhere.
    let apart = UInt32Array::from_iter_values((0..9000).map(|row| row * 301 % 12_000));
    let apart = arrow::compute::take_record_batch(&batch, &apart).unwrap();
    let mixed = arrow::compute::concat_batches(batch.schema_ref(), [&batch, &apart, &batch]).unwrap();
    let (types, mut whole) = (vec![Type::TEXT; 4], BytesMut::new());
    header(&mut whole);
    CopyEncoder::new(batch.schema_ref(), &types).unwrap().encode(&mixed, &mut whole).unwrap();
    trailer(&mut whole);
    let (sizes, bytes) = copy(&[mixed], &types);
    assert!(sizes.len() > 10, "{sizes:?}");
    assert_eq!(bytes, whole);
}

#[test]
fn large_rows_make_chunks_of_a_few_rows() {
    let texts = StringViewArray::from_iter_values((0..400).map(|row| "x".repeat(if row < 200 { 10 } else { 100_000 })));
    let batch = RecordBatch::try_from_iter([("t", Arc::new(texts) as ArrayRef)]).unwrap();
    let (sizes, bytes) = copy(&[batch], &[Type::TEXT]);
    assert_eq!(parse(&bytes).len(), 400);
    assert!(sizes.iter().all(|size| *size <= CHUNK + STEP + 100_000), "{sizes:?}");
}

#[test]
fn a_batch_of_another_schema_is_an_error() {
    let batch = RecordBatch::try_from_iter([("a", Arc::new(Int32Array::from(vec![1])) as ArrayRef)]).unwrap();
    let other = RecordBatch::try_from_iter([("a", Arc::new(StringArray::from(vec!["1"])) as ArrayRef)]).unwrap();
    let mut encoder = CopyEncoder::new(batch.schema_ref(), &[Type::INT4]).unwrap();
    let error = encoder.encode(&other, &mut BytesMut::new()).unwrap_err();
    assert!(error.to_string().starts_with("encoding rows for COPY: "), "{error}");
}

#[tokio::test]
async fn postgres_reads_what_was_conformed() {
    let db = TestDb::start().await;
    let ddl = "CREATE TYPE mood AS ENUM ('glad', 'sad'); CREATE DOMAIN code AS varchar(8) NOT NULL;
               CREATE TABLE t (id serial4 PRIMARY KEY, \"odd \"\"name\" text, code code, int2 int2, int4 int4 NOT NULL, small numeric(6,2),
                 big numeric, at timestamptz, local timestamp, day date, doc jsonb, who uuid, mood mood, fee varchar NULL)";
    db.client.batch_execute(ddl).await.unwrap();
    let texts = |values: [&str; 2]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let decimals = |values: [i128; 2], scale| {
        let array = arrow::array::Decimal128Array::from(values.to_vec()).with_precision_and_scale(30, scale).unwrap();
        Arc::new(array) as ArrayRef
    };
    let nanos = || arrow::array::TimestampNanosecondArray::from(vec![Some(1_659_261_600_123_456_789), None]);
    let batch = RecordBatch::try_from_iter_with_nullable([
        ("odd \"name", texts(["plain", "\"é\n\\"]), true),
        ("code", texts(["a", "b"]), true),
        ("int2", Arc::new(arrow::array::Int64Array::from(vec![Some(-32_768), None])), true),
        ("int4", Arc::new(arrow::array::UInt64Array::from(vec![0, 2_147_483_647])), false),
        ("small", decimals([12_345, -1], 1), true),
        ("big", decimals([10i128.pow(29), -123_456_789], 5), true),
        ("at", Arc::new(nanos().with_timezone("+02:00")), true),
        ("local", Arc::new(nanos()), true),
        ("day", Arc::new(arrow::array::Date32Array::from(vec![Some(19_204), None])), true),
        ("doc", texts([r#"{"a": 1}"#, "[]"]), true),
        ("who", texts(["123E4567-E89B-12D3-A456-426614174000", "123e4567e89b12d3a456426614174001"]), true),
        ("mood", texts(["glad", "sad"]), true),
    ])
    .unwrap();
    let table = describe(&db.client, &db.schema, "t").await.unwrap();
    let conform = Conform::new(batch.schema_ref(), &table, "triggers.sql".as_ref(), |_| None).unwrap();
    let rows = conform.apply(&batch).unwrap().unwrap();
    let mut encoder = CopyEncoder::new(conform.schema(), conform.types()).unwrap();
    for _ in 0..2 {
        let sink = db.client.copy_in::<_, Bytes>(&statement(&table, conform.schema())).await.unwrap();
        let mut out = BytesMut::new();
        header(&mut out);
        encoder.encode(&rows, &mut out).unwrap();
        trailer(&mut out);
        let mut sink = std::pin::pin!(sink);
        sink.send(out.freeze()).await.unwrap();
        assert_eq!(sink.as_mut().finish().await.unwrap(), 2);
    }
    let stored = db.client.query("SET TIME ZONE 'UTC'", &[]).await.and(Ok(()));
    stored.unwrap();
    let rows = db.client.query("SELECT t::text FROM t ORDER BY id", &[]).await.unwrap();
    let rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let first = r#",plain,a,-32768,0,1234.50,1000000000000000000000000.00000,"2022-07-31 10:00:00.123456+00","2022-07-31 10:00:00.123456",2022-07-31,"{""a"": 1}",123e4567-e89b-12d3-a456-426614174000,glad,)"#;
    let second = ",\"\"\"é\n\\\\\",b,,2147483647,-0.10,-1234.56789,,,,[],123e4567-e89b-12d3-a456-426614174001,sad,)";
    let expected: Vec<String> =
        (1..=4).map(|id| format!("({id}{}", if id % 2 == 1 { first } else { second })).collect();
    assert_eq!(rows, expected);
}
