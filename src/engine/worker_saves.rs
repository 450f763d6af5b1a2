//! What a worker saves at a checkpoint, and takes up again.

use std::sync::Arc;

use super::checkpoint::{PartSave, SaveOrder, SavedSource, SavedStore};
use super::decoding::Consumer;
use super::owners::{buckets_of, owners_before};
use super::reader::SourceReader;
use super::session_part::SessionPart;
use super::worker::Worker;
use crate::catalog::Oid;
use crate::exec::ExecError;
use crate::exec::dedup::AcrossPartitions;
use crate::exec::durable::{Buckets, Saved};
use crate::exec::exchange::StoreId;
use crate::exec::law::SourceTime;
use crate::exec::saved_columns::wrong;
use crate::exec::slice_store::{SliceStore, StoreLayout};

impl Worker {
    fn buckets(&self) -> Buckets {
        buckets_of(self.index, self.workers)
    }

    /// What was saved by workers that had some of this one's buckets. As long as the number of workers stays the same that is this one
    /// alone, which then goes on from what it has saved.
    fn saved_for<'a, T>(&self, by_worker: &'a [T]) -> &'a [T] {
        match by_worker.len() {
            0 => by_worker,
            workers => &by_worker[owners_before(&self.buckets(), workers)],
        }
    }

    /// Everything that this worker owns and that is whole: no store that is still being given its history. A part that fails to
    /// save is told of as broken.
    pub(super) fn save(&mut self, order: &SaveOrder) -> Vec<PartSave> {
        let mut parts = Vec::new();
        let mut broken = Vec::new();
        for (&source, reader) in &mut self.sources {
            match reader.save(source, order) {
                Ok(saved) => parts.extend(saved),
                Err(error) => self.fatal = Some(format!("a source cannot be saved: {error}")),
            }
        }
        let index = self.index;
        for (&source, ids) in &mut self.deduplications {
            let name = format!("ids/{source}/w{index}");
            match ids.save(order.whole(&name)) {
                Ok(saved) => parts.push(PartSave::new(name, saved)),
                Err(error) => self.fatal = Some(format!("the ids of a source cannot be saved: {error}")),
            }
        }
        for (&id, part) in self.stores.iter_mut().filter(|(_, part)| !part.held && !part.failed) {
            let name = format!("store/{id}/{index}");
            match part.store.save(order.whole(&name)) {
                Ok(saved) => parts.push(PartSave {
                    name,
                    slices: saved.saved.whole.then(|| {
                        let closed = part.store.slices().filter(|(.., closed)| *closed);
                        closed.map(|(slice, ..)| (0, slice)).collect()
                    }),
                    first_kept: part.store.first_kept().map(|first| (0, first)).into_iter().collect(),
                    closed: saved.closed.into_iter().map(|slice| (0, slice)).collect(),
                    renumbered: saved.renumbered,
                    panes: saved.panes.into_iter().map(|pane| (0, pane)).collect(),
                    saved: saved.saved,
                }),
                Err(error) => broken.push((Consumer::Store(id), error.to_string())),
            }
        }
        for (&id, part) in self.sessions.iter_mut().filter(|(_, part)| !part.held && !part.failed) {
            let name = format!("store/{id}/{index}");
            match part.save(order.whole(&name)) {
                Ok(saved) => parts.push(PartSave::new(name, saved)),
                Err(error) => broken.push((Consumer::Store(id), error.to_string())),
            }
        }
        self.failures.extend(broken);
        parts
    }

    /// Takes this worker's partitions, and the ids in its buckets.
    pub(super) fn restore_source(
        &mut self,
        source: Oid,
        time: SourceTime,
        floor_us: Option<i64>,
        topic_known: bool,
        saved: &SavedSource,
    ) {
        self.times.insert(source, time);
        self.kept_until.extend(time.settled_us.max(time.final_until_us).map(|us| (source, us)));
        let (index, workers, buckets) = (self.index, self.workers, self.buckets());
        let across = self.saved_for(&saved.across);
        let Some(reader) = self.sources.get_mut(&source) else { return };
        let own = |partition: &i32| partition.unsigned_abs() as usize % workers == index;
        let mut restored = Ok(());
        for (&partition, notes) in saved.partitions.iter().filter(|(partition, _)| own(partition)) {
            let ids = saved.ids.get(&partition).map(Vec::as_slice).unwrap_or_default();
            let duplicates = saved.duplicates.get(&partition).map(Vec::as_slice).unwrap_or_default();
            restored = restored.and_then(|()| reader.restore(partition, notes, ids, duplicates));
        }
        reader.restored(floor_us, topic_known);
        let setup = &reader.setup;
        if let (Some(deduplicate), Some(time_column), false) =
            (setup.across_partitions(), setup.time_column, across.is_empty())
        {
            let loaded = AcrossPartitions::load(deduplicate, time_column, setup.schema.clone(), across, buckets);
            restored = restored.and_then(|()| loaded.map(|ids| drop(self.deduplications.insert(source, ids))));
        }
        if let Err(error) = restored {
            self.fatal = Some(format!("a source cannot be taken up: {error}"));
        }
    }

    pub(super) fn restore_store(&mut self, id: StoreId, source: Oid, layout: &Arc<StoreLayout>, saved: &SavedStore) {
        let taken = match layout.sessions {
            Some(_) => self.restore_sessions(id, source, layout, saved),
            None => {
                let parts = self.saved_for(&saved.parts).to_vec();
                SliceStore::load(layout.clone(), parts, self.buckets(), self.cache.clone()).and_then(|store| {
                    self.add_part(id, source, layout.clone(), store)?;
                    self.with_part(id, |part| part.held = false);
                    Ok(())
                })
            }
        };
        if let Err(error) = taken {
            self.fatal = Some(format!("a store cannot be taken up: {error}"));
        }
    }

    fn restore_sessions(
        &mut self,
        id: StoreId,
        source: Oid,
        layout: &Arc<StoreLayout>,
        saved: &SavedStore,
    ) -> Result<(), ExecError> {
        let parts: Vec<Vec<Saved>> = self.saved_for(&saved.parts).iter().map(|part| part.saved.clone()).collect();
        let part = SessionPart::load(source, layout.clone(), &parts, self.buckets(), false, &self.times)?;
        self.sessions.insert(id, part);
        Ok(())
    }
}

impl SourceReader {
    /// Each partition: how its law stands, whole; and the ids that are kept with it.
    fn save(&mut self, source: Oid, order: &SaveOrder) -> Result<Vec<PartSave>, ExecError> {
        let mut parts = Vec::new();
        let floor_us = self.floor_us();
        for (&partition, state) in &mut self.partitions {
            let notes = state.notes(floor_us);
            let notes = serde_json::to_value(notes).map_err(|error| wrong(error.to_string()))?;
            let saved = Saved { whole: true, notes, ..Saved::default() };
            parts.push(PartSave::new(format!("source/{source}/{partition}"), saved));
            if self.setup.deduplicate.is_some() {
                let name = format!("duplicates/{source}/{partition}");
                let saved = state.duplicates.save(order.whole(&name))?;
                parts.push(PartSave::new(name, saved));
            }
            if let Some(ids) = &mut state.ids {
                let name = format!("ids/{source}/p{partition}");
                let saved = ids.save(order.whole(&name))?;
                parts.push(PartSave::new(name, saved));
            }
        }
        Ok(parts)
    }
}
