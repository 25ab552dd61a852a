//! The stage of the demo: broker, Postgres, tables, subscriptions, and the settings that lead the job there.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::broker::Broker;
use super::generator::Subscriptions;
use super::postgres::{Options, Postgres};
use super::process;
use crate::config::{Config, DEFAULT_FILE};
use crate::error::{Error, Result};
use crate::postgres;

/// Enough for restaurants of all sizes, few enough that a campaign's triggers can be counted on a screen.
const SUBSCRIPTIONS: usize = 3_000;

/// Partitions of the topics of campaigns and triggers.
pub const PARTITIONS: i32 = 3;

const PREFIX: &str = "dinnerbell-demo-";

/// Everything the job runs on. Fields are dropped in order: the servers go before their directory.
pub struct Stage {
    pub config: Config,
    pub subscriptions: Subscriptions,
    pub database_url: String,
    pub admin: String,
    pub seed: u64,
    broker: Broker,
    _postgres: Postgres,
    _home: Home,
}

impl Stage {
    /// Starts both servers, fills the tables and creates the topics: about two seconds, most of them `initdb`'s.
    ///
    /// # Errors
    /// [`Error::Halt`] where this machine has no Postgres; what the servers say otherwise.
    pub async fn set(sql: &Path) -> Result<Stage> {
        let home = Home::new()?;
        let postgres = Postgres::start(&home.0, Options::default())?;
        let broker = Broker::start()?;
        let port = process::free_port().map_err(Error::io("looking for a port for health and metrics"))?;
        let (database_url, admin) = (postgres.url("postgres"), format!("127.0.0.1:{port}"));
        let text = settings(&broker.bootstrap(), &database_url, sql, &admin);
        let config = Config::parse(&text, Path::new("the demo's own settings"), &|_| None)?;
        for (topic, partitions) in [
            (&config.source.topic, PARTITIONS),
            (&config.sink_kafka.topic, PARTITIONS),
            (&config.dead_letters.topic, 1),
        ] {
            broker.create_topic(topic, partitions)?;
        }
        let seed = fastrand::u64(..);
        let subscriptions = Subscriptions::generate(seed, SUBSCRIPTIONS);
        fill(&config, &subscriptions).await?;
        Ok(Stage { config, subscriptions, database_url, admin, seed, broker, _postgres: postgres, _home: home })
    }

    pub fn bootstrap(&self) -> String {
        self.broker.bootstrap()
    }
}

/// The SQL directory of the settings file, where one is named; else `sql` here. Nothing else in that file matters.
///
/// # Errors
/// [`Error::Setting`] where there are no SQL files, or the settings file cannot be read.
pub fn sql_directory(file: Option<&Path>) -> Result<PathBuf> {
    #[derive(Default, Deserialize)]
    struct Document {
        #[serde(default)]
        sql: Section,
    }
    #[derive(Default, Deserialize)]
    struct Section {
        directory: Option<String>,
    }
    let Some(file) = file else { return existing(PathBuf::from("sql")) };
    let refused = |problem: String| Error::Setting {
        key: "--config".into(),
        problem,
        remedy: format!("name a readable TOML file such as {DEFAULT_FILE}, or none: the demo only needs `sql`"),
    };
    let text = fs::read_to_string(file).map_err(|error| refused(format!("cannot read {}: {error}", file.display())))?;
    let document: Document =
        toml::from_str(&text).map_err(|error| refused(format!("{} is no settings file: {error}", file.display())))?;
    let directory = document.sql.directory.unwrap_or_else(|| "sql".into());
    if directory.contains('$') {
        return existing(Config::load(Some(file))?.sql_directory);
    }
    existing(file.parent().unwrap_or(Path::new("")).join(directory))
}

fn existing(directory: PathBuf) -> Result<PathBuf> {
    let found = fs::canonicalize(&directory).ok().filter(|found| found.join("triggers.sql").is_file());
    found.ok_or_else(|| Error::Setting {
        key: "sql.directory".into(),
        problem: format!("there is no {}", directory.join("triggers.sql").display()),
        remedy: "start the demo where the directory `sql` stands, or name a settings file that leads to one: \
                 dinnerbell demo --config FILE"
            .into(),
    })
}

/// The settings as a user would write them. The demo broker answers a fetch only once its wait is over, whatever arrives
/// meanwhile; hence the short one.
fn settings(bootstrap: &str, database_url: &str, sql: &Path, admin: &str) -> String {
    // `$` begins a substitution.
    let quoted = |text: &str| toml::Value::from(text.replace('$', "$$")).to_string();
    format!(
        "[kafka]\n\"bootstrap.servers\" = {}\n[postgres]\nurl = {}\n[sql]\ndirectory = {}\n\
         [source.kafka]\n\"fetch.wait.max.ms\" = 10\n[lookup]\nrefresh = \"10s\"\n[admin]\nlisten = {}\n",
        quoted(bootstrap),
        quoted(database_url),
        quoted(&sql.to_string_lossy()),
        quoted(admin)
    )
}

/// Creates the tables as `sql/postgres` has them, and fills in who likes which restaurant.
async fn fill(config: &Config, subscriptions: &Subscriptions) -> Result<()> {
    let client = postgres::connect(&config.postgres, "dinnerbell demo").await?;
    let directory = config.sql_directory.join("postgres");
    let reading = || Error::io(format!("reading {}", directory.display()));
    let mut files = Vec::new();
    for entry in fs::read_dir(&directory).map_err(reading())? {
        files.push(entry.map_err(reading())?.path());
    }
    files.retain(|file| file.extension().is_some_and(|extension| extension == "sql"));
    files.sort();
    for file in files {
        let ddl = fs::read_to_string(&file).map_err(reading())?;
        client.batch_execute(&ddl).await.map_err(Error::postgres(format!("running {}", file.display())))?;
    }
    let (clients, restaurants): (Vec<&str>, Vec<&str>) =
        subscriptions.rows.iter().map(|(client, restaurant)| (client.as_str(), restaurant.as_str())).unzip();
    let insert = "INSERT INTO public.subscribers_restaurants (client_id, restaurant_id) \
                  SELECT * FROM unnest($1::text[], $2::text[])";
    let doing = Error::postgres("filling in the demo's subscriptions");
    client.execute(insert, &[&clients, &restaurants]).await.map(drop).map_err(doing)
}

/// The demo's own directory in the system's temporary one. It goes when this is dropped; what a demo leaves that was
/// killed, the next one takes away.
struct Home(PathBuf);

impl Home {
    fn new() -> Result<Home> {
        sweep();
        let path = std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
        let doing = || Error::io(format!("creating {}", path.display()));
        fs::DirBuilder::new().mode(0o711).create(&path).map_err(doing())?;
        // Whatever the umask: Postgres may run as another user, who must be able to pass.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o711)).map_err(doing())?;
        Ok(Home(path))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn sweep() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|pid| pid.parse().ok());
        // SAFETY: signal 0 asks whether the process exists. One of another user's does, and answers EPERM.
        let is_gone = |pid: libc::pid_t| unsafe { libc::kill(pid, 0) } != 0
            && std::io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH);
        if pid.is_some_and(|pid| pid == std::process::id() as libc::pid_t || is_gone(pid)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_are_whole_whatever_the_path_holds() {
        let text = settings("127.0.0.1:1", "postgres://u:p@127.0.0.1:2/d", Path::new("/a \"b\" ${C}/s"), "127.0.0.1:3");
        let config = Config::parse(&text, Path::new("x"), &|_| None).unwrap();
        assert_eq!(config.sql_directory, Path::new("/a \"b\" ${C}/s"));
        assert_eq!(config.admin_listen.map(|address| address.port()), Some(3));
    }

    #[test]
    fn the_sql_directory_is_all_that_counts_in_a_settings_file() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("x.toml");
        fs::write(&file, "[postgres]\nurl = \"${NOT_SET}\"\n[sql]\ndirectory = \"mine\"\n").unwrap();
        let error = sql_directory(Some(&file)).unwrap_err();
        assert!(error.to_string().contains("mine/triggers.sql") && error.exit_code() == 2, "{error}");
        fs::create_dir(home.path().join("mine")).unwrap();
        fs::write(home.path().join("mine/triggers.sql"), "SELECT 1").unwrap();
        assert!(sql_directory(Some(&file)).unwrap().ends_with("mine"));
        assert_eq!(sql_directory(Some(&home.path().join("none.toml"))).unwrap_err().exit_code(), 2);
    }
}
