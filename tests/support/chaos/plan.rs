//! What is to become of a replica that is being started: at which step it dies, or when it is killed, stopped or frozen.

use std::collections::BTreeMap;
use std::time::Duration;

/// Every step of the protocol (see `dinnerbell::ledger`), with how many times it is passed over at the most before the
/// death there, and how likely it is to be chosen.
const STEPS: &[Step] = &[
    Step { name: "S0", passes: 5, weight: 1.0 },
    Step { name: "S1", passes: 5, weight: 1.0 },
    Step { name: "S2", passes: 5, weight: 1.0 },
    Step { name: "S3", passes: 5, weight: 1.0 },
    Step { name: "S4", passes: 5, weight: 1.0 },
    Step { name: "S5", passes: 5, weight: 1.0 },
    Step { name: "S6", passes: 5, weight: 1.0 },
    Step { name: "S7", passes: 5, weight: 1.5 },
    Step { name: "S8", passes: 5, weight: 1.5 },
    Step { name: "S9", passes: 5, weight: 1.5 },
    Step { name: "S10", passes: 5, weight: 1.0 },
    Step { name: "S11", passes: 0, weight: 1.0 },
    Step { name: "S12", passes: 0, weight: 1.0 },
    Step { name: "S13", passes: 0, weight: 1.0 },
    Step { name: "S14", passes: 0, weight: 1.0 },
    Step { name: "S15", passes: 0, weight: 1.0 },
    Step { name: "S15.chunk", passes: 1, weight: 1.0 },
    Step { name: "S16", passes: 5, weight: 1.0 },
    Step { name: "S17", passes: 0, weight: 1.5 },
];

struct Step {
    name: &'static str,
    passes: u32,
    weight: f64,
}

/// A death at these leaves a stored part that the next claim has to send again.
const LEAVE_A_PART: [&str; 4] = ["S7", "S9", "S15", "S15.chunk"];
const NEED_A_PART: [&str; 2] = ["S15", "S15.chunk"];

/// An armed replica that has not come to its step by then is killed where it is.
const ARMED_FOR: Duration = Duration::from_secs(10);

/// Longer than the session timeout: the group gives the partitions to others.
const BEYOND_THE_SESSION: std::ops::Range<f64> = 11.0..14.0;

/// The plan for one life. Times count from the start, or from the moment at which the partitions are assigned.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Armed to die there, and what goes into FAILPOINTS.
    pub step: Option<(&'static str, String)>,
    pub term_at: Option<Duration>,
    /// SIGSTOP, and how long until SIGCONT.
    pub freeze: Option<(Duration, Duration)>,
    /// SIGKILL, if it still lives.
    pub kill_at: Duration,
    /// How long the place stays empty afterwards.
    pub away: Duration,
    /// Without `[job] instance`.
    pub dynamic: bool,
    /// What the times count from.
    pub once_assigned: bool,
}

/// Draws the plan of the next life. `hits` says how often each step was hit, `last` where the last life ended, `wanted`
/// how often each step has to be hit, `life` how many times as often steps are passed over.
pub fn draw(
    random: &mut fastrand::Rng,
    hits: &BTreeMap<&'static str, u64>,
    last: Option<&str>,
    wanted: u64,
    dynamic: f64,
    life: u32,
) -> Plan {
    let mut plan = Plan {
        step: None,
        term_at: None,
        freeze: None,
        kill_at: seconds(random, 0.2..5.0),
        away: Duration::ZERO,
        dynamic: random.f64() < dynamic,
        once_assigned: true,
    };
    match random.f64() {
        share if share < 0.72 => arm(&mut plan, random, hits, last, wanted, life),
        // At a random moment of its life, the start and the claim included.
        share if share < 0.87 => plan.once_assigned = random.bool(),
        share if share < 0.91 => {
            plan.term_at = Some(seconds(random, 0.5..4.0));
            plan.kill_at = ARMED_FOR * 2;
        }
        share if share < 0.96 => {
            let (at, long) = (seconds(random, 0.5..3.0), seconds(random, 0.1..3.0));
            plan.freeze = Some((at, long));
            plan.kill_at = at + long + seconds(random, 0.0..3.0);
        }
        share if share < 0.98 => {
            let (at, long) = (seconds(random, 1.0..3.0), seconds(random, BEYOND_THE_SESSION));
            plan.freeze = Some((at, long));
            plan.kill_at = at + long + seconds(random, 1.0..4.0);
        }
        _ => plan.away = seconds(random, BEYOND_THE_SESSION),
    }
    plan
}

fn arm(
    plan: &mut Plan,
    random: &mut fastrand::Rng,
    hits: &BTreeMap<&'static str, u64>,
    last: Option<&str>,
    wanted: u64,
    life: u32,
) {
    let leaves_a_part = last.is_some_and(|last| LEAVE_A_PART.contains(&last));
    let weight = |step: &Step| {
        let there = hits.get(step.name).copied().unwrap_or_default();
        let needs = NEED_A_PART.contains(&step.name);
        let leaves = LEAVE_A_PART.contains(&step.name) && !needs;
        // What is far from its number comes first; what is only reached from a part left behind, right after one.
        let missing = wanted.saturating_sub(there) as f64;
        let parts_missing = NEED_A_PART.iter().any(|name| hits.get(name).copied().unwrap_or_default() < wanted);
        match (needs, leaves_a_part) {
            (true, false) => 0.0,
            (true, true) => 12.0 * (step.weight + missing),
            _ if leaves && parts_missing => step.weight + missing.max(wanted as f64 * 0.3),
            _ => step.weight + missing,
        }
    };
    let all: f64 = STEPS.iter().map(weight).sum();
    let mut at = random.f64() * all;
    let chosen = STEPS.iter().find(|step| {
        at -= weight(step);
        at < 0.0
    });
    let step = chosen.unwrap_or(&STEPS[0]);
    let passes = random.u32(0..=step.passes * life);
    plan.step = Some((step.name, format!("{}={passes}*off->return", step.name)));
    plan.kill_at = ARMED_FOR;
    // The release is what passes these steps for sure.
    plan.term_at = match step.name {
        "S11" | "S12" => Some(seconds(random, 1.0..4.0)),
        // Its place is the flush of every 5 s, while its partitions are quiet; failing that, the one of the release.
        "S17" => Some(seconds(random, 2.0..9.0)),
        _ => None,
    };
}

fn seconds(random: &mut fastrand::Rng, range: std::ops::Range<f64>) -> Duration {
    Duration::from_secs_f64(range.start + random.f64() * (range.end - range.start))
}

/// All steps, none hit yet.
pub fn no_hits() -> BTreeMap<&'static str, u64> {
    STEPS.iter().map(|step| (step.name, 0)).collect()
}
