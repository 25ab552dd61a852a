//! What a process has used, as /proc tells it: the same for job and null job.

use std::fs;
use std::time::Duration;

#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// User and system time of all threads, ended ones too.
    pub cpu: Duration,
    /// Resident memory now, in MB (a million bytes).
    pub rss: f64,
    /// The most there was at once, in MB.
    pub peak: f64,
}

impl Usage {
    pub fn of(pid: u32) -> Usage {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
        // The name, in parentheses, may hold anything; user and system time are the 12th and 13th field after it.
        let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum();
        // SAFETY: a plain question.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
        let megabytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("Linux says so");
            line.trim_matches(|c: char| !c.is_ascii_digit()).parse::<f64>().expect("a number") * 1024.0 / 1e6
        };
        Usage {
            cpu: Duration::from_secs_f64(ticks as f64 / per_second),
            rss: megabytes("VmRSS:"),
            peak: megabytes("VmHWM:"),
        }
    }

    /// CPU seconds since `earlier`.
    pub fn since(&self, earlier: &Usage) -> f64 {
        (self.cpu - earlier.cpu).as_secs_f64()
    }
}

/// Lets the peak count from now on.
pub fn forget_peak(pid: u32) {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").expect("the process is ours");
}
