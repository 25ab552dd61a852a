//! Encrypted and authenticated connections to both servers, and what a refusal says.

use std::time::Duration;

use toml::Value;

use crate::support::{Certs, Job, Kafka, KafkaOptions, Load, Message, Postgres, Stack, create_topic, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);
const LOAD: Load = Load { restaurants: 2, subscribers: 3 };

fn secured() -> (Kafka, Postgres) {
    let users = vec![("bell".to_owned(), "a secret".to_owned())];
    (Kafka::start(KafkaOptions { tls: true, users, ..KafkaOptions::default() }), Postgres::start_tls())
}

fn use_scram(stack: &mut Stack, kafka: &Kafka, password: &str) {
    for (key, value) in [
        ("bootstrap.servers", kafka.sasl_bootstrap().as_str()),
        ("security.protocol", "SASL_SSL"),
        ("sasl.mechanism", "SCRAM-SHA-512"),
        ("sasl.username", "bell"),
        ("sasl.password", password),
        ("ssl.ca.location", &kafka.ca_file().display().to_string()),
    ] {
        stack.set("kafka", key, Value::from(value));
    }
}

fn use_postgres(stack: &mut Stack, host: &str, ca: &std::path::Path) {
    let (address, _) = stack.url.split_once('?').unwrap_or((&stack.url, ""));
    let address = address.replace("127.0.0.1", host);
    let url = format!("{address}?sslmode=verify-full&sslrootcert={}", ca.display());
    stack.set("postgres", "url", Value::from(url));
}

fn refused(stack: &Stack) -> String {
    let mut job = Job::spawn(stack, &["run"]);
    let status = job.wait(PATIENCE);
    assert_ne!(status.code(), Some(0));
    assert!(!job.stderr().contains("a secret"), "a password in the log: {}", job.stderr());
    job.stderr()
}

#[test]
fn both_servers_over_tls() {
    let (kafka, postgres) = secured();
    let Certs { ca, other_ca, client, client_key, .. } = Certs::shared();
    let mut stack = Stack::private("tls", &kafka, &postgres);
    LOAD.subscribe(&stack);
    use_scram(&mut stack, &kafka, "a secret");
    use_postgres(&mut stack, "localhost", ca);
    LOAD.produce(&stack, 0..10);
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("all rows", PATIENCE, || LOAD.is_in_postgres(&stack, 10));
    job.term();
    assert_eq!(job.wait(PATIENCE).code(), Some(0), "{}", job.stderr());

    // A client certificate instead of a password.
    for (key, value) in [
        ("bootstrap.servers", kafka.mutual_bootstrap()),
        ("security.protocol", "SSL".into()),
        ("ssl.certificate.location", client.display().to_string()),
        ("ssl.key.location", client_key.display().to_string()),
    ] {
        stack.set("kafka", key, Value::from(value));
    }
    LOAD.produce(&stack, 10..20);
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("all rows", PATIENCE, || LOAD.is_in_postgres(&stack, 20));
    job.term();
    assert_eq!(job.wait(PATIENCE).code(), Some(0), "{}", job.stderr());
    LOAD.verify(&stack, 20);

    // What must not work, each told as what it is.
    use_scram(&mut stack, &kafka, "a wrong one");
    let told = refused(&stack);
    assert!(told.contains("sasl.password"), "{told}");
    use_scram(&mut stack, &kafka, "a secret");
    stack.set("kafka", "ssl.ca.location", Value::from(other_ca.display().to_string()));
    let told = refused(&stack);
    assert!(told.contains("ssl.ca.location"), "{told}");
    use_scram(&mut stack, &kafka, "a secret");
    use_postgres(&mut stack, "localhost", other_ca);
    let told = refused(&stack);
    assert!(told.contains("sslrootcert"), "{told}");
}

/// What `docs/security.md` tells an administrator to grant lets the job do all it does, and nothing else is granted.
#[test]
fn the_documented_grants_are_enough() {
    let mut stack = Stack::new("grants");
    let role = format!("ringer_{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
    let documentation = include_str!("../../docs/security.md");
    let (_, rest) = documentation.split_once("```sql\n").expect("the grants");
    let (grants, _) = rest.split_once("```").expect("their end");
    Job::run(&stack, &["init"]);
    stack.execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'x'; {}", grants.replace("ringer", &role)));
    let (_, place) = stack.url.split_once('@').expect("the superuser's URL");
    stack.set("postgres", "url", format!("postgres://{role}:x@{place}"));
    LOAD.subscribe(&stack);
    LOAD.produce(&stack, 0..10);
    // Too large for its topic: a letter in the ledger.
    stack.produce([Message::of("x".repeat(1_000_000)).header("a", &[b'y'; 40_000])]);
    let narrow = format!("{}.narrow", stack.group);
    create_topic(&stack.bootstrap, &narrow, 1, &[("max.message.bytes", "10000")]);
    stack.set("dead_letters", "topic", narrow);
    for batch in [10, 20] {
        let mut job = Job::spawn(&stack, &["run"]);
        wait_until("all rows", PATIENCE, || {
            assert!(job.is_running(), "{}", job.stderr());
            LOAD.is_in_postgres(&stack, batch)
        });
        job.term();
        assert_eq!(job.wait(PATIENCE).code(), Some(0), "{}", job.stderr());
        LOAD.produce(&stack, batch..batch + 10);
    }
    wait_until("the letter is kept", PATIENCE, || stack.number("SELECT count(*) FROM dinnerbell.letters") == 1);
    let output = Job::output(&stack, &["check"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
}
