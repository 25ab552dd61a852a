//! What the job said of its micro-batches, against the model (I2): the only trace of why a message was filtered where its
//! advance has no part.

use std::collections::BTreeMap;

use super::expected::Expected;
use super::{Examination, Examples};

/// A micro-batch of one partition, as a process counted it before anything of it was durable.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Told {
    pub partition: i32,
    pub from: i64,
    pub to: i64,
    /// Messages by outcome, `dead_letter` among them.
    pub outcomes: BTreeMap<String, u64>,
}

/// Every offset was told of by somebody who came to it, each time with the model's outcomes. Which attempt became durable, the
/// log does not say: [`super::history`] does.
pub fn check(told: &[Told], expected: &Expected, to: &mut Examination) {
    let (mut other, mut silent) = (Examples::default(), Examples::default());
    let mut reached: BTreeMap<i32, i64> = expected.messages.keys().map(|partition| (*partition, 0)).collect();
    let mut told: Vec<&Told> = told.iter().collect();
    told.sort_unstable();
    to.fact("micro-batches that the job told of", told.len() as u64);
    for batch in told {
        let &Told { partition, from, to, ref outcomes } = batch;
        let model = expected.count(expected.range(partition, from, to));
        if *outcomes != model {
            other.add(|| format!("{batch:?}; the model has {model:?}"));
        }
        let reached = reached.entry(partition).or_default();
        if from > *reached {
            silent.add(|| format!("partition {partition}: [{reached}, {from})"));
        }
        *reached = to.max(*reached);
    }
    for (partition, reached) in reached {
        let end = expected.messages.get(&partition).map_or(0, Vec::len) as i64;
        if reached != end {
            silent.add(|| format!("partition {partition}: told of up to {reached}, it ends at {end}"));
        }
    }
    other.report("I2", "micro-batches have other outcomes by the job's own count than by the model's", to);
    silent.report("I2", "ranges of offsets have no outcome by the job's own count", to);
}
