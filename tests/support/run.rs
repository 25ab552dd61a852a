//! Programs, futures and conditions, each with a time limit.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a tokio runtime")
});

/// Runs `future` on the tests' own runtime and waits for it; works inside another runtime too.
pub fn block_on<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    let (answer, result) = mpsc::channel();
    let task = RUNTIME.spawn(async move {
        let _ = answer.send(future.await);
    });
    match result.recv() {
        Ok(value) => value,
        Err(_) => panic!("the future panicked: {task:?}"),
    }
}

/// Runs `future` on the tests' own runtime, beside whatever else runs.
pub fn spawn(future: impl Future<Output = ()> + Send + 'static) -> tokio::task::JoinHandle<()> {
    RUNTIME.spawn(future)
}

/// Runs `command` to its end with `input` on its standard input; panics with all it said unless it exits with 0.
pub fn run(command: &mut Command, input: &str) -> String {
    let Output { status, stdout, stderr } = output(command, input);
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout).into_owned(), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}");
    stdout
}

/// As [`run`], whatever the exit code.
pub fn output(command: &mut Command, input: &str) -> Output {
    use std::io::Write;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("it is piped");
    let input = input.to_owned();
    // In a thread of its own: a program that writes much before it has read all would wait for us for ever. One that
    // ends early breaks the pipe; its exit code tells more than that.
    let feeder = thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let _ = feeder.join();
    output
}

/// Chance for one test; its output says how to have the same again.
pub fn random() -> fastrand::Rng {
    const SEED: &str = "DINNERBELL_TEST_SEED";
    let given = std::env::var(SEED).ok().map(|seed| seed.parse().unwrap_or_else(|error| panic!("{SEED}: {error}")));
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    println!("{SEED}={seed}");
    fastrand::Rng::with_seed(seed)
}

/// Asks `condition` until it holds; panics with `what` when it does not within `limit`.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(2);
    while !condition() {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// The last `lines` lines of a file, for messages.
pub fn tail(path: &Path, lines: usize) -> String {
    let content = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&content);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
