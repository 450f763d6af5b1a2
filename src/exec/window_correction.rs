//! What a repair of slices changes in what a view has told.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use arrow::row::OwnedRow;

use super::{Changes, Delta, DeltaRows, Emit, ExecError, Shown, SliceStore, StoreSnapshot, kept_from};

impl Changes {
    /// The change that a replacement of slices makes, final windows included: what was told of these is read from the store as it
    /// was `before`. `touched` is what [`SliceStore::replace`] gave; `shown` that of the last [`Changes::step`], of this tick.
    pub fn correct(
        &mut self,
        store: &mut SliceStore,
        before: &StoreSnapshot,
        touched: &[(i64, Vec<u32>)],
        shown: &Shown,
    ) -> Result<Delta, ExecError> {
        let grid = store.layout().grid;
        let first_kept_us = kept_from(grid, store.first_kept());
        let is_final = |end: i64| self.view.window.is_some() && shown.final_until_us.is_some_and(|f| end <= f);
        let mut open: BTreeMap<i64, BTreeSet<u32>> = BTreeMap::new();
        let mut finals = BTreeSet::new();
        for (slice, ids) in touched {
            for end in self.view.windows_over(grid, *slice) {
                if !self.view.shows(first_kept_us, shown, end) {
                    continue;
                }
                if is_final(end) {
                    finals.insert(end);
                } else if self.view.emit == Emit::OnUpdate {
                    open.entry(end).or_default().extend(ids);
                }
            }
        }
        let mut out = DeltaRows::default();
        let keys = store.keys()?;
        for (end, ids) in open {
            self.update_window(store, &keys, end, ids.into_iter().collect(), &mut out)?;
        }
        let after = store.snapshot()?;
        let all: Vec<usize> = (0..self.view.schema.fields().len()).collect();
        for end in finals {
            let mut rows: HashMap<OwnedRow, i64> = HashMap::new();
            for (snapshot, weight) in [(before, -1), (&after, 1)] {
                let mut cursor = self.view.cursor(snapshot.clone(), None, &all);
                for (_, columns) in self.view.read(&mut cursor, end, None, &all)? {
                    for row in &self.converter.convert_columns(&columns)? {
                        *rows.entry(row.owned()).or_default() += weight;
                    }
                }
            }
            rows.into_iter().filter(|(_, weight)| *weight != 0).for_each(|(row, weight)| out.add(row, weight));
        }
        out.finish(&self.converter, &self.view.schema)
    }
}
