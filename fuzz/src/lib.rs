//! The modules under test, taken as they are from the job's own sources, with as little around them as they need: so a
//! target builds in a minute, without DataFusion, librdkafka or a sanitizer.

#[path = "../../src/dead_letter.rs"]
pub mod dead_letter;
#[path = "../../src/decode/mod.rs"]
pub mod decode;
pub mod error;
#[path = "../../src/id.rs"]
mod id;
#[path = "../../src/json.rs"]
mod json;
#[path = "../../src/messages.rs"]
pub mod messages;
#[path = "../../src/offsets.rs"]
mod offsets;
#[path = "../../src/view.rs"]
mod view;
/// The second opinion of the decoder's own tests.
#[path = "../../src/decode/tests/judge.rs"]
pub mod judge;

/// Stored chunks, without the other encodings.
pub mod encode;

pub use error::{Error, Result};
