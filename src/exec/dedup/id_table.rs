use hashbrown::HashTable;

use crate::exec::ExecError;
use crate::exec::hash::xxh64;

/// Ids with a value each. Real keys, so that two ids are never taken for one; 8 bytes an id beside the key and the value, and what
/// vectors have in reserve.
///
/// It is cut into 256 parts by hash: each grows by itself, so that no single insertion pays for moving millions of ids, and
/// what has expired is looked for in one part at a time.
pub struct IdTable<V> {
    parts: Vec<Part<V>>,
    len: usize,
}

/// Names an id while it is in the table. After that it may name another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdRef {
    part: u8,
    slot: u32,
}

struct Part<V> {
    index: HashTable<u32>,
    slots: Vec<Slot<V>>,
    free: Vec<u32>,
    /// The keys one behind the other, with gaps where ids have gone.
    keys: Vec<u8>,
    gaps: usize,
}

struct Slot<V> {
    start: u32,
    /// [`FREE`] if there is no id.
    length: u32,
    value: V,
}

const FREE: u32 = u32::MAX;
pub const PARTS: usize = 256;

impl<V> Slot<V> {
    fn key<'a>(&self, keys: &'a [u8]) -> &'a [u8] {
        &keys[self.start as usize..self.start as usize + self.length as usize]
    }
}

/// Grows by a quarter instead of twofold: it is memory that is short here.
fn reserve<T>(values: &mut Vec<T>, more: usize) {
    if values.capacity() - values.len() < more {
        values.reserve_exact(more.max(values.len() / 4).max(16));
    }
}

impl<V: Copy> IdTable<V> {
    pub fn new() -> Self {
        let part = || Part { index: HashTable::new(), slots: vec![], free: vec![], keys: vec![], gaps: 0 };
        IdTable { parts: (0..PARTS).map(|_| part()).collect(), len: 0 }
    }

    /// The id, entered with `value` if it is new.
    pub fn find_or_insert(&mut self, key: &[u8], value: V) -> Result<IdRef, ExecError> {
        let hash = xxh64(key);
        let at = (hash >> 56) as u8;
        // Hash tables tell entries apart by the top bits, which are the same throughout a part.
        let hash = hash.rotate_left(8);
        let Part { index, slots, free, keys, .. } = &mut self.parts[at as usize];
        if let Some(&slot) = index.find(hash, |&slot| slots[slot as usize].key(keys) == key) {
            return Ok(IdRef { part: at, slot });
        }
        let too_many = || ExecError::Invariant("a part of a table of ids has more than 4 GiB of keys".into());
        let start = u32::try_from(keys.len()).map_err(|_| too_many())?;
        let length = u32::try_from(key.len()).map_err(|_| too_many())?;
        reserve(keys, key.len());
        keys.extend_from_slice(key);
        let new = Slot { start, length, value };
        let slot = match free.pop() {
            Some(slot) => {
                slots[slot as usize] = new;
                slot
            }
            None => {
                reserve(slots, 1);
                slots.push(new);
                (slots.len() - 1) as u32
            }
        };
        index.insert_unique(hash, slot, |&slot| xxh64(slots[slot as usize].key(keys)).rotate_left(8));
        self.len += 1;
        Ok(IdRef { part: at, slot })
    }

    /// `None` if there is no id in that place any more.
    pub fn get_mut(&mut self, id: IdRef) -> Option<&mut V> {
        let slot = self.parts[id.part as usize].slots.get_mut(id.slot as usize)?;
        (slot.length != FREE).then_some(&mut slot.value)
    }

    pub fn get(&self, id: IdRef) -> Option<V> {
        let slot = self.parts[id.part as usize].slots.get(id.slot as usize)?;
        (slot.length != FREE).then_some(slot.value)
    }

    pub fn key(&self, id: IdRef) -> Option<&[u8]> {
        let part = &self.parts[id.part as usize];
        let slot = part.slots.get(id.slot as usize)?;
        (slot.length != FREE).then(|| slot.key(&part.keys))
    }

    /// Every id.
    pub fn refs(&self) -> impl Iterator<Item = IdRef> {
        let of_part = |(part, of): (usize, &Part<V>)| -> Vec<IdRef> {
            let live = of.slots.iter().zip(0..).filter(|(slot, _)| slot.length != FREE);
            live.map(|(_, slot)| IdRef { part: part as u8, slot }).collect()
        };
        self.parts.iter().enumerate().flat_map(of_part)
    }

    pub fn remove(&mut self, id: IdRef) {
        let Part { index, slots, free, keys, gaps } = &mut self.parts[id.part as usize];
        let slot = &mut slots[id.slot as usize];
        let hash = xxh64(slot.key(keys)).rotate_left(8);
        if let Ok(entry) = index.find_entry(hash, |&other| other == id.slot) {
            entry.remove();
        }
        *gaps += slot.length as usize;
        slot.length = FREE;
        free.push(id.slot);
        self.len -= 1;
    }

    /// Removes the ids of one part that are not to be kept, and closes the gaps among the keys if they are worth it.
    pub fn sweep(&mut self, part: u8, mut keep: impl FnMut(IdRef, &[u8], &V) -> bool) {
        let Part { slots, keys, .. } = &self.parts[part as usize];
        let live = slots.iter().zip(0..).filter(|(slot, _)| slot.length != FREE);
        let gone: Vec<IdRef> = live
            .map(|(slot, at)| (slot, IdRef { part, slot: at }))
            .filter(|(slot, id)| !keep(*id, slot.key(keys), &slot.value))
            .map(|(_, id)| id)
            .collect();
        gone.into_iter().for_each(|id| self.remove(id));
        let Part { index, slots, free, keys, gaps } = &mut self.parts[part as usize];
        while slots.last().is_some_and(|slot| slot.length == FREE) {
            slots.pop();
        }
        free.retain(|&slot| (slot as usize) < slots.len());
        if *gaps * 4 > keys.len() {
            let mut closed = Vec::with_capacity(keys.len() - *gaps);
            for slot in slots.iter_mut().filter(|slot| slot.length != FREE) {
                let start = closed.len() as u32;
                closed.extend_from_slice(slot.key(keys));
                slot.start = start;
            }
            (*keys, *gaps) = (closed, 0);
        }
        if slots.capacity() > 2 * slots.len() + 8 {
            slots.shrink_to(slots.len());
            free.shrink_to_fit();
        }
        if index.capacity() > 4 * index.len() + 8 {
            index.shrink_to(index.len(), |&slot| xxh64(slots[slot as usize].key(keys)).rotate_left(8));
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn bytes(&self) -> usize {
        let part = |part: &Part<V>| {
            part.index.allocation_size()
                + part.slots.capacity() * size_of::<Slot<V>>()
                + part.free.capacity() * size_of::<u32>()
                + part.keys.capacity()
                + size_of::<Part<V>>()
        };
        self.parts.iter().map(part).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn it_is_a_map() {
        let mut random = StdRng::seed_from_u64(7);
        let mut table: IdTable<u64> = IdTable::new();
        let mut plain: HashMap<Vec<u8>, (u64, IdRef)> = HashMap::new();
        for step in 0..200_000u64 {
            let key = format!("id-{}", random.random_range(0..20_000)).into_bytes();
            let id = table.find_or_insert(&key, step).unwrap();
            let (value, known) = *plain.entry(key).or_insert((step, id));
            assert_eq!((table.get(id), id), (Some(value), known));
            if step % 1000 == 0 {
                // Some that are known go, each in a part of its own.
                let oldest = step.saturating_sub(20_000);
                (0..=255).for_each(|part| table.sweep(part, |_, _, &value| value >= oldest));
                plain.retain(|_, (value, _)| *value >= oldest);
                assert_eq!(table.len(), plain.len());
            }
        }
        assert!(plain.values().all(|&(value, id)| table.get(id) == Some(value)));
        (0..=255).for_each(|part| table.sweep(part, |_, _, _| false));
        assert_eq!(table.len(), 0);
        assert!(table.bytes() < 100_000, "{}", table.bytes());
    }

    /// The figures of README.
    #[test]
    fn a_million_ids_take_what_is_said() {
        let value = [0u64; 3];
        let mut numbers = IdTable::new();
        let mut texts = IdTable::new();
        for n in 0u64..1_000_000 {
            numbers.find_or_insert(&[&[1], &n.to_be_bytes()[..]].concat(), value).unwrap();
            let uuid = format!("\u{24}{:08x}-{:04x}-4000-8000-{:012x}", n * 2_654_435_761 % (1 << 32), n % 65_536, n);
            texts.find_or_insert(uuid.as_bytes(), value).unwrap();
        }
        assert!((54_000_000..58_000_000).contains(&numbers.bytes()), "{}", numbers.bytes());
        assert!((84_000_000..90_000_000).contains(&texts.bytes()), "{}", texts.bytes());
    }
}
