//! Panes that are put into files, in the background.
//!
//! A store says at each save which panes are complete by now and in no file ([`Panes::to_keep`]). Whoever has time for it makes them
//! ([`PaneToKeep::save`]); they mean what their slices mean, so nothing is lost with one that is not made, or cannot be read.

use std::collections::HashSet;
use std::sync::{Arc, Weak};

use super::ExecError;
use super::closed_slice::{ClosedSlice, Source};
use super::durable::Saved;
use super::panes::{Closed, FANOUT, PaneKey, Panes, Run};
use super::slice_store::StoreLayout;
use super::store_saved::ClosedEntry;

/// Panes of higher levels are made by readers alone: on a grid of 10 s these have 1 m, 6 m, 36 m and 3.6 h.
pub const LEVELS: u32 = 4;

/// What takes more in memory is not put together, nor what the cache has no room for, unless it is little.
const MOST_BYTES: usize = 256 << 20;
const LITTLE: usize = 16 << 20;
/// Fewer rows are put together to save reads; more only where so large a share of them, by the number of keys, is left.
const FEW_ROWS: usize = 8192;
const WORTH: f64 = 0.75;

/// A pane in a file.
#[derive(Debug, Clone)]
pub struct PaneEntry {
    /// From 1 to [`LEVELS`].
    pub level: u32,
    /// Its first slice that has rows.
    pub entry: ClosedEntry,
}

/// Which panes of a store are in files.
#[derive(Debug, Clone, Default)]
pub struct KeptPanes(HashSet<PaneKey>);

impl KeptPanes {
    /// How many of them the slice is in.
    pub fn over(&self, slice: i64) -> usize {
        (1..=LEVELS).filter(|&level| self.0.contains(&(level, slice.div_euclid(FANOUT.pow(level))))).count()
    }
}

/// A pane that is complete and in no file. It goes with its slices.
#[derive(Debug)]
pub struct PaneToKeep {
    key: PaneKey,
    layout: Arc<StoreLayout>,
    num_keys: usize,
    panes: Weak<Panes>,
    slices: Vec<Weak<ClosedSlice>>,
}

impl PaneToKeep {
    pub fn level(&self) -> u32 {
        self.key.0
    }

    /// Makes it. What is given belongs into a file, in which the pane is from [`ClosedSlice::keep_in`] on. `None`: some slice has gone,
    /// all lie in one pane of the level below, or it would be too large, or hardly smaller than what it is made of. Cost: a merge of the
    /// panes of the level below, or of the slices, which are read if they are not in memory. Errors: those of reading them.
    pub fn save(&self) -> Result<Option<(Arc<ClosedSlice>, Saved)>, ExecError> {
        let Some(panes) = self.panes.upgrade() else { return Ok(None) };
        let Some(slices) = self.slices.iter().map(Weak::upgrade).collect::<Option<Vec<_>>>() else { return Ok(None) };
        let below = panes.below(self.key, &slices);
        let most = panes.cache.limit_bytes().clamp(LITTLE, MOST_BYTES);
        if below.iter().map(|(_, bytes)| bytes).sum::<usize>() > most || !pays(&below, self.num_keys) {
            return Ok(None);
        }
        let (layout, num_keys) = (&self.layout, self.num_keys);
        let closed = Closed { layout, num_keys, first_kept: i64::MIN, before: i64::MAX, slices: &slices };
        let batch = panes.batch(&closed, Run { pane: Some(self.key), slices: &slices })?;
        let Some(pane) = panes.made.lock().panes.get(&self.key).cloned() else { return Ok(None) };
        if pane.file().is_some() {
            return Ok(None);
        }
        let saved = pane.saved(&batch)?;
        Ok(Some((pane, saved)))
    }
}

impl Panes {
    /// Panes of the first [`LEVELS`] of which all slices are closed, not all of them below `since`, and that are in no file; lower levels
    /// first.
    pub(super) fn to_keep(self: &Arc<Self>, closed: &Closed<'_>, since: i64) -> Vec<PaneToKeep> {
        let mut all = Vec::new();
        for level in 1..=LEVELS {
            let width = FANOUT.pow(level);
            let of = |slice: i64| slice.div_euclid(width);
            let from = closed.slices.partition_point(|s| of(s.slice) < of(since));
            for run in closed.slices[from..].chunk_by(|a, b| of(a.slice) == of(b.slice)) {
                let number = of(run[0].slice);
                let end = number.checked_add(1).and_then(|next| next.checked_mul(width));
                let Some((start, end)) = end.and_then(|end| Some((end.checked_sub(width)?, end))) else { continue };
                let below = |s: &ClosedSlice| s.slice.div_euclid(width / FANOUT);
                let alone = below(&run[0]) == below(&run[run.len() - 1]);
                if alone || start < closed.first_kept || end > closed.before || end <= since {
                    continue;
                }
                let key = (level, number);
                if self.made.lock().panes.get(&key).is_some_and(|pane| pane.file().is_some()) {
                    continue;
                }
                all.push(PaneToKeep {
                    key,
                    layout: closed.layout.clone(),
                    num_keys: closed.num_keys,
                    panes: Arc::downgrade(self),
                    slices: run.iter().map(Arc::downgrade).collect(),
                });
            }
        }
        all
    }

    pub(super) fn in_files(&self) -> KeptPanes {
        let made = self.made.lock();
        KeptPanes(made.panes.iter().filter(|(_, pane)| pane.file().is_some()).map(|(key, _)| *key).collect())
    }

    /// Panes that are in files, of the ids that the store has now.
    pub(super) fn load(&self, layout: &Arc<StoreLayout>, num_keys: usize, entries: &[PaneEntry]) {
        let shared = self.shared(layout);
        let mut made = self.made.lock();
        for PaneEntry { level, entry: ClosedEntry { slice, rows, bytes, file } } in entries {
            let source = Source { file: file.clone(), renumbering: None };
            let pane = ClosedSlice::in_files(&shared, *slice, *rows, *bytes, vec![source], num_keys);
            made.panes.insert((*level, slice.div_euclid(FANOUT.pow(*level))), Arc::new(pane));
        }
    }

    /// What a pane would be put together from: rows and bytes in memory of each part.
    fn below(&self, (level, _): PaneKey, slices: &[Arc<ClosedSlice>]) -> Vec<(usize, usize)> {
        let width = FANOUT.pow(level - 1);
        let made = self.made.lock();
        let mut parts = Vec::new();
        for run in slices.chunk_by(|a, b| a.slice.div_euclid(width) == b.slice.div_euclid(width)) {
            match made.panes.get(&(level - 1, run[0].slice.div_euclid(width))) {
                Some(pane) if pane.file().is_some() => parts.push((pane.rows(), pane.bytes())),
                _ => parts.extend(run.iter().map(|slice| (slice.rows(), slice.bytes()))),
            }
        }
        parts
    }
}

/// Whether parts of so many rows have keys in common, if each has its keys by chance: where they are less even, more are.
fn pays(parts: &[(usize, usize)], num_keys: usize) -> bool {
    let rows: usize = parts.iter().map(|(rows, _)| rows).sum();
    let keys = num_keys.max(1) as f64;
    let in_none: f64 = parts.iter().map(|&(rows, _)| 1.0 - (rows as f64 / keys).min(1.0)).product();
    rows <= FEW_ROWS || keys * (1.0 - in_none) <= WORTH * rows as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pane_that_is_hardly_smaller_than_its_parts_does_not_pay() {
        let of = |parts: usize, rows: usize, keys: usize| pays(&vec![(rows, 0); parts], keys);
        assert!(of(6, 300, 1_000_000), "few rows");
        assert!(!of(6, 27_000, 500_000) && of(36, 27_000, 500_000));
        assert!(of(6, 140_000, 500_000));
        assert!(of(6, 500_000, 500_000) && of(6, 1, 0));
    }
}
