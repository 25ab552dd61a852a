//! A certificate authority for one test process, made by the openssl command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use super::places::fresh;
use super::run::run;

/// PEM files. The server's certificate names localhost and 127.0.0.1.
#[derive(Debug, Clone)]
pub struct Certs {
    pub ca: PathBuf,
    pub server: PathBuf,
    pub server_key: PathBuf,
    /// By the same authority, for another host.
    pub elsewhere: Signed,
    /// By the same authority, for the right host, until yesterday.
    pub expired: Signed,
    pub client: PathBuf,
    pub client_key: PathBuf,
    /// An authority that signed none of these.
    pub other_ca: PathBuf,
    /// Key and certificate in one file, as Kafka's PEM keystore wants them.
    pub server_keystore: PathBuf,
}

/// A certificate with its key, apart and in one file, as Kafka's PEM keystore wants them.
#[derive(Debug, Clone)]
pub struct Signed {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub keystore: PathBuf,
}

static SHARED: LazyLock<Certs> = LazyLock::new(make);

impl Certs {
    /// The same for every server of this process.
    pub fn shared() -> &'static Certs {
        &SHARED
    }
}

fn make() -> Certs {
    let directory = fresh("certs");
    let file = |name: &str| directory.join(name);
    authority(&directory, "ca");
    authority(&directory, "other-ca");
    let here = "subjectAltName=DNS:localhost,IP:127.0.0.1";
    let server = signed(&directory, "server", "localhost", here, 2);
    let elsewhere = signed(&directory, "elsewhere", "elsewhere.example", "subjectAltName=DNS:elsewhere.example", 2);
    let expired = signed(&directory, "expired", "localhost", here, -1);
    let client = signed(&directory, "client", "dinnerbell", "extendedKeyUsage=clientAuth", 2);
    Certs {
        ca: file("ca.crt"),
        server: server.certificate,
        server_key: server.key,
        elsewhere,
        expired,
        client: client.certificate,
        client_key: client.key,
        other_ca: file("other-ca.crt"),
        server_keystore: server.keystore,
    }
}

fn authority(directory: &Path, name: &str) {
    openssl(
        directory,
        &format!("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -keyout {name}.key -out {name}.crt"),
    );
}

fn signed(directory: &Path, name: &str, common_name: &str, extension: &str, days: i32) -> Signed {
    openssl(
        directory,
        &format!("req -newkey rsa:2048 -nodes -subj /CN={common_name} -keyout {name}.key -out {name}.csr"),
    );
    fs::write(directory.join(format!("{name}.ext")), extension).expect("the directory is ours");
    openssl(
        directory,
        &format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days {days} -extfile {name}.ext -out {name}.crt"
        ),
    );
    let file = |ending: &str| directory.join(format!("{name}.{ending}"));
    let keystore = file("keystore.pem");
    let parts = [file("key"), file("crt"), directory.join("ca.crt")];
    let parts = parts.map(|part| fs::read_to_string(part).expect("openssl has just written it"));
    fs::write(&keystore, parts.concat()).expect("the directory is ours");
    Signed { certificate: file("crt"), key: file("key"), keystore }
}

fn openssl(directory: &Path, arguments: &str) {
    run(Command::new("openssl").current_dir(directory).args(arguments.split(' ')), "");
}
