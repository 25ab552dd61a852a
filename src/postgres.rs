//! A connection to Postgres: TLS with libpq's meaning of `sslmode`, timeouts that notice a server that is gone, and
//! errors that say where it tried to go, without the password.
//!
//! It makes one connection and never a second: what a lost connection leads to is the caller's business.

use std::collections::HashMap;
use std::error::Error as _;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use openssl::error::ErrorStack;
use openssl::ssl::{SslConnector, SslFiletype, SslMethod, SslVerifyMode};
use postgres_openssl::MakeTlsConnector;
use tokio::task::JoinHandle;
use tokio_postgres::config::{Host, SslMode as Wire};
use tokio_postgres::{AsyncMessage, Client, Statement};

use crate::config::{PostgresSettings, SslMode, Tls};
use crate::{Error, Result};

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
    let connector = tls_connector(&settings.tls)?;
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
    connector: &MakeTlsConnector,
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
        None => tls_refusal(error).is_some(),
    }
}

fn tls_connector(tls: &Tls) -> Result<MakeTlsConnector> {
    let mut builder = SslConnector::builder(SslMethod::tls_client()).map_err(|error| library(&error))?;
    if let Some(root) = &tls.root {
        // A store of its own: this authority and no other.
        builder.set_cert_store(openssl::x509::store::X509StoreBuilder::new().map_err(|error| library(&error))?.build());
        builder.set_ca_file(root).map_err(|error| unusable("sslrootcert", root, &error))?;
    }
    if let (Some(certificate), Some(key)) = (&tls.certificate, &tls.key) {
        builder.set_certificate_chain_file(certificate).map_err(|error| unusable("sslcert", certificate, &error))?;
        builder.set_private_key_file(key, SslFiletype::PEM).map_err(|error| unusable("sslkey", key, &error))?;
        builder.check_private_key().map_err(|error| unusable("sslkey", key, &error))?;
    }
    let verify = match tls.mode {
        SslMode::VerifyCa | SslMode::VerifyFull => true,
        // libpq: where there is a root certificate, require means verify-ca, and prefer looks at the chain as well.
        SslMode::Allow | SslMode::Prefer | SslMode::Require => tls.root.is_some(),
        SslMode::Disable => false,
    };
    builder.set_verify(if verify { SslVerifyMode::PEER } else { SslVerifyMode::NONE });
    let mut connector = MakeTlsConnector::new(builder.build());
    let verify_host = tls.mode == SslMode::VerifyFull;
    connector.set_callback(move |connection, _host| {
        connection.set_verify_hostname(verify_host);
        Ok(())
    });
    Ok(connector)
}

fn library(error: &ErrorStack) -> Error {
    Error::Halt { what: format!("cannot set up TLS: {error}"), remedy: "check the installation of OpenSSL".into() }
}

fn unusable(option: &str, path: &Path, error: &ErrorStack) -> Error {
    // OpenSSL's own text is about its source files; the file's own trouble says more, where it has one.
    let why = match std::fs::read(path) {
        Err(error) => error.to_string(),
        Ok(_) => error.errors().first().and_then(|error| error.reason()).unwrap_or("not usable").to_string(),
    };
    Error::Setting {
        key: "postgres.url".into(),
        problem: format!("{option}: cannot use {}: {why}", path.display()),
        remedy: "name a PEM file that the job's user may read (a key without a passphrase)".into(),
    }
}

/// Retrying is for servers that are away; what will not change by itself halts.
fn explain(settings: &PostgresSettings, error: tokio_postgres::Error) -> Error {
    let doing = format!("cannot connect to {}", settings.display());
    if let Some((what, remedy)) = tls_refusal(&error) {
        return Error::Halt { what: format!("{doing}: {what}"), remedy: remedy.into() };
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

/// Why one side refused the handshake, and what to do; `None` where TLS wasn't the matter, or it only broke off.
fn tls_refusal(error: &tokio_postgres::Error) -> Option<(String, &'static str)> {
    let outer = error.source()?.to_string();
    // tokio-postgres's own words; it has no other sign of it.
    if outer == "server does not support TLS" {
        return Some((outer, "turn ssl on in postgresql.conf, or set sslmode=disable in [postgres] url"));
    }
    let refusal = chain(error).find_map(|cause| cause.downcast_ref::<openssl::ssl::Error>())?;
    let reasons: Vec<&str> = refusal.ssl_error()?.errors().iter().filter_map(|error| error.reason()).collect();
    if reasons.iter().any(|reason| reason.contains("unexpected eof")) {
        return None;
    }
    // What OpenSSL found wrong with the certificate stands behind the error itself.
    let detail = outer.strip_prefix(&refusal.to_string()).unwrap_or_default();
    let what = format!("the TLS handshake failed: {}{detail}", reasons.join(", "));
    let remedy = if reasons.contains(&"certificate verify failed") {
        "check that sslrootcert holds the authority of the server's certificate and, for verify-full, that the \
         certificate names the host in [postgres] url"
    } else {
        "check that both sides have a TLS version in common, and sslcert and sslkey where the server wants them"
    };
    Some((what, remedy))
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

    #[test]
    fn tls_files_that_cannot_be_used_are_settings_errors() {
        let error = |url: &str| match tls_connector(&settings(url).tls).err() {
            Some(Error::Setting { key, problem, .. }) => format!("{key}: {problem}"),
            other => panic!("{url}: {other:?}"),
        };
        insta::assert_snapshot!(error("host=h sslrootcert=/no/such.pem"), @"postgres.url: sslrootcert: cannot use /no/such.pem: No such file or directory (os error 2)");
        let empty = tempfile::NamedTempFile::new().unwrap();
        let path = empty.path().display();
        let text = error(&format!("host=h sslrootcert={path}"));
        assert!(text.contains("sslrootcert") && !text.contains("os error"), "{text}");
        let text = error(&format!("host=h sslcert={path} sslkey={path}"));
        assert!(text.contains("sslcert"), "{text}");
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
