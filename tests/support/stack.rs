//! One test's own corner of the servers: topics, a group, a database, a directory with settings and SQL.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tokio_postgres::{Row, SimpleQueryMessage};
use toml::{Table, Value};

use super::kafka::{Kafka, create_topic, shared, shared_bootstrap};
use super::messages::{Message, Record, consume_all, produce};
use super::places::fresh;
use super::postgres::{Postgres, connect, shared_url};
use super::proxy::{Network, Proxy};
use super::run::{block_on, run};

/// Names are unique, so that tests run side by side on shared servers; nothing is taken away at the end but what stands
/// in the directory.
#[derive(Debug)]
pub struct Stack {
    pub bootstrap: String,
    /// This test's database, as its superuser.
    pub url: String,
    pub campaigns: String,
    pub triggers: String,
    pub dead_letters: String,
    pub group: String,
    /// Holds dinnerbell.toml and sql/.
    pub directory: PathBuf,
    settings: Table,
}

impl Stack {
    /// On the shared servers: three topics (campaigns with 3 partitions), a database with the tables of
    /// `sql/postgres/`, settings and a copy of `sql/`. `name` says which test, in letters, digits and `_`.
    pub fn new(name: &str) -> Stack {
        Self::on(name, &shared_bootstrap(), &shared_url(None), |database| shared_url(Some(database)))
    }

    /// As [`Stack::new`], on servers of the test's own.
    pub fn private(name: &str, kafka: &Kafka, postgres: &Postgres) -> Stack {
        Self::on(name, &kafka.bootstrap(), &postgres.url("postgres"), |database| postgres.url(database))
    }

    /// As [`Stack::new`], with the job's ways to both servers leading through proxies. The test itself goes straight.
    /// Kafka is the shared private one, also where KAFKA_BOOTSTRAP_SERVERS is set.
    pub fn behind_proxies(name: &str) -> (Stack, Network) {
        let kafka = shared();
        let mut stack = Self::on(name, &kafka.bootstrap(), &shared_url(None), |database| shared_url(Some(database)));
        let network = stack.through(Proxy::kafka(kafka), Proxy::postgres(&shared_url(None)));
        (stack, network)
    }

    /// Points the job at these proxies of the stack's servers.
    pub fn through(&mut self, kafka: Proxy, postgres: Proxy) -> Network {
        self.set("kafka", "bootstrap.servers", kafka.address());
        let url = postgres.url(&self.url);
        self.set("postgres", "url", url);
        Network { kafka, postgres }
    }

    fn on(name: &str, bootstrap: &str, admin_url: &str, url_of: impl Fn(&str) -> String) -> Stack {
        let unique = format!("{name}_{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        let mut stack = Stack {
            bootstrap: bootstrap.to_owned(),
            url: url_of(&unique),
            campaigns: format!("{unique}.campaigns"),
            triggers: format!("{unique}.triggers"),
            dead_letters: format!("{unique}.dead_letters"),
            group: unique.clone(),
            directory: fresh(&unique),
            settings: Table::new(),
        };
        create_topic(bootstrap, &stack.campaigns, 3, &[]);
        create_topic(bootstrap, &stack.triggers, 3, &[]);
        create_topic(bootstrap, &stack.dead_letters, 1, &[("max.message.bytes", "2097152")]);
        execute(admin_url, &format!("CREATE DATABASE \"{unique}\""));
        copy_directory(&repository().join("sql"), &stack.directory.join("sql"));
        stack.create_tables();
        stack.defaults();
        stack
    }

    fn create_tables(&self) {
        let ddl = self.directory.join("sql/postgres");
        let mut files: Vec<PathBuf> =
            fs::read_dir(ddl).expect("sql/postgres").map(|file| file.unwrap().path()).collect();
        files.sort();
        for file in files {
            self.execute(&fs::read_to_string(file).expect("readable SQL"));
        }
    }

    fn defaults(&mut self) {
        let [bootstrap, url] = [&self.bootstrap, &self.url].map(Clone::clone);
        let [campaigns, triggers] = [&self.campaigns, &self.triggers].map(Clone::clone);
        let [dead_letters, group] = [&self.dead_letters, &self.group].map(Clone::clone);
        for (path, value) in [
            (["kafka", "bootstrap.servers"], bootstrap.as_str()),
            (["postgres", "url"], &url),
            (["source", "topic"], &campaigns),
            (["source", "group_id"], &group),
            (["sink.kafka", "topic"], &triggers),
            (["dead_letters", "topic"], &dead_letters),
            // Every job of a test has a port of its own for this.
            (["admin", "listen"], "${DINNERBELL_TEST_ADMIN:-127.0.0.1:0}"),
        ] {
            self.set(path[0], path[1], value);
        }
    }

    /// Sets one setting and writes dinnerbell.toml anew. `section` may have dots (`sink.kafka`), `key` is taken whole
    /// (`bootstrap.servers`).
    pub fn set(&mut self, section: &str, key: &str, value: impl Into<Value>) {
        let mut table = &mut self.settings;
        for part in section.split('.') {
            let entry = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
            table = entry.as_table_mut().unwrap_or_else(|| panic!("{section} is no section"));
        }
        table.insert(key.to_owned(), value.into());
        fs::write(self.config(), toml::to_string(&self.settings).expect("a table")).expect("the directory is ours");
    }

    /// The settings file.
    pub fn config(&self) -> PathBuf {
        self.directory.join("dinnerbell.toml")
    }

    /// Replaces a file under sql/, named as in `triggers.sql`.
    pub fn write_sql(&self, file: &str, text: &str) {
        fs::write(self.directory.join("sql").join(file), text).expect("the directory is ours");
    }

    pub fn read_sql(&self, file: &str) -> String {
        fs::read_to_string(self.directory.join("sql").join(file)).expect("a file under sql/")
    }

    /// Writes to the topic of campaigns.
    pub fn produce(&self, messages: impl IntoIterator<Item = Message>) {
        produce(&self.bootstrap, &self.campaigns, messages);
    }

    /// All committed triggers.
    pub fn read_triggers(&self) -> Vec<Record> {
        consume_all(&self.bootstrap, &self.triggers, true)
    }

    /// All committed dead letters.
    pub fn read_dead_letters(&self) -> Vec<Record> {
        consume_all(&self.bootstrap, &self.dead_letters, true)
    }

    /// Adds subscriptions, (client, restaurant) each.
    pub fn subscribe(&self, rows: impl IntoIterator<Item = (String, String)>) {
        let text: String = rows.into_iter().map(|(client, restaurant)| format!("{client}\t{restaurant}\n")).collect();
        let url = self.url.clone();
        block_on(async move {
            use futures::SinkExt;
            let client = connect(&url).await;
            let copy = "COPY public.subscribers_restaurants (client_id, restaurant_id) FROM STDIN";
            let sink = client.copy_in(copy).await.expect("COPY starts");
            let mut sink = std::pin::pin!(sink);
            sink.send(bytes::Bytes::from(text)).await.expect("COPY takes the rows");
            sink.finish().await.expect("COPY ends");
        });
    }

    /// The rows of one query, with typed columns.
    pub fn query(&self, sql: &str) -> Vec<Row> {
        let (url, sql) = (self.url.clone(), sql.to_owned());
        block_on(async move {
            let client = connect(&url).await;
            client.query(&sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"))
        })
    }

    /// The rows of one query, every column as text (`None` for null).
    pub fn rows(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        let (url, sql) = (self.url.clone(), sql.to_owned());
        let messages = block_on(async move {
            let client = connect(&url).await;
            client.simple_query(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"))
        });
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        rows.map(|row| (0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect()).collect()
    }

    /// One number, as of `SELECT count(*)`.
    pub fn number(&self, sql: &str) -> i64 {
        let rows = self.rows(sql);
        rows[0][0].as_deref().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no number: {sql}: {rows:?}"))
    }

    /// Runs statements whose rows nobody wants.
    pub fn execute(&self, sql: &str) {
        execute(&self.url, sql);
    }

    /// Ends every other session of this database, as an administrator would; the number of them.
    pub fn kill_sessions(&self) -> i64 {
        self.number(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
    }

    /// `psql` on this database, unaligned and without headings.
    pub fn psql(&self, sql: &str) -> String {
        run(Command::new("psql").args([&self.url, "-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]), "")
    }

    /// `kcat -b <bootstrap> <arguments>`, split at spaces, with `input` on its standard input.
    pub fn kcat(&self, arguments: &str, input: &str) -> String {
        run(Command::new("kcat").args(["-b", &self.bootstrap]).args(arguments.split(' ')), input)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn execute(url: &str, sql: &str) {
    let (url, sql) = (url.to_owned(), sql.to_owned());
    block_on(async move {
        let client = connect(&url).await;
        client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    });
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("the directory is ours");
    for entry in fs::read_dir(from).expect("a directory").map(|entry| entry.expect("an entry")) {
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy_directory(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), &target).expect("the directory is ours")),
        }
    }
}
