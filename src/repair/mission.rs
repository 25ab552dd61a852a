//! The user's SQL, compiled over empty lookup tables: for its columns and their types, not for its rows.

use super::inspect::Site;
use crate::error::Result;
use crate::job::Engine;
use crate::job::setup;
use crate::lookup::{LookupSet, describe};
use crate::sink::table::TableShape;

pub struct Mission {
    pub shape: TableShape,
    pub engine: Engine,
    pub hash: String,
}

impl Mission {
    /// # Errors
    /// As for a start of the job.
    pub async fn load(site: &Site) -> Result<Mission> {
        let config = &site.config;
        let mission = setup::Mission::load(config)?;
        let shape = setup::describe_table(config, &site.postgres).await?;
        let mut tables = Vec::new();
        for query in &mission.files.lookups {
            tables.push(describe(&site.postgres, query).await?);
        }
        let topics = setup::inspect_topics(config, setup::brokers(config).await?).await?;
        let engine = setup::compile(config, &mission, &LookupSet::new(tables), &shape, &topics).await?;
        Ok(Mission { shape, engine, hash: mission.files.hash() })
    }
}
