//! Two small structures over dense ids: a map from id to slot, and a set that knows each member's rank.

/// Open addressing from id to slot; one 8-byte entry each, at most half full.
#[derive(Default)]
pub struct IdIndex {
    /// `id << 32 | slot`, or [`EMPTY`].
    entries: Vec<u64>,
    len: usize,
}

const EMPTY: u64 = u64::MAX;

impl IdIndex {
    /// The slot of `id`, or `fresh` after recording it.
    #[inline]
    pub fn get_or_insert(&mut self, id: u32, fresh: u32) -> u32 {
        if self.len * 2 >= self.entries.len() {
            self.grow();
        }
        let mask = self.entries.len() - 1;
        let mut at = Self::start(id, mask);
        loop {
            let entry = self.entries[at];
            if entry == EMPTY {
                self.entries[at] = u64::from(id) << 32 | u64::from(fresh);
                self.len += 1;
                return fresh;
            }
            if (entry >> 32) as u32 == id {
                return entry as u32;
            }
            at = (at + 1) & mask;
        }
    }

    pub fn get(&self, id: u32) -> Option<u32> {
        if self.entries.is_empty() {
            return None;
        }
        let mask = self.entries.len() - 1;
        let mut at = Self::start(id, mask);
        loop {
            let entry = self.entries[at];
            if entry == EMPTY {
                return None;
            }
            if (entry >> 32) as u32 == id {
                return Some(entry as u32);
            }
            at = (at + 1) & mask;
        }
    }

    pub fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<u64>()
    }

    /// Ids that come together lie together: the low bits stay in order, so that a scan in id order stays in cache.
    #[inline]
    fn start(id: u32, mask: usize) -> usize {
        id as usize & mask
    }

    fn grow(&mut self) {
        let bigger = (self.entries.len() * 2).max(16);
        let old = std::mem::replace(&mut self.entries, vec![EMPTY; bigger]);
        let mask = bigger - 1;
        for entry in old {
            if entry == EMPTY {
                continue;
            }
            let mut at = Self::start((entry >> 32) as u32, mask);
            while self.entries[at] != EMPTY {
                at = (at + 1) & mask;
            }
            self.entries[at] = entry;
        }
    }
}

/// A set of ids below a bound. After [`IdSet::seal`] it knows the rank of each member, which makes it a map to dense,
/// sorted slots without sorting.
#[derive(Clone)]
pub struct IdSet {
    words: Vec<u64>,
    /// Members before each word.
    ranks: Vec<u32>,
    len: usize,
}

impl IdSet {
    pub fn new(bound: usize) -> Self {
        IdSet { words: vec![0; bound.div_ceil(64)], ranks: Vec::new(), len: 0 }
    }

    #[inline]
    pub fn insert(&mut self, id: u32) {
        self.words[id as usize / 64] |= 1 << (id % 64);
    }

    /// False also for ids at or past the bound.
    #[inline]
    pub fn contains(&self, id: u32) -> bool {
        self.words.get(id as usize / 64).is_some_and(|word| word >> (id % 64) & 1 == 1)
    }

    pub fn keep_only(&mut self, other: &IdSet) {
        for (i, word) in self.words.iter_mut().enumerate() {
            *word &= other.words.get(i).copied().unwrap_or(0);
        }
    }

    /// Counts the members; [`IdSet::rank`] and [`IdSet::len`] hold until the next insert.
    pub fn seal(&mut self) {
        self.ranks.clear();
        let mut before = 0;
        for word in &self.words {
            self.ranks.push(before);
            before += word.count_ones();
        }
        self.len = before as usize;
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many members are smaller than the member `id`.
    #[inline]
    pub fn rank(&self, id: u32) -> u32 {
        let word = id as usize / 64;
        self.ranks[word] + (self.words[word] & ((1 << (id % 64)) - 1)).count_ones()
    }

    /// The members in ascending order.
    pub fn ids(&self) -> Vec<u32> {
        let mut ids = Vec::with_capacity(self.len);
        for (i, &word) in self.words.iter().enumerate() {
            let mut rest = word;
            while rest != 0 {
                ids.push((i * 64) as u32 + rest.trailing_zeros());
                rest &= rest - 1;
            }
        }
        ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_gives_back_what_was_put_in() {
        let mut index = IdIndex::default();
        let ids: Vec<u32> = (0..5000).map(|i| i * 16 % 4999).collect();
        let mut expected = std::collections::HashMap::new();
        for &id in &ids {
            let fresh = expected.len() as u32;
            let slot = *expected.entry(id).or_insert(fresh);
            assert_eq!(index.get_or_insert(id, fresh), slot);
        }
        assert!(expected.iter().all(|(&id, &slot)| index.get(id) == Some(slot)));
        assert_eq!(index.get(5000), None);
    }

    #[test]
    fn ranks_number_the_members_in_order() {
        let mut set = IdSet::new(300);
        for id in [299, 0, 63, 64, 128] {
            set.insert(id);
        }
        set.seal();
        assert_eq!(set.ids(), [0, 63, 64, 128, 299]);
        assert_eq!(set.ids().iter().map(|&id| set.rank(id)).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert!(!set.contains(1) && !set.contains(300) && !set.contains(4000));
    }
}
