//! What a view is compared by: its rows after a tick, and all that they follow from, as of that tick.
//!
//! The workers say how the logs stood at the end of the tick, with the facts of the law and the offsets of duplicates; the
//! version of the tick gives the view's rows and those of tables beneath. From there on nothing of the dataflow takes part.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, unbounded};
use datafusion::catalog::TableProvider;

use super::accepted_table::AcceptedTable;
use super::backfill::Marks;
use super::coordinator::Coordinator;
use super::dataflow::{Source, TickData, View};
use super::error::EngineError;
use super::orders::Command;
use super::reader::SourceSetup;
use super::reconciliations::Reconciliation;
use super::request::Request;
use super::version::Version;
use super::worker::Worker;
use super::{Engine, Inner, ReadVersion, TickId, topic};
use crate::catalog::{Object, ObjectKind, Oid};
use crate::exec::dedup::OffsetSet;
use crate::exec::flow::Output;
use crate::exec::horizon::Horizon;
use crate::exec::law::PartitionLaw;
use crate::exec::tail::shown;
use crate::planner::EventTimes;
use crate::planner::stream_plan::Emit;

/// One partition of a source as its own reader has read it: what another reader needs to come to the same accepted rows.
#[derive(Debug, Clone)]
pub struct PartitionLog {
    pub partition: i32,
    pub start: i64,
    /// What has been read ends before this.
    pub until: i64,
    /// Records that came from `start` on, if that has been counted.
    pub read: Option<u64>,
    /// As it stands at `until`.
    pub law: PartitionLaw,
    pub marks: Marks,
    pub duplicates: OffsetSet,
    /// Rows of earlier event times came before `start`, and are in no log any more.
    pub complete_from_us: Option<i64>,
    pub error: Option<String>,
}

/// What workers tell.
pub(super) type Logs = Receiver<(Oid, PartitionLog)>;

/// Asks every worker for its partitions of some sources, as of the end of the tick.
#[derive(Debug, Clone)]
pub(super) struct TellLogs {
    sources: Vec<Oid>,
    to: Sender<(Oid, PartitionLog)>,
}

/// Which view, and all beneath it.
pub(super) struct AskedBasis {
    pub view: Oid,
    /// The view, and the tables, views and sources that it or a view beneath it reads.
    pub objects: Vec<Oid>,
}

pub(super) struct Basis {
    now_us: i64,
    version: Version,
    sources: Vec<(String, SourceSetup, Vec<PartitionLog>)>,
    shown: ShownWindows,
    finals_us: HashMap<Oid, Option<i64>>,
}

/// The windows of which a view can be compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShownWindows {
    /// Those that begin before this are not whole.
    pub from_us: Option<i64>,
    /// Those that end at or before this are forgotten.
    pub after_us: Option<i64>,
    /// A log has lost records, of no matter which time: only windows can be compared.
    pub is_cut: bool,
}

/// A view and what to recompute it from, as of one tick.
pub struct Comparable {
    pub tick: TickId,
    /// What `now()` was in views.
    pub now_us: i64,
    /// The view's rows, those of tables beneath it, and the accepted rows of sources.
    pub tables: HashMap<Oid, Arc<dyn TableProvider>>,
    /// There are sources among them.
    pub reads_logs: bool,
    pub event_times: Arc<dyn EventTimes>,
    pub shown: ShownWindows,
    /// Of each EMIT ON WINDOW CLOSE view among the view and those beneath: its windows are shown that end at or before this. A view
    /// whose windows nobody sees is not among them.
    pub finals_us: HashMap<Oid, Option<i64>>,
    pub running: Arc<Reconciliation>,
}

impl Engine {
    /// What a materialized view is compared by, as of the end of a tick. Nothing of the logs is read yet.
    pub async fn comparable(&self, view: &Object) -> Result<Comparable, EngineError> {
        self.inner.comparable(view).await
    }
}

impl Inner {
    async fn comparable(&self, view: &Object) -> Result<Comparable, EngineError> {
        let running = self.stats().kept.reconciliations.begin(view);
        let asked = AskedBasis { view: view.oid, objects: self.all_beneath(view.oid)? };
        // It waits for an emission where there is EMIT EVERY.
        let basis = tokio::select! {
            basis = self.ask(|reply| Request::Reconcile { asked, reply }) => basis?,
            () = running.cancelled() => return Err(EngineError::JobCancelled),
        };
        let Basis { now_us, version, sources, mut shown, finals_us } = basis;
        let mut tables: HashMap<Oid, Arc<dyn TableProvider>> = version.tables().collect();
        let mut reads_logs = false;
        for (name, setup, logs) in sources {
            let oid = setup.source;
            let options = setup.options.clone();
            let look = move || topic::look_at_log(&options);
            let (topic, compacted) = tokio::task::spawn_blocking(look).await.map_err(|_| EngineError::Stopped)??;
            reads_logs = true;
            if compacted {
                let of = setup.options.topic();
                let why =
                    format!("the log of topic \"{of}\" is compacted, and no longer holds every record that was read");
                running.has_thinned(of, why);
            }
            let table = AcceptedTable::new(&name, setup, logs, &topic, running.clone())?;
            shown.from_us = shown.from_us.max(table.complete_from_us());
            shown.is_cut |= table.has_lost();
            tables.insert(oid, Arc::new(table));
        }
        let event_times = version.event_times();
        Ok(Comparable { tick: version.tick(), now_us, tables, reads_logs, event_times, shown, finals_us, running })
    }

    /// A view and what it and the views beneath it read.
    fn all_beneath(&self, view: Oid) -> Result<Vec<Oid>, EngineError> {
        let catalog = self.catalog();
        let (mut found, mut left) = (Vec::new(), vec![view]);
        while let Some(object) = left.pop().and_then(|oid| catalog.get(oid)) {
            if found.contains(&object.oid) {
                continue;
            }
            if let ObjectKind::MaterializedView(beneath) = &object.kind
                && object.oid != view
                && beneath.options.contains_key("retention")
            {
                return Err(EngineError::Unsupported {
                    message: format!(
                        "RECONCILE of a view over \"{}\", which forgets by its retention, is not supported",
                        object.name
                    ),
                    hint: format!(
                        "Its rows come from what was there once. RECONCILE MATERIALIZED VIEW {}.",
                        object.name
                    ),
                });
            }
            match object.kind {
                ObjectKind::Source(_) | ObjectKind::Table(_) => {}
                ObjectKind::View { .. } | ObjectKind::MaterializedView(_) => left.extend(&object.depends_on),
            }
            found.push(object.oid);
        }
        found.sort_unstable();
        Ok(found)
    }
}

impl Worker {
    pub(super) fn tell_logs(&mut self) {
        for asked in std::mem::take(&mut self.asked_logs) {
            for source in asked.sources {
                let partitions = self.sources.get(&source).into_iter().flat_map(|reader| &reader.partitions);
                for (&partition, state) in partitions {
                    let log = PartitionLog {
                        partition,
                        start: state.start,
                        until: state.position,
                        read: Some(state.counts.read),
                        law: state.law.clone(),
                        marks: state.marks.clone(),
                        duplicates: state.duplicates.clone(),
                        complete_from_us: state.complete_from_us,
                        error: state.error.clone(),
                    };
                    // Nobody waits any more: then nobody misses it.
                    let _ = asked.to.send((source, log));
                }
            }
        }
    }
}

impl Source {
    /// Where reading went on elsewhere, records before that are among those counted.
    pub(super) fn forget_counts_before_gaps(&self, logs: &mut [PartitionLog]) {
        for log in logs {
            log.read = log.read.filter(|_| self.gaps.iter().all(|gap| gap.partition != log.partition));
        }
    }
}

impl Coordinator {
    pub(super) fn ask_for_logs(&self, objects: &[Oid]) -> Logs {
        let (to, logs) = unbounded();
        let sources: Vec<Oid> = objects.iter().copied().filter(|oid| self.sources.contains_key(oid)).collect();
        let asked = TellLogs { sources, to };
        self.broadcast(|| Command::TellLogs(asked.clone()));
        logs
    }

    /// After the tick whose end the logs are of.
    pub(super) fn basis(&mut self, asked: AskedBasis, logs: Logs, data: &TickData) -> Result<Basis, EngineError> {
        if !self.views.contains_key(&asked.view) {
            return Err(EngineError::Gone { name: "the view".into() });
        }
        let version = self.version(&asked.objects, false, data)?;
        let mut by_source: BTreeMap<Oid, Vec<PartitionLog>> = BTreeMap::new();
        for (source, log) in logs.try_iter() {
            by_source.entry(source).or_default().push(log);
        }
        let mut sources = Vec::new();
        for oid in &asked.objects {
            let Some(source) = self.sources.get(oid) else { continue };
            let name = source.object.name.clone();
            let mut logs = by_source.remove(oid).unwrap_or_default();
            source.forget_counts_before_gaps(&mut logs);
            if let Some(lost) = logs.iter().find_map(|log| log.error.as_deref()) {
                return Err(super::alter::source_failed(&name, lost));
            }
            sources.push((name, source.setup.clone(), logs));
        }
        let shown = self.shown_windows(&asked, data)?;
        let of_views = asked.objects.iter().filter_map(|oid| Some((*oid, self.views.get(oid)?)));
        let emitting = of_views.filter(|(_, view)| view.plan.emit == Emit::OnWindowClose);
        let finals_us = emitting.filter_map(|(oid, view)| Some((oid, self.final_us(view)?))).collect();
        Ok(Basis { now_us: self.now_us, version, sources, shown, finals_us })
    }

    /// The windows of an EMIT ON WINDOW CLOSE view that end at or before this are shown; `None` if none of its columns tells.
    fn final_us(&self, view: &View) -> Option<Option<i64>> {
        let time = view.flow.shown_horizons.iter().flatten().find_map(|horizon| match horizon {
            Horizon::WindowStart(time, _) | Horizon::WindowEnd(time, _) | Horizon::SessionStart(time, _) => Some(time),
            _ => None,
        })?;
        Some(time.final_until_us(&self.times))
    }

    fn shown_windows(&mut self, asked: &AskedBasis, data: &TickData) -> Result<ShownWindows, EngineError> {
        let mut windows = ShownWindows::default();
        for oid in &asked.objects {
            let Some(view) = self.views.get(oid) else { continue };
            let of_stores = view.feeds.iter().filter_map(|feed| self.stores.get(&feed.store)?.complete_from_us);
            windows.from_us = of_stores.chain(view.complete_from_us).chain(windows.from_us).max();
        }
        windows.is_cut = windows.from_us.is_some();
        let view = self.views.get_mut(&asked.view).expect("looked up before");
        let (horizon, first_kept_us) = match &view.flow.output {
            Output::Feed { feed, .. } => {
                let snapshots = data.snapshots.get(&view.feeds[*feed].store).map(Vec::as_slice).unwrap_or_default();
                let kept = |layout: &crate::exec::slice_store::StoreLayout, first: Option<i64>| {
                    Some(layout.grid?.start_us(first?))
                };
                let first = snapshots.iter().filter_map(|(_, part)| kept(&part.layout, part.first_kept)).max();
                (Some(Horizon::Source(view.flow.feeds[*feed].source)), first)
            }
            Output::Aggregate { node, .. } => {
                let aggregate = view.flow.tail[*node].aggregate.clone();
                let first = match &aggregate {
                    Some((aggregate, _)) if aggregate.oldest.is_none() => {
                        let snapshot = view.tail.snapshot(*node)?;
                        snapshot.layout.grid.zip(snapshot.first_kept).map(|(grid, first)| grid.start_us(first))
                    }
                    _ => None,
                };
                (aggregate.and_then(|(_, horizon)| horizon), first)
            }
            Output::Rows(_) if view.plan.retention_us.is_some() && view.plan.every_us().is_none() => {
                return Err(EngineError::Unsupported {
                    message:
                        "RECONCILE of a view with a retention that does not end in an aggregation is not supported"
                            .into(),
                    hint: "Reconcile the views beneath it.".into(),
                });
            }
            Output::Rows(_) => (None, None),
        };
        windows.from_us = windows.from_us.max(first_kept_us);
        windows.after_us =
            view.forgotten_us.or(shown(horizon.as_ref(), &self.times, view.plan.retention_us).horizon_us);
        Ok(windows)
    }
}
