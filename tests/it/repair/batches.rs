//! A stored batch that waits for its Kafka commit is damaged or gone.

use dinnerbell::ledger::store::PART_FORMAT;

use super::*;

/// Bad JSON beside the campaigns, so that letters are stored, too.
fn produce_letters(stack: &Stack, count: usize) {
    stack.produce((0..count).map(|n| Message::of(format!("no JSON {n}")).partition(0).key(format!("k{n}"))));
}

/// A batch with letters and rows waits; all of it is in partition 0.
fn waiting(name: &str) -> Stack {
    let stack = stack(name);
    produce_letters(&stack, 2);
    produce_to(&stack, 0..10, |_| 0);
    dies_between_the_commits(&stack, 0);
    let stored = stack.rows("SELECT rows, letters FROM dinnerbell.parts");
    assert_eq!(stored, [[Some("60".to_owned()), Some("2".to_owned())]]);
    stack
}

#[track_caller]
fn is_sent_from_the_table(stack: &Stack, words: &str) {
    assert_halts(stack, &["the stored batch ID of partition 0, offsets [0, 5)", words], "--resend-from-table");
    repairs(
        stack,
        "--resend-from-table",
        &[
            "60 rows are in \"public\".\"subscribers_feedback\", written by the transaction that stored the batch",
            "with 2 dead letters",
        ],
    );
    recovers(stack, 10);
    let letters = stack.read_dead_letters();
    let texts: Vec<&str> = letters.iter().map(|letter| letter.text()).collect();
    assert_eq!(texts, ["no JSON 0", "no JSON 1"]);
    assert_eq!(letters[1].header("dinnerbell.offset"), Some("1"));
    assert_eq!(letters[1].header("dinnerbell.stage"), Some("decode"));
}

#[test]
fn a_chunk_with_damaged_bytes() {
    let stack = waiting("damaged");
    stack.execute("UPDATE dinnerbell.chunks SET body = set_byte(body, length(body) / 2, get_byte(body, length(body) / 2) # 255) WHERE kind = 'rows'");
    // Rewriting a row is a new transaction: its parts row still tells the old one.
    let stored = stack.number("SELECT count(*) FROM dinnerbell.parts p JOIN subscribers_feedback f ON f.xmin = p.xmin");
    assert_eq!(stored, 60);
    is_sent_from_the_table(&stack, "cannot be sent again: a stored chunk in the ledger is damaged");
}

#[test]
fn a_chunk_that_is_missing() {
    let stack = waiting("missing");
    stack.execute("DELETE FROM dinnerbell.chunks WHERE kind = 'letters'");
    is_sent_from_the_table(&stack, "cannot be sent again");
}

#[test]
fn all_chunks_gone() {
    let stack = waiting("chunks");
    stack.execute("DELETE FROM dinnerbell.chunks");
    is_sent_from_the_table(&stack, "0 rows and 0 letters are stored of 60 and 2");
}

#[test]
fn a_format_newer_than_this_binary() {
    let stack = waiting("format");
    stack.execute("UPDATE dinnerbell.parts SET format = 99");
    let (what, remedy) = halts(&stack);
    assert!(what.contains(&format!("has format 99, this binary reads up to {PART_FORMAT}")), "{what}");
    assert!(
        remedy.contains("run the newer dinnerbell that wrote it") && remedy.contains("--resend-from-table"),
        "{remedy}"
    );
    // An UPDATE of the row has taken its xmin away; the chunks still have it.
    repairs(&stack, "--resend-from-table", &["60 rows are in"]);
    recovers(&stack, 10);
}

/// One commit of two parts. Kafka hands out the partitions one after the other: the first cycle may have both or one alone.
fn siblings() -> Stack {
    let has_both = |stack: &Stack| {
        produce_to(stack, 0..4, |n| n as i32 % 2);
        dies_between_the_commits(stack, 0);
        stack.number("SELECT count(*) FROM dinnerbell.parts") == 2
    };
    let mut stacks = (0..20).map(|n| stack(&format!("siblings_{n}")));
    stacks.find(has_both).expect("of twenty, one has both partitions in its first cycle")
}

#[test]
fn two_partitions_of_one_commit_of_which_one_is_damaged() {
    let stack = siblings();
    stack.execute("DELETE FROM dinnerbell.chunks WHERE partition = 1");
    let (_, remedy) = halts(&stack);
    assert!(remedy.contains("--resend-from-table"), "{remedy}");
    repairs(&stack, "--resend-from-table", &["40 rows are in"]);
    recovers(&stack, 4);
}

#[test]
fn rows_that_the_table_does_not_have_any_more_are_not_made_up() {
    let stack = waiting("deleted");
    stack.execute("DELETE FROM dinnerbell.chunks; DELETE FROM subscribers_feedback WHERE id % 7 = 0");
    let before = substance(&stack);
    for args in [&[][..], &["--resend-from-table", "--execute"]] {
        let (code, text) = repair(&stack, args);
        assert_eq!(code, 1, "{text}");
        assert!(text.contains("rows of the transaction that stored the batch, 60 are to be sent"), "{text}");
        assert_eq!(substance(&stack), before);
    }
}

#[test]
fn the_parts_rows_are_gone_and_the_table_tells_what_was_in_them() {
    for (name, delete) in [
        ("no_parts", "DELETE FROM dinnerbell.parts"),
        ("nothing_left", "DELETE FROM dinnerbell.parts; DELETE FROM dinnerbell.chunks"),
    ] {
        let stack = stack(name);
        produce_to(&stack, 0..10, |_| 0);
        delivers(&stack, 10);
        produce_letters(&stack, 1);
        produce_to(&stack, 10..20, |_| 0);
        dies_between_the_commits(&stack, 0);
        stack.execute(delete);
        assert_halts(
            &stack,
            &[
                "campaigns[0]: Postgres has output that Kafka's offset does not cover, and the stored batch of it is gone",
                "Found: Kafka offset 10",
            ],
            "--resend-from-table",
        );
        repairs(
            &stack,
            "--resend-from-table",
            &["80 rows of \"public\".\"subscribers_feedback\" are not in triggers: they are sent, with 1 dead letters"],
        );
        delivers(&stack, 20);
        LOAD.verify(&stack, 20);
        assert_eq!(stack.read_dead_letters().len(), 1);
    }
}
