#[path = "../../src/source/messages.rs"]
mod messages;

pub use messages::{Header, Messages, MessagesBuilder};
