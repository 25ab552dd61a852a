//! Messages around the sizes that topics and settings take: every one has its outcome, none is lost, nothing halts.

use std::collections::BTreeSet;

use crate::support::{Campaign, Job, Load, Message, Stack, Witness, client, create_topic, restaurant, stop, taken};

const LIMIT: usize = 20_000;
const MIB: usize = 1 << 20;

/// Letters and digits that no compression makes much smaller.
fn noise(seed: usize, len: usize) -> String {
    let mut state = seed as u64 * 2 + 1;
    let digits = (0..len).map(|_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from_digit((state >> 40) as u32 % 36, 36).unwrap_or('0')
    });
    digits.collect()
}

/// A stack whose input takes large messages and whose outputs take records of [`LIMIT`] bytes.
fn narrow(name: &str) -> Stack {
    let mut stack = Stack::new(name);
    for (section, kind, limit) in [
        ("source", "wide", 8 * MIB),
        ("sink.kafka", "narrow_triggers", LIMIT),
        ("dead_letters", "narrow_letters", LIMIT),
    ] {
        let topic = format!("{}.{kind}", stack.group);
        create_topic(&stack.bootstrap, &topic, 1, &[("max.message.bytes", &limit.to_string())]);
        stack.set(section, "topic", topic.as_str());
        match section {
            "source" => stack.campaigns = topic,
            "sink.kafka" => stack.triggers = topic,
            _ => stack.dead_letters = topic,
        }
    }
    stack.subscribe([(client(1), restaurant(1))]);
    stack
}

/// The offsets of letters in the ledger's own table and in the topic.
fn letters(stack: &Stack) -> (BTreeSet<usize>, BTreeSet<usize>) {
    let kept = stack.rows(r#"SELECT "offset" FROM dinnerbell.letters"#);
    let kept = kept.iter().map(|row| row[0].as_deref().and_then(|text| text.parse().ok()).expect("an offset"));
    let kept: BTreeSet<usize> = kept.collect();
    let sent = stack.read_dead_letters();
    let offset = |letter: &crate::support::Record| letter.header("dinnerbell.offset")?.parse().ok();
    let of_topic: BTreeSet<usize> = sent.iter().map(|letter| offset(letter).expect("an offset")).collect();
    assert_eq!(of_topic.len(), sent.len(), "one letter each");
    (kept, of_topic)
}

/// Where it changes from true to false, once.
#[track_caller]
fn edge(fits: impl Iterator<Item = bool>) -> usize {
    let fits: Vec<bool> = fits.collect();
    let edge = fits.iter().position(|fits| !fits).expect("some do not fit");
    assert!(edge > 0 && fits[edge..].iter().all(|fits| !fits), "not one edge: {fits:?}");
    edge
}

/// One message for each size of the row around the output topic's limit, a byte apart: many pieces of JSON, each of some rows.
#[test]
fn a_row_at_the_output_topics_limit_goes_to_both_sinks_or_to_neither() {
    let mut stack = narrow("row_sizes");
    stack.set("sink.kafka", "key", "adv_campaign_id");
    let empty = Campaign { content: String::new(), ..Campaign::new(1, restaurant(1)) };
    let frame = empty.trigger(&client(1), 1_700_000_000).len();
    let sizes: Vec<usize> = (LIMIT - 200..LIMIT + 20).collect();
    stack.produce(sizes.iter().enumerate().map(|(n, size)| {
        Message::of(Campaign { content: noise(n, size - frame), ..Campaign::new(n, restaurant(1)) }.json())
    }));
    let mut job = Job::spawn(&stack, &["run"]);
    taken(&mut job, sizes.len());
    stop(job);
    let rows = Witness::DOCUMENTED.rows(&stack);
    let (kept, sent) = letters(&stack);
    assert_eq!(rows.len() + kept.len() + sent.len(), sizes.len());
    let went: BTreeSet<usize> = rows.iter().map(String::len).collect();
    let edge = edge(sizes.iter().map(|size| went.contains(size)));
    println!("rows of up to {} bytes fit a topic of {LIMIT}", sizes[edge - 1]);
    // What the broker adds to a record is less than this, beside the key.
    assert!(sizes[edge] + empty.adv_campaign_id.len() > LIMIT - 150, "{} bytes ought to fit {LIMIT}", sizes[edge]);
    assert!(sizes[edge - 1] < LIMIT);
    for record in stack.read_triggers() {
        let row: serde_json::Value = serde_json::from_str(record.text()).expect("JSON");
        assert_eq!(record.key.as_deref(), row["adv_campaign_id"].as_str().map(str::as_bytes));
    }
}

/// One malformed message for each size of its letter around the dead-letter topic's limit.
#[test]
fn a_letter_at_its_topics_limit_goes_there_or_into_the_ledger() {
    let stack = narrow("letter_sizes");
    let sizes: Vec<usize> = (LIMIT - 700..LIMIT + 20).step_by(2).collect();
    stack.produce(sizes.iter().map(|size| Message::of(format!("x{}", noise(*size, size - 1)))));
    let mut job = Job::spawn(&stack, &["run"]);
    taken(&mut job, sizes.len());
    assert_eq!(job.metric("dinnerbell_messages_total", r#"outcome="dead_letter""#) as usize, sizes.len());
    stop(job);
    let (kept, sent) = letters(&stack);
    assert!(kept.is_disjoint(&sent));
    assert_eq!(kept.len() + sent.len(), sizes.len());
    let edge = edge((0..sizes.len()).map(|offset| sent.contains(&offset)));
    println!("messages of up to {} bytes fit a topic of {LIMIT} as letters", sizes[edge - 1]);
}

/// Messages of 1 MiB where `[batch] max_bytes` is 1 MiB, one byte less and one more; and far larger ones, which the
/// topic takes.
#[test]
fn a_message_at_the_batchs_limit_is_read_and_a_larger_one_is_a_letter() {
    let mut stack = narrow("message_sizes");
    stack.set("batch", "max_bytes", "1MiB");
    // Blanks before the brace: the message is as large as it should be, its row is not.
    let padded = |n: usize, size: usize| {
        let json = Campaign::new(n, restaurant(1)).json();
        " ".repeat(size - json.len()) + &json
    };
    let sizes = [MIB - 1, MIB, MIB + 1, 1_500, 5 * MIB, 1_600];
    stack.produce(sizes.iter().enumerate().map(|(n, size)| Message::of(padded(n, *size))));
    let mut job = Job::spawn(&stack, &["run"]);
    taken(&mut job, sizes.len());
    assert_eq!(job.metric("dinnerbell_messages_total", r#"outcome="triggered""#), 4.0);
    assert_eq!(job.metric("dinnerbell_messages_total", r#"outcome="dead_letter""#), 2.0);
    stop(job);
    let rows = Witness::DOCUMENTED.rows(&stack);
    assert!([0, 1, 3, 5].iter().all(|n| rows.iter().any(|row| row.contains(&Campaign::new(*n, "").adv_campaign_id))));
    assert_eq!(letters(&stack), ([2, 4].into(), BTreeSet::new()), "no topic of 20,000 bytes takes them");
    let kept = stack.rows(r#"SELECT reason, octet_length(body) > 0 FROM dinnerbell.letters ORDER BY "offset""#);
    assert_eq!(kept[0][0].as_deref(), Some("expected at most 1048576 bytes, found 1048577"), "{kept:?}");
}

/// A producer's queue that is full before any batch is must not wait for one: it would for `linger.ms`, each time.
#[test]
fn rows_flow_through_a_queue_that_holds_no_full_batch() {
    // At the 250 ms for each hundred rows after which it is flushed in any case, this would take longer than it is waited for.
    flow_through("small_queue", 30_000, &[("queue.buffering.max.messages", "100")]);
}

/// The same where the user would have records wait longer than any test.
#[test]
fn rows_flow_though_records_may_linger_for_long() {
    let settings = [("queue.buffering.max.kbytes", "512"), ("linger.ms", "290000")];
    flow_through("long_linger", 10_000, &settings);
}

fn flow_through(name: &str, subscribers: usize, settings: &[(&str, &str)]) {
    let mut stack = Stack::new(name);
    settings.iter().for_each(|(key, value)| stack.set("sink.kafka", key, *value));
    let load = Load { restaurants: 1, subscribers };
    load.subscribe(&stack);
    load.produce(&stack, 0..1);
    let mut job = Job::spawn(&stack, &["run"]);
    taken(&mut job, 1);
    stop(job);
    assert_eq!(stack.read_triggers().len(), load.subscribers);
}
