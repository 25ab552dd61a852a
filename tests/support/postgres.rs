//! The Postgres that most tests share, and servers of a test's own.

use std::ops::Deref;
use std::path::Path;
use std::sync::LazyLock;

use dinnerbell::demo::postgres as private;
use tokio_postgres::{Client, NoTls};

use super::certs::Certs;
use super::places::home;

/// A server of a test's own, that panics where [`private::Postgres`] has an error.
#[derive(Debug)]
pub struct Postgres(private::Postgres);

static SHARED: LazyLock<Postgres> = LazyLock::new(|| Postgres::start(private::Options::default()));

/// The address of `database` on the shared server, or on that of DATABASE_URL.
pub fn shared_url(database: Option<&str>) -> String {
    let given = std::env::var("DATABASE_URL").ok().filter(|url| !url.is_empty());
    match (given, database) {
        (None, database) => SHARED.url(database.unwrap_or("postgres")),
        (Some(url), None) => url,
        (Some(url), Some(database)) => with_database(&url, database),
    }
}

impl Postgres {
    pub fn start(options: private::Options) -> Postgres {
        Postgres(private::Postgres::start(home(), options).unwrap_or_else(|error| panic!("{error}")))
    }

    /// A server with TLS beside plain connections, its certificate for localhost by [`Certs::shared`]'s authority.
    pub fn start_tls() -> Postgres {
        let Certs { server, server_key, .. } = Certs::shared();
        Self::start_tls_with(server, server_key)
    }

    /// The same, with another certificate.
    pub fn start_tls_with(certificate: &Path, key: &Path) -> Postgres {
        let (certificate, key, ca) = (certificate.to_owned(), key.to_owned(), Certs::shared().ca.clone());
        let tls = Some(private::Tls { certificate, key, ca });
        Self::start(private::Options { tls, ..private::Options::default() })
    }

    pub fn stop(&mut self, shutdown: private::Shutdown) {
        self.0.stop(shutdown).unwrap_or_else(|error| panic!("{error}"));
    }

    pub fn resume(&mut self) {
        self.0.resume().unwrap_or_else(|error| panic!("{error}"));
    }
}

impl Deref for Postgres {
    type Target = private::Postgres;

    fn deref(&self) -> &private::Postgres {
        &self.0
    }
}

/// Connects, with the connection's own task on the tests' runtime. For use inside [`super::block_on`].
pub async fn connect(url: &str) -> Client {
    let (client, connection) =
        tokio_postgres::connect(url, NoTls).await.unwrap_or_else(|error| panic!("connecting to {url}: {error:?}"));
    tokio::spawn(async move {
        // It ends with an error when a test stops the server; whoever uses the client then sees that.
        let _ = connection.await;
    });
    client
}

/// `url` with its database replaced; its options stay.
pub fn with_database(url: &str, database: &str) -> String {
    let (address, options) = url.split_once('?').map_or((url, None), |(address, options)| (address, Some(options)));
    let (scheme, rest) = address.split_once("://").unwrap_or_else(|| panic!("DATABASE_URL is not a URL: {url}"));
    let host = rest.split('/').next().unwrap_or(rest);
    options.map_or(format!("{scheme}://{host}/{database}"), |options| format!("{scheme}://{host}/{database}?{options}"))
}
