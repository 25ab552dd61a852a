//! What became of the messages so far, as the job's own metrics say it.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::telemetry::metrics;

/// Messages that the job is done with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcomes {
    pub messages: u64,
    /// By the outcome's name; none is 0.
    pub by_name: BTreeMap<String, u64>,
}

impl Outcomes {
    /// The counters as they are now.
    pub fn now() -> Result<Outcomes> {
        Ok(Outcomes::read(&metrics::install()?.render()))
    }

    /// Reads Prometheus's text form.
    fn read(text: &str) -> Outcomes {
        let mut outcomes = Outcomes::default();
        for (series, value) in text.lines().filter_map(|line| line.rsplit_once(' ')) {
            let Ok(value) = value.parse() else { continue };
            let outcome = series.strip_prefix("dinnerbell_messages_total{outcome=\"");
            if series == "dinnerbell_messages_in_total" {
                outcomes.messages = value;
            } else if let Some(name) = outcome.and_then(|rest| rest.strip_suffix("\"}"))
                && value > 0
            {
                outcomes.by_name.insert(name.to_owned(), value);
            }
        }
        outcomes
    }

    /// What was added since `earlier`.
    pub fn since(&self, earlier: &Outcomes) -> Outcomes {
        let added = |(name, count): (&String, &u64)| {
            let count = count - earlier.by_name.get(name).unwrap_or(&0).min(count);
            (count > 0).then(|| (name.clone(), count))
        };
        Outcomes {
            messages: self.messages.saturating_sub(earlier.messages),
            by_name: self.by_name.iter().filter_map(added).collect(),
        }
    }

    /// Messages of all outcomes together; the same as those that came in, or the job has lost count.
    pub fn sum(&self) -> u64 {
        self.by_name.values().sum()
    }

    pub fn dead_letters(&self) -> u64 {
        self.by_name.get("dead_letter").copied().unwrap_or(0)
    }

    /// The names that are neither rows nor letters: why messages went nowhere.
    pub fn filters(&self) -> String {
        let names = self.by_name.keys().filter(|name| !["triggered", "dead_letter"].contains(&name.as_str()));
        names.map(String::as_str).collect::<Vec<_>>().join(" or ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counters_are_read_and_compared() {
        let text = |expired: u64| {
            format!(
                "# HELP dinnerbell_messages_in_total Campaign\ndinnerbell_messages_in_total {}\n\
                 dinnerbell_messages_total{{outcome=\"triggered\"}} 4\n\
                 dinnerbell_messages_total{{outcome=\"no_match:l\"}} 0\n\
                 dinnerbell_messages_total{{outcome=\"expired\"}} {expired}\ndinnerbell_rows_total{{sink=\"kafka\"}} 9\n",
                4 + expired
            )
        };
        let (before, after) = (Outcomes::read(&text(1)), Outcomes::read(&text(3)));
        assert_eq!((after.messages, after.sum(), after.dead_letters()), (7, 7, 0));
        let added = after.since(&before);
        assert_eq!((added.messages, added.sum(), added.filters().as_str()), (2, 2, "expired"));
    }
}
