use chrono::{DateTime, Utc};

use super::*;
use crate::transform::engine::Engine;

const CAMPAIGNS: &str = "CREATE TABLE campaigns (id INT NOT NULL, place VARCHAR NOT NULL)";

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).expect("a time")
}

async fn compile(sql: &str, lookups: &LookupSet, memory: usize) -> Transform {
    Transform::compile(&files(CAMPAIGNS, sql), declared(CAMPAIGNS), lookups, memory).await.expect("it compiles")
}

fn batch(ids: std::ops::Range<i32>) -> RecordBatch {
    let lines: String = ids.map(|id| format!("{{\"id\":{id},\"place\":\"p{}\"}}\n", id % 3)).collect();
    campaigns(&declared(CAMPAIGNS), &lines)
}

fn places(count: usize) -> LookupTable {
    let lines: String =
        (0..count).map(|i| format!("{{\"place\":\"p{}\",\"client\":\"a client's number {i}\"}}\n", i % 3)).collect();
    lookup("places", &lines)
}

async fn lines(transform: &Transform, batch: &RecordBatch, seconds: i64, lookups: &LookupSet) -> Vec<String> {
    let rows = transform.run(batch.clone(), at(seconds), lookups).await.expect("it runs");
    json_lines(transform, &collect(rows).await.expect("rows"))
}

#[tokio::test]
async fn a_plan_that_runs_again_sees_its_own_time_batch_and_lookup() {
    let sql = "SELECT c.id, CAST(to_unixtime(now()) AS INT) AS at, count(p.client) AS clients, \
               (SELECT max(client) FROM places) AS last \
               FROM campaigns c JOIN places p ON p.place = c.place WHERE to_unixtime(now()) > 5 GROUP BY c.id";
    let (few, many) = (set([places(3)]), set([places(9)]));
    let transform = compile(sql, &few, MEMORY).await;
    let first = lines(&transform, &batch(0..1), 10, &few).await;
    assert_eq!(first, [r#"{"id":0,"at":10,"clients":1,"last":"a client's number 2"}"#]);
    let second = lines(&transform, &batch(7..8), 11, &many).await;
    assert_eq!(second, [r#"{"id":7,"at":11,"clients":3,"last":"a client's number 8"}"#]);
    assert_eq!(lines(&transform, &batch(0..1), 4, &few).await, Vec::<String>::new(), "a condition on now() is live");
    assert_eq!(lines(&transform, &batch(0..1), 10, &few).await, first);
}

#[tokio::test]
async fn limits_and_sorts_start_anew() {
    let none = set([]);
    let transform = compile("SELECT id FROM campaigns ORDER BY id DESC LIMIT 2", &none, MEMORY).await;
    assert!(transform.carries_rows());
    assert_eq!(lines(&transform, &batch(0..10), 1, &none).await, [r#"{"id":8}"#, r#"{"id":9}"#]);
    assert_eq!(lines(&transform, &batch(0..3), 1, &none).await, [r#"{"id":1}"#, r#"{"id":2}"#]);
}

#[tokio::test]
async fn runs_may_overlap_and_break_off() {
    let lookups = set([places(30_000)]);
    let sql =
        "SELECT c.id, p.client, CAST(to_unixtime(now()) AS INT) AS at FROM campaigns c JOIN places p USING (place)";
    let transform = compile(sql, &lookups, MEMORY).await;
    let mut one = transform.run(batch(0..1), at(1), &lookups).await.expect("it runs");
    let mut two = transform.run(batch(1..2), at(2), &lookups).await.expect("it runs");
    let mut counts = [0, 0];
    while let (Some(a), Some(b)) = (one.try_next().await.expect("rows"), two.try_next().await.expect("rows")) {
        for (count, (batch, second)) in counts.iter_mut().zip([(a, 1), (b, 2)]) {
            assert!(batch.num_rows() <= 8192, "{} rows in a batch", batch.num_rows());
            *count += batch.num_rows();
            let times = batch.column(2).as_any().downcast_ref::<arrow::array::Int32Array>().expect("Int32");
            assert!(times.values().iter().all(|at| *at == second));
        }
    }
    assert_eq!(counts, [10_000, 10_000]);
    let mut broken = transform.run(batch(0..3), at(3), &lookups).await.expect("it runs");
    assert!(broken.try_next().await.expect("rows").is_some());
    drop(broken);
    assert_eq!(lines(&transform, &batch(0..3), 4, &lookups).await.len(), 30_000);
}

#[tokio::test]
async fn a_lookup_whose_columns_changed_stops_the_run() {
    let before = set([places(3)]);
    let transform =
        compile("SELECT c.id, p.client FROM campaigns c JOIN places p USING (place)", &before, MEMORY).await;
    let after = set([lookup("places", r#"{"place":"p0","client":7}"#)]);
    let error = transform.run(batch(0..1), at(1), &after).await.err().expect("an error");
    assert!(error.to_string().contains("the columns of the lookup table places have changed"), "{error}");
}

#[tokio::test]
async fn a_query_that_explodes_fails_and_the_next_one_works() {
    let lookups = set([places(200_000)]);
    let sql = "SELECT c.id, p.client FROM campaigns c JOIN places p USING (place) ORDER BY p.client";
    let transform = compile(sql, &lookups, 8 << 20).await;
    let rows = transform.run(batch(0..30), at(1), &lookups).await.expect("it starts");
    let error = collect(rows).await.expect_err("2M rows to sort in 8 MiB");
    assert!(error.to_string().contains("needs more than the 8 MiB"), "{error}");
    assert!(error.remedy().is_some());
    let small = set([places(3)]);
    assert_eq!(lines(&transform, &batch(0..3), 1, &small).await.len(), 3);
}

#[tokio::test]
async fn the_trigger_time_of_the_sample_is_an_int4() {
    let sql = "SELECT CAST(to_unixtime(now()) AS INT) AS at FROM campaigns";
    let transform = compile(sql, &set([]), MEMORY).await;
    assert_eq!(transform.output_schema().field(0).data_type(), &DataType::Int32);
}

#[tokio::test]
async fn the_lookup_is_never_the_side_that_a_join_holds() {
    // 200k clients would not fit into 1 MiB; three campaigns do.
    let lookups = set([places(200_000)]);
    for from in ["places p JOIN campaigns c USING (place)", "campaigns c JOIN places p USING (place)"] {
        let transform = compile(&format!("SELECT c.id, p.client FROM {from}"), &lookups, 1 << 20).await;
        assert_eq!(lines(&transform, &batch(0..3), 1, &lookups).await.len(), 200_000, "{from}");
    }
}

#[tokio::test]
async fn the_lookup_of_the_sample_is_read_by_index_and_never_scanned() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql");
    let read = |name: &str| std::fs::read_to_string(root.join(name)).expect("the sample");
    let subscribers = lookup("subscribers_restaurants", r#"{"restaurant_id":"r","client_id":"c"}"#);
    let campaigns = declared(&read("campaigns.sql"));
    let engine = Engine::new(campaigns, &set([subscribers]), MEMORY).expect("an engine");
    let file = SqlFile { path: root.join("triggers.sql"), text: read("triggers.sql") };
    let query = crate::transform::parse::one_query(&file).expect("a query");
    let plan = engine.prepare(&query, true).await.expect("a plan").plan;
    let text = datafusion::physical_plan::displayable(plan.as_ref()).indent(false).to_string();
    assert!(text.contains("LookupJoinExec: lookup=subscribers_restaurants, kind=Inner"), "{text}");
    assert!(!text.contains("BoundScan: subscribers_restaurants") && !text.contains("HashJoinExec"), "{text}");
}

#[tokio::test]
async fn joins_that_multiply_are_stopped_where_only_their_number_shows() {
    let lookups = set([places(3_000)]);
    // Each of these streams: it holds little, and would go on for 3,000 times 3,000 rows a message.
    for sql in [
        "SELECT c.id FROM campaigns c CROSS JOIN places p CROSS JOIN places q",
        "SELECT c.id FROM campaigns c, places p, places q",
        "SELECT c.id FROM campaigns c JOIN places p ON 1 = 1 JOIN places q ON true",
        "SELECT c.id FROM campaigns c JOIN places p USING (place) JOIN places q ON q.client <> p.client",
        "SELECT count(*) AS n FROM campaigns c CROSS JOIN places p CROSS JOIN places q",
        "SELECT id FROM campaigns WHERE (SELECT count(*) FROM places p CROSS JOIN places q) > id",
        "SELECT c.id, unnest(range(0, 1000)) AS n FROM campaigns c JOIN places p USING (place)",
    ] {
        let transform = compile(sql, &lookups, MEMORY).await;
        transform.limit_rows(100_000);
        let error = match transform.run(batch(0..3), at(1), &lookups).await {
            Ok(rows) => collect(rows).await.err().unwrap_or_else(|| panic!("it ends: {sql}")),
            Err(error) => error,
        };
        assert!(matches!(error, Error::Exceeded { .. }), "{sql}: {error}");
        let (told, remedy) = (error.to_string(), error.remedy().unwrap_or_default().to_owned());
        assert!(told.starts_with("triggers.sql:1:") && told.contains("100000 rows"), "{sql}: {told}");
        assert!(remedy.contains("max_rows") && remedy.contains("equal keys"), "{remedy}");
    }
}

#[tokio::test]
async fn the_limit_of_rows_stops_nothing_below_it_and_counts_each_run_anew() {
    let lookups = set([places(3_000)]);
    let transform =
        compile("SELECT c.id, p.client FROM campaigns c JOIN places p USING (place)", &lookups, MEMORY).await;
    transform.limit_rows(3_000);
    for second in 1..4 {
        assert_eq!(lines(&transform, &batch(0..3), second, &lookups).await.len(), 3_000);
    }
    let rows = transform.run(batch(0..4), at(5), &lookups).await.expect("it starts");
    let error = collect(rows).await.expect_err("one message more");
    assert!(matches!(error, Error::Exceeded { .. }), "{error}");
    assert_eq!(lines(&transform, &batch(0..3), 6, &lookups).await.len(), 3_000);
}
