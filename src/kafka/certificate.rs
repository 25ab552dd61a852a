//! Why a broker's certificate is not believed: librdkafka tells only that it is not, so OpenSSL is asked again.

use std::collections::BTreeMap;
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};

/// For one question to a broker that has just answered.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is wrong with the certificate of the broker that `reason` names, as in `ssl://broker:9093/bootstrap: SSL handshake
/// failed: ...`, by the same authorities and the same rule for names as `user` gives librdkafka. `None` where TLS was not
/// the matter, nothing is found wrong, or the broker does not answer.
pub(super) fn problem(user: &BTreeMap<String, String>, reason: &str) -> Option<String> {
    let address = tls_address(reason)?;
    let (host, _) = address.rsplit_once(':')?;
    let mut builder = SslConnector::builder(SslMethod::tls_client()).ok()?;
    if let Some(file) = user.get("ssl.ca.location") {
        builder.set_cert_store(openssl::x509::store::X509StoreBuilder::new().ok()?.build());
        builder.set_ca_file(file).ok()?;
    }
    let found = Arc::new(Mutex::new(None));
    let finding = found.clone();
    builder.set_verify_callback(SslVerifyMode::PEER, move |good, chain| {
        if let (false, Ok(mut finding)) = (good, finding.lock()) {
            *finding = Some(chain.error().error_string());
        }
        good
    });
    let by_name = user.get("ssl.endpoint.identification.algorithm").is_none_or(|rule| rule != "none");
    let handshake = builder.build().configure().ok()?.verify_hostname(by_name);
    let stream = address.to_socket_addrs().ok()?.find_map(|to| TcpStream::connect_timeout(&to, PATIENCE).ok())?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    // Its outcome does not matter: the broker may want a certificate of ours.
    let _ = handshake.connect(host.trim_matches(['[', ']']), stream);
    let found = found.lock().ok()?.take();
    found.map(|problem| format!("the certificate of {address} is not believed: {problem}"))
}

/// `broker:9093` of a reason that is about TLS.
fn tls_address(reason: &str) -> Option<&str> {
    if !reason.contains("SSL handshake failed") {
        return None;
    }
    let (_, rest) = reason.split_once("ssl://")?;
    rest.split(['/', ' ']).next().map(|address| address.trim_end_matches(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broker_is_found_in_librdkafkas_words() {
        let words = "sasl_ssl://localhost:9093/bootstrap: SSL handshake failed: error:0A000086 (after 5ms)";
        assert_eq!(tls_address(words), Some("localhost:9093"));
        assert_eq!(tls_address("ssl://[::1]:9093/1: SSL handshake failed: x"), Some("[::1]:9093"));
        assert_eq!(tls_address("localhost:9093/bootstrap: Connect to ipv4#127.0.0.1:9093 failed"), None);
    }
}
