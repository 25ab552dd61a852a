//! Replicas that start for the first time at the same moment.

use dinnerbell::ledger::store;

use crate::support::{Stack, block_on, connect};

#[test]
fn the_ledger_is_created_once_however_many_create_it() {
    let stack = Stack::new("ledger_ddl");
    for round in 0..15 {
        stack.execute("DROP SCHEMA IF EXISTS dinnerbell CASCADE");
        let url = stack.url.clone();
        let outcomes = block_on(async move {
            let creations = (0..8).map(|_| {
                let url = url.clone();
                tokio::spawn(async move {
                    let client = connect(&url).await;
                    // A session that has created before has its catalog caches warm, and looks into them, not around.
                    client.batch_execute("CREATE SCHEMA IF NOT EXISTS public").await.unwrap();
                    store::create(&client, "dinnerbell").await
                })
            });
            futures::future::join_all(creations).await
        });
        for outcome in outcomes {
            outcome.unwrap().unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
        assert_eq!(stack.number("SELECT count(*) FROM dinnerbell.ledger"), 1);
    }
}
