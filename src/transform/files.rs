//! The user's SQL files, as they lie under `[sql] directory`: read at start, never compiled in.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::lookup::LookupQuery;
use crate::{Error, Result};

/// A file and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlFile {
    pub path: PathBuf,
    pub text: String,
}

/// All SQL that makes up one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlFiles {
    pub campaigns: SqlFile,
    pub triggers: SqlFile,
    /// By name, in alphabetical order.
    pub lookups: Vec<LookupQuery>,
}

impl SqlFiles {
    /// Reads `campaigns.sql`, `triggers.sql` and every `lookups/*.sql`; a job without lookups needs no such folder.
    pub fn load(dir: &Path) -> Result<SqlFiles> {
        let campaigns = read(
            dir.join("campaigns.sql"),
            "write one CREATE TABLE campaigns (...) there: the fields of a message; or correct [sql] directory",
        )?;
        let triggers = read(
            dir.join("triggers.sql"),
            "write one SELECT there: its columns are what both sinks get; or correct [sql] directory",
        )?;
        let mut lookups = load_lookups(&dir.join("lookups"))?;
        lookups.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(SqlFiles { campaigns, triggers, lookups })
    }

    /// SHA-256 over names and texts, in hex: the same for the same SQL, wherever it lies.
    pub fn hash(&self) -> String {
        let mut sha = openssl::sha::Sha256::new();
        let mut add = |name: &str, text: &str| {
            for part in [name, text] {
                sha.update(&(part.len() as u64).to_be_bytes());
                sha.update(part.as_bytes());
            }
        };
        add("campaigns", &self.campaigns.text);
        add("triggers", &self.triggers.text);
        for lookup in &self.lookups {
            add(&format!("lookups/{}", lookup.name), &lookup.sql);
        }
        sha.finish().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn load_lookups(dir: &Path) -> Result<Vec<LookupQuery>> {
    let doing = || format!("reading {}", dir.display());
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(doing())(error)),
    };
    let mut lookups = Vec::new();
    for entry in entries {
        let file = entry.map_err(Error::io(doing()))?.path();
        if file.extension().is_none_or(|extension| extension != "sql") {
            continue;
        }
        let name = lookup_name(&file)?;
        let sql = read(file.clone(), "")?.text;
        lookups.push(LookupQuery { name, file, sql });
    }
    Ok(lookups)
}

/// The file's stem, which must do as a table's name without quotes.
fn lookup_name(file: &Path) -> Result<String> {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let mut characters = stem.chars();
    let first = characters.next().is_some_and(|c| c.is_ascii_lowercase() || c == '_');
    let problem = if !first || !characters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
        "the file's name is the lookup table's, and this is no SQL identifier"
    } else if stem == "campaigns" {
        "the name campaigns belongs to the messages"
    } else {
        return Ok(stem);
    };
    Err(Error::Sql {
        file: file.to_owned(),
        line: None,
        column: None,
        problem: problem.into(),
        remedy: "rename the file: lower-case letters, digits and underscores, not a digit first".into(),
    })
}

fn read(path: PathBuf, remedy: &str) -> Result<SqlFile> {
    match fs::read_to_string(&path) {
        Ok(text) => Ok(SqlFile { path, text }),
        Err(error) => {
            let problem = match error.kind() {
                ErrorKind::NotFound => "there is no such file".to_owned(),
                ErrorKind::InvalidData => "the file is not UTF-8".to_owned(),
                _ => format!("cannot read the file: {error}"),
            };
            Err(Error::Sql { file: path, line: None, column: None, problem, remedy: remedy.to_owned() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, text: &str) {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap_or(dir)).expect("a folder");
        fs::write(path, text).expect("a file");
    }

    #[test]
    fn loads_and_hashes_by_content() {
        let dir = tempfile::tempdir().expect("a folder");
        write(dir.path(), "campaigns.sql", "CREATE TABLE campaigns (a INT)");
        write(dir.path(), "triggers.sql", "SELECT 1 AS a");
        write(dir.path(), "lookups/b.sql", "SELECT 2");
        write(dir.path(), "lookups/a.sql", "SELECT 1");
        write(dir.path(), "lookups/notes.txt", "none");
        let files = SqlFiles::load(dir.path()).expect("files");
        assert_eq!(files.lookups.iter().map(|l| l.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        let before = files.hash();
        assert_eq!(before.len(), 64);
        assert_eq!(SqlFiles::load(dir.path()).expect("files").hash(), before);
        write(dir.path(), "lookups/a.sql", "SELECT 3");
        assert_ne!(SqlFiles::load(dir.path()).expect("files").hash(), before);
    }

    #[test]
    fn a_missing_file_and_a_bad_name_say_what_to_do() {
        let dir = tempfile::tempdir().expect("a folder");
        write(dir.path(), "campaigns.sql", "");
        let error = SqlFiles::load(dir.path()).expect_err("triggers.sql is missing");
        assert!(error.to_string().ends_with("triggers.sql: there is no such file"), "{error}");
        assert!(error.remedy().is_some_and(|remedy| remedy.contains("SELECT")));
        write(dir.path(), "triggers.sql", "");
        write(dir.path(), "lookups/2-fast.sql", "");
        let error = SqlFiles::load(dir.path()).expect_err("the name is bad");
        assert!(error.to_string().contains("no SQL identifier"), "{error}");
    }
}
