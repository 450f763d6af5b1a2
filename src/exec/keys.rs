//! Group keys and the dense ids they are interned to.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, UInt32Array};
use arrow::compute::{concat, take};
use arrow::datatypes::{FieldRef, Schema};
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;

use super::ExecError;

/// Keys stand in chunks of this many, so that a snapshot shares all of them but the last.
pub const CHUNK: usize = 8192;

/// Interns group keys to ids 0, 1, 2, ... in the order of first sight. Ids are known to one owner only: to this process, and to
/// what it saves together with the keys.
pub struct KeyDictionary {
    identity: Arc<()>,
    groups: Option<Box<dyn GroupValues>>,
    len: usize,
    frozen: Vec<Arc<Vec<ArrayRef>>>,
    /// Key columns of the ids past the frozen chunks, in pieces.
    tail: Vec<Vec<ArrayRef>>,
    scratch: Vec<usize>,
    /// Ids of groups that did not get theirs in the order of first sight: of new keys with one hash the later ones come last.
    /// Some have one easily, as a NULL leaves the hash as it is: (1, 2, NULL) and (1, NULL, 2).
    renamed: HashMap<u32, u32>,
}

/// The keys as of a snapshot: id `i` is row `i % CHUNK` of chunk `i / CHUNK`.
#[derive(Clone)]
pub struct KeySnapshot {
    /// One for all snapshots of one dictionary: ids that both know are equal.
    pub identity: Arc<()>,
    pub chunks: Vec<Arc<Vec<ArrayRef>>>,
    pub len: usize,
}

impl KeyDictionary {
    /// No fields: there is one group, id 0, which exists once a row has come.
    pub fn new(fields: &[FieldRef]) -> Result<Self, ExecError> {
        let groups = if fields.is_empty() {
            None
        } else {
            Some(new_group_values(Arc::new(Schema::new(fields.to_vec())), &GroupOrdering::None)?)
        };
        Ok(KeyDictionary {
            identity: Arc::new(()),
            groups,
            len: 0,
            frozen: Vec::new(),
            tail: Vec::new(),
            scratch: Vec::new(),
            renamed: HashMap::new(),
        })
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn bytes(&self) -> usize {
        let chunks: usize = self.frozen.iter().flat_map(|c| c.iter()).map(|a| a.get_array_memory_size()).sum();
        let tail: usize = self.tail.iter().flatten().map(|a| a.get_array_memory_size()).sum();
        self.groups.as_ref().map_or(0, |g| g.size()) + chunks + tail
    }

    /// Appends the id of each of the `rows` rows of `columns` to `ids`.
    pub fn intern(&mut self, columns: &[ArrayRef], rows: usize, ids: &mut Vec<u32>) -> Result<(), ExecError> {
        let Some(groups) = &mut self.groups else {
            ids.resize(ids.len() + rows, 0);
            self.len = self.len.max(usize::from(rows > 0));
            return Ok(());
        };
        self.scratch.clear();
        groups.intern(columns, &mut self.scratch)?;
        let before = ids.len();
        ids.extend(self.scratch.iter().map(|&id| id as u32));
        if groups.len() > self.len {
            let (first, mut fresh) = (self.len, Vec::with_capacity(groups.len() - self.len));
            let mut seen = vec![u32::MAX; groups.len() - first];
            for (row, &group) in ids[before..].iter().enumerate() {
                let Some(new) = (group as usize).checked_sub(first) else { continue };
                if seen[new] == u32::MAX {
                    seen[new] = (first + fresh.len()) as u32;
                    fresh.push(row as u32);
                }
            }
            let renamed = (first as u32..).zip(seen).filter(|(group, id)| group != id);
            self.renamed.extend(renamed);
            self.len += fresh.len();
            let fresh = UInt32Array::from(fresh);
            let piece = columns.iter().map(|c| take(c, &fresh, None)).collect::<Result<Vec<_>, _>>()?;
            self.tail.push(piece);
            self.freeze()?;
        }
        if !self.renamed.is_empty() {
            ids[before..].iter_mut().for_each(|id| *id = *self.renamed.get(id).unwrap_or(id));
        }
        Ok(())
    }

    /// Moves full chunks out of the tail.
    fn freeze(&mut self) -> Result<(), ExecError> {
        if self.len - self.frozen.len() * CHUNK < CHUNK {
            return Ok(());
        }
        let mut columns = self.join_tail()?;
        if self.len - self.frozen.len() * CHUNK == CHUNK {
            self.frozen.push(Arc::new(columns));
            self.tail.clear();
            return Ok(());
        }
        while self.len - self.frozen.len() * CHUNK >= CHUNK {
            let chunk = columns.iter().map(|c| copied(c, CHUNK)).collect::<Result<Vec<_>, _>>()?;
            columns = columns.iter().map(|c| c.slice(CHUNK, c.len() - CHUNK)).collect();
            self.frozen.push(Arc::new(chunk));
        }
        let rest = columns.iter().map(|c| copied(c, c.len())).collect::<Result<Vec<_>, _>>()?;
        self.tail = if rest.first().is_some_and(|c| !c.is_empty()) { vec![rest] } else { Vec::new() };
        Ok(())
    }

    fn join_tail(&self) -> Result<Vec<ArrayRef>, ExecError> {
        let Some(first) = self.tail.first() else { return Ok(Vec::new()) };
        (0..first.len())
            .map(|column| {
                let pieces: Vec<_> = self.tail.iter().map(|piece| piece[column].as_ref()).collect();
                Ok(concat(&pieces)?)
            })
            .collect()
    }

    /// The key columns of the ids from `first` on, in pieces.
    pub fn since(&mut self, first: usize) -> Result<Vec<Vec<ArrayRef>>, ExecError> {
        let all = self.snapshot()?;
        let mut pieces = Vec::new();
        for (number, chunk) in all.chunks.iter().enumerate().skip(first / CHUNK) {
            let from = first.saturating_sub(number * CHUNK);
            let rows = (all.len - number * CHUNK).min(CHUNK) - from;
            if rows > 0 {
                pieces.push(chunk.iter().map(|column| column.slice(from, rows)).collect());
            }
        }
        Ok(pieces)
    }

    pub fn snapshot(&mut self) -> Result<KeySnapshot, ExecError> {
        let mut chunks = self.frozen.clone();
        if !self.tail.is_empty() {
            let tail = self.join_tail()?;
            self.tail = vec![tail.clone()];
            chunks.push(Arc::new(tail));
        } else if self.groups.is_none() && self.len > 0 {
            chunks.push(Arc::new(Vec::new()));
        }
        Ok(KeySnapshot { identity: self.identity.clone(), chunks, len: self.len })
    }
}

/// The first rows of a column in memory of their own: a slice would keep the whole column alive, and be counted as it.
fn copied(column: &ArrayRef, rows: usize) -> Result<ArrayRef, ExecError> {
    Ok(take(column, &(0..rows as u32).collect::<UInt32Array>(), None)?)
}

impl KeySnapshot {
    /// The key columns of `ids` in their order, which all lie in one chunk; one may come several times.
    pub fn take_each(&self, ids: &[u32]) -> Result<Vec<ArrayRef>, ExecError> {
        let Some(&first) = ids.first() else { return Ok(Vec::new()) };
        let base = (first as usize / CHUNK * CHUNK) as u32;
        let rows: UInt32Array = ids.iter().map(|id| id - base).collect::<Vec<_>>().into();
        let chunk = &self.chunks[first as usize / CHUNK];
        Ok(chunk.iter().map(|c| take(c, &rows, None)).collect::<Result<Vec<_>, _>>()?)
    }

    /// The key columns of sorted `ids`, which all lie in one chunk.
    pub fn take(&self, ids: &[u32]) -> Result<Vec<ArrayRef>, ExecError> {
        let Some(&first) = ids.first() else { return Ok(Vec::new()) };
        let chunk = &self.chunks[first as usize / CHUNK];
        let base = (first as usize / CHUNK * CHUNK) as u32;
        let start = (first - base) as usize;
        let contiguous = ids[ids.len() - 1] - first + 1 == ids.len() as u32;
        if contiguous {
            return Ok(chunk.iter().map(|c| c.slice(start, ids.len())).collect());
        }
        let rows: UInt32Array = ids.iter().map(|id| id - base).collect::<Vec<_>>().into();
        Ok(chunk.iter().map(|c| take(c, &rows, None)).collect::<Result<Vec<_>, _>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::text::parse;

    /// Each row's key is what its id stands for, and there are no other keys.
    fn check(text: &str, keys: usize) {
        let delta = parse(text);
        let (schema, columns) = (delta.rows.schema(), delta.rows.columns());
        let mut dictionary = KeyDictionary::new(schema.fields()).expect("a dictionary");
        let mut ids = Vec::new();
        dictionary.intern(columns, delta.rows.num_rows(), &mut ids).expect("ids");
        assert_eq!(dictionary.len(), keys, "{ids:?}");
        let mut next = 0;
        for &id in &ids {
            assert!(id <= next, "in the order of first sight: {ids:?}");
            next = next.max(id + 1);
        }
        let snapshot = dictionary.snapshot().expect("a snapshot");
        assert_eq!(snapshot.take_each(&ids).expect("keys"), columns, "{ids:?}");
    }

    #[test]
    fn keys_with_one_hash_are_all_kept() {
        check("a:i b:i c:i\n+ 1 2 .\n+ 1 . 2\n+ 3 4 5\n+ 1 . 2\n+ 6 7 8", 4);
        check("a:s b:s c:s\n+ x y .\n+ x . y\n+ . x y\n+ x y .\n+ z z z", 4);
    }
}
