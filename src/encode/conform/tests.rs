use arrow::array::{
    Date32Array, DictionaryArray, Float64Array, Int64Array, NullArray, StringArray, TimestampNanosecondArray,
    UInt64Array,
};
use arrow::datatypes::{Int32Type, TimeUnit};
use tokio_postgres::types::Kind;

use super::*;
use crate::encode::samples;

fn column(name: &str, wire_type: Type, sql_type: &str) -> Column {
    Column {
        name: name.into(),
        wire_type,
        sql_type: sql_type.into(),
        modifier: -1,
        not_null: false,
        has_default: false,
        generated: false,
        may_insert: true,
        forbidden_sequence: None,
    }
}

fn table(columns: Vec<Column>) -> TableShape {
    TableShape { schema: "public".into(), table: "subscribers_feedback".into(), user: "job".into(), columns }
}

fn conform(batch: &RecordBatch, columns: Vec<Column>) -> Result<Conform> {
    Conform::new(batch.schema_ref(), &table(columns), "sql/triggers.sql".as_ref(), |_| None)
}

/// One column `c`, fitted to a table column of that type.
fn fit(array: ArrayRef, wire_type: Type, sql_type: &str) -> Result<Result<RecordBatch, RefusedRow>> {
    let batch = RecordBatch::try_from_iter_with_nullable([("c", array, true)]).unwrap();
    conform(&batch, vec![column("c", wire_type, sql_type)])?.apply(&batch)
}

fn problem(result: Result<impl std::fmt::Debug>) -> String {
    let error = result.unwrap_err();
    format!("{error}; {}", error.remedy().unwrap_or("no remedy"))
}

#[test]
fn the_mission_s_table_takes_its_rows_and_nothing_is_copied() {
    let batch = samples::fan_out(2, 3);
    let mut columns = vec![
        column("id", Type::INT4, "integer"),
        column("adv_campaign_content", Type::TEXT, "text"),
        column("client_id", Type::TEXT, "text"),
        column("adv_campaign_datetime_start", Type::INT8, "bigint"),
        column("trigger_datetime_created", Type::INT4, "integer"),
        column("feedback", Type::VARCHAR, "character varying"),
    ];
    columns[..5].iter_mut().for_each(|column| column.not_null = true);
    columns[0].has_default = true;
    let conform = conform(&batch, columns).unwrap();
    let rows = conform.apply(&batch).unwrap().unwrap();
    assert_eq!(rows.columns(), batch.columns());
    assert!(rows.columns().iter().zip(batch.columns()).all(|(new, old)| Arc::ptr_eq(new, old)));
    assert_eq!(conform.types(), [Type::TEXT, Type::INT8, Type::TEXT, Type::INT4]);
    assert!(conform.schema().fields().iter().all(|field| !field.is_nullable()));
}

#[test]
fn integers_are_narrowed_and_the_first_that_does_not_fit_is_named() {
    let fits = Arc::new(Int64Array::from(vec![Some(i64::from(i32::MAX)), None, Some(-1)])) as ArrayRef;
    let rows = fit(fits, Type::INT4, "integer").unwrap().unwrap();
    assert_eq!(rows.column(0).data_type(), &DataType::Int32);
    assert_eq!(rows.column(0).null_count(), 1);

    let over = Arc::new(Int64Array::from(vec![None, Some(1), Some(3_000_000_000), Some(-3_000_000_000)])) as ArrayRef;
    let refused = fit(over, Type::INT4, "integer").unwrap().unwrap_err();
    let reason = "3000000000 does not fit the table's type integer".to_string();
    assert_eq!(refused, RefusedRow { index: 2, column: "c".into(), reason });

    let unsigned = Arc::new(UInt64Array::from(vec![1, u64::MAX])) as ArrayRef;
    assert_eq!(fit(unsigned.clone(), Type::INT8, "bigint").unwrap().unwrap_err().index, 1);
    assert!(fit(unsigned, Type::NUMERIC, "numeric").unwrap().is_ok());
}

#[test]
fn the_first_offending_row_wins_over_all_columns() {
    let batch = RecordBatch::try_from_iter_with_nullable([
        ("a", Arc::new(Int64Array::from(vec![1, 2, 99_999])) as ArrayRef, true),
        ("b", Arc::new(StringArray::from(vec![Some("x"), None, Some("y")])) as ArrayRef, true),
    ])
    .unwrap();
    let mut columns = vec![column("a", Type::INT2, "smallint"), column("b", Type::TEXT, "text")];
    columns[1].not_null = true;
    let refused = conform(&batch, columns).unwrap().apply(&batch).unwrap().unwrap_err();
    let reason = "null, and the table's column is NOT NULL".to_string();
    assert_eq!(refused, RefusedRow { index: 1, column: "b".into(), reason });
}

/// Behind a view or in it, in a buffer that holds little else or a lot; and none that only other rows refer to.
#[test]
fn nul_is_found_in_these_rows_wherever_their_text_stands() {
    let long = "a text that stands in a buffer";
    let nul = format!("{long}\0");
    for bad in [nul.as_str(), "\0", "a\0b"] {
        for rows in [3, 300] {
            let mut texts = vec![long; rows];
            texts.extend([bad, "", "b", bad]);
            let array: ArrayRef = Arc::new(StringViewArray::from_iter_values(texts));
            // A slice keeps the whole buffer; of 3 rows, it is more than would be looked at whole.
            for (from, len, expected) in
                [(0, rows + 4, Some(rows)), (rows - 2, 3, Some(2)), (0, rows, None), (rows + 1, 2, None)]
            {
                let found = fit(array.slice(from, len), Type::TEXT, "text").unwrap();
                assert_eq!(
                    found.err().map(|refused| refused.index),
                    expected,
                    "{bad:?}, {len} rows from {from} of {rows}"
                );
            }
        }
    }
}

#[test]
fn text_of_every_layout_becomes_views_and_nul_is_found() {
    let dictionary: DictionaryArray<Int32Type> = vec![Some("a"), None, Some("a\0b")].into_iter().collect();
    let plain = StringArray::from(vec![Some("a"), None, Some("a\0b")]);
    for array in [Arc::new(dictionary) as ArrayRef, Arc::new(plain) as ArrayRef] {
        let refused = fit(array.clone(), Type::VARCHAR, "character varying").unwrap().unwrap_err();
        assert_eq!(refused.index, 2);
        assert!(refused.reason.contains("U+0000"), "{}", refused.reason);
        let rows = fit(array.slice(0, 2), Type::TEXT, "text").unwrap().unwrap();
        assert_eq!(rows.column(0).as_string_view().iter().collect::<Vec<_>>(), [Some("a"), None]);
    }
    let label = Type::new("mood".into(), 99_999, Kind::Enum(vec!["glad".into()]), "public".into());
    assert!(fit(Arc::new(StringArray::from(vec!["glad"])), label, "mood").unwrap().is_ok());
}

#[test]
fn uuids_stay_as_written_and_others_are_refused() {
    let texts =
        |text| Arc::new(StringArray::from(vec![Some("123e4567-e89b-12d3-a456-426614174000"), None, Some(text)]));
    let good = fit(texts("123E4567E89B12D3A456426614174000"), Type::UUID, "uuid").unwrap().unwrap();
    assert_eq!(good.column(0).as_string_view().value(2), "123E4567E89B12D3A456426614174000");
    let refused = fit(texts("no"), Type::UUID, "uuid").unwrap().unwrap_err();
    assert_eq!((refused.index, refused.reason.as_str()), (2, "no is not a uuid"));
}

#[test]
fn times_lose_their_nanoseconds_and_keep_their_instant() {
    let nanos = || TimestampNanosecondArray::from(vec![Some(1_659_261_600_123_456_789), None]);
    let zoned = Arc::new(nanos().with_timezone("+02:00")) as ArrayRef;
    for array in [Arc::new(nanos()) as ArrayRef, zoned.clone()] {
        let rows = fit(array, Type::TIMESTAMPTZ, "timestamp with time zone").unwrap().unwrap();
        assert_eq!(rows.column(0).as_primitive::<TimestampMicrosecondType>().value(0), 1_659_261_600_123_456);
        assert_eq!(rows.column(0).data_type(), &DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())));
    }
    let utc = Arc::new(nanos().with_timezone("+00:00"));
    assert!(fit(utc, Type::TIMESTAMP, "timestamp without time zone").unwrap().is_ok());
    insta::assert_snapshot!(
        problem(fit(zoned, Type::TIMESTAMP, "timestamp without time zone")),
        @r#"sql/triggers.sql: column "c": the SELECT gives TIMESTAMP WITH TIME ZONE (+02:00), the table "public"."subscribers_feedback" wants timestamp without time zone; the table's type has no zone: write the wall-clock time meant, e.g. to_local_time(...) AS c, or make the column timestamptz"#
    );
    let far = Arc::new(Date32Array::from(vec![0, 2_932_896, 2_932_897]));
    assert_eq!(fit(far, Type::DATE, "date").unwrap().unwrap_err().index, 2);
}

#[test]
fn numerics_are_checked_for_range_and_never_rounded() {
    let decimals = |scale| {
        let array = arrow::array::Decimal128Array::from(vec![99_999, 1_000_000]).with_precision_and_scale(10, scale);
        let batch = RecordBatch::try_from_iter([("c", Arc::new(array.unwrap()) as ArrayRef)]).unwrap();
        let mut wanted = column("c", Type::NUMERIC, "numeric(6,2)");
        wanted.modifier = (6 << 16 | 2) + 4;
        conform(&batch, vec![wanted]).and_then(|conform| conform.apply(&batch))
    };
    let refused = decimals(2).unwrap().unwrap_err();
    assert_eq!((refused.index, refused.reason.as_str()), (1, "10000.00 does not fit the table's type numeric(6,2)"));
    assert!(problem(decimals(3)).ends_with("Postgres would round: write CAST(... AS DECIMAL(6, 2)) in the SELECT"));
}

#[test]
fn every_mismatch_says_what_to_write() {
    let array = || Arc::new(Float64Array::from(vec![1.0])) as ArrayRef;
    let text = || Arc::new(StringArray::from(vec!["1"])) as ArrayRef;
    insta::assert_snapshot!(
        problem(fit(array(), Type::FLOAT4, "real")),
        @r#"sql/triggers.sql: column "c": the SELECT gives DOUBLE, the table "public"."subscribers_feedback" wants real; write CAST(... AS REAL) AS c in the SELECT"#
    );
    insta::assert_snapshot!(
        problem(fit(text(), Type::INT8, "bigint")),
        @r#"sql/triggers.sql: column "c": the SELECT gives VARCHAR, the table "public"."subscribers_feedback" wants bigint; write CAST(... AS BIGINT) AS c in the SELECT"#
    );
    insta::assert_snapshot!(
        problem(fit(text(), Type::TEXT_ARRAY, "text[]")),
        @r#"sql/triggers.sql: column "c": the SELECT gives VARCHAR, the table "public"."subscribers_feedback" wants text[]; columns of type text[] cannot be written: leave the column out of the SELECT if it may be null or has a default, or change its type in the table"#
    );
    assert!(fit(Arc::new(Int64Array::from(vec![1])), Type::FLOAT8, "double precision").is_err());
    assert!(fit(Arc::new(Int64Array::from(vec![1])), Type::TEXT, "text").is_err());
    assert!(fit(text(), Type::BOOL, "boolean").is_err());
}

#[test]
fn columns_are_matched_by_name() {
    let batch = samples::fan_out(1, 1).project(&[2]).unwrap();
    let id = || column("client_id", Type::TEXT, "text");
    insta::assert_snapshot!(
        problem(conform(&batch, vec![column("clientid", Type::TEXT, "text"), column("note", Type::TEXT, "text")])),
        @r#"sql/triggers.sql: the sink table "public"."subscribers_feedback" has no column "client_id"; did you mean "clientid"? Name the output column with AS "clientid""#
    );
    insta::assert_snapshot!(
        problem(conform(&batch, vec![column("a", Type::TEXT, "text"), column("b", Type::TEXT, "text")])),
        @r#"sql/triggers.sql: the sink table "public"."subscribers_feedback" has no column "client_id"; its columns are a, b"#
    );
    let must = Column { not_null: true, ..column("restaurant_id", Type::TEXT, "text") };
    insta::assert_snapshot!(
        problem(conform(&batch, vec![id(), must])),
        @r#"sql/triggers.sql: column "restaurant_id" of "public"."subscribers_feedback" is NOT NULL without a default, and the SELECT does not give it; add an output column "restaurant_id" (text), or give the table's column a default"#
    );
    let generated = Column { generated: true, ..id() };
    assert!(problem(conform(&batch, vec![generated])).contains("is generated by Postgres and takes no value"));
    let twice = RecordBatch::try_new(
        Arc::new(Schema::new([batch.schema().fields().to_vec(), batch.schema().fields().to_vec()].concat())),
        vec![batch.column(0).clone(), batch.column(0).clone()],
    );
    assert!(problem(conform(&twice.unwrap(), vec![id()])).contains("two output columns are named \"client_id\""));
}

#[test]
fn missing_rights_halt_with_the_grant() {
    let batch = samples::fan_out(1, 1).project(&[2]).unwrap();
    let id = || column("client_id", Type::TEXT, "text");
    let locked = Column { may_insert: false, ..id() };
    assert_eq!(
        problem(conform(&batch, vec![locked])),
        "\"job\" may not insert into column \"client_id\" of \"public\".\"subscribers_feedback\"; \
         GRANT INSERT ON \"public\".\"subscribers_feedback\" TO \"job\";"
    );
    let serial = Column {
        has_default: true,
        forbidden_sequence: Some("t_id_seq".into()),
        ..column("id", Type::INT4, "integer")
    };
    assert!(problem(conform(&batch, vec![id(), serial])).ends_with("GRANT USAGE ON SEQUENCE t_id_seq TO \"job\";"));
}

#[test]
fn a_column_that_is_always_null_goes_only_where_null_may() {
    let batch =
        RecordBatch::try_from_iter_with_nullable([("c", Arc::new(NullArray::new(2)) as ArrayRef, true)]).unwrap();
    let rows = conform(&batch, vec![column("c", Type::INT4, "integer")]).unwrap().apply(&batch).unwrap().unwrap();
    assert_eq!((rows.column(0).data_type(), rows.column(0).null_count()), (&DataType::Int32, 2));
    let must = Column { not_null: true, ..column("c", Type::INT4, "integer") };
    assert!(problem(conform(&batch, vec![must])).contains("is always null"));
}

#[test]
fn a_batch_of_another_shape_is_a_defect_not_a_refusal() {
    let batch = samples::fan_out(1, 1);
    let one = batch.project(&[2]).unwrap();
    let conform = conform(&one, vec![column("client_id", Type::TEXT, "text")]).unwrap();
    assert!(conform.apply(&batch).is_err());
    assert!(conform.apply(&batch.project(&[1]).unwrap()).is_err());
}
