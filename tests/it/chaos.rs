//! A short form of `make chaos`, so that the harness works when it is needed.

use clap::Parser;

use crate::support::chaos::{Options, report, run};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
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
}
