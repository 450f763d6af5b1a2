//! What the coordinator tells of itself: figures for the tables of `riverrun`, and the text of EXPLAIN ANALYZE.

use std::sync::Arc;

use super::coordinator::{Coordinator, Source, Store, View, start_of};
use super::error::EngineError;
use super::reader::Consumer;
use super::stats::{PartitionStats, SliceStats, SourceStats, Stats, ViewStats};
use super::worker::StoreReport;
use crate::catalog::Oid;
use crate::exec::arrangement::Arrangement;
use crate::exec::exchange::StoreId;
use crate::exec::tail::Times;

impl Coordinator {
    pub(super) fn publish_stats(&mut self) {
        let stats = Stats {
            tick: (self.epoch, self.tick - 1),
            tick_ms: self.tick_ms,
            accepted: self.sources.values().flat_map(|s| s.partitions.values()).map(|p| p.counts.accepted).sum(),
            sources: self.sources.iter().map(|(&oid, source)| self.source_stats(oid, source)).collect(),
            views: self.views.values().map(|view| self.view_stats(view)).collect(),
            slices: self.stores.iter().flat_map(|(&id, store)| slice_stats(id, store)).collect(),
            kept: self.kept.clone(),
            tables: self.tables.iter().map(|(&oid, t)| (oid, t.object.name.clone())).collect(),
        };
        *self.stats.write() = Arc::new(stats);
    }

    fn source_stats(&self, oid: Oid, source: &Source) -> SourceStats {
        let broken = source.partitions.values().find_map(|p| p.error.clone());
        let trouble = source.topic_trouble.clone().or_else(|| source.trouble.clone());
        let (state, message) = match (&source.watch, broken, trouble) {
            (None, _, _) => ("idle", None),
            (_, Some(error), _) => ("failed", Some(error)),
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
            unseen_columns: source.unseen_columns.clone(),
            partitions: source
                .partitions
                .values()
                .map(|p| PartitionStats {
                    partition: p.partition,
                    position: p.position,
                    end: p.end,
                    counts: p.counts,
                    watermark_us: p.watermark_us,
                    idle: p.idle,
                    error: p.error.clone(),
                })
                .collect(),
        }
    }

    /// Rows read and to read, of the view's history.
    pub(super) fn history(&self, view: &View) -> (i64, i64) {
        let mut sum = (0, 0);
        for (oid, ends) in &view.targets {
            let Some(source) = self.sources.get(oid) else { continue };
            for (partition, end) in ends.iter().flatten() {
                let start = start_of(source, *partition);
                let at = source.partitions.get(partition).map_or(start, |p| p.position);
                sum = (sum.0 + (at.min(*end) - start).max(0), sum.1 + (end - start).max(0));
            }
            for (consumer, (read, to_read)) in &source.backfills {
                let mine = match consumer {
                    Consumer::Store(store) => view.feeds.iter().any(|f| f.store == *store),
                    Consumer::Pass(pass) => view.passes.contains(pass),
                };
                if mine {
                    sum = (sum.0 + read, sum.1 + to_read);
                }
            }
        }
        sum
    }

    fn view_stats(&self, view: &View) -> ViewStats {
        let (state, message) = match (&view.failed, view.current) {
            (Some(reason), _) => ("failed", Some(reason.clone())),
            (None, true) => ("current", None),
            (None, false) => ("reading history", None),
        };
        let (read, to_read) = self.history(view);
        let stores: Vec<(StoreId, &Store)> =
            view.feeds.iter().filter_map(|f| Some((f.store, self.stores.get(&f.store)?))).collect();
        let mut errors = view.tail.errors();
        for (_, store) in &stores {
            for report in store.reports.values() {
                errors.0 += report.errors.0;
                errors.1 = errors.1.or_else(|| report.errors.1.clone());
            }
        }
        let tail = view.tail.state();
        let stored: usize = stores.iter().flat_map(|(_, s)| s.reports.values()).map(|r| r.bytes).sum();
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
            progress: if view.current || to_read == 0 {
                f64::from(u8::from(view.current))
            } else {
                read as f64 / to_read as f64
            },
            watermark_us: super::version::watermark_of(&view.flow.shown_horizons, &self.times),
            complete_from_us: stores.iter().filter_map(|(_, s)| complete_from(s)).chain(view.complete_from_us).max(),
            rows: view.arrangement.as_ref().map(|a| a.rows() as u64),
            state_bytes: (stored + arranged + tail.iter().map(|t| t.2).sum::<usize>()) as u64,
            late_rows: view.targets.keys().map(late).sum(),
            forgotten_rows: stores.iter().flat_map(|(_, s)| s.reports.values()).map(|r| r.forgotten_rows).sum(),
            expression_errors: errors.0,
            error_sample: errors.1,
            stores: stores.iter().map(|(id, _)| store_name(*id)).collect(),
        }
    }

    pub(super) fn explain(&self, oid: Oid) -> Result<Vec<String>, EngineError> {
        let Some(view) = self.views.get(&oid) else {
            return Err(EngineError::Invalid { message: "there is no such view".into(), hint: String::new() });
        };
        let mut lines = Vec::new();
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
        }
        lines.push(format!("tail: time={:.3}ms rows_out={}", view.step_us as f64 / 1000.0, view.rows_out));
        Ok(lines)
    }
}

fn complete_from(store: &Store) -> Option<i64> {
    let first = store.reports.values().filter_map(|r| r.first_kept).max();
    let kept_us = store.feed.layout.grid.zip(first).map(|(grid, first)| grid.start_us(first));
    kept_us.max(store.complete_from_us)
}

pub(super) fn store_name(id: StoreId) -> String {
    format!("store_{id}")
}

fn slice_stats(id: StoreId, store: &Store) -> Vec<SliceStats> {
    let grid = store.feed.layout.grid;
    let mut all = Vec::new();
    for (&worker, report) in &store.reports {
        for &(start_us, end_us, rows, bytes, closed) in &report.sessions {
            all.push(SliceStats {
                store: store_name(id),
                worker,
                start_us: Some(start_us),
                end_us: Some(end_us),
                rows: rows as u64,
                bytes: bytes as u64,
                closed,
            });
        }
        for &(slice, rows, bytes, closed) in &report.slices {
            all.push(SliceStats {
                store: store_name(id),
                worker,
                start_us: grid.map(|g| g.start_us(slice)),
                end_us: grid.map(|g| g.end_us(slice)),
                rows: rows as u64,
                bytes: bytes as u64,
                closed,
            });
        }
    }
    all
}
