//! Ids in 16 bytes: the canonical text of a UUID (36 characters, lower case, four hyphens) and back.
//!
//! What this promises: only text that prints back to the very same bytes has a short form; upper case, braces, other
//! alphabets or a missing hyphen do not.

/// Length of the text.
pub(crate) const TEXT_LEN: usize = 36;

pub(crate) type Id = [u8; 16];
pub(crate) type IdText = [u8; TEXT_LEN];

/// Where the groups of hexadecimal digits stand: in the text, among the 32 digits, and how many they are.
const GROUPS: [(usize, usize, usize); 5] = [(0, 0, 8), (9, 8, 4), (14, 12, 4), (19, 16, 4), (24, 20, 12)];

/// The id that prints as `text`, if there is one.
// Within a larger loop, the compiler takes the pairs of digits one by one.
#[inline(never)]
pub(crate) fn parse(text: &[u8]) -> Option<Id> {
    let text: &IdText = text.try_into().ok()?;
    let mut digits = [0; 32];
    for (from, to, len) in GROUPS {
        digits[to..to + len].copy_from_slice(&text[from..from + len]);
    }
    let hyphens = [8, 13, 18, 23].iter().fold(0, |wrong, &at| wrong | (text[at] ^ b'-'));
    let mut id = Id::default();
    let mut wrong = u16::from(hyphens);
    // Two digits in a word, without branches: the compiler takes several words at once.
    for (byte, pair) in id.iter_mut().zip(digits.as_chunks::<2>().0) {
        let pair = u16::from_le_bytes(*pair);
        // '0' is 0x30; 'a' is 0x61, and 9 more than its low half. No sum carries over into the other digit.
        let letters = (pair >> 6) & 0x0101;
        let halves = (pair & 0x0f0f) + letters * 9;
        // Upper halves of the bytes other than 3 for a figure, 6 for a letter; then values above 15, and those below 10 or
        // not that go with the wrong kind.
        wrong |= pair ^ (halves + 0x3030 + letters * LETTER);
        wrong |= (halves | ((halves + 0x0606) ^ (letters << 4))) & 0x1010;
        *byte = (halves << 4 | halves >> 8) as u8;
    }
    (wrong == 0).then_some(id)
}

/// What a letter is more than a figure would be that went on behind '9'.
const LETTER: u16 = (b'a' - b'9' - 1) as u16;

pub(crate) fn print(id: Id) -> IdText {
    let digits = digits_of(id);
    let mut text = [b'-'; TEXT_LEN];
    for (from, to, len) in GROUPS {
        text[from..from + len].copy_from_slice(&digits[to..to + len]);
    }
    text
}

// Where the compiler sees what becomes of the digits, it makes them group by group, in twice as many steps.
#[inline(never)]
fn digits_of(id: Id) -> [u8; 32] {
    let mut digits = [0; 32];
    for (pair, byte) in digits.as_chunks_mut::<2>().0.iter_mut().zip(id) {
        let byte = u16::from(byte);
        let halves = (byte >> 4 | byte << 8) & 0x0f0f;
        // Halves above 9 overflow into the bit that makes them letters.
        let letters = ((halves + 0x0606) >> 4) & 0x0101;
        *pair = (halves + 0x3030 + letters * LETTER).to_le_bytes();
    }
    digits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const ID: &str = "0123e456-789a-bcde-f012-3456789abcde";

    proptest! {
        #[test]
        fn prints_as_others_do_and_reads_it_back(id: Id) {
            let text = Uuid::from_bytes(id).hyphenated().to_string();
            prop_assert_eq!(print(id), text.as_bytes());
            prop_assert_eq!(parse(text.as_bytes()), Some(id));
        }

        #[test]
        fn what_has_a_short_form_prints_back(text: [u8; 4], at in 0usize..=32) {
            let mut changed = *ID.as_bytes().first_chunk::<TEXT_LEN>().expect("36");
            changed[at..at + 4].copy_from_slice(&text);
            let known = Uuid::try_parse_ascii(&changed).ok().filter(|id| id.hyphenated().to_string().as_bytes() == changed);
            prop_assert_eq!(parse(&changed), known.map(Uuid::into_bytes));
        }
    }

    #[test]
    fn every_byte_in_every_place() {
        for at in 0..TEXT_LEN {
            for byte in 0..=u8::MAX {
                let mut text = *ID.as_bytes().first_chunk::<TEXT_LEN>().expect("36");
                text[at] = byte;
                let is_digit = matches!(byte, b'0'..=b'9' | b'a'..=b'f');
                let fits = if matches!(at, 8 | 13 | 18 | 23) { byte == b'-' } else { is_digit };
                assert_eq!(parse(&text).map(print), fits.then_some(text), "{byte} at {at}");
            }
        }
    }

    #[test]
    fn other_texts_have_none() {
        let simple = ID.replace('-', "");
        let others = ["", "a", &ID[1..], &simple, &format!("{{{ID}}}"), &format!("{ID} "), &ID.to_uppercase()];
        for text in
            others.into_iter().chain(["яяяяяяяя-яяяя-яяяя-яяяя-яяяяяяяяяяяя", "0123e456\t789a-bcde-f012-3456789abcde"])
        {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }
}
