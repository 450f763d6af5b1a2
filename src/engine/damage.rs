//! The files of a checkpoint as they are taken up, and what becomes of those that are damaged or not there: the start is refused; or,
//! with [`EngineOptions::rebuild_damaged`](super::EngineOptions::rebuild_damaged), all of them are read at once, and what follows
//! from the logs of sources and from tables is made anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::checkpoint::{Checkpoint, PartFiles};
use super::checkpointer::try_read;
use super::slice_index::SliceIndex;
use crate::exec::durable::Saved;
use crate::storage::{Storage, StorageError};

pub(super) struct Files<'a> {
    storage: &'a Storage,
    pub parts: BTreeMap<String, PartFiles>,
    pub slices: SliceIndex,
    rebuilds: bool,
}

impl Files<'_> {
    /// Errors: a list of slices is damaged.
    pub fn of<'a>(storage: &'a Storage, checkpoint: &Checkpoint, rebuilds: bool) -> Result<Files<'a>, StorageError> {
        let Checkpoint { parts, slice_files, unlisted, .. } = checkpoint;
        let mut slices = SliceIndex::load(storage, parts, slice_files, rebuilds)?;
        slices.add_unlisted(storage, unlisted);
        Ok(Files { storage, parts: parts.clone(), slices, rebuilds })
    }

    /// What a part saved, in order; nothing if there is no such part.
    pub fn saved(&self, name: &str) -> Result<Vec<Saved>, StorageError> {
        let at = self.parts.get(name).into_iter().flat_map(|files| &files.saved);
        at.map(|at| try_read(self.storage, at)).collect()
    }

    /// [`saved`](Files::saved) of a part that can be made anew. Its slices are read, too, if it may be: later it is too late.
    pub fn saved_with_slices(&self, name: &str) -> Result<Vec<Saved>, StorageError> {
        if self.rebuilds {
            self.slices.check(name)?;
        }
        self.saved(name)
    }

    /// Nothing if that of which this was read is damaged, and is to be made anew.
    pub fn unless_damaged<T>(
        &self,
        what: impl fmt::Display,
        read: Result<T, StorageError>,
    ) -> Result<Option<T>, StorageError> {
        match read {
            Err(error) if self.rebuilds && error.is_damage() => {
                tracing::error!(%error, "{what} is made anew");
                Ok(None)
            }
            read => read.map(Some),
        }
    }

    /// Names of the parts below a prefix, with what follows it.
    pub fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.parts.keys().filter_map(move |name| Some((name.as_str(), name.strip_prefix(prefix)?)))
    }

    /// These parts begin anew.
    pub fn forget(&mut self, names: &[String]) {
        self.parts.retain(|name, _| !names.contains(name));
        let live: BTreeSet<String> = self.parts.keys().cloned().collect();
        self.slices.retain(&live);
    }
}
