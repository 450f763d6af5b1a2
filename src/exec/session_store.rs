//! Sessions by key: aggregate states of those that can still change, and the values of those that cannot.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use arrow::array::{Array, BooleanArray, UInt32Array};
use arrow::compute::take;
use hashbrown::HashMap;

use super::ExecError;
use super::id_set::IdSet;
use super::keys::{CHUNK, KeyDictionary, KeySnapshot};
use super::session_batch::{ClosedSessions, SessionBatch, SessionSnapshot};
use super::session_saves::UnsavedSessions;
use super::slice_batch::by_chunk;
use super::slice_store::{StoreLayout, StoreRows};
use super::state::{Measure, States};
use crate::planner::stream_plan::Session;

/// How sessions are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionLayout {
    pub session: Session,
    /// A state for each moment instead of one for each session: what sessions need that a row may split, shrink or cut
    /// elsewhere, because rows are taken back or because there is a maximum length.
    pub by_time: bool,
}

/// The sessions of each key: rows sorted by time, cut where a row lies at or after the end of the session before it
/// ([`Session::end_us`]). That is a function of the rows: their order of arrival does not matter.
///
/// - Rows: as of a [`super::slice_store::SliceStore`], their slice number being their time in microseconds. Rows at the end of
///   time, whose session could not end, are left out and counted.
/// - State: per *atom*, which is an open session, or with [`SessionLayout::by_time`] a moment of one: its times, some 100 bytes
///   of indexes, and a state per measure. A final session keeps the values that SQL shows, its bounds and its key's id.
/// - Cost: a look-up of the key a row, and one in an ordered index for a row that does not prolong the newest session of its
///   key; per tick, the sessions that become final.
/// - A row that lies between two sessions, nearer than the gap to both, merges them, and their states. A row that is taken back
///   may split a session; a moment whose rows cancel is gone at the end of the tick.
pub struct SessionStore {
    pub(super) layout: Arc<StoreLayout>,
    pub(super) sessions: SessionLayout,
    pub(super) keys: KeyDictionary,
    /// By slot; a slot of which [`Atom::id`] is [`NONE`] is free, and goes with the next compaction.
    pub(super) atoms: Vec<Atom>,
    live: usize,
    pub(super) states: Vec<Box<dyn States>>,
    /// (key, first time) → slot.
    pub(super) index: BTreeMap<(u32, i64), u32>,
    /// By key: the slot of its newest session; nothing with `by_time`.
    pub(super) newest: Vec<u32>,
    /// By key: no session of it ends before this.
    pub(super) due_us: Vec<i64>,
    /// (`due_us`, key), and entries out of date.
    due: BinaryHeap<Reverse<(i64, u32)>>,
    /// (first time, key) of every atom, and entries out of date; none until somebody asks.
    starts: Option<BinaryHeap<Reverse<(i64, u32)>>>,
    /// Slots whose count has come to zero in this tick.
    emptied: Vec<u32>,
    /// By key: (earliest, latest) of the times that changed since the last [`SessionStore::take_dirty`], if anybody asks.
    dirty: Option<HashMap<u32, (i64, i64)>>,
    pub(super) closed: ClosedSessions,
    /// The latest time until which final sessions were to be forgotten.
    pub(super) forgotten_us: Option<i64>,
    /// The open sessions, until the next change.
    cached: Option<Arc<SessionBatch>>,
    pub(super) left_out: u64,
    pub(super) unsaved: Option<UnsavedSessions>,
    /// (`left_out`, `forgotten_us`) as they were saved last.
    pub(super) noted: Option<(u64, Option<i64>)>,
    ids: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Atom {
    pub first_us: i64,
    pub last_us: i64,
    /// Net rows.
    pub count: i64,
    pub id: u32,
}

pub(super) const NONE: u32 = u32::MAX;
/// Below this many slots it does not pay to look for free ones.
const FEW_SLOTS: usize = 1024;

/// Sessions that were found, each with the slots of its atoms.
#[derive(Default)]
pub struct Found {
    /// (key, start, end), in the order in which they were found.
    pub sessions: Vec<(u32, i64, i64)>,
    slots: Vec<u32>,
    /// For each slot the session it belongs to, ascending.
    of: Vec<u32>,
}

/// What changed of one key: times from `first_us` to `last_us`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirtyKey {
    pub id: u32,
    pub first_us: i64,
    pub last_us: i64,
}

impl SessionStore {
    /// Fails for a layout without sessions.
    pub fn new(layout: Arc<StoreLayout>) -> Result<Self, ExecError> {
        let sessions =
            layout.sessions.ok_or_else(|| ExecError::Invariant("a store of slices was to keep sessions".into()))?;
        Ok(SessionStore {
            sessions,
            keys: KeyDictionary::new(&layout.keys)?,
            atoms: Vec::new(),
            live: 0,
            states: layout.measures.iter().map(Measure::create).collect(),
            index: BTreeMap::new(),
            newest: Vec::new(),
            due_us: Vec::new(),
            due: BinaryHeap::new(),
            starts: None,
            emptied: Vec::new(),
            dirty: None,
            closed: ClosedSessions::default(),
            forgotten_us: None,
            cached: None,
            left_out: 0,
            unsaved: None,
            noted: None,
            ids: Vec::new(),
            layout,
        })
    }

    /// From now on [`SessionStore::take_dirty`] tells what changed.
    pub fn track_changes(&mut self) {
        self.dirty.get_or_insert_default();
    }

    /// Adds raw rows.
    pub fn apply(&mut self, rows: &StoreRows) -> Result<(), ExecError> {
        let rows = self.within_time(rows)?;
        if rows.rows == 0 {
            return Ok(());
        }
        let mut ids = std::mem::take(&mut self.ids);
        ids.clear();
        self.keys.intern(&rows.keys, rows.rows, &mut ids)?;
        self.newest.resize(self.keys.len(), NONE);
        self.due_us.resize(self.keys.len(), i64::MAX);
        self.cached = None;

        let mut merged: Vec<(u32, u32)> = Vec::new();
        let mut slots = Vec::with_capacity(rows.rows);
        for (&id, &time_us) in ids.iter().zip(&rows.slices) {
            slots.push(match self.sessions.by_time {
                true => self.moment(id, time_us),
                false => self.session(id, time_us, &mut merged),
            });
        }
        if let Some(dirty) = &mut self.dirty {
            for (&id, &time_us) in ids.iter().zip(&rows.slices) {
                let span = dirty.entry(id).or_insert((time_us, time_us));
                *span = (span.0.min(time_us), span.1.max(time_us));
            }
        }
        self.ids = ids;
        if !merged.is_empty() {
            let into: HashMap<u32, u32> = merged.iter().copied().collect();
            let last = |mut slot: u32| {
                while let Some(&next) = into.get(&slot) {
                    slot = next;
                }
                slot
            };
            slots.iter_mut().for_each(|slot| *slot = last(*slot));
            merged.iter_mut().for_each(|(_, slot)| *slot = last(*slot));
        }
        if let Some(unsaved) = &mut self.unsaved {
            let atoms = slots.iter().map(|&slot| &self.atoms[slot as usize]);
            unsaved.atoms.extend(atoms.map(|atom| (atom.id, atom.first_us)));
        }
        self.update(&rows, &slots)?;
        let (from, into): (Vec<u32>, Vec<u32>) = merged.into_iter().unzip();
        if !from.is_empty() {
            for states in &mut self.states {
                let taken = states.take(&from)?;
                states.merge(&into, &taken)?;
            }
        }
        Ok(())
    }

    /// The rows that a session can take.
    fn within_time<'a>(&mut self, rows: &'a StoreRows) -> Result<Cow<'a, StoreRows>, ExecError> {
        let takes = |row: &u32| self.sessions.session.takes(rows.slices[*row as usize]);
        let kept: Vec<u32> = (0..rows.rows as u32).filter(takes).collect();
        if kept.len() == rows.rows {
            return Ok(Cow::Borrowed(rows));
        }
        self.left_out += (rows.rows - kept.len()) as u64;
        Ok(Cow::Owned(select(rows, &UInt32Array::from(kept))?))
    }

    /// The slot of a moment of a key.
    fn moment(&mut self, id: u32, time_us: i64) -> u32 {
        match self.index.get(&(id, time_us)) {
            Some(&slot) => slot,
            None => self.add(id, time_us),
        }
    }

    /// The slot of the session that a row belongs to, or of a new one; the row may merge two: (slot that goes, slot that stays).
    fn session(&mut self, id: u32, time_us: i64, merged: &mut Vec<(u32, u32)>) -> u32 {
        let gap_us = self.sessions.session.gap_us;
        let newest = self.newest[id as usize];
        if newest != NONE {
            let atom = &mut self.atoms[newest as usize];
            if time_us >= atom.first_us && time_us < atom.last_us.saturating_add(gap_us) {
                atom.last_us = atom.last_us.max(time_us);
                return newest;
            }
        }
        // The newest session that begins before a row at this time would end, and the one before that: no others can touch it.
        let mut near =
            self.index.range((id, i64::MIN)..(id, time_us.saturating_add(gap_us))).rev().map(|(_, &slot)| slot);
        let (Some(slot), before) = (near.next(), near.next()) else { return self.add(id, time_us) };
        let atom = self.atoms[slot as usize];
        if atom.last_us.saturating_add(gap_us) <= time_us {
            return self.add(id, time_us);
        }
        if time_us >= atom.first_us {
            self.atoms[slot as usize].last_us = atom.last_us.max(time_us);
            return slot;
        }
        let mut first_us = time_us;
        if let Some(before) = before {
            let older = self.atoms[before as usize];
            if older.last_us.saturating_add(gap_us) > time_us {
                first_us = older.first_us;
                self.atoms[slot as usize].count += older.count;
                self.free(before);
                merged.push((before, slot));
            }
        }
        self.index.remove(&(id, atom.first_us));
        self.note_unsaved(id, atom.first_us);
        self.index.insert((id, first_us), slot);
        self.atoms[slot as usize].first_us = first_us;
        self.note_start(id, first_us);
        self.note_due(id, first_us.saturating_add(gap_us));
        slot
    }

    pub(super) fn add(&mut self, id: u32, time_us: i64) -> u32 {
        let slot = self.atoms.len() as u32;
        self.atoms.push(Atom { first_us: time_us, last_us: time_us, count: 0, id });
        self.live += 1;
        self.index.insert((id, time_us), slot);
        let newest = self.newest[id as usize];
        if !self.sessions.by_time && (newest == NONE || self.atoms[newest as usize].first_us < time_us) {
            self.newest[id as usize] = slot;
        }
        self.note_start(id, time_us);
        self.note_due(id, time_us.saturating_add(self.sessions.session.gap_us));
        slot
    }

    fn free(&mut self, slot: u32) {
        let Atom { id, first_us, .. } = self.atoms[slot as usize];
        self.note_unsaved(id, first_us);
        self.index.remove(&(id, first_us));
        let atom = &mut self.atoms[slot as usize];
        let newest = &mut self.newest[atom.id as usize];
        if *newest == slot {
            *newest = NONE;
        }
        atom.id = NONE;
        self.live -= 1;
    }

    fn note_unsaved(&mut self, id: u32, first_us: i64) {
        if let Some(unsaved) = &mut self.unsaved {
            unsaved.atoms.insert((id, first_us));
        }
    }

    fn note_start(&mut self, id: u32, start_us: i64) {
        if let Some(starts) = &mut self.starts {
            starts.push(Reverse((start_us, id)));
        }
    }

    fn note_due(&mut self, id: u32, end_us: i64) {
        let due_us = &mut self.due_us[id as usize];
        if end_us < *due_us {
            *due_us = end_us;
            self.due.push(Reverse((end_us, id)));
        }
    }

    fn update(&mut self, rows: &StoreRows, slots: &[u32]) -> Result<(), ExecError> {
        match &rows.weights {
            None => slots.iter().for_each(|&slot| self.atoms[slot as usize].count += 1),
            Some(weights) => {
                for (&slot, weight) in slots.iter().zip(weights) {
                    let atom = &mut self.atoms[slot as usize];
                    atom.count += weight;
                    if atom.count == 0 {
                        self.emptied.push(slot);
                    }
                }
            }
        }
        for (measure, states) in self.states.iter_mut().enumerate() {
            states.resize(self.atoms.len());
            states.update(slots, &rows.args[measure], rows.filters[measure].as_ref(), rows.weights.as_deref())?;
        }
        Ok(())
    }

    /// The end of a tick: moments without rows go.
    pub fn settle(&mut self) -> Result<(), ExecError> {
        for slot in std::mem::take(&mut self.emptied) {
            let Atom { first_us, count, id, .. } = self.atoms[slot as usize];
            if id != NONE && count == 0 {
                self.free(slot);
                // Its session may end earlier now.
                self.note_due(id, first_us);
            }
        }
        if self.atoms.len() >= FEW_SLOTS && self.live * 2 < self.atoms.len() {
            self.compact_slots()?;
        }
        Ok(())
    }

    fn compact_slots(&mut self) -> Result<(), ExecError> {
        let kept: Vec<u32> =
            (0..self.atoms.len() as u32).filter(|&slot| self.atoms[slot as usize].id != NONE).collect();
        let mut moved = vec![NONE; self.atoms.len()];
        kept.iter().zip(0..).for_each(|(&slot, to)| moved[slot as usize] = to);
        let slots: Vec<u32> = (0..kept.len() as u32).collect();
        for (states, measure) in self.states.iter_mut().zip(&self.layout.measures) {
            let mut fresh = measure.create();
            fresh.resize(kept.len());
            fresh.merge(&slots, &states.take(&kept)?)?;
            *states = fresh;
        }
        self.atoms = kept.iter().map(|&slot| self.atoms[slot as usize]).collect();
        self.index.values_mut().for_each(|slot| *slot = moved[*slot as usize]);
        self.newest.iter_mut().filter(|slot| **slot != NONE).for_each(|slot| *slot = moved[*slot as usize]);
        Ok(())
    }

    /// Which times of which keys changed since the last call; nothing unless [`SessionStore::track_changes`].
    pub fn take_dirty(&mut self) -> Vec<DirtyKey> {
        let Some(dirty) = &mut self.dirty else { return Vec::new() };
        let span = |(id, (first_us, last_us))| DirtyKey { id, first_us, last_us };
        let mut all: Vec<DirtyKey> = dirty.drain().map(span).collect();
        all.sort_unstable_by_key(|dirty| dirty.id);
        all
    }

    /// Adds the open sessions that a change touches to `found`, and returns the times that they and the change take up. A
    /// session from before the change that is no longer there began among these times.
    pub fn touched(&self, dirty: DirtyKey, found: &mut Found) -> (i64, i64) {
        let DirtyKey { id, first_us, last_us } = dirty;
        let gap_us = self.sessions.session.gap_us;
        let mut from_us = first_us;
        for (&(_, atom_us), &slot) in self.index.range((id, i64::MIN)..=(id, first_us)).rev() {
            let atom = &self.atoms[slot as usize];
            if atom.count > 0 && atom.last_us.saturating_add(gap_us) <= from_us {
                break;
            }
            if atom.count > 0 {
                from_us = atom_us;
            }
        }
        let mut to_us = last_us;
        let mut slots = Vec::new();
        for (&(_, atom_us), &slot) in self.index.range((id, from_us)..=(id, i64::MAX)) {
            let atom = &self.atoms[slot as usize];
            if atom.count <= 0 {
                continue;
            }
            if atom_us >= to_us.saturating_add(gap_us) {
                break;
            }
            slots.push(slot);
            to_us = to_us.max(atom.last_us);
        }
        self.cut(slots.into_iter(), found);
        (from_us, to_us)
    }

    /// Makes sessions of atoms, ascending by key and time.
    fn cut(&self, slots: impl Iterator<Item = u32>, found: &mut Found) {
        let session = self.sessions.session;
        let mut begun = false;
        for slot in slots {
            let atom = &self.atoms[slot as usize];
            if atom.count <= 0 {
                continue;
            }
            match found.sessions.last_mut() {
                Some((id, start_us, end_us)) if begun && *id == atom.id && atom.first_us < *end_us => {
                    *end_us = session.end_us(*start_us, atom.last_us);
                }
                _ => {
                    found.sessions.push((atom.id, atom.first_us, session.end_us(atom.first_us, atom.last_us)));
                    begun = true;
                }
            }
            found.slots.push(slot);
            found.of.push(found.sessions.len() as u32 - 1);
        }
    }

    /// Sessions with their values, in the order in which they were found.
    pub fn evaluate(&self, found: &Found) -> Result<SessionBatch, ExecError> {
        let (mut outputs, mut overflowed) = (Vec::new(), Vec::new());
        for (states, measure) in self.states.iter().zip(&self.layout.measures) {
            let mut whole = measure.create();
            whole.resize(found.sessions.len());
            whole.merge(&found.of, &states.take(&found.slots)?)?;
            outputs.push(whole.finish()?);
            overflowed.push(whole.overflowed());
        }
        let column = |of: fn(&(u32, i64, i64)) -> i64| found.sessions.iter().map(of).collect();
        let ids = found.sessions.iter().map(|s| s.0).collect();
        let batch = SessionBatch::new(ids, column(|s| s.1), column(|s| s.2), outputs);
        Ok(SessionBatch { overflowed, ..batch })
    }

    /// Closes the sessions that end at or before `final_until_us`, as no row can touch them any more, and returns them.
    pub fn close(&mut self, final_until_us: i64) -> Result<Arc<SessionBatch>, ExecError> {
        let mut final_slots: Vec<(u32, i64, u32)> = Vec::new();
        while let Some(&Reverse((end_us, id))) = self.due.peek() {
            if end_us > final_until_us {
                break;
            }
            self.due.pop();
            if self.due_us[id as usize] == end_us {
                self.due_us[id as usize] = i64::MAX;
                self.find_final(id, final_until_us, &mut final_slots);
            }
        }
        if final_slots.is_empty() {
            return Ok(Arc::default());
        }
        self.cached = None;
        final_slots.sort_unstable();
        let mut found = Found::default();
        self.cut(final_slots.iter().map(|&(_, _, slot)| slot), &mut found);
        let batch = Arc::new(self.evaluate(&found)?);
        final_slots.iter().for_each(|&(_, _, slot)| self.free(slot));
        if let Some(unsaved) = &mut self.unsaved {
            unsaved.closed.push(batch.clone());
        }
        self.closed.push(batch.clone())?;
        Ok(batch)
    }

    /// Adds the atoms of a key's final sessions as (key, first time, slot), and notes when the first of the others may end.
    fn find_final(&mut self, id: u32, final_until_us: i64, slots: &mut Vec<(u32, i64, u32)>) {
        let session = self.sessions.session;
        let mut current: Option<(i64, i64)> = None;
        let mut first = slots.len();
        let mut open_until_us = None;
        for (&(_, first_us), &slot) in self.index.range((id, i64::MIN)..=(id, i64::MAX)) {
            let atom = &self.atoms[slot as usize];
            if atom.count <= 0 {
                continue;
            }
            let (start_us, end_us) = match current {
                Some((start_us, end_us)) if first_us < end_us => (start_us, session.end_us(start_us, atom.last_us)),
                _ => {
                    first = slots.len();
                    (first_us, session.end_us(first_us, atom.last_us))
                }
            };
            if end_us > final_until_us {
                // It only grows with the rest of its atoms.
                open_until_us = Some(end_us);
                slots.truncate(first);
                break;
            }
            current = Some((start_us, end_us));
            slots.push((id, first_us, slot));
        }
        if let Some(end_us) = open_until_us {
            self.note_due(id, end_us);
        }
    }

    /// The start of the oldest open session, or `final_until_us` if that is earlier: no session that begins before it changes
    /// any more.
    pub fn oldest_open_us(&mut self, final_until_us: i64) -> i64 {
        if self.starts.is_none() {
            self.starts = Some(self.index.keys().map(|&(id, start_us)| Reverse((start_us, id))).collect());
        }
        let Some(starts) = &mut self.starts else { return final_until_us };
        while let Some(&Reverse((start_us, id))) = starts.peek() {
            if self.index.contains_key(&(id, start_us)) {
                return start_us.min(final_until_us);
            }
            starts.pop();
        }
        final_until_us
    }

    /// Forgets sessions that are final and end at or before this. Gives the new id of each old one if keys were renumbered,
    /// `u32::MAX` for those that went.
    pub fn forget(&mut self, horizon_us: i64) -> Result<Option<Vec<u32>>, ExecError> {
        self.forgotten_us = self.forgotten_us.max(Some(horizon_us));
        if self.closed.forget(horizon_us)? { self.compact_keys() } else { Ok(None) }
    }

    /// Rebuilds the dictionary once at most half of it is in use, so that keys without sessions do not stay.
    fn compact_keys(&mut self) -> Result<Option<Vec<u32>>, ExecError> {
        let used = self.live + self.closed.batches().iter().map(|batch| batch.len()).sum::<usize>();
        if self.layout.keys.is_empty() || self.keys.len() < 2 * CHUNK || used * 2 > self.keys.len() {
            return Ok(None);
        }
        let mut live = IdSet::new(self.keys.len());
        self.closed.batches().iter().flat_map(|batch| &batch.ids).for_each(|&id| live.insert(id));
        self.atoms.iter().filter(|atom| atom.id != NONE).for_each(|atom| live.insert(atom.id));
        live.seal();
        let old = self.keys.snapshot()?;
        let mut keys = KeyDictionary::new(&self.layout.keys)?;
        let mut fresh = Vec::new();
        for ids in by_chunk(&live.ids()) {
            keys.intern(&old.take(ids)?, ids.len(), &mut fresh)?;
        }
        self.keys = keys;
        if let Some(unsaved) = &mut self.unsaved {
            unsaved.renumbered();
        }
        // Interned in ascending order, so that the new id is the rank and what is sorted stays sorted.
        let mut renumbered = vec![NONE; old.len];
        live.ids().into_iter().for_each(|id| renumbered[id as usize] = live.rank(id));
        let new = |id: u32| renumbered[id as usize];
        self.closed.renumber(&renumbered);
        self.atoms.iter_mut().filter(|atom| atom.id != NONE).for_each(|atom| atom.id = new(atom.id));
        self.index =
            std::mem::take(&mut self.index).into_iter().map(|((id, us), slot)| ((new(id), us), slot)).collect();
        let (newest, due_us) = (std::mem::take(&mut self.newest), std::mem::take(&mut self.due_us));
        self.newest = live.ids().into_iter().map(|id| newest[id as usize]).collect();
        self.due_us = live.ids().into_iter().map(|id| due_us[id as usize]).collect();
        let still = |Reverse((us, id)): Reverse<(i64, u32)>| (new(id) != NONE).then(|| Reverse((us, new(id))));
        self.due = std::mem::take(&mut self.due).into_iter().filter_map(still).collect();
        self.starts = self.starts.take().map(|starts| starts.into_iter().filter_map(still).collect());
        if let Some(dirty) = &mut self.dirty {
            *dirty = dirty.drain().filter(|(id, _)| new(*id) != NONE).map(|(id, span)| (new(id), span)).collect();
        }
        self.cached = None;
        Ok(Some(renumbered))
    }

    fn open_sessions(&mut self) -> Result<Arc<SessionBatch>, ExecError> {
        if let Some(batch) = &self.cached {
            return Ok(batch.clone());
        }
        let mut found = Found::default();
        self.cut(self.index.values().copied(), &mut found);
        let batch = Arc::new(self.evaluate(&found)?);
        self.cached = Some(batch.clone());
        Ok(batch)
    }

    /// The sessions as they are. Cost: a copy of the open ones, if one has changed since the last call.
    pub fn snapshot(&mut self) -> Result<SessionSnapshot, ExecError> {
        Ok(SessionSnapshot {
            layout: self.layout.clone(),
            keys: self.keys.snapshot()?,
            closed: self.closed.batches().to_vec(),
            open: self.open_sessions()?,
        })
    }

    /// Atoms and final sessions.
    pub fn rows(&self) -> usize {
        self.live + self.closed.batches().iter().map(|batch| batch.len()).sum::<usize>()
    }

    pub fn bytes(&self) -> usize {
        // An entry of the tree takes some two thirds more than its 24 bytes.
        let indexes = self.index.len() * 40 + self.newest.capacity() * 4 + self.due_us.capacity() * 8;
        let heaps = (self.due.capacity() + self.starts.as_ref().map_or(0, BinaryHeap::capacity)) * 16;
        let states: usize = self.states.iter().map(|states| states.bytes()).sum();
        let closed: usize = self.closed.batches().iter().map(|batch| batch.bytes()).sum();
        self.keys.bytes() + self.atoms.capacity() * size_of::<Atom>() + indexes + heaps + states + closed
    }

    /// (start, end, sessions, bytes, final) of what is kept together: the open sessions, and batches of final ones.
    pub fn spans(&self) -> Vec<(i64, i64, usize, usize, bool)> {
        let of = |batch: &SessionBatch| (batch.start_span_us.0, batch.end_span_us.1, batch.len(), batch.bytes(), true);
        let mut spans: Vec<_> = self.closed.batches().iter().map(|batch| of(batch)).collect();
        if self.live > 0 {
            let atoms = || self.atoms.iter().filter(|atom| atom.id != NONE);
            let start_us = atoms().map(|atom| atom.first_us).min().unwrap_or(0);
            let end_us = atoms().map(|atom| atom.last_us).max().unwrap_or(0);
            let end_us = self.sessions.session.end_us(end_us, end_us);
            let closed: usize = spans.iter().map(|span| span.3).sum();
            spans.push((start_us, end_us, self.live, self.bytes() - closed, false));
        }
        spans
    }

    pub fn keys(&mut self) -> Result<KeySnapshot, ExecError> {
        self.keys.snapshot()
    }

    pub fn num_keys(&self) -> usize {
        self.keys.len()
    }

    /// Rows that no session could take, as they lie at the end of time.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }
}

fn select(rows: &StoreRows, kept: &UInt32Array) -> Result<StoreRows, ExecError> {
    let pick = |values: &[i64]| kept.values().iter().map(|&row| values[row as usize]).collect::<Vec<_>>();
    let all = |columns: &[arrow::array::ArrayRef]| {
        columns.iter().map(|column| Ok(take(column, kept, None)?)).collect::<Result<Vec<_>, ExecError>>()
    };
    let filter = |filter: &BooleanArray| -> Result<BooleanArray, ExecError> {
        Ok(BooleanArray::from(take(filter, kept, None)?.to_data()))
    };
    Ok(StoreRows {
        rows: kept.len(),
        slices: pick(&rows.slices),
        keys: all(&rows.keys)?,
        args: rows.args.iter().map(|args| all(args)).collect::<Result<_, _>>()?,
        filters: rows.filters.iter().map(|f| f.as_ref().map(filter).transpose()).collect::<Result<_, _>>()?,
        weights: rows.weights.as_deref().map(pick),
    })
}
