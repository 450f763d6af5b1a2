//! What the coordinator tells workers, and what they say at the end of a tick.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::backfill::HistoryProgress;
use super::checkpoint::{PartSave, SaveOrder, SavedSource, SavedStore};
use super::clock::Stopwatch;
use super::decoding::{Attached, Consumer};
use super::reader::{Altered, SourceChange, SourceSetup};
use super::reconcile::TellLogs;
use super::repair::Replacement;
use super::stats::{Ids, PartitionStats};
use super::verdicts::Verdicts;
use crate::catalog::Oid;
use crate::exec::Delta;
use crate::exec::exchange::StoreId;
use crate::exec::feed::Shortfall;
use crate::exec::law::SourceTime;
use crate::exec::panes_in_files::KeptPanes;
use crate::exec::session_batch::SessionSnapshot;
use crate::exec::slice_store::StoreLayout;
use crate::exec::store_snapshot::StoreSnapshot;
use crate::exec::window_view::WindowView;

/// Names the change stream of one view's feed.
pub type EdgeId = u64;
/// Names a pass.
pub type PassId = u64;

pub(super) enum Command {
    AddSource(Box<SourceSetup>),
    /// Partitions of a source that this worker is to read, from these offsets.
    AddPartitions {
        source: Oid,
        partitions: Vec<(i32, i64)>,
    },
    /// Where the partitions end now, and that the topic is the same.
    Ends {
        source: Oid,
        /// Since the brokers were asked.
        asked: Stopwatch,
        ends: Vec<(i32, i64)>,
        /// The first offsets that they still hold.
        lows: Vec<(i32, i64)>,
    },
    AlterSource {
        source: Oid,
        change: SourceChange,
    },
    /// Partitions as they stood at a checkpoint: each worker takes its own.
    RestoreSource {
        source: Oid,
        time: SourceTime,
        floor_us: Option<i64>,
        /// Nothing is read until it is known that the topic is still the same.
        topic_known: bool,
        saved: Arc<SavedSource>,
    },
    /// Whether what is settled of a source is final only once a checkpoint holds it.
    FinalOnceKept {
        source: Oid,
        waits: bool,
    },
    /// Up to where sources were settled in this tick, of which a checkpoint is committed now.
    Kept {
        tick: u64,
        settled: Arc<Vec<(Oid, i64)>>,
    },
    /// The topic is not there: if there is one again, it may be another.
    DoubtTopic {
        source: Oid,
    },
    /// Another topic has the source's name now: all partitions have lost their place.
    LoseTopic {
        source: Oid,
    },
    /// Reading and history rest, or go on.
    Pause {
        reading: bool,
    },
    /// What a worker may read in one tick, from here on.
    TickBytes {
        most: usize,
        /// So much of it of history: 0 has it rest.
        most_history: usize,
    },
    AddStore {
        store: StoreId,
        source: Oid,
        layout: Arc<StoreLayout>,
        /// What it held at a checkpoint.
        saved: Option<Arc<SavedStore>>,
    },
    Attach {
        source: Oid,
        attached: Attached,
        /// It holds what the source's partitions have read so far.
        has_history: bool,
    },
    /// The store has been given all its history: slices may close.
    Release {
        store: StoreId,
    },
    /// What the store must keep, by event time behind the watermark.
    Keep {
        store: StoreId,
        keep_us: Option<i64>,
    },
    /// No view needs slices that begin before this, or sessions that end at or before it.
    Floor {
        store: StoreId,
        floor_us: Option<i64>,
    },
    AddEdge {
        edge: EdgeId,
        store: StoreId,
        view: WindowView,
        retention_us: Option<i64>,
        begins: Begins,
        /// It says what has changed only in ticks that ask for it.
        waits: bool,
    },
    DropEdge {
        edge: EdgeId,
        store: StoreId,
    },
    DropStore {
        source: Oid,
        store: StoreId,
    },
    DropPass {
        source: Oid,
        pass: PassId,
    },
    DropSource {
        source: Oid,
    },
    /// A source is read no further, or again.
    Hold {
        source: Oid,
        on: bool,
    },
    /// At the end of the tick slices get other rows.
    Replace(Replacement),
    /// Before the end of a tick: how the logs of these sources stand by then.
    TellLogs(TellLogs),
    EndTick {
        tick: u64,
        snapshots: Vec<StoreId>,
        detail: bool,
        /// The change streams, of those that wait, which are to say what has changed. A checkpoint asks all.
        asked: Arc<Vec<EdgeId>>,
        /// A checkpoint is due.
        save: Option<Arc<SaveOrder>>,
    },
    Stop,
}

/// What a change stream says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begins {
    /// All that is there at the end of the tick.
    WithAll,
    /// Nothing: who begins there is given the content.
    WithNothing,
    /// What comes after a checkpoint: all up to there had been said.
    Resumed,
}

/// What a worker says at the end of a tick.
pub(super) struct Report {
    pub worker: usize,
    pub tick: u64,
    pub passes: Vec<(PassId, Delta)>,
    pub edges: Vec<(EdgeId, Delta)>,
    pub sources: Vec<SourceReport>,
    pub verdicts: Verdicts,
    pub snapshots: Vec<(StoreId, StoreSnapshot)>,
    pub sessions: Vec<(StoreId, SessionSnapshot)>,
    /// The start of each store's oldest session that is not final.
    pub oldest_sessions: Vec<(StoreId, i64)>,
    pub times: HashMap<Oid, SourceTime>,
    /// There when the tick asked for detail.
    pub stores: Option<Vec<StoreReport>>,
    /// There with `stores`.
    pub passes_short: Vec<(PassId, Shortfall)>,
    /// Stores and passes that broke, with what broke them.
    pub failures: Vec<(Consumer, String)>,
    /// There when the tick asked for a checkpoint.
    pub saved: Vec<PartSave>,
    /// The time that reading and merging took in this tick.
    pub busy: Duration,
    /// The engine cannot go on: a restart from the last checkpoint mends it, or a message tells how.
    pub fatal: Option<String>,
}

pub(super) struct SourceReport {
    pub source: Oid,
    pub partitions: Vec<PartitionStats>,
    /// Trouble of the reader, in words.
    pub trouble: Option<String>,
    pub unseen_columns: Vec<String>,
    pub ids: Ids,
    /// Consumers whose history is still being read.
    pub backfills: Vec<(Consumer, Vec<HistoryProgress>)>,
    /// Consumers whose history was no longer in the log, and the event time from which on they have everything.
    pub incomplete: Vec<(Consumer, i64)>,
    /// What ALTER SOURCE has changed in this tick.
    pub altered: Vec<Altered>,
}

pub(super) struct StoreReport {
    pub store: StoreId,
    /// (slice, rows, bytes, closed).
    pub slices: Vec<(i64, usize, usize, bool)>,
    pub panes: KeptPanes,
    /// (start, end, sessions, bytes, final) of what is kept together.
    pub sessions: Vec<(i64, i64, usize, usize, bool)>,
    pub keys: usize,
    pub bytes: usize,
    /// The tick in which rows last came.
    pub generation: u64,
    pub forgotten_rows: u64,
    pub first_kept: Option<i64>,
    pub shortfall: Shortfall,
}
