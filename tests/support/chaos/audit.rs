//! Triggers of the harness's own on the ledger's tables: the whole history of `progress` and `parts`, in a schema of its own,
//! written by the transactions that make it.

use std::collections::BTreeMap;

use super::super::checker::{Change, History, Part, last_stable_and_end};
use super::super::stack::Stack;

const DDL: &str = r#"
CREATE SCHEMA audit;
CREATE TABLE audit.progress (
  id bigserial PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp(), partition int4 NOT NULL,
  old_next_offset int8, old_epoch int8, next_offset int8 NOT NULL, last_output_to int8 NOT NULL, epoch int8 NOT NULL,
  metadata text NOT NULL);
CREATE TABLE audit.parts (
  commit_id uuid NOT NULL, partition int4 NOT NULL, from_offset int8 NOT NULL, to_offset int8 NOT NULL, rows int8 NOT NULL,
  letters int8 NOT NULL, outcomes jsonb NOT NULL, triggered_at timestamptz NOT NULL);
CREATE TABLE audit.deleted_parts (commit_id uuid NOT NULL, partition int4 NOT NULL);
CREATE FUNCTION audit.progress() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO audit.progress (partition, old_next_offset, old_epoch, next_offset, last_output_to, epoch, metadata)
  VALUES (NEW.partition, OLD.next_offset, OLD.epoch, NEW.next_offset, NEW.last_output_to, NEW.epoch, NEW.metadata);
  RETURN NULL;
END $$;
CREATE FUNCTION audit.inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO audit.parts
  SELECT NEW.commit_id, NEW.partition, NEW.from_offset, NEW.to_offset, NEW.rows, NEW.letters, NEW.outcomes, NEW.triggered_at;
  RETURN NULL;
END $$;
CREATE FUNCTION audit.deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO audit.deleted_parts SELECT OLD.commit_id, OLD.partition;
  RETURN NULL;
END $$;
CREATE TRIGGER audit AFTER INSERT OR UPDATE ON dinnerbell.progress FOR EACH ROW EXECUTE FUNCTION audit.progress();
CREATE TRIGGER audit_insert AFTER INSERT ON dinnerbell.parts FOR EACH ROW EXECUTE FUNCTION audit.inserted();
CREATE TRIGGER audit_delete AFTER DELETE ON dinnerbell.parts FOR EACH ROW EXECUTE FUNCTION audit.deleted();
"#;

/// Begins to write down; the ledger's tables must be there, and empty.
pub fn install(stack: &Stack) {
    stack.execute(DDL);
}

/// The order of `id` within one partition is that of the commits: its row is locked from the update to the commit.
pub fn read(stack: &Stack) -> History {
    let changes = stack.query(
        "SELECT partition, old_next_offset, old_epoch, next_offset, last_output_to, epoch, metadata, \
         floor(extract(epoch FROM at) * 1000)::int8 FROM audit.progress ORDER BY id",
    );
    let change = |row: &tokio_postgres::Row| Change {
        partition: row.get(0),
        old: row.get::<_, Option<i64>>(1).zip(row.get::<_, Option<i64>>(2)),
        next_offset: row.get(3),
        last_output_to: row.get(4),
        epoch: row.get(5),
        metadata: row.get(6),
        at: row.get(7),
    };
    let parts = stack.query(
        "SELECT partition, from_offset, to_offset, commit_id::text, rows, letters, outcomes::text, \
         floor(extract(epoch FROM triggered_at))::int8, coalesce(times, 0)::int8 \
         FROM audit.parts LEFT JOIN \
         (SELECT commit_id, partition, count(*) AS times FROM audit.deleted_parts GROUP BY 1, 2) AS deleted \
         USING (commit_id, partition)",
    );
    let part = |row: &tokio_postgres::Row| Part {
        partition: row.get(0),
        from: row.get(1),
        to: row.get(2),
        commit: row.get(3),
        rows: row.get::<_, i64>(4) as u64,
        letters: row.get::<_, i64>(5) as u64,
        outcomes: serde_json::from_str(row.get(6)).expect("counts by name"),
        triggered_at: row.get(7),
        deleted: row.get::<_, i64>(8) as u32,
    };
    let ends: BTreeMap<i32, i64> = last_stable_and_end(&stack.bootstrap, &stack.campaigns)
        .into_iter()
        .map(|(partition, (_, end))| (partition, end))
        .collect();
    History { changes: changes.iter().map(change).collect(), parts: parts.iter().map(part).collect(), ends }
}
