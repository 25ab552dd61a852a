//! One directory per test process, under the system's temporary directory: the server's user must be able to reach it,
//! and root's home is closed to that user.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

const PREFIX: &str = "dinnerbell-it-";

static HOME: LazyLock<PathBuf> = LazyLock::new(|| {
    sweep();
    let home = std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
    fs::create_dir_all(&home).unwrap_or_else(|error| panic!("creating {}: {error}", home.display()));
    // Statics are never dropped, so an exit handler takes the directory away; the servers die by their parent's death.
    // SAFETY: the handler is a plain function that lives as long as the process.
    unsafe { libc::atexit(remove_home) };
    home
});

/// The directory of this test process; it goes when the process exits.
pub fn home() -> &'static Path {
    &HOME
}

/// A new directory under [`home`] whose name begins with `name`.
pub fn fresh(name: &str) -> PathBuf {
    let path = home().join(format!("{name}-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]));
    fs::create_dir_all(&path).unwrap_or_else(|error| panic!("creating {}: {error}", path.display()));
    path
}

extern "C" fn remove_home() {
    // Servers may still be writing; what they add after this is found by the next run's sweep.
    let _ = fs::remove_dir_all(&*HOME);
}

/// Removes what test processes left that were killed.
fn sweep() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|pid| pid.parse().ok());
        // SAFETY: signal 0 asks whether the process exists.
        if pid.is_some_and(|pid: libc::pid_t| unsafe { libc::kill(pid, 0) } != 0) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
