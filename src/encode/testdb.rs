//! A private Postgres for the tests that need the real one; with DATABASE_URL set, that server in a schema of its own.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio_postgres::{Client, NoTls};

/// Ends with the value, and with the thread that started it.
pub struct TestDb {
    pub client: Client,
    /// A fresh schema, first in the client's search path.
    pub schema: String,
    _server: Option<Server>,
}

struct Server {
    child: Child,
    directory: tempfile::TempDir,
}

impl Server {
    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGINT is Postgres's fast shutdown.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGINT) };
        self.child.wait().ok();
    }
}

impl TestDb {
    pub async fn start() -> TestDb {
        let (server, url) = match std::env::var("DATABASE_URL") {
            Ok(url) => (None, url),
            Err(_) => start_server(),
        };
        let client = connect(&url, server.as_ref()).await;
        let schema = format!("encode_{:016x}", fastrand::u64(..));
        client.batch_execute(&format!("CREATE SCHEMA {schema}; SET search_path = {schema}")).await.unwrap();
        TestDb { client, schema, _server: server }
    }
}

async fn connect(url: &str, server: Option<&Server>) -> Client {
    let mut last = None;
    for _ in 0..300 {
        match tokio_postgres::connect(url, NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                return client;
            }
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{url}: {last:?}; the server's log: {}", server.map(Server::log).unwrap_or_default());
}

fn start_server() -> (Option<Server>, String) {
    let binaries = binaries();
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let account = account();
    if let Some((user, group)) = account {
        std::os::unix::fs::chown(directory.path(), Some(user), Some(group)).unwrap();
    }
    let as_account = |program: &str| {
        let mut command = Command::new(binaries.join(program));
        let log = std::fs::File::options().create(true).append(true).open(directory.path().join("log")).unwrap();
        command.current_dir(directory.path()).stdout(Stdio::null()).stderr(log);
        if let Some((user, group)) = account {
            command.uid(user).gid(group);
        }
        command
    };
    let made = as_account("initdb")
        .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "-D"])
        .arg(&data)
        .status();
    assert!(made.unwrap().success(), "initdb failed");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = as_account("postgres");
    command.arg("-D").arg(&data).args(["-p", &port.to_string(), "-k", ""]);
    command.args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "shared_buffers=16MB"]);
    // The server dies with the test's thread, whatever ends that.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGQUIT) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let child = command.spawn().unwrap();
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
    (Some(Server { child, directory }), url)
}

fn binaries() -> PathBuf {
    let versions =
        std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = versions.chain(std::env::split_paths(&path)).find(|directory| directory.join("initdb").exists());
    found.expect("this test needs Postgres: install it (Debian: postgresql), or set DATABASE_URL")
}

/// Postgres refuses to run as root: then it runs as `postgres`.
fn account() -> Option<(u32, u32)> {
    if unsafe { libc::geteuid() } != 0 {
        return None;
    }
    let accounts = std::fs::read_to_string(Path::new("/etc/passwd")).unwrap();
    let line = accounts.lines().find(|line| line.starts_with("postgres:")).expect("no account `postgres` to run it as");
    let mut ids = line.split(':').skip(2).map(|id| id.parse().unwrap());
    Some((ids.next().unwrap(), ids.next().unwrap()))
}
