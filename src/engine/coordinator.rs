//! The coordinator thread: gathers requests, ends ticks, steps the tails of views, and publishes.
//!
//! A tick ends every [`TICK`], or at once when somebody waits for one. All that was asked before a tick ends with it: a write is
//! acknowledged, a read gets the version of that tick, a new view is there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use crossbeam_channel::{Receiver, Sender};
use parking_lot::RwLock;
use tokio::sync::watch;

use super::clock::{Stopwatch, TickClock};
use super::dataflow::{Nowhere, Source, Store, TickData, View, fail};
use super::decoding::Consumer;
use super::error::EngineError;
use super::keeping::{Heard, Keeping};
use super::kept::Kept;
use super::memory::Memory;
use super::orders::{Command, Report};
use super::reconcile::{AskedBasis, Basis};
use super::request::{Asked, Created, Reply, Request};
use super::stats::Stats;
use super::subscription::Subscriber;
use super::table::Table;
use super::topic::{self, Seen};
use crate::catalog::{Catalog, Oid};
use crate::connector::ConnectorError;
use crate::exec::Delta;
use crate::exec::exchange::StoreId;
use crate::exec::flow::{Input, Output, floor_us};
use crate::exec::law::SourceTime;
use crate::exec::tail::Times;
use crate::sql;

/// How often a tick ends when nobody asks for one.
pub const TICK: Duration = Duration::from_micros(sql::TICK_US as u64);
/// Figures of stores are gathered every so many ticks.
const DETAIL_EVERY: u64 = 10;
/// From here on a clock that was set back is worth telling.
const MOST_AHEAD_US: i64 = 1_000_000;

pub(super) struct Wait {
    pub ends: BTreeMap<Oid, Vec<(i32, i64)>>,
    /// Once that is reached: up to where sources were settled then of which nothing is final before it is kept.
    pub settled: Option<BTreeMap<Oid, i64>>,
    /// Then these must show what they hold; ascending, so that those beneath come first.
    views: Vec<Oid>,
    reply: Reply<()>,
}

impl Wait {
    /// Until a checkpoint holds what is to be shown as final.
    pub fn for_finals(&self) -> bool {
        self.settled.as_ref().is_some_and(|settled| !settled.is_empty())
    }
}

pub(super) struct Coordinator {
    pub workers: usize,
    pub epoch: u64,
    pub tick: u64,
    pub requests: Receiver<Request>,
    pub say: Sender<Request>,
    pub commands: Vec<Sender<Command>>,
    pub reports: Receiver<Report>,
    pub sources: BTreeMap<Oid, Source>,
    pub tables: BTreeMap<Oid, Table>,
    pub views: BTreeMap<Oid, View>,
    pub stores: BTreeMap<StoreId, Store>,
    pub times: HashMap<Oid, SourceTime>,
    /// Views that show what is final, once it is kept; and the sources beneath them, as the workers know.
    pub final_once_kept: BTreeSet<Oid>,
    pub told_final_once_kept: BTreeSet<Oid>,
    /// The clock of the tick: what `now()` is in views. Never goes back.
    pub now_us: i64,
    since_tick: Stopwatch,
    /// The clock was set back, and `now_us` is ahead of it.
    is_ahead: bool,
    pub clock: TickClock,
    pub next_id: u64,
    pub waits: Vec<Wait>,
    /// Until all EMIT EVERY views among their objects emit in one tick.
    pub bases_asked: Vec<(AskedBasis, Reply<Basis>)>,
    pub subscribers: Vec<Subscriber>,
    pub kept: Arc<Kept>,
    pub stats: Arc<RwLock<Arc<Stats>>>,
    pub tick_ms: f64,
    /// As of the last DDL.
    pub catalog: Arc<Catalog>,
    /// State is kept, so that what changes is noted.
    pub lasts: bool,
    /// What was kept is being taken up.
    pub restoring: bool,
    /// None for an engine that keeps nothing.
    pub keeping: Option<Keeping>,
    pub memory: Memory,
    /// Why reading rests, if it does.
    pub rests: Option<String>,
    /// Another process owns the data.
    pub fenced: Option<String>,
    ended: watch::Sender<Option<String>>,
}

/// What connects the coordinator with the others.
pub(super) struct Lines {
    pub requests: Receiver<Request>,
    /// The other end of `requests`, for threads that it starts.
    pub say: Sender<Request>,
    /// By worker.
    pub commands: Vec<Sender<Command>>,
    pub reports: Receiver<Report>,
    /// Why it has ended.
    pub ended: watch::Sender<Option<String>>,
}

impl Coordinator {
    pub fn new(epoch: u64, lines: Lines, stats: Arc<RwLock<Arc<Stats>>>, memory: Memory, clock: TickClock) -> Self {
        let Lines { requests, say, commands, reports, ended } = lines;
        let kept = stats.read().kept.clone();
        Coordinator {
            workers: commands.len(),
            epoch,
            tick: 1,
            requests,
            say,
            commands,
            reports,
            sources: BTreeMap::new(),
            tables: BTreeMap::new(),
            views: BTreeMap::new(),
            stores: BTreeMap::new(),
            times: HashMap::new(),
            final_once_kept: BTreeSet::new(),
            told_final_once_kept: BTreeSet::new(),
            now_us: clock.now_us(),
            since_tick: Stopwatch::start(),
            is_ahead: false,
            clock,
            next_id: 1,
            waits: Vec::new(),
            bases_asked: Vec::new(),
            subscribers: Vec::new(),
            kept,
            stats,
            tick_ms: 0.0,
            catalog: Arc::new(Catalog::new()),
            lasts: false,
            restoring: false,
            keeping: None,
            memory,
            rests: None,
            fenced: None,
            ended,
        }
    }

    /// Runs until [`Request::Stop`].
    pub fn run(mut self) {
        let mut since = Stopwatch::start();
        let (mut stopping, mut crashes) = (false, false);
        let reason = loop {
            let left = TICK.saturating_sub(since.elapsed());
            let mut batch = Vec::new();
            match self.requests.recv_timeout(left) {
                Ok(request) => batch.push(request),
                Err(crossbeam_channel::RecvTimeoutError::Timeout) => {}
                Err(crossbeam_channel::RecvTimeoutError::Disconnected) => batch.push(Request::Stop { at_once: false }),
            }
            batch.extend(self.requests.try_iter());
            // What watchers say can wait for the tick that is due anyway, as nobody waits for it.
            let mut somebody_waits =
                batch.iter().any(|r| !matches!(r, Request::Topic(_) | Request::Said(_) | Request::Logged(_)));
            let mut asked = Asked::default();
            for request in batch {
                match request {
                    Request::Stop { at_once } => {
                        stopping = true;
                        crashes |= at_once;
                    }
                    Request::Said(said) => {
                        let heard = self.keeping.as_mut().map_or(Heard::Well, |keeping| keeping.said(said));
                        self.heard(heard);
                        somebody_waits |= self.keeping.as_ref().is_some_and(Keeping::is_awaited);
                        somebody_waits |= self.waits.iter().any(Wait::for_finals);
                    }
                    Request::Logged(logged) => {
                        let heard = self.keeping.as_mut().map_or(Heard::Well, |keeping| keeping.logged(logged));
                        self.heard(heard);
                    }
                    // Whoever asks is told that the engine stops, as nobody answers.
                    request if stopping => drop(request),
                    request => self.take(request, &mut asked),
                }
            }
            if let Some(fenced) = self.fenced.take() {
                break Some(fenced);
            }
            if crashes {
                break None;
            }
            if stopping && !self.has_more_to_keep() {
                let unkept = self.check_keeping().err();
                break unkept.map(|error| format!("what came last is not kept: {error}"));
            }
            if somebody_waits || stopping || since.elapsed() >= TICK {
                since = Stopwatch::start();
                if !self.end_tick(asked) {
                    tracing::error!("a worker thread ended; the engine stops");
                    break Some("a worker thread ended".to_string());
                }
                self.tick_ms = since.elapsed().as_secs_f64() * 1000.0;
            }
        };
        for commands in &self.commands {
            let _ = commands.send(Command::Stop);
        }
        if let Some(keeping) = self.keeping.take() {
            keeping.stop();
        }
        self.ended.send_replace(Some(reason.unwrap_or_default()));
    }

    pub fn broadcast(&self, command: impl Fn() -> Command) {
        for commands in &self.commands {
            // A worker that has gone is noticed when its report is missing.
            let _ = commands.send(command());
        }
    }

    fn take(&mut self, request: Request, asked: &mut Asked) {
        match request {
            Request::Stop { .. } | Request::Said(_) | Request::Logged(_) => {}
            Request::Topic(seen) => self.topic_seen(seen),
            Request::Create { object, setup, plan, catalog, reply } => {
                let oid = object.oid;
                let before = std::mem::replace(&mut self.catalog, catalog);
                let made = self.check_keeping().and_then(|()| match (setup, plan) {
                    (Some(new), _) => self.add_source(object, *new),
                    (None, Some(plan)) => self.add_view(object, *plan, None),
                    (None, None) => self.add_table(object),
                });
                asked.created.push(Created { oid, made, before, reply });
            }
            Request::Namespaces { catalog, reply } => self.changed(catalog, &[], reply, asked),
            Request::Drop { oids, catalog, reply } => self.changed(catalog, &oids, reply, asked),
            Request::Cancel { oids, catalog, reply } => match oids.iter().find(|oid| !self.reads_history(**oid)) {
                Some(ended) => {
                    let _ = reply.send(Err(super::jobs::no_job(*ended)));
                }
                None => self.changed(catalog, &oids, reply, asked),
            },
            Request::Write { changes, reply } => self.take_write(changes, reply, asked),
            Request::Alter { object, alteration, catalog, reply } => {
                let outcome = self.check_keeping().and_then(|()| self.alter(object, alteration));
                if outcome.is_ok() {
                    self.catalog = catalog;
                }
                asked.altered.push((outcome, reply));
            }
            Request::Read { objects, allow_partial, reply } => asked.reads.push((objects, allow_partial, reply)),
            Request::Subscribe { object, as_of, committed, reply } => {
                // Told from the next tick on; the version of this one goes before.
                match self.want_changes(object) {
                    Ok(()) => asked.subscriptions.push((object, as_of, committed, reply)),
                    Err(error) => drop(reply.send(Err(error))),
                }
            }
            Request::Wait { ends, views, reply } => {
                let views = views.into_iter().filter(|oid| self.emits_every(*oid)).collect();
                self.waits.push(Wait { ends, settled: None, views, reply });
            }
            Request::Repair(step) => self.take_repair(step, &mut asked.repairs),
            Request::Reconcile { asked: basis, reply } => self.bases_asked.push((basis, reply)),
            Request::Explain { what, reply } => asked.explained.push((what, reply)),
        }
    }

    /// A DDL that makes nothing.
    fn changed(&mut self, catalog: Arc<Catalog>, gone: &[Oid], reply: Reply<()>, asked: &mut Asked) {
        if let Err(error) = self.check_keeping() {
            let _ = reply.send(Err(error));
            return;
        }
        self.catalog = catalog;
        gone.iter().for_each(|&oid| self.remove(oid));
        asked.changed.push(reply);
    }

    pub(super) fn end_tick(&mut self, mut asked: Asked) -> bool {
        let tick = self.tick;
        self.advance_clock();
        self.mind_finality();
        let save = self.order_checkpoint(&asked);
        let edges = Arc::new(self.begin_emissions(save.is_some()));
        self.take_bases(&mut asked);
        let mut wanted: Vec<StoreId> = Vec::new();
        for (objects, _, _) in &asked.reads {
            for oid in objects {
                wanted.extend(self.store_read_by(*oid));
            }
        }
        for oid in asked.bases.iter().flat_map(|(basis, _, _)| &basis.objects) {
            wanted.extend(self.store_read_by(*oid));
        }
        for (oid, ..) in &asked.subscriptions {
            wanted.extend(self.store_read_by(*oid));
        }
        for view in self.views.values() {
            if view.made_in == tick {
                wanted.extend(view.upstream().filter_map(|upstream| self.store_read_by(upstream)));
            }
            wanted.extend(view.followed_stores());
        }
        wanted.sort_unstable();
        wanted.dedup();
        // Who waits or reads finds the figures of that tick.
        let asked_for = !asked.reads.is_empty() || !asked.explained.is_empty() || !self.waits.is_empty();
        let detail = tick % DETAIL_EVERY == 1 || asked_for || self.memory.is_limited();
        self.broadcast(|| Command::EndTick {
            tick,
            snapshots: wanted.clone(),
            detail,
            asked: edges.clone(),
            save: save.clone(),
        });
        let mut data = std::mem::take(&mut asked.data);
        for source in self.sources.values_mut() {
            source.backfills.clear();
        }
        if !self.gather(&mut data) {
            return false;
        }
        for parts in data.snapshots.values_mut() {
            parts.sort_by_key(|(worker, _)| *worker);
        }
        self.note_oldest_sessions(&data);
        self.step_tables();
        let oids: Vec<Oid> = self.views.keys().copied().collect();
        for &oid in &oids {
            self.step_view(oid, &mut data);
        }
        self.tell_floors();
        for &oid in &oids {
            self.note_current(oid);
        }
        self.tell_subscribers(&data);
        asked.data = data;
        self.settle_created(&mut asked.created);
        match save {
            Some(order) => self.begin_checkpoint(&order, &mut asked.data),
            None if self.can_add(&asked) => self.keep_creations(&mut asked),
            None => {}
        }
        // Not before: the workers have saved nothing of them in this tick.
        self.release_stores();
        if detail {
            self.mind_memory();
        }
        self.tick += 1;
        // Before anybody is answered: who has waited finds the figures of the tick that ended the wait.
        self.publish_stats();
        self.answer(asked);
        true
    }

    fn advance_clock(&mut self) {
        self.now_us = self.clock.next_us(self.now_us, self.since_tick.elapsed());
        self.since_tick = Stopwatch::start();
        let was_ahead = self.is_ahead;
        self.is_ahead = self.now_us - self.clock.now_us() > MOST_AHEAD_US;
        match (was_ahead, self.is_ahead) {
            (false, true) => {
                let ahead_s = (self.now_us - self.clock.now_us()) / 1_000_000;
                tracing::warn!(
                    ahead_s,
                    "the clock was set back: now() in views goes on half as fast until it has caught up"
                );
            }
            (true, false) => tracing::info!("the clock has caught up with now() in views"),
            _ => {}
        }
    }

    /// What has failed by the end of its tick was never made.
    fn settle_created(&mut self, created: &mut [Created]) {
        for made in created {
            if let (Ok(_), Some(reason)) = (&made.made, self.views.get(&made.oid).and_then(|v| v.failed.clone())) {
                let view = self.views[&made.oid].object.name.clone();
                self.remove(made.oid);
                made.made = Err(EngineError::ViewFailed { view, reason });
            }
            if made.made.is_err() {
                self.catalog = made.before.clone();
            }
        }
    }

    /// Lets slices close in stores that have been given all their history.
    fn release_stores(&mut self) {
        let mut released = Vec::new();
        for (&id, store) in &mut self.stores {
            let reading =
                self.sources.get(&store.source).is_some_and(|s| s.backfills.contains_key(&Consumer::Store(id)));
            if store.held && store.made_in < self.tick && !reading {
                store.held = false;
                store.released_in = self.tick;
                released.push(id);
            }
        }
        if let Some(keeping) = self.keeping.as_mut().filter(|_| !released.is_empty()) {
            keeping.note_change();
        }
        for store in released {
            self.broadcast(|| Command::Release { store });
        }
    }

    /// Tells views downstream from where on sessions in the workers may still change.
    fn note_oldest_sessions(&self, data: &TickData) {
        for view in self.views.values() {
            for (used, feed) in view.feeds.iter().zip(&view.flow.feeds) {
                let starts = data.oldest_sessions.get(&used.store).filter(|starts| starts.len() == self.workers);
                if let (Some(oldest), Some(start_us)) = (&feed.oldest, starts.and_then(|starts| starts.iter().min())) {
                    oldest.set(*start_us);
                }
            }
        }
    }

    /// Tells stores what temporal filters have let go for good: of a store that no view reads without one, nor with a retention.
    fn tell_floors(&mut self) {
        let mut floors: HashMap<StoreId, Vec<Option<i64>>> = HashMap::new();
        for view in self.views.values_mut() {
            for (used, feed) in view.feeds.iter_mut().zip(&view.flow.feeds) {
                used.floor_us = floor_us(&feed.floors, self.now_us, &self.times);
                let size_us = feed.view.window.map_or(0, |window| window.size_us);
                let alone = view.plan.retention_us.is_none();
                let slices_us = used.floor_us.filter(|_| alone).map(|us| us.saturating_sub(size_us));
                floors.entry(used.store).or_default().push(slices_us);
            }
        }
        for (id, floors) in floors {
            let Some(store) = self.stores.get_mut(&id) else { continue };
            let floor_us = floors.into_iter().collect::<Option<Vec<i64>>>().and_then(|all| all.into_iter().min());
            let width_us = store.feed.layout.grid.map_or(1, |grid| grid.width_us);
            let is_told = match (floor_us, store.floor_us) {
                (Some(now), Some(told)) => now < told.saturating_add(width_us),
                (now, told) => now == told,
            };
            if !is_told {
                store.floor_us = floor_us;
                self.broadcast(|| Command::Floor { store: id, floor_us });
            }
        }
    }

    pub(super) fn step_tables(&mut self) {
        for (&oid, table) in &self.tables {
            if let Some(watermark_us) = table.watermark_us() {
                self.times.insert(oid, SourceTime::of_table(watermark_us));
            }
        }
    }

    fn step_view(&mut self, oid: Oid, data: &mut TickData) {
        let Some(mut view) = self.views.remove(&oid) else { return };
        if view.failed.is_none() {
            let watch = Stopwatch::start();
            match self.try_step(&mut view, data) {
                Ok(deltas) => {
                    view.rows_out += deltas.iter().map(|d| d.num_rows() as u64).sum::<u64>();
                    data.outputs.insert(oid, deltas);
                }
                Err(error) => fail(&mut view, &error.to_string()),
            }
            view.step_us += watch.elapsed().as_micros() as u64;
        }
        self.views.insert(oid, view);
    }

    fn try_step(&mut self, view: &mut View, data: &mut TickData) -> Result<Vec<Delta>, EngineError> {
        let mut objects: HashMap<Oid, Vec<Delta>> = HashMap::new();
        for node in &view.flow.tail {
            for input in &node.inputs {
                let Input::Object(upstream) = *input else { continue };
                if let Some(failed) = self.views.get(&upstream).and_then(|v| v.failed.as_ref()) {
                    let name = &self.views[&upstream].object.name;
                    return Err(EngineError::ViewFailed { view: name.clone(), reason: failed.clone() });
                }
                if objects.contains_key(&upstream) {
                    continue;
                }
                let deltas = if view.made_in == self.tick {
                    let rows = self.content(upstream, data)?;
                    rows.into_iter().map(Delta::inserts).collect()
                } else {
                    data.outputs.get(&upstream).cloned().unwrap_or_default()
                };
                objects.insert(upstream, deltas);
            }
        }
        let nowhere = self.is_held(view);
        let times: &dyn Times = if nowhere { &Nowhere } else { &self.times };
        let regrouped = view.follow_regrouped(data, times)?;
        let feeds = &view.feeds;
        let passes = &view.passes;
        let external = |input: Input| -> Vec<Delta> {
            match input {
                Input::Feed(i) => match regrouped.get(&i) {
                    Some(delta) => vec![delta.clone()],
                    None => feeds[i].edge.and_then(|edge| data.edges.get(&edge)).cloned().unwrap_or_default(),
                },
                Input::Pass(i) => data.passes.get(&passes[i]).cloned().unwrap_or_default(),
                Input::Object(oid) => objects.get(&oid).cloned().unwrap_or_default(),
                Input::Node(_) => Vec::new(),
            }
        };
        let mut outputs = view.tail.step(&external, times, self.now_us, view.plan.retention_us)?;
        let deltas = match view.flow.last {
            Input::Node(node) => vec![outputs.swap_remove(node)],
            other => external(other),
        };
        let deltas: Vec<Delta> = deltas.into_iter().filter(|d| !d.is_empty()).collect();
        if let Some(arrangement) = &mut view.arrangement {
            for delta in &deltas {
                arrangement.apply(delta)?;
            }
        }
        if view.tail.emits {
            view.forget(times)?;
        }
        Ok(deltas)
    }

    /// Slices under a view must not close while some of its history is still to come.
    pub(super) fn is_held(&self, view: &View) -> bool {
        let own = view
            .passes
            .iter()
            .any(|&pass| self.sources.values().any(|s| s.backfills.contains_key(&Consumer::Pass(pass))))
            || view.feeds.iter().any(|f| self.stores.get(&f.store).is_some_and(|s| s.held));
        own || view.object.depends_on.iter().any(|oid| self.views.get(oid).is_some_and(|v| self.is_held(v)))
    }

    /// All rows of a table or view as of this tick.
    fn content(&mut self, oid: Oid, data: &TickData) -> Result<Vec<RecordBatch>, EngineError> {
        if let Some(table) = self.tables.get_mut(&oid) {
            return Ok(table.state.snapshot().batches(None).map_err(crate::exec::ExecError::from)?);
        }
        self.begin_changes(oid)?;
        let times = self.times_of(oid);
        let Some(view) = self.views.get_mut(&oid) else { return Ok(Vec::new()) };
        super::version::content(view, data, &times, self.workers)
    }

    /// The changes of a view that is read from an aggregation of its tail are wanted from the next tick on.
    pub fn begin_changes(&mut self, oid: Oid) -> Result<(), EngineError> {
        let times = self.times_of(oid);
        let Some(view) = self.views.get_mut(&oid) else { return Ok(()) };
        if let Output::Aggregate { node, .. } = view.flow.output
            && !view.tail.gives_changes(node)
        {
            view.tail.begin_changes(node, &times, view.plan.retention_us)?;
        }
        Ok(())
    }

    /// Event times as the view's changes go by them. While some of its history is still to come nothing is final: what is told as
    /// final later must not be in the content that somebody downstream begins with.
    fn times_of(&self, oid: Oid) -> HashMap<Oid, SourceTime> {
        let held = self.views.get(&oid).is_some_and(|view| self.is_held(view));
        if held { HashMap::new() } else { self.times.clone() }
    }

    /// The store that a reader of the view looks into.
    fn store_read_by(&self, oid: Oid) -> Option<StoreId> {
        let view = self.views.get(&oid)?;
        match &view.flow.output {
            Output::Feed { feed, .. } => Some(view.feeds.get(*feed)?.store),
            _ => None,
        }
    }

    /// Has the view passed the ends it was made with, and all its history come?
    fn note_current(&mut self, oid: Oid) {
        let Some(view) = self.views.get(&oid) else { return };
        if view.current {
            return;
        }
        let shows = view.tail.every().is_none_or(|every| every.last_us().is_some());
        if self.has_all_history(view) && view.made_in < self.tick && shows {
            let view = self.views.get_mut(&oid).expect("looked up above");
            view.current = true;
            tracing::info!(view = view.object.name, "current");
        }
    }

    pub(super) fn has_all_history(&self, view: &View) -> bool {
        let reached =
            view.targets.iter().all(|(source, ends)| ends.as_ref().is_some_and(|ends| self.has_reached(*source, ends)));
        let upstream = view.object.depends_on.iter().all(|up| self.views.get(up).is_none_or(|v| v.current));
        reached && upstream && !self.is_held(view)
    }

    fn has_reached(&self, source: Oid, ends: &[(i32, i64)]) -> bool {
        self.sources.get(&source).is_none_or(|source| source.has_reached(ends))
    }

    fn topic_seen(&mut self, seen: Seen) {
        let Some(source) = self.sources.get_mut(&seen.source) else { return };
        let topic = match seen.topic {
            Ok(topic) => topic,
            Err(error) => {
                source.topic_trouble = Some(error.to_string());
                if let ConnectorError::TopicMissing { .. } = error {
                    self.broadcast(|| Command::DoubtTopic { source: seen.source });
                }
                return;
            }
        };
        source.topic_trouble = None;
        if source.assigned.is_empty() {
            source.topic_id = topic.id;
        } else if topic::is_another(source.topic_id.as_deref(), topic.id.as_deref()) {
            // Its offsets mean nothing here.
            if !std::mem::replace(&mut source.made_anew, true) {
                tracing::warn!(source = source.object.name, "the topic was deleted, and another made under its name");
                self.broadcast(|| Command::LoseTopic { source: seen.source });
            }
            return;
        } else {
            source.topic_id = source.topic_id.take().or(topic.id);
        }
        source.freshness.look(seen.asked_us, topic.ends.clone());
        source.ends = topic.ends.clone();
        let mut by_worker: BTreeMap<usize, Vec<(i32, i64)>> = BTreeMap::new();
        for &(partition, start) in &topic.starts {
            if let std::collections::btree_map::Entry::Vacant(free) = source.assigned.entry(partition) {
                let worker = partition.unsigned_abs() as usize % self.workers;
                free.insert(worker);
                source.starts.insert(partition, start);
                by_worker.entry(worker).or_default().push((partition, start));
            }
        }
        let oid = seen.source;
        for (worker, partitions) in by_worker {
            let _ = self.commands[worker].send(Command::AddPartitions { source: oid, partitions });
        }
        let asked = seen.asked;
        self.broadcast(|| Command::Ends { source: oid, asked, ends: topic.ends.clone(), lows: topic.lows.clone() });
        for view in self.views.values_mut() {
            if let Some(target @ None) = view.targets.get_mut(&oid) {
                *target = Some(topic.ends.clone());
            }
        }
    }

    fn answer(&mut self, mut asked: Asked) {
        let data = &mut asked.data;
        for Created { made, reply, .. } in asked.created {
            match asked.created_alone {
                true => self.answer_when_added(made, reply),
                false => self.answer_when_kept(made, reply),
            }
        }
        for (outcome, reply) in asked.altered {
            let told = outcome.map(|pending| self.what_changed(pending));
            self.answer_when_kept(told, reply);
        }
        for reply in asked.changed {
            self.answer_when_kept(Ok(()), reply);
        }
        for written in asked.written {
            self.answer_write(written);
        }
        for (objects, allow_partial, reply) in asked.reads {
            let _ = reply.send(self.version(&objects, allow_partial, data).map(Arc::new));
        }
        self.answer_repairs(asked.repairs);
        for (basis, logs, reply) in asked.bases {
            let _ = reply.send(self.basis(basis, logs, data));
        }
        for (object, as_of, committed, reply) in asked.subscriptions {
            // Whoever does not wait for the answer any more is noticed at the next tick.
            let _ = reply.send(self.subscribe(object, as_of, committed, data));
        }
        for (what, reply) in asked.explained {
            let _ = reply.send(self.explain(&what));
        }
        let waits = std::mem::take(&mut self.waits);
        for mut wait in waits {
            if wait.reply.is_closed() {
                continue;
            }
            let failed = wait.ends.keys().filter_map(|oid| self.sources.get(oid)).find_map(|source| {
                let reason = source.partitions.values().find_map(|p| p.error.as_deref())?;
                Some(super::alter::source_failed(&source.object.name, reason))
            });
            let absorbed = wait.ends.iter().all(|(source, ends)| self.absorbed(*source, ends));
            if absorbed {
                self.pass_finals(&mut wait);
            }
            if absorbed && !wait.for_finals() {
                self.pass_emissions(&mut wait.views);
            }
            let reached = absorbed && !wait.for_finals() && wait.views.is_empty();
            if let Some(failed) = failed {
                let _ = wait.reply.send(Err(failed));
            } else if reached {
                let _ = wait.reply.send(Ok(()));
            } else {
                self.waits.push(wait);
            }
        }
    }

    /// Views of which somebody waits for an emission.
    pub(super) fn awaited_views(&self) -> BTreeSet<Oid> {
        self.waits.iter().flat_map(|wait| wait.views.iter().copied()).collect()
    }

    /// Every view over the source holds it up to these ends.
    fn absorbed(&self, source: Oid, ends: &[(i32, i64)]) -> bool {
        let no_history = self.sources.get(&source).is_none_or(|s| s.backfills.is_empty());
        let current =
            self.views.values().filter(|v| v.targets.contains_key(&source)).all(|v| v.current || v.failed.is_some());
        no_history && current && self.has_reached(source, ends)
    }
}
