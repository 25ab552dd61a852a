//! One message: a single strict pass of serde_json over its bytes, driven by the schema, straight into the columns.
//!
//! Strict means: one object and nothing behind it, every key once, every declared field of the declared type. Fields
//! that are not declared are checked for being JSON (the grammar of RFC 8259, all of it UTF-8) and skipped; keys inside
//! them are not compared.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt;

use arrow::buffer::Buffer;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::columns::{ColumnBuilder, Strings};
use super::plain::{Patience, Scanner};
use super::schema::{Column, Kind};
use super::value::Value;
use super::words::{self, Problem};

/// Levels of nesting that a message may have, its own object included.
pub const MAX_DEPTH: usize = 128;

/// The rows of one batch in the making. `'m` is the life of the messages' bytes.
pub struct Rows<'m> {
    columns: &'m [Column],
    by_name: &'m HashMap<String, usize>,
    builders: Vec<ColumnBuilder>,
    strings: Strings,
    len: usize,
    unknown: UnknownKeys<'m>,
    /// What came after each column the last time, the first of all at the end.
    followers: Vec<Follower<'m>>,
    patience: Patience,
}

/// The field that came after another one: producers write fields in one order, and always with the same white space.
#[derive(Clone, Copy)]
struct Follower<'m> {
    column: usize,
    /// All that stood between the two values, where plain reading went past it: this column's key is in it.
    lead: Option<&'m [u8]>,
}

impl<'m> Rows<'m> {
    /// `arena` holds all messages, `capacity` is how many they are.
    pub fn new(columns: &'m [Column], by_name: &'m HashMap<String, usize>, arena: &Buffer, capacity: usize) -> Self {
        let builders = columns.iter().map(|column| ColumnBuilder::new(column, capacity)).collect();
        let strings = Strings::new(arena.clone());
        let follower = |column| Follower { column, lead: None };
        let followers = (1..=columns.len()).chain([0]).map(follower).collect();
        Self {
            columns,
            by_name,
            builders,
            strings,
            len: 0,
            unknown: UnknownKeys::default(),
            followers,
            patience: Patience::default(),
        }
    }

    /// Appends the message as a row, or says why it is not one and leaves everything as it was.
    pub fn append(&mut self, message: &'m [u8]) -> Result<(), Problem> {
        if self.patience.is_due() {
            let plain = self.append_plain(message);
            self.patience.learn(plain.is_some());
            if plain.is_some() {
                return Ok(());
            }
        }
        self.append_strictly(message)
    }

    /// Appends the message if it is a plain one: never another row than [`Rows::append_strictly`] would.
    pub fn append_plain(&mut self, message: &'m [u8]) -> Option<()> {
        let text = simdutf8::basic::from_utf8(message).ok()?;
        self.whole(|rows| rows.read_plain(text).ok_or(())).ok()
    }

    /// Appends what the strict pass takes, and has the words for what it does not.
    pub fn append_strictly(&mut self, message: &'m [u8]) -> Result<(), Problem> {
        // Checked once and as a whole, so that skipped fields are UTF-8 as well.
        let text = std::str::from_utf8(message).map_err(|error| words::invalid_utf8(message, error))?;
        self.whole(|rows| rows.read_strictly(text))
    }

    /// Makes a row of what `read` appends to the columns, or forgets it if `read` fails.
    fn whole<E>(&mut self, read: impl FnOnce(&mut Self) -> Result<(), E>) -> Result<(), E> {
        let mark = self.strings.mark();
        let outcome = read(self);
        if outcome.is_ok() {
            self.len += 1;
        } else {
            self.builders.iter_mut().for_each(|builder| builder.truncate(self.len));
            self.strings.truncate(mark);
        }
        outcome
    }

    pub fn finish(self) -> (Vec<ColumnBuilder>, Strings) {
        (self.builders, self.strings)
    }

    /// Reads a message of declared fields only, each of them once, or gives up.
    fn read_plain(&mut self, text: &'m str) -> Option<()> {
        let mut scanner = Scanner::new(text);
        let mut last = self.columns.len();
        for _ in self.columns {
            let Some(column) = self.next_plain_key(&mut scanner, last)? else {
                return scanner.ends().then(|| self.complete().ok())?;
            };
            self.plain_value(&mut scanner, column)?;
            last = column;
        }
        // Each of them was there once, so there is nothing to look for.
        (scanner.next()? == b'}' && scanner.ends()).then_some(())
    }

    /// Goes to the value of the field that comes after column `last`, and says which column it is; to the message's end
    /// if there is none.
    #[inline]
    fn next_plain_key(&mut self, scanner: &mut Scanner<'m>, last: usize) -> Option<Option<usize>> {
        let follower = self.followers[last];
        match follower.lead {
            Some(lead) if scanner.eat(lead) => {
                // There may be more white space than the last time.
                scanner.space();
                Some(Some(follower.column))
            }
            _ => apart(scanner, |scanner| self.learn_plain_key(scanner, last)),
        }
    }

    /// Reads the value of `column`. Texts and integers of 64 bits, which most columns are, fit as they stand ([`Value`] would
    /// take them likewise), and cost neither a visitor nor a call.
    #[inline]
    fn plain_value(&mut self, scanner: &mut Scanner<'m>, column: usize) -> Option<()> {
        let builder = &mut self.builders[column];
        if builder.len() > self.len {
            return None;
        }
        let taken = match builder.kind() {
            Kind::Text => scanner.string().map(|text| builder.push_view(self.strings.borrowed(text))),
            Kind::Int64 => scanner.integer().map(|number| builder.push_integer(number)),
            _ => None,
        };
        taken.or_else(|| apart(scanner, |scanner| self.visited_value(scanner, column)))
    }

    /// As [`Rows::plain_value`], of any column.
    #[inline(never)]
    fn visited_value(&mut self, scanner: &mut Scanner<'m>, column: usize) -> Option<()> {
        let builder = &mut self.builders[column];
        scanner.value(Value { column: &self.columns[column], builder, strings: &mut self.strings, found: &mut None })
    }

    /// As [`Rows::next_plain_key`], where the message differs from the ones before.
    #[inline(never)]
    fn learn_plain_key(&mut self, scanner: &mut Scanner<'m>, last: usize) -> Option<Option<usize>> {
        let before = scanner.rest();
        let is_first = last == self.columns.len();
        match scanner.next()? {
            b'{' if is_first => {}
            b',' if !is_first => {}
            b'}' if !is_first => return Some(None),
            _ => return None,
        }
        scanner.space();
        let guess = self.followers[last].column;
        let column = match self.columns.get(guess) {
            Some(column) if scanner.eat(column.key.as_bytes()) => guess,
            _ => self.column_of(scanner.string()?, last)?,
        };
        if scanner.next()? != b':' {
            return None;
        }
        scanner.space();
        let lead = before.get(..before.len() - scanner.rest().len());
        self.followers[last] = Follower { column, lead };
        Some(Some(column))
    }

    fn read_strictly(&mut self, text: &'m str) -> Result<(), Problem> {
        self.unknown.clear();
        let mut progress = Progress::default();
        let mut json = serde_json::Deserializer::from_str(text);
        json.deserialize_map(Object { rows: self, progress: &mut progress })
            .and_then(|()| json.end())
            .map_err(|error| self.explain(text, &error, progress))?;
        // serde_json skips unknown values without recursion: until here their depth was no danger.
        if !self.unknown.is_empty() && is_deeper_than(MAX_DEPTH, text.as_bytes()) {
            return Err(words::too_deep(MAX_DEPTH));
        }
        self.complete()
    }

    /// Fills the fields that the message left out with null, where they may be.
    fn complete(&mut self) -> Result<(), Problem> {
        for (column, builder) in self.columns.iter().zip(&mut self.builders) {
            if builder.len() > self.len {
                continue;
            }
            if !column.nullable {
                return Err(words::missing(column));
            }
            builder.push_null();
        }
        Ok(())
    }

    /// The column of `key`, which comes after column `last`.
    fn column_of(&mut self, key: &str, last: usize) -> Option<usize> {
        let guess = self.followers[last].column;
        match self.columns.get(guess) {
            Some(column) if column.name == key => Some(guess),
            _ => {
                let column = *self.by_name.get(key)?;
                self.followers[last] = Follower { column, lead: None };
                Some(column)
            }
        }
    }

    /// The parser's error and what the visitors know, in words.
    fn explain(&self, text: &str, error: &serde_json::Error, progress: Progress) -> Problem {
        if let Some(key) = progress.twice {
            return words::twice(&key);
        }
        let column = progress.column.and_then(|column| self.columns.get(column));
        match (column, error.is_data()) {
            (Some(column), true) => {
                let found = progress.found.unwrap_or_else(|| words::number_at(text, error));
                words::wrong(column, &found)
            }
            // The parser's name for what is a number, but greater than any float.
            (Some(column), false) if error.to_string().starts_with("number out of range") => {
                words::wrong(column, &words::number_at(text, error))
            }
            (None, true) => words::not_an_object(text),
            (_, false) => words::not_json(text, error),
        }
    }
}

/// Calls `read` with a copy of the scanner, so that the scanner itself has no address and stays in registers.
#[inline]
fn apart<'m, R>(scanner: &mut Scanner<'m>, read: impl FnOnce(&mut Scanner<'m>) -> R) -> R {
    let mut copy = *scanner;
    let outcome = read(&mut copy);
    *scanner = copy;
    outcome
}

/// What the visitors know when the pass stops.
#[derive(Default)]
struct Progress {
    /// The column whose value is being read.
    column: Option<usize>,
    /// What was found as its value, if it does not fit; a number is looked up in the text.
    found: Option<String>,
    /// The key that came a second time.
    twice: Option<String>,
}

/// The message's object.
struct Object<'r, 'm> {
    rows: &'r mut Rows<'m>,
    progress: &'r mut Progress,
}

impl<'m> Visitor<'m> for Object<'_, 'm> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'m>>(self, mut fields: A) -> Result<(), A::Error> {
        let Object { rows, progress } = self;
        let mut last = rows.columns.len();
        while let Some(key) = fields.next_key_seed(Key)? {
            let Some(column) = rows.column_of(&key, last) else {
                if let Some(key) = rows.unknown.insert(key) {
                    progress.twice = Some(key.into_owned());
                    return Err(A::Error::custom(""));
                }
                fields.next_value::<IgnoredAny>()?;
                continue;
            };
            let builder = &mut rows.builders[column];
            if builder.len() > rows.len {
                progress.twice = Some(key.into_owned());
                return Err(A::Error::custom(""));
            }
            progress.column = Some(column);
            fields.next_value_seed(Value {
                column: &rows.columns[column],
                builder,
                strings: &mut rows.strings,
                found: &mut progress.found,
            })?;
            progress.column = None;
            last = column;
        }
        Ok(())
    }
}

/// A key: borrowed unless it has escapes.
struct Key;

impl<'m> DeserializeSeed<'m> for Key {
    type Value = Cow<'m, str>;

    fn deserialize<D: Deserializer<'m>>(self, key: D) -> Result<Self::Value, D::Error> {
        key.deserialize_str(self)
    }
}

impl<'m> Visitor<'m> for Key {
    type Value = Cow<'m, str>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, key: &'m str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(key))
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(key.to_owned()))
    }
}

/// The undeclared keys of one message. A few are compared one by one, many are hashed (with a random seed), so that
/// no message makes this expensive.
#[derive(Default)]
struct UnknownKeys<'m> {
    few: Vec<Cow<'m, str>>,
    many: HashSet<Cow<'m, str>>,
}

impl<'m> UnknownKeys<'m> {
    /// As many comparisons cost about one hash.
    const FEW: usize = 16;
    /// Emptying a set costs its capacity: one huge message must not burden all that follow.
    const KEPT_CAPACITY: usize = 1024;

    /// Gives the key back if it is there already.
    fn insert(&mut self, key: Cow<'m, str>) -> Option<Cow<'m, str>> {
        if self.few.len() < Self::FEW {
            if self.few.contains(&key) {
                return Some(key);
            }
            self.few.push(key);
            return None;
        }
        if self.many.is_empty() {
            self.many.extend(self.few.iter().cloned());
        }
        if self.many.contains(&key) {
            return Some(key);
        }
        self.many.insert(key);
        None
    }

    fn is_empty(&self) -> bool {
        self.few.is_empty()
    }

    fn clear(&mut self) {
        self.few.clear();
        if self.many.capacity() > Self::KEPT_CAPACITY {
            self.many = HashSet::new();
        } else {
            self.many.clear();
        }
    }
}

/// Whether brackets nest deeper than `limit` in what is known to be JSON.
fn is_deeper_than(limit: usize, json: &[u8]) -> bool {
    // '[' and '{' differ by 0x20; nearly every message ends here.
    if json.iter().filter(|byte| **byte | 0x20 == b'{').count() <= limit {
        return false;
    }
    let mut depth = 0_usize;
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => skip_string(&mut bytes),
            _ => {}
        }
        if depth > limit {
            return true;
        }
    }
    false
}

fn skip_string(bytes: &mut std::slice::Iter<u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            b'\\' => _ = bytes.next(),
            _ => {}
        }
    }
}
