//! How glibc's malloc keeps what is freed.
//!
//! A commit frees large buffers and the next one takes them again. Left to itself glibc gives them back to the kernel in
//! between, which clears every page that is taken anew: a third of the time from decode to encode. Nor does what one thread
//! frees serve another while each has an arena of its own. Nothing is set on other systems, whose allocators know no such
//! options.

/// Allocations from here on, in bytes, get a mapping of their own, which goes back when they are freed: the most that glibc
/// takes. The columns of a large lookup table are larger.
pub const OWN_MAPPING: usize = 32 << 20;

/// To be called once, before there are threads. Whoever sets `MALLOC_MMAP_THRESHOLD_`, `MALLOC_TRIM_THRESHOLD_` or
/// `MALLOC_TOP_PAD_` decides about all three instead; so does `MALLOC_ARENA_MAX` about the number of arenas.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    glibc::set();
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    use std::thread::available_parallelism;

    use libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, M_TOP_PAD, M_TRIM_THRESHOLD, c_int};

    const MIB: c_int = 1 << 20;

    /// With the variables that set them, too (`man mallopt`): [`super::OWN_MAPPING`]; so much may stay free at the end of the main
    /// arena, which for the threads' smaller ones means all of it; and so much more than asked for is taken from the kernel at
    /// once.
    const THRESHOLDS: [(&str, c_int, c_int); 3] = [
        ("MALLOC_MMAP_THRESHOLD_", M_MMAP_THRESHOLD, super::OWN_MAPPING as c_int),
        ("MALLOC_TRIM_THRESHOLD_", M_TRIM_THRESHOLD, 128 * MIB),
        ("MALLOC_TOP_PAD_", M_TOP_PAD, 4 * MIB),
    ];

    pub fn set() {
        let is_set = |variable: &str| std::env::var_os(variable).is_some();
        if !THRESHOLDS.iter().any(|(variable, ..)| is_set(variable)) {
            THRESHOLDS.iter().for_each(|&(_, option, value)| mallopt(option, value));
        }
        if !is_set("MALLOC_ARENA_MAX") {
            // Shared by all threads. A quarter of glibc's own number; with fewer still, two busy threads may meet in one arena.
            let cores = available_parallelism().map_or(1, |cores| cores.get() as c_int);
            mallopt(M_ARENA_MAX, 2 * cores);
        }
    }

    fn mallopt(option: c_int, value: c_int) {
        // SAFETY: changes the allocator's own settings. One that is refused stays what it was, which costs time alone.
        unsafe { libc::mallopt(option, value) };
    }
}
