use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{BinaryArray, Int64Array};
use arrow::datatypes::Int64Type;
use serde::{Deserialize, Serialize};

use crate::exec::ExecError;
use crate::exec::durable::Saved;
use crate::exec::saved_columns::{SavedColumns, section, since_whole, wrong};

/// A set of offsets of one partition, in pieces of 65 536: two bytes an offset in a piece that has few, one bit a record in a
/// piece that has many.
///
/// Saved piece by piece: those in which something was put in or taken out since the last time.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(try_from = "Form", into = "Form")]
pub struct OffsetSet {
    pieces: BTreeMap<i64, Piece>,
    len: u64,
    unsaved: Option<Unsaved>,
}

#[derive(Debug, Clone)]
enum Piece {
    /// Ascending.
    Few(Vec<u16>),
    Many(Box<[u64; WORDS]>),
}

/// What the next save has to give.
#[derive(Debug, Clone, Default)]
struct Unsaved {
    /// None was given before.
    first: bool,
    pieces: BTreeSet<i64>,
}

/// As it is kept with other small things.
#[derive(Serialize, Deserialize)]
struct Form {
    few: Vec<(i64, Vec<u16>)>,
    many: Vec<(i64, Vec<u64>)>,
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
        let (number, low) = split(offset);
        let piece = self.pieces.entry(number).or_insert_with(|| Piece::Few(Vec::new()));
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
        if let Some(unsaved) = self.unsaved.as_mut().filter(|_| fresh) {
            unsaved.pieces.insert(number);
        }
        fresh
    }

    /// False if it was not there.
    pub fn remove(&mut self, offset: i64) -> bool {
        let (number, low) = split(offset);
        let there = match self.pieces.get_mut(&number) {
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
        if let Some(unsaved) = self.unsaved.as_mut().filter(|_| there) {
            unsaved.pieces.insert(number);
        }
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
        if let Some(unsaved) = &mut self.unsaved {
            unsaved.pieces.extend(self.pieces.keys());
        }
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

impl OffsetSet {
    /// From now on [`OffsetSet::save`] gives what has changed.
    pub fn track_saves(&mut self) {
        self.unsaved.get_or_insert_with(|| Unsaved { first: true, pieces: BTreeSet::new() });
    }

    /// See [`crate::exec::durable`].
    pub fn save(&mut self, whole: bool) -> Result<Saved, ExecError> {
        // After an error the next gives all.
        let next = || Unsaved { first: true, pieces: BTreeSet::new() };
        let unsaved = self.unsaved.as_mut().map(|unsaved| std::mem::replace(unsaved, next()));
        let changed = unsaved.filter(|unsaved| !whole && !unsaved.first).map(|unsaved| unsaved.pieces);
        let mut saved = Saved { whole: changed.is_none(), ..Saved::default() };
        let (mut few, mut many) = (Vec::new(), Vec::new());
        for number in changed.unwrap_or_else(|| self.pieces.keys().copied().collect()) {
            match self.pieces.get(&number) {
                None => few.push((number, Vec::new())),
                Some(Piece::Few(lows)) => {
                    few.push((number, lows.iter().flat_map(|low| low.to_le_bytes()).collect::<Vec<u8>>()));
                }
                Some(Piece::Many(words)) => {
                    many.push((number, words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>()));
                }
            }
        }
        for (name, pieces) in [("few", few), ("many", many)] {
            if !pieces.is_empty() {
                let numbers = Int64Array::from_iter_values(pieces.iter().map(|(number, _)| *number));
                let bytes = BinaryArray::from_iter_values(pieces.iter().map(|(_, bytes)| bytes));
                saved.push(name, section(vec![("piece", Arc::new(numbers)), ("offsets", Arc::new(bytes))])?);
            }
        }
        if let Some(unsaved) = &mut self.unsaved {
            unsaved.first = false;
        }
        Ok(saved)
    }

    /// What was saved, tracked from there on.
    pub fn load(saves: &[Saved]) -> Result<OffsetSet, ExecError> {
        let mut set = OffsetSet::default();
        for saved in since_whole(saves)? {
            for section in &saved.sections {
                let columns = SavedColumns::of(&section.name, &section.rows);
                let (numbers, bytes) = (columns.values::<Int64Type>("piece")?, columns.bytes("offsets")?);
                for (&number, bytes) in numbers.iter().zip(bytes.iter()) {
                    let bytes = bytes.unwrap_or_default();
                    let piece = match section.name.as_str() {
                        "few" => Piece::few(bytes.chunks(2).map(|low| low.try_into().map(u16::from_le_bytes))),
                        "many" => Piece::many(bytes.chunks(8).map(|word| word.try_into().map(u64::from_le_bytes))),
                        other => return Err(wrong(format!("a set of offsets has no section {other}"))),
                    };
                    set.put(number, piece.ok_or_else(|| columns.wrong("a piece of offsets is not one"))?);
                }
            }
        }
        set.unsaved = Some(Unsaved::default());
        Ok(set)
    }

    fn put(&mut self, number: i64, piece: Piece) {
        self.len += piece.len() as u64;
        let before = match piece.len() {
            0 => self.pieces.remove(&number),
            _ => self.pieces.insert(number, piece),
        };
        self.len -= before.map_or(0, |before| before.len() as u64);
    }
}

impl From<OffsetSet> for Form {
    fn from(set: OffsetSet) -> Self {
        let mut form = Form { few: Vec::new(), many: Vec::new() };
        for (number, piece) in set.pieces {
            match piece {
                Piece::Few(few) => form.few.push((number, few)),
                Piece::Many(words) => form.many.push((number, words.to_vec())),
            }
        }
        form
    }
}

impl TryFrom<Form> for OffsetSet {
    type Error = &'static str;

    fn try_from(form: Form) -> Result<Self, Self::Error> {
        let mut set = OffsetSet::default();
        for (number, few) in form.few {
            set.put(number, Piece::few(few.into_iter().map(Ok::<_, ()>)).ok_or("offsets that do not ascend")?);
        }
        for (number, words) in form.many {
            set.put(number, Piece::many(words.into_iter().map(Ok::<_, ()>)).ok_or("a piece of another size")?);
        }
        Ok(set)
    }
}

impl Piece {
    fn few<E>(lows: impl Iterator<Item = Result<u16, E>>) -> Option<Piece> {
        let lows: Vec<u16> = lows.collect::<Result<_, E>>().ok()?;
        (lows.len() <= MOST_FEW && lows.windows(2).all(|pair| pair[0] < pair[1])).then_some(Piece::Few(lows))
    }

    fn many<E>(words: impl Iterator<Item = Result<u64, E>>) -> Option<Piece> {
        let words: Vec<u64> = words.collect::<Result<_, E>>().ok()?;
        Some(Piece::Many(words.into_boxed_slice().try_into().ok()?))
    }

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

    /// Saved and loaded again and again, between changes.
    #[test]
    fn what_was_saved_comes_back() {
        for seed in 0..6 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut set = OffsetSet::default();
            set.track_saves();
            let mut saves = Vec::new();
            let (mut plain, mut least) = (BTreeSet::new(), 0);
            for round in 0..30 {
                if random.random_bool(0.1) {
                    least = (least + random.random_range(0..100_000)).min(390_000);
                    set.trim(least);
                    plain = plain.split_off(&(least >> 16 << 16));
                }
                for _ in 0..2000 {
                    let offset = random.random_range(least..400_000);
                    match random.random_bool(0.8) {
                        true => assert_eq!(set.insert(offset), plain.insert(offset)),
                        false => assert_eq!(set.remove(offset), plain.remove(&offset)),
                    }
                }
                let saved = set.save(random.random_bool(0.1)).unwrap();
                assert!(saved.whole || round > 0);
                assert!(set.save(false).unwrap().is_empty(), "nothing has changed");
                saves.push(saved);
                let form = serde_json::to_string(&set).unwrap();
                if random.random_bool(0.3) {
                    set = OffsetSet::load(&saves).unwrap();
                }
                for set in [&set, &serde_json::from_str(&form).unwrap()] {
                    assert_eq!(set.len(), plain.len() as u64, "seed {seed}");
                    assert!(plain.iter().all(|&offset| set.contains(offset)), "seed {seed}");
                }
            }
            assert!(saves.iter().any(|saved| !saved.whole) && saves.iter().flat_map(|s| s.rows("many")).count() > 0);
        }
    }

    #[test]
    fn what_is_no_set_is_refused() {
        let mut set = OffsetSet::default();
        for offset in [1, 2, 70_000] {
            set.insert(offset);
        }
        let saved = set.save(true).unwrap();
        let error = |saves: &[Saved]| OffsetSet::load(saves).unwrap_err().to_string();
        let renamed = |name: &str| {
            let mut saved = saved.clone();
            saved.sections[0].name = name.into();
            error(&[saved])
        };
        let mut part = saved.clone();
        part.whole = false;
        insta::assert_snapshot!([error(&[]), error(&[part]), renamed("many"), renamed("others")].join("\n"), @r"
        a saved state cannot be read: there is no whole one to begin with
        a saved state cannot be read: there is no whole one to begin with
        a saved state cannot be read: section many: a piece of offsets is not one
        a saved state cannot be read: a set of offsets has no section others
        ");
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
