//! What comes after the workers: the operators of one view over deltas, a tick at a time, on one thread.

use std::sync::Arc;

use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;

use super::feed::{FeedStep, Shortfall};
use super::flow::{ClockReader, Flow, Input, Output, TailNode, floor_us};
use super::horizon::{Horizon, OldestSession};
use super::operator::{self, EmitEvery, Operator, TemporalFilter};
use super::session_batch::{SessionSnapshot, forgotten_until};
use super::session_changes::{SessionChanges, joined};
use super::session_store::SessionStore;
use super::slice_cache::SliceCache;
use super::slice_store::SliceStore;
use super::store_snapshot::StoreSnapshot;
use super::tail_saves::Said;
use super::window_view::{Changes, Shown, WindowView};
use super::{Delta, ExecError};
use crate::planner::stream_plan::Oid;
use crate::planner::stream_plan::Op;

/// The tail of one view.
pub struct Tail {
    pub(super) nodes: Vec<(TailNode, Stage)>,
    /// By node: what was counted before a restart.
    pub(super) before: Vec<Shortfall>,
    /// By node, as it was saved; nothing while the next save is to give all.
    pub(super) said: Option<Vec<Said>>,
    /// Of EMIT EVERY: the next step is an emission.
    pub emits: bool,
}

pub(super) enum Stage {
    Operator(Box<dyn Operator>),
    Aggregate(Box<AggregateStage>),
    Sessions(Box<SessionStage>),
    TemporalFilter(Box<TemporalFilter>, ClockReader),
    EmitEvery(Box<EmitEvery>),
}

pub(super) struct SessionStage {
    step: FeedStep,
    pub store: SessionStore,
    pub view: WindowView,
    /// There once something downstream wants changes.
    pub changes: Option<SessionChanges>,
    pub horizon: Option<Horizon>,
    pub oldest: OldestSession,
}

pub(super) struct AggregateStage {
    step: FeedStep,
    pub store: SliceStore,
    pub view: WindowView,
    /// There once something downstream wants changes.
    pub changes: Option<Changes>,
    pub horizon: Option<Horizon>,
}

/// Event time as of a tick, by source.
pub trait Times {
    fn watermark_us(&self, source: Oid) -> Option<i64>;
    fn final_until_us(&self, source: Oid) -> Option<i64>;

    /// The watermark, less what is settled but not final yet ([`SourceTime::shown_until_us`](super::law::SourceTime::shown_until_us)).
    fn shown_until_us(&self, source: Oid) -> Option<i64> {
        self.watermark_us(source)
    }
}

impl Tail {
    pub fn new(flow: &Flow) -> Result<Tail, ExecError> {
        Tail::with_cache(flow, &Arc::default())
    }

    /// `cache`: for the closed slices of its stores.
    pub fn with_cache(flow: &Flow, cache: &Arc<SliceCache>) -> Result<Tail, ExecError> {
        let mut nodes = Vec::new();
        // The last aggregation is read in place; its changes are worked out only when somebody downstream asks.
        let read_in_place = match &flow.output {
            Output::Aggregate { node, .. } => Some(*node),
            _ => None,
        };
        for (i, node) in flow.tail.iter().enumerate() {
            let stage = match &node.aggregate {
                None => match (&node.node.op, &node.clock) {
                    (Op::TemporalFilter { bounds, .. }, Some(clock)) => {
                        let filter = TemporalFilter::new(bounds, node.node.schema.clone())?;
                        Stage::TemporalFilter(Box::new(filter), clock.clone())
                    }
                    (Op::EmitEvery { interval_us }, _) => {
                        let emitted = node.emitted.clone().unwrap_or_default();
                        let (schema, append_only) = (node.node.schema.clone(), node.append_only_inputs);
                        Stage::EmitEvery(Box::new(EmitEvery::new(*interval_us, schema, append_only, emitted)))
                    }
                    _ => Stage::Operator(operator::build(&node.node, node.append_only_inputs)?),
                },
                Some((aggregate, horizon)) => {
                    let time = aggregate.time.map(|column| {
                        let name = node.input_schemas[0].field(column).name();
                        Arc::new(Column::new(name, column)) as Arc<dyn PhysicalExpr>
                    });
                    let step = FeedStep::of_aggregate(aggregate, time);
                    if let Some(oldest) = &aggregate.oldest {
                        let mut stage = SessionStage {
                            step,
                            store: SessionStore::new(aggregate.layout.clone())?,
                            view: aggregate.view.clone(),
                            changes: None,
                            horizon: horizon.clone(),
                            oldest: oldest.clone(),
                        };
                        if read_in_place != Some(i) {
                            stage.store.track_changes();
                            stage.changes = Some(SessionChanges::new(aggregate.view.clone())?);
                        }
                        nodes.push((node.clone(), Stage::Sessions(Box::new(stage))));
                        continue;
                    }
                    let mut store = SliceStore::with_cache(aggregate.layout.clone(), cache.clone())?;
                    let changes = if read_in_place == Some(i) {
                        None
                    } else {
                        store.track_changes();
                        Some(Changes::new(aggregate.view.clone())?)
                    };
                    Stage::Aggregate(Box::new(AggregateStage {
                        step,
                        store,
                        view: aggregate.view.clone(),
                        changes,
                        horizon: horizon.clone(),
                    }))
                }
            };
            nodes.push((node.clone(), stage));
        }
        Ok(Tail { before: vec![Shortfall::default(); nodes.len()], said: None, emits: false, nodes })
    }

    /// One tick, at `now_us` by the clock. `external` gives the deltas of what is not a node of this tail. Returns each node's
    /// output.
    pub fn step(
        &mut self,
        external: &dyn Fn(Input) -> Vec<Delta>,
        times: &dyn Times,
        now_us: i64,
        retention_us: Option<i64>,
    ) -> Result<Vec<Delta>, ExecError> {
        let mut outputs: Vec<Delta> = Vec::with_capacity(self.nodes.len());
        let emission = self.emits.then_some(now_us);
        for (node, stage) in &mut self.nodes {
            let mut inputs = Vec::with_capacity(node.inputs.len());
            for (i, input) in node.inputs.iter().enumerate() {
                inputs.push(match input {
                    Input::Node(n) => outputs[*n].clone(),
                    other => {
                        let deltas = external(*other);
                        let schema = match node.input_schemas.get(i) {
                            Some(schema) => schema.clone(),
                            // A scan's own projection: the object's schema is what came.
                            None => match deltas.first() {
                                Some(delta) => delta.rows.schema(),
                                None => Arc::new(arrow::datatypes::Schema::empty()),
                            },
                        };
                        concat(&schema, &deltas)?
                    }
                });
            }
            outputs.push(match stage {
                Stage::TemporalFilter(filter, clock) => filter.step(&inputs[0], clock.read_us(now_us, times))?,
                Stage::EmitEvery(every) => every.step(&inputs[0], emission, times)?,
                stage => {
                    let floors = node.aggregate.as_ref().map_or(&[][..], |(aggregate, _)| &aggregate.floors);
                    stage.step(node, &inputs, times, retention_us, floor_us(floors, now_us, times))?
                }
            });
        }
        Ok(outputs)
    }

    /// From now on the aggregation at `node` says what changes; returns all it shows now.
    pub fn begin_changes(
        &mut self,
        node: usize,
        times: &dyn Times,
        retention_us: Option<i64>,
    ) -> Result<Delta, ExecError> {
        let stage = match &mut self.nodes[node].1 {
            Stage::Aggregate(stage) => stage,
            Stage::Sessions(stage) => {
                stage.store.track_changes();
                let mut changes = SessionChanges::new(stage.view.clone())?;
                let all = changes.begin(&mut stage.store, &shown(stage.horizon.as_ref(), times, retention_us))?;
                stage.changes = Some(changes);
                return Ok(all);
            }
            Stage::Operator(_) | Stage::TemporalFilter(..) | Stage::EmitEvery(_) => {
                return Err(ExecError::Invariant("changes were asked of a node that keeps no store".into()));
            }
        };
        let shown = stage.shown(times, retention_us);
        let mut changes = Changes::new(stage.view.clone())?;
        stage.store.track_changes();
        stage.store.take_dirty();
        let all = changes.begin(&mut stage.store, &shown)?;
        stage.changes = Some(changes);
        Ok(all)
    }

    /// Nobody wants to hear what the aggregation at `node` changes any more.
    pub fn end_changes(&mut self, node: usize) {
        if let Stage::Aggregate(stage) = &mut self.nodes[node].1 {
            stage.changes = None;
        }
    }

    /// What holds back the changes of an EMIT EVERY view.
    pub fn every(&self) -> Option<&EmitEvery> {
        match self.nodes.last() {
            Some((_, Stage::EmitEvery(every))) => Some(every),
            _ => None,
        }
    }

    pub fn gives_changes(&self, node: usize) -> bool {
        match &self.nodes[node].1 {
            Stage::Aggregate(stage) => stage.changes.is_some(),
            Stage::Sessions(stage) => stage.changes.is_some(),
            Stage::Operator(_) | Stage::TemporalFilter(..) | Stage::EmitEvery(_) => false,
        }
    }

    pub fn session_snapshot(&mut self, node: usize) -> Result<SessionSnapshot, ExecError> {
        match &mut self.nodes[node].1 {
            Stage::Sessions(stage) => stage.store.snapshot(),
            _ => Err(ExecError::Invariant("sessions were asked of a node that keeps none".into())),
        }
    }

    pub fn snapshot(&mut self, node: usize) -> Result<StoreSnapshot, ExecError> {
        match &mut self.nodes[node].1 {
            Stage::Aggregate(stage) => stage.store.snapshot(),
            _ => Err(ExecError::Invariant("a snapshot was asked of a node that keeps no slices".into())),
        }
    }

    /// (operator, rows, bytes) of each node's state.
    pub fn state(&self) -> Vec<(String, usize, usize)> {
        self.nodes
            .iter()
            .map(|(node, stage)| match stage {
                Stage::Operator(op) => (op_name(&node.node.op).to_string(), op.rows(), op.bytes()),
                Stage::Aggregate(stage) => {
                    let rows = stage.store.slices().map(|(_, rows, _, _)| rows).sum();
                    let changes = stage.changes.as_ref().map_or(0, Changes::bytes);
                    ("Aggregate".to_string(), rows, stage.store.bytes() + changes)
                }
                Stage::TemporalFilter(filter, _) => ("TemporalFilter".to_string(), filter.rows(), filter.bytes()),
                Stage::EmitEvery(every) => ("EmitEvery".to_string(), every.rows(), every.bytes()),
                Stage::Sessions(stage) => {
                    let changes = stage.changes.as_ref().map_or(0, SessionChanges::bytes);
                    ("Sessions".to_string(), stage.store.rows(), stage.store.bytes() + changes)
                }
            })
            .collect()
    }

    pub fn shortfall(&self) -> Shortfall {
        let mut total = Shortfall::default();
        for (node, (_, stage)) in self.nodes.iter().enumerate() {
            total.add(self.shortfall_of(node));
            if let Stage::Sessions(stage) = stage {
                total.left_out += stage.store.left_out();
            }
        }
        total
    }

    /// What a node's steps have counted; a store's own counts are kept by it.
    pub(super) fn shortfall_of(&self, node: usize) -> Shortfall {
        let mut shortfall = self.before[node].clone();
        shortfall.add(match &self.nodes[node].1 {
            Stage::Operator(op) => {
                let (errors, sample) = op.errors();
                Shortfall { errors, sample, left_out: op.left_out() }
            }
            Stage::Aggregate(stage) => stage.step.shortfall(),
            Stage::Sessions(stage) => stage.step.shortfall(),
            Stage::TemporalFilter(filter, _) => {
                let (errors, sample) = filter.errors();
                Shortfall { errors, sample, left_out: 0 }
            }
            Stage::EmitEvery(_) => Shortfall::default(),
        });
        shortfall
    }
}

impl AggregateStage {
    fn shown(&self, times: &dyn Times, retention_us: Option<i64>) -> Shown {
        shown(self.horizon.as_ref(), times, retention_us)
    }
}

/// What a window view over `horizon` shows.
pub fn shown(horizon: Option<&Horizon>, times: &dyn Times, retention_us: Option<i64>) -> Shown {
    let Some(horizon) = horizon else { return Shown::default() };
    let until_us = horizon.shown_until_us(times);
    Shown {
        horizon_us: retention_us.zip(until_us).map(|(kept, now)| now.saturating_sub(kept)),
        final_until_us: horizon.final_until_us(times),
    }
}

impl Stage {
    fn step(
        &mut self,
        node: &TailNode,
        inputs: &[Delta],
        times: &dyn Times,
        retention_us: Option<i64>,
        floor_us: Option<i64>,
    ) -> Result<Delta, ExecError> {
        let empty = || Delta::empty(node.node.schema.clone());
        match self {
            Stage::Operator(operator) if inputs.iter().all(Delta::is_empty) => {
                let _ = operator;
                Ok(empty())
            }
            Stage::Operator(operator) => operator.step(inputs),
            Stage::TemporalFilter(..) | Stage::EmitEvery(_) => {
                Err(ExecError::Invariant("what goes by the clock was stepped without it".into()))
            }
            Stage::Sessions(stage) => {
                if !inputs[0].is_empty() {
                    let rows = stage.step.rows(&inputs[0])?;
                    stage.store.apply(&rows)?;
                }
                let shown = shown(stage.horizon.as_ref(), times, retention_us);
                stage.step(&shown.above(floor_us), node)
            }
            Stage::Aggregate(stage) => {
                if !inputs[0].is_empty() {
                    let rows = stage.step.rows(&inputs[0])?;
                    stage.store.apply(&rows)?;
                }
                let shown = stage.shown(times, retention_us).above(floor_us);
                let dirty = stage.store.take_dirty();
                let out = match &mut stage.changes {
                    Some(changes) => changes.step(&mut stage.store, &dirty, &shown)?,
                    None => empty(),
                };
                if let Some(final_until_us) = shown.final_until_us {
                    stage.store.close(final_until_us)?;
                }
                if let (Some(horizon_us), Some(window)) = (shown.horizon_us, stage.view.window) {
                    let renumbered = stage.store.forget(horizon_us.saturating_sub(window.size_us))?;
                    if let (Some(renumbered), Some(changes)) = (renumbered, &mut stage.changes) {
                        changes.renumber(&renumbered);
                    }
                }
                Ok(out)
            }
        }
    }
}

impl SessionStage {
    /// The end of a tick, once its rows are in the store.
    fn step(&mut self, shown: &Shown, node: &TailNode) -> Result<Delta, ExecError> {
        let mut out = Delta::empty(node.node.schema.clone());
        self.store.settle()?;
        let dirty = self.store.take_dirty();
        if let Some(changes) = &mut self.changes {
            out = changes.step(&mut self.store, &dirty)?;
        }
        if let Some(final_until_us) = shown.final_until_us {
            let closed = self.store.close(final_until_us)?;
            if let Some(changes) = &mut self.changes {
                out = joined(out, changes.close(&mut self.store, &closed)?)?;
            }
            self.oldest.set(self.store.oldest_open_us(final_until_us));
        }
        if let Some(horizon_us) = forgotten_until(shown)
            && let (Some(renumbered), Some(changes)) = (self.store.forget(horizon_us)?, &mut self.changes)
        {
            changes.renumber(&renumbered);
        }
        Ok(out)
    }
}

/// One delta of several with the same columns.
pub fn concat(schema: &SchemaRef, deltas: &[Delta]) -> Result<Delta, ExecError> {
    match deltas {
        [] => Ok(Delta::empty(schema.clone())),
        [one] => Ok(one.clone()),
        many => {
            let rows = concat_batches(schema, many.iter().map(|d| &d.rows))?;
            let weights = many
                .iter()
                .any(|d| d.weights.is_some())
                .then(|| many.iter().flat_map(|d| (0..d.num_rows()).map(|row| d.weight(row))).collect());
            Ok(Delta { rows, weights })
        }
    }
}

fn op_name(op: &Op) -> &'static str {
    match op {
        Op::Scan { .. } => "Scan",
        Op::Filter { .. } => "Filter",
        Op::Project { .. } => "Project",
        Op::AssignWindows { .. } => "AssignWindows",
        Op::Aggregate(_) => "Aggregate",
        Op::Sessions(_) => "Sessions",
        Op::TemporalFilter { .. } => "TemporalFilter",
        Op::UnionAll => "UnionAll",
        Op::TopN { .. } => "TopN",
        Op::EmitEvery { .. } => "EmitEvery",
    }
}
