//! Whoever may edit lookup queries, which Postgres runs as the job's user, cannot write with them.

use std::path::PathBuf;

use dinnerbell::lookup::{LookupQuery, load};
use tokio_postgres::SimpleQueryMessage;

use crate::support::{Job, Stack, block_on, connect};

/// What a lookup may try, and a part of what it is told.
const ATTACKS: &[(&str, &str)] = &[
    ("DELETE FROM prey RETURNING a", "read-only transaction"),
    ("UPDATE prey SET a = 'x' RETURNING a", "read-only transaction"),
    ("INSERT INTO prey VALUES ('x') RETURNING a", "read-only transaction"),
    ("WITH gone AS (DELETE FROM prey RETURNING a) SELECT a FROM gone", "read-only transaction"),
    ("MERGE INTO prey USING (SELECT 1) s ON true WHEN MATCHED THEN DELETE RETURNING a", ""),
    ("SELECT a INTO stolen FROM prey", ""),
    ("CREATE TABLE stolen AS SELECT a FROM prey", ""),
    ("CREATE TEMP TABLE stolen AS SELECT a FROM prey", ""),
    ("TRUNCATE prey", ""),
    ("DROP TABLE prey", ""),
    ("COPY prey TO PROGRAM 'cat > /tmp/stolen'", ""),
    ("COPY prey FROM PROGRAM 'echo x'", ""),
    ("COPY (SELECT a FROM prey) TO '/tmp/stolen'", ""),
    ("GRANT ALL ON prey TO PUBLIC", ""),
    ("DO $$ BEGIN DELETE FROM prey; END $$", ""),
    ("CALL prey_eater()", ""),
    ("SELECT eat_prey() AS a", "read-only transaction"),
    ("SELECT a FROM prey WHERE eat_prey() = 'x'", "read-only transaction"),
    ("SELECT eat_prey_as_owner() AS a", "read-only transaction"),
    ("SELECT a FROM hungry_view", "read-only transaction"),
    ("SELECT nextval('meals')::text AS a", "read-only transaction"),
    ("SELECT setval('meals', 99)::text AS a", "read-only transaction"),
    ("SELECT a FROM prey FOR UPDATE", "read-only transaction"),
    ("SELECT query_to_xml('DELETE FROM prey RETURNING a', true, false, '')::text AS a", ""),
    ("SELECT lo_create(0)::text AS a", "read-only transaction"),
    // Out of the transaction, or around its being read-only.
    ("SET TRANSACTION READ WRITE", ""),
    ("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE", ""),
    ("SELECT set_config('transaction_read_only', 'off', false) AS a", "transaction read-write mode"),
    ("SELECT set_config('transaction_read_only', 'off', true) AS a, eat_prey() AS b", "transaction read-write mode"),
    ("SELECT turn_writable() AS a", "transaction read-write mode"),
    ("ROLLBACK", ""),
    ("COMMIT", ""),
    ("COMMIT; BEGIN; DELETE FROM prey; SELECT 'x' AS a", "multiple commands"),
    ("SELECT 'x' AS a; DELETE FROM prey", "multiple commands"),
    ("SELECT 'x' AS a) TO STDOUT; DELETE FROM prey; COPY (SELECT 'x' AS a", "syntax error"),
    ("SELECT 'x' AS a) TO PROGRAM 'cat' --", "syntax error"),
    ("SELECT 'x' AS a /* \n) TO STDOUT; DELETE FROM prey; -- */", ""),
    ("PREPARE TRANSACTION 'x'", ""),
    ("EXECUTE anything", ""),
    ("EXPLAIN ANALYZE DELETE FROM prey", ""),
    ("EXPLAIN (ANALYZE) INSERT INTO prey VALUES ('x')", ""),
    ("DECLARE c CURSOR WITH HOLD FOR SELECT eat_prey()", ""),
    ("LISTEN x", ""),
];

const PREY: &str = "
    CREATE TABLE prey (a text);
    INSERT INTO prey VALUES ('alive'), ('well');
    CREATE SEQUENCE meals;
    CREATE FUNCTION eat_prey() RETURNS text LANGUAGE plpgsql AS
      $$ BEGIN DELETE FROM prey; RETURN 'x'; END $$;
    CREATE FUNCTION eat_prey_as_owner() RETURNS text LANGUAGE plpgsql SECURITY DEFINER AS
      $$ BEGIN DELETE FROM prey; RETURN 'x'; END $$;
    CREATE FUNCTION turn_writable() RETURNS text LANGUAGE plpgsql AS
      $$ BEGIN SET LOCAL transaction_read_only = off; DELETE FROM prey; RETURN 'x'; END $$;
    CREATE PROCEDURE prey_eater() LANGUAGE plpgsql AS
      $$ BEGIN COMMIT; SET TRANSACTION READ WRITE; DELETE FROM prey; COMMIT; END $$;
    CREATE VIEW hungry_view AS SELECT eat_prey() AS a;";

#[test]
fn no_lookup_query_writes_to_postgres() {
    let stack = Stack::new("attacks");
    stack.execute(PREY);
    let url = stack.url.clone();
    let accepted = block_on(async move {
        let client = connect(&url).await;
        let mut accepted = Vec::new();
        for (sql, words) in ATTACKS {
            let query = LookupQuery { name: "t".into(), file: PathBuf::from("lookups/t.sql"), sql: (*sql).to_owned() };
            match load(&client, &query, &[], |_, _| {}).await {
                // It is said to be a comment, and is one.
                // Before Postgres 16 a read-only transaction allows it; the end of the transaction undoes it.
                Ok(_) if sql.contains("lo_create") => {}
                Ok(table) if sql.contains("/*") && table.rows == 1 => {}
                Ok(_) => accepted.push(format!("accepted: {sql}")),
                Err(error) if !error.to_string().contains(words) => accepted.push(format!("{sql}: {error}")),
                Err(_) => {}
            }
            // Whatever was tried, the connection works, outside of any transaction: within one its time stands still.
            let state =
                client.simple_query("SELECT now() = statement_timestamp()").await.expect("the connection works");
            let row = state.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0),
                _ => None,
            });
            if row != Some("t") {
                accepted.push(format!("still in a transaction: {sql}"));
            }
        }
        accepted
    });
    assert!(accepted.is_empty(), "{}", accepted.join("\n"));
    assert_eq!(stack.psql("SELECT a FROM prey ORDER BY 1"), "alive\nwell\n");
    assert_eq!(stack.psql("SELECT last_value, is_called FROM meals"), "1|f\n");
    let of_ours = "SELECT count(*) FROM pg_class WHERE relname = 'stolen'";
    assert_eq!(stack.number(of_ours), 0);
    assert_eq!(stack.number("SELECT count(*) FROM pg_largeobject_metadata"), 0);
}

/// A function that changes the session must not change it for what the job does next on the same connection.
#[test]
fn a_lookup_query_leaves_nothing_behind_in_its_session() {
    let stack = Stack::new("session");
    let url = stack.url.clone();
    block_on(async move {
        let client = connect(&url).await;
        let query = LookupQuery {
            name: "t".into(),
            file: PathBuf::from("lookups/t.sql"),
            sql: "SELECT set_config('search_path', 'evil', false) AS a, set_config('synchronous_commit', 'off', false) AS b,
                         set_config('role', 'pg_monitor', false) AS c, pg_advisory_lock(7)::text AS d,
                         pg_notify('channel', 'x')::text AS e"
                .into(),
        };
        load(&client, &query, &[], |_, _| {}).await.expect("it reads");
        let row = client
            .query_one(
                "SELECT current_setting('search_path') <> 'evil', current_setting('synchronous_commit') = 'on',
                        current_user = session_user,
                        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()) = 0",
                &[],
            )
            .await
            .expect("a row");
        assert!((0..4).all(|column| row.get::<_, bool>(column)), "{row:?}");
    });
}

/// The whole job says so, with the file, before it reads a message.
#[test]
fn a_job_with_a_lookup_that_writes_does_not_start() {
    let stack = Stack::new("writing_lookup");
    stack.write_sql(
        "lookups/subscribers_restaurants.sql",
        "WITH gone AS (DELETE FROM subscribers_restaurants RETURNING client_id, restaurant_id) SELECT * FROM gone",
    );
    stack.subscribe([("a".to_owned(), "r".to_owned())]);
    for command in ["check", "run"] {
        let output = Job::output(&stack, &[command]);
        assert_ne!(output.status.code(), Some(0));
        let told = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(told.contains("read-only transaction"), "{command}: {told}");
        assert!(told.contains("subscribers_restaurants"), "{command}: {told}");
    }
    assert_eq!(stack.number("SELECT count(*) FROM subscribers_restaurants"), 1);
    stack.write_sql(
        "lookups/subscribers_restaurants.sql",
        "SELECT client_id, restaurant_id FROM subscribers_restaurants",
    );
    stack.write_sql("triggers.sql", "COPY campaigns TO '/tmp/stolen.csv'");
    let output = Job::output(&stack, &["run"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("triggers.sql:1:1: this is not a query"));
}
