//! Ids in 16 bytes: the canonical text of a UUID (36 characters, lower case, four hyphens) and back.
//!
//! What this promises: only text that prints back to the very same bytes has a short form; upper case, braces, other
//! alphabets or a missing hyphen do not.

/// Length of the text.
pub(crate) const TEXT_LEN: usize = 36;

pub(crate) type Id = [u8; 16];
pub(crate) type IdText = [u8; TEXT_LEN];

/// Where the hexadecimal digits stand in the text: by four bytes of the id, two places of four digits.
const DIGITS: [[usize; 2]; 4] = [[0, 4], [9, 14], [19, 24], [28, 32]];

/// The id that prints as `text`, if there is one.
pub(crate) fn parse(text: &[u8]) -> Option<Id> {
    let text: &IdText = text.try_into().ok()?;
    let four = |at: usize| u64::from(u32::from_le_bytes([text[at], text[at + 1], text[at + 2], text[at + 3]]));
    let mut id = Id::default();
    for (bytes, [first, second]) in id.chunks_exact_mut(4).zip(DIGITS) {
        bytes.copy_from_slice(&bytes_of(four(first) | four(second) << 32));
    }
    // What was no digit, or no hyphen, has come out as something else.
    (print(id) == *text).then_some(id)
}

pub(crate) fn print(id: Id) -> IdText {
    let mut text = [b'-'; TEXT_LEN];
    for (bytes, [first, second]) in id.chunks_exact(4).zip(DIGITS) {
        let digits = digits_of([bytes[0], bytes[1], bytes[2], bytes[3]]);
        text[first..first + 4].copy_from_slice(&digits[..4]);
        text[second..second + 4].copy_from_slice(&digits[4..]);
    }
    text
}

/// Four bytes of eight digits, all at once in one word; nonsense of anything else.
fn bytes_of(digits: u64) -> [u8; 4] {
    // '0' is 0x30; 'a' is 0x61, and 9 more than its low half.
    let halves = (digits & 0x0f0f_0f0f_0f0f_0f0f) + ((digits >> 6) & 0x0101_0101_0101_0101) * 9;
    let bytes = ((halves << 4) | (halves >> 8)) & 0x00ff_00ff_00ff_00ff;
    let pairs = (bytes | (bytes >> 8)) & 0x0000_ffff_0000_ffff;
    ((pairs | (pairs >> 16)) as u32).to_le_bytes()
}

/// The way back.
fn digits_of(bytes: [u8; 4]) -> [u8; 8] {
    let bytes = u64::from(u32::from_le_bytes(bytes));
    let pairs = (bytes | (bytes << 16)) & 0x0000_ffff_0000_ffff;
    let bytes = (pairs | (pairs << 8)) & 0x00ff_00ff_00ff_00ff;
    let halves = ((bytes >> 4) & 0x000f_000f_000f_000f) | ((bytes & 0x000f_000f_000f_000f) << 8);
    // Halves above 9 overflow into the bit that makes them letters.
    let letters = ((halves + 0x0606_0606_0606_0606) >> 4) & 0x0101_0101_0101_0101;
    (halves + 0x3030_3030_3030_3030 + letters * u64::from(b'a' - b'9' - 1)).to_le_bytes()
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
