//! The replicas: places of which each lives one planned life after the other.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dinnerbell::demo::process;

use super::super::checker::{Examination, Told};
use super::super::proxy::Network;
use super::super::run::tail;
use super::super::stack::Stack;
use super::Options;
use super::plan::{Plan, draw, no_hits};
use super::report::Tally;
use super::sampler::Seen;

/// A life that comes to no assignment ends after so long.
const LONGEST: Duration = Duration::from_secs(40);

/// The session timeout that the job asks for.
const SESSION: Duration = Duration::from_secs(10);

/// What is shown by default, and what becomes of each micro-batch.
const LOGS: &str = "info,librdkafka=warn,rdkafka=off,dinnerbell::job::commit=debug";

const STOPS_WITHIN: Duration = Duration::from_secs(20);

pub struct Slots<'a> {
    stack: &'a Stack,
    logs: PathBuf,
    options: &'a Options,
    random: fastrand::Rng,
    places: Vec<Place>,
    /// Deaths at each step: by a SIGKILL that nobody here has sent.
    hits: BTreeMap<&'static str, u64>,
    /// Everything else that happened to replicas.
    counts: BTreeMap<&'static str, u64>,
    deaths: u64,
    peak: u64,
    looked: Instant,
    /// What the kernel had killed for want of memory before the first start.
    out_of_memory: Option<u64>,
    /// The faults are over: nobody is armed or killed any more.
    calm: bool,
    seen: Arc<Seen>,
    network: Arc<Network>,
}

struct Place {
    number: usize,
    life: Option<Life>,
    /// When the next life begins.
    due: Instant,
    /// The step at which the last life ended, if it was one.
    last: Option<&'static str>,
    /// A replica beyond the usual number, and until when.
    extra: Option<Instant>,
}

struct Life {
    child: Child,
    plan: Plan,
    began: Instant,
    /// Where the log of this life begins.
    log_from: u64,
    assigned: Option<Instant>,
    frozen: Option<Instant>,
    thawed: bool,
    termed: bool,
    /// Why we have sent it SIGKILL, where we have.
    killed: Option<&'static str>,
}

/// How a life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// It killed itself, at the step that it was armed for.
    Step(&'static str),
    /// We did, for this reason.
    Killed(&'static str),
    /// In order, as asked to.
    Drained,
    /// By the SIGTERM for which it did not listen yet.
    Termed,
    /// By itself.
    Strange,
}

impl Death {
    /// A process that is armed for a step and dies by SIGKILL died there only if nobody else has sent one: we have not, see
    /// `killed`, and the kernel says at the end of the run whether it has.
    pub fn of(status: ExitStatus, step: Option<&'static str>, killed: Option<&'static str>, termed: bool) -> Death {
        match (status.signal(), killed, step, status.code()) {
            (Some(libc::SIGKILL), Some(why), ..) => Death::Killed(why),
            (Some(libc::SIGKILL), None, Some(step), _) => Death::Step(step),
            (None, _, _, Some(0)) if termed => Death::Drained,
            (Some(libc::SIGTERM), ..) if termed => Death::Termed,
            _ => Death::Strange,
        }
    }
}

impl<'a> Slots<'a> {
    pub fn new(
        stack: &'a Stack,
        logs: &Path,
        options: &'a Options,
        random: fastrand::Rng,
        seen: Arc<Seen>,
        network: Arc<Network>,
    ) -> Slots<'a> {
        let place = |number| Place { number, life: None, due: Instant::now(), last: None, extra: None };
        Slots {
            stack,
            logs: logs.to_owned(),
            options,
            random,
            places: (0..options.replicas).map(place).collect(),
            hits: no_hits(),
            counts: BTreeMap::new(),
            deaths: 0,
            peak: 0,
            looked: Instant::now(),
            out_of_memory: out_of_memory(),
            calm: false,
            seen,
            network,
        }
    }

    /// Ends and begins the lives whose time has come, and looks at how the others have ended.
    pub fn tick(&mut self, to: &mut Examination) {
        for place in 0..self.places.len() {
            self.bury(place, to);
            self.carry_out(place, to);
            self.bear(place);
        }
        self.places.retain(|place| place.life.is_some() || place.extra.is_none_or(|until| Instant::now() < until));
        if self.looked.elapsed() > Duration::from_millis(250) {
            self.looked = Instant::now();
            let lives = self.places.iter().filter_map(|place| place.life.as_ref());
            self.peak = lives.filter_map(|life| peak(life.child.id())).fold(self.peak, u64::max);
        }
    }

    /// One replica more, for a while.
    pub fn join(&mut self, seconds: u64) -> bool {
        let joins = !self.calm && self.places.len() == self.options.replicas;
        if joins {
            let until = Some(Instant::now() + Duration::from_secs(seconds));
            self.places.push(Place {
                number: self.options.replicas,
                life: None,
                due: Instant::now(),
                last: None,
                extra: until,
            });
        }
        joins
    }

    pub fn deaths(&self) -> u64 {
        self.deaths
    }

    pub fn least_hits(&self) -> u64 {
        self.hits.values().copied().min().unwrap_or_default()
    }

    /// For people.
    pub fn hits(&self) -> String {
        let hits: Vec<String> = self.hits.iter().map(|(step, count)| format!("{step} {count}")).collect();
        format!("{} deaths; {}", self.deaths, hits.join(", "))
    }

    /// From here on they live: what is armed is killed for the last time, what is frozen goes on.
    pub fn end_kills(&mut self, to: &mut Examination) {
        for place in 0..self.places.len() {
            self.bury(place, to);
            let Some(life) = &self.places[place].life else { continue };
            process::send(&life.child, libc::SIGCONT);
            if life.plan.step.is_some() || life.termed || self.places[place].extra.is_some() {
                self.kill(place, "kill -9 at a random moment", to);
            }
        }
        self.calm = true;
        self.places.retain(|place| place.extra.is_none());
        self.places.iter_mut().for_each(|place| place.due = Instant::now());
    }

    /// SIGTERM to all, which is obeyed with exit code 0.
    pub fn stop(&mut self, to: &mut Examination) {
        for place in &mut self.places {
            let Some(life) = &mut place.life else { continue };
            process::send(&life.child, libc::SIGTERM);
            life.termed = true;
        }
        for place in 0..self.places.len() {
            let Some(life) = &mut self.places[place].life else { continue };
            if process::wait(&mut life.child, STOPS_WITHIN).expect("it is our child") {
                self.bury(place, to);
            } else {
                to.find("stop", format!("replica {place} still runs {STOPS_WITHIN:?} after SIGTERM"));
                self.kill(place, "kill -9 after SIGTERM", to);
            }
        }
    }

    pub fn account(&self, tally: &mut Tally, memory_limit: u64, to: &mut Examination) {
        tally.fact("deaths by SIGKILL", self.deaths);
        for (step, count) in &self.hits {
            tally.fact(format!("step {step}"), *count);
        }
        for (what, count) in &self.counts {
            tally.fact(format!("replica: {what}"), *count);
        }
        tally.most("memory of a replica, MiB", self.peak);
        tally.fact("CPU seconds of replicas", cpu_of_children());
        if self.peak > memory_limit {
            to.find("I7", format!("a replica had {} MiB at once, more than {memory_limit}", self.peak));
        }
        if out_of_memory() != self.out_of_memory {
            to.find(
                "harness",
                "the kernel has killed a process for want of memory: deaths at steps may be no such deaths",
            );
        }
        let mut told: BTreeMap<String, u64> = BTreeMap::new();
        for line in self.log_lines() {
            if line.contains("panicked at") {
                to.find("panic", line);
            } else if let Some(message) = warning(&line) {
                *told.entry(message).or_default() += 1;
            }
        }
        told.into_iter().for_each(|(message, count)| tally.fact(format!("log: {message}"), count));
    }

    /// What replicas say that they sent again: partition, from, to.
    pub fn sent_again(&self, to: &mut Examination) -> Vec<(i32, i64, i64)> {
        self.said("sending a stored batch to Kafka again", to, range)
    }

    /// What replicas say that they made of the micro-batches.
    pub fn told(&self, to: &mut Examination) -> Vec<Told> {
        self.said("micro-batch counted", to, |line| {
            let (partition, from, to) = range(line)?;
            let mut outcomes: BTreeMap<String, u64> = serde_json::from_str(line["outcomes"].as_str()?).ok()?;
            let letters = line["dead_letters"].as_u64()?;
            outcomes.extend((letters > 0).then(|| ("dead_letter".to_owned(), letters)));
            Some(Told { partition, from, to, outcomes })
        })
    }

    /// All lines with this text, read.
    fn said<T>(&self, text: &str, to: &mut Examination, read: impl Fn(&serde_json::Value) -> Option<T>) -> Vec<T> {
        let parse = |line: &str| read(&serde_json::from_str(line).ok()?);
        let mut said = Vec::new();
        for line in self.log_lines().filter(|line| line.contains(text)) {
            match parse(&line) {
                Some(read) => said.push(read),
                None => to.find("harness", format!("what does this line of a log say? {line}")),
            }
        }
        said
    }

    fn log_lines(&self) -> impl Iterator<Item = String> + use<> {
        let files: Vec<PathBuf> = (0..=self.options.replicas).map(|number| self.log(number)).collect();
        let lines = files.into_iter().filter_map(|file| File::open(file).ok()).flat_map(|file| {
            let mut lines = BufReader::new(file).split(b'\n');
            std::iter::from_fn(move || lines.next()?.ok())
        });
        lines.map(|line| String::from_utf8_lossy(&line).into_owned())
    }

    fn log(&self, number: usize) -> PathBuf {
        self.logs.join(format!("replica-{number}.log"))
    }

    /// Takes note of a life that has ended by itself.
    fn bury(&mut self, place: usize, to: &mut Examination) {
        let Some(life) = &mut self.places[place].life else { return };
        let Some(status) = life.child.try_wait().expect("it is our child") else { return };
        let step = life.plan.step.as_ref().map(|(step, _)| *step);
        let death = Death::of(status, step, life.killed, life.termed);
        self.places[place].last = None;
        match death {
            Death::Step(step) => {
                *self.hits.entry(step).or_default() += 1;
                self.deaths += 1;
                self.places[place].last = Some(step);
            }
            Death::Killed(how) => {
                *self.counts.entry(how).or_default() += 1;
                self.deaths += 1;
            }
            Death::Drained => *self.counts.entry("SIGTERM, drained").or_default() += 1,
            Death::Termed => *self.counts.entry("SIGTERM, during the start").or_default() += 1,
            Death::Strange => self.strange(place, status, to),
        }
        self.end(place);
    }

    fn strange(&self, place: usize, status: ExitStatus, to: &mut Examination) {
        let log = tail(&self.log(self.places[place].number), 12);
        to.find("halt", format!("replica {place} ended by itself, {status}; its log ends with:\n{log}"));
    }

    fn end(&mut self, place: usize) {
        let place = &mut self.places[place];
        if let Some(life) = place.life.take() {
            place.due = Instant::now() + life.plan.away;
        }
    }

    /// SIGKILL, unless it has ended before: then by what it ended by itself.
    fn kill(&mut self, place: usize, how: &'static str, to: &mut Examination) {
        if let Some(life) = &mut self.places[place].life
            && life.child.try_wait().expect("it is our child").is_none()
        {
            life.killed = Some(how);
            life.child.kill().and_then(|()| life.child.wait()).expect("it is our child");
        }
        self.bury(place, to);
    }

    /// Does what the plan says for now.
    fn carry_out(&mut self, place: usize, to: &mut Examination) {
        let calm = self.calm;
        let extra_ends = self.places[place].extra.is_some_and(|until| Instant::now() >= until);
        let log = self.log(self.places[place].number);
        let Some(life) = &mut self.places[place].life else { return };
        if calm {
            return;
        }
        if life.assigned.is_none() && says(&log, life.log_from, "partitions assigned") {
            life.assigned = Some(Instant::now());
            *self.counts.entry("started, and came to an assignment").or_default() += 1;
            *self.counts.entry("milliseconds to it, added up").or_default() += life.began.elapsed().as_millis() as u64;
        }
        let since = if life.plan.once_assigned { life.assigned } else { Some(life.began) };
        let age = since.map_or(Duration::ZERO, |since| since.elapsed());
        if let Some((at, long)) = life.plan.freeze {
            match life.frozen {
                None if age >= at => {
                    process::send(&life.child, libc::SIGSTOP);
                    life.frozen = Some(Instant::now());
                }
                Some(since) if since.elapsed() >= long && !life.thawed => {
                    process::send(&life.child, libc::SIGCONT);
                    life.thawed = true;
                    let beyond = since.elapsed() > SESSION;
                    let how = if beyond { "SIGSTOP beyond the session timeout" } else { "SIGSTOP for a moment" };
                    *self.counts.entry(how).or_default() += 1;
                }
                _ => {}
            }
        }
        if !life.termed && (extra_ends || life.plan.term_at.is_some_and(|at| age >= at)) {
            process::send(&life.child, libc::SIGTERM);
            life.termed = true;
        }
        if age >= life.plan.kill_at || life.began.elapsed() >= LONGEST {
            let armed = life.plan.step.is_some();
            let gone = !life.plan.away.is_zero();
            self.kill(
                place,
                match (armed, gone) {
                    (true, _) => "kill -9, its step not reached in time",
                    (_, true) => "kill -9, away beyond the session timeout",
                    (_, false) => "kill -9 at a random moment",
                },
                to,
            );
        }
    }

    fn bear(&mut self, place: usize) {
        let Place { number, ref life, due, last, extra } = self.places[place];
        if life.is_some() || Instant::now() < due || extra.is_some_and(|until| Instant::now() >= until) {
            return;
        }
        let Options { per_step, dynamic, life, .. } = *self.options;
        let mut plan = draw(&mut self.random, &self.hits, last, per_step, dynamic, life);
        if self.calm {
            plan = Plan { step: None, dynamic: false, away: Duration::ZERO, ..plan };
        }
        // What no part waits for can send none again.
        let needs_a_part = plan.step.as_ref().is_some_and(|(step, _)| step.starts_with("S15"));
        if needs_a_part && self.seen.unconfirmed() == 0 {
            *self.counts.entry("armed at S15 with nothing stored").or_default() += 1;
        }
        if plan.step.as_ref().is_some_and(|(step, _)| *step == "S17") {
            self.seen.want_quiet(number);
        }
        let log_from = std::fs::metadata(self.log(number)).map_or(0, |log| log.len());
        let child = self.spawn(number, &plan);
        *self.counts.entry(if plan.dynamic { "started without instance name" } else { "started" }).or_default() += 1;
        self.places[place].life = Some(Life {
            child,
            plan,
            began: Instant::now(),
            log_from,
            assigned: None,
            frozen: None,
            thawed: false,
            termed: false,
            killed: None,
        });
    }

    fn spawn(&self, number: usize, plan: &Plan) -> Child {
        let log =
            || OpenOptions::new().create(true).append(true).open(self.log(number)).expect("the directory is ours");
        let mut command = Command::new(env!("CARGO_BIN_EXE_dinnerbell"));
        command.current_dir(&self.stack.directory).arg("run").arg("--config").arg(self.stack.config());
        if !plan.dynamic {
            command.env("DINNERBELL_TEST_INSTANCE", format!("replica-{number}"));
        }
        command.env("RUST_LOG", LOGS);
        if number == 0 {
            command.env("DINNERBELL_TEST_KAFKA", self.network.kafka.address());
            command.env("DINNERBELL_TEST_POSTGRES", self.network.postgres.url(&self.stack.url));
        }
        if let Some((_, points)) = &plan.step {
            command.env("FAILPOINTS", points);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log());
        process::spawn(command, libc::SIGKILL).expect("the binary starts")
    }
}

impl Drop for Slots<'_> {
    fn drop(&mut self) {
        for life in self.places.iter_mut().filter_map(|place| place.life.as_mut()) {
            let _ = life.child.kill().and_then(|()| life.child.wait());
        }
    }
}

/// The partition and the offsets that a line of the log is about.
fn range(line: &serde_json::Value) -> Option<(i32, i64, i64)> {
    let (_, partition) = line["place"].as_str()?.strip_suffix(']')?.rsplit_once('[')?;
    Some((partition.parse().ok()?, line["from"].as_i64()?, line["to"].as_i64()?))
}

/// What a line of the log warns of, as far as it is the same from time to time.
fn warning(line: &str) -> Option<String> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let level = line["level"].as_str().filter(|level| ["WARN", "ERROR"].contains(level))?;
    let kept: String =
        line["message"].as_str()?.chars().filter(|c| !c.is_ascii_digit() && *c != '|').take(90).collect();
    Some(format!("{level} {kept}"))
}

/// Whether the file holds this text from there on.
fn says(file: &Path, from: u64, text: &str) -> bool {
    let Ok(mut file) = File::open(file) else { return false };
    let mut log = Vec::new();
    let read = file.seek(SeekFrom::Start(from)).and_then(|_| file.read_to_end(&mut log));
    read.is_ok() && String::from_utf8_lossy(&log).contains(text)
}

/// How many processes the kernel has ever killed for want of memory; `None` where it does not say.
fn out_of_memory() -> Option<u64> {
    let counters = std::fs::read_to_string("/proc/vmstat").ok()?;
    counters.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
}

/// The most memory that the process has had at once, in MiB; `None` when it has just ended.
fn peak(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? / 1024)
}

/// User and system time of all children that have ended; the servers still run.
fn cpu_of_children() -> u64 {
    // SAFETY: a plain system call that fills the zeroed structure.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) as u64
}
