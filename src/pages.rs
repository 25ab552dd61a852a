//! Large pages, of 2 MiB where others have 4 KiB, for what is read all over.
//!
//! A batch of new keys reads a lookup table in thousands of places, and nearly each of them costs a walk through the page
//! tables besides, where pages are too many for a processor to keep where they are. (For the memory of messages, which is
//! filled from end to end, large pages brought nothing: see docs/performance.md.)
//!
//! The kernel is asked, and may refuse (`prctl(PR_SET_THP_DISABLE)`, no room in one piece, an old kernel): then everything is
//! as before, and slower. `/sys/kernel/mm/transparent_hugepage/enabled` has a say in a hash table's pages only.

use std::alloc::Layout;
#[cfg(target_os = "linux")]
use std::ops::Range;
use std::ptr::NonNull;

use allocator_api2::alloc::{AllocError, Allocator, Global};

use crate::allocator::OWN_MAPPING;

/// What a large page is on x86-64 and on ARM with pages of 4 KiB. Where it is larger, the kernel takes what it can.
#[cfg(target_os = "linux")]
const LARGE: usize = 2 << 20;

/// Moves memory that is written already, and stays where it is, into large pages. Takes some hundred microseconds for each, or
/// longer where the kernel must make room first. Linux 6.1 and later; before, nothing is done.
pub fn collapse<T>(values: &[T]) {
    advise(NonNull::from_ref(values).cast(), size_of_val(values), Advice::Collapse);
}

/// The global allocator, but that a block of [`OWN_MAPPING`] or more is made of large pages: for a large hash table, which does
/// not say where it lies. (glibc has smaller blocks lie in memory that may have been used before, and will be used again by
/// others.)
#[derive(Debug, Clone, Copy, Default)]
pub struct LargePages;

// SAFETY: all of it is the global allocator's; advice changes no contents.
unsafe impl Allocator for LargePages {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        let block = Global.allocate(layout)?;
        if block.len() >= OWN_MAPPING {
            advise(block.cast(), block.len(), Advice::Prefer);
        }
        Ok(block)
    }

    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's promise is the one that is asked for.
        unsafe { Global.deallocate(block, layout) }
    }
}

/// The kernel's number, `include/uapi/asm-generic/mman-common.h`: the libc crate has it for glibc alone.
#[cfg(target_os = "linux")]
const MADV_COLLAPSE: libc::c_int = 25;

#[derive(Clone, Copy)]
enum Advice {
    Collapse,
    Prefer,
}

/// About the large pages that lie whole in a block of `len` bytes.
#[cfg(target_os = "linux")]
fn advise(block: NonNull<u8>, len: usize, advice: Advice) {
    let advice = match advice {
        Advice::Collapse => MADV_COLLAPSE,
        Advice::Prefer => libc::MADV_HUGEPAGE,
    };
    let whole = whole_pages(block.addr().get(), len);
    if !whole.is_empty() {
        // SAFETY: the range lies within the block. Both kinds of advice say how memory is kept, and leave alone what is in it.
        unsafe { libc::madvise(block.add(whole.start).as_ptr().cast(), whole.len(), advice) };
    }
}

/// Which of `len` bytes from the address `start` on are whole large pages, counted from `start`.
#[cfg(target_os = "linux")]
fn whole_pages(start: usize, len: usize) -> Range<usize> {
    let skipped = start.next_multiple_of(LARGE) - start;
    skipped..skipped + len.saturating_sub(skipped) / LARGE * LARGE
}

#[cfg(not(target_os = "linux"))]
fn advise(_: NonNull<u8>, _: usize, _: Advice) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn pages_lie_within_what_is_advised_and_stand_on_their_borders() {
        for start in [0, 16, LARGE - 1, LARGE, 5 * LARGE + 4096] {
            for len in [0, 1, LARGE - 1, LARGE, LARGE + 1, 2 * LARGE, 7 * LARGE - 16] {
                let whole = whole_pages(start, len);
                assert!(whole.is_empty() || whole.end <= len, "{start} {len}: {whole:?}");
                assert!(whole.is_empty() || ((start + whole.start) % LARGE, whole.len() % LARGE) == (0, 0));
                // What is left over at both ends holds no other whole page.
                assert!(len < whole.len() + 2 * LARGE, "{start} {len}: {whole:?}");
            }
        }
    }

    #[test]
    fn what_is_kept_in_large_pages_stays_what_it_was() {
        let expected = || 0..(3 << 20) + 7_u64;
        let values: Vec<u64> = expected().collect();
        collapse(&values);
        assert!(values.iter().copied().eq(expected()));
        let mut table = hashbrown::HashTable::new_in(LargePages);
        let hash = |value: &u64| value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        expected().for_each(|value| {
            table.insert_unique(hash(&value), value, hash);
        });
        assert!(expected().all(|value| table.find(hash(&value), |known| *known == value).is_some()));
        table.shrink_to_fit(hash);
        assert_eq!((table.len(), table.find(hash(&7), |known| *known == 7)), (values.len(), Some(&7)));
    }
}
