//! Values and how often each is there.

use std::collections::BTreeMap;

/// A value as ordered bytes: the row that Arrow's row format makes of it. That format stays in memory.
pub(super) trait Key: Ord + Clone + Send + Sync + 'static {
    fn of(row: &[u8]) -> Self;
    /// Appends the row to `out`; `width` is the row's length where all have the same.
    fn write(&self, width: usize, out: &mut Vec<u8>);
    fn heap_bytes(&self) -> usize;
}

impl Key for Box<[u8]> {
    fn of(row: &[u8]) -> Self {
        row.into()
    }

    fn write(&self, _: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn heap_bytes(&self) -> usize {
        self.len()
    }
}

/// What stands before the bytes of a value that is not NULL.
const PRESENT: u8 = 1;

/// One column of at most 8 bytes, never NULL.
impl Key for u64 {
    fn of(row: &[u8]) -> Self {
        debug_assert_eq!(row.first(), Some(&PRESENT));
        row[1..].iter().fold(0, |key, &byte| key << 8 | u64::from(byte))
    }

    fn write(&self, width: usize, out: &mut Vec<u8>) {
        out.push(PRESENT);
        out.extend_from_slice(&self.to_be_bytes()[9 - width..]);
    }

    fn heap_bytes(&self) -> usize {
        0
    }
}

/// Keys in order, each with its weight, which is never 0 but may be negative while a tick lasts.
#[derive(Debug, Clone)]
pub(super) enum Multiset<K> {
    Few(Vec<(K, i64)>),
    Many(BTreeMap<K, i64>),
}

/// From here on a map; a vector stays a vector down to nothing.
const FEW: usize = 16;

impl<K: Key> Multiset<K> {
    pub fn new() -> Self {
        Multiset::Few(Vec::new())
    }

    /// Adds to the weight of a key. Returns by how much the number of keys changed.
    pub fn add(&mut self, key: K, weight: i64) -> isize {
        match self {
            Multiset::Few(entries) => match entries.binary_search_by(|e| e.0.cmp(&key)) {
                _ if weight == 0 => 0,
                Ok(at) => {
                    entries[at].1 += weight;
                    if entries[at].1 == 0 {
                        entries.remove(at);
                        return -1;
                    }
                    0
                }
                Err(at) if entries.len() < FEW => {
                    entries.insert(at, (key, weight));
                    1
                }
                Err(_) => {
                    let mut map: BTreeMap<K, i64> = std::mem::take(entries).into_iter().collect();
                    map.insert(key, weight);
                    *self = Multiset::Many(map);
                    1
                }
            },
            Multiset::Many(map) => {
                use std::collections::btree_map::Entry;
                match map.entry(key) {
                    _ if weight == 0 => 0,
                    Entry::Vacant(entry) => {
                        entry.insert(weight);
                        1
                    }
                    Entry::Occupied(mut entry) => {
                        *entry.get_mut() += weight;
                        if *entry.get() == 0 {
                            entry.remove();
                            return -1;
                        }
                        0
                    }
                }
            }
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Multiset::Few(entries) => entries.len(),
            Multiset::Many(map) => map.len(),
        }
    }

    pub fn iter(&self) -> Box<dyn DoubleEndedIterator<Item = (&K, i64)> + '_> {
        match self {
            Multiset::Few(entries) => Box::new(entries.iter().map(|(k, w)| (k, *w))),
            Multiset::Many(map) => Box::new(map.iter().map(|(k, w)| (k, *w))),
        }
    }

    /// The keys that are there.
    pub fn present(&self) -> impl DoubleEndedIterator<Item = (&K, i64)> + '_ {
        self.iter().filter(|&(_, weight)| weight > 0)
    }
}
