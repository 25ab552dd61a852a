//! Recovery from what the ledger cannot explain.
//!
//! A job halts where guessing could lose or repeat output (see [`crate::ledger::decide`]). Here is the way on from each of
//! those states. Promises: without `execute` nothing is changed; what is done is told before, in numbers; a repair is done
//! only while no other program can run the job (the group has no other member, the ledger's epochs are raised, the last
//! owners' transactional ids fenced); the ledger is changed in one transaction, and what was there is kept in its table
//! `repairs`. Whether a batch is sent is decided by what is in the output topic and never twice: Kafka comes first, and
//! after a crash the rows that are there speak for themselves.
//!
//! [`inspect`] looks, [`findings`] says what is wrong, [`change`] and [`adopt`] work a repair out ([`evidence`] and [`compare`] with the
//! output topic beside the sink table), [`act`] carries it out.

mod act;
mod adopt;
mod change;
mod compare;
mod evidence;
mod findings;
mod inspect;
mod mission;
mod topic;

use crate::config::{Config, quote_identifier};
use crate::error::{Error, Result};
use crate::ledger::ailment::Verb;
use crate::ledger::decide;
use crate::ledger::store::{self, Ledger, PROTOCOL};
use change::Case;
use findings::{Finding, findings};
use inspect::{Books, Picture, Site, inspect};

/// What was asked for.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// Empty: all that is needed, as a dry run.
    pub verbs: Vec<Verb>,
    pub execute: bool,
    /// The command line up to here, for the next command.
    pub command: String,
}

/// Where the words go: status, place, text.
pub type Say<'a> = &'a mut (dyn FnMut(&str, &str, &str) + Send);

/// Looks, tells, and repairs where that was asked for. True where nothing is left to repair.
///
/// # Errors
/// What the servers say. A repair that cannot be done is told, and counts as something left.
pub async fn run(config: Config, asked: &Asked, say: Say<'_>) -> Result<bool> {
    let site = Site::connect(config).await?;
    let (picture, ledger) = inspect(&site).await?;
    let (wrong, fine) = findings(&picture);
    for fine in &fine {
        say("ok", &fine.place, &fine.state);
    }
    for finding in &wrong {
        say("WRONG", &finding.place, &format!("{}\n-> {}", finding.what, finding.remedy));
    }
    if !picture.members.is_empty() {
        say("note", "group", &format!("it has active members: {}", picture.members.join(", ")));
    }
    let needed: Vec<Verb> = Verb::ALL.into_iter().filter(|verb| needs(&wrong, *verb)).collect();
    if asked.execute {
        return execute(&site, picture, ledger, asked, say).await;
    }
    for verb in &needed {
        if asked.verbs.is_empty() || asked.verbs.contains(verb) {
            let case =
                Case { site: &site, picture: &picture, ledger: ledger.as_ref(), findings: &wrong, verbs: &asked.verbs };
            match case.work_out(*verb).await {
                Ok(change) => change.says.iter().for_each(|line| say("would", verb.flag(), line)),
                Err(error) => tell_refusal(say, *verb, error)?,
            }
        }
    }
    if let Some(verb) = needed.first() {
        let members = if picture.members.is_empty() { "" } else { " (stop the job first)" };
        say("next", "", &format!("{} {} --execute{members}", asked.command, verb.flag()));
    }
    Ok(wrong.is_empty())
}

fn needs(wrong: &[Finding], verb: Verb) -> bool {
    wrong.iter().any(|finding| finding.verb == Some(verb))
}

/// A refusal is told; anything else ends the command.
fn tell_refusal(say: Say<'_>, verb: Verb, error: Error) -> Result<()> {
    match error {
        Error::Halt { what, remedy } => say("FAIL", verb.flag(), &format!("{what}\n-> {remedy}")),
        other => return Err(other),
    }
    Ok(())
}

async fn execute(site: &Site, picture: Picture, ledger: Option<Ledger>, asked: &Asked, say: Say<'_>) -> Result<bool> {
    let (wrong, _) = findings(&picture);
    if !asked.verbs.iter().any(|verb| needs(&wrong, *verb)) {
        say("note", "", "nothing of what is wrong is for these repairs: nothing was changed");
        return Ok(wrong.is_empty());
    }
    // Nothing is touched for a repair that is refused; unless the refusal may come from an open transaction of the last
    // owner, which is ended below.
    let case = Case { site, picture: &picture, ledger: ledger.as_ref(), findings: &wrong, verbs: &asked.verbs };
    if let Some(verb) = Verb::ALL.into_iter().find(|verb| asked.verbs.contains(verb) && needs(&wrong, *verb))
        && let Err(error) = case.work_out(verb).await
        && (ledger.is_none() || topic::open_transaction(site, &site.config.sink_kafka.topic).await?.is_none())
    {
        tell_refusal(say, verb, error)?;
        return Ok(false);
    }
    if let Err(error) = act::wait_for_empty_group(site).await {
        let Error::Halt { what, remedy } = error else { return Err(error) };
        say("FAIL", "group", &format!("{what}\n-> {remedy}"));
        return Ok(false);
    }
    let ledger = prepare(site, &picture).await?;
    if picture.books == Books::WithoutIdentity {
        say("done", Verb::Adopt.flag(), &format!("the ledger has its identity again: {}", ledger.job));
    }
    let mut tenancy = act::take_over(site, &picture, ledger).await?;
    let done = repair_all(site, &mut tenancy, asked, say).await;
    tenancy.leave().await;
    done?;
    let (picture, _) = inspect(site).await?;
    let (left, _) = findings(&picture);
    for finding in &left {
        say("WRONG", &finding.place, &format!("{}\n-> {}", finding.what, finding.remedy));
    }
    let next = Verb::ALL.into_iter().find(|verb| needs(&left, *verb) && !asked.verbs.contains(verb));
    if let Some(verb) = next {
        say("next", "", &format!("{} {} --execute", asked.command, verb.flag()));
    }
    Ok(left.is_empty())
}

/// The ledger with its table of repairs, made where it is lost.
async fn prepare(site: &Site, picture: &Picture) -> Result<Ledger> {
    let schema = &site.config.ledger_schema;
    store::create(&site.postgres, schema).await?;
    let quoted = quote_identifier(schema);
    let job = if picture.books == Books::WithoutIdentity { identity(site, &quoted, picture).await? } else { None };
    Ledger::prepare_repair(&site.postgres, &quoted, job.as_deref(), PROTOCOL).await?;
    inspect::open(site, picture).await
}

/// Whose ledger it was, by what its rows and Kafka's offsets say.
async fn identity(site: &Site, schema: &str, picture: &Picture) -> Result<Option<String>> {
    let doing = Error::postgres("reading the ledger's progress");
    let sql = format!("SELECT metadata FROM {schema}.progress ORDER BY updated_at DESC LIMIT 1");
    let row = site.postgres.query_opt(&sql, &[]).await.map_err(doing)?;
    let by_row = row.and_then(|row| decide::writer(row.get(0)).map(str::to_owned));
    let by_kafka = || picture.offsets.values().find_map(|kafka| decide::writer(&kafka.metadata)).map(str::to_owned);
    Ok(by_row.or_else(by_kafka))
}

/// Each verb on a fresh picture: one repair may show, or settle, what another is for.
async fn repair_all(site: &Site, tenancy: &mut act::Tenancy, asked: &Asked, say: Say<'_>) -> Result<()> {
    for verb in Verb::ALL {
        let (picture, _) = inspect(site).await?;
        let (wrong, _) = findings(&picture);
        if !asked.verbs.contains(&verb) || !needs(&wrong, verb) {
            continue;
        }
        let case =
            Case { site, picture: &picture, ledger: Some(tenancy.ledger()), findings: &wrong, verbs: &asked.verbs };
        let change = match case.work_out(verb).await {
            Ok(change) => change,
            Err(error) => {
                tell_refusal(say, verb, error)?;
                continue;
            }
        };
        let lines = change.says.clone();
        match tenancy.carry_out(site, &picture, change).await {
            Ok(()) => lines.iter().for_each(|line| say("done", verb.flag(), line)),
            Err(error) => tell_refusal(say, verb, error)?,
        }
    }
    Ok(())
}
