//! The sink table as Postgres describes it, read before the first message.
//!
//! Promises: what comes back is a table that `COPY ... FROM STDIN` can write durably, with all that a check of the
//! SELECT needs; anything else halts with the way out. Does not compare it with the SELECT
//! ([`crate::encode::conform`] does) and changes nothing.

use tokio_postgres::Client;
use tokio_postgres::types::{Kind, Type};

use crate::config::quote_identifier;
use crate::{Error, Result};

/// A table that COPY can write to.
#[derive(Debug, Clone, PartialEq)]
pub struct TableShape {
    pub schema: String,
    pub table: String,
    /// The role that was asked for its rights.
    pub user: String,
    /// In the table's order, dropped columns left out.
    pub columns: Vec<Column>,
}

/// One column of the sink table.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    pub name: String,
    /// The type on the wire: for a domain its base type, whatever the number of levels.
    pub wire_type: Type,
    /// The type as SQL writes it, e.g. `character varying(20)` or the domain's name.
    pub sql_type: String,
    /// `atttypmod` of the wire type; -1 where the type has none.
    pub modifier: i32,
    pub not_null: bool,
    /// A default, identity or generated value fills the column when COPY leaves it out.
    pub has_default: bool,
    /// `GENERATED ALWAYS AS (...) STORED`: COPY may not name it.
    pub generated: bool,
    pub may_insert: bool,
    /// The sequence behind the default that the role may not use, quoted.
    pub forbidden_sequence: Option<String>,
}

impl TableShape {
    /// `"schema"."table"`, quoted.
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote_identifier(&self.schema), quote_identifier(&self.table))
    }

    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }
}
/// Describes `schema.table`. [`Error::Halt`] where it is missing, hidden from this role, or nothing that COPY can
/// write durably in the ledger's transaction.
pub async fn describe(client: &Client, schema: &str, table: &str) -> Result<TableShape> {
    let name = format!("{}.{}", quote_identifier(schema), quote_identifier(table));
    let doing = format!("describing the sink table {name}");
    let found = client.query_opt(RELATION, &[&schema, &table]).await.map_err(Error::postgres(&doing))?;
    let Some(relation) = found else {
        return Err(Error::Halt {
            what: format!("the sink table {name} does not exist"),
            remedy: "run `dinnerbell init` to create it, or correct [sink.postgres] table".into(),
        });
    };
    let user: String = relation.get("user");
    if !relation.get::<_, bool>("visible") {
        return Err(Error::Halt {
            what: format!("{user} may not look into the schema of the sink table {name}"),
            remedy: format!("GRANT USAGE ON SCHEMA {} TO {};", quote_identifier(schema), quote_identifier(&user)),
        });
    }
    if let Some((problem, remedy)) = unwritable(relation.get("kind"), relation.get("persistence"), relation.get("rls"))
    {
        return Err(Error::Halt { what: format!("the sink table {name} {problem}"), remedy: remedy.into() });
    }
    let oid: u32 = relation.get("oid");
    let rows = client.query(COLUMNS, &[&oid]).await.map_err(Error::postgres(&doing))?;
    let columns = rows.iter().map(column).collect();
    Ok(TableShape { schema: schema.into(), table: table.into(), user, columns })
}

/// Why COPY cannot write there, or not durably, and what to do; `None` where it can.
fn unwritable(kind: &str, persistence: &str, row_security: bool) -> Option<(&'static str, &'static str)> {
    const NAME_A_TABLE: &str = "name an ordinary or partitioned table in [sink.postgres] table";
    match (kind, persistence) {
        ("r" | "p", "u") => Some((
            "is UNLOGGED: a crash of the server would empty it, while Kafka keeps its rows",
            "ALTER TABLE ... SET LOGGED, or name another table in [sink.postgres] table",
        )),
        ("r" | "p", "t") => Some(("is temporary: no other connection sees it", NAME_A_TABLE)),
        ("r" | "p", _) if row_security => Some((
            "has row-level security, with which COPY FROM does not work",
            "let the job run as a role with BYPASSRLS or as the table's owner, or name another table in [sink.postgres] table",
        )),
        ("r" | "p", _) => None,
        ("v" | "m", _) => Some(("is a view", NAME_A_TABLE)),
        ("f", _) => Some(("is a foreign table: its rows would not be in the ledger's transaction", NAME_A_TABLE)),
        _ => Some(("is not a table", NAME_A_TABLE)),
    }
}

fn column(row: &tokio_postgres::Row) -> Column {
    let (oid, kind): (u32, &str) = (row.get("oid"), row.get("kind"));
    let wire_type = Type::from_oid(oid).unwrap_or_else(|| {
        let kind = if kind == "e" { Kind::Enum(row.get("labels")) } else { Kind::Simple };
        Type::new(row.get("type_name"), oid, kind, row.get("type_schema"))
    });
    Column {
        name: row.get("name"),
        wire_type,
        sql_type: row.get("sql_type"),
        modifier: row.get("modifier"),
        not_null: row.get("not_null"),
        has_default: row.get("has_default"),
        generated: row.get("generated"),
        may_insert: row.get("may_insert"),
        forbidden_sequence: row.get("forbidden_sequence"),
    }
}

const RELATION: &str = "
SELECT c.oid, c.relkind::text AS kind, c.relpersistence::text AS persistence, current_user::text AS user,
       row_security_active(c.oid) AS rls, has_schema_privilege(n.oid, 'USAGE') AS visible
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2";

/// `base` walks from a column's domain down to the type that travels on the wire.
const COLUMNS: &str = "
WITH RECURSIVE base (attnum, oid, modifier, not_null, has_default) AS (
  SELECT a.attnum, a.atttypid, a.atttypmod, a.attnotnull, a.atthasdef OR a.attidentity <> ''
  FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped
  UNION ALL
  SELECT b.attnum, t.typbasetype, t.typtypmod, b.not_null OR t.typnotnull, b.has_default OR t.typdefault IS NOT NULL
  FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.oid WHERE t.typtype = 'd')
SELECT a.attname::text AS name, t.oid AS oid, t.typname::text AS type_name, n.nspname::text AS type_schema,
       t.typtype::text AS kind, format_type(a.atttypid, a.atttypmod) AS sql_type, b.modifier AS modifier,
       ARRAY(SELECT e.enumlabel::text FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid ORDER BY e.enumsortorder) AS labels,
       b.not_null AS not_null, b.has_default AS has_default, a.attgenerated <> '' AS generated,
       has_column_privilege($1::oid, a.attnum, 'INSERT') AS may_insert,
       (SELECT s.seqrelid::regclass::text FROM pg_catalog.pg_attrdef d
          JOIN pg_catalog.pg_depend p ON p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid
          JOIN pg_catalog.pg_sequence s ON p.refclassid = 'pg_class'::regclass AND s.seqrelid = p.refobjid
        WHERE d.adrelid = $1::oid AND d.adnum = a.attnum AND NOT has_sequence_privilege(s.seqrelid, 'USAGE, UPDATE')
        LIMIT 1) AS forbidden_sequence
FROM base b
JOIN pg_catalog.pg_attribute a ON a.attrelid = $1::oid AND a.attnum = b.attnum
JOIN pg_catalog.pg_type t ON t.oid = b.oid AND t.typtype <> 'd'
JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
ORDER BY a.attnum";

/// How far a serial or identity column has been used up.
#[derive(Debug, Clone, PartialEq)]
pub struct Headroom {
    /// `"schema"."table"`, quoted.
    pub table: String,
    pub column: String,
    /// `smallint`, `integer` or `bigint`.
    pub sql_type: String,
    /// As `ALTER SEQUENCE` takes it.
    pub sequence: String,
    pub identity: bool,
    /// The last number given out; 0 before the first.
    pub last: i64,
    /// The last one that sequence and column can take.
    pub limit: i64,
    /// True where the column's type, not the sequence's own MAXVALUE, sets the limit.
    pub limited_by_type: bool,
}

/// Share of a sequence after which the operator is warned, in percent.
pub const WARN_PERCENT: i64 = 50;
/// Share after which the job refuses to run: numbers must not end in the middle of a campaign.
pub const REFUSE_PERCENT: i64 = 95;

impl Headroom {
    /// Used numbers in percent of the limit, rounded down.
    pub fn percent(&self) -> i64 {
        (i128::from(self.last.max(0)) * 100 / i128::from(self.limit.max(1))) as i64
    }

    /// What is going on, in one sentence.
    pub fn describe(&self) -> String {
        format!(
            "{}.{} ({}) has used {} % of its numbers: {} of {}",
            self.table,
            quote_identifier(&self.column),
            self.sql_type,
            self.percent(),
            self.last,
            self.limit
        )
    }

    /// The statements that make room. An identity column's sequence follows the type by itself, a serial's does not.
    pub fn remedy(&self) -> String {
        let column = quote_identifier(&self.column);
        if !self.limited_by_type {
            return format!(
                "ALTER SEQUENCE {} NO MAXVALUE; (its own MAXVALUE is the limit, not the column's type)",
                self.sequence
            );
        }
        let alter = format!("ALTER TABLE {} ALTER COLUMN {column} TYPE bigint;", self.table);
        let note = "(the first statement rewrites the table under an exclusive lock)";
        match (self.sql_type.as_str(), self.identity) {
            ("bigint", _) => format!("begin a new table: no integer type of Postgres is larger than that of {column}"),
            (_, true) => format!("{alter} {note}"),
            (_, false) => format!("{alter} ALTER SEQUENCE {} AS bigint; {note}", self.sequence),
        }
    }
}

/// Headroom of every integer column that a sequence fills. A sequence that the role may not read counts as unused;
/// [`describe`] reports that lack of rights.
pub async fn serial_headroom(client: &Client, schema: &str, table: &str) -> Result<Vec<Headroom>> {
    let name = format!("{}.{}", quote_identifier(schema), quote_identifier(table));
    let doing = format!("reading the sequences of {name}");
    let rows = client.query(SEQUENCES, &[&schema, &table]).await.map_err(Error::postgres(doing))?;
    Ok(rows
        .iter()
        .map(|row| {
            let (column_max, sequence_max): (i64, i64) = (row.get("column_max"), row.get("sequence_max"));
            Headroom {
                table: name.clone(),
                column: row.get("name"),
                sql_type: row.get("sql_type"),
                sequence: row.get("sequence"),
                identity: row.get("identity"),
                last: row.get("last"),
                limit: column_max.min(sequence_max),
                limited_by_type: column_max <= sequence_max,
            }
        })
        .collect())
}

/// The warnings of [`WARN_PERCENT`], each with its remedy; [`Error::Halt`] from [`REFUSE_PERCENT`] on.
pub fn judge_headroom(columns: &[Headroom]) -> Result<Vec<String>> {
    if let Some(full) = columns.iter().find(|column| column.percent() >= REFUSE_PERCENT) {
        return Err(Error::Halt { what: full.describe(), remedy: full.remedy() });
    }
    let low = columns.iter().filter(|column| column.percent() >= WARN_PERCENT);
    Ok(low.map(|column| format!("{}; make room: {}", column.describe(), column.remedy())).collect())
}

/// A serial's sequence hangs on the column's default, an identity's on the column itself.
const SEQUENCES: &str = "
WITH filled AS (
  SELECT d.adrelid AS relation, d.adnum::int AS attnum, p.refobjid AS sequence, false AS identity
  FROM pg_catalog.pg_attrdef d
  JOIN pg_catalog.pg_depend p ON p.classid = 'pg_attrdef'::regclass AND p.objid = d.oid AND p.refclassid = 'pg_class'::regclass
  UNION
  SELECT p.refobjid, p.refobjsubid, p.objid, true
  FROM pg_catalog.pg_depend p
  WHERE p.classid = 'pg_class'::regclass AND p.refclassid = 'pg_class'::regclass AND p.deptype = 'i')
SELECT a.attname::text AS name, format_type(a.atttypid, NULL) AS sql_type, s.seqrelid::regclass::text AS sequence,
       f.identity AS identity, s.seqmax AS sequence_max,
       CASE a.atttypid WHEN 'int2'::regtype THEN 32767 WHEN 'int4'::regtype THEN 2147483647
                       ELSE 9223372036854775807 END::int8 AS column_max,
       coalesce(CASE WHEN has_sequence_privilege(s.seqrelid, 'SELECT, USAGE')
                     THEN pg_sequence_last_value(s.seqrelid) END, 0)::int8 AS last
FROM filled f
JOIN pg_catalog.pg_sequence s ON s.seqrelid = f.sequence
JOIN pg_catalog.pg_attribute a ON a.attrelid = f.relation AND a.attnum = f.attnum AND NOT a.attisdropped
JOIN pg_catalog.pg_class c ON c.oid = f.relation
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2 AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
ORDER BY a.attnum";

#[cfg(test)]
mod tests;
