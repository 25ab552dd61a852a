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

/// All commands that talk to both servers, with what else they are told.
const COMMANDS: [&[&str]; 6] = [
    &["run"],
    &["check"],
    &["init"],
    &["preview", "--from-kafka", "2", "--lookup", "subscribers_restaurants"],
    &["repair"],
    &["repair", "--adopt", "--execute"],
];

/// Runs a command to its end, which must have this code, and looks at all it says; at the plainest level, that.
#[track_caller]
fn says(what: &str, stack: &Stack, args: &[&str], code: impl Fn(i32) -> bool) -> String {
    // What is said at `debug` is said at `trace`, too; the other commands have no log.
    let levels: &[&str] = if ["run", "repair"].contains(&args[0]) { &["trace", "info"] } else { &["trace"] };
    let mut told = String::new();
    for level in levels {
        let mut job = Job::spawn_with(stack, args, &[("RUST_LOG", level)]);
        let status = job.wait(PATIENCE);
        told = job.stdout() + &job.stderr();
        silent(&format!("{what}: {args:?} at {level}"), &told);
        assert!(status.code().is_some_and(&code), "{what}: {args:?}: {status}\n{told}");
    }
    assert!(!told.is_empty(), "{what}: {args:?}");
    told
}

/// Runs every command, each of which fails and tells of it in these words.
#[track_caller]
fn all_fail(what: &str, stack: &Stack, words: &[&str]) {
    for args in COMMANDS {
        let told = says(what, stack, args, |code| code != 0);
        let missing = words.iter().find(|word| !told.contains(**word));
        assert_eq!(missing, None, "{what}: {args:?}: {told}");
    }
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
        // librdkafka says all it can, its settings included.
        ("debug", "all".into()),
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
    works_without_a_word(&stack);

    // The servers refuse what is wrong.
    stack.set("kafka", "sasl.password", "wrong-s3cr3t");
    all_fail("a wrong SASL password", &stack, &["sasl.password"]);
    stack.set("kafka", "sasl.password", SASL);
    stack.set("kafka", "ssl.key.password", "wrong-s3cr3t");
    all_fail("a wrong passphrase", &stack, &["ssl.key"]);
    stack.set("kafka", "ssl.key.password", passphrase);
    stack.set("postgres", "url", with_password(&stack.url.clone(), "wrong-s3cr3t"));
    all_fail("a wrong password of the database", &stack, &["28P01", "check the user, the password"]);
}

/// The commands beside `run`, each in what it does at its best, and `repair` with something to repair.
#[track_caller]
fn works_without_a_word(stack: &Stack) {
    fs::write(stack.directory.join("campaigns.jsonl"), Campaign::new(2, restaurant(1)).json()).expect("ours");
    let lookup = ["--lookup", "subscribers_restaurants"];
    for (args, word) in [
        (&["check"][..], "All is ready"),
        (&["init"], "All is there"),
        (&["init", "--print"], "CREATE TABLE"),
        (&["preview", "campaigns.jsonl", lookup[0], lookup[1]], "campaign 2"),
        (&["preview", "--from-kafka", "2", "--json"], "campaign 1"),
        (&["repair"], "Nothing to repair"),
    ] {
        let told = says("all is well", stack, args, |code| code == 0);
        assert!(told.contains(word), "{args:?}: {told}");
    }
    stack.execute("DELETE FROM dinnerbell.progress WHERE partition = 0");
    for (args, word) in [
        (&["run"][..], "the ledger's progress table no row"),
        (&["repair"], "--adopt --execute"),
        (&["repair", "--adopt"], "nothing was changed"),
        (&["repair", "--offsets", "--execute"], "nothing was changed"),
    ] {
        let told = says("something to repair", stack, args, |code| code == 1);
        assert!(told.contains(word), "{args:?}: {told}");
    }
    let told = says("repaired", stack, &["repair", "--adopt", "--execute"], |code| code == 0);
    assert!(told.contains("Nothing to repair"), "{told}");
}

#[test]
fn servers_that_are_away_are_named_without_the_secrets() {
    let mut stack = Stack::new("secrets_away");
    let good = stack.url.clone();
    stack.set("postgres", "url", format!("postgres://ann:{DATABASE}@127.0.0.1:1/shop"));
    waits("Postgres is away", &stack);
    // A repair that may do something looks at the servers no earlier.
    let others = &COMMANDS[1..=4];
    for args in others {
        let told = says("Postgres is away", &stack, args, |code| code == 1);
        assert!(told.contains("127.0.0.1"), "{args:?}: {told}");
    }
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
    for args in others {
        let told = says("Kafka is away", &stack, args, |code| code == 1);
        assert!(told.contains("127.0.0.1:1"), "{args:?}: {told}");
    }
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
        all_fail(wrong, &stack, &["postgres"]);
    }
    stack.set("postgres", "url", Value::Array(vec![url("postgres://ann:PASSWORD@127.0.0.1/shop").into()]));
    all_fail("a list", &stack, &["postgres"]);
    stack.set("postgres", "url", "${file:/no/such/file}");
    all_fail("no file", &stack, &["/no/such/file"]);
    stack.set("postgres", "url", stack.url.clone());

    for (key, value) in [
        ("sasl.pasword", SASL),
        ("ssl.key.password", "${file:/no/such/s3cr3t-free}"),
        ("security.protocol", SASL),
        ("queue.buffering.max.ms", SASL),
    ] {
        let mut wrong = Stack::new("secrets_property");
        wrong.set("kafka", key, value.replace("/s3cr3t-free", "/file"));
        all_fail(key, &wrong, &[]);
    }
    for (section, key, value) in [
        ("postgres", "password", DATABASE),
        ("sink.kafka.sasl", "password.value", SASL),
        ("source.kafka", "group.id", PASSPHRASE),
    ] {
        let mut wrong = Stack::new("secrets_section");
        wrong.set(section, key, value);
        all_fail(key, &wrong, &[key]);
    }
    // Not TOML any more, on a line with a secret.
    let text = fs::read_to_string(stack.config()).expect("the settings");
    fs::write(stack.config(), format!("{text}\n[kafka.more]\n\"sasl.password\" = \"{SASL} \n")).expect("ours");
    all_fail("broken TOML", &stack, &["dinnerbell.toml"]);
}
