//! The faulty network itself: what it is told to do really happens.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tokio_postgres::NoTls;

use crate::support::{Match, Message, Network, PATIENCE, Stack, api, block_on, consume_all, wait_until};

/// Runs statements, one message each, on one connection through the proxy; the first error.
fn execute(stack: &Stack, network: &Network, statements: &[&str]) -> Result<(), String> {
    let url = network.postgres.url(&stack.url);
    let statements: Vec<String> = statements.iter().map(|text| (*text).to_owned()).collect();
    block_on(async move {
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        for statement in statements {
            match statement.strip_prefix("prepared: ") {
                Some(prepared) => drop(client.execute(prepared, &[]).await.map_err(|error| error.to_string())?),
                None => client.batch_execute(&statement).await.map_err(|error| error.to_string())?,
            }
        }
        Ok(())
    })
}

fn copy(stack: &Stack, network: &Network) -> Result<u64, tokio_postgres::Error> {
    let url = network.postgres.url(&stack.url);
    block_on(async move {
        use futures::SinkExt;
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
        tokio::spawn(connection);
        let mut sink = Box::pin(client.copy_in::<_, bytes::Bytes>("COPY kept FROM STDIN").await?);
        sink.send("1\n2\n".into()).await?;
        let rows = sink.as_mut().finish().await?;
        // The replies that follow still belong to their requests.
        let after = client.query_one("SELECT 7", &[]).await?;
        assert_eq!(after.get::<_, i32>(0), 7);
        Ok(rows)
    })
}

#[test]
fn a_lost_reply_of_postgres_hides_what_was_done() {
    let (stack, network) = Stack::behind_proxies("lost_reply");
    stack.execute("CREATE TABLE kept (n int)");
    let count = || stack.number("SELECT count(*) FROM kept");
    assert_eq!(execute(&stack, &network, &["INSERT INTO kept VALUES (1)"]), Ok(()));
    let simple = network.postgres.lose_reply(Match::postgres("COMMIT").nth(2));
    let insert = "prepared: INSERT INTO kept VALUES (2)";
    assert_eq!(execute(&stack, &network, &["BEGIN", insert, "COMMIT"]), Ok(()));
    assert_eq!((count(), simple.injected()), (2, 0));
    assert!(execute(&stack, &network, &["BEGIN", insert, "COMMIT"]).is_err());
    assert_eq!((count(), simple.injected()), (3, 1));

    let prepared = network.postgres.lose_reply(Match::postgres("INSERT INTO kept VALUES (2)"));
    assert!(execute(&stack, &network, &["SELECT 1", insert]).is_err());
    assert_eq!((count(), prepared.injected()), (4, 1));

    assert_eq!(copy(&stack, &network).unwrap(), 2);
    let copied = network.postgres.lose_reply(Match::postgres("COPY kept"));
    assert!(copy(&stack, &network).is_err());
    assert_eq!((count(), copied.injected()), (8, 1));
    assert_eq!(network.postgres.injected(), 3);
}

/// One message by a transactional producer of its own.
fn transaction(stack: &Stack, bootstrap: &str, id: &str, value: &str) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("transactional.id", format!("{}.{id}", stack.group))
        .create()
        .unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    producer.send(BaseRecord::<[u8], str>::to(&stack.triggers).payload(value)).unwrap();
    producer.commit_transaction(PATIENCE).unwrap();
}

#[test]
fn replies_of_kafka_are_lost_and_requests_delayed() {
    let (stack, network) = Stack::behind_proxies("lost_kafka");
    let proxy = &network.kafka;
    let seen = || consume_all(&stack.bootstrap, &stack.triggers, true).len();
    let lost = proxy.lose_reply(Match::kafka(api::END_TXN).containing(&stack.group));
    let other = proxy.lose_reply(Match::kafka(api::END_TXN).containing("somebody else"));
    transaction(&stack, &proxy.address(), "a", "one");
    assert_eq!((seen(), lost.injected(), other.injected()), (1, 1, 0));

    let began = Instant::now();
    let delayed = proxy.delay(Match::kafka(api::PRODUCE), Duration::from_millis(700));
    transaction(&stack, &proxy.address(), "b", "two");
    assert!(began.elapsed() >= Duration::from_millis(700));
    assert_eq!((seen(), delayed.injected()), (2, 1));

    // Held while its connection dies: the client sends it again, and the first one comes late.
    let held = proxy.hold(Match::kafka(api::END_TXN));
    std::thread::scope(|scope| {
        let (stack, address) = (&stack, proxy.address());
        let working = scope.spawn(move || transaction(stack, &address, "c", "three"));
        wait_until("an EndTxn is held", PATIENCE, || held.injected() == 1);
        assert!(proxy.cut_all() > 0);
        working.join().unwrap();
        assert!(held.late_replies().is_empty());
        held.release();
        wait_until("the late one is answered", PATIENCE, || held.late_replies().len() == 1);
    });
    assert_eq!(seen(), 3);
    assert_eq!(stack.read_triggers().len(), 3);
}

#[test]
fn connections_are_cut_and_swallowed() {
    let (stack, network) = Stack::behind_proxies("cut");
    stack.produce([Message::of("one")]);
    let proxy = &network.postgres;
    let mut silent = TcpStream::connect(proxy.address()).unwrap();
    wait_until("it is open", PATIENCE, || proxy.connections() == 1);
    assert_eq!(proxy.cut_all(), 1);
    let error = silent.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(proxy.injected(), 1);

    proxy.black_hole();
    let mut silent = TcpStream::connect(proxy.address()).unwrap();
    // SSLRequest, which is answered by one byte.
    silent.write_all(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]).unwrap();
    silent.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert_eq!(silent.read(&mut [0; 1]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(proxy.injected(), 2);
    proxy.restore();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(silent.read(&mut [0; 1]).unwrap(), 1);
    assert_eq!(execute(&stack, &network, &["SELECT 1"]), Ok(()));
}
