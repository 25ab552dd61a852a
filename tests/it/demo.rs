//! `dinnerbell demo`, as a user starts it: no settings, no servers, only the SQL directory.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use dinnerbell::demo::process;

use crate::support::{home, run, tail, wait_until};

/// A cold start takes 5 s here, sixty campaigns as much again.
const PATIENCE: Duration = Duration::from_secs(90);

/// The demo in the repository, where `sql` stands.
fn demo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dinnerbell"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).arg("demo").env_remove("RUST_LOG");
    command
}

/// The directories of demos that a process left behind.
fn left_by(pid: u32) -> PathBuf {
    std::env::temp_dir().join(format!("dinnerbell-demo-{pid}"))
}

/// Servers of the demo in `directory` that still run.
fn servers(directory: &Path) -> usize {
    let ours = |entry: &std::fs::DirEntry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains(&directory.display().to_string()) && line.contains("postgres")
    };
    std::fs::read_dir("/proc").expect("Linux").flatten().filter(ours).count()
}

#[test]
fn once_shows_every_kind_and_finds_both_sinks_equal() {
    let shown = run(demo().arg("--once"), "");
    for expected in [
        "Kafka",
        "psql postgres://postgres:",
        "/metrics | grep ^dinnerbell_",
        "message-60 ",
        "triggered: ",
        "filtered: expired",
        "filtered: not_started",
        "filtered: no_match:subscribers_restaurants",
        "dead letter (decode) $.adv_campaign_owner: ",
        "ok     60 campaigns sent, 60 read, 60 with an outcome",
        "ok     12 broken campaigns, 12 dead letters, 12 byte for byte",
        "Both sinks hold the same, and all of it.",
    ] {
        assert!(shown.contains(expected), "{expected}\n{shown}");
    }
    assert!(!shown.contains("FAILED") && !shown.contains('\x1b'), "{shown}");
}

#[test]
fn ctrl_c_ends_it_with_all_that_it_started() {
    let (stdout, stderr) = (home().join("demo.stdout"), home().join("demo.stderr"));
    let file = |path: &Path| File::create(path).expect("the directory is ours");
    let mut command = demo();
    command.stdin(Stdio::null()).stdout(file(&stdout)).stderr(file(&stderr));
    let mut child = process::spawn(command, libc::SIGKILL).expect("the binary starts");
    let directory = left_by(child.id());
    let shown = || std::fs::read_to_string(&stdout).unwrap_or_default();
    wait_until("the third campaign", PATIENCE, || shown().contains("message-3 "));
    assert!(servers(&directory) > 0);

    process::send(&child, libc::SIGINT);
    assert!(process::wait(&mut child, Duration::from_secs(15)).expect("it is our child"), "{}", shown());
    let status = child.wait().expect("it is our child");
    assert_eq!(status.code(), Some(0), "{}\n{}", shown(), tail(&stderr, 20));
    assert_eq!(tail(&stderr, 20), "", "nothing to complain about");
    assert_eq!((servers(&directory), directory.exists()), (0, false));
}

#[test]
fn kill_9_leaves_no_server_behind() {
    let stdout = home().join("killed-demo.stdout");
    let mut command = demo();
    command.stdin(Stdio::null()).stderr(Stdio::null()).stdout(File::create(&stdout).expect("the directory is ours"));
    let mut child = process::spawn(command, libc::SIGKILL).expect("the binary starts");
    let directory = left_by(child.id());
    wait_until("Postgres", PATIENCE, || {
        std::fs::read_to_string(&stdout).is_ok_and(|shown| shown.contains("psql postgres://"))
    });
    assert!(servers(&directory) > 0);
    child.kill().and_then(|()| child.wait()).expect("it is our child");
    wait_until("the end of Postgres", PATIENCE, || servers(&directory) == 0);
    std::fs::remove_dir_all(&directory).expect("only the servers go by themselves");
}

#[test]
fn it_needs_the_sql_directory_and_no_settings() {
    let elsewhere = home().join("demo-elsewhere");
    std::fs::create_dir_all(&elsewhere).expect("the directory is ours");
    std::fs::write(elsewhere.join("dinnerbell.toml"), "[postgres]\nurl = \"${NOT_SET}\"\n").expect("it is ours");
    let output = demo().current_dir(&elsewhere).output().expect("the binary starts");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("there is no sql/triggers.sql") && !said.contains("NOT_SET"), "{said}");
}
