//! Closed states of keys as columns, and how such columns are put together.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, UInt32Array};
use arrow::compute::take;

use super::ExecError;
use super::closed_slice::ClosedSlice;
use super::id_set::IdSet;
use super::slice_store::StoreLayout;
use super::state::States;

/// A slice, or several as one, as immutable columns, sorted by id.
#[derive(Debug)]
pub struct SliceBatch {
    /// The slice, or the first of several.
    pub slice: i64,
    pub ids: Vec<u32>,
    /// Net rows by key; a key with none is left out.
    pub counts: Vec<i64>,
    /// One array per measure of the layout, in the measure's Arrow form.
    pub states: Vec<ArrayRef>,
    /// Memory, roughly, which is also what it costs to merge.
    pub bytes: usize,
}

impl SliceBatch {
    pub fn new(slice: i64, ids: Vec<u32>, counts: Vec<i64>, states: Vec<ArrayRef>) -> Self {
        let of_states: usize = states.iter().map(|s| s.get_array_memory_size()).sum();
        SliceBatch { bytes: of_states + ids.capacity() * 4 + counts.capacity() * 8, slice, ids, counts, states }
    }
}

/// Something to merge: sorted ids with the states of the measures that are merged.
pub struct Piece<'a> {
    pub ids: &'a [u32],
    pub counts: &'a [i64],
    pub states: Vec<&'a ArrayRef>,
}

impl SliceBatch {
    pub fn piece(&self, measures: &[usize]) -> Piece<'_> {
        Piece { ids: &self.ids, counts: &self.counts, states: measures.iter().map(|&m| &self.states[m]).collect() }
    }
}

/// Keys and what some slices together say of them, ascending by id.
pub struct Merged {
    pub ids: Vec<u32>,
    pub counts: Vec<i64>,
    /// One array per measure asked for, as SQL shows it.
    pub outputs: Vec<ArrayRef>,
    /// How many values of each are NULL because they do not fit its type.
    pub overflowed: Vec<usize>,
}

impl Merged {
    /// Leaves out keys whose rows cancel.
    pub fn without_empty(self) -> Result<Merged, ExecError> {
        if self.counts.iter().all(|&count| count > 0) {
            return Ok(self);
        }
        let rows: Vec<u32> = (0..self.ids.len() as u32).filter(|&row| self.counts[row as usize] > 0).collect();
        let rows = UInt32Array::from(rows);
        Ok(Merged {
            ids: rows.values().iter().map(|&row| self.ids[row as usize]).collect(),
            counts: rows.values().iter().map(|&row| self.counts[row as usize]).collect(),
            outputs: self.outputs.iter().map(|c| take(c, &rows, None)).collect::<Result<_, _>>()?,
            overflowed: self.overflowed,
        })
    }
}

/// States of some ids while pieces are merged into them.
pub struct Merging {
    /// Ascending.
    pub ids: Vec<u32>,
    pub counts: Vec<i64>,
    pub states: Vec<Box<dyn States>>,
}

impl Merging {
    pub fn new(layout: &StoreLayout, ids: Vec<u32>, measures: &[usize]) -> Self {
        let mut states: Vec<_> = measures.iter().map(|&m| layout.measures[m].create()).collect();
        states.iter_mut().for_each(|s| s.resize(ids.len()));
        Merging { counts: vec![0; ids.len()], states, ids }
    }

    /// Row `rows[i]` of the piece, or row i, goes to `slots[i]`; `taken_away`: what it says is subtracted.
    fn combine(
        &mut self,
        piece: &Piece<'_>,
        rows: Option<&UInt32Array>,
        slots: &[u32],
        taken_away: bool,
    ) -> Result<(), ExecError> {
        let sign = if taken_away { -1 } else { 1 };
        match rows {
            None => {
                slots.iter().zip(piece.counts).for_each(|(&slot, count)| self.counts[slot as usize] += sign * count)
            }
            Some(rows) => {
                for (&slot, &row) in slots.iter().zip(rows.values()) {
                    self.counts[slot as usize] += sign * piece.counts[row as usize];
                }
            }
        }
        for (states, &column) in self.states.iter_mut().zip(&piece.states) {
            let taken = rows.map(|rows| take(column, rows, None)).transpose()?;
            let column = taken.as_ref().unwrap_or(column);
            if taken_away {
                states.subtract(slots, column)?;
            } else {
                states.merge(slots, column)?;
            }
        }
        Ok(())
    }

    /// The rows of a piece whose ids are among `ids`, which says the slot of each; `all`: every row's is.
    pub fn add(&mut self, piece: &Piece<'_>, ids: &IdSet, all: bool, taken_away: bool) -> Result<(), ExecError> {
        if all {
            let slots: Vec<u32> = piece.ids.iter().map(|&id| ids.rank(id)).collect();
            return self.combine(piece, None, &slots, taken_away);
        }
        let rows: Vec<u32> = (0..piece.ids.len() as u32).filter(|&row| ids.contains(piece.ids[row as usize])).collect();
        let slots: Vec<u32> = rows.iter().map(|&row| ids.rank(piece.ids[row as usize])).collect();
        self.combine(piece, Some(&UInt32Array::from(rows)), &slots, taken_away)
    }

    /// The rows of a piece for few ids, each found by binary search.
    pub fn add_looked_up(&mut self, piece: &Piece<'_>, taken_away: bool) -> Result<(), ExecError> {
        let (mut at, mut rows) = (Vec::new(), Vec::new());
        for (position, id) in self.ids.iter().enumerate() {
            if let Ok(row) = piece.ids.binary_search(id) {
                at.push(position as u32);
                rows.push(row as u32);
            }
        }
        if at.is_empty() { Ok(()) } else { self.combine(piece, Some(&UInt32Array::from(rows)), &at, taken_away) }
    }

    /// What has been merged so far as one batch, keys without rows left out.
    pub fn batch(&self, slice: i64) -> Result<SliceBatch, ExecError> {
        let slots: Vec<u32> = (0..self.ids.len() as u32).filter(|&slot| self.counts[slot as usize] != 0).collect();
        let states =
            self.states.iter().map(|s| if slots.len() == self.ids.len() { s.states() } else { s.take(&slots) });
        Ok(SliceBatch::new(
            slice,
            slots.iter().map(|&slot| self.ids[slot as usize]).collect(),
            slots.iter().map(|&slot| self.counts[slot as usize]).collect(),
            states.collect::<Result<_, _>>()?,
        ))
    }

    /// What has been merged so far, as SQL shows it; keys whose rows cancel are still there.
    pub fn finish(&self) -> Result<Merged, ExecError> {
        let outputs: Vec<ArrayRef> = self.states.iter().map(|s| s.finish()).collect::<Result<_, _>>()?;
        // What has no NULL needs no second look.
        let values = self.states.iter().zip(&outputs);
        let overflowed = values.map(|(s, o)| if o.null_count() == 0 { 0 } else { s.overflowed() }).collect();
        Ok(Merged { ids: self.ids.clone(), counts: self.counts.clone(), outputs, overflowed })
    }
}

/// What is of one slice.
pub trait OfSlice {
    /// Its number.
    fn slice(&self) -> i64;
}

impl OfSlice for SliceBatch {
    fn slice(&self) -> i64 {
        self.slice
    }
}

impl OfSlice for ClosedSlice {
    fn slice(&self) -> i64 {
        self.slice
    }
}

/// Those of `slices`, which ascend, that lie in the range.
pub fn slices_in<'a, T: OfSlice>(slices: &'a [Arc<T>], range: &Range<i64>) -> &'a [Arc<T>] {
    let from = slices.partition_point(|s| s.slice() < range.start);
    let to = slices.partition_point(|s| s.slice() < range.end);
    &slices[from..to.max(from)]
}

/// The ids of some pieces, ranked. `bound`: all are below it.
pub fn ids_of<'a>(pieces: impl IntoIterator<Item = &'a [u32]>, bound: usize) -> IdSet {
    let mut ids = IdSet::new(bound);
    pieces.into_iter().flatten().for_each(|&id| ids.insert(id));
    ids.seal();
    ids
}

/// Several batches of one layout as one.
pub fn merge_batches(
    layout: &StoreLayout,
    batches: &[Arc<SliceBatch>],
    bound: usize,
) -> Result<Arc<SliceBatch>, ExecError> {
    let measures: Vec<usize> = (0..layout.measures.len()).collect();
    let ids = ids_of(batches.iter().map(|b| b.ids.as_slice()), bound);
    let mut merging = Merging::new(layout, ids.ids(), &measures);
    for batch in batches {
        merging.add(&batch.piece(&measures), &ids, true, false)?;
    }
    Ok(Arc::new(merging.batch(batches.first().map_or(0, |b| b.slice))?))
}

/// Splits ascending ids where the key chunk changes.
pub fn by_chunk(ids: &[u32]) -> impl Iterator<Item = &[u32]> {
    ids.chunk_by(|a, b| *a as usize / super::keys::CHUNK == *b as usize / super::keys::CHUNK)
}
