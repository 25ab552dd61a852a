//! The memory of messages' values, used again and again: the kernel clears every page of new memory, which costs a backlog
//! more than filling it does.

use std::sync::{Arc, Mutex};

use arrow::buffer::Buffer;
use bytes::Bytes;

/// Arenas that nobody uses any more, up to so many bytes in all. Clones share them.
#[derive(Debug, Clone)]
pub struct Arenas {
    most: usize,
    free: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Arenas {
    /// Keeps at most so many bytes.
    pub fn new(most: usize) -> Arenas {
        Arenas { most, free: Arc::default() }
    }

    /// An empty arena: the one that was used last, or a new one with room for so many bytes. Room that is never filled costs
    /// addresses and no memory, and to grow step by step would leave the small ones behind.
    pub fn take(&self, room: usize) -> Vec<u8> {
        let known = self.free.lock().ok().and_then(|mut free| free.pop());
        known.unwrap_or_else(|| Vec::with_capacity(room))
    }

    /// The arena's bytes as a buffer. With the last reference to it (decoded strings are views into it) the arena comes back.
    pub fn lend(&self, bytes: Vec<u8>) -> Buffer {
        Buffer::from(Bytes::from_owner(Lent { bytes, home: self.clone() }))
    }

    fn put_back(&self, mut arena: Vec<u8>) {
        arena.clear();
        let Ok(mut free) = self.free.lock() else { return };
        if arena.capacity() > 0 {
            free.push(arena);
        }
        // The largest goes first: few large ones, of few partitions, must not leave the others without.
        while free.iter().map(Vec::capacity).sum::<usize>() > self.most {
            let largest = (0..free.len()).max_by_key(|&index| free[index].capacity());
            largest.map(|index| free.remove(index));
        }
    }
}

struct Lent {
    bytes: Vec<u8>,
    home: Arenas,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.home.put_back(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena(bytes: &[u8], capacity: usize) -> Vec<u8> {
        let mut arena = Vec::with_capacity(capacity);
        arena.extend_from_slice(bytes);
        arena
    }

    #[test]
    fn an_arena_comes_back_empty_once_nobody_looks_at_it() {
        let arenas = Arenas::new(1_000);
        let place = |arena: &Vec<u8>| arena.as_ptr() as usize;
        let first = arena(b"one", 600);
        let at = place(&first);
        let whole = arenas.lend(first);
        let view = whole.slice_with_length(1, 2);
        drop(whole);
        assert_eq!(arenas.take(0).capacity(), 0, "it is still looked at");
        assert_eq!(&view[..], b"ne");
        drop(view);
        let again = arenas.take(0);
        assert_eq!((place(&again), again.len(), again.capacity()), (at, 0, 600));
    }

    #[test]
    fn no_more_is_kept_than_was_said() {
        let arenas = Arenas::new(1_000);
        for capacity in [400, 600, 500] {
            drop(arenas.lend(arena(b"x", capacity)));
        }
        assert_eq!([arenas.take(0), arenas.take(0), arenas.take(7)].map(|arena| arena.capacity()), [500, 400, 7]);
    }
}
