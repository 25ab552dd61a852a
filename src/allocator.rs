//! How glibc's malloc keeps what is freed.
//!
//! A commit frees large buffers and the next one takes them again. Left to itself glibc gives them back to the kernel in
//! between, which clears every page that is taken anew: a third of the time from decode to encode. Nor does what one thread
//! frees serve another while each has an arena of its own. Nothing is set on other systems, whose allocators know no such
//! options.

/// To be called once, before there are threads. Whoever sets `MALLOC_MMAP_THRESHOLD_`, `MALLOC_TRIM_THRESHOLD_`,
/// `MALLOC_TOP_PAD_` or `MALLOC_ARENA_MAX` decides about all four instead.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    glibc::set();
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    use std::thread::available_parallelism;

    use libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TOP_PAD, M_TRIM_THRESHOLD, c_int};

    const MIB: c_int = 1 << 20;

    /// With the variables that set them, too (`man mallopt`): allocations from here on get a mapping of their own, which goes
    /// back when they are freed (the most that glibc takes; the columns of a large lookup table are larger); so much may stay
    /// free at the end of the main arena, which for the threads' smaller ones means all of it; so much more than asked for is
    /// taken from the kernel at once; and so many arenas are shared by all threads, of which no more run at once.
    fn options() -> [(&'static str, c_int, c_int); 4] {
        let cores = available_parallelism().map_or(1, |cores| cores.get() as c_int);
        [
            ("MALLOC_MMAP_THRESHOLD_", M_MMAP_THRESHOLD, 32 * MIB),
            ("MALLOC_TRIM_THRESHOLD_", M_TRIM_THRESHOLD, 128 * MIB),
            ("MALLOC_TOP_PAD_", M_TOP_PAD, 4 * MIB),
            ("MALLOC_ARENA_MAX", M_ARENA_MAX, cores),
        ]
    }

    pub fn set() {
        if options().iter().any(|(variable, ..)| std::env::var_os(variable).is_some()) {
            return;
        }
        for (_, option, value) in options() {
            // SAFETY: changes the allocator's own settings. One that is refused stays what it was, which costs time alone.
            unsafe { libc::mallopt(option, value) };
        }
    }
}
