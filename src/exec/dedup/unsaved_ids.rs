use hashbrown::HashMap;

use super::id_table::IdRef;

/// The ids of which the next save has to speak.
pub(super) struct UnsavedIds {
    /// What was saved is of no use to the next.
    pub needs_whole: bool,
    /// True if the id was not in the table at the last save: when it goes again before the next, nothing is to be said of it.
    /// (What an older save said of such an id has expired, which whoever loads it sees by the times.)
    ids: HashMap<IdRef, bool>,
    /// Keys of ids that went after they had changed.
    pub gone: Vec<Box<[u8]>>,
}

impl UnsavedIds {
    pub fn new(needs_whole: bool) -> Self {
        UnsavedIds { needs_whole, ids: HashMap::new(), gone: Vec::new() }
    }

    pub fn note(&mut self, id: IdRef, is_new: bool) {
        if !self.needs_whole {
            self.ids.entry(id).or_insert(is_new);
        }
    }

    /// The id goes: its name may become that of another.
    pub fn forget(&mut self, id: IdRef, key: &[u8]) {
        if self.ids.remove(&id) == Some(false) {
            self.gone.push(key.into());
        }
    }

    /// In the order of the table.
    pub fn ids(&self) -> Vec<IdRef> {
        let mut ids: Vec<IdRef> = self.ids.keys().copied().collect();
        ids.sort_unstable();
        ids
    }
}
