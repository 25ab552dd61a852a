//! What JSON text may hold as it is: shared by those who read it and those who write it.

#[cfg(not(target_arch = "x86_64"))]
use self::special16_anywhere as special16;

/// One in each byte of a word.
pub(crate) const EACH: u64 = u64::MAX / 0xff;

/// How many bytes come before the first quote, backslash or control character.
#[inline]
pub(crate) fn ordinary(bytes: &[u8]) -> usize {
    let (chunks, rest) = bytes.as_chunks();
    for (number, chunk) in chunks.iter().enumerate() {
        if let Some(found) = special16(chunk) {
            return 16 * number + found;
        }
    }
    16 * chunks.len() + ordinary_in_few(rest)
}

/// As [`ordinary`], of fewer than sixteen bytes. Apart, so that the loop above does not carry its weight.
#[inline(never)]
fn ordinary_in_few(bytes: &[u8]) -> usize {
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

/// Whether `bytes` have no quote, backslash or control character.
#[inline]
pub(crate) fn is_ordinary(bytes: &[u8]) -> bool {
    match bytes.last_chunk() {
        // The last sixteen bytes may be looked at twice.
        Some(last) => bytes.as_chunks().0.iter().chain([last]).all(|chunk| special16(chunk).is_none()),
        None => ordinary(bytes) == bytes.len(),
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

/// The first special one of sixteen bytes. Written out, because the compiler finds all of this by itself but the last step,
/// from bytes to bits.
#[cfg(target_arch = "x86_64")]
#[inline]
fn special16(bytes: &[u8; 16]) -> Option<usize> {
    use std::arch::x86_64::{
        _mm_cmpeq_epi8, _mm_loadu_si128, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128, _mm_set1_epi8,
    };
    // SAFETY: every x86-64 has SSE2, and the load, which needs no alignment, is of the sixteen bytes that are there.
    let marks = unsafe {
        let bytes = _mm_loadu_si128(bytes.as_ptr().cast());
        let quote = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'"' as i8));
        let backslash = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'\\' as i8));
        let control = _mm_cmpeq_epi8(bytes, _mm_min_epu8(bytes, _mm_set1_epi8(b' ' as i8 - 1)));
        _mm_movemask_epi8(_mm_or_si128(_mm_or_si128(quote, backslash), control))
    };
    (marks != 0).then_some(marks.trailing_zeros() as usize)
}

/// As [`special16`], on any processor.
#[cfg(any(test, not(target_arch = "x86_64")))]
#[inline]
fn special16_anywhere(bytes: &[u8; 16]) -> Option<usize> {
    let mark = |byte: u8| if (byte == b'"') | (byte == b'\\') | (byte < b' ') { 0xff } else { 0 };
    let marks = u128::from_le_bytes(bytes.map(mark));
    (marks != 0).then_some(marks.trailing_zeros() as usize / 8)
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
                    assert_eq!(is_ordinary(&bytes), !is_special, "{byte} behind {len} of {fill}");
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

    #[test]
    fn special_bytes_are_seen_wherever_they_stand() {
        for len in 1..70 {
            for at in 0..len {
                let mut bytes = vec![b'a'; len];
                assert!(is_ordinary(&bytes), "{len} bytes");
                bytes[at] = b'"';
                assert!(!is_ordinary(&bytes), "byte {at} of {len}");
            }
        }
    }

    #[test]
    fn sixteen_bytes_are_read_alike_on_any_processor() {
        for at in 0..16 {
            for byte in 0..=u8::MAX {
                for fill in [b'a', b'"', 0xff] {
                    let mut bytes = [b' '; 16];
                    bytes[at..].fill(fill);
                    bytes[at] = byte;
                    let first = bytes.iter().position(|byte| matches!(byte, b'"' | b'\\' | ..b' '));
                    assert_eq!(special16(&bytes), first, "{byte} at {at} before {fill}");
                    assert_eq!(special16_anywhere(&bytes), first, "{byte} at {at} before {fill}");
                }
            }
        }
    }
}
