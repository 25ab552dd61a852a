//! A row that is written again with other texts in the same places. Where ids of one length are all that differs, as in a
//! fan-out, this is one copy of the row and one of the id.

use std::ops::{DerefMut, Range};

use arrow::array::{Array, StringViewArray};
use bytes::BufMut;

/// Rows that differ in more texts are rare, and not worth the room to hold them.
const MOST: usize = 4;

/// A row as it was written, and the texts in it that others take the place of.
pub(super) struct Stamp<'a> {
    bytes: Vec<u8>,
    /// Where each text lies in `bytes`, and its column.
    texts: Vec<(Range<usize>, &'a StringViewArray)>,
}

impl<'a> Stamp<'a> {
    /// `texts` in their order; none of them may be null in the row that `bytes` are of. `None` where they are many.
    pub(super) fn new(bytes: Vec<u8>, texts: Vec<(Range<usize>, &'a StringViewArray)>) -> Option<Stamp<'a>> {
        (texts.len() <= MOST).then_some(Stamp { bytes, texts })
    }

    /// Appends the row with the texts of `row`, if each has the length of the one before and is `ordinary`: written as it
    /// is. Else appends nothing and says so.
    pub(super) fn write(
        &self,
        row: usize,
        out: &mut (impl BufMut + DerefMut<Target = [u8]>),
        ordinary: impl Fn(&[u8]) -> bool,
    ) -> bool {
        let mut others: [&[u8]; MOST] = [&[]; MOST];
        for ((place, texts), other) in self.texts.iter().zip(&mut others) {
            *other = if texts.is_valid(row) { texts.value(row).as_bytes() } else { return false };
            if other.len() != place.len() || !ordinary(other) {
                return false;
            }
        }
        let begin = out.len();
        out.put_slice(&self.bytes);
        let written = &mut out[begin..];
        for ((place, _), other) in self.texts.iter().zip(others) {
            written[place.clone()].copy_from_slice(other);
        }
        true
    }
}
