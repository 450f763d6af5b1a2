//! Other states in the place of slices that were found wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use arrow::array::UInt32Array;
use arrow::compute::take;

use super::super::closed_slice::ClosedSlice;
use super::super::open_slice::{OpenSlice, Tracks};
use super::super::slice_batch::slices_in;
use super::{Arc, ExecError, Panes, PartialRows, SliceStore};

impl SliceStore {
    /// From here on the slices of a range hold these rows and no others. Slices that have been forgotten stay so; which are closed
    /// and which are open stays as it is. Returns the ids that were or are in each slice, ascending. Call it when
    /// [`SliceStore::take_dirty`] has nothing to tell. Cost: the rows of the range, before and after.
    pub fn replace(&mut self, slices: Range<i64>, rows: &[PartialRows]) -> Result<Vec<(i64, Vec<u32>)>, ExecError> {
        let first = self.first_kept.map_or(slices.start, |kept| kept.max(slices.start));
        let slices = first..slices.end.max(first);
        let mut touched: BTreeMap<i64, BTreeSet<u32>> = BTreeMap::new();
        for (&slice, open) in self.open.range(slices.clone()) {
            touched.entry(slice).or_default().extend(&open.ids);
        }
        for closed in slices_in(&self.closed, &slices) {
            touched.entry(closed.slice).or_default().extend(&closed.batch()?.ids);
        }
        let mut fresh: BTreeMap<i64, OpenSlice> = BTreeMap::new();
        let (mut ids, mut slots) = (Vec::new(), Vec::new());
        for batch in rows {
            ids.clear();
            self.keys.intern(&batch.keys, batch.slices.len(), &mut ids)?;
            let mut by_slice: BTreeMap<i64, Vec<u32>> = BTreeMap::new();
            for (row, slice) in batch.slices.iter().enumerate().filter(|(_, slice)| slices.contains(slice)) {
                by_slice.entry(*slice).or_default().push(row as u32);
            }
            for (slice, rows) in by_slice {
                let of_slice: Vec<u32> = rows.iter().map(|&row| ids[row as usize]).collect();
                touched.entry(slice).or_default().extend(&of_slice);
                let open = fresh.entry(slice).or_insert_with(|| OpenSlice::new(&self.layout));
                open.slots(&of_slice, Tracks::default(), &mut slots);
                for (&slot, &row) in slots.iter().zip(&rows) {
                    open.counts[slot as usize] += batch.counts[row as usize];
                }
                let rows = UInt32Array::from(rows);
                for (states, column) in open.states.iter_mut().zip(&batch.states) {
                    states.merge(&slots, &take(column, &rows, None)?)?;
                }
            }
        }
        let still_open = fresh.split_off(&self.closed_before);
        let mut closed = Vec::new();
        for (slice, mut states) in fresh {
            let batch = states.batch(slice)?;
            if !batch.ids.is_empty() {
                closed.push(Arc::new(ClosedSlice::in_memory(&self.shared, batch, self.keys.len())));
            }
        }
        let all = Arc::make_mut(&mut self.closed);
        all.retain(|batch| !slices.contains(&batch.slice));
        all.extend(closed);
        all.sort_by_key(|batch| batch.slice);
        // Which of them a key is in is not known without reading them: until the last goes, all count as in use.
        self.last_seen = vec![self.closed_gone + self.closed.len() as u32; self.keys.len()];
        // What was saved of these slices is wrong: no file of them may be read again.
        if let Some(saves) = &mut self.saves {
            saves.renumbered = true;
        }
        self.open.retain(|slice, _| !slices.contains(slice));
        self.open.extend(still_open);
        // What readers have put together is of slices that are no more.
        self.panes = Arc::new(Panes::new(self.shared.cache.clone()));
        Ok(touched.into_iter().map(|(slice, ids)| (slice, ids.into_iter().collect())).collect())
    }
}
