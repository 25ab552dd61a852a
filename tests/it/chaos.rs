//! A short form of `make chaos`, so that the harness works when it is needed.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use clap::Parser;

use crate::support::chaos::{Death, Options, report, run};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

/// Only a SIGKILL that the harness has not sent is a death at the step that the process was armed for.
#[test]
fn a_death_is_a_steps_only_where_nobody_else_has_killed() {
    let [kill, term] = [libc::SIGKILL, libc::SIGTERM].map(ExitStatus::from_raw);
    let [done, halted] = [0, 1].map(|code| ExitStatus::from_raw(code << 8));
    let (step, killed) = (Some("S7"), Some("in time"));
    for (status, step, killed, termed, death) in [
        (kill, step, None, false, Death::Step("S7")),
        (kill, step, None, true, Death::Step("S7")),
        (kill, step, killed, false, Death::Killed("in time")),
        (kill, step, killed, true, Death::Killed("in time")),
        (kill, None, killed, false, Death::Killed("in time")),
        (kill, None, None, false, Death::Strange),
        // It was quicker than our SIGKILL.
        (done, step, killed, true, Death::Drained),
        (halted, step, killed, true, Death::Strange),
        (halted, step, None, false, Death::Strange),
        (done, None, None, false, Death::Strange),
        (term, None, None, true, Death::Termed),
        (term, None, None, false, Death::Strange),
    ] {
        assert_eq!(Death::of(status, step, killed, termed), death, "{status}, {step:?}, {killed:?}, {termed}");
    }
}

#[test]
fn a_dozen_deaths_and_every_promise_holds() {
    let seed = 7;
    let arguments = "chaos --cycles 12 --minutes 0.4 --replicas 2 --partitions 4 --rate 3000 --malformed 0.05 --at-most 5 --key client_id";
    let Arguments { options } = Arguments::parse_from(arguments.split(' '));
    println!("{}", report::command(&options, seed));
    let outcome = run(&options, seed);
    println!("{}", outcome.tally.markdown());
    assert!(outcome.examination.findings.is_empty(), "logs in {}", outcome.logs.display());
    let fact = |name: &str| outcome.tally.facts.get(name).copied().unwrap_or_default();
    // What did not happen proves nothing.
    assert!(fact("deaths by SIGKILL") >= 12);
    assert!(fact("rows in the table") > 1_000 && fact("dead letters") > 0 && fact("samples of both offsets") > 10);
    assert_eq!(fact("rows in the table"), fact("rows in the topic"));
    assert!(fact("micro-batches that the job told of") > 0);
}
