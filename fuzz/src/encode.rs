#[path = "../../src/encode/chunk.rs"]
pub mod chunk;
#[path = "../../src/encode/repeats.rs"]
mod repeats;

fn arrow(doing: &'static str) -> impl FnOnce(arrow::error::ArrowError) -> crate::Error {
    move |source| crate::Error::Engine { doing: doing.into(), source: source.into() }
}
