//! What the settings hold as a secret comes out nowhere: not in logs at any level, not on the admin port, not in errors.

use std::fs;
use std::process::Command;

use toml::Value;

use crate::support::{
    Campaign, Certs, Job, Kafka, KafkaOptions, Message, PATIENCE, Postgres, Stack, client, restaurant, run, taken,
    wait_until,
};

/// Every secret of these tests has this in it, and nothing else does.
const MARK: &str = "s3cr3t";
const SASL: &str = "sasl-s3cr3t";
const DATABASE: &str = "database-s3cr3t";
const PASSPHRASE: &str = "passphrase-s3cr3t";

#[track_caller]
fn silent(what: &str, text: &str) {
    let line = text.lines().find(|line| line.contains(MARK) || line.contains("s3cr3t%"));
    assert_eq!(line, None, "{what}");
}

/// All that a job has said so far, on its streams and on its admin port.
#[track_caller]
fn all_silent(what: &str, job: &Job) {
    silent(what, &job.stdout());
    silent(what, &job.stderr());
    for path in ["/healthz", "/readyz", "/metrics"] {
        if let Some((_, body)) = job.get(path) {
            silent(&format!("{what}: {path}"), &body);
        }
    }
}

/// Runs a command that fails, at every level of logging; what it said at the plainest.
#[track_caller]
fn fails(what: &str, stack: &Stack, command: &str) -> String {
    let mut told = String::new();
    for level in ["trace", "debug", "info"] {
        let mut job = Job::spawn_with(stack, &[command], &[("RUST_LOG", level)]);
        let status = job.wait(PATIENCE);
        assert_ne!(status.code(), Some(0), "{what}: {}", job.stderr());
        all_silent(what, &job);
        told = job.stdout() + &job.stderr();
    }
    assert!(!told.is_empty(), "{what}");
    told
}

/// A job that waits for a server, for as long as it takes to say so, at the lowest level of logging.
#[track_caller]
fn waits(what: &str, stack: &Stack) {
    let mut job = Job::spawn_with(stack, &["run"], &[("RUST_LOG", "trace")]);
    wait_until(what, PATIENCE, || {
        assert!(job.is_running(), "{what}: {}", job.stderr());
        job.stderr().contains("waiting to start")
    });
    assert_eq!(job.get("/readyz").map(|(status, _)| status), Some(503));
    all_silent(what, &job);
    job.kill9();
}

fn with_password(url: &str, password: &str) -> String {
    let (before, rest) = url.split_once("://postgres:").expect("the superuser's URL");
    let (_, host) = rest.split_once('@').expect("a password");
    format!("{before}://postgres:{password}@{host}")
}

#[test]
fn a_job_that_works_says_nothing_of_its_secrets() {
    let users = vec![("bell".to_owned(), SASL.to_owned())];
    let kafka = Kafka::start(KafkaOptions { tls: true, users, ..KafkaOptions::default() });
    let postgres = Postgres::start_tls();
    let mut stack = Stack::private("secrets", &kafka, &postgres);
    stack.execute(&format!("ALTER USER postgres PASSWORD '{DATABASE}'"));
    stack.url = with_password(&stack.url, DATABASE);
    let secret = |name: &str, text: &str| {
        let file = stack.directory.join(name);
        fs::write(&file, format!("{text}\n")).expect("the directory is ours");
        format!("${{file:{}}}", file.display())
    };
    let (sasl, database) = (secret("sasl", SASL), secret("database", DATABASE));
    let passphrase = secret("passphrase", PASSPHRASE);
    let Certs { ca, client: certificate, client_key, .. } = Certs::shared();
    let locked = stack.directory.join("locked.key");
    let arguments = ["rsa", "-aes256", "-passout", &format!("pass:{PASSPHRASE}"), "-in"];
    run(Command::new("openssl").args(arguments).arg(client_key).arg("-out").arg(&locked), "");

    stack.set("postgres", "url", with_password(&stack.url.clone(), &database));
    for (key, value) in [
        ("bootstrap.servers", kafka.sasl_bootstrap()),
        ("security.protocol", "SASL_SSL".into()),
        ("sasl.mechanism", "SCRAM-SHA-512".into()),
        ("sasl.username", "bell".into()),
        ("sasl.password", sasl),
        ("ssl.ca.location", ca.display().to_string()),
        ("ssl.certificate.location", certificate.display().to_string()),
        ("ssl.key.location", locked.display().to_string()),
        ("ssl.key.password", passphrase.clone()),
    ] {
        stack.set("kafka", key, Value::from(value));
    }
    stack.subscribe([(client(1), restaurant(1))]);
    stack.produce([Message::of(Campaign::new(1, restaurant(1)).json()), Message::of("bad")]);
    let mut job = Job::spawn_with(&stack, &["run"], &[("RUST_LOG", "trace")]);
    taken(&mut job, 2);
    wait_until("ready", PATIENCE, || job.is_ready());
    all_silent("at work", &job);
    job.term();
    assert_eq!(job.wait(PATIENCE).code(), Some(0), "{}", job.stderr());
    all_silent("at its end", &job);
    for command in ["check", "init"] {
        let output = Job::output(&stack, &[command]);
        silent(command, &String::from_utf8_lossy(&output.stdout));
        silent(command, &String::from_utf8_lossy(&output.stderr));
    }

    // The servers refuse what is wrong.
    stack.set("kafka", "sasl.password", "wrong-s3cr3t");
    let told = fails("a wrong SASL password", &stack, "run");
    assert!(told.contains("sasl.password"), "{told}");
    stack.set("kafka", "sasl.password", SASL);
    stack.set("kafka", "ssl.key.password", "wrong-s3cr3t");
    let told = fails("a wrong passphrase", &stack, "run");
    assert!(told.contains("ssl.key"), "{told}");
    stack.set("kafka", "ssl.key.password", passphrase);
    stack.set("postgres", "url", with_password(&stack.url.clone(), "wrong-s3cr3t"));
    let told = fails("a wrong password of the database", &stack, "run");
    assert!(told.contains("28P01") && told.contains("check the user, the password"), "{told}");
}

#[test]
fn servers_that_are_away_are_named_without_the_secrets() {
    let mut stack = Stack::new("secrets_away");
    let good = stack.url.clone();
    stack.set("postgres", "url", format!("postgres://ann:{DATABASE}@127.0.0.1:1/shop"));
    waits("Postgres is away", &stack);
    stack.set("postgres", "url", good);
    for (key, value) in [
        ("security.protocol", "SASL_PLAINTEXT"),
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", "bell"),
        ("sasl.password", SASL),
        ("bootstrap.servers", "127.0.0.1:1"),
        // librdkafka says all it can.
        ("debug", "all"),
    ] {
        stack.set("kafka", key, value);
    }
    waits("Kafka is away", &stack);
}

#[test]
fn settings_that_are_wrong_are_told_without_the_secrets_in_them() {
    let mut stack = Stack::new("secrets_settings");
    let url = |text: &str| text.replace("PASSWORD", DATABASE);
    for wrong in [
        "postgres://ann:PASSWORD@x@127.0.0.1/shop",
        "postgres://ann:PASSWORD/x@127.0.0.1/shop",
        "postgres://ann:PASSWORD%zz@127.0.0.1/shop",
        "postgres://ann:PASSWORD@127.0.0.1:port/shop",
        "postgres://ann:PASSWORD@127.0.0.1/shop?sslmode=yes",
        "postgres://127.0.0.1/shop?pasword=PASSWORD",
        "postgres://127.0.0.1/shop?PASSWORD",
        "mysql://ann:PASSWORD@127.0.0.1/shop",
        "host=127.0.0.1 password='PASSWORD",
        "host=127.0.0.1 password=x PASSWORD=1",
        "PASSWORD",
    ] {
        stack.set("postgres", "url", url(wrong));
        fails(wrong, &stack, "check");
    }
    stack.set("postgres", "url", Value::Array(vec![url("postgres://ann:PASSWORD@127.0.0.1/shop").into()]));
    fails("a list", &stack, "check");
    stack.set("postgres", "url", "${file:/no/such/file}");
    fails("no file", &stack, "check");
    stack.set("postgres", "url", stack.url.clone());

    for (key, value) in [
        ("sasl.pasword", SASL),
        ("ssl.key.password", "${file:/no/such/s3cr3t-free}"),
        ("security.protocol", SASL),
        ("queue.buffering.max.ms", SASL),
    ] {
        let mut wrong = Stack::new("secrets_property");
        wrong.set("kafka", key, value.replace("/s3cr3t-free", "/file"));
        fails(key, &wrong, "check");
    }
    // Not TOML any more, on a line with a secret.
    let text = fs::read_to_string(stack.config()).expect("the settings");
    fs::write(stack.config(), format!("{text}\n[kafka.more]\n\"sasl.password\" = \"{SASL} \n")).expect("ours");
    fails("broken TOML", &stack, "check");
}
