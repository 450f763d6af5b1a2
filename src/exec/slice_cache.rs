//! What is kept in memory of batches that can be had again: closed slices that are in files, and what readers have put
//! together from closed slices.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::slice_batch::SliceBatch;

/// One for the process: which batches stay. Those that are nowhere else are *pinned*; the others are *cached*, and the least
/// recently used go once they are more than the limit.
///
/// Whoever puts a batch in makes the room. Nothing is done for a row that comes in.
pub struct SliceCache {
    limit_bytes: AtomicUsize,
    /// As much as is pinned may be cached, too: without files, readers may put together as much as there is.
    follows_pinned: bool,
    cached_bytes: AtomicUsize,
    pinned_bytes: AtomicUsize,
    clock: AtomicU64,
    shelves: Mutex<Shelves>,
}

/// Of the batches that are cached.
#[derive(Default)]
struct Shelves {
    all: Vec<Weak<Shelf>>,
    /// Once there are so many, those that are empty are looked for.
    look_at: usize,
}

/// The place of one batch, which may be there or not.
pub struct Shelf {
    cache: Arc<SliceCache>,
    /// Bytes of all that belong to one owner.
    tally: Arc<AtomicUsize>,
    used: AtomicU64,
    on_it: Mutex<OnIt>,
}

struct OnIt {
    batch: Option<Arc<SliceBatch>>,
    pinned: bool,
}

impl Default for SliceCache {
    /// For a store that has one of its own.
    fn default() -> Self {
        SliceCache::at_least(16 << 20)
    }
}

impl SliceCache {
    pub fn new(limit_bytes: usize) -> Self {
        SliceCache { follows_pinned: false, ..SliceCache::at_least(limit_bytes) }
    }

    /// Its limit is this, or what is pinned if that is more.
    pub fn at_least(limit_bytes: usize) -> Self {
        SliceCache {
            limit_bytes: AtomicUsize::new(limit_bytes),
            follows_pinned: true,
            cached_bytes: AtomicUsize::new(0),
            pinned_bytes: AtomicUsize::new(0),
            clock: AtomicU64::new(0),
            shelves: Mutex::default(),
        }
    }

    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes.load(Relaxed)
    }

    pub fn set_limit_bytes(&self, limit_bytes: usize) {
        self.limit_bytes.store(limit_bytes, Relaxed);
        self.make_room(&mut self.shelves.lock());
    }

    /// Of batches that can go. Readers may hold some that have gone.
    pub fn bytes(&self) -> usize {
        self.cached_bytes.load(Relaxed)
    }

    /// Bytes of closed slices that are in no file yet.
    pub fn pinned_bytes(&self) -> usize {
        self.pinned_bytes.load(Relaxed)
    }

    fn room(&self) -> usize {
        self.limit_bytes().max(if self.follows_pinned { self.pinned_bytes() } else { 0 })
    }

    fn add(&self, shelf: &Arc<Shelf>) {
        let mut shelves = self.shelves.lock();
        shelves.all.push(Arc::downgrade(shelf));
        if shelves.all.len() > shelves.look_at {
            shelves.all.retain(|shelf| shelf.upgrade().is_some_and(|shelf| shelf.is_cached()));
            shelves.look_at = (2 * shelves.all.len()).max(256);
        }
        self.make_room(&mut shelves);
    }

    fn make_room(&self, shelves: &mut Shelves) {
        let room = self.room();
        if self.bytes() <= room {
            return;
        }
        let mut by_age: Vec<(u64, Arc<Shelf>)> =
            shelves.all.iter().filter_map(Weak::upgrade).map(|shelf| (shelf.used.load(Relaxed), shelf)).collect();
        by_age.sort_unstable_by_key(|(used, _)| *used);
        let mut gone = Vec::new();
        for (_, shelf) in &by_age {
            // Down to three quarters at once, so that the next ones need not sort again.
            if self.bytes() <= room / 4 * 3 {
                break;
            }
            gone.extend(shelf.clear());
        }
        shelves.all.retain(|shelf| shelf.upgrade().is_some_and(|shelf| shelf.is_cached()));
    }
}

impl Shelf {
    /// `tally` is raised by what is on the shelf. `pinned`: until [`Shelf::unpin`], it stays.
    pub fn with(
        cache: Arc<SliceCache>,
        tally: Arc<AtomicUsize>,
        batch: Option<Arc<SliceBatch>>,
        pinned: bool,
    ) -> Arc<Shelf> {
        let used = AtomicU64::new(cache.clock.fetch_add(1, Relaxed));
        let on_it = Mutex::new(OnIt { batch: None, pinned });
        let shelf = Arc::new(Shelf { cache, tally, used, on_it });
        if let Some(batch) = batch {
            shelf.put(batch);
        }
        shelf
    }

    pub fn get(&self) -> Option<Arc<SliceBatch>> {
        let batch = self.on_it.lock().batch.clone()?;
        self.used.store(self.cache.clock.fetch_add(1, Relaxed), Relaxed);
        Some(batch)
    }

    pub fn put(self: &Arc<Self>, batch: Arc<SliceBatch>) {
        let bytes = batch.bytes;
        let (before, pinned) = {
            let mut on_it = self.on_it.lock();
            let before = on_it.batch.replace(batch);
            self.count(bytes, on_it.pinned, true);
            if let Some(before) = &before {
                self.count(before.bytes, on_it.pinned, false);
            }
            (before, on_it.pinned)
        };
        self.used.store(self.cache.clock.fetch_add(1, Relaxed), Relaxed);
        if before.is_none() && !pinned {
            self.cache.add(self);
        }
    }

    /// What is here can be had again from now on.
    pub fn unpin(self: &Arc<Self>) {
        {
            let mut on_it = self.on_it.lock();
            if !std::mem::replace(&mut on_it.pinned, false) {
                return;
            }
            let Some(batch) = &on_it.batch else { return };
            self.count(batch.bytes, true, false);
            self.count(batch.bytes, false, true);
        }
        self.cache.add(self);
    }

    pub fn is_empty(&self) -> bool {
        self.on_it.lock().batch.is_none()
    }

    fn is_cached(&self) -> bool {
        let on_it = self.on_it.lock();
        on_it.batch.is_some() && !on_it.pinned
    }

    /// Of one that is cached: what is pinned is not among those that are asked.
    fn clear(&self) -> Option<Arc<SliceBatch>> {
        let mut on_it = self.on_it.lock();
        let batch = on_it.batch.take()?;
        self.count(batch.bytes, false, false);
        Some(batch)
    }

    fn count(&self, bytes: usize, pinned: bool, comes: bool) {
        let of_kind = if pinned { &self.cache.pinned_bytes } else { &self.cache.cached_bytes };
        for counter in [of_kind, &*self.tally] {
            if comes {
                counter.fetch_add(bytes, Relaxed);
            } else {
                counter.fetch_sub(bytes, Relaxed);
            }
        }
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        let on_it = self.on_it.get_mut();
        if let (Some(batch), pinned) = (on_it.batch.take(), on_it.pinned) {
            self.count(batch.bytes, pinned, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some bytes: ids and counts, 12 for a row.
    fn batch(slice: i64, rows: usize) -> Arc<SliceBatch> {
        Arc::new(SliceBatch::new(slice, vec![0; rows], vec![1; rows], Vec::new()))
    }

    fn there(shelves: &[Arc<Shelf>]) -> Vec<usize> {
        (0..shelves.len()).filter(|&i| !shelves[i].is_empty()).collect()
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first_and_what_is_pinned_stays() {
        let cache = Arc::new(SliceCache::new(4800));
        let tally = Arc::new(AtomicUsize::new(0));
        let shelf = |i, pinned| Shelf::with(cache.clone(), tally.clone(), Some(batch(i, 100)), pinned);
        let pinned = shelf(9, true);
        let shelves: Vec<_> = (0..4).map(|i| shelf(i, false)).collect();
        assert_eq!((cache.bytes(), cache.pinned_bytes()), (4800, 1200));
        assert_eq!(there(&shelves), [0, 1, 2, 3]);
        shelves[0].get();
        let more = shelf(4, false);
        assert_eq!(there(&shelves), [0, 3], "down to three quarters");
        assert!(!more.is_empty() && !pinned.is_empty());
        assert_eq!(tally.load(Relaxed), 4 * 1200);
        pinned.unpin();
        assert_eq!((cache.bytes(), cache.pinned_bytes()), (4800, 0));
        cache.set_limit_bytes(0);
        assert!(there(&shelves).is_empty() && pinned.is_empty() && more.is_empty());
        assert_eq!((cache.bytes(), tally.load(Relaxed)), (0, 0));
        shelves[2].put(batch(2, 1));
        assert!(shelves[2].is_empty(), "nothing stays where there is no room");
    }

    #[test]
    fn what_is_dropped_is_not_counted() {
        let cache = Arc::new(SliceCache::new(1 << 20));
        let tally = Arc::new(AtomicUsize::new(0));
        for i in 0..10_000 {
            let shelf = Shelf::with(cache.clone(), tally.clone(), Some(batch(i, 10)), i % 2 == 0);
            shelf.put(batch(i, 20));
            assert_eq!(tally.load(Relaxed), 240);
        }
        assert_eq!((cache.bytes(), cache.pinned_bytes(), tally.load(Relaxed)), (0, 0, 0));
        assert!(cache.shelves.lock().all.len() <= 257);
    }

    #[test]
    fn as_much_may_be_cached_as_is_pinned() {
        let cache = Arc::new(SliceCache::at_least(0));
        let tally = Arc::new(AtomicUsize::new(0));
        let pinned = Shelf::with(cache.clone(), tally.clone(), Some(batch(0, 1000)), true);
        let cached = Shelf::with(cache.clone(), tally, Some(batch(1, 1000)), false);
        assert!(!cached.is_empty());
        drop(pinned);
        cache.set_limit_bytes(0);
        assert!(cached.is_empty());
    }
}
