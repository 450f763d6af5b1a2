//! REPAIR: slices of a store with the states that the log gives, in one tick, for all views of the store.
//!
//! The states are made anew by the store's own feed over the accepted rows of the slices. Final slices change no more, so they are
//! made as of any tick and put in their place at a later one. Where a slice is open, the bulk of the log is read first; then the
//! source is held between two ticks, the little that was read since is added, the slices are replaced, and reading goes on. Ticks,
//! reads and other sources go on all the while.
//!
//! What was told downstream is taken back and told anew ([`Changes::correct`](crate::exec::window_view::Changes::correct)). A
//! consumer that relies on final windows never to change cannot take that: then the repair is refused by name.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use crossbeam_channel::Sender;

use super::accepted_table::AcceptedTable;
use super::backfill::Replay;
use super::coordinator::Coordinator;
use super::decoding::Consumer;
use super::error::EngineError;
use super::kept::Correction;
use super::orders::{Command, EdgeId};
use super::owners::{by_owner, select_partial};
use super::reader::SourceSetup;
use super::reconcile::{Logs, PartitionLog};
use super::reconciliations::Reconciliation;
use super::request::{Reply, Request};
use super::worker::Worker;
use super::{Engine, Inner, TickId, clock, topic};
use crate::catalog::{Object, Oid};
use crate::exec::exchange::StoreId;
use crate::exec::feed::FeedStep;
use crate::exec::flow::{Feed, Input, Output};
use crate::exec::horizon::Horizon;
use crate::exec::law::PartitionLaw;
use crate::exec::slice_store::{PartialRows, SliceStore, StoreRows};
use crate::exec::tail::shown;
use crate::exec::{Delta, ExecError};
use crate::planner::stream_plan::{Emit, Op};

/// Where a view was found wrong: the least and the greatest bounds of its windows, in microseconds. A view without windows has
/// neither.
#[derive(Debug, Clone, Copy, Default)]
pub struct Damage {
    pub starts_us: Option<(i64, i64)>,
    pub ends_us: Option<(i64, i64)>,
    /// Rows that differ.
    pub rows: u64,
}

/// What was repaired.
#[derive(Debug, Clone)]
pub struct Repaired {
    /// In which it showed.
    pub tick: TickId,
    /// Views that read the store, by name.
    pub views: Vec<String>,
}

/// Rows for slices of one worker's part of a store.
pub(super) struct Replacement {
    store: StoreId,
    slices: Range<i64>,
    rows: Vec<PartialRows>,
}

pub(super) enum RepairStep {
    Plan {
        view: Oid,
        damage: Damage,
        allowed: Allowed,
        reply: Reply<RepairPlan>,
    },
    /// How a source's logs stand at the end of a tick; with `hold` they stay so.
    Logs {
        source: Oid,
        hold: bool,
        reply: Reply<SourceLogs>,
    },
    Release {
        source: Oid,
    },
    Replace {
        store: StoreId,
        slices: Range<i64>,
        /// By worker.
        rows: Vec<Vec<PartialRows>>,
        reply: Reply<TickId>,
    },
}

/// What may be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Allowed {
    /// What was not shown as final for good.
    Corrections,
    FinalCorrections,
    /// For tests: whatever follows from it.
    Anything,
}

/// What a repair is to do.
pub(super) struct RepairPlan {
    store: StoreId,
    feed: Arc<Feed>,
    slices: Range<i64>,
    /// Nothing changes in them any more.
    is_final: bool,
    workers: usize,
    /// By schema and name, with whether they were shown as final.
    views: Vec<(String, String, bool)>,
}

pub(super) struct SourceLogs {
    name: String,
    setup: SourceSetup,
    logs: Vec<PartitionLog>,
}

/// Of a tick.
#[derive(Default)]
pub(super) struct Repairs {
    logs: Vec<(Oid, Logs, Reply<SourceLogs>)>,
    pub replaced: Vec<Reply<TickId>>,
}

impl Engine {
    /// Makes the slices anew over which a view was found wrong. `corrections`: also where windows were shown as final for good.
    /// `memory_bytes` bounds what is held meanwhile.
    pub async fn repair(
        &self,
        view: &Object,
        damage: Damage,
        corrections: bool,
        memory_bytes: usize,
        running: &Arc<Reconciliation>,
    ) -> Result<Repaired, EngineError> {
        self.inner.repair(view, damage, corrections, memory_bytes, running).await
    }

    /// Takes all rows out of the slices of these windows, as a fault would that nobody noticed. For tests.
    #[doc(hidden)]
    pub async fn damage(&self, view: &Object, damage: Damage) -> Result<(), EngineError> {
        let plan = self.inner.plan_repair(view, damage, Allowed::Anything).await?;
        let rows = vec![Vec::new(); plan.workers];
        self.inner.replace(&plan, rows).await.map(drop)
    }
}

/// Lets a source be read again when dropped.
struct Held {
    source: Oid,
    requests: Sender<Request>,
}

impl Drop for Held {
    fn drop(&mut self) {
        // A coordinator that has gone holds nothing.
        let _ = self.requests.send(Request::Repair(RepairStep::Release { source: self.source }));
    }
}

impl Inner {
    async fn plan_repair(&self, view: &Object, damage: Damage, allowed: Allowed) -> Result<RepairPlan, EngineError> {
        let view = view.oid;
        self.ask(|reply| Request::Repair(RepairStep::Plan { view, damage, allowed, reply })).await
    }

    async fn logs(&self, source: Oid, hold: bool) -> Result<SourceLogs, EngineError> {
        self.ask(|reply| Request::Repair(RepairStep::Logs { source, hold, reply })).await
    }

    async fn replace(&self, plan: &RepairPlan, rows: Vec<Vec<PartialRows>>) -> Result<TickId, EngineError> {
        let (store, slices) = (plan.store, plan.slices.clone());
        self.ask(|reply| Request::Repair(RepairStep::Replace { store, slices, rows, reply })).await
    }

    async fn repair(
        &self,
        view: &Object,
        damage: Damage,
        corrections: bool,
        memory_bytes: usize,
        running: &Arc<Reconciliation>,
    ) -> Result<Repaired, EngineError> {
        running.work.repairs();
        let kept = self.stats().kept.clone();
        let _one_at_a_time = kept.reconciliations.repairing.lock().await;
        let allowed = if corrections { Allowed::FinalCorrections } else { Allowed::Corrections };
        let plan = Arc::new(self.plan_repair(view, damage, allowed).await?);
        let source = plan.feed.source;
        let first = self.logs(source, false).await?;
        let until: BTreeMap<i32, PartitionLog> = first.logs.iter().map(|log| (log.partition, log.clone())).collect();
        let shadow = Shadow::new(&plan, memory_bytes)?;
        let mut shadow = shadow.read(first, None, running).await?;
        let mut held = None;
        if !plan.is_final {
            held = Some(Held { source, requests: self.requests.clone() });
            let rest = self.logs(source, true).await?;
            shadow = shadow.read(rest, Some(until), running).await?;
        }
        if running.is_cancelled() {
            return Err(cancelled());
        }
        running.check_repairs()?;
        let rows = shadow.by_worker()?;
        let tick = self.replace(&plan, rows).await?;
        drop(held);
        let names = plan.views.iter().map(|(_, name, _)| name.clone()).collect();
        kept.note_correction(Correction {
            at_us: clock::now_us(),
            tick,
            schema: view.schema.clone(),
            view: view.name.clone(),
            rows: damage.rows,
            from_us: plan.feed.layout.grid.map(|grid| grid.start_us(plan.slices.start)),
            to_us: plan.feed.layout.grid.map(|grid| grid.start_us(plan.slices.end)),
            changed: plan.views.iter().map(|(schema, name, _)| format!("{schema}.{name}")).collect(),
            finals: plan.views.iter().filter(|v| v.2).map(|(schema, name, _)| format!("{schema}.{name}")).collect(),
        });
        Ok(Repaired { tick, views: names })
    }
}

fn cancelled() -> EngineError {
    EngineError::Timeout { waiting: "the job was cancelled".into() }
}

/// A store's slices while they are made anew.
struct Shadow {
    plan: Arc<RepairPlan>,
    store: SliceStore,
    memory_bytes: usize,
}

impl Shadow {
    fn new(plan: &Arc<RepairPlan>, memory_bytes: usize) -> Result<Shadow, EngineError> {
        Ok(Shadow { plan: plan.clone(), store: SliceStore::new(plan.feed.layout.clone())?, memory_bytes })
    }

    /// Adds the rows of the logs, from where `before` ends on.
    async fn read(
        self,
        logs: SourceLogs,
        before: Option<BTreeMap<i32, PartitionLog>>,
        running: &Arc<Reconciliation>,
    ) -> Result<Shadow, EngineError> {
        let running = running.clone();
        let read = move || self.read_here(logs, before.as_ref(), &running);
        tokio::task::spawn_blocking(read).await.map_err(|_| EngineError::Stopped)?
    }

    fn read_here(
        mut self,
        SourceLogs { name, setup, logs }: SourceLogs,
        before: Option<&BTreeMap<i32, PartitionLog>>,
        running: &Arc<Reconciliation>,
    ) -> Result<Shadow, EngineError> {
        let topic = topic::look_once(&setup.options, &BTreeMap::new())?;
        let feed = self.plan.feed.clone();
        let time = feed.time.as_ref().and_then(super::pushdown::plain_column);
        let table = AcceptedTable::new(&name, setup.clone(), logs.clone(), &topic, running.clone())?;
        let times = match feed.layout.grid.filter(|_| time.is_some() && time == setup.time_column) {
            Some(grid) => grid.start_us(self.plan.slices.start)..grid.start_us(self.plan.slices.end),
            None => i64::MIN..i64::MAX,
        };
        if let Some(complete_us) = table.complete_from_us().filter(|us| *us > times.start) {
            return Err(EngineError::NotReady {
                message: format!("the log of source \"{name}\" no longer has all rows of what is to be repaired"),
                hint: format!("REPAIR windows that begin at or after {}.", crate::planner::timestamp_text(complete_us)),
            });
        }
        let mut replays: BTreeMap<i32, Replay> = BTreeMap::new();
        match before {
            None => replays.extend(table.replays(&times).into_iter().flatten()),
            Some(before) => {
                for log in &logs {
                    let law = log.law.facts().clone();
                    let (start, law) = match before.get(&log.partition) {
                        Some(before) if before.start != log.start => {
                            return Err(EngineError::NotReady {
                                message: format!("source \"{name}\" was altered while its log was read"),
                                hint: "Run it again.".into(),
                            });
                        }
                        Some(before) => {
                            (before.until, PartitionLaw::resuming(law, before.until, before.law.watermark_us()))
                        }
                        None => (log.start, PartitionLaw::replaying(law)),
                    };
                    running.work.is_to_read(log.until - start);
                    let duplicates = log.duplicates.clone();
                    let replay =
                        Replay { start, position: start, until: log.until, law, duplicates, from: Some(start) };
                    replays.insert(log.partition, replay);
                }
            }
        }
        let present = feed.source_columns();
        let mut step = FeedStep::of_feed(&feed, &present)?;
        let mut outcome = Ok(());
        table
            .read(replays, &present, &mut |rows| {
                outcome = self.add(step.rows(&Delta::inserts(rows)));
                Ok(outcome.is_ok())
            })
            .map_err(ExecError::from)?;
        outcome.map(|()| self)
    }

    fn add(&mut self, rows: Result<StoreRows, ExecError>) -> Result<(), EngineError> {
        let rows = rows?;
        let wanted: Vec<u32> =
            (0..rows.rows as u32).filter(|&row| self.plan.slices.contains(&rows.slices[row as usize])).collect();
        if wanted.len() == rows.rows {
            self.store.apply(&rows)?;
        } else if !wanted.is_empty() {
            self.store.apply(&super::owners::select_raw(&rows, &wanted.into())?)?;
        }
        if self.store.bytes() > self.memory_bytes {
            return Err(EngineError::OutOfMemory {
                message: format!("the slices to be repaired need more than {} MiB", self.memory_bytes >> 20),
                hint: "Repair them in parts: give FROM and TO.".into(),
            });
        }
        Ok(())
    }

    fn by_worker(mut self) -> Result<Vec<Vec<PartialRows>>, EngineError> {
        let workers = self.plan.workers;
        let mut parts = vec![Vec::new(); workers];
        for rows in self.store.drain()? {
            if workers == 1 {
                parts[0].push(rows);
                continue;
            }
            for (owner, selected) in by_owner(&rows.keys, rows.slices.len(), workers) {
                if let Some(selected) = selected {
                    parts[owner].push(select_partial(&rows, &selected)?);
                }
            }
        }
        Ok(parts)
    }
}

impl Worker {
    /// After all has been told that the tick has changed otherwise.
    pub(super) fn replace_slices(&mut self, out: &mut Vec<(EdgeId, Delta)>) {
        for replacement in std::mem::take(&mut self.replacements) {
            let store = replacement.store;
            if let Err(error) = self.replace(replacement, out) {
                self.fail(Consumer::Store(store), &error);
            }
        }
    }

    fn replace(&mut self, replacement: Replacement, out: &mut Vec<(EdgeId, Delta)>) -> Result<(), ExecError> {
        let Some(part) = self.stores.get_mut(&replacement.store).filter(|part| !part.failed) else { return Ok(()) };
        let before = part.store.snapshot()?;
        let touched = part.store.replace(replacement.slices, &replacement.rows)?;
        part.generation = self.tick;
        let horizon = Horizon::Source(part.source);
        for edge in part.edges.iter_mut().filter(|edge| !edge.is_new) {
            let floor_us = part.floor_us.map(|us| us.saturating_add(edge.size_us));
            let shown = shown(Some(&horizon), &self.times, edge.retention_us).above(floor_us);
            let delta = edge.changes.correct(&mut part.store, &before, &touched, &shown)?;
            if !delta.is_empty() {
                out.push((edge.id, delta));
            }
        }
        Ok(())
    }
}

impl Coordinator {
    pub(super) fn take_repair(&mut self, step: RepairStep, repairs: &mut Repairs) {
        match step {
            RepairStep::Plan { view, damage, allowed, reply } => {
                // Whoever does not wait any more misses nothing.
                let _ = reply.send(self.plan_repair(view, &damage, allowed));
            }
            RepairStep::Logs { source, hold, reply } => {
                if hold {
                    self.broadcast(|| Command::Hold { source, on: true });
                }
                repairs.logs.push((source, self.ask_for_logs(&[source]), reply));
            }
            RepairStep::Release { source } => self.broadcast(|| Command::Hold { source, on: false }),
            RepairStep::Replace { store, slices, rows, reply } => {
                if !self.stores.contains_key(&store) {
                    let _ = reply.send(Err(EngineError::Gone { name: super::figures::store_name(store) }));
                    return;
                }
                for (commands, rows) in self.commands.iter().zip(rows) {
                    // A worker that has gone is noticed when its report is missing.
                    let _ = commands.send(Command::Replace(Replacement { store, slices: slices.clone(), rows }));
                }
                repairs.replaced.push(reply);
            }
        }
    }

    pub(super) fn answer_repairs(&mut self, repairs: Repairs) {
        for (oid, logs, reply) in repairs.logs {
            let mut logs = logs.try_iter().map(|(_, log)| log).collect::<Vec<_>>();
            let lost = logs.iter().find_map(|log| log.error.clone());
            let answer = match (self.sources.get(&oid), lost) {
                (None, _) => Err(EngineError::Gone { name: "the source".into() }),
                (Some(source), Some(lost)) => Err(super::alter::source_failed(&source.object.name, &lost)),
                (Some(source), None) => {
                    source.forget_counts_before_gaps(&mut logs);
                    Ok(SourceLogs { name: source.object.name.clone(), setup: source.setup.clone(), logs })
                }
            };
            let _ = reply.send(answer);
        }
        for reply in repairs.replaced {
            self.answer_when_kept(Ok((self.epoch, self.tick - 1)), reply);
        }
    }

    fn plan_repair(&self, oid: Oid, damage: &Damage, allowed: Allowed) -> Result<RepairPlan, EngineError> {
        let Some(view) = self.views.get(&oid) else { return Err(EngineError::Gone { name: "the view".into() }) };
        let name = &view.object.name;
        let refuse = |message: String, hint: &str| Err(EngineError::Unsupported { message, hint: hint.into() });
        const ANEW: &str = "DROP the view and CREATE it again: it is made from the log.";
        let Output::Feed { feed, .. } = &view.flow.output else {
            let message =
                format!("REPAIR of \"{name}\" is not supported: its rows do not come straight from slices of a source");
            const BENEATH: &str = "Repair the views beneath it: what follows from them is mended with them. If they are right, DROP it and \
                 CREATE it again.";
            return refuse(message, BENEATH);
        };
        let (used, plan) = (&view.feeds[*feed], &view.flow.feeds[*feed]);
        if plan.oldest.is_some() {
            return refuse(format!("REPAIR of \"{name}\" is not supported: it holds sessions"), ANEW);
        }
        let store = &self.stores[&used.store];
        let grid = store.feed.layout.grid;
        let slices = match (grid, used.view.window) {
            (Some(grid), Some(window)) => {
                let from_us = damage.starts_us.map(|s| s.0).or(damage.ends_us.map(|e| window.start_of(e.0)));
                let to_us = damage.ends_us.map(|e| e.1);
                let to_us = to_us.or(damage.starts_us.map(|s| s.1.saturating_add(window.size_us)));
                let (Some(from_us), Some(to_us)) = (from_us, to_us) else {
                    let message =
                        format!("REPAIR of \"{name}\" is not supported: it shows neither bound of its windows");
                    return refuse(message, ANEW);
                };
                grid.slice_of(from_us)..grid.slice_of(to_us)
            }
            _ => 0..1,
        };
        let final_us = self.times.get(&store.source).and_then(|time| time.final_until_us);
        let ends_us = grid.map(|grid| grid.start_us(slices.end));
        let is_final = ends_us.zip(final_us).is_some_and(|(end, until)| end <= until);
        let touches_final = grid.map(|g| g.end_us(slices.start)).zip(final_us).is_some_and(|(end, until)| end <= until);
        let deduplicated = self.sources.get(&store.source).is_some_and(|s| s.setup.across_partitions().is_some());
        if deduplicated && !is_final && allowed != Allowed::Anything {
            let message = format!(
                "REPAIR of open windows of \"{name}\" is not supported: duplicates among their rows may still be found"
            );
            return refuse(message, "Repair windows that are final: TO final_window_end, or wait for the watermark.");
        }
        let mut views = Vec::new();
        for user in store.users.keys().filter_map(|oid| self.views.get(oid)) {
            let promised = user.plan.emit == Emit::OnWindowClose && touches_final;
            if promised && allowed == Allowed::Corrections {
                let message = format!(
                    "REPAIR would change final windows of \"{}\", which is EMIT ON WINDOW CLOSE",
                    user.object.name
                );
                return refuse(
                    message,
                    "WITH (corrections = true) REPAIR does it, and lists it in riverrun.corrections.",
                );
            }
            let follows = user.feeds.iter().filter(|f| f.store == used.store);
            for feed in follows {
                let followed_here = feed.regrouped.as_ref().is_some_and(|r| r.edge.is_some());
                if touches_final && followed_here && allowed != Allowed::Anything {
                    let message = format!(
                        "REPAIR of final windows is not supported while the changes of \"{}\", made of finer groups, are followed",
                        user.object.name
                    );
                    return refuse(
                        message,
                        "DROP the views and end the subscriptions that stand on it, and create them again.",
                    );
                }
            }
            if touches_final && allowed != Allowed::Anything {
                self.check_takes_corrections(user.object.oid)?;
            }
            views.push((user.object.schema.clone(), user.object.name.clone(), promised));
        }
        let feed = Arc::new(store.feed.as_ref().clone());
        Ok(RepairPlan { store: used.store, feed, slices, is_final, workers: self.workers, views })
    }

    /// Can all that follows the changes of a view take back rows of final windows?
    fn check_takes_corrections(&self, oid: Oid) -> Result<(), EngineError> {
        let mut left = vec![oid];
        let mut seen = BTreeSet::new();
        while let Some(oid) = left.pop().filter(|oid| seen.insert(*oid)) {
            let of_store = |view: &super::dataflow::View| !matches!(view.flow.output, Output::Feed { .. });
            let own = self.views.get(&oid).filter(|view| oid == view.object.oid && of_store(view));
            let above = self.views.values().filter(|view| view.upstream().any(|up| up == oid));
            for view in own.into_iter().chain(above) {
                let keeps_final = |node: &crate::exec::flow::TailNode| {
                    let closes = node.aggregate.as_ref().is_some_and(|(_, horizon)| horizon.is_some());
                    let ranks = matches!(node.node.op, Op::TopN { .. } | Op::Aggregate(_) | Op::Sessions(_));
                    closes
                        || matches!(node.node.op, Op::TemporalFilter { .. })
                        || node.append_only_inputs && ranks
                        || node.inputs.iter().any(|input| matches!(input, Input::Pass(_)))
                };
                if view.flow.tail.iter().any(keeps_final) {
                    return Err(EngineError::Unsupported {
                        message: format!(
                            "REPAIR of final windows is not supported under \"{}\", which takes them as they were",
                            view.object.name
                        ),
                        hint: format!("DROP {}, repair, and CREATE it again.", view.object.name),
                    });
                }
            }
            left.extend(self.views.values().filter(|v| v.upstream().any(|up| up == oid)).map(|v| v.object.oid));
        }
        Ok(())
    }
}
