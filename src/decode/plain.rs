//! Values and keys as nearly all producers write them, found without a parser: strings without escapes and integers of
//! up to 18 digits.
//!
//! Promises: what it gives is what serde_json would give of the same text. Does not: say what is wrong with a message.
//! It gives up (`None`) at everything that it does not know, and the strict pass reads the message again and decides.

use serde::de::{DeserializeSeed, Visitor, value};

use super::value::Value;
use crate::json::{EACH, ordinary};

/// The most digits of which every number fits an `i64`.
const DIGITS: usize = 18;

/// Where plain reading keeps giving up, it is tried ever more rarely: what is read in vain costs a third of a strict
/// pass. One message that is plain, and every one is tried again. The pauses are even, so the distances between attempts
/// are odd: where every second message is plain, one is met soon.
#[derive(Default)]
pub struct Patience {
    /// Messages that were let pass after the last failure.
    pause: u8,
    /// Those of them that are still to come.
    left: u8,
}

impl Patience {
    /// One vain attempt in 63 messages costs half a percent.
    const LONGEST: u8 = 62;

    /// Whether the next message is to be tried.
    pub fn is_due(&mut self) -> bool {
        let due = self.left == 0;
        self.left = self.left.saturating_sub(1);
        due
    }

    /// After every attempt.
    pub fn learn(&mut self, plain: bool) {
        self.pause = if plain { 0 } else { Self::LONGEST.min(2 * self.pause + 2) };
        self.left = self.pause;
    }
}

/// What is left of a message's text.
#[derive(Clone, Copy)]
pub struct Scanner<'m> {
    /// The end of a text: what lies between two ASCII characters of it is text again.
    rest: &'m [u8],
}

impl<'m> Scanner<'m> {
    pub fn new(text: &'m str) -> Self {
        Self { rest: text.as_bytes() }
    }

    /// Whether nothing but white space is left.
    pub fn ends(mut self) -> bool {
        self.space();
        self.rest.is_empty()
    }

    /// Goes past the white space that JSON knows, and past the byte behind it, which it gives.
    pub fn next(&mut self) -> Option<u8> {
        self.space();
        let (byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*byte)
    }

    #[inline]
    pub fn space(&mut self) {
        // Nearly always there is none, and one comparison tells.
        while let [byte @ ..=b' ', rest @ ..] = self.rest
            && matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
        {
            self.rest = rest;
        }
    }

    /// Goes past `token` if it stands here.
    #[inline]
    pub fn eat(&mut self, token: &[u8]) -> bool {
        match self.rest.split_at_checked(token.len()) {
            Some((start, rest)) if same(start, token) => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    /// What is left of the text.
    pub fn rest(&self) -> &'m [u8] {
        self.rest
    }

    /// A string without escapes.
    // In each of its places: a call would give the scanner an address.
    #[inline(always)]
    pub fn string(&mut self) -> Option<&'m str> {
        let [b'"', inside @ ..] = self.rest else { return None };
        let (string, behind) = inside.split_at_checked(ordinary(inside))?;
        let [b'"', rest @ ..] = behind else { return None };
        self.rest = rest;
        debug_assert!(str::from_utf8(string).is_ok(), "a string that is none");
        // SAFETY: it lies between two quotes of a text, and no other character of UTF-8 has a quote's byte in it.
        Some(unsafe { str::from_utf8_unchecked(string) })
    }

    /// Reads one value into the column of `value`, or gives up.
    ///
    /// The visitor is the one of the strict pass, so that both agree on what fits a column. All that is neither a plain
    /// string nor a plain integer is cut out and left to the parser.
    pub fn value(&mut self, value: Value) -> Option<()> {
        if let Some(text) = self.string() {
            return value.visit_borrowed_str::<value::Error>(text).ok();
        }
        if let Some(number) = self.integer() {
            return value.visit_i64::<value::Error>(number).ok();
        }
        let mut json = serde_json::Deserializer::from_str(self.scalar()?);
        value.deserialize(&mut json).ok()?;
        json.end().ok()
    }

    /// An integer that is not "-0" (a float to the parser) and has neither leading zeros nor too many digits.
    // As above.
    #[inline(always)]
    pub fn integer(&mut self) -> Option<i64> {
        let (negative, digits) = match self.rest {
            [b'-', digits @ ..] => (true, digits),
            digits => (false, digits),
        };
        let (mut rest, mut number) = (digits, 0_i64);
        while let Some((eight, behind)) = rest.split_first_chunk()
            && let Some(value) = eight_digits(u64::from_le_bytes(*eight))
        {
            number = number.wrapping_mul(100_000_000).wrapping_add(value);
            rest = behind;
        }
        while let [digit @ b'0'..=b'9', behind @ ..] = rest {
            number = number.wrapping_mul(10).wrapping_add(i64::from(digit - b'0'));
            rest = behind;
        }
        let len = digits.len() - rest.len();
        let leading_zero = digits.first() == Some(&b'0') && (len > 1 || negative);
        // Anything else behind it belongs to the number (a point, an exponent) or is wrong.
        let ends = matches!(rest, [b',' | b'}' | b' ' | b'\t' | b'\n' | b'\r', ..]);
        if !(1..=DIGITS).contains(&len) || leading_zero || !ends {
            return None;
        }
        self.rest = rest;
        Some(if negative { -number } else { number })
    }

    /// The text of a string with escapes, or of all up to where a number or a word would end. The parser still has to
    /// say that it is one value and nothing more; it then reads the same value where it stands in the message.
    fn scalar(&mut self) -> Option<&'m str> {
        let len = if let [b'"', inside @ ..] = self.rest {
            2 + escaped(inside)?
        } else {
            self.rest.iter().position(|byte| matches!(byte, b',' | b'}' | b' ' | b'\t' | b'\n' | b'\r'))?
        };
        let (scalar, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        str::from_utf8(scalar).ok()
    }
}

/// Whether two texts of the same length are equal. Most keys have 16 to 32 bytes, for which two comparisons do, without a
/// call.
#[inline]
fn same(a: &[u8], b: &[u8]) -> bool {
    debug_assert_eq!(a.len(), b.len());
    let ends = |text: &[u8]| Some([*text.first_chunk()?, *text.last_chunk()?].map(u128::from_le_bytes));
    match (ends(a), ends(b)) {
        (Some([a1, a2]), Some([b1, b2])) if a.len() <= 32 => (a1 ^ b1) | (a2 ^ b2) == 0,
        _ => a == b,
    }
}

/// How far it is to the quote that ends a string.
fn escaped(inside: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += ordinary(inside.get(at..)?);
        match inside.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => return None,
        }
    }
}

/// The number that eight digits are, the first of them in the lowest byte: pairs of digits are added up, then pairs of
/// those, then the two halves.
fn eight_digits(bytes: u64) -> Option<i64> {
    const HIGH: u64 = EACH * 0xf0;
    // Six more than a digit still begins with a 3, and of what begins with a 3 only digits do so.
    if bytes & HIGH != EACH * 0x30 || bytes.wrapping_add(EACH * 6) & HIGH != EACH * 0x30 {
        return None;
    }
    let ones = bytes & (EACH * 0x0f);
    let tens = (ones.wrapping_mul(10) + (ones >> 8)) & 0x00ff_00ff_00ff_00ff;
    let hundreds = (tens.wrapping_mul(100) + (tens >> 16)) & 0x0000_ffff_0000_ffff;
    Some((hundreds.wrapping_mul(10_000).wrapping_add(hundreds >> 32) & 0xffff_ffff) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_digits_are_a_number_and_nothing_else_is() {
        for number in (0..100_000_000_i64).step_by(99_991).chain([99_999_999, 12_345_678]) {
            let text = format!("{number:08}");
            let bytes: [u8; 8] = text.as_bytes().try_into().unwrap();
            assert_eq!(eight_digits(u64::from_le_bytes(bytes)), Some(number));
        }
        for at in 0..8 {
            for fill in [b'0', b'9'] {
                for byte in 0..=u8::MAX {
                    let mut bytes = [fill; 8];
                    bytes[at] = byte;
                    let is_number = eight_digits(u64::from_le_bytes(bytes)).is_some();
                    assert_eq!(is_number, byte.is_ascii_digit(), "{byte} at {at} of {fill}");
                }
            }
        }
    }

    #[test]
    fn texts_are_the_same_where_every_byte_is() {
        let text: [u8; 40] = std::array::from_fn(|at| at as u8);
        for len in 0..text.len() {
            assert!(same(&text[..len], &text[..len]), "{len} bytes");
            for at in 0..len {
                let mut other = text;
                other[at] ^= 0x20;
                assert!(!same(&text[..len], &other[..len]), "byte {at} of {len}");
            }
        }
    }

    #[test]
    fn vain_attempts_become_rare_and_one_success_ends_that() {
        let mut patience = Patience::default();
        let mut attempts =
            |plain: bool| (0..200).filter(|_| patience.is_due().then(|| patience.learn(plain)).is_some()).count();
        assert_eq!(attempts(false), 7);
        assert!(attempts(true) > 200 - 63);
        assert_eq!(attempts(true), 200);
    }

    #[test]
    fn every_second_message_is_met_wherever_it_stands() {
        for plain in 0..2 {
            let mut patience = Patience::default();
            let due = |message: &usize| {
                let due = patience.is_due();
                if due {
                    patience.learn(message % 2 == plain);
                }
                due
            };
            let met = (0..400).filter(due).filter(|message| message % 2 == plain).count();
            assert!(met >= 95, "{met} of 200 plain messages");
        }
    }
}
