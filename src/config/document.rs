//! The settings file as text: sections whose keys are taken one by one, each with its dotted key and its line, so that
//! every later complaint can say where it stands. What nobody took is an unknown setting.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::substitute::{Substituted, Variables, substitute};
use crate::{Error, Result};

/// A settings file before it is understood.
#[derive(Clone, Copy)]
pub struct Document<'a> {
    pub text: &'a str,
    /// Named in errors.
    pub file: &'a Path,
    pub variable: Variables<'a>,
}

/// A value, and where it came from.
#[derive(Debug, Clone)]
pub struct Setting<T> {
    /// Dotted, such as `batch.max_bytes`.
    pub key: String,
    /// `file, line N`, or `the default`.
    pub place: String,
    pub value: T,
}

impl<T> Setting<T> {
    pub fn refuse(&self, problem: impl std::fmt::Display, remedy: impl Into<String>) -> Error {
        Error::Setting { key: self.key.clone(), problem: format!("{problem} ({})", self.place), remedy: remedy.into() }
    }

    pub fn with<U>(&self, value: U) -> Setting<U> {
        Setting { key: self.key.clone(), place: self.place.clone(), value }
    }
}

/// One `[section]`, or the whole file.
pub struct Section<'a> {
    document: Document<'a>,
    /// Dotted; empty for the whole file.
    name: String,
    entries: BTreeMap<String, Entry<'a>>,
    known: Vec<&'static str>,
}

struct Entry<'a> {
    line: usize,
    value: DeValue<'a>,
}

impl<'a> Document<'a> {
    pub fn root(self) -> Result<Section<'a>> {
        // Only the message: the error's own `Display` quotes the line, which may hold a password.
        let table = DeTable::parse(self.text).map_err(|error| Error::Setting {
            key: match error.span() {
                Some(span) => self.place(self.line(span.start)),
                None => self.file.display().to_string(),
            },
            problem: error.message().to_string(),
            remedy: "correct the TOML; strings need quotes, and so do keys with characters beyond A-Za-z0-9_-".into(),
        })?;
        Ok(Section::new(self, String::new(), table.into_inner()))
    }

    fn line(&self, at: usize) -> usize {
        1 + self.text.as_bytes()[..at.min(self.text.len())].iter().filter(|byte| **byte == b'\n').count()
    }

    fn place(&self, line: usize) -> String {
        format!("{}, line {line}", self.file.display())
    }
}

impl<'a> Section<'a> {
    fn new(document: Document<'a>, name: String, table: DeTable<'a>) -> Self {
        let entries = table
            .into_iter()
            .map(|(key, value)| {
                let line = document.line(key.span().start);
                (key.into_inner().into_owned(), Entry { line, value: value.into_inner() })
            })
            .collect();
        Section { document, name, entries, known: Vec::new() }
    }

    /// The table `key`; an empty one where there is none.
    pub fn section(&mut self, key: &'static str) -> Result<Section<'a>> {
        let (setting, value) = self.take(key);
        match value {
            None => Ok(Section::new(self.document, setting.key, DeTable::new())),
            Some(DeValue::Table(table)) => Ok(Section::new(self.document, setting.key, table)),
            Some(other) => Err(wrong_type(&setting, "a table", &other)),
        }
    }

    /// The string `key`, or `default`, in both of them `${...}` filled in.
    pub fn text(&mut self, key: &'static str, default: &str) -> Result<Setting<String>> {
        let (setting, value) = self.take(key);
        let found = match value {
            None => self.fill(&setting, default)?,
            Some(DeValue::String(text)) => self.fill(&setting, &text)?,
            Some(other) => return Err(wrong_type(&setting, "a string", &other)),
        };
        Ok(setting.with(found.text))
    }

    /// The integer `key` within `range`, or `default`. A string will do if `${...}` made it: variables are strings.
    pub fn integer(
        &mut self,
        key: &'static str,
        default: usize,
        range: RangeInclusive<usize>,
    ) -> Result<Setting<usize>> {
        let (setting, value) = self.take(key);
        let number = match value {
            None => return Ok(setting.with(default)),
            Some(DeValue::Integer(integer)) => i128::from_str_radix(integer.as_str(), integer.radix()).ok(),
            Some(DeValue::String(text)) => {
                let filled = self.fill(&setting, &text)?;
                if !filled.changed {
                    return Err(wrong_type(&setting, "an integer", &DeValue::String(text)));
                }
                let number = filled.text.trim().replace('_', "").parse().ok();
                if number.is_none() {
                    return Err(setting.refuse("expected an integer, and the variable holds something else", ""));
                }
                number
            }
            Some(other) => return Err(wrong_type(&setting, "an integer", &other)),
        };
        match number.and_then(|number| usize::try_from(number).ok()).filter(|number| range.contains(number)) {
            Some(number) => Ok(setting.with(number)),
            None => {
                let (from, to) = (range.start(), range.end());
                let found = number.map_or("a number beyond all bounds".to_string(), |number| number.to_string());
                Err(setting.refuse(
                    format!("must be from {from} to {to}, and is {found}"),
                    format!("choose a value from {from} to {to}; the default is {default}"),
                ))
            }
        }
    }

    /// Everything left, flattened: `a.b = 1` and `"a.b" = 1` are the same property `a.b`. Values as librdkafka reads
    /// them: a list becomes its items with commas between.
    pub fn properties(mut self) -> Result<BTreeMap<String, Setting<String>>> {
        let mut found = BTreeMap::new();
        for (key, entry) in std::mem::take(&mut self.entries) {
            self.flatten(key, entry.line, entry.value, &mut found)?;
        }
        Ok(found)
    }

    fn flatten(
        &self,
        property: String,
        line: usize,
        value: DeValue<'a>,
        found: &mut BTreeMap<String, Setting<String>>,
    ) -> Result<()> {
        let setting = Setting { key: self.dotted(&property), place: self.document.place(line), value: () };
        if let DeValue::Table(table) = value {
            for (key, value) in table {
                let line = self.document.line(key.span().start);
                self.flatten(format!("{property}.{}", key.get_ref()), line, value.into_inner(), found)?;
            }
            return Ok(());
        }
        let text = self.property(&setting, value)?;
        match found.insert(property, setting.with(text)) {
            None => Ok(()),
            Some(earlier) => {
                Err(setting.refuse(format!("is set twice, first at {}", earlier.place), "remove one of them"))
            }
        }
    }

    fn property(&self, setting: &Setting<()>, value: DeValue<'a>) -> Result<String> {
        Ok(match value {
            DeValue::String(text) => self.fill(setting, &text)?.text,
            DeValue::Integer(integer) => integer.to_string(),
            DeValue::Float(float) => float.to_string(),
            DeValue::Boolean(truth) => truth.to_string(),
            DeValue::Array(items) => {
                let items: Result<Vec<_>> =
                    items.into_iter().map(|item| self.property(setting, item.into_inner())).collect();
                items?.join(",")
            }
            other => return Err(wrong_type(setting, "a string, a number or a boolean", &other)),
        })
    }

    /// Whether `key` is there as something other than a table.
    pub fn has_value(&self, key: &str) -> bool {
        self.entries.get(key).is_some_and(|entry| !entry.value.is_table())
    }

    /// Refuses what nobody took.
    pub fn finish(self) -> Result<()> {
        let Some((key, entry)) = self.entries.iter().min_by_key(|(_, entry)| entry.line) else {
            return Ok(());
        };
        let setting = Setting { key: self.dotted(key), place: self.document.place(entry.line), value: () };
        let kind = if entry.value.is_table() { "section" } else { "setting" };
        let remedy = match nearest(key, self.known.iter().copied()) {
            Some(near) => format!("did you mean {}?", self.dotted(near)),
            None => format!("known here: {}", self.known.join(", ")),
        };
        Err(setting.refuse(format!("unknown {kind}"), remedy))
    }

    fn take(&mut self, key: &'static str) -> (Setting<()>, Option<DeValue<'a>>) {
        self.known.push(key);
        let entry = self.entries.remove(key);
        let place = match &entry {
            Some(entry) => self.document.place(entry.line),
            None => "the default".to_string(),
        };
        (Setting { key: self.dotted(key), place, value: () }, entry.map(|entry| entry.value))
    }

    fn fill(&self, setting: &Setting<()>, text: &str) -> Result<Substituted> {
        substitute(text, self.document.variable)
            .map_err(|unresolved| setting.refuse(unresolved.problem, unresolved.remedy))
    }

    fn dotted(&self, key: &str) -> String {
        let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        let key = if key.is_empty() || !key.chars().all(bare) { format!("{key:?}") } else { key.to_string() };
        if self.name.is_empty() { key } else { format!("{}.{key}", self.name) }
    }
}

fn wrong_type<T>(setting: &Setting<T>, expected: &str, found: &DeValue) -> Error {
    let kind = found.type_str();
    let article = if kind.starts_with(['a', 'i']) { "an" } else { "a" };
    let remedy = match (expected, found) {
        ("an integer", DeValue::String(_)) => "write the number without quotes",
        ("a string", _) => "put it in double quotes",
        _ => "",
    };
    setting.refuse(format!("expected {expected}, found {article} {kind}"), remedy)
}

/// The known name that `name` was probably meant to be.
pub fn nearest<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    // Jaro-Winkler 0.8: `topc` for `topic` is 0.94, `broker` for `bootstrap.servers` 0.5.
    const ALIKE: f64 = 0.8;
    let scored = known.into_iter().map(|candidate| (strsim::jaro_winkler(name, candidate), candidate));
    scored.filter(|(score, _)| *score >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, candidate)| candidate)
}
