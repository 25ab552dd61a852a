//! Child processes that die with this one, and ports for them to listen on.
//!
//! On Linux the kernel ends a child when its parent is gone, however the parent went. Elsewhere a parent that is killed
//! leaves its children behind; only a drop of their handles ends them.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command};
use std::sync::mpsc::{self, Sender};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

/// A signal by its number, such as `libc::SIGINT`.
pub type Signal = i32;

struct Order {
    command: Command,
    answer: Sender<io::Result<Child>>,
}

/// The kernel's parent death signal follows the *thread* that forked, so one thread that never ends forks them all.
static NURSE: LazyLock<Sender<Order>> = LazyLock::new(|| {
    let (orders, inbox) = mpsc::channel::<Order>();
    let nurse = move || {
        for mut order in inbox {
            // Nobody waits for the answer any more only if the asking thread is gone: then the child is dropped too.
            let _ = order.answer.send(order.command.spawn());
        }
    };
    if let Err(error) = std::thread::Builder::new().name("children".into()).spawn(nurse) {
        tracing::error!(%error, "cannot start the thread that starts children");
    }
    orders
});

/// Starts `command` in a process group of its own (Ctrl-C in the terminal is for this process, which then ends its
/// children in order). When this process dies, the child receives `on_death`.
pub fn spawn(mut command: Command, on_death: Signal) -> io::Result<Child> {
    die_with_parent(&mut command, on_death);
    let (answer, result) = mpsc::channel();
    let gone = || io::Error::other("the thread that starts children is gone");
    NURSE.send(Order { command, answer }).map_err(|_| gone())?;
    result.recv().map_err(|_| gone())?
}

fn die_with_parent(command: &mut Command, on_death: Signal) {
    use std::os::unix::process::CommandExt;
    command.process_group(0);
    #[cfg(target_os = "linux")]
    {
        let parent = std::process::id();
        let hook = move || {
            // SAFETY: both calls are async-signal-safe and touch no memory of ours.
            let set = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, on_death as libc::c_ulong) };
            if set != 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the call above; then nobody would ever send the signal.
            match unsafe { libc::getppid() } as u32 == parent {
                true => Ok(()),
                false => Err(io::ErrorKind::BrokenPipe.into()),
            }
        };
        // SAFETY: the hook allocates nothing and takes no lock. It runs after the change of user, which would clear it.
        unsafe { command.pre_exec(hook) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = on_death;
}

/// Sends `signal` to `child`, which may have ended already.
pub fn send(child: &Child, signal: Signal) {
    // SAFETY: a plain system call. The child has not been waited for, so its id is not anyone else's yet.
    unsafe { libc::kill(child.id() as libc::pid_t, signal) };
}

/// Waits up to `patience` for `child` to end; false if it still runs then.
pub fn wait(child: &mut Child, patience: Duration) -> io::Result<bool> {
    let end = std::time::Instant::now() + patience;
    while child.try_wait()?.is_none() {
        if std::time::Instant::now() >= end {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(true)
}

/// No port is handed out twice: who asked for it first may not listen yet.
static HANDED_OUT: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A loopback port nobody listens on. It lies below the ports that the kernel gives to outgoing connections (32768 and
/// up on Linux), so it is still free when a server stops and starts again on it.
pub fn free_port() -> io::Result<u16> {
    let mut handed_out = HANDED_OUT.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in 0..100 {
        let port = fastrand::u16(15_000..32_000);
        if !handed_out.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            handed_out.insert(port);
            return Ok(port);
        }
    }
    Err(io::Error::new(io::ErrorKind::AddrInUse, "no free port among 100 tried between 15000 and 32000"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it() {
        let mut command = Command::new("sleep");
        command.arg("60");
        let mut child = std::thread::spawn(|| spawn(command, libc::SIGKILL)).join().unwrap().unwrap();
        assert!(!wait(&mut child, Duration::from_millis(100)).unwrap());
        send(&child, libc::SIGTERM);
        assert!(wait(&mut child, Duration::from_secs(10)).unwrap());
    }

    #[test]
    fn a_command_that_cannot_start_says_so() {
        assert_eq!(spawn(Command::new("/nowhere/to/be"), libc::SIGKILL).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_free_port_can_be_bound() {
        let port = free_port().unwrap();
        assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok());
    }
}
