//! Against a real Postgres.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Int32Type, TimeUnit};
use tokio_postgres::Client;

use super::*;
use crate::Error;
use crate::testdb::{TestDb, connect};

fn query(name: &str, sql: &str) -> LookupQuery {
    LookupQuery { name: name.to_owned(), file: PathBuf::from(format!("lookups/{name}.sql")), sql: sql.to_owned() }
}

async fn refusal(db: &TestDb, sql: &str) -> String {
    let error = load(&db.client, &query("t", sql), &[], |_, _| {}).await.expect_err("it is refused");
    format!("{error} | {}", error.remedy().unwrap_or_default())
}

#[tokio::test]
async fn every_type_and_a_trailing_comment() {
    let TestDb { client, .. } = &TestDb::start().await;
    let sql = "SELECT 'é'::text AS a, 'b'::varchar AS b, 'c'::char(3) AS c, 'd'::name AS d, 1::int2 AS e, 2::int4 AS f,
        3::int8 AS g, 1.5::float4 AS h, 2.5::float8 AS i, true AS j, '2022-07-31'::date AS k,
        '2022-07-31 22:00:28'::timestamp AS l, '2022-07-31 22:00:28+00'::timestamptz AS m,
        '023e4567-e89b-12d3-a456-426614174000'::uuid AS n, NULL::text AS o, ';' AS p; -- the end;";
    let table = load(client, &query("t", sql), &[], |_, _| {}).await.expect("it loads");
    let table = Arc::new(table);
    let batches: Vec<_> = table.scan().collect::<Result<_, _>>().expect("rows");
    let [batch] = batches.as_slice() else { panic!("{} batches", batches.len()) };
    let json = {
        let mut writer = arrow::json::LineDelimitedWriter::new(Vec::new());
        writer.write(batch).expect("json");
        String::from_utf8(writer.into_inner()).expect("utf-8")
    };
    assert_eq!(
        json.trim(),
        r#"{"a":"é","b":"b","c":"c  ","d":"d","e":1,"f":2,"g":3,"h":1.5,"i":2.5,"j":true,"k":"2022-07-31","l":"2022-07-31T22:00:28","m":"2022-07-31T22:00:28Z","n":"023e4567-e89b-12d3-a456-426614174000","p":";"}"#
    );
    assert_eq!(batch.schema().field(0).data_type(), &DataType::Utf8View);
    assert_eq!(
        batch.schema().field(12).data_type(),
        &DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()))
    );
    assert_eq!((table.rows, table.name.as_str()), (1, "t"));
}

#[tokio::test]
async fn what_postgres_refuses_has_a_place_in_the_file() {
    let db = TestDb::start().await;
    assert_eq!(
        refusal(&db, "SELECT 1 AS a,\n  nam FROM pg_database;").await,
        "lookups/t.sql:2:3: Postgres says: column \"nam\" does not exist (SQLSTATE 42703) | \
         correct the query; it runs in Postgres, as the job's user"
    );
    assert_eq!(
        refusal(&db, "SELECT 1.5 AS price").await,
        "lookups/t.sql: column price is of type numeric, which a lookup table cannot hold | \
         cast it to text: price::text AS price"
    );
    let two = refusal(&db, "SELECT 1; SELECT 2").await;
    assert!(two.contains("cannot insert multiple commands"), "{two}");
    let none = refusal(&db, "-- nothing\n").await;
    assert!(none.contains("this returns no columns"), "{none}");
}

#[tokio::test]
async fn a_lookup_cannot_write() {
    let TestDb { client, .. } = &TestDb::start().await;
    client.batch_execute("CREATE TEMP SEQUENCE s").await.expect("a sequence");
    client.batch_execute("CREATE TABLE lookup_target (a int)").await.expect("a table");
    let sql = "WITH x AS (INSERT INTO lookup_target VALUES (1) RETURNING a) SELECT a FROM x";
    let error = load(client, &query("t", sql), &[], |_, _| {}).await.expect_err("it writes");
    assert!(error.to_string().contains("read-only transaction"), "{error}");
    // The transaction is over: the same client can go on.
    load(client, &query("t", "SELECT 1 AS a"), &[], |_, _| {}).await.expect("it loads");
}

#[tokio::test]
async fn a_refresh_swaps_in_whole_or_keeps_the_old() {
    let db = &TestDb::start().await;
    let (client, boxed) = (&db.client, || async { connect(&db.url).await.map(Box::new) });
    client.batch_execute("CREATE TABLE refreshed AS SELECT 'a' AS a").await.expect("ok");
    let queries = vec![query("one", "SELECT a FROM refreshed"), query("two", "SELECT a FROM refreshed")];
    let keys = LookupKeys::from([("one".to_owned(), vec![0])]);
    let lookups = Lookups::new(queries, keys);
    assert_eq!(lookups.status(), []);
    let (first, loaded) = tokio::join!(lookups.current(), lookups.load(client, |_, _, _| {}));
    loaded.expect("it loads");
    client.batch_execute("INSERT INTO refreshed VALUES ('b')").await.expect("ok");
    lookups.refresh(&boxed).await.expect("it refreshes");
    let second = lookups.current().await;
    assert_ne!(first.version(), second.version());
    let has_index = |set: &LookupSet, name| set.get(name).expect("a table").built_index(0).is_some();
    for set in [&first, &second] {
        assert!(has_index(set, "one") && !has_index(set, "two"), "what it is joined by is ready before any batch");
    }
    assert_eq!((first.get("one").expect("one").rows, second.get("two").expect("two").rows), (1, 2));

    client.batch_execute("ALTER TABLE refreshed ALTER a TYPE int4 USING 1").await.expect("ok");
    let error = lookups.refresh(&boxed).await.expect_err("another type");
    assert!(error.to_string().contains("have changed"), "{error}");
    client.batch_execute("DROP TABLE refreshed").await.expect("ok");
    lookups.refresh(&boxed).await.expect_err("no table");
    assert_eq!(lookups.current().await.version(), second.version());
    assert_eq!(lookups.status().iter().map(|table| table.rows).collect::<Vec<_>>(), [2, 2]);

    let broken = || async { Err::<Box<Client>, _>(Error::Away { what: "nobody is there".into() }) };
    let forever = lookups.refresh_forever(Duration::from_millis(5), broken, |_| {});
    tokio::time::timeout(Duration::from_millis(50), forever).await.expect_err("it goes on failing");
    assert_eq!(lookups.current().await.version(), second.version(), "it keeps the set");
}

#[tokio::test]
async fn a_big_table_loads() {
    let rows: u64 = 300_000;
    let TestDb { client, .. } = &TestDb::start().await;
    let sql = format!(
        "SELECT '123e4567-e89b-12d3-a456-' || lpad((i % 1000)::text, 12, '0') AS restaurant_id,
                '023e4567-e89b-12d3-a456-' || lpad(i::text, 12, '0') AS client_id FROM generate_series(1, {rows}) i"
    );
    let (started, mut calls) = (Instant::now(), 0);
    let table = load(client, &query("big", &sql), &[0], |_, _| calls += 1).await.expect("it loads");
    println!("{} rows, {} MiB, {:?}, {calls} calls", table.rows, table.bytes >> 20, started.elapsed());
    assert_eq!(table.rows, rows);
    assert!(calls > 1);
    // 16 bytes for each client; restaurants are kept once.
    assert!(table.bytes < rows * 16 * 11 / 10, "{} bytes", table.bytes);
    let last = Arc::new(table).scan().last().expect("batches").expect("rows");
    let clients = last.column(1).as_string_view();
    // The thousandth restaurant is the first that came with a 0.
    assert_eq!(clients.value(clients.len() - 1), format!("023e4567-e89b-12d3-a456-{rows:012}"));
}

#[tokio::test]
async fn further_keys_have_an_index_when_the_table_is_loaded() {
    let TestDb { client, .. } = &TestDb::start().await;
    let sql = "SELECT i AS a, i % 3 AS b, 'c' AS c FROM generate_series(1, 10) i";
    let described = describe(client, &query("t", sql)).await.expect("it is described");
    let table = load(client, &query("t", sql), &[1, 2], |_, _| {}).await.expect("it loads");
    assert_eq!((&described.schema, described.rows), (&table.schema, 0));
    assert_eq!(table.indexed(), [1, 2]);
    assert!(table.index_bytes() >= 4 * 10);
}

#[tokio::test]
async fn texts_come_back_byte_for_byte_whatever_their_spelling() {
    let TestDb { client, .. } = &TestDb::start().await;
    let sql = r#"SELECT n, a::text, a::varchar AS b, u FROM (VALUES
        (0, '0123e456-789a-bcde-f012-3456789abcde', '0123e456-789a-bcde-f012-3456789abcde'::uuid),
        (1, '0123E456-789A-BCDE-F012-3456789ABCDE', '0123E456-789A-BCDE-F012-3456789ABCDE'),
        (2, '0123e456789abcdef0123456789abcde', NULL),
        (3, '{0123e456-789a-bcde-f012-3456789abcde}', '74657874-0000-0000-0000-000000000000'),
        (4, '74657874-ffff-ffff-0000-000000000000', '74657874-ffff-ffff-0000-000000000000'),
        (5, E'0123e456\t789a-bcde-f012-3456789abcde', NULL), (6, 'ресторан «У "Ё"»', NULL), (7, '', NULL),
        (8, NULL, NULL), (9, '0123e456-789a-bcde-f012-3456789abcdE', NULL), (10, 'ресторан «У "Ё"»', NULL),
        (11, '0123e456-789a-bcde-f012-3456789abcde', NULL)) AS t (n, a, u)"#;
    let as_postgres_has_it = client.query(&format!("SELECT n, a, b, u::text FROM ({sql}) t ORDER BY n"), &[]).await;
    let expected: Vec<[Option<String>; 3]> =
        as_postgres_has_it.expect("rows").iter().map(|row| [1, 2, 3].map(|column| row.get(column))).collect();
    for keys in [&[][..], &[1], &[2, 3], &[3]] {
        let table = Arc::new(load(client, &query("t", sql), keys, |_, _| {}).await.expect("it loads"));
        let mut rows = Vec::new();
        for batch in table.scan().map(|batch| batch.expect("rows")) {
            let text = |column: usize, row: usize| {
                let texts = batch.column(column).as_string_view();
                texts.is_valid(row).then(|| texts.value(row).to_owned())
            };
            let numbers = batch.column(0).as_primitive::<Int32Type>();
            rows.extend(
                (0..batch.num_rows()).map(|row| (numbers.value(row), [1, 2, 3].map(|column| text(column, row)))),
            );
        }
        rows.sort();
        assert_eq!(rows.into_iter().map(|(_, texts)| texts).collect::<Vec<_>>(), expected, "keys {keys:?}");
    }
}

/// The rows that came from Postgres, and those of the table, as text.
async fn loaded(client: &Client, sql: &str, keys: &[usize]) -> (u64, Vec<String>) {
    let mut came = 0;
    let table = load(client, &query("t", sql), keys, |rows, _| came = rows).await.expect("it loads");
    let table = Arc::new(table);
    let batches: Vec<_> = table.scan().collect::<Result<_, _>>().expect("rows");
    let mut rows: Vec<String> = arrow::util::pretty::pretty_format_batches(&batches)
        .expect("text")
        .to_string()
        .lines()
        .skip(3)
        .filter(|line| line.starts_with('|'))
        .map(str::to_owned)
        .collect();
    rows.sort();
    assert_eq!(rows.len() as u64, table.rows);
    (came, rows)
}

/// Of these rows Postgres sends those that are there several times as well, or not, and the table is the same.
#[tokio::test]
async fn a_distinct_has_the_same_rows_whoever_does_it() {
    let db = TestDb::start().await;
    // A collation is everybody's: in a database of its own.
    let name = format!("distinct_{:016x}", fastrand::u64(..));
    db.client.batch_execute(&format!("CREATE DATABASE {name}")).await.expect("a database");
    let mut own: tokio_postgres::Config = db.url.parse().expect("a URL");
    own.options("").dbname(&name);
    let (client, connection) = own.connect(tokio_postgres::NoTls).await.expect("it connects");
    tokio::spawn(connection);
    let client = &client;
    let ids = r#"ARRAY['0123e456-789a-bcde-f012-3456789abcde', '0123E456-789A-BCDE-F012-3456789ABCDE', 'a', 'a ', '',
        'ресторан «У "Ё"»', NULL, '74657874-ffff-ffff-0000-000000000000']"#;
    let fill = format!(
        "CREATE TABLE t (a text, b varchar, n int, d date, x float8);
         INSERT INTO t SELECT ({ids})[i % 8 + 1], ({ids})[i / 3 % 8 + 1], nullif(i % 3, 0), '2022-07-31'::date + i % 2, i % 2
         FROM generate_series(1, 5000) i"
    );
    client.batch_execute(&fill).await.expect("a table");
    let sql = "SELECT DISTINCT quote_nullable(a) AS a, b, n, d FROM t";
    // Without a key Postgres does it.
    let (came, expected) = loaded(client, sql, &[]).await;
    assert_eq!(came, expected.len() as u64);
    assert!(came < 1_000);
    for keys in [&[0][..], &[1, 0], &[2]] {
        assert_eq!(loaded(client, sql, keys).await, (5_000, expected.clone()), "keys {keys:?}");
    }
    // Other types are compared otherwise than by their bytes, and what stands behind it is about the rows that are left.
    for sql in ["SELECT DISTINCT a, b, n, d, x FROM t", "SELECT DISTINCT a, b, n, d FROM t LIMIT 1000000"] {
        let (came, rows) = loaded(client, sql, &[0]).await;
        assert_eq!(came, rows.len() as u64, "{sql}");
    }
    client
        .batch_execute("CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
        .await
        .expect("a collation");
    let (came, rows) = loaded(client, "SELECT DISTINCT b COLLATE loose AS b FROM t", &[0]).await;
    assert_eq!((came, rows.len()), (7, 7), "letters of both cases are equal to it");
    assert_eq!(loaded(client, sql, &[0]).await, (expected.len() as u64, expected));
    drop(db.client.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).await);
}
