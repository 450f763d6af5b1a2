use std::collections::BTreeMap;

/// A set of offsets of one partition, in pieces of 65 536: two bytes an offset in a piece that has few, one bit a record in a
/// piece that has many.
#[derive(Debug, Clone, Default)]
pub struct OffsetSet {
    pieces: BTreeMap<i64, Piece>,
    len: u64,
}

#[derive(Debug, Clone)]
enum Piece {
    /// Ascending.
    Few(Vec<u16>),
    Many(Box<[u64; WORDS]>),
}

const WORDS: usize = 1024;
/// As many as take the room of the bits.
const MOST_FEW: usize = WORDS * 4;

fn split(offset: i64) -> (i64, u16) {
    (offset >> 16, offset as u16)
}

impl OffsetSet {
    /// False if it was there.
    pub fn insert(&mut self, offset: i64) -> bool {
        let (piece, low) = split(offset);
        let piece = self.pieces.entry(piece).or_insert_with(|| Piece::Few(Vec::new()));
        let fresh = match piece {
            Piece::Few(few) => match few.binary_search(&low) {
                Ok(_) => false,
                Err(at) => {
                    few.insert(at, low);
                    if few.len() > MOST_FEW {
                        let mut bits = Box::new([0u64; WORDS]);
                        few.iter().for_each(|&low| bits[low as usize / 64] |= 1 << (low % 64));
                        *piece = Piece::Many(bits);
                    }
                    true
                }
            },
            Piece::Many(bits) => {
                let (word, bit) = (&mut bits[low as usize / 64], 1 << (low % 64));
                let fresh = *word & bit == 0;
                *word |= bit;
                fresh
            }
        };
        self.len += u64::from(fresh);
        fresh
    }

    /// False if it was not there.
    pub fn remove(&mut self, offset: i64) -> bool {
        let (piece, low) = split(offset);
        let there = match self.pieces.get_mut(&piece) {
            None => false,
            Some(Piece::Few(few)) => few.binary_search(&low).is_ok_and(|at| few.remove(at) == low),
            Some(Piece::Many(bits)) => {
                let (word, bit) = (&mut bits[low as usize / 64], 1 << (low % 64));
                let there = *word & bit != 0;
                *word &= !bit;
                there
            }
        };
        self.len -= u64::from(there);
        there
    }

    pub fn contains(&self, offset: i64) -> bool {
        let (piece, low) = split(offset);
        match self.pieces.get(&piece) {
            None => false,
            Some(Piece::Few(few)) => few.binary_search(&low).is_ok(),
            Some(Piece::Many(bits)) => bits[low as usize / 64] & 1 << (low % 64) != 0,
        }
    }

    /// Forgets offsets before `first`, whole pieces at a time.
    pub fn trim(&mut self, first: i64) {
        let kept = self.pieces.split_off(&(first >> 16));
        let gone: usize = self.pieces.values().map(Piece::len).sum();
        self.len -= gone as u64;
        self.pieces = kept;
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn bytes(&self) -> usize {
        let piece = |piece: &Piece| match piece {
            Piece::Few(few) => few.capacity() * size_of::<u16>(),
            Piece::Many(_) => WORDS * size_of::<u64>(),
        };
        self.pieces.values().map(|p| piece(p) + size_of::<(i64, Piece)>()).sum()
    }
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Piece::Few(few) => few.len(),
            Piece::Many(bits) => bits.iter().map(|word| word.count_ones() as usize).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Against a plain set, over offsets dense enough for both forms of a piece.
    #[test]
    fn it_is_a_set() {
        for seed in 0..4 {
            let mut random = StdRng::seed_from_u64(seed);
            let (mut set, mut plain) = (OffsetSet::default(), BTreeSet::new());
            let span = [3_000, 20_000, 200_000, 1 << 40][seed as usize];
            for _ in 0..30_000 {
                let offset = random.random_range(0..span);
                if random.random_bool(0.7) {
                    assert_eq!(set.insert(offset), plain.insert(offset));
                } else {
                    assert_eq!(set.remove(offset), plain.remove(&offset));
                }
                let asked = random.random_range(0..span);
                assert_eq!(set.contains(asked), plain.contains(&asked));
            }
            assert_eq!(set.len(), plain.len() as u64);
            let first = span / 2;
            set.trim(first);
            assert!(plain.range(first..).all(|&offset| set.contains(offset)), "seed {seed}");
            assert_eq!(set.len(), plain.range(first >> 16 << 16..).count() as u64, "seed {seed}");
        }
    }

    #[test]
    fn a_million_records_of_which_every_second_is_in_it_take_a_bit_each() {
        let mut set = OffsetSet::default();
        (0..1_000_000).step_by(2).for_each(|offset| assert!(set.insert(offset)));
        assert!(set.bytes() < 140_000, "{}", set.bytes());
        let mut sparse = OffsetSet::default();
        (0..100_000_000).step_by(100).for_each(|offset| assert!(sparse.insert(offset)));
        assert!(sparse.bytes() < 4_200_000, "{}", sparse.bytes());
    }
}
