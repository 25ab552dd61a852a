//! The stack under the tests does what the tests take for granted.

use std::process::Command;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::support::{
    Campaign, Certs, Kafka, KafkaOptions, Message, Postgres, Record, Shutdown, Stack, client, consume_all, restaurant,
    run, sample, wait_until,
};

#[test]
fn kcat_and_psql_reach_a_stack_of_ones_own() {
    let stack = Stack::new("tools");
    stack.kcat(&format!("-P -t {} -K:", stack.campaigns), &format!("first_message:{}\n", sample()));
    let read = stack.kcat(&format!("-C -t {} -e -q -K:", stack.campaigns), "");
    assert_eq!(read, format!("first_message:{}\n", sample()));

    stack.subscribe([(client(1), restaurant(1)), (client(1), restaurant(1)), (client(2), restaurant(1))]);
    assert_eq!(stack.psql("SELECT count(*), count(DISTINCT client_id) FROM subscribers_restaurants"), "3|2\n");
    assert_eq!(stack.number("SELECT count(*) FROM public.subscribers_feedback"), 0);
}

#[test]
fn what_is_produced_is_read_whole() {
    let stack = Stack::new("messages");
    assert!(consume_all(&stack.bootstrap, &stack.campaigns, true).is_empty());
    let json = Campaign::new(7, restaurant(1)).json();
    let message = Message::of(json.clone()).key("k").header("origin", b"test").partition(2);
    stack.produce([message, Message { partition: Some(0), ..Message::default() }]);

    let records = consume_all(&stack.bootstrap, &stack.campaigns, true);
    assert_eq!(records.len(), 2);
    assert_eq!((records[0].partition, records[0].offset, &records[0].value, &records[0].key), (0, 0, &None, &None));
    assert_eq!(
        (records[1].partition, records[1].text(), records[1].header("origin")),
        (2, json.as_str(), Some("test"))
    );
    assert_eq!(records[1].key.as_deref(), Some(b"k".as_slice()));
}

#[test]
fn readers_of_what_is_committed_see_no_aborted_and_no_open_transaction() {
    let stack = Stack::new("transactions");
    let wait = Duration::from_secs(30);
    let begin = |value: &str| {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &stack.bootstrap).set("transactional.id", format!("{}.{value}", stack.group));
        let producer: BaseProducer = config.create().expect("the settings are valid");
        producer.init_transactions(wait).expect("the broker answers");
        producer.begin_transaction().expect("it is initialised");
        producer.send(BaseRecord::<(), str>::to(&stack.triggers).partition(0).payload(value)).expect("room for one");
        producer.flush(wait).expect("the broker answers");
        producer
    };
    begin("committed").commit_transaction(wait).expect("the broker answers");
    begin("aborted").abort_transaction(wait).expect("the broker answers");
    let open = begin("open");
    let values = |records: Vec<Record>| records.iter().map(|record| record.text().to_owned()).collect::<Vec<_>>();
    assert_eq!(values(stack.read_triggers()), ["committed"]);
    assert_eq!(values(consume_all(&stack.bootstrap, &stack.triggers, false)), ["committed", "aborted", "open"]);
    open.commit_transaction(wait).expect("the broker answers");
    assert_eq!(values(stack.read_triggers()), ["committed", "open"]);
}

#[test]
fn servers_keep_their_data_when_they_stop_and_when_they_crash() {
    let (mut kafka, mut postgres) = (Kafka::start(KafkaOptions::default()), Postgres::start(Default::default()));
    let stack = Stack::private("restart", &kafka, &postgres);
    stack.produce([Message::of("one")]);
    stack.subscribe([(client(1), restaurant(1))]);

    kafka.stop();
    postgres.stop(Shutdown::Fast);
    kafka.resume();
    postgres.resume();
    stack.produce([Message::of("two")]);
    stack.subscribe([(client(2), restaurant(1))]);

    kafka.kill9();
    postgres.stop(Shutdown::Immediate);
    kafka.resume();
    postgres.resume();
    let mut values: Vec<String> =
        consume_all(&stack.bootstrap, &stack.campaigns, true).iter().map(|record| record.text().to_owned()).collect();
    values.sort();
    assert_eq!(values, ["one", "two"]);
    assert_eq!(stack.number("SELECT count(*) FROM subscribers_restaurants"), 2);
}

#[test]
fn the_secured_listeners_take_who_they_know_and_nobody_else() {
    let users = vec![("bell".to_owned(), "secret".to_owned())];
    let kafka = Kafka::start(KafkaOptions { tls: true, users, ..KafkaOptions::default() });
    kafka.create_topic("here", 1);
    let Certs { ca, other_ca, client, client_key, .. } = Certs::shared();

    let scram = |ca: &std::path::Path, password: &str| {
        let mut kcat = Command::new("kcat");
        kcat.args(["-b", &kafka.sasl_bootstrap(), "-L", "-m", "5", "-X", "security.protocol=SASL_SSL"]);
        kcat.args(["-X", "sasl.mechanism=SCRAM-SHA-512", "-X", "sasl.username=bell"]);
        kcat.arg("-X").arg(format!("sasl.password={password}"));
        kcat.arg("-X").arg(format!("ssl.ca.location={}", ca.display()));
        kcat
    };
    assert!(run(&mut scram(ca, "secret"), "").contains("topic \"here\""));
    let refused = |mut kcat: Command| {
        let output = kcat.output().expect("kcat runs");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(refused(scram(ca, "wrong")).contains("Authentication failed"));
    assert!(refused(scram(other_ca, "secret")).contains("certificate verify failed"));

    let mutual = || {
        let mut kcat = Command::new("kcat");
        kcat.args(["-b", &kafka.mutual_bootstrap(), "-L", "-m", "5", "-X", "security.protocol=SSL"]);
        kcat.arg("-X").arg(format!("ssl.ca.location={}", ca.display()));
        kcat
    };
    let mut known = mutual();
    known.arg("-X").arg(format!("ssl.certificate.location={}", client.display()));
    known.arg("-X").arg(format!("ssl.key.location={}", client_key.display()));
    assert!(run(&mut known, "").contains("topic \"here\""));
    refused(mutual());
}

#[test]
fn postgres_offers_tls_that_verify_full_accepts() {
    let postgres = Postgres::start_tls();
    let psql = |ca: &std::path::Path| {
        let url = postgres.url("postgres").replace("127.0.0.1", "localhost");
        let url = format!("{url}?sslmode=verify-full&sslrootcert={}", ca.display());
        let ssl = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        Command::new("psql").args([&url, "-X", "-A", "-t", "-c", ssl]).output().expect("psql runs")
    };
    assert_eq!(psql(&Certs::shared().ca).stdout, b"t\n");
    assert!(!psql(&Certs::shared().other_ca).status.success());
}

#[test]
fn a_session_can_be_ended_from_outside() {
    let stack = Stack::new("sessions");
    let url = stack.url.clone();
    let sleeper = std::thread::spawn(move || {
        let output = Command::new("psql").args([&url, "-X", "-c", "SELECT pg_sleep(60)"]).output().expect("psql runs");
        output.status.success()
    });
    wait_until("the sleeper is seen and ended", Duration::from_secs(20), || stack.kill_sessions() > 0);
    assert!(!sleeper.join().expect("no panic"));
}
