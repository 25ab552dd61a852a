use super::*;

fn parse(sql: &str) -> Result<CampaignSchema> {
    CampaignSchema::parse(Path::new("campaigns.sql"), sql)
}

fn refusal(sql: &str) -> String {
    match parse(sql) {
        Ok(schema) => format!("accepted: {:?}", schema.schema()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_shipped_file_has_eight_columns_and_the_row_number_comes_last() {
    let schema = parse(include_str!("../../../sql/campaigns.sql")).unwrap();
    assert_eq!(schema.schema().fields().len(), 8);
    assert!(schema.schema().fields().iter().all(|field| !field.is_nullable()));
    let full = schema.full_schema();
    assert_eq!(full.field(8).name(), ROW);
    assert_eq!(full.field(8).data_type(), &DataType::UInt32);
}

#[test]
fn every_type_and_its_aliases() {
    use DataType::*;
    let micros = |zone: Option<&str>| Timestamp(TimeUnit::Microsecond, zone.map(Into::into));
    for (sql, expected) in [
        ("VARCHAR", Utf8View),
        ("text", Utf8View),
        ("CHAR", Utf8View),
        ("String", Utf8View),
        ("TINYINT", Int8),
        ("SMALLINT", Int16),
        ("int2", Int16),
        ("INT", Int32),
        ("INTEGER", Int32),
        ("int4", Int32),
        ("BIGINT", Int64),
        ("int8", Int64),
        ("REAL", Float32),
        ("FLOAT", Float32),
        ("float4", Float32),
        ("DOUBLE", Float64),
        ("DOUBLE PRECISION", Float64),
        ("float8", Float64),
        ("BOOLEAN", Boolean),
        ("bool", Boolean),
        ("DATE", Date32),
        ("TIMESTAMP", micros(None)),
        ("TIMESTAMP WITHOUT TIME ZONE", micros(None)),
        ("TIMESTAMP(6) WITH TIME ZONE", micros(Some("+00:00"))),
        ("timestamptz", micros(Some("+00:00"))),
    ] {
        let schema = parse(&format!("CREATE TABLE campaigns (a {sql} NOT NULL)")).unwrap().schema();
        assert_eq!(schema.field(0).data_type(), &expected, "{sql}");
    }
}

#[test]
fn unquoted_names_fold_and_nullable_is_the_default() {
    let schema = parse("create table CAMPAIGNS (Aa int, \"Bb\" int null, cC int not null);").unwrap().schema();
    let columns: Vec<_> = schema.fields().iter().map(|f| (f.name().as_str(), f.is_nullable())).collect();
    assert_eq!(columns, [("aa", true), ("Bb", true), ("cc", false)]);
}

#[test]
fn refusals_say_where_and_what() {
    let mut wrong = Vec::new();
    for (sql, expected) in [
        ("", "campaigns.sql:1:1: no statement in it"),
        ("SELECT 1", "campaigns.sql:1:1: not a CREATE TABLE"),
        ("CREATE TABLE campaigns (a INT); CREATE TABLE b (c INT)", "campaigns.sql:1:46: a second statement"),
        ("CREATE TABLE campaign (a INT)", "campaigns.sql:1:14: the table is named campaign, expected campaigns"),
        ("CREATE TABLE s.campaigns (a INT)", "campaigns.sql:1:14: the table is named s.campaigns, expected campaigns"),
        ("CREATE TABLE campaigns ()", "campaigns.sql:1:14: no columns"),
        (
            "CREATE TABLE campaigns (\n  a BIGNIT NOT NULL)",
            "campaigns.sql:2:5: column a: type BIGNIT is not accepted; did you mean BIGINT?",
        ),
        ("CREATE TABLE campaigns (a VARCHAR(10))", "campaigns.sql:1:27: column a: type VARCHAR(10) is not accepted"),
        ("CREATE TABLE campaigns (a JSON)", "campaigns.sql:1:27: column a: type JSON is not accepted"),
        ("CREATE TABLE campaigns (a)", "campaigns.sql:1:26: not SQL: Expected: a data type name, found: )"),
        ("CREATE TABLE campaigns (a INT, A INT)", "campaigns.sql:1:32: column a stands twice"),
        (
            "CREATE TABLE campaigns (__row INT)",
            "campaigns.sql:1:25: column __row: names that start with __ belong to the job",
        ),
        (
            "CREATE TABLE campaigns (a INT\n NOT NULL DEFAULT 0)",
            "campaigns.sql:2:11: column a: `DEFAULT 0` is not checked here",
        ),
        (
            "CREATE TABLE campaigns (a INT PRIMARY KEY)",
            "campaigns.sql:1:31: column a: `PRIMARY KEY` is not checked here",
        ),
        ("CREATE TABLE campaigns (a INT NULL NOT NULL)", "campaigns.sql:1:25: column a: both NULL and NOT NULL"),
        (
            "CREATE TABLE IF NOT EXISTS campaigns (a INT)",
            "campaigns.sql:1:28: more than names and types in CREATE TABLE",
        ),
        ("CREATE TABLE campaigns (a INT) AS SELECT 1", "campaigns.sql:1:14: more than names and types in CREATE TABLE"),
        (
            "CREATE TABLE campaigns (a INT,\n PRIMARY KEY (a))",
            "campaigns.sql:2:15: `PRIMARY KEY (a)` cannot be checked message by message",
        ),
        (
            "CREATE TABLE campaigns (a INT",
            "campaigns.sql: not SQL: Expected: ',' or ')' after column definition, found: EOF",
        ),
        (
            "CREATE TABEL campaigns (a INT)",
            "campaigns.sql:1:8: not SQL: Expected: an object type after CREATE, found: TABEL",
        ),
        ("CREATE TABLE campaigns (a 'INT", "campaigns.sql:1:27: not SQL: Unterminated string literal"),
    ] {
        let found = refusal(sql);
        if found != expected {
            wrong.push((found, expected));
        }
    }
    assert_eq!(wrong, []);
}
