//! A terminal that a job writes to, and that goes away under it.

use std::ffi::CStr;
use std::fs::File;
use std::io::{ErrorKind, PipeReader, PipeWriter, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Stdio;
use std::thread::JoinHandle;

/// Reads what is written, until it is told to go.
pub struct Terminal {
    go: PipeWriter,
    thread: JoinHandle<usize>,
}

impl Terminal {
    /// And the end that a process writes to, of which no other is left here.
    pub fn open() -> (Terminal, Stdio) {
        // Inherited by nobody: a terminal is gone once the last of its readers is.
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        let mut name = [0; 64];
        // SAFETY: the descriptor is ours alone, and the name is written into as many bytes as it has.
        let master = unsafe {
            let fd = libc::posix_openpt(flags);
            assert!(fd >= 0, "no terminal: {}", std::io::Error::last_os_error());
            let done = [libc::grantpt(fd), libc::unlockpt(fd), libc::ptsname_r(fd, name.as_mut_ptr(), name.len())];
            assert_eq!(done, [0; 3], "no terminal: {}", std::io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd)
        };
        let name = name.map(|byte| byte as u8);
        let name = CStr::from_bytes_until_nul(&name).expect("a name ends").to_str().expect("a path of ASCII");
        let slave = File::options().write(true).custom_flags(libc::O_NOCTTY).open(name).expect("the terminal");
        let (told, go) = std::io::pipe().expect("a pipe");
        let thread = std::thread::spawn(move || read(master.into(), &told));
        (Terminal { go, thread }, slave.into())
    }

    /// Whoever writes from now on gets an error. How many bytes were read.
    pub fn go_away(self) -> usize {
        drop(self.go);
        self.thread.join().expect("it only reads")
    }
}

fn read(mut master: File, told: &PipeReader) -> usize {
    let wait = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let (mut buffer, mut count) = ([0; 4096], 0);
    loop {
        let mut waits = [wait(master.as_raw_fd()), wait(told.as_raw_fd())];
        // SAFETY: two entries, as said.
        assert!(unsafe { libc::poll(waits.as_mut_ptr(), 2, -1) } > 0, "{}", std::io::Error::last_os_error());
        if waits[1].revents != 0 {
            return count;
        }
        match master.read(&mut buffer) {
            Ok(read) => count += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Nobody writes any more.
            Err(_) => return count,
        }
    }
}
