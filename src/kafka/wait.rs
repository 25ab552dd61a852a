//! Lets librdkafka wait by the clock that nobody can set.
//!
//! All timed waits of its threads are C11's `cnd_timedwait`, which goes by the wall clock: one that has begun when that
//! clock is set back lasts longer by as much, and with it what librdkafka's timers do (heartbeats, retries of a transaction's
//! requests). The job then stands still for hours, without a word (librdkafka's issue 2145, open since 2018). The symbol
//! defined here is taken instead of the C library's, in the whole program.

use libc::{CLOCK_MONOTONIC, CLOCK_REALTIME, c_int, clockid_t, pthread_cond_t, pthread_mutex_t, timespec};

// <threads.h> of glibc.
const SUCCESS: c_int = 0;
const ERROR: c_int = 2;
const TIMED_OUT: c_int = 4;

const SECOND: i64 = 1_000_000_000;

unsafe extern "C" {
    // POSIX.1-2024, glibc since 2.30.
    fn pthread_cond_clockwait(
        condition: *mut pthread_cond_t,
        mutex: *mut pthread_mutex_t,
        clock: clockid_t,
        until: *const timespec,
    ) -> c_int;
}

/// C11's `cnd_timedwait`: waits until the wall clock's `until` as it is from here, by the monotonic clock.
///
/// # Safety
/// As for the C library's: initialised objects, the mutex locked by this thread, `until` readable. In glibc `cnd_t` and
/// `mtx_t` are the POSIX objects under other names.
#[unsafe(no_mangle)]
unsafe extern "C" fn cnd_timedwait(
    condition: *mut pthread_cond_t,
    mutex: *mut pthread_mutex_t,
    until: *const timespec,
) -> c_int {
    // SAFETY: the caller's promises, handed on.
    let waited = unsafe {
        let left = nanoseconds(&*until) - now(CLOCK_REALTIME);
        let end = now(CLOCK_MONOTONIC) + left;
        let end = timespec { tv_sec: end.div_euclid(SECOND), tv_nsec: end.rem_euclid(SECOND) };
        pthread_cond_clockwait(condition, mutex, CLOCK_MONOTONIC, &end)
    };
    match waited {
        0 => SUCCESS,
        libc::ETIMEDOUT => TIMED_OUT,
        _ => ERROR,
    }
}

fn now(clock: clockid_t) -> i64 {
    let mut time = timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to our own structure; these two clocks always exist.
    unsafe { libc::clock_gettime(clock, &mut time) };
    nanoseconds(&time)
}

fn nanoseconds(time: &timespec) -> i64 {
    time.tv_sec * SECOND + time.tv_nsec
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_wait_ends_at_its_time_and_not_before() {
        let mut condition = libc::PTHREAD_COND_INITIALIZER;
        let mut mutex = libc::PTHREAD_MUTEX_INITIALIZER;
        for millis in [-50, 0, 50] {
            let end = now(CLOCK_REALTIME) + millis * 1_000_000;
            let until = timespec { tv_sec: end / SECOND, tv_nsec: end % SECOND };
            let began = Instant::now();
            // SAFETY: both objects are initialised and ours; the mutex is locked.
            let outcome = unsafe {
                libc::pthread_mutex_lock(&mut mutex);
                let outcome = cnd_timedwait(&mut condition, &mut mutex, &until);
                libc::pthread_mutex_unlock(&mut mutex);
                outcome
            };
            assert_eq!(outcome, TIMED_OUT);
            assert!(began.elapsed() < Duration::from_secs(10));
            assert!(
                began.elapsed() >= Duration::from_millis(millis.max(0) as u64).saturating_sub(Duration::from_millis(1))
            );
        }
    }
}
