//! Messages that cannot be read, among good neighbours.

use crate::support::{
    Campaign, Job, Message, Record, Stack, Witness, client, consume_all, create_topic, produce_compressed, restaurant,
    stop, taken,
};

/// A message's value, the path and a part of the reason that its dead letter gives.
type Bad = (Option<Vec<u8>>, &'static str, &'static str);

/// The good message number `n` with a piece of its text replaced.
fn spoilt(n: usize, from: &str, to: &str) -> Option<Vec<u8>> {
    let good = Campaign::new(n, restaurant(1)).json();
    assert!(good.contains(from), "{good} has no {from}");
    Some(good.replace(from, to).into_bytes())
}

fn text(value: &str) -> Option<Vec<u8>> {
    Some(value.as_bytes().to_vec())
}

/// Every kind of message that is none.
fn bad() -> Vec<Bad> {
    let good = Campaign::new(900, restaurant(1)).json();
    let start = r#""adv_campaign_datetime_start":1659203516"#;
    let content = r#""adv_campaign_content":"campaign 900: a second dessert""#;
    let with = |from, to: &str| spoilt(900, from, to);
    let deep = format!("{{\"deep\":{}{},{}", "[".repeat(200), "]".repeat(200), &good[1..]);
    let mut torn = good.clone().into_bytes();
    let at = good.find("dessert").expect("it is in there");
    torn[at] = 0xff;
    vec![
        (None, "$", "found a null value (a tombstone)"),
        (text(""), "$", "found an empty value"),
        (text(" \n"), "$", "expected one JSON object"),
        (text("ring the bell"), "$", "expected one JSON object"),
        (text(&good[..good.len() - 1]), "$", "expected one JSON object"),
        (text(&format!("{good}{good}")), "$", "expected one JSON object"),
        (text(&format!("[{good}]")), "$", "expected a JSON object, found an array"),
        (text("\"campaign\""), "$", "expected a JSON object, found the string"),
        (text("null"), "$", "expected a JSON object, found null"),
        (text("17"), "$", "expected a JSON object, found 17"),
        (text("{}"), "$.restaurant_id", "the field is missing"),
        (
            with(start, r#""adv_campaign_datetime_start":"1659203516""#),
            "$.adv_campaign_datetime_start",
            "found the string",
        ),
        (with(start, r#""adv_campaign_datetime_start":1659203516.5"#), "$.adv_campaign_datetime_start", "1659203516.5"),
        (
            with(start, r#""adv_campaign_datetime_start":true"#),
            "$.adv_campaign_datetime_start",
            "an integer of 64 bits",
        ),
        (with(start, r#""adv_campaign_datetime_start":null"#), "$.adv_campaign_datetime_start", "found null"),
        (
            with(start, r#""adv_campaign_datetime_start":9223372036854775808"#),
            "$.adv_campaign_datetime_start",
            "found the number 9223372036854775808",
        ),
        (with(start, r#""renamed":1659203516"#), "$.adv_campaign_datetime_start", "the field is missing"),
        (with(content, r#""adv_campaign_content":5"#), "$.adv_campaign_content", "expected a string"),
        (with(content, r#""adv_campaign_content":{"text":"x"}"#), "$.adv_campaign_content", "expected a string"),
        (with(content, "\"adv_campaign_content\":\"a line\nbreak\""), "$", "control character"),
        (with(content, r#""adv_campaign_content":"\ud800""#), "$", "expected one JSON object"),
        (with(content, &format!("{content},{content}")), "$.adv_campaign_content", "found this one again"),
        (with(content, &format!(r#"{content},"more":1,"more":2"#)), "$.more", "found this one again"),
        (Some(torn), "$", "expected UTF-8, found the byte 0xff"),
        (text(&deep), "$", "expected at most 128 levels of nesting"),
        (with("a second dessert", &"x".repeat(70_000)), "$", "expected at most 65536 bytes"),
    ]
}

/// Good messages that look unusual: fields nobody declared, escapes, blanks, another order of fields.
fn good(n: usize) -> (Campaign, String) {
    let mut campaign = Campaign::new(n, restaurant(1));
    campaign.content = format!("№ {n}: \"soup\" \\ 50 % off\n🍲");
    let json = campaign.json();
    let json = match n % 4 {
        0 => json,
        1 => format!(r#"{{"new_field": {{"deep": [1, {{"a": null}}]}}, {}"#, &json[1..]),
        2 => {
            let value: serde_json::Value = serde_json::from_str(&json).expect("it is JSON");
            let fields = value.as_object().expect("an object").iter().rev();
            let fields: Vec<String> = fields.map(|(key, value)| format!("\n  \"{key}\" : {value}")).collect();
            format!(" {{{}\n}}\t", fields.join(" ,"))
        }
        _ => json.replace("50 % off", r"50\u0020% o\u0066f"),
    };
    (campaign, json)
}

fn letter_of<'a>(letters: &'a [Record], original: &Record) -> &'a Record {
    let (partition, offset) = (original.partition.to_string(), original.offset.to_string());
    let place = |letter: &&Record| {
        letter.header("dinnerbell.partition") == Some(&partition) && letter.header("dinnerbell.offset") == Some(&offset)
    };
    letters.iter().find(place).unwrap_or_else(|| panic!("no letter for {original:?}"))
}

#[test]
fn each_becomes_a_dead_letter_and_its_neighbours_go_through() {
    let mut stack = Stack::new("bad");
    stack.set("batch", "max_bytes", "64KiB");
    stack.subscribe([(client(1), restaurant(1)), (client(2), restaurant(1))]);
    let bad = bad();
    // On partition 1, each bad one between two good ones.
    let mut campaigns = Vec::new();
    let mut messages = Vec::new();
    for n in 0..=bad.len() {
        let (campaign, json) = good(n);
        campaigns.push(campaign);
        messages.push(Message::of(json).partition(1));
        if let Some((value, ..)) = bad.get(n) {
            let mut headers = vec![
                ("trace".to_owned(), Some(b"\x00\xff".to_vec())),
                ("trace".to_owned(), None),
                ("dinnerbell.offset-of-theirs".to_owned(), Some(Vec::new())),
            ];
            headers.truncate(n % 4);
            let key = (n % 3 > 0).then(|| [b"key \xfe ".as_slice(), &[n as u8]].concat());
            messages.push(Message { partition: Some(1), key, value: value.clone(), headers });
        }
    }
    let count = messages.len();
    // Headers are looked for in the records themselves: as they came, and unpacked.
    let packed = messages.split_off(count / 2);
    stack.produce(messages);
    produce_compressed(&stack.bootstrap, &stack.campaigns, "lz4", packed);
    let mut job = Job::spawn(&stack, &["run"]);
    taken(&mut job, count);
    assert_eq!(job.metric("dinnerbell_messages_total", r#"outcome="triggered""#) as usize, campaigns.len());
    assert_eq!(job.metric("dinnerbell_messages_total", r#"outcome="dead_letter""#) as usize, bad.len());
    stop(job);

    let cut = |row: String| row.split(",\"trigger_datetime_created\"").next().unwrap_or_default().to_owned();
    let rows =
        campaigns.iter().flat_map(|campaign| [client(1), client(2)].map(|client| cut(campaign.trigger(&client, 0))));
    let mut expected: Vec<String> = rows.collect();
    expected.sort();
    assert_eq!(Witness::DOCUMENTED.timeless(&stack), expected);

    let letters = stack.read_dead_letters();
    assert_eq!(letters.len(), bad.len());
    let sent = consume_all(&stack.bootstrap, &stack.campaigns, true);
    let hash = letters[0].header("dinnerbell.sql_hash").expect("a hash").to_owned();
    for ((value, path, reason), original) in bad.iter().zip(sent.iter().skip(1).step_by(2)) {
        assert_eq!(&original.value, value);
        let letter = letter_of(&letters, original);
        assert_eq!((&letter.key, &letter.value), (&original.key, &original.value));
        let said = letter.header("dinnerbell.reason").expect("a reason");
        assert!(said.contains(reason), "{said:?} does not say {reason:?}");
        let own = [
            ("topic", stack.campaigns.clone()),
            ("partition", "1".into()),
            ("offset", original.offset.to_string()),
            ("timestamp", original.timestamp.expect("a time").to_string()),
            ("stage", "decode".into()),
            ("path", path.to_string()),
            ("reason", said.to_owned()),
            ("sql_hash", hash.clone()),
        ];
        let own = own.map(|(name, text)| (format!("dinnerbell.{name}"), Some(text.into_bytes())));
        assert_eq!(letter.headers, [original.headers.as_slice(), &own].concat(), "{original:?}");
    }
}

/// A letter that its topic does not take is kept whole in the ledger; a trigger that its topic does not take makes its
/// message a letter.
#[test]
fn what_is_too_large_for_its_topic_is_not_lost() {
    let mut stack = Stack::new("large");
    for (section, name) in [("dead_letters", "small_letters"), ("sink.kafka", "small_triggers")] {
        let topic = format!("{}.{name}", stack.group);
        create_topic(&stack.bootstrap, &topic, 1, &[("max.message.bytes", "4000")]);
        stack.set(section, "topic", topic.as_str());
        match section {
            "dead_letters" => stack.dead_letters = topic,
            _ => stack.triggers = topic,
        }
    }
    stack.subscribe([(client(1), restaurant(1)), (client(2), restaurant(1))]);
    let ring = |n: usize, content: usize| {
        let mut campaign = Campaign::new(n, restaurant(1));
        campaign.content = "x".repeat(content);
        campaign.json()
    };
    // As compact as the job writes it, the message's row is larger than the message: it has a client.
    let large_row = ring(2, 3_500);
    let messages = [ring(1, 10), large_row.clone(), ring(3, 10), "y".repeat(9_000), ring(5, 10)];
    stack.produce(messages.map(|message| Message::of(message).partition(0).key("k").header("a", b"b")));
    let mut job = Job::spawn(&stack, &["run"]);
    taken(&mut job, 5);
    assert_eq!(job.metric("dinnerbell_messages_total", r#"outcome="triggered""#), 3.0);
    assert_eq!(job.metric("dinnerbell_messages_total", r#"outcome="dead_letter""#), 2.0);
    stop(job);
    assert_eq!(Witness::DOCUMENTED.rows(&stack).len(), 6);

    // Its letter has more headers than the topic has room for, or fits: either way it is whole.
    let kept = stack.rows(
        r#"SELECT partition, "offset", topic, stage, path, octet_length(body) > 0 FROM dinnerbell.letters ORDER BY 2"#,
    );
    let letters = stack.read_dead_letters();
    let found = |stage: &str| {
        let sent = letters.iter().filter(|letter| letter.header("dinnerbell.stage") == Some(stage)).count();
        sent + kept.iter().filter(|row| row[3].as_deref() == Some(stage)).count()
    };
    assert_eq!((found("kafka"), found("decode")), (1, 1), "{letters:?} {kept:?}");
    let of_decode: Vec<_> = kept.iter().filter(|row| row[3].as_deref() == Some("decode")).collect();
    assert_eq!(of_decode.len(), 1, "9,000 bytes fit in no 4,000");
    let expected = ["0", "3", &stack.dead_letters, "decode", "$", "t"].map(|text| Some(text.to_owned()));
    assert_eq!(of_decode[0].as_slice(), expected);
}
