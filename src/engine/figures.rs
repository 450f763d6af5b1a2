//! What the coordinator tells of itself: figures for the tables of `riverrun`, and the text of EXPLAIN ANALYZE.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::coordinator::Coordinator;
use super::dataflow::{RegroupedUse, Source, Store, View};
use super::error::EngineError;
use super::keeping::Keeping;
use super::orders::StoreReport;
use super::request::Explained;
use super::stats::{SliceStats, SourceStats, Stats, ViewStats};
use crate::catalog::Oid;
use crate::exec::arrangement::Arrangement;
use crate::exec::exchange::StoreId;
use crate::exec::operator::EmitEvery;
use crate::exec::tail::Times;

impl Coordinator {
    pub(super) fn publish_stats(&mut self) {
        for source in self.sources.values_mut() {
            let mut freshness = std::mem::take(&mut source.freshness);
            freshness.note(|ends| source.has_reached(ends));
            source.freshness = freshness;
        }
        let jobs = self.jobs();
        let stats = Stats {
            tick: (self.epoch, self.tick - 1),
            tick_ms: self.tick_ms,
            accepted: self.sources.values().flat_map(|s| s.partitions.values()).map(|p| p.counts.accepted).sum(),
            sources: self.sources.iter().map(|(&oid, source)| self.source_stats(oid, source)).collect(),
            views: self.views.values().map(|view| self.view_stats(view)).collect(),
            slices: self.stores.iter().flat_map(|(&id, store)| self.slice_stats(id, store)).collect(),
            jobs,
            checkpoints: self.keeping.as_ref().map(Keeping::history).unwrap_or_default(),
            rests: self.rests.clone(),
            memory: self.memory.stats(),
            stalled: None,
            ahead_us: (self.now_us - self.clock.now_us()).max(0),
            kept: self.kept.clone(),
            tables: self.tables.iter().map(|(&oid, t)| (oid, t.object.name.clone())).collect(),
        };
        *self.stats.write() = Arc::new(stats);
    }

    fn source_stats(&self, oid: Oid, source: &Source) -> SourceStats {
        let lost = source.partitions.values().find_map(|p| p.error.clone());
        let lost = lost
            .map(|error| format!("{error}; ALTER SOURCE {} RESET TO earliest | latest goes on", source.object.name));
        let broken = lost.or_else(|| source.late_into_trouble.clone());
        let trouble = source.topic_trouble.clone().or_else(|| source.troubles.values().flatten().next().cloned());
        let (state, message) = match (&source.watch, broken, trouble) {
            (None, _, _) => ("idle", None),
            (_, Some(error), _) => ("failed", Some(error)),
            _ if self.rests.is_some() => ("resting", self.rests.clone()),
            (_, None, Some(trouble)) => ("retrying", Some(trouble)),
            (_, None, None) => ("running", None),
        };
        SourceStats {
            oid,
            schema: source.object.schema.clone(),
            name: source.object.name.clone(),
            connector: source.connector.clone(),
            state,
            message,
            watermark_us: self.times.watermark_us(oid),
            unseen_columns: source.unseen_columns(),
            ids: source.ids.values().copied().sum(),
            partitions: source.partitions.values().cloned().collect(),
            gaps: source.gaps.clone(),
            changes: source.changes.clone(),
        }
    }

    /// All that stood in its topics and tables at that moment is in the view. `None` while that is not known.
    fn fresh_as_of_us(&self, view: &View) -> Option<i64> {
        if view.failed.is_some() || !view.current {
            return None;
        }
        let read = view.flow.feeds.iter().map(|feed| feed.source).chain(view.flow.passes.iter().map(|p| p.rows.source));
        let read = read.map(|oid| self.sources.get(&oid)?.freshness.read_as_of_us());
        let upstream = view.upstream().map(|oid| match self.views.get(&oid) {
            Some(view) => self.fresh_as_of_us(view),
            // A statement that changes a table returns when its views have it.
            None => Some(self.now_us),
        });
        read.chain(upstream).try_fold(self.now_us, |least, as_of| Some(least.min(as_of?)))
    }

    fn view_stats(&self, view: &View) -> ViewStats {
        let (state, message) = match (&view.failed, view.current) {
            (Some(reason), _) => ("failed", Some(reason.clone())),
            (None, true) => ("current", None),
            (None, false) => ("reading history", self.history_rests(view)),
        };
        // A view may read one store twice.
        let stores: BTreeMap<StoreId, &Store> =
            view.feeds.iter().filter_map(|f| Some((f.store, self.stores.get(&f.store)?))).collect();
        let mut shortfall = view.tail.shortfall();
        let of_stores = stores.values().flat_map(|s| s.reports.values().map(|r| &r.shortfall));
        of_stores.chain(view.passes_short.values()).for_each(|s| shortfall.add(s.clone()));
        for regrouped in view.feeds.iter().filter_map(|f| f.regrouped.as_ref()) {
            if let Some(reader) = regrouped.reader.try_lock() {
                shortfall.add(reader.shortfall());
            }
        }
        let (overflowed, overflow) = overflows(view);
        let left_out =
            (shortfall.left_out > 0).then(|| "a row without a time, or ages away, stands in no window".to_string());
        let samples: Vec<String> = shortfall.sample.into_iter().chain(overflow).chain(left_out).collect();
        let tail = view.tail.state();
        let stored: usize = stores.values().flat_map(|s| s.reports.values()).map(|r| r.bytes).sum();
        let regrouped = view.feeds.iter().filter_map(|f| f.regrouped.as_ref()).map(regrouped_bytes);
        let regrouped: usize = regrouped.map(|(reads, changes)| reads + changes).sum();
        let arranged = view.arrangement.as_ref().map_or(0, Arrangement::bytes);
        let late = |oid: &Oid| -> u64 {
            self.sources.get(oid).map_or(0, |s| s.partitions.values().map(|p| p.counts.late).sum())
        };
        ViewStats {
            oid: view.object.oid,
            schema: view.object.schema.clone(),
            name: view.object.name.clone(),
            state,
            message,
            progress: f64::from(u8::from(view.current)),
            freshness_us: self.fresh_as_of_us(view).map(|as_of| self.now_us - as_of),
            watermark_us: super::version::watermark_of(&view.flow.shown_horizons, &self.times),
            emitted_us: view.tail.every().and_then(EmitEvery::last_us),
            complete_from_us: stores.values().filter_map(|s| complete_from(s)).chain(view.complete_from_us).max(),
            rows: view.arrangement.as_ref().map(|a| a.rows() as u64),
            state_bytes: (stored + arranged + regrouped + tail.iter().map(|t| t.2).sum::<usize>()) as u64,
            late_rows: view.targets.keys().map(late).sum(),
            forgotten_rows: stores.values().flat_map(|s| s.reports.values()).map(|r| r.forgotten_rows).sum(),
            expression_errors: shortfall.errors,
            overflowed_values: overflowed,
            rows_without_window: shortfall.left_out,
            error_sample: (!samples.is_empty()).then(|| samples.join("; ")),
            stores: stores.keys().map(|id| store_name(*id)).collect(),
        }
    }

    fn slice_stats(&self, id: StoreId, store: &Store) -> Vec<SliceStats> {
        let grid = store.feed.layout.grid;
        let names = store.users.keys().filter_map(|oid| Some(self.views.get(oid)?.object.name.as_str()));
        let views: Arc<str> = names.collect::<Vec<_>>().join(", ").into();
        let mut all = Vec::new();
        for (&worker, report) in &store.reports {
            let span = |&(slice, rows, bytes, closed): &(i64, usize, usize, bool)| {
                let panes = report.panes.over(slice);
                (grid.map(|g| g.start_us(slice)), grid.map(|g| g.end_us(slice)), rows, bytes, closed, panes)
            };
            let sessions = report.sessions.iter().map(|s| (Some(s.0), Some(s.1), s.2, s.3, s.4, 0));
            for (start_us, end_us, rows, bytes, closed, panes) in sessions.chain(report.slices.iter().map(span)) {
                all.push(SliceStats {
                    store: store_name(id),
                    worker,
                    start_us,
                    end_us,
                    rows: rows as u64,
                    bytes: bytes as u64,
                    closed,
                    panes: panes as u64,
                    generation: report.generation,
                    views: views.clone(),
                });
            }
        }
        all
    }

    pub(super) fn explain(&self, what: &Explained) -> Result<Vec<String>, EngineError> {
        let (oid, analyze) = match what {
            Explained::View { oid, analyze } => (oid, *analyze),
            Explained::Plan(plan) => return self.explain_plan(plan),
        };
        let Some(view) = self.views.get(oid) else {
            return Err(EngineError::Invalid { message: "there is no such view".into(), hint: String::new() });
        };
        let mut lines = self.explain_running(view);
        if !analyze {
            return Ok(lines);
        }
        lines.push(String::new());
        for (i, (name, rows, bytes)) in view.tail.state().into_iter().enumerate() {
            lines.push(format!("operator {i}: {name} rows={rows} bytes={bytes}"));
        }
        for feed in &view.feeds {
            let Some(store) = self.stores.get(&feed.store) else { continue };
            let sum = |f: fn(&StoreReport) -> usize| store.reports.values().map(f).sum::<usize>();
            lines.push(format!(
                "{}: keys={} slices={} rows={} bytes={} views={}",
                store_name(feed.store),
                sum(|r| r.keys),
                sum(|r| r.slices.len() + r.sessions.len()),
                sum(|r| r.slices.iter().map(|s| s.1).chain(r.sessions.iter().map(|s| s.2)).sum()),
                sum(|r| r.bytes),
                store.users.len(),
            ));
            if let Some(used) = &feed.regrouped {
                let (reads, changes) = regrouped_bytes(used);
                lines.push(format!("regrouped: bytes={reads} for reads, {changes} for changes"));
            }
        }
        lines.push(format!("tail: time={:.3}ms rows_out={}", view.step_us as f64 / 1000.0, view.rows_out));
        Ok(lines)
    }
}

/// What a regrouped view keeps for reads, and for those that follow its changes. What a read is at work with is counted when it
/// is done.
fn regrouped_bytes(used: &RegroupedUse) -> (usize, usize) {
    let reads = used.reader.try_lock().map_or(0, |reader| reader.bytes());
    (reads, used.edge.as_ref().map_or(0, |edge| edge.regrouped.bytes() + edge.changes.bytes()))
}

/// Over all aggregations of a view: values shown as NULL because they do not fit, and what the first was.
fn overflows(view: &View) -> (u64, Option<String>) {
    let feeds = view.feeds.iter().map(|f| f.view.overflows.get());
    let tail = view.flow.tail.iter().filter_map(|node| Some(node.aggregate.as_ref()?.0.view.overflows.get()));
    feeds.chain(tail).fold((0, None), |(sum, first), (count, sample)| (sum + count, first.or(sample)))
}

fn complete_from(store: &Store) -> Option<i64> {
    let first = store.reports.values().filter_map(|r| r.first_kept).max();
    let kept_us = store.feed.layout.grid.zip(first).map(|(grid, first)| grid.start_us(first));
    kept_us.max(store.complete_from_us)
}

pub(super) fn store_name(id: StoreId) -> String {
    format!("store_{id}")
}
