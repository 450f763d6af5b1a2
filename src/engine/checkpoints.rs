//! The coordinator's side of what lasts: it gathers a tick's state into a checkpoint, and answers once that is kept.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::checkpoint::{Body, FORMAT, PartSave, SaveOrder, SourceBody, StoreBody, TableBody, ViewBody};
use super::checkpointer::{Creations, Holding};
use super::coordinator::{Coordinator, Wait};
use super::dataflow::{Source, Store, TickData, View};
use super::error::EngineError;
use super::keeping::{Heard, Keeping};
use super::orders::Command;
use super::request::{Asked, Reply};
use super::table::Written;
use super::table_log::record_of;
use super::{TableChange, WriteOutcome};
use crate::catalog::{CatalogText, ObjectKind, Oid};
use crate::exec::ExecError;
use crate::exec::exchange::StoreId;
use crate::exec::feed::Shortfall;
use crate::exec::law::SourceTime;

impl Coordinator {
    /// Refuses a change that could not be kept.
    pub(super) fn check_keeping(&self) -> Result<(), EngineError> {
        self.keeping.as_ref().map_or(Ok(()), |keeping| keeping.check())
    }

    pub(super) fn heard(&mut self, heard: Heard) {
        match heard {
            Heard::Fenced(reason) => {
                tracing::error!(reason, "the engine stops");
                self.fenced = Some(reason);
            }
            Heard::Kept(tick, settled) => {
                self.broadcast(|| Command::Kept { tick, settled: settled.clone() });
                self.release_subscribers(tick);
            }
            Heard::Well | Heard::Failing => {}
        }
        self.mind_reading();
    }

    /// Has reading rest while what is read could not be kept, or not be held.
    pub(super) fn mind_reading(&mut self) {
        let failure = self.keeping.as_ref().and_then(|keeping| keeping.check().err());
        let rests = failure.map(|error| format!("nothing is read until the storage is mended: {error}"));
        let rests = rests.or_else(|| self.memory.full.clone());
        if rests.is_some() != self.rests.is_some() {
            let reading = rests.is_none();
            self.broadcast(|| Command::Pause { reading });
        }
        self.rests = rests;
    }

    /// When the engine is told to stop: is there anything that a last checkpoint would keep?
    pub(super) fn has_more_to_keep(&mut self) -> bool {
        let (tick, epoch) = (self.tick, self.epoch);
        let Some(keeping) = &mut self.keeping else { return false };
        if keeping.check().is_err() {
            return false;
        }
        keeping.wants_last((epoch, tick))
    }

    /// At the end of a tick.
    pub(super) fn order_checkpoint(&mut self, asked: &Asked) -> Option<Arc<SaveOrder>> {
        let finals_wait = self.final_once_kept.iter().any(|view| self.finals_wait(*view));
        let waits = asked.changes_what_lasts() && !self.can_add(asked) || self.waits.iter().any(Wait::for_finals);
        let keeping = self.keeping.as_mut()?;
        if finals_wait {
            keeping.note_awaited();
        }
        keeping.order(waits)
    }

    /// Is it enough that a manifest names what was created? What is to show nothing that a crash could take back begins with
    /// a checkpoint.
    pub(super) fn can_add(&self, asked: &Asked) -> bool {
        asked.only_creates()
            && self.keeping.as_ref().is_some_and(Keeping::can_add)
            && !asked.created.iter().any(|created| self.final_once_kept.contains(&created.oid))
    }

    /// What has been created in a tick without a checkpoint is told of once a manifest names it.
    pub(super) fn keep_creations(&mut self, asked: &mut Asked) {
        if !asked.created.iter().any(|created| created.made.is_ok()) {
            return;
        }
        let sources = self.sources.iter().map(|(&oid, source)| SourceBody {
            begun: false,
            partitions: Vec::new(),
            time: SourceTime::default(),
            ..self.source_body(oid, source)
        });
        let tick = (self.epoch, self.tick);
        let creations = Creations { tick, catalog: self.catalog_text(), sources: sources.collect() };
        if let Some(keeping) = &mut self.keeping {
            keeping.add(creations);
            asked.created_alone = true;
        }
    }

    /// Hands what the tick holds to the checkpointer.
    pub(super) fn begin_checkpoint(&mut self, order: &SaveOrder, data: &mut TickData) {
        let mut parts = std::mem::take(&mut data.saved);
        if let Err(error) = self.save_own(order, &mut parts) {
            // What has been taken out of parts is lost to this process: only a restart mends that.
            tracing::error!(%error, "a checkpoint cannot be made; the engine stops");
            self.fenced = Some(format!("a checkpoint cannot be made: {error}"));
            return;
        }
        let live: BTreeSet<String> = parts.iter().map(|part| part.name.clone()).collect();
        let body = self.body(&live);
        let tick = self.tick;
        let settled = self.times.iter().filter_map(|(&source, time)| Some((source, time.settled_us?))).collect();
        let Some(keeping) = &mut self.keeping else { return };
        let log_through = keeping.last_record();
        keeping.begin(tick, Holding { body, parts, live, log_through }, Arc::new(settled));
    }

    /// What the coordinator itself holds: tables, rows of views, tails, and what did not count.
    fn save_own(&mut self, order: &SaveOrder, parts: &mut Vec<PartSave>) -> Result<(), ExecError> {
        for (&oid, table) in &mut self.tables {
            let name = format!("table/{oid}");
            let saved = table.state.save(order.whole(&name))?;
            parts.push(PartSave::new(name, saved));
        }
        let held: BTreeSet<Oid> = self.views.keys().copied().filter(|oid| !self.is_whole_view(*oid)).collect();
        for (&oid, view) in self.views.iter_mut().filter(|(oid, _)| !held.contains(oid)) {
            if let Some(arrangement) = &mut view.arrangement {
                let name = format!("rows/{oid}");
                let saved = arrangement.save(order.whole(&name))?;
                parts.push(PartSave::new(name, saved));
            }
            let name = format!("tail/{oid}");
            let saved = view.tail.save(order.whole(&name))?;
            let whole = saved.saved.whole;
            let closed = saved.closed.into_iter().map(|(node, slice)| (node as u32, slice)).collect();
            parts.push(PartSave {
                name,
                saved: saved.saved,
                closed,
                first_kept: view.tail.first_kept(),
                slices: whole.then(|| view.tail.closed_slices()),
                renumbered: saved.renumbered,
                panes: saved.panes.into_iter().map(|(node, pane)| (node as u32, pane)).collect(),
            });
        }
        for (name, saved) in self.kept.save(order)? {
            parts.push(PartSave::new(name, saved));
        }
        Ok(())
    }

    /// Can the view's state be taken up as it is? Not while some of its history is still to come, nor after a failure.
    fn is_whole_view(&self, oid: Oid) -> bool {
        self.views.get(&oid).is_some_and(|view| {
            view.failed.is_none() && !self.is_held(view) && self.stores_are_saved(view) && view.made_in < self.tick
        })
    }

    /// Of a view and of those below it. Workers saved what they held by the beginning of the tick.
    fn stores_are_saved(&self, view: &View) -> bool {
        view.feeds.iter().all(|feed| self.stores.get(&feed.store).is_none_or(|store| self.is_saved(store)))
            && view.object.depends_on.iter().all(|oid| self.views.get(oid).is_none_or(|v| self.stores_are_saved(v)))
    }

    fn is_saved(&self, store: &Store) -> bool {
        !store.held && store.released_in < self.tick
    }

    /// `live`: the parts that there are. A store of which a worker has given nothing (it was being given its history, or has failed) is
    /// left out, and who reads it is made anew.
    fn body(&self, live: &BTreeSet<String>) -> Body {
        let sources = self.sources.iter().map(|(&oid, source)| self.source_body(oid, source));
        let is_whole = |id: StoreId| (0..self.workers).all(|worker| live.contains(&format!("store/{id}/{worker}")));
        let whole = self.stores.iter().filter(|(id, store)| self.is_saved(store) && is_whole(**id));
        let stores = whole.filter_map(|(&id, store)| {
            let mut shortfall = store.short_before.clone();
            store.reports.values().for_each(|report| shortfall.add(report.shortfall.clone()));
            Some(StoreBody {
                id,
                source: store.source,
                made_by: (store.made_by.0.last()?.oid, store.made_by.1),
                fingerprint: store.feed.layout.fingerprint(),
                complete_from_us: store.complete_from_us,
                floor_us: store.floor_us,
                shortfall,
            })
        });
        let tables = self.tables.iter().map(|(&oid, table)| TableBody {
            oid,
            watermark_us: table.watermark_us(),
            rows_seen: table.rows_seen(),
        });
        Body {
            format: FORMAT,
            tick: (self.epoch, self.tick),
            now_us: self.now_us,
            catalog: self.catalog_text(),
            workers: self.workers,
            next_id: self.next_id,
            sources: sources.collect(),
            stores: stores.collect(),
            views: self.views.values().map(|view| self.view_body(view)).collect(),
            tables: tables.collect(),
        }
    }

    fn catalog_text(&self) -> CatalogText {
        let mut catalog = self.catalog.to_text();
        let ghosts = self.stores.values().flat_map(|store| &store.made_by.0);
        for ghost in ghosts.filter(|object| self.catalog.get(object.oid).is_none()) {
            if !catalog.ghosts.iter().any(|known| known.oid == ghost.oid) {
                catalog.ghosts.push((&**ghost).into());
            }
        }
        catalog.ghosts.sort_by_key(|ghost| ghost.oid);
        catalog
    }

    fn source_body(&self, oid: Oid, source: &Source) -> SourceBody {
        SourceBody {
            oid,
            starts: source.starts.iter().map(|(&partition, &start)| (partition, start)).collect(),
            topic_id: source.topic_id.clone(),
            begun: source.begun,
            partitions: source.assigned.keys().copied().collect(),
            time: self.times.get(&oid).copied().unwrap_or_default(),
            gaps: source.gaps.clone(),
            changes: source.changes.clone(),
            late_into_trouble: source.late_into_trouble.clone(),
        }
    }

    fn view_body(&self, view: &View) -> ViewBody {
        let mut shortfall: Shortfall = view.short_before.clone();
        view.passes_short.values().for_each(|short| shortfall.add(short.clone()));
        ViewBody {
            oid: view.object.oid,
            stores: view.feeds.iter().map(|feed| feed.store).collect(),
            oldest_us: view.flow.feeds.iter().map(|feed| Some(feed.oldest.as_ref()?.start_us())).collect(),
            whole: self.is_whole_view(view.object.oid),
            current: view.current,
            targets: view.targets.iter().map(|(&oid, ends)| (oid, ends.clone())).collect(),
            complete_from_us: view.complete_from_us,
            rows_out: view.rows_out,
            shortfall,
        }
    }

    /// Answers at once, or once a checkpoint holds it.
    pub(super) fn answer_when_kept<T: Send + 'static>(&mut self, outcome: Result<T, EngineError>, reply: Reply<T>) {
        match (&mut self.keeping, outcome) {
            (Some(keeping), Ok(told)) => keeping.once_kept(self.tick - 1, move |kept| {
                let _ = reply.send(kept.map(|()| told));
            }),
            (_, outcome) => drop(reply.send(outcome)),
        }
    }

    /// Of what a manifest is to name by [`keep_creations`](Coordinator::keep_creations).
    pub(super) fn answer_when_added<T: Send + 'static>(&mut self, outcome: Result<T, EngineError>, reply: Reply<T>) {
        match (&mut self.keeping, outcome) {
            (Some(keeping), Ok(told)) => keeping.once_added(self.tick - 1, move |kept| {
                let _ = reply.send(kept.map(|()| told));
            }),
            (_, outcome) => drop(reply.send(outcome)),
        }
    }

    pub(super) fn take_write(&mut self, changes: Vec<TableChange>, reply: Reply<WriteOutcome>, asked: &mut Asked) {
        let record = match &self.keeping {
            None => Ok(None),
            Some(_) => self.check_keeping().and_then(|()| Ok(Some(record_of(&changes)?))),
        };
        // Rows that a source puts into the table come again from the source after a crash, at another place among the writes.
        let mixed = changes.iter().any(|change| self.takes_late_rows(change.table));
        let outcome = record.and_then(|record| Ok((self.write(changes, &mut asked.data)?, record)));
        let (outcome, record) = match outcome {
            Ok((outcome, record)) => (Ok(outcome), record.filter(|_| !mixed)),
            Err(error) => (Err(error), None),
        };
        // It is written while the tick ends.
        let record = self.keeping.as_mut().zip(record).map(|(keeping, record)| keeping.append(record));
        asked.written.push(Written { outcome, record, mixed: mixed && self.keeping.is_some(), reply });
    }

    fn takes_late_rows(&self, table: Oid) -> bool {
        self.sources.values().any(|source| match &source.object.kind {
            ObjectKind::Source(source) => source.late_rows.as_ref().is_some_and(|late| late.table == table),
            _ => false,
        })
    }

    pub(super) fn answer_write(&mut self, written: Written) {
        let Written { outcome, record, mixed, reply } = written;
        match (&mut self.keeping, outcome) {
            (Some(_), Ok(outcome)) if mixed => self.answer_when_kept(Ok(outcome), reply),
            (Some(keeping), Ok(outcome)) => match record {
                Some(record) => keeping.once_logged(record, move |kept| {
                    let _ = reply.send(kept.map(|()| outcome));
                }),
                None => drop(reply.send(Ok(outcome))),
            },
            (_, outcome) => drop(reply.send(outcome)),
        }
    }
}
