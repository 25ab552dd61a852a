//! Encrypted and authenticated connections to both servers, and what a refusal says.

use toml::Value;

use crate::support::{
    Acl, Acls, Certs, Job, Kafka, KafkaOptions, Load, Message, PATIENCE, Postgres, Stack, create_topic, stop,
    wait_until,
};

const LOAD: Load = Load { restaurants: 2, subscribers: 3 };

fn secured() -> (Kafka, Postgres) {
    let users = vec![("bell".to_owned(), "a secret".to_owned())];
    (Kafka::start(KafkaOptions { tls: true, users, ..KafkaOptions::default() }), Postgres::start_tls())
}

fn use_scram(stack: &mut Stack, kafka: &Kafka, password: &str) {
    for (key, value) in [
        ("bootstrap.servers", kafka.sasl_bootstrap().as_str()),
        ("security.protocol", "SASL_SSL"),
        ("sasl.mechanism", "SCRAM-SHA-512"),
        ("sasl.username", "bell"),
        ("sasl.password", password),
        ("ssl.ca.location", &kafka.ca_file().display().to_string()),
    ] {
        stack.set("kafka", key, Value::from(value));
    }
}

fn use_postgres(stack: &mut Stack, host: &str, ca: &std::path::Path) {
    let (address, _) = stack.url.split_once('?').unwrap_or((&stack.url, ""));
    let address = address.replace("127.0.0.1", host);
    let url = format!("{address}?sslmode=verify-full&sslrootcert={}", ca.display());
    stack.set("postgres", "url", Value::from(url));
}

fn refused(stack: &Stack) -> String {
    let mut job = Job::spawn(stack, &["run"]);
    let status = job.wait(PATIENCE);
    assert_ne!(status.code(), Some(0));
    assert!(!job.stderr().contains("a secret"), "a password in the log: {}", job.stderr());
    job.stderr()
}

#[test]
fn both_servers_over_tls() {
    let (kafka, postgres) = secured();
    let Certs { ca, other_ca, client, client_key, .. } = Certs::shared();
    let mut stack = Stack::private("tls", &kafka, &postgres);
    LOAD.subscribe(&stack);
    use_scram(&mut stack, &kafka, "a secret");
    use_postgres(&mut stack, "localhost", ca);
    LOAD.produce(&stack, 0..10);
    let job = Job::spawn(&stack, &["run"]);
    wait_until("all rows", PATIENCE, || LOAD.is_in_postgres(&stack, 10));
    stop(job);

    // A client certificate instead of a password.
    for (key, value) in [
        ("bootstrap.servers", kafka.mutual_bootstrap()),
        ("security.protocol", "SSL".into()),
        ("ssl.certificate.location", client.display().to_string()),
        ("ssl.key.location", client_key.display().to_string()),
    ] {
        stack.set("kafka", key, Value::from(value));
    }
    LOAD.produce(&stack, 10..20);
    let job = Job::spawn(&stack, &["run"]);
    wait_until("all rows", PATIENCE, || LOAD.is_in_postgres(&stack, 20));
    stop(job);
    LOAD.verify(&stack, 20);

    // What must not work, each told as what it is.
    use_scram(&mut stack, &kafka, "a wrong one");
    let told = refused(&stack);
    assert!(told.contains("sasl.password"), "{told}");
    use_scram(&mut stack, &kafka, "a secret");
    stack.set("kafka", "ssl.ca.location", Value::from(other_ca.display().to_string()));
    let told = refused(&stack);
    assert!(told.contains("ssl.ca.location"), "{told}");
    use_scram(&mut stack, &kafka, "a secret");
    use_postgres(&mut stack, "localhost", other_ca);
    let told = refused(&stack);
    assert!(told.contains("sslrootcert"), "{told}");
}

/// What `docs/security.md` tells an administrator to grant lets the job do all it does, and nothing else is granted.
#[test]
fn the_documented_grants_are_enough() {
    let mut stack = Stack::new("grants");
    Job::run(&stack, &["init"]);
    let role = become_ringer(&mut stack);
    LOAD.subscribe(&stack);
    LOAD.produce(&stack, 0..10);
    // Too large for its topic: a letter in the ledger.
    stack.produce([Message::of("x".repeat(1_000_000)).header("a", &[b'y'; 40_000])]);
    let narrow = format!("{}.narrow", stack.group);
    create_topic(&stack.bootstrap, &narrow, 1, &[("max.message.bytes", "10000")]);
    stack.set("dead_letters", "topic", narrow);
    for batch in [10, 20] {
        let mut job = Job::spawn(&stack, &["run"]);
        wait_until("all rows", PATIENCE, || {
            assert!(job.is_running(), "{}", job.stderr());
            LOAD.is_in_postgres(&stack, batch)
        });
        stop(job);
        LOAD.produce(&stack, batch..batch + 10);
    }
    wait_until("the letter is kept", PATIENCE, || stack.number("SELECT count(*) FROM dinnerbell.letters") == 1);
    let (code, told) = said(&stack, &["check"]);
    assert_eq!(code, 0, "{told}");
    let (code, told) = said(&stack, &["repair"]);
    assert_eq!(code, 0, "{told}");

    // Everybody has it by default.
    stack.execute("REVOKE USAGE ON SCHEMA public FROM PUBLIC");
    // None of them is one too many, and `check` says of each that it is missing.
    let each = each_grant(include_str!("../../docs/security.md"));
    assert!(each.len() > 10, "{each:?}");
    for (right, kind, name) in each {
        stack.execute(&format!("REVOKE {right} ON {kind}{name} FROM {role}"));
        let (code, told) = said(&stack, &["check"]);
        let plain = name.rsplit('.').next().expect("a name");
        assert!(code != 0 && told.contains(plain), "without {right} ON {kind}{name}: {code}, {told}");
        stack.execute(&format!("GRANT {right} ON {kind}{name} TO {role}"));
    }
    repairs_with_the_documented_rights(&stack, &role);
}

/// A COPY that cannot even begin ends the job, which says why; another one goes on when it may.
#[test]
fn a_right_taken_away_from_a_running_job() {
    let mut stack = Stack::new("revoked");
    Job::run(&stack, &["init"]);
    let role = become_ringer(&mut stack);
    LOAD.subscribe(&stack);
    LOAD.produce(&stack, 0..10);
    let mut job = Job::spawn(&stack, &["run"]);
    LOAD.arrives(&stack, 10);
    let insert = "INSERT ON subscribers_feedback";
    stack.execute(&format!("REVOKE {insert} FROM {role}"));
    LOAD.produce(&stack, 10..20);
    assert_eq!(job.wait(PATIENCE).code(), Some(1), "{}", job.stderr());
    let told = job.stderr();
    assert!(told.contains("SQLSTATE 42501"), "{told}");

    stack.execute(&format!("GRANT {insert} TO {role}"));
    let job = Job::spawn(&stack, &["run"]);
    LOAD.arrives(&stack, 20);
    stop(job);
    LOAD.verify(&stack, 20);
}

/// A row of the ledger is gone: the job's role may look, and with what `docs/repair.md` names it may repair.
fn repairs_with_the_documented_rights(stack: &Stack, role: &str) {
    stack.execute("DELETE FROM dinnerbell.progress WHERE partition = 0");
    let (code, told) = said(stack, &["repair", "--adopt", "--execute"]);
    assert!(code == 1 && told.contains("SQLSTATE 42501"), "{told}");
    assert!(told.contains("grant the job's user the right named above"), "{told}");
    grant_repairs(stack, role);
    for args in [&["repair"][..], &["repair", "--adopt"]] {
        let (code, told) = said(stack, args);
        assert!(code == 1 && told.contains("registers the partitions again"), "{told}");
    }
    let (code, told) = said(stack, &["repair", "--adopt", "--execute"]);
    assert_eq!(code, 0, "{told}");
    LOAD.produce(stack, 30..40);
    let job = Job::spawn(stack, &["run"]);
    LOAD.arrives(stack, 40);
    stop(job);
    LOAD.verify(stack, 40);
}

/// What `docs/repair.md` tells an administrator to grant for repairs.
fn grant_repairs(stack: &Stack, role: &str) {
    let grants = sql_of(include_str!("../../docs/repair.md"));
    // It makes these tables itself here.
    let grants: Vec<&str> = grants.lines().filter(|line| !line.contains("where another role has made them")).collect();
    let database = format!("DATABASE \"{}\"", stack.group);
    stack.execute(&grants.join("\n").replace("DATABASE db", &database).replace("ringer", role));
}

fn said(stack: &Stack, args: &[&str]) -> (i32, String) {
    let output = Job::output(stack, args);
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    (output.status.code().expect("it exits"), format!("{out}{err}"))
}

/// The first SQL on a page.
fn sql_of(page: &str) -> &str {
    let (_, rest) = page.split_once("```sql\n").expect("the grants");
    rest.split_once("```").expect("their end").0
}

/// Right, kind of object ("SCHEMA ") and object of each grant on a page, one by one.
fn each_grant(page: &str) -> Vec<(String, String, String)> {
    let statements = sql_of(page).split(';').filter_map(|statement| statement.trim().strip_prefix("GRANT "));
    let mut each = Vec::new();
    for statement in statements {
        let (rights, rest) = statement.split_once(" ON ").expect("an object");
        let objects = rest.strip_suffix(" TO ringer").expect("a role");
        let (kind, names) = match objects.split_once(' ') {
            Some((kind @ ("SCHEMA" | "SEQUENCE"), names)) => (format!("{kind} "), names),
            _ => (String::new(), objects),
        };
        for right in rights.split(", ") {
            each.extend(names.split(", ").map(|name| (right.to_owned(), kind.clone(), name.to_owned())));
        }
    }
    each
}

/// The settings name a role with the documented grants from here on; its name.
fn become_ringer(stack: &mut Stack) -> String {
    let role = format!("ringer_{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
    let grants = sql_of(include_str!("../../docs/security.md")).replace("ringer", &role);
    stack.execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'x'; {grants}"));
    let (_, place) = stack.url.split_once('@').expect("the superuser's URL");
    stack.set("postgres", "url", format!("postgres://{role}:x@{place}"));
    role
}

/// What `docs/security.md` tells an administrator to allow the job's principal, for the names of this stack.
fn documented_acls(stack: &Stack) -> Vec<Acl> {
    let (_, table) =
        include_str!("../../docs/security.md").split_once("| resource | operations |\n|---|---|\n").unwrap();
    let mut acls = Vec::new();
    for row in table.lines().map_while(|line| line.strip_prefix("| ")) {
        let (resource, operations) = row.strip_suffix(" |").unwrap().split_once(" | ").expect("two columns");
        let kind = match resource.split(' ').next().unwrap() {
            "topic" | "topics" => "topic",
            "group" => "group",
            "transactional" => "transactional id",
            // Of other brokers than this one.
            "cluster" if operations.ends_with("on brokers before 2.8") => continue,
            _ => panic!("what does this row say? {row}"),
        };
        for name in resource.split('`').skip(1).step_by(2) {
            let name = match name {
                "campaigns" => stack.campaigns.clone(),
                "triggers" => stack.triggers.clone(),
                "campaigns.dead_letters" => stack.dead_letters.clone(),
                name => name.replace("dinnerbell", &stack.group),
            };
            let acl = |operation: &str| Acl {
                kind,
                name: name.clone(),
                prefix: resource.contains("with the prefix"),
                operation: operation.to_owned(),
            };
            acls.extend(operations.split(", ").map(acl));
        }
    }
    acls
}

/// On a broker with an authorizer the job does all it does with the documented ACLs, needs each of them, and says which one
/// is missing.
#[test]
fn the_documented_acls_are_enough_and_each_is_needed() {
    let properties =
        ["authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer", "super.users=User:ANONYMOUS"];
    let users = vec![("bell".to_owned(), "a secret".to_owned())];
    let properties = properties.map(str::to_owned).to_vec();
    let kafka = Kafka::start(KafkaOptions { tls: true, users, properties, ..KafkaOptions::default() });
    let postgres = Postgres::start(Default::default());
    let mut stack = Stack::private("acls", &kafka, &postgres);
    LOAD.subscribe(&stack);
    Job::run(&stack, &["init"]);
    let role = become_ringer(&mut stack);
    use_scram(&mut stack, &kafka, "a secret");
    let acls = Acls::of(&kafka.bootstrap(), "User:bell");
    let (code, told) = said(&stack, &["check"]);
    assert!(code == 1 && told.contains("may not see it"), "nothing is allowed: {told}");

    let documented = documented_acls(&stack);
    assert_eq!(documented.len(), 8, "{documented:?}");
    documented.iter().for_each(|acl| acls.grant(acl));
    let (code, told) = said(&stack, &["check"]);
    assert!(code == 0 && !told.contains("DESCRIBE_CONFIGS"), "{told}");
    stack.produce([Message::of("bad")]);
    for batch in [10, 20] {
        LOAD.produce(&stack, batch - 10..batch);
        let mut job = Job::spawn(&stack, &["run"]);
        LOAD.arrives(&stack, batch);
        // The next one fences this one's transactional ids.
        job.kill9();
    }
    let mut job = Job::spawn(&stack, &["run"]);
    wait_until("ready", PATIENCE, || {
        assert!(job.is_running(), "{}", job.stderr());
        job.is_ready()
    });
    stop(job);
    LOAD.verify(&stack, 20);
    assert_eq!(stack.read_dead_letters().len(), 1);
    let (code, told) = said(&stack, &["repair"]);
    assert_eq!(code, 0, "{told}");

    for acl in &documented {
        acls.revoke(acl);
        let (command, code, words) = match (acl.kind, acl.operation.as_str()) {
            ("topic", "DESCRIBE_CONFIGS") => ("check", 0, "does not tell this user max.message.bytes of "),
            ("topic", _) => ("check", 1, "grant DESCRIBE on it"),
            ("group", _) => ("run", 1, "grant the principal READ on the consumer group"),
            _ => ("run", 1, "on transactional ids that start with [source] group_id"),
        };
        let mut job = Job::spawn(&stack, &[command]);
        assert_eq!(job.wait(PATIENCE).code(), Some(code), "without {acl:?}: {}", job.stdout() + &job.stderr());
        let told = job.stdout() + &job.stderr();
        let names = acl.kind == "transactional id" || told.contains(&acl.name);
        assert!(told.contains(words) && names, "without {acl:?}: {told}");
        if acl.operation == "DESCRIBE_CONFIGS" {
            let job = Job::spawn(&stack, &["run"]);
            wait_until("the job says so", PATIENCE, || {
                job.stderr().contains(words) && job.stderr().contains(&acl.name)
            });
            wait_until("and works", PATIENCE, || job.is_ready());
            stop(job);
        }
        if ["READ", "WRITE"].contains(&acl.operation.as_str()) && acl.kind == "topic" {
            let describe = Acl { operation: "DESCRIBE".into(), ..acl.clone() };
            acls.grant(&describe);
            let (code, told) = said(&stack, &["check"]);
            let right = format!("this user has no right to {} topic {}", acl.operation, acl.name);
            assert!(code == 1 && told.contains(&right), "{told}");
            acls.revoke(&describe);
        }
        acls.grant(acl);
    }

    // `docs/repair.md`: READ on what `run` only writes to.
    grant_repairs(&stack, &role);
    stack.execute("DELETE FROM dinnerbell.progress WHERE partition = 0");
    let (code, told) = said(&stack, &["repair", "--adopt"]);
    assert!(code == 1 && told.contains("grant the principal READ"), "{told}");
    for name in [&stack.triggers, &stack.dead_letters] {
        acls.grant(&Acl { kind: "topic", name: name.clone(), prefix: false, operation: "READ".into() });
    }
    let (code, told) = said(&stack, &["repair", "--adopt", "--execute"]);
    assert_eq!(code, 0, "{told}");
}
