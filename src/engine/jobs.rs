//! Views that read history: how far they have come, and how they are cancelled.

use super::backfill::HistoryProgress;
use super::clock;
use super::coordinator::Coordinator;
use super::dataflow::{View, start_of};
use super::decoding::Consumer;
use super::error::EngineError;
use super::request::Request;
use super::stats::{JobPartition, JobStats};
use super::{DdlOutcome, Inner};
use crate::catalog::{NameContext, Oid};
use crate::sql::{Name, ObjectType};

impl Inner {
    /// Drops the views that these jobs make, all or none, unless one of them is finished.
    pub(super) async fn cancel_jobs(&self, ids: &[Oid], names: &NameContext) -> Result<DdlOutcome, EngineError> {
        let _one_at_a_time = self.ddl.lock().await;
        let catalog = self.catalog();
        let stats = self.stats();
        let mut views = Vec::new();
        let running = &stats.kept.reconciliations;
        let (reconciled, ids): (Vec<Oid>, Vec<Oid>) =
            ids.iter().partition(|&&id| running.get(id, &names.database).is_some());
        for id in ids {
            let view = catalog.get(id).filter(|view| view.database == names.database);
            let view = view.filter(|_| stats.jobs.iter().any(|job| job.id == id)).ok_or_else(|| no_job(id))?;
            views.push(Name(vec![view.schema.clone(), view.name.clone()]));
        }
        reconciled.iter().filter_map(|&id| running.get(id, &names.database)).for_each(|job| job.cancel());
        if views.is_empty() {
            return Ok(DdlOutcome { tag: "CANCEL JOB".into(), ..DdlOutcome::default() });
        }
        let plan = catalog.drop_plan(ObjectType::MaterializedView, &views, false, false, names)?;
        let next = catalog.after_drop(&plan)?;
        let (oids, next) = (plan.oids.clone(), std::sync::Arc::new(next));
        let catalog = next.clone();
        let cancelled = self.ask(|reply| Request::Cancel { oids, catalog, reply }).await;
        self.in_force(cancelled, next)?;
        Ok(DdlOutcome { tag: "CANCEL JOB".into(), notices: plan.notices, created: None })
    }
}

pub(super) fn no_job(id: Oid) -> EngineError {
    EngineError::NotReady {
        message: format!("there is no job {id}"),
        hint: "SHOW JOBS lists those under way; a view that is finished is dropped with DROP MATERIALIZED VIEW.".into(),
    }
}

impl Coordinator {
    pub(super) fn reads_history(&self, oid: Oid) -> bool {
        self.views.get(&oid).is_some_and(|view| !view.current && view.failed.is_none())
    }

    /// The jobs under way; notes when each began.
    pub(super) fn jobs(&mut self) -> Vec<JobStats> {
        let now_us = clock::now_us();
        let mut jobs = Vec::new();
        for oid in self.views.keys().copied().collect::<Vec<_>>() {
            if !self.reads_history(oid) {
                continue;
            }
            let partitions = self.history(&self.views[&oid]);
            let to_read = partitions.iter().map(|(to_read, _)| to_read).sum();
            let left: i64 = partitions.iter().map(|(_, p)| p.left).sum();
            let view = self.views.get_mut(&oid).expect("its key is there");
            let read = to_read - left;
            let (started_us, read_before) = *view.began.get_or_insert((now_us, read));
            let seconds = now_us.saturating_sub(started_us) as f64 / 1e6;
            let rate = (seconds > 0.0 && read > read_before).then(|| (read - read_before) as f64 / seconds);
            jobs.push(JobStats {
                id: oid,
                kind: "history",
                schema: view.object.schema.clone(),
                name: view.object.name.clone(),
                started_us,
                read,
                to_read,
                records_per_second: rate,
                seconds_left: rate.map(|rate| left as f64 / rate),
                partitions: partitions.into_iter().map(|(_, partition)| partition).collect(),
            });
        }
        jobs
    }

    /// By partition, the records of a view's history and what is left of them: what the main reader has still to reach, and what
    /// the view's own readers have still to read again.
    pub(super) fn history(&self, view: &View) -> Vec<(i64, JobPartition)> {
        let mut all = Vec::new();
        for (oid, ends) in &view.targets {
            let Some(source) = self.sources.get(oid) else { continue };
            let own: Vec<&HistoryProgress> =
                source.backfills.iter().filter(|(consumer, _)| feeds(view, consumer)).flat_map(|(_, b)| b).collect();
            let mut partitions: Vec<(i32, i64)> = ends.iter().flatten().copied().collect();
            // A store that is whole already has no end to reach, but may be read again for another view.
            let known = |partitions: &[(i32, i64)], b: &HistoryProgress| partitions.iter().any(|p| p.0 == b.partition);
            for history in &own {
                if !known(&partitions, history) {
                    partitions.push((history.partition, history.until));
                }
            }
            for (partition, end) in partitions {
                let start = start_of(source, partition);
                let at = source.partitions.get(&partition).map_or(start, |p| p.position);
                let again: Vec<_> = own.iter().filter(|b| b.partition == partition).collect();
                let twice: i64 = again.iter().skip(1).map(|b| b.until - b.start).sum();
                let behind: i64 = again.iter().map(|b| b.until - b.position).sum();
                let position = again.iter().map(|b| b.position).min().unwrap_or(at.min(end).max(start));
                let left = (end - at.max(start)).max(0) + behind;
                let to_read = (end - start).max(0) + twice;
                let source = source.object.name.clone();
                all.push((to_read.max(left), JobPartition { source, partition, offset: position, end, left }));
            }
        }
        all
    }
}

/// Does the view read what this consumer is given?
pub(super) fn feeds(view: &View, consumer: &Consumer) -> bool {
    match consumer {
        Consumer::Store(store) => view.feeds.iter().any(|f| f.store == *store),
        Consumer::Pass(pass) => view.passes.contains(pass),
    }
}
