//! A row that is written again with another text in one place. Where ids of one length are all that differs, as in a
//! fan-out, this is one copy of the row and one of the id.

use std::ops::{DerefMut, Range};

use arrow::array::{Array, StringViewArray};
use bytes::BufMut;

/// A row as it was written, and the text in it that others take the place of.
pub(super) struct Stamp<'a> {
    pub bytes: Vec<u8>,
    /// Where the text lies in `bytes`.
    pub place: Range<usize>,
    pub texts: &'a StringViewArray,
}

impl Stamp<'_> {
    /// Appends the row with the text of `row`, if that has the length of `place` and is `ordinary`: written as it is. Else
    /// appends nothing and says so.
    #[inline]
    pub(super) fn write(
        &self,
        row: usize,
        out: &mut (impl BufMut + DerefMut<Target = [u8]>),
        ordinary: impl Fn(&[u8]) -> bool,
    ) -> bool {
        if self.texts.is_null(row) {
            return false;
        }
        let text = self.texts.value(row).as_bytes();
        if text.len() != self.place.len() || !ordinary(text) {
            return false;
        }
        let begin = out.len();
        out.put_slice(&self.bytes);
        out[begin..][self.place.clone()].copy_from_slice(text);
        true
    }
}
