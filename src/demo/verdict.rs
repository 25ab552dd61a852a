//! What `demo --once` finds out in the end. Pure: everything was read back before.

use std::collections::BTreeMap;

use serde_json::Value;

use super::generator::{Campaign, Kind};
use super::outcomes::Outcomes;
use super::watch::Record;

/// What was sent, and what was found.
pub struct Evidence<'a> {
    pub campaigns: &'a [Campaign],
    /// The table's rows as JSON objects, without `id`, `feedback` and nulls.
    pub rows: &'a [Value],
    /// The topic's records, without those of campaigns that were refused.
    pub records: &'a [Value],
    pub letters: &'a [Record],
    pub outcomes: &'a Outcomes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub holds: bool,
    pub what: String,
}

/// All checks, those that hold too.
pub fn judge(evidence: &Evidence) -> Vec<Check> {
    vec![accounted(evidence), sinks_agree(evidence), as_expected(evidence), letters_whole(evidence)]
}

fn accounted(Evidence { campaigns, outcomes, .. }: &Evidence) -> Check {
    let sent = campaigns.len() as u64;
    Check {
        holds: outcomes.messages == sent && outcomes.sum() == sent,
        what: format!("{sent} campaigns sent, {} read, {} with an outcome", outcomes.messages, outcomes.sum()),
    }
}

fn sinks_agree(Evidence { rows, records, .. }: &Evidence) -> Check {
    let mut differences: BTreeMap<String, i64> = BTreeMap::new();
    rows.iter().for_each(|row| *differences.entry(canonical(row)).or_default() += 1);
    records.iter().for_each(|record| *differences.entry(canonical(record)).or_default() -= 1);
    let different: u64 = differences.values().map(|count| count.unsigned_abs()).sum();
    let counts = format!("{} rows in Postgres, {} records in Kafka", rows.len(), records.len());
    match different {
        0 => Check { holds: true, what: format!("{counts}: the same ones, compared whole") },
        _ => Check { holds: false, what: format!("{counts}: {different} of them without a twin on the other side") },
    }
}

fn as_expected(Evidence { campaigns, rows, .. }: &Evidence) -> Check {
    let mut found: BTreeMap<&str, usize> = BTreeMap::new();
    for row in *rows {
        *found.entry(row.get("adv_campaign_id").and_then(Value::as_str).unwrap_or_default()).or_default() += 1;
    }
    let expected: BTreeMap<&str, usize> = campaigns
        .iter()
        .filter(|campaign| campaign.triggers > 0)
        .map(|campaign| (campaign.id.as_str(), campaign.triggers))
        .collect();
    let total: usize = expected.values().sum();
    Check {
        holds: found == expected,
        what: format!("{} triggers where the generator counts {total} subscribers, campaign by campaign", rows.len()),
    }
}

fn letters_whole(Evidence { campaigns, letters, .. }: &Evidence) -> Check {
    let broken: Vec<_> = campaigns
        .iter()
        .filter(|campaign| matches!(campaign.kind, Kind::Broken(_)))
        .map(|campaign| (Some(campaign.key.as_bytes()), campaign.json.as_deref()))
        .collect();
    let found: Vec<_> = letters.iter().map(|letter| (letter.key.as_deref(), letter.value.as_deref())).collect();
    let whole = broken.iter().filter(|message| found.contains(message)).count();
    Check {
        holds: whole == broken.len() && found.len() == broken.len(),
        what: format!("{} broken campaigns, {} dead letters, {whole} byte for byte", broken.len(), found.len()),
    }
}

/// Equal for equal rows, whatever the order of their fields.
fn canonical(row: &Value) -> String {
    let fields: BTreeMap<&String, String> =
        row.as_object().into_iter().flatten().map(|(name, value)| (name, value.to_string())).collect();
    format!("{fields:?}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::demo::generator::Flaw;

    fn campaign(kind: Kind, id: &str, triggers: usize) -> Campaign {
        Campaign {
            kind,
            key: format!("key-{id}"),
            restaurant_id: "r".into(),
            id: id.into(),
            json: Some(b"x".to_vec()),
            triggers,
        }
    }

    fn letter(key: &str, value: &[u8]) -> Record {
        Record {
            topic: "t".into(),
            partition: 0,
            offset: 0,
            timestamp: None,
            key: Some(key.into()),
            value: Some(value.into()),
            headers: Vec::new(),
        }
    }

    fn verdict(rows: &[Value], records: &[Value], letters: &[Record], messages: u64) -> Vec<bool> {
        let campaigns = [campaign(Kind::Active, "a", 2), campaign(Kind::Broken(Flaw::NotJson), "b", 0)];
        let by_name = [("triggered".to_owned(), 1), ("dead_letter".to_owned(), 1)].into();
        let outcomes = Outcomes { messages, by_name };
        let evidence = Evidence { campaigns: &campaigns, rows, records, letters, outcomes: &outcomes };
        judge(&evidence).iter().map(|check| check.holds).collect()
    }

    #[test]
    fn each_check_finds_its_own_fault() {
        let row = |client: &str| json!({"adv_campaign_id": "a", "client_id": client});
        let rows = [row("1"), row("2")];
        let turned = [json!({"client_id": "2", "adv_campaign_id": "a"}), row("1")];
        let letters = [letter("key-b", b"x")];
        assert_eq!(verdict(&rows, &turned, &letters, 2), [true; 4]);
        assert_eq!(verdict(&rows, &turned, &letters, 3), [false, true, true, true]);
        let twice = [row("1"), row("1")];
        assert_eq!(verdict(&rows, &twice, &letters, 2), [true, false, true, true]);
        assert_eq!(verdict(&rows[..1], &rows[..1], &letters, 2), [true, true, false, true]);
        assert_eq!(verdict(&rows, &rows, &[letter("key-b", b"y")], 2), [true, true, true, false]);
        assert_eq!(verdict(&rows, &rows, &[letters[0].clone(), letters[0].clone()], 2), [true, true, true, false]);
    }
}
