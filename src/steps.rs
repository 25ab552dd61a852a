//! The named steps of the delivery protocol, S0 to S17 (see [`crate::ledger`]), as places where a test can end the process.

/// Marks a step. With the `failpoints` feature and `FAILPOINTS="S7=return"` (or `3*off->return`, see the `fail` crate)
/// the process ends here as if by kill -9; without the feature this is nothing at all.
macro_rules! step {
    ($name:literal) => {
        ::fail::fail_point!($name, |_| $crate::steps::die())
    };
}
// For `crate::step!` from every module.
pub(crate) use step;

/// Ends the process without a chance to tidy up.
#[cfg(feature = "failpoints")]
pub(crate) fn die() -> ! {
    // SAFETY: plain system calls on our own process.
    unsafe {
        libc::kill(libc::getpid(), libc::SIGKILL);
        libc::_exit(137)
    }
}
