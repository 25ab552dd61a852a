//! Views of strings as Arrow lays them out: `length: u32, first four bytes, buffer: u32, offset: u32`, the first in the
//! lowest bits, or behind the length the whole of a short string.
//! <https://arrow.apache.org/docs/format/Columnar.html#variable-size-binary-view-layout>

use arrow::array::make_view;

/// The longest string that a view holds in itself.
pub(crate) const INLINE: usize = 12;

/// How long the string is.
#[inline]
pub(crate) fn len(view: u128) -> usize {
    view as u32 as usize
}

/// As Arrow's [`make_view`], which is a call, with a branch for each length of those strings that fit into the view.
#[inline]
pub(crate) fn make(string: &[u8], buffer: u32, offset: u32) -> u128 {
    match string.first_chunk() {
        Some(&first) if string.len() > INLINE => [string.len() as u32, u32::from_le_bytes(first), buffer, offset]
            .into_iter()
            .rfold(0, |view, part| view << u32::BITS | u128::from(part)),
        _ => make_view(string, buffer, offset),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_arrow_s_own() {
        let string = "0123456789abcdef".repeat(3);
        for length in 0..string.len() {
            let string = &string.as_bytes()[..length];
            let view = make(string, 3, 0x0102_0304);
            assert_eq!((view, len(view)), (make_view(string, 3, 0x0102_0304), length));
        }
    }
}
