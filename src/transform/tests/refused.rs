//! Whoever may edit SQL files and nothing else cannot write, read files or reach the network with them.

use super::*;

const CAMPAIGNS: &str = "CREATE TABLE campaigns (id INT NOT NULL, place VARCHAR)";

async fn refusal(sql: &str) -> String {
    let lookups = set([lookup("places", r#"{"place":"p","client":"c"}"#)]);
    match Transform::compile(&files(CAMPAIGNS, sql), declared(CAMPAIGNS), &lookups, MEMORY).await {
        Ok(_) => panic!("it is accepted: {sql}"),
        Err(error) => {
            assert!(matches!(error, Error::Sql { .. }), "{sql}: {error:?}");
            error.to_string()
        }
    }
}

#[tokio::test]
async fn nothing_but_one_query_is_accepted() {
    for sql in [
        "COPY campaigns TO '/tmp/stolen.csv'",
        "COPY (SELECT * FROM campaigns) TO '/tmp/stolen.csv' STORED AS CSV",
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
        "CREATE TABLE t AS SELECT * FROM campaigns",
        "CREATE VIEW t AS SELECT * FROM campaigns",
        "CREATE FUNCTION f() RETURNS INT RETURN 1",
        "CREATE SCHEMA s",
        "DROP TABLE campaigns",
        "INSERT INTO places SELECT place, place FROM campaigns",
        "UPDATE places SET client = 'x'",
        "DELETE FROM places",
        "TRUNCATE places",
        "SET datafusion.catalog.information_schema = true",
        "RESET datafusion.catalog.information_schema",
        "SHOW TABLES",
        "SHOW ALL",
        "DESCRIBE campaigns",
        "EXPLAIN SELECT id FROM campaigns",
        "EXPLAIN ANALYZE SELECT id FROM campaigns",
        "EXPLAIN ANALYZE COPY campaigns TO '/tmp/stolen.csv'",
        "PREPARE p AS SELECT id FROM campaigns",
        "EXECUTE p",
        "BEGIN",
        "COMMIT",
        "CALL f()",
        "LOAD 'library'",
    ] {
        let told = refusal(sql).await;
        assert!(told.contains("triggers.sql:1:"), "{sql}: {told}");
    }
    for (sql, words) in [
        ("SELECT id FROM campaigns; COPY campaigns TO '/tmp/x.csv'", "a second statement begins here"),
        ("SELECT id FROM campaigns;; SELECT 1 AS x", "a second statement begins here"),
        ("SELECT id INTO t FROM campaigns", "SELECT INTO makes a table"),
    ] {
        let told = refusal(sql).await;
        assert!(told.contains(words), "{sql}: {told}");
    }
}

#[tokio::test]
async fn a_query_cannot_hide_a_write() {
    for sql in [
        "WITH gone AS (DELETE FROM places RETURNING client) SELECT client FROM gone",
        "WITH new AS (INSERT INTO places VALUES ('a', 'b') RETURNING client) SELECT client FROM new",
        "SELECT client FROM (DELETE FROM places RETURNING client) d",
        "SELECT id FROM campaigns WHERE id IN (DELETE FROM places RETURNING 1)",
        "SELECT id, (COPY campaigns TO '/tmp/x.csv') AS x FROM campaigns",
        "SELECT id FROM campaigns UNION ALL INSERT INTO places VALUES ('a', 'b')",
    ] {
        refusal(sql).await;
    }
}

#[tokio::test]
async fn there_is_nothing_to_read_but_campaigns_and_lookup_tables() {
    let file = tempfile::Builder::new().suffix(".csv").tempfile().expect("a file");
    std::fs::write(file.path(), "secret\nhunter2\n").expect("a file");
    let path = file.path().display();
    for table in [
        format!("'{path}'"),
        format!("\"{path}\""),
        format!("'file://{path}'"),
        "'http://127.0.0.1:1/x.csv'".to_owned(),
        "'s3://bucket/x.csv'".to_owned(),
        "\"/etc/passwd\"".to_owned(),
        format!("read_csv('{path}')"),
        format!("read_json('{path}')"),
        format!("read_parquet('{path}')"),
        format!("csv('{path}')"),
        format!("TABLE(read_csv('{path}'))"),
        "information_schema.tables".to_owned(),
        "information_schema.df_settings".to_owned(),
        "pg_catalog.pg_class".to_owned(),
        "public.secrets".to_owned(),
        "datafusion.public.other".to_owned(),
    ] {
        for sql in [
            format!("SELECT * FROM {table}"),
            format!("SELECT c.id, t.* FROM campaigns c CROSS JOIN {table} t"),
            format!("SELECT id FROM campaigns WHERE EXISTS (SELECT 1 FROM {table})"),
            format!("WITH t AS (SELECT * FROM {table}) SELECT * FROM t"),
        ] {
            let told = refusal(&sql).await;
            assert!(!told.contains("hunter2"), "{told}");
        }
    }
}

#[tokio::test]
async fn no_function_reads_files_settings_or_variables() {
    for call in [
        format!("pg_read_file('{}')", "/etc/passwd"),
        "current_setting('x')".to_owned(),
        "set_config('x', 'y', false)".to_owned(),
        "getenv('DATABASE_URL')".to_owned(),
        "load_file('/etc/passwd')".to_owned(),
        "http_get('http://127.0.0.1:1')".to_owned(),
    ] {
        let told = refusal(&format!("SELECT {call} AS x FROM campaigns")).await;
        assert!(told.contains("there is no function") || told.contains("nvalid function"), "{told}");
    }
    refusal("SELECT @@version AS x FROM campaigns").await;
    refusal("SELECT $1 AS x FROM campaigns").await;
}
