//! Apache Kafka in KRaft mode, one node, from the jars that `scripts/kafka-jars.sh` puts into the cache.

use std::fs::{self, OpenOptions};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use dinnerbell::demo::process;
use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::certs::Certs;
use super::places::fresh;
use super::run::{block_on, run, tail};

const VERSION: &str = "4.1.2";
/// A start takes 4 s on two idle cores; the limit is for a machine that compiles at the same time.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// What differs from broker to broker.
#[derive(Debug, Clone, Default)]
pub struct KafkaOptions {
    /// Listeners with TLS as well: SASL_SSL with SCRAM-SHA-512, and SSL that demands a client certificate.
    pub tls: bool,
    /// (name, password) of SCRAM-SHA-512 users.
    pub users: Vec<(String, String)>,
    /// So many further listeners, each of which tells its clients to go through a proxy, see [`Kafka::take_proxied`].
    pub proxied: usize,
    /// Further lines of server.properties.
    pub properties: Vec<String>,
}

/// A broker of our own. Dropped, it is killed and its directory goes.
#[derive(Debug)]
pub struct Kafka {
    home: PathBuf,
    plain: u16,
    controller: u16,
    sasl: u16,
    mutual: u16,
    proxied: Mutex<Vec<Proxied>>,
    child: Option<Child>,
}

/// A listener on `port` that the broker advertises under the address of `proxy`, which is bound already.
#[derive(Debug)]
struct Proxied {
    port: u16,
    proxy: TcpListener,
}

/// The broker that most tests share.
static SHARED: LazyLock<Kafka> =
    LazyLock::new(|| Kafka::start(KafkaOptions { proxied: 48, ..KafkaOptions::default() }));

/// The broker that most tests share, for those that need more of it than its address.
pub fn shared() -> &'static Kafka {
    &SHARED
}

/// The bootstrap servers of the shared broker, or those of KAFKA_BOOTSTRAP_SERVERS.
pub fn shared_bootstrap() -> String {
    match std::env::var("KAFKA_BOOTSTRAP_SERVERS") {
        Ok(servers) if !servers.is_empty() => servers,
        _ => SHARED.bootstrap(),
    }
}

impl Kafka {
    /// Formats a fresh log directory and starts a broker on it; ready when this returns.
    pub fn start(options: KafkaOptions) -> Kafka {
        let [plain, controller, sasl, mutual] = [(); 4].map(|()| process::free_port().expect("a free port"));
        let bound = |_| Proxied {
            port: process::free_port().expect("a free port"),
            proxy: TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"),
        };
        let proxied = Mutex::new((0..options.proxied).map(bound).collect());
        let mut kafka = Kafka { home: fresh("kafka"), plain, controller, sasl, mutual, proxied, child: None };
        kafka.format(&options);
        kafka.resume();
        kafka
    }

    /// The PLAINTEXT listener.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.plain)
    }

    /// The SASL_SSL listener: SCRAM-SHA-512, certificate by [`Kafka::ca_file`].
    pub fn sasl_bootstrap(&self) -> String {
        format!("localhost:{}", self.sasl)
    }

    /// The SSL listener that demands a client certificate by the same authority.
    pub fn mutual_bootstrap(&self) -> String {
        format!("localhost:{}", self.mutual)
    }

    /// One of [`KafkaOptions::proxied`], for one proxy: where it listens, and the broker's port behind it.
    pub fn take_proxied(&self) -> (TcpListener, u16) {
        let Proxied { port, proxy } = self.proxied.lock().unwrap().pop().expect("a proxied listener is left");
        (proxy, port)
    }

    pub fn ca_file(&self) -> PathBuf {
        Certs::shared().ca.clone()
    }

    pub fn create_topic(&self, name: &str, partitions: i32) {
        create_topic(&self.bootstrap(), name, partitions, &[]);
    }

    /// Starts the stopped broker again, on the same data and ports; ready when this returns.
    pub fn resume(&mut self) {
        assert!(self.child.is_none(), "the broker runs already");
        let log = || OpenOptions::new().create(true).append(true).open(self.log()).expect("the directory is ours");
        let mut command = java("kafka.Kafka");
        command.arg(self.home.join("server.properties")).current_dir(&self.home);
        command.stdin(Stdio::null()).stdout(log()).stderr(log());
        self.child = Some(process::spawn(command, libc::SIGKILL).expect("java starts"));
        self.wait_until_ready();
    }

    /// Stops the broker in order: it says goodbye to the controller and closes its logs.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        process::send(&child, libc::SIGTERM);
        if !process::wait(&mut child, Duration::from_secs(30)).expect("it is our child") {
            child.kill().and_then(|()| child.wait()).expect("it is our child");
        }
    }

    /// Ends the broker as a crash would.
    pub fn kill9(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        child.kill().and_then(|()| child.wait()).expect("it is our child");
    }

    /// Stops the process where it is, with its connections open; [`Kafka::thaw`] lets it go on.
    pub fn freeze(&self) {
        process::send(self.child.as_ref().expect("the broker runs"), libc::SIGSTOP);
    }

    pub fn thaw(&self) {
        process::send(self.child.as_ref().expect("the broker runs"), libc::SIGCONT);
    }

    /// What it prints.
    pub fn log(&self) -> PathBuf {
        self.home.join("kafka.log")
    }

    fn format(&self, options: &KafkaOptions) {
        let file = self.home.join("server.properties");
        fs::write(&file, self.properties(options)).expect("the directory is ours");
        let mut command = java("kafka.tools.StorageTool");
        command.args(["format", "-t", "ZGlubmVyYmVsbC10ZXN0cw", "-c"]).arg(&file);
        for (name, password) in &options.users {
            command.arg("--add-scram").arg(format!("SCRAM-SHA-512=[name={name},password={password}]"));
        }
        run(&mut command, "");
    }

    fn properties(&self, options: &KafkaOptions) -> String {
        let Kafka { plain, controller, sasl, mutual, .. } = self;
        let mut listeners = format!("PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller}");
        let mut advertised = format!("PLAINTEXT://127.0.0.1:{plain}");
        let mut protocols = String::from("PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT");
        let mut security = String::new();
        for Proxied { port, proxy } in &*self.proxied.lock().unwrap() {
            let address = proxy.local_addr().expect("it is bound");
            listeners += &format!(",PROXIED{port}://127.0.0.1:{port}");
            advertised += &format!(",PROXIED{port}://{address}");
            protocols += &format!(",PROXIED{port}:PLAINTEXT");
            // Few threads: each listener serves one job.
            security += &format!("listener.name.proxied{port}.num.network.threads=1\n");
        }
        if options.tls {
            listeners += &format!(",SCRAM://127.0.0.1:{sasl},MUTUAL://127.0.0.1:{mutual}");
            advertised += &format!(",SCRAM://localhost:{sasl},MUTUAL://localhost:{mutual}");
            protocols += ",SCRAM:SASL_SSL,MUTUAL:SSL";
            let Certs { ca, server_keystore, .. } = Certs::shared();
            security += &format!(
                "sasl.enabled.mechanisms=SCRAM-SHA-512\n\
                 listener.name.scram.scram-sha-512.sasl.jaas.config=\
                 org.apache.kafka.common.security.scram.ScramLoginModule required;\n\
                 listener.name.mutual.ssl.client.auth=required\n\
                 ssl.keystore.type=PEM\nssl.keystore.location={}\n\
                 ssl.truststore.type=PEM\nssl.truststore.location={}\n",
                server_keystore.display(),
                ca.display()
            );
        }
        // The rest keeps a small machine quick: few partitions of the internal topics, no waiting for more members; and
        // a broker that was killed may not register again before its last session has timed out (9 s by default).
        format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
             controller.listener.names=CONTROLLER\ninter.broker.listener.name=PLAINTEXT\n\
             listeners={listeners}\nadvertised.listeners={advertised}\nlistener.security.protocol.map={protocols}\n\
             log.dirs={}\nauto.create.topics.enable=false\n\
             offsets.topic.num.partitions=5\noffsets.topic.replication.factor=1\n\
             transaction.state.log.num.partitions=5\ntransaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\nshare.coordinator.state.topic.replication.factor=1\n\
             share.coordinator.state.topic.min.isr=1\n\
             group.initial.rebalance.delay.ms=0\nbroker.session.timeout.ms=3000\nbroker.heartbeat.interval.ms=500\nlog.segment.bytes=67108864\n{security}{}\n",
            self.home.join("logs").display(),
            options.properties.join("\n")
        )
    }

    /// Ready: metadata comes, and every partition has a leader.
    fn wait_until_ready(&mut self) {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.bootstrap()).set("reconnect.backoff.max.ms", "100");
        config.set("reconnect.backoff.ms", "50").set("log_level", "0");
        let client: BaseConsumer = config.create().expect("the settings are valid");
        let end = Instant::now() + READY_WITHIN;
        loop {
            let ended = self.child.as_mut().is_none_or(|child| child.try_wait().expect("our child").is_some());
            assert!(!ended && Instant::now() < end, "Kafka did not start:\n{}", tail(&self.log(), 40));
            if let Ok(metadata) = client.fetch_metadata(None, Duration::from_millis(500)) {
                let mut partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
                if !metadata.brokers().is_empty() && partitions.all(|partition| partition.leader() >= 0) {
                    return;
                }
            }
        }
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        self.kill9();
        let _ = fs::remove_dir_all(&self.home);
    }
}

/// Creates a topic; panics if it is there already. `config` is as in ("cleanup.policy", "compact").
pub fn create_topic(bootstrap: &str, name: &str, partitions: i32, config: &[(&str, &str)]) {
    let (admin, name) = (admin(bootstrap), name.to_owned());
    let config: Vec<(String, String)> =
        config.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    block_on(async move {
        let mut topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
        topic.config = config.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
        let created = admin.create_topics([&topic], &options).await.expect("the broker answers");
        created.into_iter().next().expect("one answer").unwrap_or_else(|error| panic!("creating {error:?}"));
    });
}

/// Raises the number of partitions to `partitions`.
pub fn add_partitions(bootstrap: &str, name: &str, partitions: usize) {
    let (admin, name) = (admin(bootstrap), name.to_owned());
    block_on(async move {
        let wanted = NewPartitions::new(&name, partitions);
        let done = admin.create_partitions([&wanted], &AdminOptions::new()).await.expect("the broker answers");
        done.into_iter().next().expect("one answer").unwrap_or_else(|error| panic!("adding partitions {error:?}"));
    });
}

/// Sets a topic's configuration; what is not named goes back to the default.
pub fn alter_topic(bootstrap: &str, name: &str, config: &[(&str, &str)]) {
    let (admin, name) = (admin(bootstrap), name.to_owned());
    let config: Vec<(String, String)> =
        config.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    block_on(async move {
        let mut wanted = AlterConfig::new(ResourceSpecifier::Topic(&name));
        wanted.entries = config.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let done = admin.alter_configs([&wanted], &AdminOptions::new()).await.expect("the broker answers");
        done.into_iter().next().expect("one answer").unwrap_or_else(|error| panic!("altering {error:?}"));
    });
}

fn admin(bootstrap: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", bootstrap).create().expect("the settings are valid")
}

/// For tests a small heap and the quick compiler only: the broker shares two cores with the job and the test. Benches, which
/// are optimised builds, have it as Kafka's own scripts start it.
fn java(class: &str) -> Command {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"));
    let libs = cache.join(format!("dinnerbell/kafka-{VERSION}/libs"));
    assert!(libs.is_dir(), "no Kafka in {}: run scripts/kafka-jars.sh (`make test` does)", libs.display());
    let mut command = Command::new("java");
    if cfg!(debug_assertions) {
        command.args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]);
    } else {
        command.args(["-server", "-Xmx1G", "-Xms1G", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20"]);
        command.args(["-XX:InitiatingHeapOccupancyPercent=35", "-XX:+ExplicitGCInvokesConcurrent"]);
    }
    command.arg("-cp").arg(libs.join("*"));
    command
        .args(["-Dorg.slf4j.simpleLogger.showDateTime=true", "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS"]);
    command.arg(class);
    command
}
