//! A private Postgres from the machine's own binaries: a fresh data directory, a free loopback port, one password.
//!
//! It is a whole server with whole durability (unless asked otherwise), gone with its directory when the handle is
//! dropped. It is not a way to run a database that anyone wants to keep.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::process;
use crate::error::{Error, Result};

/// A cold start on a busy machine of two cores takes 2 s; recovery after a crash in the middle of a load some more.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// What differs from server to server.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Commits return before the disk has them: faster, and a crash of the machine (not of the server) loses some.
    pub no_fsync: bool,
    /// TLS beside plain connections.
    pub tls: Option<Tls>,
    /// Further settings, as in postgresql.conf.
    pub settings: Vec<(String, String)>,
}

/// PEM files; they are copied, so that the server's user may read them.
#[derive(Debug, Clone)]
pub struct Tls {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
}

/// How to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Ends the sessions, rolls back what is open, writes a checkpoint.
    Fast,
    /// As a crash: no checkpoint, recovery at the next start.
    Immediate,
}

/// The user that the server runs as, where that is not our own.
#[derive(Debug, Clone, Copy)]
struct Owner {
    uid: u32,
    gid: u32,
}

/// A server of our own. Dropped, it stops and its directory goes.
#[derive(Debug)]
pub struct Postgres {
    home: PathBuf,
    binaries: PathBuf,
    owner: Option<Owner>,
    port: u16,
    password: String,
    options: Options,
    child: Option<Child>,
}

impl Postgres {
    /// Makes a data directory under `parent` and starts a server on it, ready for connections. As root the server runs
    /// as the user `postgres` (else `nobody`), who must be able to reach `parent`. Blocks for about two seconds.
    pub fn start(parent: &Path, options: Options) -> Result<Postgres> {
        let binaries = find_binaries()?;
        let owner = other_user()?;
        let port = process::free_port().map_err(Error::io("looking for a port for Postgres"))?;
        let home = parent.join(format!("postgres-{}", uuid::Uuid::new_v4().simple()));
        let password = uuid::Uuid::new_v4().simple().to_string();
        let mut server = Postgres { home, binaries, owner, port, password, options, child: None };
        server.create()?;
        server.resume()?;
        Ok(server)
    }

    /// The address of `database`, for the superuser `postgres`.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where psql and its like stand.
    pub fn binaries(&self) -> &Path {
        &self.binaries
    }

    /// The server's own data directory, with pg_hba.conf and postgresql.conf.
    pub fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// Starts the stopped server again, on the same data and port; ready when this returns.
    pub fn resume(&mut self) -> Result<()> {
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).args(["-p", &self.port.to_string(), "-k", ""]);
        for (name, value) in self.settings() {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let log = || OpenOptions::new().create(true).append(true).open(self.log());
        let opened = log().and_then(|out| Ok((out, log()?)));
        let (out, err) = opened.map_err(Error::io(format!("opening {}", self.log().display())))?;
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        // SIGQUIT: the server ends its own children before it goes.
        let started = process::spawn(command, libc::SIGQUIT);
        self.child = Some(started.map_err(Error::io("starting Postgres"))?);
        self.wait_until_ready()
    }

    /// Stops the server and waits for its end. One that is stopped already stays so.
    pub fn stop(&mut self, shutdown: Shutdown) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let signal = match shutdown {
            Shutdown::Fast => libc::SIGINT,
            Shutdown::Immediate => libc::SIGQUIT,
        };
        process::send(&child, signal);
        let waiting = || Error::io("waiting for Postgres to stop");
        if !process::wait(&mut child, Duration::from_secs(30)).map_err(waiting())? {
            child.kill().and_then(|()| child.wait()).map_err(waiting())?;
        }
        Ok(())
    }

    /// The last lines of the server's log.
    pub fn log_tail(&self) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn log(&self) -> PathBuf {
        self.home.join("postgres.log")
    }

    fn settings(&self) -> Vec<(String, String)> {
        let mut all: Vec<(String, String)> = Vec::new();
        let mut set = |name: &str, value: &str| all.push((name.into(), value.into()));
        set("listen_addresses", "127.0.0.1");
        set("logging_collector", "off");
        set("fsync", if self.options.no_fsync { "off" } else { "on" });
        if self.options.tls.is_some() {
            set("ssl", "on");
            set("ssl_cert_file", &self.home.join("server.crt").display().to_string());
            set("ssl_key_file", &self.home.join("server.key").display().to_string());
            set("ssl_ca_file", &self.home.join("ca.crt").display().to_string());
        }
        all.extend(self.options.settings.iter().cloned());
        all
    }

    fn create(&self) -> Result<()> {
        let doing = || Error::io(format!("preparing {}", self.home.display()));
        fs::DirBuilder::new().mode(0o700).create(&self.home).map_err(doing())?;
        let password_file = self.home.join("password");
        self.write(&password_file, self.password.as_bytes()).map_err(doing())?;
        if let Some(tls) = &self.options.tls {
            for (from, to) in [(&tls.certificate, "server.crt"), (&tls.key, "server.key"), (&tls.ca, "ca.crt")] {
                let pem = fs::read(from).map_err(Error::io(format!("reading {}", from.display())))?;
                self.write(&self.home.join(to), &pem).map_err(doing())?;
            }
        }
        self.give(&self.home).map_err(doing())?;
        let mut initdb = self.command("initdb");
        initdb.args(["--username=postgres", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]);
        initdb.arg("--pwfile").arg(&password_file).arg("-D").arg(self.data());
        let output = initdb.stdin(Stdio::null()).output().map_err(Error::io("running initdb"))?;
        if !output.status.success() {
            return Err(Error::Halt {
                what: format!("initdb failed: {}", String::from_utf8_lossy(&output.stderr).trim()),
                remedy: format!("look at the rights and the free space of {}", self.home.display()),
            });
        }
        fs::remove_file(&password_file).map_err(doing())
    }

    fn write(&self, path: &Path, content: &[u8]) -> std::io::Result<()> {
        use std::io::Write;
        let mut file: File = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path)?;
        file.write_all(content)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        self.give(path)
    }

    fn give(&self, path: &Path) -> std::io::Result<()> {
        match self.owner {
            Some(owner) => std::os::unix::fs::chown(path, Some(owner.uid), Some(owner.gid)),
            None => Ok(()),
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.binaries.join(program));
        command.current_dir(&self.home).env("LC_ALL", "C").env_remove("PGDATA").env_remove("PGOPTIONS");
        if let Some(owner) = self.owner {
            command.uid(owner.uid).gid(owner.gid);
        }
        command
    }

    /// The server writes its state into line 8 of postmaster.pid, whose first line is its process id.
    fn wait_until_ready(&mut self) -> Result<()> {
        let pid_file = self.data().join("postmaster.pid");
        let end = Instant::now() + READY_WITHIN;
        while Instant::now() < end {
            let Some(child) = &mut self.child else { break };
            if child.try_wait().map_err(Error::io("starting Postgres"))?.is_some() {
                break;
            }
            let state = fs::read_to_string(&pid_file).unwrap_or_default();
            let mut lines = state.lines().map(str::trim);
            if lines.next() == Some(&child.id().to_string()) && lines.nth(6) == Some("ready") {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(Error::Halt {
            what: format!("the private Postgres did not start; the end of its log:\n{}", self.log_tail()),
            remedy: "correct what its log names, and start again".into(),
        })
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Nothing here is kept, so neither a checkpoint nor a complaint is of use.
        let _ = self.stop(Shutdown::Immediate);
        let _ = fs::remove_dir_all(&self.home);
    }
}

/// The directory of `postgres` and `initdb`: the newest under /usr/lib/postgresql (Debian keeps them out of PATH), or
/// that of PATH, which goes first.
fn find_binaries() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut debian: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    debian.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    let elsewhere = ["/usr/pgsql/bin", "/opt/homebrew/opt/postgresql/bin", "/usr/local/opt/postgresql/bin"];
    std::env::split_paths(&path)
        .chain(debian.into_iter().map(|(_, directory)| directory))
        .chain(elsewhere.map(PathBuf::from))
        .find(|directory| ["postgres", "initdb"].iter().all(|program| directory.join(program).is_file()))
        .ok_or_else(|| Error::Halt {
            what: "no Postgres server on this machine: neither `postgres` nor `initdb` in PATH or /usr/lib/postgresql/*/bin"
                .into(),
            remedy: "install it (Debian and Ubuntu: apt-get install postgresql; Fedora: dnf install postgresql-server; \
                     macOS: brew install postgresql), or run everything in containers: docker-compose up"
                .into(),
        })
}

/// Postgres refuses to run as root, so root needs somebody else.
fn other_user() -> Result<Option<Owner>> {
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } != 0 {
        return Ok(None);
    }
    [c"postgres", c"nobody"].into_iter().find_map(user).map(Some).ok_or_else(|| Error::Halt {
        what: "Postgres refuses to run as root, and there is neither a user `postgres` nor `nobody`".into(),
        remedy: "start this as another user".into(),
    })
}

fn user(name: &std::ffi::CStr) -> Option<Owner> {
    // SAFETY: a null `passwd` is valid for the call to fill in; `name` and `buffer` outlive it, and the ids are copied.
    unsafe {
        let mut entry: libc::passwd = std::mem::zeroed();
        let mut buffer = [0; 4096];
        let mut found = std::ptr::null_mut();
        let status = libc::getpwnam_r(name.as_ptr(), &mut entry, buffer.as_mut_ptr(), buffer.len(), &mut found);
        (status == 0 && !found.is_null()).then_some(Owner { uid: entry.pw_uid, gid: entry.pw_gid })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data outlives a crash, the directory does not outlive the handle.
    #[tokio::test(flavor = "multi_thread")]
    async fn it_starts_crashes_starts_again_and_goes() {
        let mut server = Postgres::start(&std::env::temp_dir(), Options::default()).unwrap();
        let url = server.url("postgres");
        execute(&url, "CREATE TABLE kept AS SELECT 1 AS one").await.unwrap();
        server.stop(Shutdown::Immediate).unwrap();
        server.stop(Shutdown::Fast).unwrap();
        assert!(execute(&url, "TABLE kept").await.is_err());
        server.resume().unwrap();
        execute(&url, "TABLE kept").await.unwrap();
        assert!(execute(&url.replace(&server.password, "wrong"), "TABLE kept").await.is_err());
        let home = server.home.clone();
        drop(server);
        assert!(!home.exists());
    }

    #[test]
    fn a_setting_that_postgres_refuses_is_named() {
        let settings = vec![("shared_buffers".to_owned(), "plenty".to_owned())];
        let error = Postgres::start(&std::env::temp_dir(), Options { settings, ..Options::default() }).unwrap_err();
        assert!(error.to_string().contains("shared_buffers"), "{error}");
    }

    async fn execute(url: &str, sql: &str) -> Result<(), tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        client.batch_execute(sql).await
    }
}
