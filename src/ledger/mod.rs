//! The delivery protocol: Postgres is the record, Kafka follows.
//!
//! **Promise.** Every input message takes effect exactly once in Postgres and exactly once for `read_committed` readers of
//! the output topic; the two never differ; Postgres is visible a moment earlier. It holds while Postgres keeps what it has
//! committed (synchronous standbys where there is failover) and Kafka keeps its acknowledged records. What the ledger
//! cannot explain halts, by name and with the way out; nothing is skipped, nothing guessed.
//!
//! # Things
//!
//! - A *commit* is the micro-batches of one poll cycle of one lane: one Postgres transaction (rows by COPY, stored parts,
//!   progress), then one Kafka transaction (rows as JSON, dead letters, the group's offsets).
//! - A *stored part* is one micro-batch's output as it went to both sinks. It lives from the Postgres commit until the Kafka
//!   commit was seen, and is all that a re-emission needs: settings, SQL, clock and lookup tables have no say in it.
//! - *Progress* is one row per partition: `next_offset`, `last_output_to`, the epoch of the present claim, the metadata string
//!   that stands beside `next_offset` in Kafka, and the transactional ids of whoever may still write for it.
//!
//! # A commit
//!
//! | step | what has happened | a crash here leads to |
//! |---|---|---|
//! | S0 | a cycle is polled, with the membership of that moment | nothing is written: read again |
//! | S1 | decoded and transformed up to the first piece of output | the same |
//! | S2 | both transactions are open | both are aborted: Postgres by the lost connection, Kafka by the next claim's `init_transactions` |
//! | S3 | first row produced and copied | the same |
//! | S4 | a COPY has ended, the chunks of its rows are stored | the same |
//! | S5 | all records acknowledged, all rows copied, constraints checked, parts stored; before `advance` | the same |
//! | S6 | `advance` and COMMIT sent, no reply | either nothing happened (as S5) or everything (as S7); the next claim reads which, behind the row locks |
//! | S7 | Postgres has committed | rows visible in Postgres, Kafka's transaction aborted by fencing; the stored part is sent again, byte for byte |
//! | S8 | offsets sent into the Kafka transaction | as S7 |
//! | S9 | EndTxn sent, no reply | the broker ends it either way; the next claim fences first, then reads the stable offsets: as S7 or as S10 |
//! | S10 | Kafka has committed | confirmed; the next claim finds Kafka at `next_offset` and deletes the part |
//! | S11 | confirmed parts deleted | confirmed |
//! | S12 | revoked or stopping: progress flushed, before the release | confirmed; the next owner fences transactional ids that have nothing open |
//! | S13 | claim: epoch raised, last owner's ids still noted | the next claim raises it again, and fences both |
//! | S14 | claim: last owner fenced | the next claim does it again |
//! | S15 | claim: stored part produced again, not committed | fenced and aborted; sent again |
//! | S16 | a refreshed lookup table taken for the next batch | read again, joined with what the lookup holds then: nothing was written |
//! | S17 | progress without output advanced in Postgres, not yet in Kafka | Kafka lies between `last_output_to` and `next_offset`: the claim commits the latter |
//!
//! `S15.chunk` stands between two chunks of a stored part that is being sent again.
//!
//! Step names are failpoints in a build with the `failpoints` feature: `FAILPOINTS="S7=return"` ends the process there as if
//! by kill -9. S9 stands right before the call that sends EndTxn and waits for its reply; S6 right after the message is
//! handed to the connection.
//!
//! Rules that the code keeps, and why:
//!
//! - Group metadata is captured on the polling thread, in the cycle that read the last message; generation -1 or an empty
//!   member id is refused, because the broker would take such offsets without any fence.
//! - `advance` locks the progress rows in order of partitions, compares epoch and `next_offset`, and raises otherwise; it is
//!   sent with COMMIT in one message, so that its locks live no longer than that.
//! - After a COMMIT to Kafka was attempted nothing is aborted or retried: only a new claim tells the outcome.
//! - Per lane strictly Postgres(N) < Kafka(N) < Postgres(N+1). Two producers take turns, so that neither waits for the
//!   transaction markers of its own last commit.
//! - A message of which a sink refuses a row is taken out whole (see `job::refusal`) and becomes a dead letter; both transactions
//!   are aborted and done again without it.
//! - After trouble on any of its connections a producer begins no further transaction; the lane claims anew. librdkafka sends
//!   an EndTxn again by itself, and the first one, coming late, would commit the next transaction's rows without its offsets.
//! - A Kafka transaction not ready at half its timeout is given up; Postgres commits, and the rows are sent from the ledger.
//! - A commit without output writes nothing: the next one's range is wider. Every 5 s, 100,000 messages, on revoke and on stop
//!   progress alone is made durable.
//!
//! # A claim
//!
//! In this order: (a) our own transactional ids are initialised anew, which ends whatever of ours is in doubt; (b) the ledger's
//! rows are taken under a new epoch; (c) the last owner's ids are fenced; (d) the group's stable offsets are read; (e) each
//! partition is decided by the table in [`decide`]. The last owner's ids are taken out of the ledger only after (c): a crash
//! between (b) and (c) would otherwise lose the only note of a transaction that may still be open. Only the partition's
//! present owner sends its part again; a lock in Postgres is no fence for Kafka. The topic's id is looked at in each claim,
//! and every 15 s beside it (`job::watch`). What no row of the table explains halts by the name that it has in [`ailment`],
//! with the `dinnerbell repair` that is for it ([`crate::repair`]).
//!
//! Behind a claim the lane rehearses a commit: `advance` for one partition in a transaction that is rolled back. Nothing hangs
//! on it but the time that the first commit takes.

pub mod ailment;
pub mod claim;
pub mod decide;
pub mod repairs;
pub mod replay;
pub mod store;
mod write;
