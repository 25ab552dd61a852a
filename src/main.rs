//! Maps the outcome to an exit code: 0 drained, 1 halted, 2 wrong usage or settings.

use std::process::ExitCode;

fn main() -> ExitCode {
    dinnerbell::allocator::keep_freed_memory();
    // Reads FAILPOINTS; see `dinnerbell::ledger` for the steps.
    #[cfg(feature = "failpoints")]
    let _scenario = fail::FailScenario::setup();
    match dinnerbell::cli::execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            dinnerbell::telemetry::logs::report(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
