//! What comes in: campaigns and subscriptions of a known shape. Ids are random UUIDs as far as any index, dictionary or
//! compression can tell, yet the same in every run.

use openssl::hash::{MessageDigest, hash};

use crate::Workload;
use crate::support::{Campaign, Message, Stack};

/// Campaigns in the order in which they are produced, and the subscribers of each restaurant.
pub struct Input {
    pub messages: Vec<Message>,
    pub subscribers: Subscribers,
    /// The rows that must come out.
    pub rows: u64,
    /// `[batch] max_messages`, where it is not the default.
    pub max_messages: usize,
}

/// Subscribers by restaurant.
pub enum Subscribers {
    Each { restaurants: usize, subscribers: usize },
    Of(Vec<usize>),
}

/// The n-th restaurant's id: what `md5('r' || n)::uuid` is in Postgres.
pub fn restaurant(n: usize) -> String {
    let digest = hash(MessageDigest::md5(), format!("r{n}").as_bytes()).expect("OpenSSL has MD5");
    uuid::Uuid::from_slice(&digest).expect("16 bytes").to_string()
}

/// The default of `[batch] max_messages`.
const MAX_MESSAGES: usize = 100_000;
const PARTITIONS: usize = 3;

fn scaled(n: usize, scale: f64) -> usize {
    ((n as f64 * scale).round() as usize).max(1)
}

/// A campaign of restaurant `of` as a message. Partitions by turns, so that the last messages of all partitions are known.
pub fn message(n: usize, of: usize, active: bool) -> Message {
    let campaign = Campaign::new(n, restaurant(of));
    let campaign = if active { campaign } else { campaign.expired() };
    Message::of(campaign.json()).partition((n % PARTITIONS) as i32)
}

/// The restaurant of campaign `n`: a prime step visits them all over the table, each of them once before any comes again.
fn spread(n: usize, restaurants: usize) -> usize {
    n * 7_919 % restaurants
}

impl Input {
    /// A workload's input at a scale.
    pub fn new(workload: Workload, scale: f64) -> Input {
        match workload {
            Workload::FanOut => Input::even(scaled(1_000, scale), scaled(1_000, scale), 1_000, MAX_MESSAGES),
            Workload::Crowd => Input::even(20, 20, scaled(100_000, scale), MAX_MESSAGES),
            Workload::Big => Input::even(300, scaled(10_000, scale), 1_000, 1),
            Workload::Selective => Input::selective(scaled(1_000_000, scale)),
            Workload::Zipf => Input::zipf(10_000, scaled(1_000_000, scale)),
            Workload::Trickle | Workload::Memory | Workload::Load => unreachable!("these make their own input"),
        }
    }

    fn even(campaigns: usize, restaurants: usize, subscribers: usize, max_messages: usize) -> Input {
        Input {
            messages: (0..campaigns).map(|n| message(n, spread(n, restaurants), true)).collect(),
            subscribers: Subscribers::Each { restaurants, subscribers },
            rows: (campaigns * subscribers) as u64,
            max_messages,
        }
    }

    fn selective(campaigns: usize) -> Input {
        // The last message of each partition is active: the end of the work is then a row, and not a flush of progress.
        let active = |n: usize| n.is_multiple_of(10) || n + PARTITIONS >= campaigns;
        Input {
            messages: (0..campaigns).map(|n| message(n, spread(n, campaigns), active(n))).collect(),
            subscribers: Subscribers::Each { restaurants: campaigns, subscribers: 1 },
            rows: (0..campaigns).filter(|&n| active(n)).count() as u64,
            max_messages: MAX_MESSAGES,
        }
    }

    fn zipf(campaigns: usize, rows: usize) -> Input {
        let weight = |rank: usize| (rank as f64).powf(-1.1);
        let whole: f64 = (1..=campaigns).map(weight).sum();
        let size = |rank: usize| ((rows as f64 * weight(rank) / whole).round() as usize).max(1);
        let sizes: Vec<usize> = (1..=campaigns).map(size).collect();
        let mut order: Vec<usize> = (0..campaigns).collect();
        fastrand::Rng::with_seed(11).shuffle(&mut order);
        Input {
            messages: order.iter().enumerate().map(|(n, &of)| message(n, of, true)).collect(),
            rows: sizes.iter().sum::<usize>() as u64,
            subscribers: Subscribers::Of(sizes),
            max_messages: MAX_MESSAGES,
        }
    }
}

impl Subscribers {
    /// Puts them into the table, and spares the runs the table's housekeeping. `client` is the SQL of a client's id, of the
    /// restaurant `r` and the client `c`.
    pub fn insert(&self, stack: &Stack, client: &str) {
        let from = match self {
            Subscribers::Each { restaurants, subscribers } => {
                format!("generate_series(0, {}) AS r, generate_series(0, {}) AS c", restaurants - 1, subscribers - 1)
            }
            Subscribers::Of(sizes) => {
                let sizes: Vec<String> = sizes.iter().map(usize::to_string).collect();
                format!(
                    "unnest(ARRAY[{}]) WITH ORDINALITY AS s(size, n), LATERAL (SELECT n - 1 AS r) AS numbered, \
                     generate_series(1, size) AS c",
                    sizes.join(",")
                )
            }
        };
        stack.execute(&format!(
            "ALTER TABLE public.subscribers_restaurants SET (autovacuum_enabled = off);
             ALTER TABLE public.subscribers_feedback SET (autovacuum_enabled = off);
             INSERT INTO public.subscribers_restaurants (restaurant_id, client_id)
               SELECT md5('r' || r)::uuid, {client} FROM {from};"
        ));
        stack.execute("VACUUM (ANALYZE, FREEZE) public.subscribers_restaurants");
    }
}

/// Random UUIDs as client ids.
pub const UUID_CLIENTS: &str = "md5('c' || r || '.' || c)::uuid";
