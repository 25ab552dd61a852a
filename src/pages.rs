//! Large pages, of 2 MiB where others have 4 KiB, for what is read all over.
//!
//! A batch of new keys reads a lookup table in thousands of places, and nearly each of them costs a walk through the page
//! tables besides, where pages are too many for a processor to keep where they are. For what is filled from end to end and
//! soon given up they were tried as well: in a virtual machine whose host takes free memory back, they cost more than they
//! save.
//!
//! The kernel is asked, and may refuse (`prctl(PR_SET_THP_DISABLE)`, no room in one piece, an old kernel): then everything is
//! as before, and slower.

use std::alloc::Layout;
use std::mem::MaybeUninit;
#[cfg(target_os = "linux")]
use std::ops::Range;
use std::ptr::NonNull;

use allocator_api2::alloc::{AllocError, Allocator, Global};

/// What a large page is on x86-64 and on ARM with pages of 4 KiB. Where it is larger, the kernel takes what it can.
#[cfg(target_os = "linux")]
const LARGE: usize = 2 << 20;

/// Moves memory that is written already, and stays as it is, into large pages. Takes some hundred microseconds for each.
/// Linux 6.1 and later; before, nothing is done.
pub fn collapse<T>(values: &[T]) {
    advise(values, Advice::Collapse);
}

/// Has large pages handed out for memory that is not written yet.
fn prefer<T>(values: &[T]) {
    advise(values, Advice::Prefer);
}

/// The global allocator, whose large blocks are made of large pages from their first use on: for a hash table, which does not say
/// where it lies.
#[derive(Debug, Clone, Copy, Default)]
pub struct LargePages;

// SAFETY: all of it is the global allocator's; advice changes no contents.
unsafe impl Allocator for LargePages {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        let block = Global.allocate(layout)?;
        // SAFETY: a block just allocated, as bytes of which none is read.
        prefer(unsafe { NonNull::slice_from_raw_parts(block.cast::<MaybeUninit<u8>>(), block.len()).as_ref() });
        Ok(block)
    }

    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's promise is the one that is asked for.
        unsafe { Global.deallocate(block, layout) }
    }
}

#[derive(Clone, Copy)]
enum Advice {
    Collapse,
    Prefer,
}

#[cfg(target_os = "linux")]
fn advise<T>(values: &[T], advice: Advice) {
    let advice = match advice {
        Advice::Collapse => libc::MADV_COLLAPSE,
        Advice::Prefer => libc::MADV_HUGEPAGE,
    };
    let start = values.as_ptr().cast::<u8>();
    let whole = whole_pages(start as usize, size_of_val(values));
    if !whole.is_empty() {
        // SAFETY: the range lies within the values. Both kinds of advice say how memory is kept, and leave alone what is in it.
        unsafe { libc::madvise(start.add(whole.start).cast_mut().cast(), whole.len(), advice) };
    }
}

/// Which of `len` bytes from the address `start` on are whole large pages, counted from `start`.
#[cfg(target_os = "linux")]
fn whole_pages(start: usize, len: usize) -> Range<usize> {
    let skipped = start.next_multiple_of(LARGE) - start;
    skipped..skipped + len.saturating_sub(skipped) / LARGE * LARGE
}

#[cfg(not(target_os = "linux"))]
fn advise<T>(_: &[T], _: Advice) {}

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
        let mut values = Vec::with_capacity(expected().count());
        prefer(values.spare_capacity_mut());
        values.extend(expected());
        assert!(values.iter().copied().eq(expected()));
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
