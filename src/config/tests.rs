use std::path::Path;

use insta::assert_snapshot;

use super::*;

fn variables(name: &str) -> Option<String> {
    match name {
        "LANES" => Some("4".into()),
        "PASSWORD" => Some("hunter2".into()),
        "WORD" => Some("many".into()),
        _ => None,
    }
}

fn parse(text: &str) -> Result<Config> {
    Config::parse(text, Path::new("conf/dinnerbell.toml"), &variables)
}

/// The error as `main` shows it.
fn complaint(text: &str) -> String {
    let error = parse(text).expect_err(text);
    assert_eq!(error.exit_code(), 2);
    format!("{error}\n{}", error.remedy().unwrap_or_default())
}

#[test]
fn without_a_file_the_defaults_hold() {
    let config = Config::parse("", Path::new(DEFAULT_FILE), &|_| None).unwrap();
    assert_eq!(config.source.topic, "campaigns");
    assert_eq!(config.source.group_id, "dinnerbell");
    assert_eq!(config.source.start, Start::Earliest);
    assert_eq!(config.source.kafka["bootstrap.servers"], "localhost:9092");
    assert_eq!(config.sink_kafka.kafka, config.source.kafka);
    assert_eq!(config.sink_kafka.topic, "triggers");
    assert_eq!(config.sink_kafka.key, None);
    assert_eq!(config.sink_postgres.table.to_string(), "public.subscribers_feedback");
    assert_eq!(config.postgres.display(), "postgres://localhost:5432/postgres");
    assert_eq!(config.dead_letters.topic, "campaigns.dead_letters");
    assert_eq!(config.sql_directory, Path::new("sql"));
    assert_eq!(config.lookup_refresh, Some(Duration::from_secs(300)));
    assert_eq!((config.batch.max_messages, config.batch.max_bytes), (100_000, 64 << 20));
    assert_eq!((config.job.instance, config.job.lanes), (None, 1));
    assert_eq!(config.ledger_schema, "dinnerbell");
    assert_eq!(config.admin_listen, "127.0.0.1:9464".parse().ok());
    assert_eq!((config.memory_limit, config.max_rows), (512 << 20, 100_000_000));
}

#[test]
fn every_setting_can_be_set() {
    let config = parse(
        r#"
        [kafka]
        bootstrap.servers = ["a:9092", "b:${PORT:-9093}"]
        "security.protocol" = "SASL_SSL"
        sasl.mechanism = "SCRAM-SHA-512"
        [postgres]
        url = "host=db user=x password=${PASSWORD}"
        [source]
        topic = "in"
        group_id = "g"
        start = "committed"
        [source.kafka]
        "fetch.wait.max.ms" = 10
        "sasl.mechanism" = "PLAIN"
        [sink.postgres]
        table = 'app."Feedback"'
        [sink.kafka]
        topic = "out"
        key = "client_id"
        "linger.ms" = 0.5
        "topic.metadata.refresh.sparse" = false
        [dead_letters]
        topic = "dead"
        [sql]
        directory = "queries"
        [lookup]
        refresh = "never"
        [batch]
        max_messages = 1_000
        max_bytes = "1MB"
        [job]
        instance = "one"
        lanes = "${LANES}"
        [ledger]
        schema = "bell_2"
        [admin]
        listen = ""
        [transform]
        memory = "1GiB"
        max_rows = 5
        "#,
    )
    .unwrap();
    assert_eq!(config.source.kafka["bootstrap.servers"], "a:9092,b:9093");
    assert_eq!(config.source.kafka["fetch.wait.max.ms"], "10");
    assert_eq!(config.source.kafka["sasl.mechanism"], "PLAIN");
    assert_eq!(config.source.start, Start::Committed);
    assert_eq!(config.sink_kafka.kafka["sasl.mechanism"], "SCRAM-SHA-512");
    assert_eq!(config.sink_kafka.kafka["linger.ms"], "0.5");
    assert_eq!(config.sink_kafka.kafka["topic.metadata.refresh.sparse"], "false");
    assert!(!config.sink_kafka.kafka.contains_key("fetch.wait.max.ms"));
    assert!(!config.sink_kafka.kafka.contains_key("key"));
    assert_eq!(config.sink_kafka.key.as_deref(), Some("client_id"));
    assert_eq!(config.sink_postgres.table.sql(), r#""app"."Feedback""#);
    assert_eq!(config.postgres.client.get_password(), Some(b"hunter2".as_slice()));
    assert_eq!(config.sql_directory, Path::new("conf/queries"), "counts from the settings file");
    assert_eq!(config.lookup_refresh, None);
    assert_eq!((config.batch.max_messages, config.batch.max_bytes), (1_000, 1_000_000));
    assert_eq!((config.job.instance.as_deref(), config.job.lanes), (Some("one"), 4));
    assert_eq!(config.admin_listen, None);
    assert_eq!((config.memory_limit, config.max_rows), (1 << 30, 5));
}

#[test]
fn the_settings_file_of_the_design_is_the_defaults() {
    let text = r#"
        [kafka]
        "bootstrap.servers" = "${KAFKA_BOOTSTRAP_SERVERS:-localhost:9092}"
        [postgres]
        url = "${DATABASE_URL:-postgres://localhost/postgres}"
        [source]
        topic = "campaigns"
        group_id = "dinnerbell"
        start = "earliest"
        [sink.postgres]
        table = "public.subscribers_feedback"
        [sink.kafka]
        topic = "triggers"
        [dead_letters]
        topic = "campaigns.dead_letters"
        [sql]
        directory = "sql"
        [lookup]
        refresh = "5m"
        [batch]
        max_messages = 100_000
        max_bytes = "64MiB"
        [job]
        instance = ""
        lanes = 1
        [ledger]
        schema = "dinnerbell"
        [admin]
        listen = "127.0.0.1:9464"
    "#;
    assert_eq!(format!("{:?}", parse(text).unwrap()), format!("{:?}", parse("").unwrap()));
}

#[test]
fn unknown_settings() {
    assert_snapshot!(complaint("[source]\ntopic = \"a\"\ntopc = \"b\"\n"), @r#"
    source.topc: unknown setting (conf/dinnerbell.toml, line 3)
    did you mean source.topic?
    "#);
    assert_snapshot!(complaint("[souce]\ntopic = \"a\"\n"), @r#"
    souce: unknown section (conf/dinnerbell.toml, line 1)
    did you mean source?
    "#);
    assert_snapshot!(complaint("[batch]\nflavour = 1\n"), @r#"
    batch.flavour: unknown setting (conf/dinnerbell.toml, line 2)
    known here: max_messages, max_bytes
    "#);
    assert_snapshot!(complaint("[kafka]\n\"sasl.user\" = \"x\"\n"), @r#"
    kafka."sasl.user": librdkafka has no such property (conf/dinnerbell.toml, line 2)
    did you mean "sasl.username"?
    "#);
    assert_snapshot!(complaint("[sink.kafka]\nkee = \"x\"\n"), @r#"
    sink.kafka.kee: librdkafka has no such property (conf/dinnerbell.toml, line 2)
    did you mean "key"?
    "#);
}

#[test]
fn wrong_types() {
    assert_snapshot!(complaint("[batch]\n\nmax_messages = \"many\"\n"), @r#"
    batch.max_messages: expected an integer, found a string (conf/dinnerbell.toml, line 3)
    write the number without quotes
    "#);
    assert_snapshot!(complaint("[source]\ntopic = 5\n"), @r#"
    source.topic: expected a string, found an integer (conf/dinnerbell.toml, line 2)
    put it in double quotes
    "#);
    assert_snapshot!(complaint("batch = 5\n"), @"batch: expected a table, found an integer (conf/dinnerbell.toml, line 1)");
    assert_snapshot!(complaint("[job]\nlanes = \"${WORD}\"\n"), @"job.lanes: expected an integer, and the variable holds something else (conf/dinnerbell.toml, line 2)");
    assert_snapshot!(complaint("[kafka]\n\"linger.ms\" = 2020-01-01\n"), @r#"kafka."linger.ms": expected a string, a number or a boolean, found a datetime (conf/dinnerbell.toml, line 2)"#);
    assert_snapshot!(complaint("[kafka]\n\"fetch.wait.max.ms\" = \"soon\"\n"), @r#"
    kafka."fetch.wait.max.ms": Invalid value for configuration property "fetch.wait.max.ms" (conf/dinnerbell.toml, line 2)
    see librdkafka's CONFIGURATION.md
    "#);
    assert_snapshot!(complaint("[source]\ntopic = campaigns\n"), @r#"
    conf/dinnerbell.toml, line 2: string values must be quoted, expected literal string
    correct the TOML; strings need quotes, and so do keys with characters beyond A-Za-z0-9_-
    "#);
}

#[test]
fn a_property_has_one_value_under_both_of_its_names() {
    let names = ["[kafka]\n\"compression.codec\" = \"gzip\"\n", "[sink.kafka]\n\"compression.type\" = \"zstd\"\n"];
    let config = parse(&names.concat()).unwrap();
    assert_eq!(config.source.kafka["compression.type"], "gzip");
    assert_eq!(config.sink_kafka.kafka["compression.type"], "zstd");
    assert!(!config.sink_kafka.kafka.contains_key("compression.codec"));
    assert_snapshot!(complaint("[kafka]\n\"linger.ms\" = 1\n\"queue.buffering.max.ms\" = 2\n"), @r#"
    kafka."queue.buffering.max.ms": this is "linger.ms" by another name, which is set as well (conf/dinnerbell.toml, line 3)
    keep one of them
    "#);
    assert_snapshot!(complaint("[kafka]\n\"message.timeout.ms\" = 1000\n\"topic.message.timeout.ms\" = 2000\n"), @r#"
    kafka."message.timeout.ms": this is "topic.message.timeout.ms" by another name, which is set as well (conf/dinnerbell.toml, line 2)
    keep one of them
    "#);
    let config =
        parse("[kafka]\n\"topic.request.timeout.ms\" = 3\n[sink.kafka]\n\"request.timeout.ms\" = 4\n").unwrap();
    assert_eq!(config.source.kafka["request.timeout.ms"], "3");
    assert_eq!(config.sink_kafka.kafka["request.timeout.ms"], "4");
    // A topic's compression is not its client's.
    let both = "[sink.kafka]\n\"compression.type\" = \"gzip\"\n\"topic.compression.codec\" = \"inherit\"\n";
    let config = parse(both).unwrap();
    assert_eq!(config.sink_kafka.kafka["compression.type"], "gzip");
    assert_eq!(config.sink_kafka.kafka["topic.compression.type"], "inherit");
}

#[test]
fn what_is_owned_is_so_for_topics_too() {
    assert_snapshot!(complaint("[kafka]\n\"topic.auto.offset.reset\" = \"latest\"\n"), @r#"
    kafka."topic.auto.offset.reset": this property is the job's own: offsets come from the ledger; a reset would skip or repeat messages (conf/dinnerbell.toml, line 2)
    set [source] start
    "#);
}

#[test]
fn out_of_range() {
    assert_snapshot!(complaint("[batch]\nmax_bytes = \"2GiB\"\n"), @r#"
    batch.max_bytes: must be from 1.0 KiB to 1.0 GiB, and is 2GiB (conf/dinnerbell.toml, line 2)
    write a size such as "64MiB" or "1GB", from 1.0 KiB to 1.0 GiB
    "#);
    assert_snapshot!(complaint("[batch]\nmax_bytes = \"lots\"\n"), @r#"
    batch.max_bytes: "lots" is no size in bytes (conf/dinnerbell.toml, line 2)
    write a size such as "64MiB" or "1GB", from 1.0 KiB to 1.0 GiB
    "#);
    assert_snapshot!(complaint("[batch]\nmax_messages = 0\n"), @r#"
    batch.max_messages: must be from 1 to 10000000, and is 0 (conf/dinnerbell.toml, line 2)
    choose a value from 1 to 10000000; the default is 100000
    "#);
    assert_snapshot!(complaint("[job]\nlanes = 65\n"), @r#"
    job.lanes: must be from 1 to 64, and is 65 (conf/dinnerbell.toml, line 2)
    choose a value from 1 to 64; the default is 1
    "#);
    assert_snapshot!(complaint("[job]\nlanes = -1\n"), @r#"
    job.lanes: must be from 1 to 64, and is -1 (conf/dinnerbell.toml, line 2)
    choose a value from 1 to 64; the default is 1
    "#);
    assert_snapshot!(complaint("[lookup]\nrefresh = \"5ms\"\n"), @r#"
    lookup.refresh: must be at least 1s, and is 5ms (conf/dinnerbell.toml, line 2)
    write a time such as "30s", "5m" or "1h 30m", at least "1s", or "never"
    "#);
}

#[test]
fn bad_values() {
    assert_snapshot!(complaint("[lookup]\nrefresh = \"5 fortnights\"\n"), @r#"
    lookup.refresh: "5 fortnights" is no duration: unknown time unit "fortnights", supported units: ns, us/µs, ms, sec, min, hours, days, weeks, months, years (and few variations) (conf/dinnerbell.toml, line 2)
    write a time such as "30s", "5m" or "1h 30m", at least "1s", or "never"
    "#);
    assert_snapshot!(complaint("[source]\nstart = \"beginning\"\n"), @r#"
    source.start: "beginning" will not do: unknown start (conf/dinnerbell.toml, line 2)
    write "earliest", "latest" or "committed"
    "#);
    assert_snapshot!(complaint("[admin]\nlisten = \"localhost:9464\"\n"), @r#"
    admin.listen: "localhost:9464" will not do: invalid socket address syntax (conf/dinnerbell.toml, line 2)
    write an IP address and a port, such as "127.0.0.1:9464" or "0.0.0.0:9464", or "" for none
    "#);
    assert_snapshot!(complaint("[sink.postgres]\ntable = \"feedback\"\n"), @r#"
    sink.postgres.table: "feedback" will not do: expected schema.table (conf/dinnerbell.toml, line 2)
    name the schema and the table, such as "public.subscribers_feedback"
    "#);
    assert_snapshot!(complaint("[ledger]\nschema = \"Bell\"\n"), @r#"
    ledger.schema: "Bell" cannot name the ledger's schema (conf/dinnerbell.toml, line 2)
    use lower-case letters, digits and `_`, not a digit first, not `pg_` first, at most 63 characters
    "#);
    assert_snapshot!(complaint("[source]\ntopic = \"\"\n"), @r#"
    source.topic: "" cannot name a topic (conf/dinnerbell.toml, line 2)
    use 1 to 249 ASCII letters, digits, `.`, `_` and `-`
    "#);
    assert_snapshot!(complaint("[sink.kafka]\ntopic = \"campaigns\"\n"), @r#"
    sink.kafka.topic: "campaigns" is source.topic too (conf/dinnerbell.toml, line 2)
    campaigns, triggers and dead letters need a topic each
    "#);
    assert_snapshot!(complaint("[sink.kafka]\n\"bootstrap.servers\" = \"other:9092\"\n"), @r#"
    sink.kafka."bootstrap.servers": names other servers than the source's: rows and offsets share a transaction, so it must be one cluster
    set "bootstrap.servers" once, under [kafka]
    "#);
}

#[test]
fn variables_that_are_not_set() {
    assert_snapshot!(complaint("[postgres]\nurl = \"postgres://u:${PGPASS}@h/d\"\n"), @r#"
    postgres.url: the environment variable PGPASS is not set (conf/dinnerbell.toml, line 2)
    set PGPASS, or give it a default: ${PGPASS:-...}
    "#);
    assert_snapshot!(complaint("[kafka]\n\"bootstrap.servers\" = [\"a\", \"${BROKER}\"]\n"), @r#"
    kafka."bootstrap.servers": the environment variable BROKER is not set (conf/dinnerbell.toml, line 2)
    set BROKER, or give it a default: ${BROKER:-...}
    "#);
    assert_snapshot!(complaint("[kafka]\n\"sasl.password\" = \"${file:/no/such/secret}\"\n"), @r#"
    kafka."sasl.password": cannot read the file /no/such/secret: No such file or directory (os error 2) (conf/dinnerbell.toml, line 2)
    check that the file exists and that the job's user may read it
    "#);
}

#[test]
fn properties_that_the_protocol_owns() {
    assert_snapshot!(complaint("[kafka]\n\"enable.auto.commit\" = true\n"), @r#"
    kafka."enable.auto.commit": this property is the job's own: progress is committed with each transaction, and by nothing else (conf/dinnerbell.toml, line 2)
    remove it
    "#);
    assert_snapshot!(complaint("[source.kafka]\ngroup.id = \"x\"\n"), @r#"
    source.kafka."group.id": this property is the job's own: it is also the ledger's key (conf/dinnerbell.toml, line 2)
    set [source] group_id
    "#);
    assert_snapshot!(complaint("[source.kafka]\n\"auto.offset.reset\" = \"latest\"\n"), @r#"
    source.kafka."auto.offset.reset": this property is the job's own: offsets come from the ledger; a reset would skip or repeat messages (conf/dinnerbell.toml, line 2)
    set [source] start
    "#);
    assert_snapshot!(complaint("[sink.kafka]\nacks = 1\n"), @r#"
    sink.kafka.acks: this property is the job's own: transactions need idempotence and all acknowledgements (conf/dinnerbell.toml, line 2)
    remove it
    "#);
    for section in ["kafka", "source.kafka", "sink.kafka"] {
        for property in [
            "enable.auto.commit",
            "enable.auto.offset.store",
            "isolation.level",
            "group.protocol",
            "partition.assignment.strategy",
            "group.id",
            "group.instance.id",
            "auto.offset.reset",
            "transactional.id",
            "enable.idempotence",
            "acks",
            "request.required.acks",
            "transaction.timeout.ms",
        ] {
            let text = complaint(&format!("[{section}]\n{property:?} = \"x\"\n"));
            assert!(text.contains("the job's own") && text.contains(property), "{text}");
        }
    }
}

#[test]
fn passwords_show_in_no_debug_and_no_error() {
    let secrets = r#"
        [kafka]
        "sasl.password" = "hunter2"
        "ssl.key.password" = "hunter2"
        "ssl.key.pem" = "hunter2"
        "sasl.oauthbearer.config" = "hunter2"
        [postgres]
        url = "postgres://u:${PASSWORD}@h/d"
    "#;
    let config = parse(secrets).unwrap();
    assert_eq!(config.source.kafka["sasl.password"], "hunter2");
    assert!(!format!("{config:?} {config:#?}").contains("hunter2"));
    for broken in [
        "[postgres]\nurl = \"postgres://u:${PASSWORD}@x@h/d\"\n",
        "[postgres]\nurl = \"postgres://u:hunter2@h/d\n",
        "[kafka]\n\"sasl.pasword\" = \"hunter2\"\n",
        "[kafka]\n\"fetch.wait.max.ms\" = \"hunter2\"\n",
        "[kafka]\n\"security.protocol\" = \"hunter2\"\n",
        "[job]\nlanes = \"${PASSWORD}\"\n",
    ] {
        assert!(!complaint(broken).contains("hunter2"), "{}", complaint(broken));
    }
}

#[test]
fn a_file_that_was_named_must_exist() {
    let error = Config::load(Some(Path::new("/no/such/file.toml"))).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert_snapshot!(error.to_string(), @"--config: cannot read /no/such/file.toml: No such file or directory (os error 2)");
}
