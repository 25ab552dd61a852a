//! Values on which the SQL fails are the message's fault, whatever kind of error DataFusion makes of it.

use super::*;
use crate::transform::failed_on_data;

const CAMPAIGNS: &str = "CREATE TABLE campaigns (id INT NOT NULL, n BIGINT, f DOUBLE, t VARCHAR)";
const GOOD: &str = r#"{"id":1,"n":2,"f":0.5,"t":"2022-07-31"}"#;
const HEX: &str = r#"{"id":1,"n":2,"f":0.5,"t":"00ff"}"#;

/// An expression that is fine for [`GOOD`] and the message on which it fails.
const FAILING: &[(&str, &str)] = &[
    ("10 / n", r#"{"id":2,"n":0}"#),
    ("10 % n", r#"{"id":2,"n":0}"#),
    ("CAST(n AS INT)", r#"{"id":2,"n":3000000000}"#),
    ("CAST(n AS TINYINT)", r#"{"id":2,"n":300}"#),
    ("CAST(t AS DATE)", r#"{"id":2,"t":"soon"}"#),
    ("CAST(t AS TIMESTAMP)", r#"{"id":2,"t":"soon"}"#),
    ("CAST(CASE WHEN n > 5 THEN t ELSE '1' END AS INT)", r#"{"id":2,"n":6,"t":"x"}"#),
    ("CAST(f AS SMALLINT)", r#"{"id":2,"f":1e9}"#),
    ("to_timestamp(t)", r#"{"id":2,"t":"soon"}"#),
    ("to_date(t)", r#"{"id":2,"t":"soon"}"#),
    ("to_unixtime(t)", r#"{"id":2,"t":"soon"}"#),
    ("make_date(2022, 7, CAST(n AS INT))", r#"{"id":2,"n":99}"#),
    ("chr(n)", r#"{"id":2,"n":-5}"#),
    ("repeat('x', n * 1000)", r#"{"id":2,"n":4000000000}"#),
    ("regexp_like('x', t)", r#"{"id":2,"t":"("}"#),
    ("decode(t, 'hex')", r#"{"id":2,"t":"zz"}"#),
    ("substr(t, 1, n)", r#"{"id":2,"n":-1,"t":"abc"}"#),
    ("arrow_cast(n, 'Int8')", r#"{"id":2,"n":1000}"#),
];

async fn run(expression: &str, lines: &str) -> Result<usize, Error> {
    let sql = format!("SELECT id, {expression} AS x FROM campaigns");
    let schema = declared(CAMPAIGNS);
    let lookups = set([]);
    let transform = Transform::compile(&files(CAMPAIGNS, &sql), Arc::clone(&schema), &lookups, MEMORY).await?;
    let batch = campaigns(&schema, lines);
    let now = "2022-07-31T00:00:00Z".parse().expect("a time");
    let output = collect(transform.run(batch, now, &lookups).await?).await?;
    Ok(output.iter().map(RecordBatch::num_rows).sum())
}

#[tokio::test]
async fn each_is_told_apart_from_faults_of_the_job() {
    let mut wrong = Vec::new();
    for (expression, bad) in FAILING {
        let good = if expression.starts_with("decode") { HEX } else { GOOD };
        match run(expression, good).await {
            Ok(1) => {}
            other => wrong.push(format!("{expression} on a good message: {other:?}")),
        }
        match run(expression, &format!("{good}\n{bad}\n{good}")).await {
            Err(error) if failed_on_data(&error).is_some_and(|why| !why.is_empty()) => {}
            other => wrong.push(format!("{expression} on a bad message: {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
