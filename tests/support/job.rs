//! The built binary, run on a [`Stack`].

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dinnerbell::demo::process;

use super::run::{output, run, tail};
use super::stack::Stack;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A running job. Its output goes to files, printed when the test fails; dropped, it is killed.
#[derive(Debug)]
pub struct Job {
    child: Child,
    admin: u16,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Job {
    /// `dinnerbell <args> --config <the stack's>` in the stack's directory.
    pub fn spawn(stack: &Stack, args: &[&str]) -> Job {
        Self::spawn_with(stack, args, &[])
    }

    /// As [`Job::spawn`], with environment variables (such as FAILPOINTS).
    pub fn spawn_with(stack: &Stack, args: &[&str], environment: &[(&str, &str)]) -> Job {
        Self::start(stack, args, environment, None)
    }

    /// As [`Job::spawn_with`], with `stderr` elsewhere than in a file.
    pub fn spawn_on(stack: &Stack, args: &[&str], environment: &[(&str, &str)], stderr: Stdio) -> Job {
        Self::start(stack, args, environment, Some(stderr))
    }

    fn start(stack: &Stack, args: &[&str], environment: &[(&str, &str)], elsewhere: Option<Stdio>) -> Job {
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let file = |kind: &str| stack.directory.join(format!("job-{n}.{kind}"));
        let (stdout, stderr) = (file("stdout"), file("stderr"));
        let create = |path| File::create(path).expect("the directory is ours");
        let admin = process::free_port().expect("a free port");
        let mut command = dinnerbell(stack, args, admin);
        command.envs(environment.iter().copied()).stdin(Stdio::null());
        let errors = create(&stderr);
        command.stdout(create(&stdout)).stderr(elsewhere.unwrap_or(errors.into()));
        let child = process::spawn(command, libc::SIGKILL).expect("the binary starts");
        Job { child, admin, stdout, stderr }
    }

    /// Runs to the end, whatever the exit code.
    pub fn output(stack: &Stack, args: &[&str]) -> Output {
        output(&mut dinnerbell(stack, args, 0), "")
    }

    /// Runs to the end, which must be 0; what it printed.
    pub fn run(stack: &Stack, args: &[&str]) -> String {
        run(&mut dinnerbell(stack, args, 0), "")
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM: finish and leave.
    pub fn term(&self) {
        process::send(&self.child, libc::SIGTERM);
    }

    pub fn signal(&self, signal: i32) {
        process::send(&self.child, signal);
    }

    /// SIGKILL, and the end awaited.
    pub fn kill9(&mut self) {
        self.child.kill().and_then(|()| self.child.wait()).expect("it is our child");
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_none()
    }

    /// Waits for the end; panics when it does not come within `limit`.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        assert!(process::wait(&mut self.child, limit).expect("it is our child"), "the job still runs after {limit:?}");
        self.child.wait().expect("it is our child")
    }

    pub fn stdout(&self) -> String {
        std::fs::read_to_string(&self.stdout).expect("UTF-8 on standard output")
    }

    pub fn stderr(&self) -> String {
        std::fs::read_to_string(&self.stderr).expect("UTF-8 on standard error")
    }

    /// Status and body of `path` on the admin port; `None` while nobody answers there.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    /// Whether /readyz says yes.
    pub fn is_ready(&self) -> bool {
        self.get("/readyz").is_some_and(|(status, _)| status == 200)
    }

    /// The sum of a metric's series whose labels contain `labels` (such as `outcome="triggered"`); 0 where there is none.
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        let (_, text) = self.get("/metrics").expect("the admin port answers");
        let series = text.lines().filter_map(|line| {
            let (left, value) = line.rsplit_once(' ')?;
            let rest = left.strip_prefix(name)?;
            let ours = (rest.is_empty() || rest.starts_with('{')) && rest.contains(labels);
            ours.then(|| value.parse::<f64>().ok()).flatten()
        });
        series.sum()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
        if std::thread::panicking() {
            for file in [&self.stdout, &self.stderr] {
                eprintln!("--- the end of {}\n{}", file.display(), tail(file, 60));
            }
        }
    }
}

fn dinnerbell(stack: &Stack, args: &[&str], admin: u16) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dinnerbell"));
    command.current_dir(&stack.directory).args(args).arg("--config").arg(stack.config());
    command.env("DINNERBELL_TEST_ADMIN", format!("127.0.0.1:{admin}"));
    command
}
