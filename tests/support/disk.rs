//! A small disk that can be filled.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::places::fresh;

/// A file system of its own, in memory; dropped, it is unmounted at once, whoever still uses it.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// `None` where DINNERBELL_TESTS_WITHOUT_MOUNT says that this user may not mount, and the test shall pass without.
    pub fn of_megabytes(size: usize) -> Option<Disk> {
        let path = fresh("disk");
        let target = c_path(&path);
        let options = CString::new(format!("size={size}m")).expect("no zero byte");
        // SAFETY: all strings are terminated and outlive the call.
        let mounted =
            unsafe { libc::mount(c"tmpfs".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), 0, options.as_ptr().cast()) };
        if mounted != 0 {
            let error = std::io::Error::last_os_error();
            let allowed = std::env::var_os("DINNERBELL_TESTS_WITHOUT_MOUNT").is_some();
            assert!(allowed, "mounting a small disk: {error}; DINNERBELL_TESTS_WITHOUT_MOUNT=1 leaves this test out");
            return None;
        }
        Some(Disk { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // SAFETY: a terminated string that outlives the call.
        unsafe { libc::umount2(c_path(&self.path).as_ptr(), libc::MNT_DETACH) };
        let _ = std::fs::remove_dir(&self.path);
    }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("no zero byte")
}
