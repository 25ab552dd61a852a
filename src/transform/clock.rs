//! `now()` and its like, read from a clock that each run sets.
//!
//! DataFusion's own are replaced by the instant of planning, which a plan that is used again would repeat for ever.
//! These stay calls in the plan: the optimizer tries to work them out, gets an error from a clock that is not set, and
//! leaves them be. They are `Stable`, not `Volatile`, so that conditions on them move below joins.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};

const UNSET: i64 = i64::MIN;
const NANOS_PER_DAY: i64 = 86_400_000_000_000;

/// One plan's clock: nanoseconds since the epoch, UTC. Not set while planning.
#[derive(Debug, Clone)]
pub(super) struct Clock(Arc<AtomicI64>);

impl Clock {
    pub(super) fn unset() -> Self {
        Self(Arc::new(AtomicI64::new(UNSET)))
    }

    pub(super) fn set(&self, unix_nanos: i64) {
        self.0.store(unix_nanos, Ordering::Release);
    }

    fn get(&self) -> Option<i64> {
        Some(self.0.load(Ordering::Acquire)).filter(|&nanos| nanos != UNSET)
    }

    /// The functions that read this clock; registered, they take the place of DataFusion's own.
    pub(super) fn functions(&self) -> [ScalarUDF; 3] {
        [
            (Kind::Now, "now", &["current_timestamp"][..]),
            (Kind::Date, "current_date", &["today"][..]),
            (Kind::Time, "current_time", &[][..]),
        ]
        .map(|(kind, name, aliases)| {
            ScalarUDF::from(ClockFunction {
                kind,
                name,
                aliases: aliases.iter().map(ToString::to_string).collect(),
                clock: self.clone(),
                signature: Signature::nullary(Volatility::Stable),
            })
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Now,
    Date,
    Time,
}

#[derive(Debug)]
struct ClockFunction {
    kind: Kind,
    name: &'static str,
    aliases: Vec<String>,
    clock: Clock,
    signature: Signature,
}

impl PartialEq for ClockFunction {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind && Arc::ptr_eq(&self.clock.0, &other.clock.0)
    }
}

impl Eq for ClockFunction {}

impl Hash for ClockFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.kind.hash(state);
        Arc::as_ptr(&self.clock.0).hash(state);
    }
}

impl ScalarUDFImpl for ClockFunction {
    fn name(&self) -> &str {
        self.name
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.kind {
            Kind::Now => DataType::Timestamp(TimeUnit::Nanosecond, None),
            Kind::Date => DataType::Date32,
            Kind::Time => DataType::Time64(TimeUnit::Nanosecond),
        })
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let Some(nanos) = self.clock.get() else { return exec_err!("{}() has no value before a run", self.name) };
        Ok(ColumnarValue::Scalar(match self.kind {
            Kind::Now => ScalarValue::TimestampNanosecond(Some(nanos), None),
            // Nanoseconds in 64 bits span 584 years, so the day fits 32 bits.
            Kind::Date => ScalarValue::Date32(Some(nanos.div_euclid(NANOS_PER_DAY) as i32)),
            Kind::Time => ScalarValue::Time64Nanosecond(Some(nanos.rem_euclid(NANOS_PER_DAY))),
        }))
    }
}
