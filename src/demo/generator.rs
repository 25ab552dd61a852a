//! Subscriptions and campaigns for the demo: the same from the same seed, and of every kind that the job tells apart.
//!
//! Campaigns come as the bytes of the messages, since half of what can be wrong with a message is no JSON at all.

use std::collections::BTreeMap;
use std::fmt;

use fastrand::Rng;

/// What becomes of a campaign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Active,
    Expired,
    NotStarted,
    /// Active, of a restaurant that is nobody's favourite.
    NoSubscriber,
    Broken(Flaw),
}

/// What can be wrong with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Flaw {
    NotJson,
    Truncated,
    NotAnObject,
    WrongType,
    MissingField,
    NullField,
    OutOfRange,
    DuplicateKey,
    TooDeep,
    InvalidUtf8,
    Tombstone,
    /// Well-formed, and nothing that Postgres can store: a text with a NUL character.
    NulCharacter,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Active => f.write_str("active"),
            Kind::Expired => f.write_str("expired"),
            Kind::NotStarted => f.write_str("not started"),
            Kind::NoSubscriber => f.write_str("nobody's favourite"),
            Kind::Broken(flaw) => write!(f, "broken: {}", flaw.words()),
        }
    }
}

impl Flaw {
    /// What is wrong, as a person would say it.
    pub fn words(self) -> &'static str {
        match self {
            Flaw::NotJson => "not JSON",
            Flaw::Truncated => "cut off",
            Flaw::NotAnObject => "an array",
            Flaw::WrongType => "wrong type",
            Flaw::MissingField => "no owner",
            Flaw::NullField => "null owner",
            Flaw::OutOfRange => "number too big",
            Flaw::DuplicateKey => "a field twice",
            Flaw::TooDeep => "too deep",
            Flaw::InvalidUtf8 => "not UTF-8",
            Flaw::Tombstone => "empty",
            Flaw::NulCharacter => "NUL in a text",
        }
    }

    pub const ALL: [Flaw; 12] = [
        Flaw::NotJson,
        Flaw::Truncated,
        Flaw::NotAnObject,
        Flaw::WrongType,
        Flaw::MissingField,
        Flaw::NullField,
        Flaw::OutOfRange,
        Flaw::DuplicateKey,
        Flaw::TooDeep,
        Flaw::InvalidUtf8,
        Flaw::Tombstone,
        Flaw::NulCharacter,
    ];
}

/// One message for the topic of campaigns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Campaign {
    pub kind: Kind,
    pub key: String,
    pub restaurant_id: String,
    /// The `adv_campaign_id`, which triggers carry.
    pub id: String,
    /// The message's value; `None` is a tombstone.
    pub json: Option<Vec<u8>>,
    /// How many triggers it makes, if it is still active when it is processed.
    pub triggers: usize,
}

/// Who keeps which restaurant among the favourites.
#[derive(Debug, Clone)]
pub struct Subscriptions {
    /// (client_id, restaurant_id), duplicates included.
    pub rows: Vec<(String, String)>,
    /// Restaurants by id with their number of different clients.
    popularity: Vec<(String, usize)>,
}

impl Subscriptions {
    /// `count` subscriptions, of which one in twenty stands there twice. A few restaurants are everybody's favourites
    /// and most have a handful of friends; each has at least one.
    pub fn generate(seed: u64, count: usize) -> Subscriptions {
        let mut random = Rng::with_seed(seed);
        let restaurants: Vec<String> = (0..(count / 50).max(1)).map(|_| uuid(&mut random)).collect();
        let clients: Vec<String> = (0..(count / 3).max(1)).map(|_| uuid(&mut random)).collect();
        let mut rows = Vec::with_capacity(count);
        let mut friends: BTreeMap<&str, std::collections::BTreeSet<&str>> = BTreeMap::new();
        while rows.len() < count {
            let skewed = random.f64() * random.f64() * restaurants.len() as f64;
            let restaurant = restaurants.get(rows.len()).unwrap_or(&restaurants[skewed as usize]);
            let client = &clients[random.usize(..clients.len())];
            let times = if random.u8(..20) == 0 { 2 } else { 1 };
            for _ in 0..times {
                rows.push((client.clone(), restaurant.clone()));
            }
            friends.entry(restaurant).or_default().insert(client);
        }
        let popularity = friends.into_iter().map(|(id, clients)| (id.to_owned(), clients.len())).collect();
        random.shuffle(&mut rows);
        Subscriptions { rows, popularity }
    }
}

/// How many campaigns make a deck: in each deck, every kind of campaign and every flaw comes up.
pub const DECK: usize = 60;

/// An endless trickle of campaigns: two thirds active, the rest of every other kind, in a shuffled order.
#[derive(Debug, Clone)]
pub struct Generator {
    random: Rng,
    popularity: Vec<(String, usize)>,
    /// Unix seconds.
    now: i64,
    deck: Vec<Kind>,
    count: usize,
}

impl Generator {
    /// `now` is in unix seconds: what is active now stays so for an hour at least.
    pub fn new(seed: u64, now: i64, subscriptions: &Subscriptions) -> Generator {
        let popularity = subscriptions.popularity.clone();
        Generator { random: Rng::with_seed(seed ^ 1), popularity, now, deck: Vec::new(), count: 0 }
    }

    /// The first card of a deck is an active campaign: a demo had better begin with a bell that rings.
    fn deal(&mut self) -> Kind {
        if self.deck.is_empty() {
            self.deck.extend([Kind::Active; 38]);
            self.deck.extend([Kind::Expired; 4]);
            self.deck.extend([Kind::NotStarted; 3]);
            self.deck.extend([Kind::NoSubscriber; 2]);
            self.deck.extend(Flaw::ALL.map(Kind::Broken));
            self.random.shuffle(&mut self.deck);
            self.deck.push(Kind::Active);
        }
        self.deck.pop().unwrap_or(Kind::Active)
    }

    fn fields(&mut self, kind: Kind, restaurant: String) -> Fields {
        let hour = 3600;
        let (start, end) = match kind {
            Kind::Expired => (self.now - 5 * hour, self.now - self.random.i64(1..hour)),
            Kind::NotStarted => (self.now + self.random.i64(hour..3 * hour), self.now + 5 * hour),
            _ => (self.now - self.random.i64(0..2 * hour), self.now + self.random.i64(hour..3 * hour)),
        };
        let (owner, contact) = OWNERS[self.random.usize(..OWNERS.len())];
        Fields {
            restaurant,
            campaign: uuid(&mut self.random),
            content: OFFERS[self.random.usize(..OFFERS.len())].to_owned(),
            owner,
            contact,
            start,
            end,
            created: start - self.random.i64(hour..24 * hour),
        }
    }
}

impl Iterator for Generator {
    type Item = Campaign;

    fn next(&mut self) -> Option<Campaign> {
        let kind = self.deal();
        self.count += 1;
        let (restaurant, friends) = match kind {
            Kind::NoSubscriber => (uuid(&mut self.random), 0),
            _ => self.popularity.get(self.random.usize(..self.popularity.len().max(1))).cloned().unwrap_or_default(),
        };
        let fields = self.fields(kind, restaurant);
        let (restaurant_id, id) = (fields.restaurant.clone(), fields.campaign.clone());
        let json = match kind {
            Kind::Broken(flaw) => broken(flaw, fields),
            _ => Some(fields.json().into_bytes()),
        };
        let triggers = if kind == Kind::Active { friends } else { 0 };
        Some(Campaign { kind, key: format!("message-{}", self.count), restaurant_id, id, json, triggers })
    }
}

/// The fields of one message, in the form that restaurants send.
#[derive(Debug, Clone)]
struct Fields {
    restaurant: String,
    campaign: String,
    content: String,
    owner: &'static str,
    contact: &'static str,
    start: i64,
    end: i64,
    created: i64,
}

impl Fields {
    fn json(&self) -> String {
        let text = |value: &str| serde_json::Value::from(value).to_string();
        format!(
            r#"{{"restaurant_id": {},"adv_campaign_id": {},"adv_campaign_content": {},"adv_campaign_owner": {},"adv_campaign_owner_contact": {},"adv_campaign_datetime_start": {},"adv_campaign_datetime_end": {},"datetime_created": {}}}"#,
            text(&self.restaurant),
            text(&self.campaign),
            text(&self.content),
            text(self.owner),
            text(self.contact),
            self.start,
            self.end,
            self.created
        )
    }
}

fn broken(flaw: Flaw, mut fields: Fields) -> Option<Vec<u8>> {
    let json = fields.json();
    let start = format!(r#""adv_campaign_datetime_start": {}"#, fields.start);
    let owner = format!(r#""adv_campaign_owner": "{}","#, fields.owner);
    let text = match flaw {
        Flaw::NotJson => "two pizzas for the price of one".to_owned(),
        Flaw::Truncated => json.chars().take(json.chars().count() / 2).collect(),
        Flaw::NotAnObject => format!("[{json}]"),
        Flaw::WrongType => json.replace(&start, r#""adv_campaign_datetime_start": "yesterday""#),
        Flaw::MissingField => json.replace(&owner, ""),
        Flaw::NullField => json.replace(&owner, r#""adv_campaign_owner": null,"#),
        Flaw::OutOfRange => json.replace(&start, r#""adv_campaign_datetime_start": 99999999999999999999"#),
        Flaw::DuplicateKey => json.replace(&start, &format!("{start},{start}")),
        Flaw::TooDeep => {
            let (open, close) = ("[".repeat(10_000), "]".repeat(10_000));
            format!(r#"{},"menu": {open}{close}}}"#, json.trim_end_matches('}'))
        }
        Flaw::InvalidUtf8 => {
            let mut bytes = json.into_bytes();
            let middle = bytes.len() / 2;
            bytes[middle] = 0xff;
            return Some(bytes);
        }
        Flaw::Tombstone => return None,
        Flaw::NulCharacter => {
            fields.content.push('\0');
            fields.json()
        }
    };
    Some(text.into_bytes())
}

/// A random UUID, of version 4 by its form.
fn uuid(random: &mut Rng) -> String {
    uuid::Builder::from_random_bytes(random.u128(..).to_be_bytes()).into_uuid().to_string()
}

const OFFERS: [&str; 8] = [
    "A second dessert for free",
    "Pelmeni \"like at home\", half price until eight",
    "Happy hour: two lemonades for one",
    "Плов на двоих и чай в подарок",
    "Kids eat free with a grown-up",
    "Crème brûlée with every dinner 🍮",
    "Fresh oysters\nand a glass of something cold",
    "Minus 20 % on all soups",
];

const OWNERS: [(&str, &str); 4] = [
    ("Ivanov Ivan Ivanovich", "iiivanov@restaurant.ru"),
    ("Petrova Anna Sergeevna", "aspetrova@restaurant.ru"),
    ("Renée O'Hara", "renee@bistro.example"),
    ("Сидоров Пётр", "sidorov@kafe.example"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const NOW: i64 = 1_700_000_000;

    fn campaigns(seed: u64, count: usize) -> Vec<Campaign> {
        Generator::new(seed, NOW, &Subscriptions::generate(seed, 3_000)).take(count).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_and_another_seed_another() {
        assert_eq!(campaigns(7, 100), campaigns(7, 100));
        assert_ne!(campaigns(7, 100), campaigns(8, 100));
        assert_eq!(Subscriptions::generate(7, 500).rows, Subscriptions::generate(7, 500).rows);
    }

    #[test]
    fn some_subscriptions_stand_there_twice() {
        let subscriptions = Subscriptions::generate(1, 3_000);
        let different: BTreeSet<_> = subscriptions.rows.iter().collect();
        assert!(subscriptions.rows.len() >= 3_000);
        assert!(different.len() + 50 < subscriptions.rows.len(), "{}", different.len());
        assert_eq!(different.len(), subscriptions.popularity.iter().map(|(_, clients)| clients).sum::<usize>());
    }

    #[test]
    fn one_deck_has_every_kind_and_begins_with_a_ring() {
        let deck = campaigns(1, DECK);
        let kinds: BTreeSet<Kind> = deck.iter().map(|campaign| campaign.kind).collect();
        assert_eq!(kinds.len(), 4 + Flaw::ALL.len());
        assert!(deck[0].kind == Kind::Active && deck[0].triggers > 0);
    }

    #[test]
    fn what_is_not_broken_is_as_its_kind_says() {
        for campaign in campaigns(3, 300) {
            if let Kind::Broken(_) = campaign.kind {
                assert_eq!(campaign.triggers, 0);
                continue;
            }
            let json: serde_json::Value = serde_json::from_slice(&campaign.json.unwrap()).unwrap();
            let time = |field: &str| json[field].as_i64().unwrap();
            let (start, end) = (time("adv_campaign_datetime_start"), time("adv_campaign_datetime_end"));
            let kind = match (start <= NOW, NOW <= end) {
                (true, true) if campaign.triggers == 0 => Kind::NoSubscriber,
                (true, true) => Kind::Active,
                (false, true) => Kind::NotStarted,
                _ => Kind::Expired,
            };
            assert_eq!(kind, campaign.kind, "{json}");
            assert!(time("datetime_created") < start);
        }
    }

    #[test]
    fn every_flaw_changes_the_message() {
        let subscriptions = Subscriptions::generate(1, 300);
        let fields = Generator::new(1, NOW, &subscriptions).fields(Kind::Active, "r".into());
        let whole = Some(fields.json().into_bytes());
        let values: BTreeSet<Option<Vec<u8>>> = Flaw::ALL.map(|flaw| broken(flaw, fields.clone())).into();
        assert_eq!(values.len(), Flaw::ALL.len());
        assert!(!values.contains(&whole));
    }
}
