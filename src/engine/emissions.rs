//! When EMIT EVERY views emit, who waits for that, and what they forget with it.

use super::coordinator::Coordinator;
use super::dataflow::{Store, View};
use super::error::EngineError;
use super::orders::EdgeId;
use super::request::Asked;
use crate::catalog::Oid;
use crate::exec::feed::micros;
use crate::exec::flow::{Flow, without_casts};
use crate::exec::horizon::Horizon;
use crate::exec::operator::EmitEvery;
use crate::exec::rows::take_rows;
use crate::exec::tail::Times;
use crate::exec::{Delta, ExecError};
use crate::planner::stream_plan::{GroupColumn, Op, StreamPlan};

impl Coordinator {
    /// Decides, before a tick ends, which views emit in it: those of which a multiple of the interval has passed, by the tick's
    /// clock. The first emission of a view comes when it has been given all its history. Returns the change streams that are to
    /// say what has changed; a checkpoint asks all of them, so that nothing that was not told need be kept, and so does who waits.
    pub(super) fn begin_emissions(&mut self, saves: bool) -> Vec<EdgeId> {
        let due = |view: &View| {
            let every = view.tail.every()?;
            let begun = every.last_us().is_some() || self.has_all_history(view);
            Some(view.failed.is_none() && begun && every.is_due(self.now_us))
        };
        let due: Vec<(Oid, bool)> = self.views.iter().filter_map(|(&oid, view)| Some((oid, due(view)?))).collect();
        let awaited = self.awaited_views();
        let mut asked = Vec::new();
        for (oid, emits) in due {
            let Some(view) = self.views.get_mut(&oid) else { continue };
            // Groups made of finer ones are compared by what the slices hold, so before those are forgotten.
            let finer = view.feeds.iter().filter(|feed| feed.regrouped.is_some());
            let forgets = |store: &Store| store.users.values().all(Option::is_some);
            let loses = finer.filter_map(|feed| self.stores.get(&feed.store)).any(forgets);
            view.tail.emits = emits;
            view.is_asked = emits || saves || loses || awaited.contains(&oid);
            if view.waits && view.is_asked {
                asked.extend(view.feeds.iter().filter_map(|feed| feed.edge));
            }
        }
        asked
    }

    pub(super) fn emits_every(&self, oid: Oid) -> bool {
        self.every(oid).is_some()
    }

    fn every(&self, oid: Oid) -> Option<&EmitEvery> {
        self.views.get(&oid)?.tail.every()
    }

    /// After a tick: leaves the views of which no emission shows what they held when it was first asked. `views` are ascending;
    /// what stands on another is looked at once that one has been passed.
    pub(super) fn pass_emissions(&self, views: &mut Vec<Oid>) {
        let mut left: Vec<Oid> = Vec::new();
        for &oid in views.iter() {
            let Some(view) = self.views.get(&oid).filter(|view| view.failed.is_none()) else { continue };
            // Of changes that nobody asks for nothing is known.
            let is_known = view.is_asked || !view.waits;
            let is_settled = || view.tail.every().is_none_or(|every| every.is_settled(&self.times));
            let shows = view.tail.emits || is_known && is_settled();
            if !shows || left.iter().any(|&below| self.stands_on(oid, below)) {
                left.push(oid);
            }
        }
        *views = left;
    }

    fn stands_on(&self, oid: Oid, below: Oid) -> bool {
        let depends_on = self.catalog.get(oid).map(|object| object.depends_on.clone()).unwrap_or_default();
        depends_on.into_iter().any(|on| on == below || self.stands_on(on, below))
    }

    /// Takes up what can be compared in this tick. What an EMIT EVERY view shows follows from the logs as of its last emission,
    /// and the logs are known as they stand: so those wait for a tick in which all such views beneath emit.
    pub(super) fn take_bases(&mut self, asked: &mut Asked) {
        for (basis, reply) in std::mem::take(&mut self.bases_asked) {
            if reply.is_closed() {
                continue;
            }
            let waits = |oid: &Oid| {
                self.views.get(oid).is_some_and(|view| view.current && view.failed.is_none() && !view.tail.emits)
            };
            if basis.objects.iter().any(|oid| self.emits_every(*oid) && waits(oid)) {
                self.bases_asked.push((basis, reply));
                continue;
            }
            let logs = self.ask_for_logs(&basis.objects);
            asked.bases.push((basis, logs, reply));
        }
    }
}

/// May the changes of the feeds wait for an emission? What closes windows or goes by the clock in between must have them as they
/// come.
pub(super) fn waits(flow: &Flow) -> bool {
    let heeds_time =
        flow.tail.iter().any(|node| node.aggregate.is_some() || matches!(node.node.op, Op::TemporalFilter { .. }));
    let emits_every = flow.tail.last().is_some_and(|node| matches!(node.node.op, Op::EmitEvery { .. }));
    emits_every && !heeds_time
}

/// Of a plan that groups by windows below EMIT EVERY: the output column by which the window of a row ends, and how long after the
/// time in it.
pub(super) fn window_end(plan: &StreamPlan) -> Option<(usize, i64)> {
    let top = plan.output();
    let mut columns: Vec<Option<usize>> = (0..top.schema.fields().len()).map(Some).collect();
    let mut at = *top.inputs.first()?;
    loop {
        match &plan.nodes[at].op {
            Op::Filter { .. } => {}
            Op::Project { exprs } => {
                columns.iter_mut().for_each(|column| *column = column.and_then(|i| without_casts(exprs.get(i)?)));
            }
            op => {
                let (group, size_us) = match op {
                    Op::Aggregate(aggregate) => (&aggregate.group, Some(aggregate.window?.1.size_us)),
                    Op::Sessions(sessions) => (&sessions.aggregate.group, None),
                    _ => return None,
                };
                let of = |column: &Option<usize>| group.get((*column)?);
                let end = columns.iter().position(|column| matches!(of(column), Some(GroupColumn::WindowEnd)));
                let start = columns.iter().position(|column| matches!(of(column), Some(GroupColumn::WindowStart)));
                return end.map(|end| (end, 0)).or(start.zip(size_us));
            }
        }
        at = *plan.nodes[at].inputs.first()?;
    }
}

impl View {
    /// After an emission: takes the rows of windows that the retention lets go out of what is shown. Nobody is told.
    pub(super) fn forget(&mut self, times: &dyn Times) -> Result<(), EngineError> {
        let (Some(retention_us), Some((column, add_us))) = (self.plan.retention_us, window_end(&self.plan)) else {
            return Ok(());
        };
        let watermark_us = match &self.flow.shown_horizons[column] {
            Some(Horizon::WindowStart(time, _) | Horizon::WindowEnd(time, _)) => time.watermark_us(times),
            Some(time) => time.watermark_us(times),
            None => None,
        };
        let until_us = watermark_us.map(|us| us.saturating_sub(retention_us));
        let (Some(until_us), Some(arrangement)) =
            (until_us.filter(|us| Some(*us) > self.forgotten_us), &mut self.arrangement)
        else {
            return Ok(());
        };
        for rows in arrangement.snapshot().batches(None).map_err(ExecError::from)? {
            let times = micros(rows.column(column))?;
            let goes = |us: Option<i64>| us.is_some_and(|us| us.saturating_add(add_us) <= until_us);
            let gone: Vec<u32> =
                times.iter().enumerate().filter_map(|(row, us)| goes(us).then_some(row as u32)).collect();
            let weights = vec![-1; gone.len()];
            arrangement.apply(&Delta::weighted(take_rows(&rows, gone).map_err(ExecError::from)?, weights))?;
        }
        self.forgotten_us = Some(until_us);
        Ok(())
    }
}
