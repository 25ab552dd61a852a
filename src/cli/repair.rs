//! `dinnerbell repair`: says what stands in the way of the job and, asked to, puts it right. See [`crate::repair`].

use std::path::Path;

use super::report::Report;
use super::{RepairArgs, write_out};
use crate::config::Config;
use crate::ledger::ailment::Verb;
use crate::repair::{self, Asked};
use crate::telemetry::logs;
use crate::{Error, Result};

/// # Errors
/// Exit code 1 where something is left to repair.
pub async fn run(config: Config, file: Option<&Path>, args: RepairArgs) -> Result<()> {
    logs::init()?;
    let mut command = String::from("dinnerbell repair");
    if let Some(file) = file {
        command.push_str(&format!(" --config {}", file.display()));
    }
    let asked = Asked { verbs: args.verbs(), execute: args.execute, command };
    let report = Report::new("repair");
    let mut say = |status: &str, place: &str, text: &str| report.line(status, place, text);
    if repair::run(config, &asked, &mut say).await? {
        return write_out(b"\nNothing to repair: `dinnerbell run` can go on\n");
    }
    let left =
        if asked.execute { "something is left to repair" } else { "something needs repair; nothing was changed" };
    Err(Error::Halt { what: left.into(), remedy: String::new() })
}

impl RepairArgs {
    fn verbs(&self) -> Vec<Verb> {
        let given = [
            (self.new_topic, Verb::NewTopic),
            (self.adopt, Verb::Adopt),
            (self.rebuild_table, Verb::RebuildTable),
            (self.resend_from_table, Verb::ResendFromTable),
            (self.offsets, Verb::Offsets),
            (self.accept_lost_messages, Verb::AcceptLostMessages),
        ];
        given.into_iter().filter(|(given, _)| *given).map(|(_, verb)| verb).collect()
    }
}
