//! Postgres for the unit tests that need a real one: a private server that tests running side by side share, or that of
//! DATABASE_URL; each test in a schema of its own.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio_postgres::{Client, NoTls};

use crate::demo::postgres::{Options, Postgres};

/// A schema of one's own, on a server that lasts as long as its users.
pub struct TestDb {
    pub client: Client,
    /// Fresh, and first in the search path of [`TestDb::client`] and of everyone who connects to [`TestDb::url`].
    pub schema: String,
    pub url: String,
    _server: Option<Arc<Postgres>>,
}

impl TestDb {
    pub async fn start() -> TestDb {
        let given = std::env::var("DATABASE_URL").ok().filter(|url| !url.is_empty());
        let (server, url) = match given {
            Some(url) => (None, url),
            None => {
                let server = shared();
                let url = server.url("postgres");
                (Some(server), url)
            }
        };
        let schema = format!("test_{:016x}", fastrand::u64(..));
        let separator = if url.contains('?') { '&' } else { '?' };
        let url = format!("{url}{separator}options=-csearch_path%3D{schema}");
        let client = connect(&url).await.unwrap();
        client.batch_execute(&format!("CREATE SCHEMA {schema}")).await.unwrap();
        TestDb { client, schema, url, _server: server }
    }
}

/// A connection, driven by a task of its own.
pub async fn connect(url: &str) -> crate::Result<Client> {
    let (client, connection) =
        tokio_postgres::connect(url, NoTls).await.map_err(crate::Error::postgres("connecting"))?;
    tokio::spawn(connection);
    Ok(client)
}

/// Nobody drops a static: a server that only its users hold leaves no directory behind.
fn shared() -> Arc<Postgres> {
    static SERVER: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
    let mut server = SERVER.lock().unwrap_or_else(PoisonError::into_inner);
    server.upgrade().unwrap_or_else(|| {
        let options = Options { no_fsync: true, ..Options::default() };
        let started = Arc::new(Postgres::start(&std::env::temp_dir(), options).unwrap());
        *server = Arc::downgrade(&started);
        started
    })
}
