//! What the coordinator holds: sources, stores and views, and what happens to them in a tick.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;

use super::alter::{Change, Gap};
use super::backfill::HistoryProgress;
use super::checkpoint::PartSave;
use super::decoding::Consumer;
use super::error::EngineError;
use super::freshness::Freshness;
use super::orders::{EdgeId, PassId, StoreReport};
use super::reader::SourceSetup;
use super::stats::{Ids, PartitionStats};
use super::topic::TopicWatch;
use crate::catalog::{Object, Oid};
use crate::exec::Delta;
use crate::exec::arrangement::Arrangement;
use crate::exec::exchange::StoreId;
use crate::exec::feed::Shortfall;
use crate::exec::flow::{Feed, Flow, Input};
use crate::exec::horizon::Horizon;
use crate::exec::regroup::{Regrouped, Regrouping};
use crate::exec::regroup_changes::RegroupedChanges;
use crate::exec::session_batch::SessionSnapshot;
use crate::exec::store_snapshot::StoreSnapshot;
use crate::exec::tail::{Tail, Times, shown};
use crate::exec::window_view::WindowView;
use crate::planner::stream_plan::StreamPlan;

pub(super) struct Source {
    pub object: Arc<Object>,
    pub setup: SourceSetup,
    pub connector: String,
    pub starts: BTreeMap<i32, i64>,
    /// Of the topic whose offsets count.
    pub topic_id: Option<String>,
    /// Another topic has its name now: nothing is read until somebody says from where on.
    pub made_anew: bool,
    /// There while some view reads the source.
    pub watch: Option<TopicWatch>,
    pub begun: bool,
    pub assigned: BTreeMap<i32, usize>,
    pub partitions: BTreeMap<i32, PartitionStats>,
    /// By worker, why it cannot read.
    pub troubles: BTreeMap<usize, Option<String>>,
    pub topic_trouble: Option<String>,
    /// By worker, columns that no record has had.
    pub unseen_by: BTreeMap<usize, Vec<String>>,
    /// By worker.
    pub ids: BTreeMap<usize, Ids>,
    /// Consumers whose history is still read.
    pub backfills: HashMap<Consumer, Vec<HistoryProgress>>,
    /// The ends as of the last look at the topic.
    pub ends: Vec<(i32, i64)>,
    pub freshness: Freshness,
    /// Records that were never read, as reading went on elsewhere.
    pub gaps: Vec<Gap>,
    /// What ALTER SOURCE has changed of the law.
    pub changes: Vec<Change>,
    /// A late row could not be put into the table that it was to go to.
    pub late_into_trouble: Option<String>,
}

impl Source {
    /// Columns that no worker has seen.
    pub fn unseen_columns(&self) -> Vec<String> {
        let mut workers = self.unseen_by.values();
        let mut unseen = workers.next().cloned().unwrap_or_default();
        workers.for_each(|other| unseen.retain(|column| other.contains(column)));
        unseen
    }
}

pub(super) struct Store {
    pub source: Oid,
    pub feed: Arc<Feed>,
    /// Views that read it, with what each must keep by event time behind the watermark.
    pub users: BTreeMap<Oid, Option<i64>>,
    pub held: bool,
    /// The tick at whose end it was no longer held: its parts know from the next one on.
    pub released_in: u64,
    pub made_in: u64,
    pub reports: BTreeMap<usize, StoreReport>,
    /// Rows of earlier event times may be missing: the log no longer had them.
    pub complete_from_us: Option<i64>,
    /// The last [`Command::Floor`].
    pub floor_us: Option<i64>,
    /// The view it was made for and those that this was over, which may have been dropped since; and which of its feeds.
    pub made_by: (Vec<Arc<Object>>, usize),
    /// Before the process began.
    pub short_before: Shortfall,
}

pub(super) struct FeedUse {
    pub store: StoreId,
    pub view: WindowView,
    pub edge: Option<EdgeId>,
    /// The store holds finer groups than the view's.
    pub regrouped: Option<RegroupedUse>,
    /// A temporal filter above has taken back the windows that end at or before this.
    pub floor_us: Option<i64>,
}

pub(super) struct RegroupedUse {
    pub by: Arc<Regrouping>,
    /// For readers, on their threads: a tick does not wait for it.
    pub reader: Arc<Mutex<Regrouped>>,
    pub edge: Option<RegroupedEdge>,
}

/// A change stream of a regrouped view. Its groups are made of all workers' keys, so it is followed here.
pub(super) struct RegroupedEdge {
    pub regrouped: Regrouped,
    pub changes: RegroupedChanges,
    /// What the first step says is for nobody: who begins there is given the content.
    pub skips_first: bool,
}

pub(super) struct View {
    pub object: Arc<Object>,
    pub plan: StreamPlan,
    pub flow: Flow,
    pub tail: Tail,
    pub arrangement: Option<Arrangement>,
    pub feeds: Vec<FeedUse>,
    pub passes: Vec<PassId>,
    /// By worker, what could not be taken for the passes.
    pub passes_short: BTreeMap<(usize, PassId), Shortfall>,
    /// Rows of earlier event times may be missing from the passes: the log no longer had them.
    pub complete_from_us: Option<i64>,
    pub made_in: u64,
    /// By source: the ends it must reach to be current; `None` until they are known.
    pub targets: BTreeMap<Oid, Option<Vec<(i32, i64)>>>,
    pub current: bool,
    /// When it began to read history, and the records of it that had been read by then.
    pub began: Option<(i64, i64)>,
    pub failed: Option<String>,
    /// The changes of its feeds are worked out only in ticks that ask for them.
    pub waits: bool,
    /// This tick does.
    pub is_asked: bool,
    /// EMIT EVERY with a retention: windows that end at or before this are not shown any more.
    pub forgotten_us: Option<i64>,
    /// Of the passes, before the process began.
    pub short_before: Shortfall,
    /// The time its last step took and the rows it gave, for EXPLAIN ANALYZE.
    pub step_us: u64,
    pub rows_out: u64,
}

impl View {
    /// The stores from which the changes of regrouped feeds are worked out in this tick.
    pub fn followed_stores(&self) -> impl Iterator<Item = StoreId> {
        self.feeds.iter().filter_map(|feed| {
            let edge = feed.regrouped.as_ref()?.edge.as_ref()?;
            (!self.waits || self.is_asked || edge.skips_first).then_some(feed.store)
        })
    }

    /// Tables and views whose changes it takes.
    pub fn upstream(&self) -> impl Iterator<Item = Oid> {
        self.flow.tail.iter().flat_map(|node| &node.inputs).filter_map(|input| match input {
            Input::Object(oid) => Some(*oid),
            _ => None,
        })
    }

    /// The changes of regrouped feeds that somebody follows, by feed.
    pub fn follow_regrouped(
        &mut self,
        data: &TickData,
        times: &dyn Times,
    ) -> Result<HashMap<usize, Delta>, EngineError> {
        let mut deltas = HashMap::new();
        for (i, feed) in self.feeds.iter_mut().enumerate() {
            let Some(edge) = feed.regrouped.as_mut().and_then(|r| r.edge.as_mut()) else { continue };
            if self.waits && !self.is_asked && !edge.skips_first {
                continue;
            }
            let parts = data.snapshots.get(&feed.store).map(Vec::as_slice).unwrap_or_default();
            let parts: Vec<StoreSnapshot> = parts.iter().map(|(_, part)| part.clone()).collect();
            let source = Horizon::Source(self.flow.feeds[i].source);
            let shown = shown(Some(&source), times, self.plan.retention_us).above(feed.floor_us);
            if std::mem::take(&mut edge.skips_first) {
                edge.changes.resume(&mut edge.regrouped, &parts, &shown)?;
            } else {
                deltas.insert(i, edge.changes.step(&mut edge.regrouped, &parts, &shown)?);
            }
        }
        Ok(deltas)
    }
}

/// Everything that happened in a tick, while it is being put together.
#[derive(Default)]
pub(super) struct TickData {
    pub edges: HashMap<EdgeId, Vec<Delta>>,
    pub passes: HashMap<PassId, Vec<Delta>>,
    /// By store, the parts in the order of workers.
    pub snapshots: HashMap<StoreId, Vec<(usize, StoreSnapshot)>>,
    /// By store, a part of each worker.
    pub sessions: HashMap<StoreId, Vec<SessionSnapshot>>,
    /// By store, the start of each worker's oldest session that is not final.
    pub oldest_sessions: HashMap<StoreId, Vec<i64>>,
    /// What tables and views changed.
    pub outputs: HashMap<Oid, Vec<Delta>>,
    /// What workers save.
    pub saved: Vec<PartSave>,
}

/// Of what is held: no event time has come yet.
pub(super) struct Nowhere;

impl Times for Nowhere {
    fn watermark_us(&self, _: Oid) -> Option<i64> {
        None
    }

    fn final_until_us(&self, _: Oid) -> Option<i64> {
        None
    }
}

impl Source {
    /// Have its workers read up to these ends?
    pub fn has_reached(&self, ends: &[(i32, i64)]) -> bool {
        ends.iter().all(|(partition, end)| {
            self.partitions.get(partition).map_or(*end <= start_of(self, *partition), |p| p.position >= *end)
        })
    }
}

pub(super) fn start_of(source: &Source, partition: i32) -> i64 {
    source.starts.get(&partition).copied().unwrap_or(0)
}

pub(super) fn fail(view: &mut View, reason: &str) {
    if view.failed.is_none() {
        tracing::error!(view = view.object.name, reason, "view failed");
        view.failed = Some(reason.to_string());
    }
}
