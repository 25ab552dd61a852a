//! Encrypted and authenticated connections to both servers, and what a refusal says.

use std::time::Duration;

use toml::Value;

use crate::support::{Certs, Job, Kafka, KafkaOptions, Load, Postgres, Stack, wait_until};

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
