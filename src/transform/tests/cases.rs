//! The folders of `tests/sql_cases`. `UPDATE_SQL_CASES=1` writes what came out as what is expected: read the diff.

use std::fs;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};

use super::*;
use crate::Error;

struct Case {
    dir: PathBuf,
    campaigns: String,
    triggers: String,
    now: DateTime<Utc>,
    lookups: LookupSet,
}

impl Case {
    fn load(dir: &Path) -> Case {
        let read = |name: &str| fs::read_to_string(dir.join(name));
        let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql/campaigns.sql");
        let tables = fs::read_dir(dir).expect("the case").filter_map(|entry| {
            let path = entry.expect("an entry").path();
            let name = path.file_name()?.to_str()?.strip_suffix(".lookup.jsonl")?.to_owned();
            Some(lookup(&name, &fs::read_to_string(&path).expect("a lookup")))
        });
        Case {
            dir: dir.to_owned(),
            campaigns: read("campaigns.sql").unwrap_or_else(|_| fs::read_to_string(default).expect("the default")),
            triggers: read("triggers.sql").expect("triggers.sql"),
            now: read("clock").expect("clock").trim().parse().expect("a time as RFC 3339 has it"),
            lookups: set(tables),
        }
    }

    /// The name and text of the file that this case must match.
    async fn run(&self) -> (&'static str, String) {
        match self.rows().await {
            Ok(text) => ("expected.jsonl", text),
            Err(error) => ("error", format!("{error}\n{}\n", error.remedy().unwrap_or_default())),
        }
    }

    /// Output rows, then a line `-- outcome count` for each possible outcome.
    async fn rows(&self) -> Result<String, Error> {
        let schema = declared(&self.campaigns);
        let files = files(&self.campaigns, &self.triggers);
        let transform = Transform::compile(&files, Arc::clone(&schema), &self.lookups, MEMORY).await?;
        let input = fs::read_to_string(self.dir.join("input.jsonl")).expect("input.jsonl");
        let batch = campaigns(&schema, &input);
        let mut text = None;
        // Twice: the second run uses the first one's plan and must not differ.
        for _ in 0..2 {
            let output = collect(transform.run(batch.clone(), self.now, &self.lookups).await?).await?;
            let mut lines = json_lines(&transform, &output);
            let marks = triggered(&transform, &output, batch.num_rows());
            let outcomes = transform.outcomes(&batch, self.now, &marks).await?;
            assert_eq!(outcomes.counts.iter().map(|(_, count)| count).sum::<u64>(), batch.num_rows() as u64);
            lines.extend(outcomes.counts.iter().map(|(name, count)| format!("-- {name} {count}")));
            let now = lines.join("\n") + "\n";
            assert_eq!(*text.get_or_insert_with(|| now.clone()), now, "{}: two runs differ", self.dir.display());
        }
        Ok(text.unwrap_or_default())
    }
}

#[tokio::test]
async fn every_case_gives_what_it_should() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sql_cases");
    let mut dirs: Vec<_> = fs::read_dir(root).expect("cases").map(|entry| entry.expect("an entry").path()).collect();
    dirs.sort();
    assert!(dirs.len() > 20, "{} cases", dirs.len());
    let update = std::env::var_os("UPDATE_SQL_CASES").is_some();
    let mut failures = Vec::new();
    for dir in dirs {
        let case = Case::load(&dir);
        let (name, actual) = case.run().await;
        if update {
            fs::write(dir.join(name), &actual).expect("a file");
        }
        let expected = fs::read_to_string(dir.join(name)).unwrap_or_else(|_| format!("no file {name}"));
        if expected != actual {
            failures.push(format!("{}: expected\n{expected}\ngot\n{actual}", dir.display()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
