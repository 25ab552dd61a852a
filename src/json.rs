//! What JSON text may hold as it is: shared by those who read it and those who write it.

/// How many bytes come before the first quote, backslash or control character.
pub(crate) fn ordinary(bytes: &[u8]) -> usize {
    let mut at = 0;
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
    const EACH: u64 = u64::MAX / 0xff;
    let below = |bytes: u64, limit: u8| bytes.wrapping_sub(EACH * u64::from(limit)) & !bytes;
    let is = |byte: u8| below(bytes ^ (EACH * u64::from(byte)), 1);
    (is(b'"') | is(b'\\') | below(bytes, b' ')) & (EACH << 7)
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
