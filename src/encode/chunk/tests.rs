use arrow::array::{
    DictionaryArray, FixedSizeBinaryArray, Int32Array, RunArray, StringViewArray, StringViewBuilder, StructArray,
};
use arrow::datatypes::{Field, Int32Type, Schema};
use bytes::BytesMut;
use proptest::prelude::*;
use proptest::sample::Index;
use tokio_postgres::types::Type;

use super::*;
use crate::encode::copy::CopyEncoder;
use crate::encode::json::{JsonRows, Texts};
use crate::encode::samples;

fn compacted(batch: &RecordBatch) -> RecordBatch {
    let columns = batch.columns().iter().map(|column| compact(column).unwrap()).collect();
    RecordBatch::try_new(batch.schema(), columns).unwrap()
}

/// The stream of a chunk of the first format, column by column as they are.
fn ipc(batch: &RecordBatch) -> Vec<u8> {
    let mut out = Vec::new();
    write(&compacted(batch), &mut out).unwrap();
    out
}

/// The stream of a chunk of the present format.
fn thin_ipc(batch: &RecordBatch) -> Vec<u8> {
    let mut out = Vec::new();
    write(&thin::thin(std::slice::from_ref(batch)).unwrap(), &mut out).unwrap();
    out
}

fn sinks(batch: &RecordBatch) -> (Texts, BytesMut) {
    let mut copy = BytesMut::new();
    let json = JsonRows::new(batch.schema_ref()).unwrap().encode(batch).unwrap();
    let types = vec![Type::TEXT; batch.num_columns()];
    CopyEncoder::new(batch.schema_ref(), &types).unwrap().encode(batch, &mut copy).unwrap();
    (json, copy)
}

#[test]
fn a_slice_of_a_join_holds_its_own_bytes_once() {
    // 3 campaigns x 20,000 clients; the buffers behind any slice are those of all clients, 720 kB.
    let batch = samples::fan_out(3, 20_000);
    let slice = batch.slice(19_990, 20);
    let compacted = compacted(&slice);
    let bytes = |column: usize| -> usize {
        compacted.column(column).as_string_view().data_buffers().iter().map(|buffer| buffer.len()).sum()
    };
    assert_eq!(bytes(0), 2 * "0: half price on \"everything\" until Sunday".len());
    assert_eq!(bytes(2), 20 * 36);
    assert_eq!(compacted, slice);
    assert!(ipc(&slice).len() < 8 << 10, "{}", ipc(&slice).len());
    assert_eq!(unpack(&pack(&slice).unwrap()).unwrap(), slice);
}

#[test]
fn what_repeats_is_stored_once_and_ids_in_sixteen_bytes() {
    let batch = samples::fan_out(3, 20_000);
    let thin = thin::thin(std::slice::from_ref(&batch)).unwrap();
    let types: Vec<String> = thin.columns().iter().map(|column| column.data_type().to_string()).collect();
    assert!(types[2].starts_with("Struct"), "{types:?}");
    assert!([0, 1, 3].into_iter().all(|column| types[column].starts_with("RunEndEncoded")), "{types:?}");
    let ids = thin.column(2).as_struct();
    assert_eq!(ids.column(0).as_fixed_size_binary().value_data().len(), 60_000 * 16);
    assert_eq!(ids.column(1).as_run::<Int32Type>().values().len(), 1);
    assert_eq!(unpack(&pack(&batch).unwrap()).unwrap(), batch);
}

/// What looks like an id and is none keeps its letters.
#[test]
fn odd_ids_come_back_as_they_were() {
    let odd = [
        Some("0123E456-789a-bcde-f012-3456789abcde"),
        Some("0123e456-789a-bcde-f012-3456789abcde"),
        Some("0123е456-789a-bcde-f012-3456789abcd"),
        Some("0123e456789abcdef0123456789abcde"),
        Some("{0123e456-789a-bcde-f012-3456789abcde}"),
        Some(""),
        None,
        Some("\u{1}0123456789abcdef"),
    ];
    let batch = RecordBatch::try_from_iter([("id", Arc::new(StringViewArray::from_iter(odd)) as ArrayRef)]).unwrap();
    assert_eq!(thin::thin(std::slice::from_ref(&batch)).unwrap().column(0).data_type(), &DataType::Binary);
    assert_eq!(unpack(&pack(&batch).unwrap()).unwrap(), batch);
}

/// A chunk that an older binary has stored.
#[test]
fn chunks_of_the_first_format_are_read() {
    for batch in [samples::fan_out(3, 50), samples::fan_out(1, 1), samples::fan_out(0, 0)] {
        assert_eq!(unpack(&with_checksum(&ipc(&batch))).unwrap(), batch);
    }
}

/// Ids among other texts, as format 2 had them.
#[test]
fn chunks_of_the_second_format_are_read() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/stored_batch");
    let stream = std::fs::read(folder.join("format-2.thin.ipc")).unwrap();
    assert!(stream.windows(5).any(|bytes| bytes == b"texts"));
    let chunk = std::fs::read(folder.join("format-2.chunk")).unwrap();
    for chunk in [chunk, with_checksum(&stream)] {
        assert_eq!(unpack(&chunk).unwrap(), samples::fan_out(2, 3));
    }
}

/// Random ids of version 4, as most are: what zstd takes for noise, it leaves as it is.
#[test]
fn stored_ids_are_not_encoded_in_vain() {
    let mut random = fastrand::Rng::with_seed(7);
    let ids = (0..60_000).map(|_| uuid::Builder::from_random_bytes(random.u128(..).to_le_bytes()).into_uuid());
    let ids = StringViewArray::from_iter_values(ids.map(|id| id.to_string()));
    let batch = RecordBatch::try_from_iter([("id", Arc::new(ids) as ArrayRef)]).unwrap();
    let packed = pack(&batch).unwrap();
    let stored = thin::thin(std::slice::from_ref(&batch)).unwrap();
    let ids = stored.column(0).as_struct().column(0).as_fixed_size_binary().value_data();
    // One of the blocks of 128 KiB in between has them all, byte for byte.
    assert!(packed.windows(1 << 16).any(|bytes| bytes == &ids[1 << 18..][..1 << 16]));
    assert!(packed.len() < 60_000 * 16 + 2_000, "{}", packed.len());
    assert_eq!(unpack(&packed).unwrap(), batch);
}

/// Forms that no chunk has: both an id and a text in a row, ids of another length, too few rows of texts.
#[test]
fn forged_ids_are_errors() {
    let ids = |len: i32, valid: Vec<bool>| -> ArrayRef {
        let bytes = Buffer::from_vec(vec![7u8; valid.len() * len as usize]);
        Arc::new(FixedSizeBinaryArray::try_new(len, bytes, Some(valid.into())).unwrap())
    };
    let texts = |ends: &[i32], texts: &[Option<&str>]| -> ArrayRef {
        let values = StringViewArray::from_iter(texts);
        Arc::new(RunArray::<Int32Type>::try_new(&Int32Array::from(ends.to_vec()), &values).unwrap())
    };
    let read = |columns: Vec<(&str, ArrayRef)>| {
        let columns = StructArray::try_from(columns).unwrap();
        let marked = [("dinnerbell.stored".to_owned(), "ids".to_owned())].into();
        let field = Field::new("id", columns.data_type().clone(), true).with_metadata(marked);
        let batch = RecordBatch::try_new(Arc::new(Schema::new(vec![field])), vec![Arc::new(columns)]).unwrap();
        let mut stream = Vec::new();
        write(&batch, &mut stream).unwrap();
        unpack(&with_checksum(&stream))
    };
    let (some, text) = (ids(16, vec![true, false]), texts(&[1, 2], &[None, Some("a")]));
    let good = read(vec![("id", some.clone()), ("text", text.clone())]).unwrap();
    // Two bytes were mixed with those behind them.
    let id = "07070707-0707-0007-0007-070707070707";
    assert_eq!(good.column(0).as_string_view().iter().collect::<Vec<_>>(), [Some(id), Some("a")]);
    let plain: ArrayRef = Arc::new(StringViewArray::from_iter([None, Some("a")]));
    let forged = [
        vec![("id", ids(16, vec![true, true])), ("text", text.clone())],
        vec![("id", some.clone()), ("text", texts(&[2], &[Some("a")]))],
        vec![("id", ids(15, vec![true, false])), ("text", text.clone())],
        vec![("id", ids(1, vec![true, false])), ("text", text.clone())],
        vec![("id", some.clone()), ("text", plain)],
        vec![("id", text.clone()), ("text", some.clone())],
        vec![("id", some.clone())],
        vec![("id", some.clone()), ("text", text.clone()), ("more", some)],
    ];
    for columns in forged {
        let told = read(columns).unwrap_err().to_string();
        assert!(told.contains("stored ids are none"), "{told}");
    }
}

/// Each row of these would be as large as the whole chunk.
#[test]
fn runs_of_large_values_are_not_believed() {
    let large = arrow::array::BinaryArray::from_vec(vec![&[7; 1 << 20]]);
    let runs = arrow::array::RunArray::<arrow::datatypes::Int32Type>::try_new(&Int32Array::from(vec![1 << 24]), &large);
    let batch = RecordBatch::try_from_iter([("b", Arc::new(runs.unwrap()) as ArrayRef)]).unwrap();
    let mut stream = Vec::new();
    write(&batch, &mut stream).unwrap();
    let told = unpack(&with_checksum(&stream)).unwrap_err().to_string();
    assert!(told.contains("rows in a few bytes"), "{told}");
}

/// A few bytes that claim to be a run of two billion rows.
#[test]
fn claimed_runs_are_not_believed() {
    let rows = i32::MAX;
    let runs = arrow::array::RunArray::<arrow::datatypes::Int32Type>::try_new(
        &Int32Array::from(vec![rows]),
        &Int32Array::from(vec![7]),
    );
    let batch = RecordBatch::try_from_iter([("n", Arc::new(runs.unwrap()) as ArrayRef)]).unwrap();
    let mut stream = Vec::new();
    write(&batch, &mut stream).unwrap();
    let told = unpack(&with_checksum(&stream)).unwrap_err().to_string();
    assert!(told.contains("2147483647 rows in a few bytes"), "{told}");
}

#[test]
fn views_that_take_turns_are_copied_once_each() {
    let mut builder = StringViewBuilder::new();
    for row in 0..1000 {
        builder.append_value(["the first of the campaigns", "the second of the campaigns"][row % 2]);
    }
    // The builder wrote every row's bytes; equal text behind equal views is what a join gives.
    let whole = builder.finish();
    let views: Vec<u128> = (0..1000).map(|row| whole.views()[row % 2]).collect();
    let array = StringViewArray::try_new(views.into(), whole.data_buffers().to_vec(), None).unwrap();
    let batch = RecordBatch::try_from_iter([("t", Arc::new(array) as ArrayRef)]).unwrap();
    let compacted = compacted(&batch);
    assert_eq!(compacted.column(0).as_string_view().data_buffers()[0].len(), 26 + 27);
    assert_eq!(compacted, batch);
}

#[test]
fn names_nulls_metadata_and_other_types_survive() {
    let metadata = [("origin".to_string(), "sql".to_string())].into();
    let words: DictionaryArray<Int32Type> = vec![Some("a"), None, Some("b")].into_iter().collect();
    let fields = vec![
        Field::new("row number", arrow::datatypes::DataType::Int32, false),
        Field::new("word", words.data_type().clone(), true),
    ];
    let schema = Arc::new(Schema::new(fields).with_metadata(metadata));
    let columns: Vec<ArrayRef> = vec![Arc::new(Int32Array::from(vec![7, 8, 9])), Arc::new(words)];
    let batch = RecordBatch::try_new(schema, columns).unwrap();
    let back = unpack(&pack(&batch).unwrap()).unwrap();
    assert_eq!(back.schema(), batch.schema());
    assert_eq!(back, batch);
}

#[test]
fn what_is_no_chunk_says_so() {
    let batch = samples::fan_out(1, 3);
    let packed = pack(&batch).unwrap();
    let bomb = zstd::bulk::compress(&vec![0; 1 << 20], 1).unwrap();
    for bytes in [&b""[..], b"hello", &packed[..packed.len() - 1], &[&packed[..], &packed[..]].concat(), &bomb] {
        let error = unpack(bytes).unwrap_err().to_string();
        assert!(error.starts_with("a stored chunk in the ledger is damaged or of another format: "), "{error}");
    }
}

proptest! {
    #[test]
    fn round_trips_are_exact_and_encode_to_the_same_bytes(rows in samples::rows(), from in any::<Index>(), to in any::<Index>()) {
        let batch = samples::batch(&rows);
        let (from, to) = (from.index(rows.len() + 1), to.index(rows.len() + 1));
        let slice = batch.slice(from.min(to), from.abs_diff(to));
        let back = unpack(&pack(&slice).unwrap()).unwrap();
        prop_assert_eq!(back.schema(), slice.schema());
        // By text: NaN is not equal to itself.
        prop_assert_eq!(format!("{:?}", back.columns()), format!("{:?}", slice.columns()));
        prop_assert_eq!(sinks(&back), sinks(&slice));
    }

    #[test]
    fn fan_outs_round_trip(campaigns in 0..5usize, clients in 0..40usize, from in any::<Index>(), to in any::<Index>()) {
        let batch = samples::fan_out(campaigns, clients);
        let (from, to) = (from.index(batch.num_rows() + 1), to.index(batch.num_rows() + 1));
        let slice = batch.slice(from.min(to), from.abs_diff(to));
        let back = unpack(&pack(&slice).unwrap()).unwrap();
        prop_assert_eq!(sinks(&back), sinks(&slice));
        prop_assert_eq!(back, slice);
    }

    #[test]
    fn ids_among_other_texts_round_trip(
        others in prop_oneof![Just(0), Just(1), Just(4), Just(9), Just(40)],
        picks in proptest::collection::vec((0..40usize, 0..4usize, any::<[u8; 16]>(), ".{0,60}"), 0..600),
        cuts in proptest::collection::vec(any::<Index>(), 0..4),
        from in any::<Index>(),
    ) {
        let id = |bytes| uuid::Uuid::from_bytes(bytes).hyphenated().to_string();
        let texts = picks.into_iter().map(|(pick, kind, bytes, text)| match (pick < others, kind) {
            (false, _) => Some(id(bytes)),
            (_, 0) => None,
            (_, 1) => Some(id(bytes).to_uppercase()),
            (_, 2) => Some(id(bytes).replace('-', "_")),
            _ => Some(text),
        });
        let whole: ArrayRef = Arc::new(StringViewArray::from_iter(texts));
        let n: ArrayRef = Arc::new(Int32Array::from_iter_values((0..whole.len() as i32).map(|row| row / 50)));
        let batch = RecordBatch::try_from_iter_with_nullable([("id", whole, true), ("n", n, false)]).unwrap();
        let from = from.index(batch.num_rows() + 1);
        let batch = batch.slice(from, batch.num_rows() - from);
        // The rows as they are, and the same in parts.
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(batch.num_rows() + 1)).collect();
        cuts.sort_unstable();
        let ends = cuts.iter().copied().chain([batch.num_rows()]);
        let starts = [0].into_iter().chain(cuts.iter().copied());
        let parts: Vec<RecordBatch> = starts.zip(ends).map(|(start, end)| batch.slice(start, end - start)).collect();
        for packed in [pack(&batch).unwrap(), pack_all(&parts).unwrap()] {
            let back = unpack(&packed).unwrap();
            prop_assert_eq!(back.schema(), batch.schema());
            prop_assert_eq!(back, batch.clone());
        }
        // Few other texts make no other form.
        if others == 0 && batch.num_rows() > 0 {
            let stored = thin::thin(std::slice::from_ref(&batch)).unwrap();
            prop_assert!(stored.column(0).as_struct_opt().is_some());
        }
    }

    #[test]
    fn flipped_bits_never_give_other_rows(rows in samples::rows(), at in any::<Index>(), bit in 0..8u32) {
        let batch = samples::batch(&rows);
        let mut bytes = pack(&batch).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(back) = unpack(&bytes) {
            prop_assert_eq!(format!("{:?}", back.columns()), format!("{:?}", batch.columns()));
        }
    }
}

fn with_checksum(ipc: &[u8]) -> Vec<u8> {
    let mut compressor = zstd::bulk::Compressor::new(LEVEL).unwrap();
    compressor.include_checksum(true).unwrap();
    compressor.compress(ipc).unwrap()
}

#[test]
fn bytes_without_a_checksum_are_not_read() {
    let plain = zstd::bulk::compress(&ipc(&samples::fan_out(1, 3)), LEVEL).unwrap();
    assert!(unpack(&plain).unwrap_err().to_string().ends_with("it has no checksum"));
    assert_eq!(unpack(&with_checksum(&ipc(&samples::fan_out(1, 3)))).unwrap(), samples::fan_out(1, 3));
}

/// Lengths that a stream only claims must not become memory.
#[test]
fn claimed_lengths_are_not_believed() {
    let good = ipc(&samples::fan_out(1, 3));
    for claimed in [i32::MAX, i32::MAX - 7, 1 << 30, -1] {
        let message = [&[0xff; 4][..], &claimed.to_le_bytes(), &good[8..]].concat();
        unpack(&with_checksum(&message)).unwrap_err();
    }
}

/// What fuzzing began with and what it found. UPDATE_FUZZ_SEEDS=1 writes the seeds anew.
#[test]
fn the_fuzzers_corpus() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/stored_batch");
    let header = |value: Option<&str>| ("trace".to_owned(), value.map(|value| value.as_bytes().to_vec()));
    let letters = ["bad", ""].map(|value| crate::dead_letter::Letter {
        key: Some(b"key".to_vec()),
        value: Some(value.as_bytes().to_vec()),
        headers: vec![header(Some("1")), header(None)],
    });
    let letters = crate::dead_letter::to_record_batch(&letters).unwrap();
    let words: DictionaryArray<Int32Type> = vec![Some("a"), None, Some("b")].into_iter().collect();
    let words = RecordBatch::try_from_iter([("word", Arc::new(words) as ArrayRef)]).unwrap();
    let seeds =
        [("rows", samples::fan_out(2, 3)), ("runs", samples::fan_out(2, 8)), ("letters", letters), ("words", words)];
    for (name, batch) in &seeds {
        let [chunk, thin, stream] = ["chunk", "thin.ipc", "ipc"].map(|kind| folder.join(format!("{name}.{kind}")));
        if std::env::var_os("UPDATE_FUZZ_SEEDS").is_some() {
            std::fs::write(&chunk, pack(batch).unwrap()).unwrap();
            std::fs::write(&thin, thin_ipc(batch)).unwrap();
            std::fs::write(&stream, ipc(batch)).unwrap();
        }
        assert_eq!(unpack(&std::fs::read(chunk).unwrap()).unwrap(), *batch);
        for stream in [thin, stream] {
            assert_eq!(unpack(&with_checksum(&std::fs::read(stream).unwrap())).unwrap(), *batch);
        }
    }
    for file in std::fs::read_dir(folder).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        for chunk in [with_checksum(&bytes), bytes] {
            // An error or a batch, and no panic either way.
            if let Ok(batch) = unpack(&chunk) {
                let _ = crate::dead_letter::from_record_batch(&batch);
                assert_eq!(unpack(&pack(&batch).unwrap()).unwrap().num_rows(), batch.num_rows());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Damage with a checksum that is right: made by another hand. Arrow panics on some of it.
    #[test]
    fn forged_streams_are_errors_or_batches(changes in proptest::collection::vec((any::<Index>(), any::<u8>()), 1..6)) {
        let mut bytes = thin_ipc(&samples::fan_out(1, 8));
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(batch) = unpack(&with_checksum(&bytes)) {
            prop_assert!(batch.num_rows() < 1 << 32);
        }
    }
}
