//! Campaigns and subscriptions to test with. Written down here and not taken from the job: an independent witness.

use std::hash::{DefaultHasher, Hash, Hasher};

/// One input message's fields, in the documented order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Campaign {
    pub restaurant_id: String,
    pub adv_campaign_id: String,
    pub content: String,
    pub owner: String,
    pub owner_contact: String,
    pub start: i64,
    pub end: i64,
    pub created: i64,
}

/// The documented sample of an input message, byte for byte.
pub fn sample() -> &'static str {
    r#"{"restaurant_id": "123e4567-e89b-12d3-a456-426614174000","adv_campaign_id": "123e4567-e89b-12d3-a456-426614174003","adv_campaign_content": "first campaign","adv_campaign_owner": "Ivanov Ivan Ivanovich","adv_campaign_owner_contact": "iiivanov@restaurant.ru","adv_campaign_datetime_start": 1659203516,"adv_campaign_datetime_end": 2659207116,"datetime_created": 1659131516}"#
}

/// The id of the n-th restaurant.
pub fn restaurant(n: usize) -> String {
    format!("{n:08x}-e89b-12d3-a456-426614174000")
}

/// The id of the n-th client.
pub fn client(n: usize) -> String {
    format!("{n:08x}-0000-4000-8000-426614174000")
}

/// So many rows of clients with a [`long_id`] take two COPYs: the first ends at the first chunk, which has more than 8 MiB.
pub const TWO_COPIES: usize = 66_000;

/// An id of 320 hexadecimal digits, which nothing compresses below 160 bytes.
pub fn long_id(n: usize) -> String {
    let digits = |k: usize| {
        let mut hasher = DefaultHasher::new();
        (n, k).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    };
    (0..20).map(digits).collect()
}

impl Campaign {
    /// The n-th campaign, of the given restaurant; active from 2022 to 2054.
    pub fn new(n: usize, restaurant_id: impl Into<String>) -> Campaign {
        Campaign {
            restaurant_id: restaurant_id.into(),
            adv_campaign_id: format!("{n:08x}-0000-4000-9000-426614174003"),
            content: format!("campaign {n}: a second dessert"),
            owner: "Ivanov Ivan Ivanovich".into(),
            owner_contact: "iiivanov@restaurant.ru".into(),
            start: 1_659_203_516,
            end: 2_659_207_116,
            created: 1_659_131_516,
        }
    }

    pub fn expired(self) -> Campaign {
        Campaign { end: self.start + 1, ..self }
    }

    pub fn not_started(self) -> Campaign {
        Campaign { start: self.end - 1, ..self }
    }

    /// The input message.
    pub fn json(&self) -> String {
        serde_json::json!({
            "restaurant_id": self.restaurant_id,
            "adv_campaign_id": self.adv_campaign_id,
            "adv_campaign_content": self.content,
            "adv_campaign_owner": self.owner,
            "adv_campaign_owner_contact": self.owner_contact,
            "adv_campaign_datetime_start": self.start,
            "adv_campaign_datetime_end": self.end,
            "datetime_created": self.created,
        })
        .to_string()
    }

    /// The output message that this campaign makes for `client_id`, as documented, at the unix second `made`.
    pub fn trigger(&self, client_id: &str, made: i64) -> String {
        let text = |value: &str| serde_json::Value::from(value).to_string();
        format!(
            r#"{{"restaurant_id":{},"adv_campaign_id":{},"adv_campaign_content":{},"adv_campaign_owner":{},"adv_campaign_owner_contact":{},"adv_campaign_datetime_start":{},"adv_campaign_datetime_end":{},"client_id":{},"datetime_created":{},"trigger_datetime_created":{made}}}"#,
            text(&self.restaurant_id),
            text(&self.adv_campaign_id),
            text(&self.content),
            text(&self.owner),
            text(&self.owner_contact),
            self.start,
            self.end,
            text(client_id),
            self.created,
        )
    }
}
