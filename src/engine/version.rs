//! What a statement may read, as of one tick.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::catalog::TableProvider;

use super::ReadVersion;
use super::coordinator::Coordinator;
use super::dataflow::{TickData, View};
use super::error::EngineError;
use super::owners::holds_empty_key;
use super::read::RowsTable;
use super::session_table::{self, SessionTable};
use super::source_table::SourceTable;
use super::window_table::{Part, Rows, WindowTable};
use crate::catalog::{ObjectKind, Oid};
use crate::exec::ExecError;
use crate::exec::flow::Output;
use crate::exec::horizon::{Horizon, newest_closed_end, oldest_open_end};
use crate::exec::law::SourceTime;
use crate::exec::tail::{Times, shown};
use crate::exec::window_view::WindowView;
use crate::planner::stream_plan::{Emit, Window};
use crate::planner::{EventTimes, PlanError, Refusal};

/// One tick's rows and event times of some objects.
pub struct Version {
    tick: (u64, u64),
    tables: BTreeMap<Oid, Arc<dyn TableProvider>>,
    times: Arc<ObjectTimes>,
}

/// Event times by object.
#[derive(Debug, Default)]
struct ObjectTimes(BTreeMap<Oid, ObjectTime>);

#[derive(Debug, Clone)]
struct ObjectTime {
    name: String,
    /// A column follows event time at all.
    has_watermark: bool,
    watermark_us: Option<i64>,
    /// The family of windows that the view shows, how far they are closed and final, and when it shows them.
    windows: Option<(Window, Option<i64>, Option<i64>, Emit)>,
}

impl Version {
    pub fn tables(&self) -> impl Iterator<Item = (Oid, Arc<dyn TableProvider>)> {
        self.tables.iter().map(|(oid, table)| (*oid, table.clone()))
    }
}

impl ReadVersion for Version {
    fn tick(&self) -> (u64, u64) {
        self.tick
    }

    fn table(&self, oid: Oid) -> Option<Arc<dyn TableProvider>> {
        self.tables.get(&oid).cloned()
    }

    fn event_times(&self) -> Arc<dyn EventTimes> {
        self.times.clone()
    }
}

impl ObjectTimes {
    fn get(&self, oid: Oid) -> Result<&ObjectTime, PlanError> {
        self.0.get(&oid).ok_or_else(|| PlanError::NotReady(Refusal::new("the object has been dropped")))
    }

    fn windows(&self, oid: Oid, function: &str) -> Result<(Window, Option<i64>, Option<i64>, Emit), PlanError> {
        let object = self.get(oid)?;
        object.windows.ok_or_else(|| {
            PlanError::WrongObject(
                Refusal::new(format!("{function}: \"{}\" has no windows that close", object.name))
                    .hint(
                        "Name a materialized view grouped by HOP, TUMBLE or CUMULATE over a time with a WATERMARK. Sessions do \
                         not end together: compare their window_end with watermark('v').",
                    ),
            )
        })
    }
}

impl EventTimes for ObjectTimes {
    fn watermark_us(&self, oid: Oid) -> Result<Option<i64>, PlanError> {
        let object = self.get(oid)?;
        if !object.has_watermark {
            return Err(PlanError::WrongObject(
                Refusal::new(format!("\"{}\" has no watermark", object.name))
                    .hint("Declare WATERMARK FOR ts AS ts - INTERVAL '10 seconds' on the source."),
            ));
        }
        Ok(object.watermark_us)
    }

    fn closed_window_end_us(&self, oid: Oid) -> Result<Option<i64>, PlanError> {
        let (window, watermark_us, final_us, emit) = self.windows(oid, "closed_window_end")?;
        let passed_us = if emit == Emit::OnWindowClose { final_us } else { watermark_us };
        Ok(passed_us.map(|us| newest_closed_end(window, us)))
    }

    fn final_window_end_us(&self, oid: Oid) -> Result<Option<i64>, PlanError> {
        let (window, _, final_us, _) = self.windows(oid, "final_window_end")?;
        Ok(final_us.map(|us| newest_closed_end(window, us)))
    }

    fn live_window_end_us(&self, oid: Oid) -> Result<Option<i64>, PlanError> {
        let (window, watermark_us, _, emit) = self.windows(oid, "live_window_end")?;
        if emit == Emit::OnWindowClose {
            let name = &self.get(oid)?.name;
            return Err(PlanError::WrongObject(
                Refusal::new(format!("live_window_end: \"{name}\" shows no open window"))
                    .hint("It is EMIT ON WINDOW CLOSE: use closed_window_end."),
            ));
        }
        Ok(watermark_us.map(|us| oldest_open_end(window, us)))
    }
}

/// The furthest-reaching word on how far a view's times have come: that of its window ends, else of any column.
pub(super) fn watermark_of(horizons: &[Option<Horizon>], times: &dyn Times) -> Option<i64> {
    base_of(horizons)?.watermark_us(times)
}

/// What lies under the windows of a column.
fn base_of(horizons: &[Option<Horizon>]) -> Option<&Horizon> {
    Some(horizons.iter().flatten().next()?.base())
}

pub(super) fn windows_of(horizons: &[Option<Horizon>]) -> Option<(&Horizon, Window)> {
    horizons.iter().flatten().find_map(|h| match h {
        Horizon::WindowStart(inner, window) | Horizon::WindowEnd(inner, window) => Some((inner.as_ref(), *window)),
        _ => None,
    })
}

/// A view that is read from a store, as a table.
fn window_table(
    view: &mut View,
    data: &TickData,
    times: &dyn Times,
    workers: usize,
) -> Result<Option<WindowTable>, EngineError> {
    let retention_us = view.plan.retention_us;
    let (parts, horizon, post) = match &view.flow.output {
        Output::Rows(_) => return Ok(None),
        Output::Feed { feed, post } => {
            let read = &view.feeds[*feed];
            let snapshots = data.snapshots.get(&read.store).map(Vec::as_slice).unwrap_or_default();
            let parts: Vec<Part> = match &read.regrouped {
                Some(regrouped) => {
                    let parts = snapshots.iter().map(|(_, snapshot)| snapshot.clone()).collect();
                    let rows = Rows::Regrouped { parts, by: regrouped.reader.clone() };
                    vec![Part { view: read.view.clone(), rows }]
                }
                None => snapshots
                    .iter()
                    .map(|(worker, snapshot)| {
                        let shows_empty = read.view.shows_empty && holds_empty_key(*worker, workers);
                        let view = WindowView { shows_empty, ..read.view.clone() };
                        Part { view, rows: Rows::Store(snapshot.clone()) }
                    })
                    .collect(),
            };
            (parts, Some(Horizon::Source(view.flow.feeds[*feed].source)), post)
        }
        Output::Aggregate { node, post } => {
            let snapshot = view.tail.snapshot(*node)?;
            let (aggregate, horizon) = view.flow.tail[*node]
                .aggregate
                .as_ref()
                .ok_or_else(|| ExecError::Invariant("a view's store has no aggregation".into()))?;
            (vec![Part { view: aggregate.view.clone(), rows: Rows::Store(snapshot) }], horizon.clone(), post)
        }
    };
    let shown = shown(horizon.as_ref(), times, retention_us);
    Ok(Some(WindowTable::new(parts, shown, post, view.object.columns.clone())?))
}

/// A view of sessions, as a table.
fn session_table(view: &mut View, data: &TickData, times: &dyn Times) -> Result<Option<SessionTable>, EngineError> {
    let part = |snapshot, view: &WindowView| session_table::Part { view: view.clone(), snapshot };
    let (parts, horizon, post): (Vec<_>, _, _) = match &view.flow.output {
        Output::Feed { feed, post } if view.flow.feeds[*feed].oldest.is_some() => {
            let read = &view.feeds[*feed];
            let snapshots = data.sessions.get(&read.store).map(Vec::as_slice).unwrap_or_default();
            let parts = snapshots.iter().map(|snapshot| part(snapshot.clone(), &read.view)).collect();
            (parts, Some(Horizon::Source(view.flow.feeds[*feed].source)), post)
        }
        Output::Aggregate { node, post } => match &view.flow.tail[*node].aggregate {
            Some((aggregate, horizon)) if aggregate.oldest.is_some() => {
                let parts = vec![part(view.tail.session_snapshot(*node)?, &aggregate.view)];
                (parts, horizon.clone(), post)
            }
            _ => return Ok(None),
        },
        _ => return Ok(None),
    };
    let shown = shown(horizon.as_ref(), times, view.plan.retention_us);
    Ok(Some(SessionTable::new(parts, shown, post, view.object.columns.clone())?))
}

/// All rows of a view.
pub(super) fn content(
    view: &mut View,
    data: &TickData,
    times: &HashMap<Oid, SourceTime>,
    workers: usize,
) -> Result<Vec<RecordBatch>, EngineError> {
    if let Some(table) = session_table(view, data, times)? {
        return Ok(table.rows()?);
    }
    if let Some(table) = window_table(view, data, times, workers)? {
        return Ok(table.rows()?);
    }
    match &mut view.arrangement {
        Some(arrangement) => Ok(arrangement.snapshot().batches(None).map_err(ExecError::from)?),
        None => Err(ExecError::Invariant(format!("view {} keeps its rows nowhere", view.object.name)).into()),
    }
}

impl Coordinator {
    /// What the objects hold after this tick.
    pub(super) fn version(
        &mut self,
        objects: &[Oid],
        allow_partial: bool,
        data: &TickData,
    ) -> Result<Version, EngineError> {
        let times = std::mem::take(&mut self.times);
        let built = self.build_version(objects, allow_partial, data, &times);
        self.times = times;
        built
    }

    fn build_version(
        &mut self,
        objects: &[Oid],
        allow_partial: bool,
        data: &TickData,
        times: &HashMap<Oid, SourceTime>,
    ) -> Result<Version, EngineError> {
        let mut tables: BTreeMap<Oid, Arc<dyn TableProvider>> = BTreeMap::new();
        let mut object_times = BTreeMap::new();
        for &oid in objects {
            if let Some(source) = self.sources.get(&oid) {
                tables.insert(oid, Arc::new(SourceTable::new(source.setup.clone(), source.starts.clone())));
                let has_watermark = source.setup.time_column.is_some();
                let time = ObjectTime {
                    name: source.object.name.clone(),
                    has_watermark,
                    watermark_us: times.watermark_us(oid),
                    windows: None,
                };
                object_times.insert(oid, time);
            } else if let Some(table) = self.tables.get_mut(&oid) {
                let has_watermark = matches!(&table.object.kind, ObjectKind::Table(t) if t.watermark.is_some());
                let time = ObjectTime {
                    name: table.object.name.clone(),
                    has_watermark,
                    watermark_us: table.watermark_us(),
                    windows: None,
                };
                object_times.insert(oid, time);
                let schema = table.object.columns.clone();
                tables.insert(oid, Arc::new(RowsTable { snapshot: table.state.snapshot(), schema }));
            } else if self.views.contains_key(&oid) {
                self.check_readable(oid, allow_partial)?;
                let workers = self.workers;
                let view = self.views.get_mut(&oid).expect("looked up above");
                let sessions = session_table(view, data, times)?;
                let windows = if sessions.is_none() { window_table(view, data, times, workers)? } else { None };
                let table: Arc<dyn TableProvider> = match (sessions, windows) {
                    (Some(table), _) => Arc::new(table),
                    (None, Some(table)) => Arc::new(table),
                    (None, None) => {
                        let schema = view.object.columns.clone();
                        let Some(arrangement) = &mut view.arrangement else {
                            return Err(ExecError::Invariant("a view keeps its rows nowhere".into()).into());
                        };
                        Arc::new(RowsTable { snapshot: arrangement.snapshot(), schema })
                    }
                };
                tables.insert(oid, table);
                object_times.insert(oid, view_time(view, times));
            }
        }
        Ok(Version { tick: (self.epoch, self.tick - 1), tables, times: Arc::new(ObjectTimes(object_times)) })
    }

    fn check_readable(&self, oid: Oid, allow_partial: bool) -> Result<(), EngineError> {
        let view = &self.views[&oid];
        let name = &view.object.name;
        if let Some(reason) = &view.failed {
            return Err(EngineError::ViewFailed { view: name.clone(), reason: reason.clone() });
        }
        if view.current || allow_partial {
            return Ok(());
        }
        let failed = view.targets.keys().filter_map(|source| self.sources.get(source)).find_map(|source| {
            let reason = source.partitions.values().find_map(|p| p.error.as_deref())?;
            Some(super::alter::source_failed(&source.object.name, reason))
        });
        if let Some(failed) = failed {
            return Err(failed);
        }
        let history = self.history(view);
        let to_read: i64 = history.iter().map(|(to_read, _)| to_read).sum();
        let read = to_read - history.iter().map(|(_, p)| p.left).sum::<i64>();
        let trouble = view.targets.keys().find_map(|s| self.sources.get(s)?.topic_trouble.clone());
        let progress = match (trouble.or_else(|| self.history_rests(view)), view.targets.values().all(Option::is_some))
        {
            (Some(trouble), _) => trouble,
            (None, false) => "the topic's ends are being asked for".to_string(),
            (None, true) => format!("{read} of {to_read} records read"),
        };
        Err(EngineError::NotReady {
            message: format!("materialized view \"{name}\" is still reading history: {progress}"),
            hint: format!("WAIT FOR {name}; or SET allow_partial = on to read what is there."),
        })
    }
}

fn view_time(view: &View, times: &HashMap<Oid, SourceTime>) -> ObjectTime {
    let horizons = &view.flow.shown_horizons;
    let windows = windows_of(horizons).map(|(base, window)| {
        let closed_us = base.watermark_us(times);
        let final_us = base.final_until_us(times);
        (window, closed_us, final_us, view.plan.emit)
    });
    ObjectTime {
        name: view.object.name.clone(),
        has_watermark: base_of(horizons).is_some(),
        watermark_us: watermark_of(horizons, times),
        windows,
    }
}
