//! Campaigns in, triggers out: what both sinks hold.

use std::time::Duration;

use crate::support::{Job, Message, Stack, sample, wait_until};

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn the_sample_reaches_both_sinks_byte_for_byte() {
    let stack = Stack::new("sample");
    stack.subscribe([(
        "023e4567-e89b-12d3-a456-426614174000".to_owned(),
        "123e4567-e89b-12d3-a456-426614174000".to_owned(),
    )]);
    stack.produce([Message::of(sample()).key("first_message")]);
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("a trigger", PATIENCE, || stack.read_triggers().len() == 1);
    job.term();
    assert_eq!(job.wait(PATIENCE).code(), Some(0), "{}", job.stderr());
}
