//! Multisets of rows, each row told by 16 bytes: sorted lists, compared by walking along both.

use std::collections::{BTreeMap, BTreeSet};

use openssl::sha::sha256;

use super::super::model::id_in;

pub type Digest = u128;

/// Rows that can be read again and again.
pub type Rows<'a> = Box<dyn Fn(&mut dyn FnMut(&[u8])) + 'a>;

pub fn digest(text: &[u8]) -> Digest {
    let hash = sha256(text);
    u128::from_be_bytes(hash[..16].try_into().expect("16 of 32 bytes"))
}

/// How many of the differing rows are looked up again to be shown and classified.
const LOOKED_UP: usize = 10_000;

/// What one multiset has that the other has not.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    pub lost: u64,
    /// More often than expected.
    pub doubled: u64,
    /// Not expected at all.
    pub foreign: u64,
    lost_ones: BTreeSet<Digest>,
    doubled_ones: BTreeSet<Digest>,
    foreign_ones: BTreeSet<Digest>,
}

/// Compares two sorted lists.
pub fn difference(expected: &[Digest], found: &[Digest]) -> Difference {
    let mut difference = Difference::default();
    let (mut e, mut f) = (0, 0);
    while e < expected.len() || f < found.len() {
        let next = match (expected.get(e), found.get(f)) {
            (Some(one), Some(other)) => *one.min(other),
            (one, other) => *one.or(other).expect("one of them goes on"),
        };
        let count = |list: &[Digest], from: usize| list[from..].iter().take_while(|digest| **digest == next).count();
        let (wanted, there) = (count(expected, e), count(found, f));
        (e, f) = (e + wanted, f + there);
        difference.add(next, wanted as u64, there as u64);
    }
    difference
}

impl Difference {
    fn add(&mut self, digest: Digest, wanted: u64, there: u64) {
        let ones = if there == wanted {
            return;
        } else if there < wanted {
            self.lost += wanted - there;
            &mut self.lost_ones
        } else if wanted == 0 {
            self.foreign += there;
            &mut self.foreign_ones
        } else {
            self.doubled += there - wanted;
            &mut self.doubled_ones
        };
        if ones.len() < LOOKED_UP {
            ones.insert(digest);
        }
    }

    pub fn is_none(&self) -> bool {
        (self.lost, self.doubled, self.foreign) == (0, 0, 0)
    }

    /// In words, with examples: both streams are read again for those rows alone. A lost and a foreign row of the same campaign
    /// and client are one row that differs.
    pub fn describe(&self, expected: &Rows<'_>, found: &Rows<'_>) -> String {
        let lost = look_up(&self.lost_ones, expected);
        let foreign = look_up(&self.foreign_ones, found);
        let doubled = look_up(&self.doubled_ones, found);
        let keys: BTreeMap<_, _> = lost.iter().map(|row| (key(row), row)).collect();
        let differing: Vec<_> =
            foreign.iter().filter_map(|row| keys.get(&key(row)).map(|wanted| (row, *wanted))).collect();
        let count = differing.len() as u64;
        let mut words = vec![format!(
            "{} rows lost, {} doubled, {count} differing, {} of no message",
            self.lost.saturating_sub(count),
            self.doubled,
            self.foreign.saturating_sub(count)
        )];
        words.extend(differing.first().map(|(row, wanted)| format!("differing: {row} instead of {wanted}")));
        let alone = |rows: &[String], others: &[String]| {
            let others: BTreeSet<_> = others.iter().map(|row| key(row)).collect();
            rows.iter().find(|row| !others.contains(&key(row))).cloned()
        };
        words.extend(alone(&lost, &foreign).map(|row| format!("lost: {row}")));
        words.extend(alone(&foreign, &lost).map(|row| format!("of no message: {row}")));
        words.extend(doubled.first().map(|row| format!("doubled: {row}")));
        words.join("; ")
    }
}

fn look_up(wanted: &BTreeSet<Digest>, rows: &Rows<'_>) -> Vec<String> {
    let mut texts = BTreeMap::new();
    if !wanted.is_empty() {
        rows(&mut |row| {
            let digest = digest(row);
            if wanted.contains(&digest) {
                texts.entry(digest).or_insert_with(|| String::from_utf8_lossy(row).into_owned());
            }
        });
    }
    texts.into_values().collect()
}

/// Campaign and client of a row.
fn key(row: &str) -> (Vec<u8>, Vec<u8>) {
    let id = |column| id_in(row.as_bytes(), column).unwrap_or_default().to_vec();
    (id("adv_campaign_id"), id("client_id"))
}
