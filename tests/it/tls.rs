//! Who is believed to be the server: wrong names, expired certificates and unknown authorities are refused, each told as
//! what it is; `sslmode` means what libpq says.

use std::path::Path;

use dinnerbell::config::{PostgresSettings, Secret};
use dinnerbell::error::Action;
use dinnerbell::kafka::probe;
use dinnerbell::postgres;

use crate::support::{
    Certs, Job, Kafka, KafkaOptions, PATIENCE, Postgres, PostgresOptions, Stack, block_on, wait_until,
};

/// Connects as the job does: whether over TLS, or why not and what to do.
fn connect(options: &str) -> Result<bool, String> {
    let settings = PostgresSettings::parse(Secret::new(options)).expect("the options are right");
    block_on(async move {
        let client = postgres::connect(&settings, "test").await.map_err(|error| {
            assert_eq!(error.action(), Action::Halt, "{error}");
            format!("{error}\n{}", error.remedy().unwrap_or_default())
        })?;
        let row = client.query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).await;
        Ok(row.expect("a row").get(0))
    })
}

/// `host=... hostaddr=127.0.0.1 ...` for this server.
fn options(server: &Postgres, host: &str, mode: &str, root: Option<&Path>) -> String {
    let url = server.url("postgres");
    let (_, rest) = url.split_once("://postgres:").expect("the superuser's URL");
    let (password, _) = rest.split_once('@').expect("a password");
    let root = root.map_or(String::new(), |root| format!(" sslrootcert='{}'", root.display()));
    let port = server.port();
    format!(
        "host={host} hostaddr=127.0.0.1 port={port} user=postgres dbname=postgres password={password} sslmode={mode}{root}"
    )
}

#[test]
fn sslmode_means_what_libpq_says() {
    let Certs { ca, other_ca, expired, .. } = Certs::shared();
    let server = Postgres::start_tls();
    let (ours, other) = (Some(ca.as_path()), Some(other_ca.as_path()));
    let tried = |host: &str, mode: &str, root| connect(&options(&server, host, mode, root));
    for (host, mode, root, encrypted) in [
        ("localhost", "disable", None, false),
        ("localhost", "allow", None, false),
        ("localhost", "prefer", None, true),
        // Without a root certificate, encryption alone: anybody may be the server.
        ("elsewhere.example", "require", None, true),
        // With one, the chain is looked at, and the name is not.
        ("elsewhere.example", "require", ours, true),
        ("elsewhere.example", "verify-ca", ours, true),
        ("localhost", "verify-full", ours, true),
        ("127.0.0.1", "verify-full", ours, true),
    ] {
        assert_eq!(tried(host, mode, root), Ok(encrypted), "{host} {mode} {root:?}");
    }
    // `prefer` goes on without TLS where it finds the chain wrong; the others do not.
    assert_eq!(tried("localhost", "prefer", other), Ok(false));
    for (host, mode, root, why) in [
        ("localhost", "require", other, "certificate"),
        ("localhost", "verify-ca", other, "certificate"),
        ("localhost", "verify-full", other, "certificate"),
        ("localhost", "verify-full", None, "certificate"),
        ("elsewhere.example", "verify-full", ours, "hostname mismatch"),
        ("127.0.0.2", "verify-full", ours, "IP address mismatch"),
    ] {
        let told = tried(host, mode, root).expect_err("it is refused").to_lowercase();
        assert!(told.contains(&why.to_lowercase()), "{host} {mode} {root:?}: {told}");
        assert!(told.contains("sslrootcert"), "{told}");
        // A wrong name and an unknown authority are not taken for one another.
        assert_eq!(told.contains("mismatch"), why.contains("mismatch"), "{told}");
    }
    drop(server);

    let server = Postgres::start_tls_with(&expired.certificate, &expired.key);
    for mode in ["require", "verify-ca", "verify-full"] {
        let told = connect(&options(&server, "localhost", mode, ours)).expect_err("it has expired");
        assert!(told.contains("certificate has expired"), "{mode}: {told}");
    }
    assert_eq!(connect(&options(&server, "localhost", "require", None)), Ok(true));
}

/// A broker with these certificates on its two TLS listeners; none of them wants to know the client.
fn broker(scram: &Path, mutual: &Path) -> Kafka {
    let listener = |name: &str, keystore: &Path| {
        format!(
            "listener.name.{name}.ssl.keystore.type=PEM\nlistener.name.{name}.ssl.keystore.location={}",
            keystore.display()
        )
    };
    let properties = vec![
        listener("scram", scram),
        listener("mutual", mutual),
        "listener.name.mutual.ssl.client.auth=none".to_owned(),
    ];
    let users = vec![("bell".to_owned(), "a secret".to_owned())];
    Kafka::start(KafkaOptions { tls: true, users, properties, ..KafkaOptions::default() })
}

/// What the job says of a Kafka that it must not believe.
fn refused(servers: &str, more: &[(&str, &str)]) -> String {
    let mut properties = vec![("bootstrap.servers", servers)];
    properties.extend(more);
    let properties = properties.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let error = probe(&properties).err().expect("it is refused");
    assert_eq!(error.action(), Action::Halt, "{error}");
    format!("{error}\n{}", error.remedy().unwrap_or_default())
}

#[test]
fn brokers_that_are_not_who_they_should_be_are_refused() {
    let Certs { ca, other_ca, elsewhere, expired, .. } = Certs::shared();
    let kafka = broker(&elsewhere.keystore, &expired.keystore);
    let [ca, other_ca] = [ca, other_ca].map(|path| path.display().to_string());
    let sasl = |ca| {
        vec![
            ("security.protocol", "SASL_SSL"),
            ("sasl.mechanism", "SCRAM-SHA-512"),
            ("sasl.username", "bell"),
            ("sasl.password", "a secret"),
            ("ssl.ca.location", ca),
        ]
    };
    let told = refused(&kafka.sasl_bootstrap(), &sasl(ca.as_str()));
    assert!(told.contains("hostname mismatch"), "{told}");
    assert!(told.contains("ssl.ca.location"), "{told}");
    // librdkafka's own word for no look at the name; the chain still counts.
    let mut nameless = sasl(ca.as_str());
    nameless.push(("ssl.endpoint.identification.algorithm", "none"));
    let properties = nameless.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let bootstrap = ("bootstrap.servers".to_owned(), kafka.sasl_bootstrap());
    assert!(probe(&properties.chain([bootstrap]).collect()).is_ok());
    let told = refused(&kafka.sasl_bootstrap(), &sasl(other_ca.as_str()));
    assert!(
        told.contains("self-signed certificate in certificate chain") || told.contains("unable to get local issuer"),
        "{told}"
    );
    assert!(!told.contains("mismatch"), "{told}");

    let told = refused(&kafka.mutual_bootstrap(), &[("security.protocol", "SSL"), ("ssl.ca.location", &ca)]);
    assert!(told.contains("certificate has expired"), "{told}");
    // The whole job halts with the same words.
    let postgres = Postgres::start(PostgresOptions::default());
    let mut stack = Stack::private("no_tls", &kafka, &postgres);
    stack.set("kafka", "bootstrap.servers", kafka.mutual_bootstrap());
    stack.set("kafka", "security.protocol", "SSL");
    stack.set("kafka", "ssl.ca.location", ca.as_str());
    let output = Job::output(&stack, &["run"]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("certificate has expired"), "{told}");
}

/// The admin port is for this machine alone, unless somebody says otherwise, and then it is told.
#[test]
fn an_admin_port_for_everybody_is_warned_of() {
    let mut stack = Stack::new("admin_port");
    stack.set("admin", "listen", "0.0.0.0:0");
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("it works", PATIENCE, || {
        assert!(job.is_running(), "{}", job.stderr());
        job.stderr().contains("dinnerbell is ringing")
    });
    assert!(job.stderr().contains("asks nobody who they are"), "{}", job.stderr());
    job.term();
    assert_eq!(job.wait(PATIENCE).code(), Some(0));
    stack.set("admin", "listen", "127.0.0.1:0");
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("it works", PATIENCE, || job.stderr().contains("dinnerbell is ringing"));
    assert!(!job.stderr().contains("asks nobody who they are"), "{}", job.stderr());
    job.term();
    assert_eq!(job.wait(PATIENCE).code(), Some(0));
}
