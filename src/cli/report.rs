//! What `check` and `init` say: one line a fact on standard output, what to do below it where something is wrong, and at
//! the end one error that carries the exit code. Nothing is held back until the end.

use std::fmt::Display;
use std::io::Write;

use crate::{Error, Result};

/// Where the text begins: after the status and the subject.
const INDENT: usize = 22;

/// Facts told so far.
#[derive(Debug)]
pub struct Report {
    command: &'static str,
    failures: usize,
    warnings: usize,
    skipped: usize,
    exit_code: u8,
}

impl Report {
    /// `command` is named in the last error.
    pub fn new(command: &'static str) -> Report {
        Report { command, failures: 0, warnings: 0, skipped: 0, exit_code: 0 }
    }

    /// A line with a status of its own, at most five letters long.
    pub fn line(&self, status: &str, subject: &str, text: impl Display) {
        put(&format!("{status:<5} {subject:<15} {}", indented(&text.to_string())));
    }

    pub fn ok(&self, subject: &str, text: impl Display) {
        self.line("ok", subject, text);
    }

    /// Nothing that stops the job, but somebody should look at it.
    pub fn warn(&mut self, subject: &str, text: impl Display, remedy: &str) {
        self.warnings += 1;
        self.line("warn", subject, text);
        self.remedy(remedy);
    }

    /// What cannot be looked at because of an earlier failure.
    pub fn skip(&mut self, subject: &str, why: impl Display) {
        self.skipped += 1;
        self.line("skip", subject, why);
    }

    pub fn fail(&mut self, subject: &str, error: &Error) {
        self.failures += 1;
        self.exit_code = self.exit_code.max(error.exit_code());
        self.line("FAIL", subject, error);
        self.remedy(error.remedy().unwrap_or_default());
    }

    /// The value, or a line about the failure.
    pub fn take<T>(&mut self, subject: &str, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.fail(subject, &error)).ok()
    }

    /// The error of a report with failures: 2 if one of them is about settings or SQL, otherwise 1.
    pub fn end(self, success: &str) -> Result<()> {
        let Report { command, failures, warnings, skipped, exit_code } = self;
        let counted = |count: usize, one: &str, more: &str| match count {
            0 => String::new(),
            1 => format!(", 1 {one}"),
            _ => format!(", {count} {more}"),
        };
        let rest = counted(warnings, "warning", "warnings") + &counted(skipped, "skipped", "skipped");
        if failures == 0 {
            put(&format!("\n{success}{rest}"));
            return Ok(());
        }
        let failed = counted(failures, "failure", "failures");
        let text = format!("{}{rest}", &failed[2..]);
        Err(match exit_code {
            2 => Error::Setting { key: command.into(), problem: text, remedy: String::new() },
            _ => Error::Halt { what: format!("{command}: {text}"), remedy: String::new() },
        })
    }

    fn remedy(&self, remedy: &str) {
        if !remedy.is_empty() {
            put(&format!("{:INDENT$}-> {}", "", indented(remedy)));
        }
    }
}

/// Further lines stand below the first.
fn indented(text: &str) -> String {
    text.trim_end().replace('\n', &format!("\n{:INDENT$}", ""))
}

/// A reader that has gone away has read enough: the exit code still tells.
fn put(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 row`, `1,234 rows`.
pub fn plural(count: u64, one: &str) -> String {
    format!("{} {one}{}", grouped(count), if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let texts: Vec<String> = [0, 999, 1_000, 12_345, 1_234_567].map(grouped).into();
        assert_eq!(texts, ["0", "999", "1,000", "12,345", "1,234,567"]);
        assert_eq!(plural(1, "row"), "1 row");
        assert_eq!(plural(2_000, "row"), "2,000 rows");
    }

    #[test]
    fn the_worst_failure_sets_the_exit_code() {
        let sql = || Error::Setting { key: "k".into(), problem: "p".into(), remedy: String::new() };
        let away = || Error::Away { what: "gone".into() };
        let code = |errors: &[Error]| {
            let mut report = Report::new("check");
            errors.iter().for_each(|error| report.fail("x", error));
            report.end("all is well").map_or_else(|error| error.exit_code(), |()| 0)
        };
        assert_eq!(code(&[]), 0);
        assert_eq!(code(&[away()]), 1);
        assert_eq!(code(&[sql(), away()]), 2);
    }
}
