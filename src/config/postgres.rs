//! `[postgres] url` in both of libpq's forms, a URL or `key=value` pairs, with libpq's meaning of the `ssl*` options, most
//! of which tokio-postgres does not know.
//!
//! The text holds a password, possibly one that breaks the syntax. So no complaint here quotes any of it, but for an
//! option that is nearly one of the known names.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::Secret;
use super::document::nearest;

/// Where Postgres is, and how to get in.
#[derive(Debug, Clone)]
pub struct PostgresSettings {
    /// `[postgres] url` as given, default `postgres://localhost/postgres`.
    pub url: Secret,
    /// All of it that isn't about TLS. (Its own `Debug` leaves the password out.)
    pub client: tokio_postgres::Config,
    pub tls: Tls,
}

/// The `ssl*` options.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    pub mode: SslMode,
    /// PEM file of the authorities to trust. Without one, `verify-ca` and `verify-full` trust the system's, and the
    /// other modes do not look at the server's certificate.
    pub root: Option<PathBuf>,
    /// PEM file of the client's certificate chain, for servers that want one.
    pub certificate: Option<PathBuf>,
    /// PEM file of the key that belongs to it.
    pub key: Option<PathBuf>,
}

/// What libpq calls `sslmode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// Without TLS; with it, if the server wants that.
    Allow,
    /// With TLS; without it, if the server has none. The default, as libpq's.
    #[default]
    Prefer,
    /// TLS or nothing. The certificate is looked at only where `sslrootcert` is set.
    Require,
    /// TLS, and a certificate by an authority that is trusted.
    VerifyCa,
    /// The same, and made out to the host that was asked for.
    VerifyFull,
}

/// What tokio-postgres itself understands.
const CLIENT_OPTIONS: &[&str] = &[
    "user",
    "password",
    "dbname",
    "options",
    "application_name",
    "host",
    "hostaddr",
    "port",
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "target_session_attrs",
    "channel_binding",
    "load_balance_hosts",
];
const TLS_OPTIONS: &[&str] = &["sslmode", "sslrootcert", "sslcert", "sslkey"];

/// Long enough for a lost SYN or two (sent again after 1 s and 3 s), short enough to try the next host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long sent data may stay unacknowledged. A server that vanished in mid-commit is noticed well before Kafka's
/// transaction times out.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);
/// The same for a connection that waits and sends nothing: 30 s of silence, then three probes 10 s apart.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

type Options = BTreeMap<String, String>;

impl PostgresSettings {
    /// Reads either form. The error says what is wrong without quoting values.
    pub fn parse(url: Secret) -> Result<Self, String> {
        let text = url.reveal().trim();
        let mut options = match text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://")) {
            Some(rest) => from_url(rest)?,
            None => from_pairs(text)?,
        };
        check_names(&options)?;
        let tls = tls(&mut options)?;
        let client = client(&options)?;
        Ok(Self { url, client, tls })
    }

    /// `postgres://user@host:port/database`, for logs and errors: without password and options.
    pub fn display(&self) -> String {
        use tokio_postgres::config::Host;
        let hosts = self.client.get_hosts().iter().map(|host| match host {
            Host::Tcp(name) if name.contains(':') => format!("[{name}]"),
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        });
        let mut hosts: Vec<String> = hosts.collect();
        if hosts.is_empty() {
            hosts = self.client.get_hostaddrs().iter().map(ToString::to_string).collect();
        }
        let ports = self.client.get_ports();
        let address = |(at, host): (usize, String)| {
            format!("{host}:{}", ports.get(at).or(ports.first()).copied().unwrap_or(5432))
        };
        let addresses: Vec<String> = hosts.into_iter().enumerate().map(address).collect();
        let user = self.client.get_user().map_or(String::new(), |user| format!("{user}@"));
        let database = self.client.get_dbname().map_or(String::new(), |name| format!("/{name}"));
        format!("postgres://{user}{}{database}", addresses.join(","))
    }
}

fn check_names(options: &Options) -> Result<(), String> {
    let known = || CLIENT_OPTIONS.iter().chain(TLS_OPTIONS).copied();
    match options.keys().find(|name| !known().any(|known| known == name.as_str())) {
        None => Ok(()),
        Some(name) => Err(match nearest(name, known()) {
            Some(near) => format!("an option that is unknown; did you mean {near}?"),
            None => "an option that is unknown; a value with spaces in it needs single quotes".into(),
        }),
    }
}

fn tls(options: &mut Options) -> Result<Tls, String> {
    let mut path = |name: &str| options.remove(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let (root, certificate, key) = (path("sslrootcert"), path("sslcert"), path("sslkey"));
    // libpq's word for the system's authorities. They vouch for half the internet, so only with the host's name.
    let system = root.as_ref().is_some_and(|path| path.as_os_str() == "system");
    let mode = match options.remove("sslmode").as_deref() {
        None if system => SslMode::VerifyFull,
        None => SslMode::default(),
        Some("disable") => SslMode::Disable,
        Some("allow") => SslMode::Allow,
        Some("prefer") => SslMode::Prefer,
        Some("require") => SslMode::Require,
        Some("verify-ca") => SslMode::VerifyCa,
        Some("verify-full") => SslMode::VerifyFull,
        Some(_) => return Err("sslmode must be disable, allow, prefer, require, verify-ca or verify-full".into()),
    };
    if certificate.is_some() != key.is_some() {
        return Err("sslcert and sslkey go together".into());
    }
    if system && mode != SslMode::VerifyFull {
        return Err("sslrootcert=system goes with sslmode=verify-full".into());
    }
    Ok(Tls { mode, root: root.filter(|_| !system), certificate, key })
}

/// tokio-postgres reads pairs, so it gets pairs; its complaints name options only, as these are well-formed.
fn client(options: &Options) -> Result<tokio_postgres::Config, String> {
    let quoted = |value: &str| value.replace('\\', r"\\").replace('\'', r"\'");
    let pairs: Vec<String> =
        options.iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| format!("{k}='{}'", quoted(v))).collect();
    let mut client: tokio_postgres::Config = pairs.join(" ").parse().map_err(|error: tokio_postgres::Error| {
        std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
    })?;
    if client.get_hosts().is_empty() && client.get_hostaddrs().is_empty() {
        client.host("localhost");
    }
    let hosts = client.get_hosts().len().max(client.get_hostaddrs().len());
    if !client.get_hostaddrs().is_empty() && !client.get_hosts().is_empty() && client.get_hostaddrs().len() != hosts {
        return Err("host and hostaddr must have the same number of entries".into());
    }
    if client.get_ports().len() > 1 && client.get_ports().len() != hosts {
        return Err("port must have one entry, or one for each host".into());
    }
    if !options.contains_key("connect_timeout") {
        client.connect_timeout(CONNECT_TIMEOUT);
    }
    if !options.contains_key("tcp_user_timeout") {
        client.tcp_user_timeout(TCP_USER_TIMEOUT);
    }
    if !options.contains_key("keepalives_idle") {
        client.keepalives_idle(KEEPALIVE_IDLE);
    }
    if !options.contains_key("keepalives_interval") {
        client.keepalives_interval(KEEPALIVE_INTERVAL);
    }
    if !options.contains_key("keepalives_retries") {
        client.keepalives_retries(3);
    }
    Ok(client)
}

/// `[user[:password]@][host[:port],...][/database][?option=value&...]`
fn from_url(rest: &str) -> Result<Options, String> {
    const ENCODE: &str = "percent-encode `@`, `:`, `/`, `?`, `#` and `%` in user and password (`@` is %40)";
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = place.split_once('/').unwrap_or((place, ""));
    if authority.matches('@').count() > 1 || database.contains('@') {
        return Err(format!("an `@` too many; {ENCODE}"));
    }
    let mut options = Options::new();
    let hosts = match authority.split_once('@') {
        None => authority,
        Some((credentials, hosts)) => {
            let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
            options.insert("user".into(), decoded(user)?);
            options.insert("password".into(), decoded(password)?);
            hosts
        }
    };
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',').filter(|_| !hosts.is_empty()) {
        let (name, port) = match host.strip_prefix('[') {
            Some(rest) => rest.split_once(']').ok_or("a `[` without its `]` in the host")?,
            None => host.find(':').map_or((host, ""), |at| host.split_at(at)),
        };
        let port = port.strip_prefix(':').unwrap_or(port);
        if !port.chars().all(|c| c.is_ascii_digit()) {
            return Err(format!("a port that is no number; {ENCODE}"));
        }
        names.push(decoded(name)?);
        ports.push(port.to_string());
    }
    if !names.is_empty() {
        options.insert("host".into(), names.join(","));
        options.insert("port".into(), if ports.len() == 1 { ports.remove(0) } else { ports.join(",") });
    }
    options.insert("dbname".into(), decoded(database)?);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or("an option without `=`")?;
        options.insert(decoded(name)?, decoded(value)?);
    }
    Ok(options)
}

fn decoded(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|digit| (digit as char).to_digit(16));
                match (digit(), digit()) {
                    (Some(high), Some(low)) => (high * 16 + low) as u8,
                    _ => return Err("a `%` without two hexadecimal digits; a plain `%` is %25".into()),
                }
            }
            byte => byte,
        });
    }
    match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err("percent-encoded bytes that are no UTF-8 text".into()),
    }
}

/// `host=localhost user=ann password='with space'`; `\` takes the next character as it is.
fn from_pairs(text: &str) -> Result<Options, String> {
    let mut options = Options::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or("neither a postgres:// URL nor key=value pairs")?;
        let name = name.trim_end();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err("an option without `=`; a value with spaces in it needs single quotes".into());
        }
        let (value, after) = pair_value(after.trim_start())?;
        options.insert(name.to_string(), value);
        rest = after.trim_start();
    }
    if options.is_empty() { Err("must not be empty".into()) } else { Ok(options) }
}

fn pair_value(text: &str) -> Result<(String, &str), String> {
    let quoted = text.starts_with('\'');
    let text = text.strip_prefix('\'').unwrap_or(text);
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            c if !quoted && c.is_whitespace() => return Ok((value, &text[at..])),
            c => value.push(c),
        }
    }
    if quoted { Err("a single quote that never closes".into()) } else { Ok((value, "")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> PostgresSettings {
        PostgresSettings::parse(Secret::new(text)).unwrap_or_else(|problem| panic!("{text}: {problem}"))
    }

    #[test]
    fn both_forms_mean_the_same() {
        let url = parse("postgres://ann:p%40ss%20w'\\@db.example:6432/shop?sslmode=verify-full&sslrootcert=/ca.pem");
        let pairs = parse(
            r"user=ann password='p@ss w\'\\' host = db.example port=6432 dbname=shop sslmode=verify-full sslrootcert=/ca.pem",
        );
        assert_eq!(url.client, pairs.client);
        assert_eq!(url.tls, pairs.tls);
        assert_eq!(url.client.get_password(), Some(b"p@ss w'\\".as_slice()));
        assert_eq!(url.tls, Tls { mode: SslMode::VerifyFull, root: Some("/ca.pem".into()), ..Tls::default() });
        assert_eq!(url.display(), "postgres://ann@db.example:6432/shop");
    }

    #[test]
    fn hosts_ports_and_sockets_stay() {
        for (text, shown) in [
            ("postgres://localhost/postgres", "postgres://localhost:5432/postgres"),
            ("postgresql://", "postgres://localhost:5432"),
            ("postgres://u@a:1,b,c:3/d", "postgres://u@a:1,b:5432,c:3/d"),
            ("postgres://u@[::1]:5433/d", "postgres://u@[::1]:5433/d"),
            ("postgres://%2Frun%2Fpostgresql/d", "postgres:///run/postgresql:5432/d"),
            ("postgres:///d?host=/run/postgresql&user=x", "postgres://x@/run/postgresql:5432/d"),
            ("host=a,b port=7 user=x", "postgres://x@a:7,b:7"),
            ("hostaddr=127.0.0.1 dbname=d", "postgres://127.0.0.1:5432/d"),
        ] {
            assert_eq!(parse(text).display(), shown, "{text}");
        }
    }

    #[test]
    fn timeouts_have_defaults_and_can_be_set() {
        let settings = parse("postgres://h/d");
        assert_eq!(settings.client.get_connect_timeout(), Some(&CONNECT_TIMEOUT));
        assert_eq!(settings.client.get_tcp_user_timeout(), Some(&TCP_USER_TIMEOUT));
        let settings = parse("postgres://h/d?connect_timeout=3&tcp_user_timeout=5");
        assert_eq!(settings.client.get_connect_timeout(), Some(&Duration::from_secs(3)));
        assert_eq!(settings.client.get_tcp_user_timeout(), Some(&Duration::from_secs(5)));
    }

    #[test]
    fn modes() {
        for (text, mode) in [
            ("", SslMode::Prefer),
            ("sslmode=disable", SslMode::Disable),
            ("sslmode=allow", SslMode::Allow),
            ("sslmode=prefer", SslMode::Prefer),
            ("sslmode=require", SslMode::Require),
            ("sslmode=verify-ca", SslMode::VerifyCa),
            ("sslmode=verify-full", SslMode::VerifyFull),
        ] {
            assert_eq!(parse(&format!("host=h {text}")).tls.mode, mode);
            assert_eq!(parse(&format!("postgres://h/d?{text}")).tls.mode, mode);
        }
        assert!(PostgresSettings::parse(Secret::new("host=h sslmode=require sslrootcert=system")).is_err());
        let tls = parse("host=h sslrootcert=system sslcert=/c.pem sslkey='/k e y.pem'").tls;
        assert_eq!(tls.mode, SslMode::VerifyFull);
        assert_eq!((tls.root, tls.certificate), (None, Some("/c.pem".into())));
        assert_eq!(tls.key, Some("/k e y.pem".into()));
    }

    #[test]
    fn no_complaint_and_no_debug_shows_the_password() {
        for text in [
            "postgres://u:hunter2@x@host/d",
            "postgres://u:12/hunter2@host/d",
            "postgres://u:hunter2/x@host/d",
            "postgres://u:hunter2%zz@host/d",
            "postgres://u:hunter2@host:port/d",
            "postgres://u:hunter2@h1,h2/d?port=1,2,3",
            "postgres://u:hunter2@host/d?sslmode=on",
            "postgres://u:hunter2@host/d?sslmod=require",
            "postgres://u:hunter2@host/d?sslcert=/x",
            "postgres://u:hunter2@host/d?port=70000",
            "postgres://u:hunter2@host/d?what",
            "host=h password=x hunter2",
            "host=h password=x hunter2=1",
            "host=h password='hunter2",
            "hunter2",
            "",
        ] {
            let problem = PostgresSettings::parse(Secret::new(text)).expect_err(text);
            assert!(!problem.contains("hunter2") && !problem.is_empty(), "{text}: {problem}");
        }
        let settings = parse("postgres://u:hunter2@host/d");
        assert!(!format!("{settings:?} {}", settings.display()).contains("hunter2"));
    }
}
