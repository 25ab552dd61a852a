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
    pub client: PathBuf,
    pub client_key: PathBuf,
    /// An authority that signed none of these.
    pub other_ca: PathBuf,
    /// Key and certificate in one file, as Kafka's PEM keystore wants them.
    pub server_keystore: PathBuf,
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
    signed(&directory, "server", "localhost", "subjectAltName=DNS:localhost,IP:127.0.0.1");
    signed(&directory, "client", "dinnerbell", "extendedKeyUsage=clientAuth");
    let read = |name: &str| fs::read_to_string(file(name)).expect("openssl has just written it");
    fs::write(file("server.keystore.pem"), read("server.key") + &read("server.crt") + &read("ca.crt"))
        .expect("the directory is ours");
    Certs {
        ca: file("ca.crt"),
        server: file("server.crt"),
        server_key: file("server.key"),
        client: file("client.crt"),
        client_key: file("client.key"),
        other_ca: file("other-ca.crt"),
        server_keystore: file("server.keystore.pem"),
    }
}

fn authority(directory: &Path, name: &str) {
    openssl(
        directory,
        &format!("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -keyout {name}.key -out {name}.crt"),
    );
}

fn signed(directory: &Path, name: &str, common_name: &str, extension: &str) {
    openssl(
        directory,
        &format!("req -newkey rsa:2048 -nodes -subj /CN={common_name} -keyout {name}.key -out {name}.csr"),
    );
    fs::write(directory.join(format!("{name}.ext")), extension).expect("the directory is ours");
    openssl(
        directory,
        &format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile {name}.ext -out {name}.crt"
        ),
    );
}

fn openssl(directory: &Path, arguments: &str) {
    run(Command::new("openssl").current_dir(directory).args(arguments.split(' ')), "");
}
