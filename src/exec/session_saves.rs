//! Sessions kept over a restart.
//!
//! | section | rows | columns |
//! |---|---|---|
//! | `keys` | keys that came since the last save | id, then the key |
//! | `atoms` | atoms that are new or have changed, as they are now | id, first_us, last_us, count, then a state per measure |
//! | `gone` | atoms that are there no more | id, first_us |
//! | `closed` | sessions that have become final | id, start_us, end_us, then a value per measure |
//!
//! An atom is named by its key and its first time. What retention has forgotten is not named: the notes say until when.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, Int64Type, UInt32Type};
use hashbrown::HashSet;
use serde::{Deserialize, Serialize};

use super::ExecError;
use super::bucket;
use super::durable::{Buckets, Saved};
use super::keys::{CHUNK, KeySnapshot};
use super::saved_columns::{SavedColumns, only_sections, section, section_before, since_whole, wrong};
use super::session_batch::SessionBatch;
use super::session_store::{Atom, NONE, SessionStore};
use super::slice_store::StoreLayout;

/// What the next save has to give.
pub(super) struct UnsavedSessions {
    /// Those of the store's owner.
    buckets: Buckets,
    /// Ids are not what they were when they were saved, or nothing has been saved.
    pub needs_whole: bool,
    /// (key, first time) of atoms.
    pub atoms: HashSet<(u32, i64)>,
    pub closed: Vec<Arc<SessionBatch>>,
    /// Ids below this are saved.
    keys: usize,
}

impl UnsavedSessions {
    fn new(buckets: Buckets, needs_whole: bool, keys: usize) -> Self {
        UnsavedSessions { buckets, needs_whole, atoms: HashSet::new(), closed: Vec::new(), keys }
    }

    /// Ids are other ones now.
    pub fn renumbered(&mut self) {
        *self = UnsavedSessions::new(self.buckets.clone(), true, 0);
    }
}

#[derive(Serialize, Deserialize)]
struct Notes {
    /// First and last.
    buckets: (u8, u8),
    /// How many keys there are.
    keys: usize,
    /// How many rows the sections have.
    atoms: usize,
    gone: usize,
    left_out: u64,
    /// Final sessions that end at or before this are forgotten.
    forgotten_us: Option<i64>,
    /// Of each section `closed`, by measure: values that do not fit their type.
    overflowed: Vec<Vec<usize>>,
}

const SECTIONS: [&str; 4] = ["keys", "atoms", "gone", "closed"];

impl SessionStore {
    /// From now on [`SessionStore::save`] gives what has changed. The store belongs to a worker that owns these buckets. Cost: an
    /// entry in a hash set a row.
    pub fn track_saves(&mut self, buckets: Buckets) {
        if self.unsaved.as_ref().is_none_or(|unsaved| unsaved.buckets != buckets) {
            self.unsaved = Some(UnsavedSessions::new(buckets, true, 0));
        }
    }

    /// See [`super::durable`]. Errors: a store that does not track what is saved.
    pub fn save(&mut self, whole: bool) -> Result<Saved, ExecError> {
        let keys = self.keys()?;
        let Some(unsaved) = &mut self.unsaved else {
            return Err(ExecError::Invariant("a store that does not track what is saved was asked for it".into()));
        };
        let buckets = (*unsaved.buckets.start(), *unsaved.buckets.end());
        // After an error the next gives all.
        let next = UnsavedSessions::new(unsaved.buckets.clone(), true, keys.len);
        let changed = Some(std::mem::replace(unsaved, next)).filter(|changed| !whole && !changed.needs_whole);
        let mut saved = Saved { whole: changed.is_none(), ..Saved::default() };
        let (first_key, slots, closed) = match changed {
            None => (0, self.index.values().copied().collect(), self.closed.batches().to_vec()),
            Some(changed) => {
                let (mut slots, mut gone): (Vec<u32>, Vec<(u32, i64)>) = (Vec::new(), Vec::new());
                for at in changed.atoms {
                    match self.index.get(&at) {
                        Some(&slot) => slots.push(slot),
                        None => gone.push(at),
                    }
                }
                slots.sort_unstable_by_key(|&slot| (self.atoms[slot as usize].id, self.atoms[slot as usize].first_us));
                gone.sort_unstable();
                if !gone.is_empty() {
                    let ids = UInt32Array::from_iter_values(gone.iter().map(|at| at.0));
                    let times = Int64Array::from_iter_values(gone.iter().map(|at| at.1));
                    saved.push("gone", section(vec![("id", Arc::new(ids)), ("first_us", Arc::new(times))])?);
                }
                (changed.keys, slots, changed.closed)
            }
        };
        save_keys(&keys, first_key, &mut saved)?;
        if !slots.is_empty() {
            let states = self.states.iter().map(|states| states.take(&slots)).collect::<Result<Vec<_>, _>>()?;
            let times = |of: fn(&Atom) -> i64| -> ArrayRef {
                Arc::new(Int64Array::from_iter_values(slots.iter().map(|&slot| of(&self.atoms[slot as usize]))))
            };
            let ids = UInt32Array::from_iter_values(slots.iter().map(|&slot| self.atoms[slot as usize].id));
            let own = vec![
                ("id", Arc::new(ids) as ArrayRef),
                ("first_us", times(|atom| atom.first_us)),
                ("last_us", times(|atom| atom.last_us)),
                ("count", times(|atom| atom.count)),
            ];
            saved.push("atoms", section_before(own, &states)?);
        }
        let mut overflowed = Vec::new();
        for batch in closed {
            let times = |times_us: &[i64]| -> ArrayRef { Arc::new(Int64Array::from(times_us.to_vec())) };
            let own = vec![
                ("id", Arc::new(UInt32Array::from(batch.ids.clone())) as ArrayRef),
                ("start_us", times(&batch.starts_us)),
                ("end_us", times(&batch.ends_us)),
            ];
            saved.push("closed", section_before(own, &batch.outputs)?);
            overflowed.push(batch.overflowed.clone());
        }
        let now = (self.left_out, self.forgotten_us);
        if !saved.is_empty() || self.noted != Some(now) {
            let (left_out, forgotten_us) = now;
            let (keys, gone) = (keys.len, rows_of(&saved, "gone"));
            let notes = Notes { buckets, keys, atoms: slots.len(), gone, left_out, forgotten_us, overflowed };
            saved.notes = serde_json::json!(notes);
            self.noted = Some(now);
        }
        if let Some(unsaved) = &mut self.unsaved {
            unsaved.needs_whole = false;
        }
        Ok(saved)
    }

    /// The sessions of the keys in some buckets, of whichever owners have saved them; tracked from there on.
    pub fn load(layout: Arc<StoreLayout>, parts: &[Vec<Saved>], buckets: Buckets) -> Result<Self, ExecError> {
        let mut store = SessionStore::new(layout)?;
        let mut as_saved = parts.len() == 1;
        for part in parts {
            as_saved &= store.load_part(part, &buckets)?;
        }
        store.unsaved = Some(UnsavedSessions::new(buckets, !as_saved, store.keys.len()));
        Ok(store)
    }

    /// True if it is the same owner's, and every id means what it meant.
    fn load_part(&mut self, part: &[Saved], buckets: &Buckets) -> Result<bool, ExecError> {
        let saves = since_whole(part)?;
        let mut notes: Option<Notes> = None;
        let mut overflowed: Vec<Vec<usize>> = Vec::new();
        // New ids by old ones.
        let mut ids: Vec<u32> = Vec::new();
        for saved in saves.iter().filter(|saved| !saved.is_empty()) {
            only_sections(saved, &SECTIONS)?;
            for rows in saved.rows("keys") {
                self.load_keys(&SavedColumns::of("keys", rows), buckets, &mut ids)?;
            }
            let said: Notes = saved.notes()?;
            let here = (ids.len(), rows_of(saved, "atoms"), rows_of(saved, "gone"), saved.rows("closed").count());
            if here != (said.keys, said.atoms, said.gone, said.overflowed.len()) {
                return Err(wrong("sections of sessions do not have the rows that their notes name"));
            }
            overflowed.extend(said.overflowed.iter().cloned());
            notes = Some(said);
        }
        let notes = notes.ok_or_else(|| wrong("sessions without notes"))?;
        let mut gone: HashSet<(u32, i64)> = HashSet::new();
        // What was said last of an atom counts.
        for saved in saves.iter().rev() {
            let mut now_gone = Vec::new();
            for rows in saved.rows("gone") {
                let columns = SavedColumns::of("gone", rows);
                let times = columns.values::<Int64Type>("first_us")?;
                now_gone.extend(new_ids(&columns, &ids)?.into_iter().zip(times.iter().copied()));
            }
            for rows in saved.rows("atoms") {
                self.load_atoms(&SavedColumns::of("atoms", rows), &ids, &gone)?;
            }
            gone.extend(now_gone);
        }
        self.forgotten_us = self.forgotten_us.max(notes.forgotten_us);
        for (rows, overflowed) in saves.iter().flat_map(|saved| saved.rows("closed")).zip(overflowed) {
            self.load_closed(&SavedColumns::of("closed", rows), &ids, overflowed, notes.forgotten_us)?;
        }
        // One of those that share the part's buckets goes on with its count.
        if buckets.contains(&notes.buckets.0) {
            self.left_out += notes.left_out;
        }
        let same = notes.buckets == (*buckets.start(), *buckets.end());
        Ok(same && ids.iter().zip(0..).all(|(&new, old)| new == old))
    }

    fn load_keys(
        &mut self,
        columns: &SavedColumns<'_>,
        buckets: &Buckets,
        ids: &mut Vec<u32>,
    ) -> Result<(), ExecError> {
        let types: Vec<DataType> = self.layout.keys.iter().map(|field| field.data_type().clone()).collect();
        let keys = columns.rest(1, &types)?;
        let first = ids.len() as u32;
        if !columns.values::<UInt32Type>("id")?.iter().copied().eq(first..first + columns.num_rows() as u32) {
            return Err(columns.wrong("ids do not follow each other"));
        }
        let owner = bucket::buckets(keys, columns.num_rows());
        let ours: Vec<u32> = (0..).zip(&owner).filter(|(_, bucket)| buckets.contains(bucket)).map(|(i, _)| i).collect();
        ids.resize(ids.len() + columns.num_rows(), NONE);
        let picked = UInt32Array::from(ours);
        let keys = keys.iter().map(|column| take(column, &picked, None)).collect::<Result<Vec<_>, _>>()?;
        let mut interned = Vec::with_capacity(picked.len());
        self.keys.intern(&keys, picked.len(), &mut interned)?;
        for (row, id) in picked.values().iter().zip(interned) {
            ids[(first + row) as usize] = id;
        }
        self.newest.resize(self.keys.len(), NONE);
        self.due_us.resize(self.keys.len(), i64::MAX);
        Ok(())
    }

    fn load_atoms(
        &mut self,
        columns: &SavedColumns<'_>,
        ids: &[u32],
        gone: &HashSet<(u32, i64)>,
    ) -> Result<(), ExecError> {
        let types: Vec<DataType> = self.layout.measures.iter().map(|measure| measure.state_type().clone()).collect();
        let states = columns.rest(4, &types)?;
        let [first_us, last_us, count] = ["first_us", "last_us", "count"].map(|name| columns.values::<Int64Type>(name));
        let (first_us, last_us, count) = (first_us?, last_us?, count?);
        let (mut rows, mut slots) = (Vec::new(), Vec::new());
        for (row, id) in new_ids(columns, ids)?.into_iter().enumerate() {
            let at = (id, first_us[row]);
            if id == NONE || gone.contains(&at) || self.index.contains_key(&at) {
                continue;
            }
            if last_us[row] < first_us[row] || !self.sessions.session.takes(last_us[row]) {
                return Err(columns.wrong("a session ends before it begins"));
            }
            let slot = self.add(id, first_us[row]);
            let atom = &mut self.atoms[slot as usize];
            (atom.last_us, atom.count) = (last_us[row], count[row]);
            rows.push(row as u32);
            slots.push(slot);
        }
        let rows = UInt32Array::from(rows);
        for (own, saved) in self.states.iter_mut().zip(states) {
            own.resize(self.atoms.len());
            own.merge(&slots, &take(saved, &rows, None)?)?;
        }
        Ok(())
    }

    fn load_closed(
        &mut self,
        columns: &SavedColumns<'_>,
        ids: &[u32],
        overflowed: Vec<usize>,
        forgotten_us: Option<i64>,
    ) -> Result<(), ExecError> {
        let types: Vec<DataType> =
            self.layout.measures.iter().map(|measure| measure.output().data_type().clone()).collect();
        let outputs = columns.rest(3, &types)?;
        let (start_us, end_us) = (columns.values::<Int64Type>("start_us")?, columns.values::<Int64Type>("end_us")?);
        let mut kept: Vec<(u32, i64, u32)> = Vec::new();
        for (row, id) in new_ids(columns, ids)?.into_iter().enumerate() {
            if id != NONE && forgotten_us.is_none_or(|us| end_us[row] > us) {
                kept.push((id, start_us[row], row as u32));
            }
        }
        if overflowed.len() != outputs.len() {
            return Err(columns.wrong("the notes name other measures"));
        }
        kept.sort_unstable();
        let rows = UInt32Array::from_iter_values(kept.iter().map(|&(_, _, row)| row));
        let outputs = outputs.iter().map(|output| take(output, &rows, None)).collect::<Result<Vec<_>, _>>()?;
        // Of a part of the rows nobody knows which did not fit, but those are NULL.
        let overflowed = overflowed.iter().zip(&outputs).map(|(&n, output)| n.min(output.null_count())).collect();
        let batch = SessionBatch::new(
            kept.iter().map(|&(id, _, _)| id).collect(),
            kept.iter().map(|&(_, start_us, _)| start_us).collect(),
            rows.values().iter().map(|&row| end_us[row as usize]).collect(),
            outputs,
        );
        self.closed.push(Arc::new(SessionBatch { overflowed, ..batch }))
    }
}

fn rows_of(saved: &Saved, section: &str) -> usize {
    saved.rows(section).map(RecordBatch::num_rows).sum()
}

/// The key's new id of each row, [`NONE`] where it is not ours.
fn new_ids(columns: &SavedColumns<'_>, ids: &[u32]) -> Result<Vec<u32>, ExecError> {
    let new =
        |&old: &u32| ids.get(old as usize).copied().ok_or_else(|| columns.wrong(&format!("there is no key {old}")));
    columns.values::<UInt32Type>("id")?.iter().map(new).collect()
}

/// The keys with ids from `first` on.
fn save_keys(keys: &KeySnapshot, first: usize, saved: &mut Saved) -> Result<(), ExecError> {
    for chunk in first / CHUNK..keys.chunks.len() {
        let ids: Vec<u32> = ((chunk * CHUNK).max(first) as u32..((chunk + 1) * CHUNK).min(keys.len) as u32).collect();
        if !ids.is_empty() {
            let columns = keys.take(&ids)?;
            saved.push("keys", section_before(vec![("id", Arc::new(UInt32Array::from(ids)))], &columns)?);
        }
    }
    Ok(())
}
