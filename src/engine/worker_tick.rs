//! The end of a tick in a worker: the rounds of the exchange, what stores and change streams make of it, and the report.

use std::collections::HashMap;

use super::{Part, TRY_AGAIN_TICKS, WORTH_AGGREGATING, Worker, least};
use crate::catalog::Oid;
use crate::engine::checkpoint::SaveOrder;
use crate::engine::clock::{self, Stopwatch};
use crate::engine::decoding::Consumer;
use crate::engine::edge::Edge;
use crate::engine::orders::{EdgeId, Report, StoreReport};
use crate::engine::owners::{by_owner, select_partial};
use crate::engine::reader::SourceReader;
use crate::engine::verdicts::Verdicts;
use crate::exec::exchange::{Batch, Body, RoundInput, SourceProgress, StoreId};
use crate::exec::feed::Shortfall;
use crate::exec::horizon::Horizon;
use crate::exec::law::{Finality, SourceTime};
use crate::exec::session_batch::SessionSnapshot;
use crate::exec::store_snapshot::StoreSnapshot;
use crate::exec::tail::shown;
use crate::exec::window_view::Told;
use crate::exec::{Delta, ExecError};

#[derive(Default)]
struct Snapshots {
    slices: Vec<(StoreId, StoreSnapshot)>,
    sessions: Vec<(StoreId, SessionSnapshot)>,
}

impl Worker {
    /// Ends a round and waits for the others; `None` if the process ends.
    fn end_round(&mut self, progress: &[SourceProgress], last: bool) -> Option<RoundInput> {
        for owner in 0..self.workers {
            let message = self.message(u32::MAX, Body::End { messages: self.sent[owner], progress: progress.to_vec() });
            if owner == self.index {
                self.inbox.accept(message);
            } else {
                self.transport.send(owner, message);
            }
        }
        self.sent.fill(0);
        self.round += 1;
        loop {
            if let Some(input) = self.inbox.complete(last) {
                return Some(input);
            }
            match self.incoming.recv() {
                Ok(message) => self.inbox.accept(message),
                Err(_) => return None,
            }
        }
    }

    /// Sends what was aggregated in this tick.
    fn flush(&mut self, id: StoreId) -> Result<(), ExecError> {
        let Some(Part { before: Some(before), .. }) = self.stores.get_mut(&id) else { return Ok(()) };
        if before.rests_ticks > 0 {
            before.rests_ticks -= 1;
            return Ok(());
        }
        if before.rows == 0 {
            return Ok(());
        }
        let drained = before.store.drain()?;
        let groups: usize = drained.iter().map(|p| p.slices.len()).sum();
        if groups * WORTH_AGGREGATING > before.rows {
            before.rests_ticks = TRY_AGAIN_TICKS;
        }
        before.rows = 0;
        for partial in drained {
            for (owner, selected) in by_owner(&partial.keys, partial.slices.len(), self.workers) {
                let Some(selected) = selected else { continue };
                let partial = select_partial(&partial, &selected)?;
                if owner == self.index {
                    self.with_store(id, |store| store.merge(&partial))?;
                } else {
                    self.send(owner, id, Batch::Partial(partial));
                }
            }
        }
        Ok(())
    }

    pub(super) fn end_tick(
        &mut self,
        tick: u64,
        snapshots: &[StoreId],
        detail: bool,
        asked: &[EdgeId],
        save: Option<&SaveOrder>,
    ) -> bool {
        let now_us = clock::now_us();
        let mut rows = Vec::new();
        if !self.deduplications.is_empty() {
            let mut accepted = self.send_accepted();
            let Some(input) = self.end_round(&[], false) else { return false };
            accepted.extend(input.accepted);
            self.deduplicate(accepted);
            rows = input.rows;
        }
        let mut ids: Vec<StoreId> = self.stores.keys().copied().collect();
        ids.sort_unstable();
        for &id in &ids {
            if let Err(error) = self.flush(id) {
                self.fail(Consumer::Store(id), &error);
            }
        }
        let progress: Vec<SourceProgress> =
            self.sources.iter_mut().map(|(&source, reader)| reader.progress(source, now_us)).collect();
        let Some(input) = self.end_round(&progress, true) else { return false };
        for (source, changed) in input.verdicts {
            self.note_verdicts(source, &changed);
        }
        let watch = Stopwatch::start();
        let idle = rows.is_empty() && input.rows.is_empty();
        for (store, batch) in rows.into_iter().chain(input.rows) {
            if let Err(error) = self.accept(store, &batch) {
                self.fail(Consumer::Store(store), &error);
            }
        }
        self.advance_times(&input.progress);
        let mut edges = Vec::new();
        // What is saved, and what a repair begins with, has been told.
        let asks_all = save.is_some() || !self.replacements.is_empty();
        for &id in &ids {
            if let Err(error) = self.step_store(id, &|edge| asks_all || asked.contains(&edge), &mut edges) {
                self.fail(Consumer::Store(id), &error);
            }
        }
        self.replace_slices(&mut edges);
        let mut broken = Vec::new();
        for (&id, part) in self.sessions.iter_mut().filter(|(_, part)| !part.failed) {
            broken.extend(part.step(&self.times, &mut edges).err().map(|error| (id, error)));
        }
        for (id, error) in broken {
            self.fail(Consumer::Store(id), &error);
        }
        self.settle_ids();
        if !idle {
            self.busy += watch.elapsed();
        }
        // Before those begin who have waited: what they are given is told as a change of the next tick.
        let snapshots = self.take_snapshots(snapshots);
        // What is sent from here on belongs to the next tick.
        (self.tick, self.round) = (tick + 1, 0);
        self.bytes_this_tick = 0;
        self.begin_waiting();
        self.tell_logs();
        let mut report = self.report(tick, snapshots, detail, edges);
        if let Some(order) = save {
            report.saved = self.save(order);
            report.failures.append(&mut self.failures);
            report.fatal = report.fatal.or(self.fatal.take());
        }
        self.reports.send(report).is_ok()
    }

    /// Every worker comes to the same times, from what all have said.
    fn advance_times(&mut self, progress: &[SourceProgress]) {
        for (&source, reader) in &mut self.sources {
            let time = self.times.entry(source).or_default();
            let partitions = progress.iter().filter(|p| p.source == source).flat_map(|p| p.partitions.iter().copied());
            let finality = match self.final_once_kept.contains(&source) {
                true => Finality::Kept(self.kept_until.get(&source).copied()),
                false => Finality::AtOnce,
            };
            time.advance(reader.bounds(), finality, partitions);
            reader.source_stands_at(time.watermark_us);
        }
    }

    fn step_store(
        &mut self,
        id: StoreId,
        is_asked: &dyn Fn(EdgeId) -> bool,
        out: &mut Vec<(EdgeId, Delta)>,
    ) -> Result<(), ExecError> {
        let Some(part) = self.stores.get_mut(&id) else { return Ok(()) };
        if part.failed {
            return Ok(());
        }
        let horizon = Horizon::Source(part.source);
        let held = HashMap::new();
        let times: &HashMap<Oid, SourceTime> = if part.held { &held } else { &self.times };
        let dirty = part.store.take_dirty();
        let now = shown(Some(&horizon), times, part.keep_us);
        let forgets_us = least(now.horizon_us, part.floor_us);
        let grid = part.store.layout().grid;
        for edge in &mut part.edges {
            if edge.waits && !is_asked(edge.id) {
                edge.note(&dirty);
                if !edge.loses(grid, forgets_us) {
                    continue;
                }
            }
            let floor_us = part.floor_us.map(|us| us.saturating_add(edge.size_us));
            let shown = shown(Some(&horizon), times, edge.retention_us).above(floor_us);
            let delta = if edge.is_new {
                edge.is_new = false;
                if edge.tells_all {
                    Some(edge.changes.begin(&mut part.store, &shown)?)
                } else {
                    edge.changes.resume(&mut part.store, &shown, Told::all(&shown))?;
                    None
                }
            } else {
                let noted = edge.noted(&dirty);
                Some(edge.changes.step(&mut part.store, noted.as_deref().unwrap_or(&dirty), &shown)?)
            };
            out.extend(delta.filter(|d| !d.is_empty()).map(|d| (edge.id, d)));
        }
        if let Some(final_until_us) = now.final_until_us {
            part.store.close(final_until_us)?;
        }
        if let Some(horizon_us) = forgets_us
            && let Some(renumbered) = part.store.forget(horizon_us)?
        {
            part.edges.iter_mut().for_each(|edge| edge.renumber(&renumbered));
        }
        Ok(())
    }

    /// What stores hold, as their change streams have told it by now.
    fn take_snapshots(&mut self, ids: &[StoreId]) -> Snapshots {
        let mut taken = Snapshots::default();
        for &id in ids {
            if let Some(part) = self.sessions.get_mut(&id) {
                match part.store.snapshot() {
                    Ok(snapshot) => taken.sessions.push((id, snapshot)),
                    Err(error) => self.fail(Consumer::Store(id), &error),
                }
                continue;
            }
            let Some(part) = self.stores.get_mut(&id) else { continue };
            match part.store.snapshot() {
                Ok(snapshot) => taken.slices.push((id, snapshot)),
                Err(error) => self.fail(Consumer::Store(id), &error),
            }
        }
        taken
    }

    fn report(&mut self, tick: u64, snapshots: Snapshots, detail: bool, edges: Vec<(EdgeId, Delta)>) -> Report {
        let mut verdicts = Verdicts {
            duplicates: std::mem::take(&mut self.duplicates),
            kept_after_all: std::mem::take(&mut self.kept_after_all),
            ..Verdicts::default()
        };
        let mut sources = Vec::new();
        for (&source, reader) in &mut self.sources {
            sources.push(reader.report(source, &mut verdicts));
        }
        for said in &mut sources {
            said.ids = [said.ids, self.owned_ids(said.source)].into_iter().sum();
        }
        let shortfall = |source: Oid, store: StoreId| {
            self.sources.get(&source).map_or_else(Shortfall::default, |r| r.shortfall(Consumer::Store(store)))
        };
        let stores = detail.then(|| {
            let of_sessions =
                self.sessions.iter().map(|(&store, part)| part.report(store, shortfall(part.source, store)));
            self.stores
                .iter()
                .map(|(&store, part)| StoreReport {
                    store,
                    slices: part.store.slices().collect(),
                    panes: part.store.panes_in_files(),
                    sessions: Vec::new(),
                    keys: part.store.num_keys(),
                    bytes: part.store.bytes() + part.edges.iter().map(Edge::bytes).sum::<usize>(),
                    generation: part.generation,
                    forgotten_rows: part.store.forgotten_rows(),
                    first_kept: part.store.first_kept(),
                    shortfall: shortfall(part.source, store),
                })
                .chain(of_sessions)
                .collect()
        });
        let passes_short = match detail {
            true => self.sources.values().flat_map(SourceReader::pass_shortfalls).collect(),
            false => Vec::new(),
        };
        Report {
            worker: self.index,
            tick,
            passes: std::mem::take(&mut self.passes),
            edges,
            sources,
            verdicts,
            snapshots: snapshots.slices,
            sessions: snapshots.sessions,
            oldest_sessions: self.sessions.iter().filter_map(|(&id, part)| Some((id, part.oldest_us?))).collect(),
            times: self.times.clone(),
            stores,
            passes_short,
            failures: std::mem::take(&mut self.failures),
            fatal: self.fatal.take(),
            saved: Vec::new(),
            busy: std::mem::take(&mut self.busy),
        }
    }
}
