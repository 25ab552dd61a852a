//! A connection to Postgres: TLS with libpq's meaning of `sslmode`, timeouts that notice a server that is gone, and
//! errors that say where it tried to go, without the password.
//!
//! It makes one connection and never a second: what a lost connection leads to is the caller's business.

mod tls;

use std::collections::HashMap;
use std::error::Error as _;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use tokio::task::JoinHandle;
use tokio_postgres::config::{Host, SslMode as Wire};
use tokio_postgres::{AsyncMessage, Client, Statement};

use crate::config::{PostgresSettings, SslMode};
use crate::{Error, Result};
use tls::{OnDemand, refusal};

/// A client and the task that moves its bytes. Dropping it closes the socket at once: Postgres rolls back what was open.
#[derive(Debug)]
pub struct Connection {
    client: Client,
    driver: JoinHandle<()>,
    prepared: Mutex<HashMap<String, Statement>>,
}

impl Connection {
    /// The statement of this text, prepared at its first use: for statements of which there are few, and each of them in
    /// every commit. Values go into parameters.
    pub async fn prepared(&self, sql: &str) -> Result<Statement, tokio_postgres::Error> {
        let known = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).get(sql).cloned();
        if let Some(statement) = known {
            return Ok(statement);
        }
        let statement = self.client.prepare(sql).await?;
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }
}

impl Deref for Connection {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Connects to the first of the hosts that answers. `application_name` is what `pg_stat_activity` shows, unless the
/// settings name another. Errors: [`Error::Postgres`] for what the server or the network said, [`Error::Setting`] for TLS
/// files that cannot be used, [`Error::Halt`] where trying again cannot help (a certificate that is not trusted, a
/// password that is asked for and not set).
pub async fn connect(settings: &PostgresSettings, application_name: &str) -> Result<Connection> {
    let connector = OnDemand::new(&settings.tls)?;
    let mut client = settings.client.clone();
    if client.get_application_name().is_none() {
        client.application_name(application_name);
    }
    let modes = wire_modes(settings);
    let mut result = attempt(&mut client, modes[0], &connector).await;
    if let (Err(error), Some(second)) = (&result, modes.get(1))
        && other_mode_may_help(error)
    {
        result = attempt(&mut client, *second, &connector).await;
    }
    result.map_err(|error| explain(settings, error))
}

async fn attempt(
    client: &mut tokio_postgres::Config,
    mode: Wire,
    connector: &OnDemand,
) -> Result<Connection, tokio_postgres::Error> {
    let (client, mut connection) = client.ssl_mode(mode).connect(connector.clone()).await?;
    let driver = tokio::spawn(async move {
        loop {
            match std::future::poll_fn(|context| connection.poll_message(context)).await {
                Some(Ok(AsyncMessage::Notice(notice))) => tracing::debug!("notice from Postgres: {}", notice.message()),
                Some(Ok(_)) => {}
                // The client's next call fails with it, too, and its caller knows what it means.
                Some(Err(error)) => return tracing::debug!("the connection to Postgres ended: {error}"),
                None => return,
            }
        }
    });
    Ok(Connection { client, driver, prepared: Mutex::default() })
}

/// What to try, in order. Over Unix sockets there is no TLS, whatever the mode says, as with libpq.
fn wire_modes(settings: &PostgresSettings) -> &'static [Wire] {
    let hosts = settings.client.get_hosts();
    if settings.client.get_hostaddrs().is_empty() && hosts.iter().all(|host| matches!(host, Host::Unix(_))) {
        return &[Wire::Disable];
    }
    match settings.tls.mode {
        SslMode::Disable => &[Wire::Disable],
        SslMode::Allow => &[Wire::Disable, Wire::Require],
        SslMode::Prefer => &[Wire::Prefer, Wire::Disable],
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Wire::Require],
    }
}

/// pg_hba.conf may want TLS or refuse it (28000), and a handshake may fail where plain text is allowed.
fn other_mode_may_help(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        Some(code) => code.code() == "28000",
        None => refusal(error).is_some(),
    }
}

/// Retrying is for servers that are away; what will not change by itself halts.
fn explain(settings: &PostgresSettings, error: tokio_postgres::Error) -> Error {
    let doing = format!("cannot connect to {}", settings.display());
    if let Some((what, remedy)) = refusal(&error) {
        return Error::Halt { what: format!("{doing}: {what}"), remedy: remedy.into() };
    }
    if let Some(Error::Halt { what, remedy }) = error.source().and_then(|cause| cause.downcast_ref()) {
        return Error::Halt { what: format!("{doing}: {what}"), remedy: remedy.clone() };
    }
    let source_is = |kind: fn(&Cause) -> bool| chain(&error).any(kind);
    // A timeout and a closed connection have no cause.
    let away = error.source().is_none()
        || source_is(|cause| cause.is::<std::io::Error>())
        || source_is(|cause| cause.is::<openssl::ssl::Error>());
    if error.code().is_some() || away {
        return Error::Postgres { doing, source: error };
    }
    // The client library will not go on: no password, no common way to authenticate, a wrong combination of options.
    let what = Error::Postgres { doing, source: error }.to_string();
    Error::Halt { what, remedy: "check the user, the password and the options of [postgres] url".into() }
}

type Cause = dyn std::error::Error + 'static;

fn chain(error: &tokio_postgres::Error) -> impl Iterator<Item = &Cause> {
    std::iter::successors(error.source(), |cause| (*cause).source())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;
    use crate::error::Action;

    fn settings(url: &str) -> PostgresSettings {
        PostgresSettings::parse(Secret::new(url)).unwrap()
    }

    #[test]
    fn unix_sockets_have_no_tls() {
        assert_eq!(wire_modes(&settings("host=/run/postgresql sslmode=verify-full")), [Wire::Disable]);
        assert_eq!(wire_modes(&settings("host=/run/postgresql,db sslmode=verify-full")), [Wire::Require]);
        assert_eq!(wire_modes(&settings("host=db")), [Wire::Prefer, Wire::Disable]);
    }

    #[tokio::test]
    async fn a_server_that_is_away_is_tried_again_and_named_without_its_password() {
        // Bound and let go: nobody listens there.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = format!("postgres://ann:hunter2@127.0.0.1:{port}/shop");
        let error = connect(&settings(&url), "test").await.unwrap_err();
        assert_eq!(error.action(), Action::Retry);
        let text = error.to_string();
        assert!(text.starts_with(&format!("cannot connect to postgres://ann@127.0.0.1:{port}/shop: ")), "{text}");
        assert!(!format!("{text} {error:?}").contains("hunter2"));
    }

    #[tokio::test]
    async fn a_server_that_breaks_off_is_tried_again_and_one_without_tls_halts() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        for (answer, action) in [(b"S", Action::Retry), (b"N", Action::Halt)] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("postgres://u@{}/d?sslmode=require", listener.local_addr().unwrap());
            let server = tokio::spawn(async move {
                let (mut socket, _) = listener.accept().await.unwrap();
                socket.read_exact(&mut [0; 8]).await.unwrap();
                socket.write_all(answer).await.unwrap();
                if answer == b"S" {
                    let _ = socket.read(&mut [0; 1024]).await;
                }
            });
            let error = connect(&settings(&url), "test").await.unwrap_err();
            assert_eq!(error.action(), action, "{error}");
            server.await.unwrap();
        }
    }
}
