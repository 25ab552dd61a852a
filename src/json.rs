//! What JSON text may hold as it is: shared by those who read it and those who write it.

/// One in each byte of a word.
pub(crate) const EACH: u64 = u64::MAX / 0xff;

/// How many bytes come before the first quote, backslash or control character.
#[inline]
pub(crate) fn ordinary(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(chunk) = bytes[at..].first_chunk() {
        let found = special16(chunk);
        if found != 0 {
            return at + found.trailing_zeros() as usize / 8;
        }
        at += 16;
    }
    while let Some(chunk) = bytes[at..].first_chunk() {
        let found = special(u64::from_le_bytes(*chunk));
        if found != 0 {
            return at + found.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    let behind = bytes.len() - at;
    match bytes.last_chunk() {
        // The last eight bytes once more, without those that are known.
        Some(chunk) if behind > 0 => match special(u64::from_le_bytes(*chunk)) >> (8 * (8 - behind)) {
            0 => bytes.len(),
            found => at + found.trailing_zeros() as usize / 8,
        },
        _ => at + bytes[at..].iter().take_while(|byte| !matches!(byte, b'"' | b'\\' | ..b' ')).count(),
    }
}

/// Eight bytes at once: the lowest bit that is set lies in the first one that is special. (A subtraction borrows only
/// from bytes behind a special one, so that only those may be marked falsely.)
fn special(bytes: u64) -> u64 {
    let below = |bytes: u64, limit: u8| bytes.wrapping_sub(EACH * u64::from(limit)) & !bytes;
    // With this bit changed, the quote stands directly behind the control characters, and nothing else does.
    let quote_or_control = below(bytes ^ (EACH * 2), (b'"' ^ 2) + 1);
    let backslash = below(bytes ^ (EACH * u64::from(b'\\')), 1);
    (quote_or_control | backslash) & (EACH << 7)
}

/// Sixteen bytes at once, all bits of each special one set: a few instructions on vectors.
fn special16(bytes: &[u8; 16]) -> u128 {
    let mark = |byte: u8| if (byte == b'"') | (byte == b'\\') | (byte < b' ') { 0xff } else { 0 };
    u128::from_le_bytes(bytes.map(mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_special_byte_is_found_wherever_it_stands() {
        for len in 0..40 {
            for byte in 0..=u8::MAX {
                let is_special = matches!(byte, b'"' | b'\\' | ..b' ');
                for fill in [b'!', b'#', b'[', b']', 0xff, 0x80, 0x7f, b' '] {
                    let mut bytes = vec![fill; len];
                    bytes.push(byte);
                    assert_eq!(
                        ordinary(&bytes),
                        if is_special { len } else { len + 1 },
                        "{byte} behind {len} of {fill}"
                    );
                    bytes.extend([b'"'; 9]);
                    assert_eq!(
                        ordinary(&bytes),
                        if is_special { len } else { len + 1 },
                        "{byte} behind {len} of {fill}"
                    );
                }
            }
        }
    }
}
