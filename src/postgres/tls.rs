//! TLS to Postgres: what is asked of the server's certificate, and why a handshake was refused.

use std::convert::Infallible;
use std::error::Error as _;
use std::fmt::Debug;
use std::path::Path;
use std::pin::Pin;

use openssl::error::ErrorStack;
use openssl::ssl::{SslConnector, SslFiletype, SslMethod, SslVerifyMode};
use postgres_openssl::{MakeTlsConnector, TlsStream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};

use crate::config::{SslMode, Tls};
use crate::{Error, Result};

/// Makes its connector for a server that has TLS, and for no other: OpenSSL reads all of the system's authorities for one,
/// which takes longer than the rest of a connection.
#[derive(Clone)]
pub struct OnDemand {
    tls: Tls,
    made: Option<MakeTlsConnector>,
}

impl OnDemand {
    /// # Errors
    /// [`Error::Setting`] for files that cannot be used, whether the server has TLS or not.
    pub fn new(tls: &Tls) -> Result<OnDemand> {
        let has_files = tls.root.is_some() || tls.certificate.is_some() || tls.key.is_some();
        Ok(OnDemand { tls: tls.clone(), made: has_files.then(|| connector(tls)).transpose()? })
    }
}

impl<S> MakeTlsConnect<S> for OnDemand
where
    S: AsyncRead + AsyncWrite + Debug + Unpin + Send + Sync + 'static,
{
    type Stream = TlsStream<S>;
    type TlsConnect = Handshake;
    type Error = Infallible;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Handshake, Infallible> {
        Ok(Handshake { on_demand: self.clone(), domain: domain.to_owned() })
    }
}

/// A handshake that may come.
pub struct Handshake {
    on_demand: OnDemand,
    domain: String,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Handshake {
    fn connector(&self) -> Result<MakeTlsConnector> {
        self.on_demand.made.clone().map_or_else(|| connector(&self.on_demand.tls), Ok)
    }
}

impl<S> TlsConnect<S> for Handshake
where
    S: AsyncRead + AsyncWrite + Debug + Unpin + Send + Sync + 'static,
{
    type Stream = TlsStream<S>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<TlsStream<S>, Failure>> + Send>>;

    /// The server has said that it has TLS.
    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move {
            let connect = MakeTlsConnect::<S>::make_tls_connect(&mut self.connector()?, &self.domain)?;
            connect.connect(stream).await
        })
    }
}

fn connector(tls: &Tls) -> Result<MakeTlsConnector> {
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

/// Why one side refused the handshake, and what to do; `None` where TLS wasn't the matter, or it only broke off.
pub fn refusal(error: &tokio_postgres::Error) -> Option<(String, &'static str)> {
    let outer = error.source()?.to_string();
    // tokio-postgres's own words; it has no other sign of it.
    if outer == "server does not support TLS" {
        return Some((outer, "turn ssl on in postgresql.conf, or set sslmode=disable in [postgres] url"));
    }
    let refusal = super::chain(error).find_map(|cause| cause.downcast_ref::<openssl::ssl::Error>())?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{PostgresSettings, Secret};

    #[test]
    fn tls_files_that_cannot_be_used_are_settings_errors() {
        let error = |url: &str| match OnDemand::new(&PostgresSettings::parse(Secret::new(url)).unwrap().tls).err() {
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
}
