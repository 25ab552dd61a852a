//! Throughput: job and null job in turns on the same input.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use dinnerbell::demo::process as children;
use openssl::hash::{MessageDigest, hash};

use crate::encoded::Encoded;
use crate::null_job::STAGES;
use crate::process::Usage;
use crate::report::{Bar, Report, median};
use crate::support::{Job, Stack, consume_each, create_topic, wait_until};
use crate::watch::Watch;
use crate::workload::{Input, UUID_CLIENTS};
use crate::{Options, Workload};

/// Loading ten million rows with DISTINCT on a busy machine.
pub const READY_WITHIN: Duration = Duration::from_secs(300);

/// One program's run from its start to the last visible row.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// From the moment it is a member of the group and ready to read.
    running: f64,
    /// From the start of the process.
    whole: f64,
    cpu_running: f64,
    cpu_whole: f64,
    peak: f64,
    /// Transactions of each sink.
    commits: f64,
}

/// Seconds of a commit's stages, in the order of [`STAGES`].
pub type Stages = [f64; STAGES.len()];

/// Job or null job, running.
pub enum Program {
    Job(Job),
    /// With the stages of each of its commits.
    Null(Child, mpsc::Receiver<Stages>),
}

impl Program {
    pub fn job(stack: &Stack) -> Program {
        let job = Job::spawn(stack, &["run"]);
        let end = Instant::now() + READY_WITHIN;
        while !job.is_ready() {
            assert!(Instant::now() < end, "not ready within {READY_WITHIN:?}: {}", job.stderr());
            std::thread::sleep(Duration::from_millis(2));
        }
        Program::Job(job)
    }

    pub fn null(spec: &Path) -> Program {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg("--null-job").arg(spec).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = children::spawn(command, libc::SIGKILL).expect("this program starts");
        let (mut line, mut said) = (String::new(), BufReader::new(child.stdout.take().expect("piped")));
        said.read_line(&mut line).expect("it says when it is ready");
        assert_eq!(line, "ready\n", "the null job failed");
        // Its lines are read as they come: a full pipe would hold it up.
        let (to_us, commits) = mpsc::channel();
        std::thread::spawn(move || {
            for line in said.lines().map_while(Result::ok) {
                let mut seconds = line.split(' ').map(|stage| stage.parse().expect("seconds"));
                let stages = STAGES.map(|_| seconds.next().expect("the seconds of each stage"));
                if to_us.send(stages).is_err() {
                    return;
                }
            }
        });
        Program::Null(child, commits)
    }

    /// Mean seconds of the stages of a commit. `commits`: those of the null job; the job counts its own.
    pub fn stages(&self, commits: usize) -> Stages {
        match self {
            Program::Job(job) => STAGES.map(|stage| {
                let told =
                    |what: &str| job.metric(&format!("dinnerbell_batch_seconds_{what}"), &format!("stage=\"{stage}\""));
                told("sum") / told("count")
            }),
            Program::Null(_, told) => {
                let mut sums = [0.0; STAGES.len()];
                for _ in 0..commits {
                    let seconds: Stages = told.recv().expect("a line for each commit");
                    sums.iter_mut().zip(seconds).for_each(|(sum, stage)| *sum += stage);
                }
                sums.map(|sum| sum / commits as f64)
            }
        }
    }

    pub fn pid(&self) -> u32 {
        match self {
            Program::Job(job) => job.id(),
            Program::Null(child, _) => child.id(),
        }
    }

    pub fn is_running(&mut self) -> bool {
        match self {
            Program::Job(job) => job.is_running(),
            Program::Null(child, _) => child.try_wait().expect("it is our child").is_none(),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Program::Null(child, _) = self {
            let _ = child.kill().and_then(|()| child.wait());
        }
    }
}

/// A fresh output topic and group, an empty table and ledger, and nothing left to write for the servers.
pub fn fresh(stack: &mut Stack, n: usize) {
    let unique = &uuid::Uuid::new_v4().simple().to_string()[..8];
    let output = format!("{}.{n}.{unique}", stack.campaigns);
    create_topic(&stack.bootstrap, &output, 3, &[]);
    stack.set("sink.kafka", "topic", output.as_str());
    stack.triggers = output;
    stack.group = format!("bench_{n}_{unique}");
    let group = stack.group.clone();
    stack.set("source", "group_id", group.as_str());
    stack.execute("TRUNCATE public.subscribers_feedback RESTART IDENTITY");
    if stack.number("SELECT count(*) FROM pg_namespace WHERE nspname = 'dinnerbell'") > 0 {
        stack.execute("TRUNCATE dinnerbell.progress, dinnerbell.parts, dinnerbell.chunks");
    }
    stack.execute("CHECKPOINT");
    // SAFETY: has no arguments and cannot fail.
    unsafe { libc::sync() }
}

/// Each row once in each sink, and the same rows in both: by number, by what tells rows apart, and by the sum of hashes of
/// their JSON, as it came to Kafka and as Postgres writes the table's rows.
pub fn verify(stack: &Stack, rows: u64) {
    let found =
        stack.rows("SELECT count(*), count(DISTINCT (adv_campaign_id, client_id)) FROM public.subscribers_feedback");
    let count = |column: usize| found[0][column].as_deref().and_then(|text| text.parse::<u64>().ok());
    assert_eq!((count(0), count(1)), (Some(rows), Some(rows)), "rows and distinct rows in Postgres");
    let (mut in_kafka, mut sum) = (0u64, 0i64);
    consume_each(&stack.bootstrap, &stack.triggers, true, |record| {
        in_kafka += 1;
        let digest = hash(MessageDigest::md5(), &record.value.expect("no tombstones")).expect("OpenSSL has MD5");
        sum += i64::from(u32::from_be_bytes(*digest.first_chunk().expect("16 bytes")));
    });
    assert_eq!(in_kafka, rows, "rows in Kafka");
    let hashes = "SELECT coalesce(sum(('x' || left(md5(json_strip_nulls(row_to_json(t))::text), 8))::bit(32)::int8), 0)::int8 \
                  FROM (SELECT restaurant_id, adv_campaign_id, adv_campaign_content, adv_campaign_owner, \
                               adv_campaign_owner_contact, adv_campaign_datetime_start, adv_campaign_datetime_end, \
                               client_id, datetime_created, trigger_datetime_created \
                        FROM public.subscribers_feedback) t";
    assert_eq!(sum, stack.number(hashes), "hashes of the rows in Kafka and in Postgres");
}

/// Whom the table of subscriptions does not have got no row. With their number, and each of them once, they are the join.
fn verify_join(stack: &Stack) {
    let strangers = "SELECT count(*) FROM public.subscribers_feedback f WHERE NOT EXISTS \
                     (SELECT FROM public.subscribers_restaurants s \
                      WHERE s.restaurant_id::text = f.restaurant_id::text AND s.client_id::text = f.client_id::text)";
    assert_eq!(stack.number(strangers), 0, "rows of no subscription");
}

pub fn race(workload: Workload, options: &Options, report: &mut Report) {
    let name = clap::ValueEnum::to_possible_value(&workload).expect("a name").get_name().to_owned();
    let input = Input::new(workload, options.scale);
    let mut stack = Stack::new(&name.replace('-', "_"));
    input.subscribers.insert(&stack, UUID_CLIENTS);
    stack.set("batch", "max_messages", input.max_messages as i64);
    stack.produce(input.messages.iter().cloned());
    let encoded = Encoded::new(&stack, &input.messages, input.max_messages);
    assert_eq!(encoded.rows(), input.rows, "the encoded rows of {name}");
    let messages = input.messages.len() as u64;
    drop(input.messages);
    let (jobs, nulls) = by_turns(options.runs, |n, is_job| {
        let perf = options.perf.as_ref().filter(|_| n == options.runs);
        let run = one(&mut stack, n, is_job.then_some(perf), &encoded, messages, input.rows);
        let who = if is_job { "job" } else { "null" };
        println!("  {name} {n} {who}: {:.3} s running, {:.3} s in all", run.running, run.whole);
        run
    });
    tell(report, workload, &name, input.rows as f64, &jobs, &nulls);
}

/// Runs of the job and of the null job, or of whatever is compared so, each by turns first and second. `one` is given the
/// round's number and whether it is the job's turn; the round of number 0 only warms the servers up, unless it is the only one.
pub fn by_turns<R>(runs: usize, mut one: impl FnMut(usize, bool) -> R) -> (Vec<R>, Vec<R>) {
    let (mut jobs, mut nulls) = (Vec::new(), Vec::new());
    for n in 0..=runs {
        for is_job in if n % 2 == 0 { [true, false] } else { [false, true] } {
            let run = one(n, is_job);
            if n > 0 || runs == 0 {
                if is_job { jobs.push(run) } else { nulls.push(run) }
            }
        }
    }
    (jobs, nulls)
}

/// One run; `job` is none for the null job, else what perf shall write, if anything.
fn one(stack: &mut Stack, n: usize, job: Option<Option<&PathBuf>>, encoded: &Encoded, messages: u64, rows: u64) -> Run {
    fresh(stack, n);
    let spec = encoded.spec(stack, true);
    if job.is_some() {
        // The ledger's rows were the null job's; the job registers its own.
        stack.execute("TRUNCATE dinnerbell.progress");
    }
    let watch = Watch::new(stack);
    let started = Instant::now();
    let mut program = if job.is_some() { Program::job(stack) } else { Program::null(&spec) };
    let (ready, before) = (Instant::now(), Usage::of(program.pid()));
    let perf = job.flatten().map(|file| perf(program.pid(), file));
    let end = watch.wait(messages, || program.is_running());
    let after = Usage::of(program.pid());
    let commits = match &program {
        Program::Job(job) => job.metric("dinnerbell_commits_total", ""),
        Program::Null(..) => encoded.commits.len() as f64,
    };
    if let Some(mut perf) = perf {
        children::send(&perf, libc::SIGINT);
        perf.wait().expect("perf ends");
    }
    if let Program::Job(job) = &program {
        job.term();
    }
    wait_until("the end", Duration::from_secs(30), || matches!(program, Program::Null(..)) || !program.is_running());
    drop(program);
    verify(stack, rows);
    if n == 0 {
        verify_join(stack);
    }
    Run {
        running: (end - ready).as_secs_f64(),
        whole: (end - started).as_secs_f64(),
        cpu_running: after.since(&before),
        cpu_whole: after.cpu.as_secs_f64(),
        peak: after.peak,
        commits,
    }
}

fn perf(pid: u32, file: &Path) -> Child {
    let mut command = Command::new("perf");
    command.args(["record", "-F", "999", "--call-graph", "dwarf,16384", "-p", &pid.to_string(), "-o"]).arg(file);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    children::spawn(command, libc::SIGKILL).expect("perf starts")
}

fn tell(report: &mut Report, workload: Workload, name: &str, rows: f64, jobs: &[Run], nulls: &[Run]) {
    let middle = |runs: &[Run], figure: fn(&Run) -> f64| median(runs.iter().map(figure));
    let millions = rows / 1e6;
    for (program, runs) in [("job", jobs), ("null", nulls)] {
        let figures = [
            ("rows", format!("{rows}")),
            ("rows/s running", format!("{:.0}", rows / middle(runs, |run| run.running))),
            ("s from start", format!("{:.2}", middle(runs, |run| run.whole))),
            ("CPU s per million rows, running", format!("{:.2}", middle(runs, |run| run.cpu_running) / millions)),
            ("CPU s in all", format!("{:.2}", middle(runs, |run| run.cpu_whole))),
            ("peak MB", format!("{:.0}", middle(runs, |run| run.peak))),
            ("commits", format!("{:.0}", middle(runs, |run| run.commits))),
        ];
        report.run(name, program, &figures);
    }
    let speed = middle(nulls, |run| run.running) / middle(jobs, |run| run.running);
    let whole = middle(jobs, |run| run.whole) / middle(nulls, |run| run.whole);
    let own = (middle(jobs, |run| run.cpu_running) - middle(nulls, |run| run.cpu_running)) / millions;
    let own_whole = (middle(jobs, |run| run.cpu_whole) - middle(nulls, |run| run.cpu_whole)) / millions;
    let bar = match workload {
        Workload::FanOut | Workload::Crowd => Bar::AtLeast(0.95),
        Workload::Zipf => Bar::AtLeast(0.90),
        Workload::Selective => Bar::AtLeast(0.75),
        _ => Bar::Told,
    };
    report.bar(&format!("{name}: rows/s against the null job"), bar, speed, "");
    let is_fan_out = workload == Workload::FanOut;
    let only = |bar: Bar| if is_fan_out { bar } else { Bar::Told };
    report.bar(&format!("{name}: start to last row against the null job"), only(Bar::AtMost(1.3)), whole, "");
    report.bar(&format!("{name}: own CPU a million rows, running"), only(Bar::AtMost(0.40)), own, " s");
    report.bar(&format!("{name}: own CPU a million rows, start and lookup load included"), Bar::Told, own_whole, " s");
    // A fifteenth of the 56 s that a tuned Spark takes for it.
    let all = middle(jobs, |run| run.cpu_whole) / millions;
    report.bar(&format!("{name}: CPU a million rows in all"), only(Bar::AtMost(3.73)), all, " s");
}
