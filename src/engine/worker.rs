//! A worker thread: reads its partitions, decides what counts, evaluates feeds, and owns the stores' parts for its buckets.
//!
//! Commands come over one channel, so that every worker sees them at the same place between ticks. At [`Command::EndTick`] it
//! exchanges rows with the others, merges what came, closes slices and reports.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::clock::{self, Stopwatch};
use super::decoding::{Attached, Consumer};
use super::edge::Edge;
use super::orders::{Begins, Command, EdgeId, PassId, Report};
use super::owners::{buckets_of, by_owner, holds_empty_key, select_raw};
use super::reader::{Out, SourceChange, SourceReader};
use super::reconcile::TellLogs;
use super::repair::Replacement;
use super::session_part::SessionPart;
use super::verdicts::DuplicateRow;
use crate::catalog::Oid;
use crate::exec::dedup::{AcrossPartitions, Place};
use crate::exec::exchange::{Batch, Body, Inbox, Message, StoreId, Transport};
use crate::exec::flow::{Feed, Pass};
use crate::exec::horizon::Horizon;
use crate::exec::law::SourceTime;
use crate::exec::slice_cache::SliceCache;
use crate::exec::slice_store::{SliceStore, StoreLayout, StoreRows};
use crate::exec::tail::{Times, shown};
use crate::exec::window_view::{Changes, Told, WindowView};
use crate::exec::{Delta, ExecError};

/// While nothing is to be read, a worker looks again after this long.
const IDLE_WAIT: Duration = Duration::from_millis(5);
/// A worker reads at most this much in a tick, so that what a tick merges is bounded.
pub(super) const MAX_TICK_BYTES: usize = 64 << 20;
/// A read that brought less has left nothing waiting.
const CAUGHT_UP_BYTES: usize = 256 << 10;
/// While there are current views, history comes in pieces of this size, so that the end of a tick waits for little,
const HISTORY_BYTES: usize = 128 << 10;
/// and rests so many times as long as a piece took; the longer while records for current views are waiting.
const HISTORY_RESTS: u32 = 2;
const HISTORY_RESTS_BUSY: u32 = 20;
/// Rows are aggregated before the exchange while that makes them at least this many times fewer.
const WORTH_AGGREGATING: usize = 2;
/// After it did not pay, this many ticks pass before it is tried again.
const TRY_AGAIN_TICKS: u32 = 50;

#[path = "worker_tick.rs"]
mod tick;

impl Times for HashMap<Oid, SourceTime> {
    fn watermark_us(&self, source: Oid) -> Option<i64> {
        self.get(&source)?.watermark_us
    }

    fn final_until_us(&self, source: Oid) -> Option<i64> {
        self.get(&source)?.final_until_us
    }

    fn shown_until_us(&self, source: Oid) -> Option<i64> {
        self.get(&source)?.shown_until_us()
    }
}

pub(super) struct Part {
    pub source: Oid,
    pub store: SliceStore,
    /// Before the exchange; none with one worker.
    before: Option<PreAggregate>,
    pub edges: Vec<Edge>,
    /// Still being given its history.
    pub held: bool,
    keep_us: Option<i64>,
    pub floor_us: Option<i64>,
    pub failed: bool,
    /// The tick in which rows last came.
    pub generation: u64,
}

struct PreAggregate {
    store: SliceStore,
    rows: usize,
    rests_ticks: u32,
}

/// Channels between the threads of one process.
pub(super) struct Channels {
    pub owners: Vec<Sender<Message>>,
}

impl Transport for Channels {
    fn send(&mut self, owner: usize, message: Message) {
        // An owner that has gone takes the process's state with it; the coordinator sees that and says so.
        let _ = self.owners[owner].send(message);
    }
}

pub(super) struct Worker {
    pub(super) index: usize,
    pub(super) workers: usize,
    epoch: u64,
    pub(super) tick: u64,
    commands: Receiver<Command>,
    reports: Sender<Report>,
    incoming: Receiver<Message>,
    inbox: Inbox,
    transport: Box<dyn Transport>,
    /// Messages sent to each owner in this tick.
    sent: Vec<u32>,
    pub(super) sources: BTreeMap<Oid, SourceReader>,
    pub(super) stores: HashMap<StoreId, Part>,
    pub(super) sessions: BTreeMap<StoreId, SessionPart>,
    passes: Vec<(PassId, Delta)>,
    pub(super) times: HashMap<Oid, SourceTime>,
    /// By source, up to where it was settled when the last checkpoint was made.
    pub(super) kept_until: HashMap<Oid, i64>,
    /// The tick in which a source's law was altered: what was settled before may not be any more.
    altered_in: HashMap<Oid, u64>,
    /// Sources of which nothing is final before a checkpoint holds it.
    final_once_kept: BTreeSet<Oid>,
    bytes_this_tick: usize,
    busy: Duration,
    /// Nothing is read.
    paused: bool,
    most_tick_bytes: usize,
    most_history_bytes: usize,
    /// The last tick in which history was read, and how much.
    history_of_tick: (u64, usize),
    /// State is kept on disk, so that parts note what changes.
    pub(super) lasts: bool,
    pub(super) cache: Arc<SliceCache>,
    /// The engine cannot go on.
    pub(super) fatal: Option<String>,
    /// When the last piece of history had been read, and how long that took.
    last_history: (Stopwatch, Duration),
    pub(super) failures: Vec<(Consumer, String)>,
    /// Of the present tick.
    round: u8,
    /// By source, for the ids of this worker's buckets.
    pub(super) deduplications: BTreeMap<Oid, AcrossPartitions>,
    pub(super) duplicates: Vec<DuplicateRow>,
    pub(super) kept_after_all: Vec<(Oid, Place)>,
    pub(super) asked_logs: Vec<TellLogs>,
    pub(super) replacements: Vec<Replacement>,
}

/// Which of the workers one is, and what it shares with them.
pub(super) struct Seat {
    pub index: usize,
    pub workers: usize,
    pub epoch: u64,
    pub cache: Arc<SliceCache>,
    /// State is kept, so that what changes is noted.
    pub lasts: bool,
}

impl Worker {
    pub fn new(
        seat: Seat,
        commands: Receiver<Command>,
        reports: Sender<Report>,
        incoming: Receiver<Message>,
        transport: Box<dyn Transport>,
    ) -> Self {
        let Seat { index, workers, epoch, cache, lasts } = seat;
        Worker {
            index,
            workers,
            epoch,
            tick: 1,
            commands,
            reports,
            incoming,
            inbox: Inbox::new(workers as u32, epoch, 1),
            transport,
            sent: vec![0; workers],
            sources: BTreeMap::new(),
            stores: HashMap::new(),
            sessions: BTreeMap::new(),
            passes: Vec::new(),
            times: HashMap::new(),
            kept_until: HashMap::new(),
            altered_in: HashMap::new(),
            final_once_kept: BTreeSet::new(),
            bytes_this_tick: 0,
            busy: Duration::ZERO,
            paused: false,
            most_tick_bytes: MAX_TICK_BYTES,
            most_history_bytes: MAX_TICK_BYTES,
            history_of_tick: (0, 0),
            lasts,
            cache,
            fatal: None,
            last_history: (Stopwatch::start(), Duration::ZERO),
            failures: Vec::new(),
            round: 0,
            deduplications: BTreeMap::new(),
            duplicates: Vec::new(),
            kept_after_all: Vec::new(),
            asked_logs: Vec::new(),
            replacements: Vec::new(),
        }
    }

    /// Runs until [`Command::Stop`] or until the coordinator is gone.
    pub fn run(mut self) {
        loop {
            while let Ok(command) = self.commands.try_recv() {
                if !self.handle(command) {
                    return;
                }
            }
            let may_read = !self.paused && self.bytes_this_tick < self.most_tick_bytes;
            if may_read && self.read() {
                continue;
            }
            let next = if self.sources.is_empty() || !may_read {
                self.commands.recv().map_err(|_| ())
            } else {
                match self.commands.recv_timeout(IDLE_WAIT) {
                    Ok(command) => Ok(command),
                    Err(crossbeam_channel::RecvTimeoutError::Timeout) => continue,
                    Err(crossbeam_channel::RecvTimeoutError::Disconnected) => Err(()),
                }
            };
            match next {
                Ok(command) => {
                    if !self.handle(command) {
                        return;
                    }
                }
                Err(()) => return,
            }
        }
    }

    /// False to stop.
    fn handle(&mut self, command: Command) -> bool {
        match command {
            Command::Stop => return false,
            Command::EndTick { tick, snapshots, detail, asked, save } => {
                return self.end_tick(tick, &snapshots, detail, &asked, save.as_deref());
            }
            Command::Pause { reading } => self.paused = !reading,
            Command::TickBytes { most, most_history } => {
                (self.most_tick_bytes, self.most_history_bytes) = (most, most_history);
            }
            Command::RestoreSource { source, time, floor_us, topic_known, saved } => {
                self.restore_source(source, time, floor_us, topic_known, &saved);
            }
            Command::FinalOnceKept { source, waits: true } => drop(self.final_once_kept.insert(source)),
            Command::FinalOnceKept { source, waits: false } => drop(self.final_once_kept.remove(&source)),
            Command::Kept { tick, settled } => self.note_kept(tick, &settled),
            Command::DoubtTopic { source } => {
                self.sources.entry(source).and_modify(SourceReader::doubt_topic);
            }
            Command::LoseTopic { source } => {
                self.sources.entry(source).and_modify(SourceReader::lose_topic);
            }
            Command::TellLogs(asked) => self.asked_logs.push(asked),
            Command::Hold { source, on } => {
                self.sources.entry(source).and_modify(|reader| reader.held = on);
            }
            Command::Replace(replacement) => self.replacements.push(replacement),
            Command::AddSource(setup) => {
                let source = setup.source;
                self.add_deduplication(&setup);
                self.sources.insert(source, SourceReader::new(*setup, self.lasts));
            }
            Command::AddPartitions { source, partitions } => {
                if let Some(reader) = self.sources.get_mut(&source) {
                    let watermark_us = self.times.get(&source).and_then(|time| time.watermark_us);
                    reader.add_partitions(&partitions, watermark_us);
                }
            }
            Command::Ends { source, asked, ends, lows } => {
                if let Some(reader) = self.sources.get_mut(&source) {
                    reader.topic_seen(asked);
                    reader.set_ends(&ends, &lows, clock::now_us());
                }
            }
            Command::AlterSource { source, change } => self.alter_source(source, change),
            Command::AddStore { store, source, layout, saved: None } => self.add_store(store, source, layout),
            Command::AddStore { store, source, layout, saved: Some(saved) } => {
                self.restore_store(store, source, &layout, &saved);
            }
            Command::Attach { source, attached, has_history } => {
                let consumer = attached.consumer();
                let begun = self.sources.get_mut(&source).map(|reader| match has_history {
                    true => reader.attach_whole(attached),
                    false => reader.attach(attached),
                });
                if let Some(Err(error)) = begun {
                    self.fail(consumer, &error);
                }
            }
            Command::Release { store } => {
                self.with_part(store, |part| part.held = false);
                self.sessions.entry(store).and_modify(|part| part.held = false);
            }
            Command::Keep { store, keep_us } => {
                self.with_part(store, |part| part.keep_us = keep_us);
                self.sessions.entry(store).and_modify(|part| part.keep_us = keep_us);
            }
            Command::Floor { store, floor_us } => {
                self.with_part(store, |part| part.floor_us = floor_us);
                self.sessions.entry(store).and_modify(|part| part.floor_us = floor_us);
            }
            Command::AddEdge { edge, store, view, begins, .. } if self.sessions.contains_key(&store) => {
                let part = self.sessions.get_mut(&store).expect("just found");
                let added = match begins {
                    Begins::Resumed => part.resume_edge(edge, view),
                    begins => part.add_edge(edge, view, begins == Begins::WithAll),
                };
                if let Err(error) = added {
                    self.fail(Consumer::Store(store), &error);
                }
            }
            Command::AddEdge { edge, store, view, retention_us, begins, waits } => {
                if let Err(error) = self.add_edge(edge, store, view, retention_us, begins, waits) {
                    self.fail(Consumer::Store(store), &error);
                }
            }
            Command::DropEdge { edge, store } => {
                self.with_part(store, |part| part.edges.retain(|e| e.id != edge));
                self.sessions.entry(store).and_modify(|part| part.drop_edge(edge));
            }
            Command::DropStore { source, store } => {
                self.stores.remove(&store);
                self.sessions.remove(&store);
                self.detach(source, Consumer::Store(store));
            }
            Command::DropPass { source, pass } => self.detach(source, Consumer::Pass(pass)),
            Command::DropSource { source } => {
                self.sources.remove(&source);
                self.deduplications.remove(&source);
                self.times.remove(&source);
                self.kept_until.remove(&source);
                self.altered_in.remove(&source);
                self.final_once_kept.remove(&source);
            }
        }
        true
    }

    fn add_store(&mut self, id: StoreId, source: Oid, layout: Arc<StoreLayout>) {
        if layout.sessions.is_some() {
            match SessionPart::new(source, layout) {
                Ok(mut part) => {
                    if self.lasts {
                        part.track_saves(buckets_of(self.index, self.workers));
                    }
                    self.sessions.insert(id, part);
                }
                Err(error) => self.fail(Consumer::Store(id), &error),
            }
            return;
        }
        let made = SliceStore::with_cache(layout.clone(), self.cache.clone()).and_then(|mut store| {
            if self.lasts {
                store.track_saves(buckets_of(self.index, self.workers));
            }
            self.add_part(id, source, layout, store)
        });
        if let Err(error) = made {
            self.fail(Consumer::Store(id), &error);
        }
    }

    pub(super) fn add_part(
        &mut self,
        id: StoreId,
        source: Oid,
        layout: Arc<StoreLayout>,
        store: SliceStore,
    ) -> Result<(), ExecError> {
        let before = match self.workers {
            1 => None,
            _ => Some(PreAggregate { store: SliceStore::new(layout)?, rows: 0, rests_ticks: 0 }),
        };
        let part = Part {
            source,
            store,
            before,
            edges: Vec::new(),
            held: true,
            keep_us: None,
            floor_us: None,
            failed: false,
            generation: 0,
        };
        self.stores.insert(id, part);
        Ok(())
    }

    fn add_edge(
        &mut self,
        id: EdgeId,
        store: StoreId,
        view: WindowView,
        retention_us: Option<i64>,
        begins: Begins,
        waits: bool,
    ) -> Result<(), ExecError> {
        let size_us = view.window.map_or(0, |window| window.size_us);
        let mut changes = Changes::new(self.own_view(view))?;
        let Some(part) = self.stores.get_mut(&store) else { return Ok(()) };
        part.store.track_changes();
        if begins == Begins::Resumed {
            let floor_us = part.floor_us.map(|us| us.saturating_add(size_us));
            let shown = shown(Some(&Horizon::Source(part.source)), &self.times, retention_us).above(floor_us);
            part.store.take_dirty();
            changes.resume(&mut part.store, &shown, Told::all(&shown))?;
        }
        let is_new = begins != Begins::Resumed;
        let tells_all = begins == Begins::WithAll;
        let dirty = Default::default();
        part.edges.push(Edge { id, changes, retention_us, size_us, is_new, tells_all, waits, dirty });
        Ok(())
    }

    /// An aggregation without GROUP BY shows its row where the empty key lives.
    fn own_view(&self, view: WindowView) -> WindowView {
        let shows_empty = view.shows_empty && holds_empty_key(self.index, self.workers);
        WindowView { shows_empty, ..view }
    }

    pub(super) fn with_part(&mut self, store: StoreId, change: impl FnOnce(&mut Part)) {
        if let Some(part) = self.stores.get_mut(&store) {
            change(part);
        }
    }

    fn detach(&mut self, source: Oid, consumer: Consumer) {
        if let Some(reader) = self.sources.get_mut(&source) {
            reader.detach(consumer);
        }
    }

    pub(super) fn fail(&mut self, consumer: Consumer, error: &ExecError) {
        if let Consumer::Store(store) = consumer {
            let slices = self.stores.get_mut(&store).map(|part| &mut part.failed);
            let failed = slices.or_else(|| self.sessions.get_mut(&store).map(|part| &mut part.failed));
            if failed.is_some_and(|failed| std::mem::replace(failed, true)) {
                return;
            }
        }
        self.failures.push((consumer, error.to_string()));
    }

    /// What is final by now is so in every worker alike: commands come to all between the same ticks.
    fn alter_source(&mut self, source: Oid, change: SourceChange) {
        let Some(reader) = self.sources.get_mut(&source) else { return };
        let time = self.times.entry(source).or_default();
        if let SourceChange::Watermark { .. } = change {
            time.take_back();
        }
        time.unsettle();
        self.altered_in.insert(source, self.tick);
        self.kept_until.remove(&source);
        reader.alter(change, time.final_until_us);
    }

    /// A checkpoint of this tick is committed, in which sources were settled so far.
    fn note_kept(&mut self, tick: u64, settled: &[(Oid, i64)]) {
        let since = |source: &Oid| self.altered_in.get(source).is_none_or(|altered| tick >= *altered);
        self.kept_until.extend(settled.iter().copied().filter(|(source, _)| since(source)));
    }

    /// Reads once from every source; false if nothing came.
    fn read(&mut self) -> bool {
        let now_us = clock::now_us();
        let watch = Stopwatch::start();
        let mut out = Vec::new();
        let bytes: usize = self.sources.values_mut().map(|reader| reader.read(now_us, &mut out)).sum();
        self.take_in(out);
        self.bytes_this_tick += bytes;
        if bytes > 0 {
            self.busy += watch.elapsed();
        }
        bytes + self.read_history(bytes) > 0
    }

    /// History for consumers that came later. While others are current it has a third of the time that they leave, and where they
    /// leave none so little that it moves at all.
    fn read_history(&mut self, read_before: usize) -> usize {
        if !self.sources.values().any(SourceReader::reads_history) {
            return 0;
        }
        let alone = !self.sources.values().any(SourceReader::has_whole_consumers);
        let rests = if read_before < CAUGHT_UP_BYTES { HISTORY_RESTS } else { HISTORY_RESTS_BUSY };
        let (since, took) = self.last_history;
        if !alone && since.elapsed() < took * rests {
            return 0;
        }
        let watch = Stopwatch::start();
        if self.history_of_tick.0 != self.tick {
            self.history_of_tick = (self.tick, 0);
        }
        let left = self.most_history_bytes.saturating_sub(self.history_of_tick.1);
        if left == 0 {
            return 0;
        }
        let max_bytes = if alone { super::reader::POLL_BYTES } else { HISTORY_BYTES }.min(left);
        let mut out = Vec::new();
        let bytes: usize = self.sources.values_mut().map(|reader| reader.read_history(max_bytes, &mut out)).sum();
        self.take_in(out);
        self.bytes_this_tick += bytes;
        self.history_of_tick.1 += bytes;
        if bytes > 0 {
            self.last_history = (Stopwatch::start(), watch.elapsed());
        }
        bytes
    }

    pub(super) fn take_in(&mut self, outcome: Out) {
        for (consumer, attached) in outcome {
            let result = match (consumer, attached) {
                (Consumer::Store(store), Ok(ReadRows::Store(rows))) => self.route(store, rows),
                (Consumer::Pass(pass), Ok(ReadRows::Pass(delta))) => {
                    self.passes.push((pass, delta));
                    Ok(())
                }
                (_, Ok(_)) => Ok(()),
                (_, Err(error)) => Err(error),
            };
            if let Err(error) = result {
                self.fail(consumer, &error);
            }
        }
    }

    /// Brings rows to the owners of their keys, aggregated first where that pays.
    fn route(&mut self, id: StoreId, rows: StoreRows) -> Result<(), ExecError> {
        if let Some(part) = self.sessions.get(&id) {
            let wanted = !part.failed && rows.rows > 0;
            return if wanted { self.send_raw(id, &rows) } else { Ok(()) };
        }
        let Some(part) = self.stores.get_mut(&id) else { return Ok(()) };
        if part.failed || rows.rows == 0 {
            return Ok(());
        }
        match &mut part.before {
            None => {
                part.generation = self.tick;
                part.store.apply(&rows)
            }
            // What is taken back may cancel in number and not in value: it goes as it is.
            Some(before) if before.rests_ticks == 0 && rows.weights.is_none() => {
                before.rows += rows.rows;
                before.store.apply(&rows)
            }
            Some(_) => self.send_raw(id, &rows),
        }
    }

    /// Brings rows as they are to the owners of their keys.
    fn send_raw(&mut self, id: StoreId, rows: &StoreRows) -> Result<(), ExecError> {
        if self.workers == 1 {
            return self.accept(id, &Batch::Raw(rows.clone()));
        }
        for (owner, selected) in by_owner(&rows.keys, rows.rows, self.workers) {
            let Some(selected) = selected else { continue };
            let batch = Batch::Raw(select_raw(rows, &selected)?);
            if owner == self.index {
                self.accept(id, &batch)?;
            } else {
                self.send(owner, id, batch);
            }
        }
        Ok(())
    }

    /// Rows for this worker's own part of a store.
    fn accept(&mut self, id: StoreId, batch: &Batch) -> Result<(), ExecError> {
        if let Some(part) = self.sessions.get_mut(&id) {
            part.generation = self.tick;
            return part.accept(batch);
        }
        self.with_store(id, |store| match batch {
            Batch::Raw(rows) => store.apply(rows),
            Batch::Partial(rows) => store.merge(rows),
        })
    }

    fn with_store(
        &mut self,
        id: StoreId,
        add: impl FnOnce(&mut SliceStore) -> Result<(), ExecError>,
    ) -> Result<(), ExecError> {
        match self.stores.get_mut(&id) {
            Some(part) => {
                part.generation = self.tick;
                add(&mut part.store)
            }
            None => Ok(()),
        }
    }

    fn send(&mut self, owner: usize, store: StoreId, batch: Batch) {
        self.send_body(owner, Body::Rows { store, buckets: buckets_of(owner, self.workers), batch });
    }

    pub(super) fn send_body(&mut self, owner: usize, body: Body) {
        let number = self.sent[owner];
        self.sent[owner] += 1;
        self.transport.send(owner, self.message(number, body));
    }

    fn message(&self, number: u32, body: Body) -> Message {
        Message { sender: self.index as u32, epoch: self.epoch, tick: self.tick, round: self.round, number, body }
    }
}

/// The earlier of two bounds, or the one that there is.
pub(super) fn least(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    a.into_iter().chain(b).min()
}

/// Rows for a consumer.
pub(super) enum ReadRows {
    Store(StoreRows),
    Pass(Delta),
}

/// What [`Command::Attach`] attaches.
pub(super) fn attached_feed(store: StoreId, feed: &Feed) -> Attached {
    Attached::Feed(store, Arc::new(feed.clone()))
}

pub(super) fn attached_pass(pass: PassId, plan: &Pass) -> Attached {
    Attached::Pass(pass, Arc::new(plan.clone()))
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
