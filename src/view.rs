//! Views of strings and binary values as Arrow lays them out: `length: u32, first four bytes, buffer: u32, offset: u32`, the
//! first in the lowest bits, or behind the length the whole of a short value.
//! <https://arrow.apache.org/docs/format/Columnar.html#variable-size-binary-view-layout>

use arrow::array::make_view;

/// The longest value that a view holds in itself.
pub(crate) const INLINE: usize = 12;

/// How long the value is.
#[inline]
pub(crate) fn len(view: u128) -> usize {
    view as u32 as usize
}

/// Buffer and offset of a value that is not [`INLINE`], as one number.
#[inline]
pub(crate) fn place(view: u128) -> u64 {
    (view >> 64) as u64
}

/// The view of the same value elsewhere, which is not [`INLINE`].
#[inline]
pub(crate) fn moved(view: u128, buffer: u32, offset: u32) -> u128 {
    u128::from(view as u64) | u128::from(buffer) << 64 | u128::from(offset) << 96
}

/// As Arrow's [`make_view`], which is a call and branches on each length up to [`INLINE`]: here a longer value costs one
/// comparison.
#[inline]
pub(crate) fn make(value: &[u8], buffer: u32, offset: u32) -> u128 {
    match value.first_chunk() {
        Some(&first) if value.len() > INLINE => {
            let view = u128::from(value.len() as u32) | u128::from(u32::from_le_bytes(first)) << 32;
            moved(view, buffer, offset)
        }
        _ => make_view(value, buffer, offset),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_arrow_s_own() {
        let value = "0123456789abcdef".repeat(3);
        for length in 0..value.len() {
            let value = &value.as_bytes()[..length];
            let view = make(value, 3, 0x8102_0304);
            assert_eq!((view, len(view)), (make_view(value, 3, 0x8102_0304), length));
            if length > INLINE {
                assert_eq!(place(view), 0x8102_0304_0000_0003);
                assert_eq!(moved(make(value, 9, 7), 3, 0x8102_0304), view);
            }
        }
    }
}
