//! Where records stand in a topic.

use std::collections::BTreeMap;

/// A set of (partition, offset): one bit each.
#[derive(Default)]
pub struct Places(BTreeMap<i32, Vec<u64>>);

impl Places {
    pub fn insert(&mut self, partition: i32, offset: i64) {
        let (word, bit) = (offset as usize / 64, offset as usize % 64);
        let words = self.0.entry(partition).or_default();
        if words.len() <= word {
            words.resize(word + 1, 0);
        }
        words[word] |= 1 << bit;
    }

    pub fn contains(&self, partition: i32, offset: i64) -> bool {
        let words = self.0.get(&partition).map_or(&[][..], Vec::as_slice);
        words.get(offset as usize / 64).is_some_and(|word| word & (1 << (offset as usize % 64)) != 0)
    }
}
