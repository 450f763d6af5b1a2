//! The engine's figures as tables of the schema `riverrun`.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use parking_lot::Mutex;

use super::alter::{Change, Gap};
use super::error::tick_number;
use super::reconciliations::Reconciliations;
use super::verdicts::{Counts, DeadLetter, DuplicateRow, LateRow};
use crate::catalog::{Oid, RIVERRUN, SystemTables};
use crate::exec::dedup::Place;

/// Late rows and dead letters of a source stay this long and no longer (SEMANTICS 1.6).
const KEPT_US: i64 = 7 * 86_400_000_000;
/// Or as long as they take no more memory than this.
const KEPT_BYTES: usize = 1 << 30;

/// Figures as of one tick.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// (epoch, n) of the tick.
    pub tick: (u64, u64),
    /// How long the last tick that had something to do took.
    pub tick_ms: f64,
    pub sources: Vec<SourceStats>,
    pub views: Vec<ViewStats>,
    pub slices: Vec<SliceStats>,
    pub jobs: Vec<JobStats>,
    /// Events accepted since the start, over all sources.
    pub accepted: u64,
    /// Names of tables, for late rows.
    pub tables: Vec<(Oid, String)>,
    pub kept: Arc<Kept>,
}

/// What DEDUPLICATE BY keeps of a source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ids {
    /// Ids that are remembered.
    pub ids: u64,
    /// Of the ids, of rows that may still be taken back, and of the offsets of duplicates.
    pub bytes: u64,
}

impl std::iter::Sum for Ids {
    fn sum<I: Iterator<Item = Ids>>(all: I) -> Ids {
        all.fold(Ids::default(), |a, b| Ids { ids: a.ids + b.ids, bytes: a.bytes + b.bytes })
    }
}

#[derive(Debug, Clone)]
pub struct SourceStats {
    pub oid: Oid,
    pub schema: String,
    pub name: String,
    pub connector: String,
    /// `idle` (no view reads it), `running`, `retrying` or `failed`.
    pub state: &'static str,
    pub message: Option<String>,
    pub watermark_us: Option<i64>,
    pub unseen_columns: Vec<String>,
    /// Ids that DEDUPLICATE BY remembers, and the memory that takes.
    pub ids: Ids,
    pub partitions: Vec<PartitionStats>,
    pub gaps: Vec<Gap>,
    pub changes: Vec<Change>,
}

#[derive(Debug, Clone)]
pub struct PartitionStats {
    pub partition: i32,
    pub position: i64,
    pub end: Option<i64>,
    pub counts: Counts,
    pub watermark_us: Option<i64>,
    pub idle: bool,
    pub error: Option<String>,
}

/// A view that reads history, or one that is reconciled.
#[derive(Debug, Clone)]
pub struct JobStats {
    /// The view's OID; of a reconciliation a number below all OIDs.
    pub id: Oid,
    /// `history`, `reconcile` or `repair`.
    pub kind: &'static str,
    pub schema: String,
    pub name: String,
    pub started_us: i64,
    /// Records, over all partitions.
    pub read: i64,
    pub to_read: i64,
    /// Since it began; `None` before anything has been read.
    pub records_per_second: Option<f64>,
    pub seconds_left: Option<f64>,
    pub partitions: Vec<JobPartition>,
}

impl JobStats {
    /// 0 to 1.
    pub fn progress(&self) -> f64 {
        if self.to_read == 0 { 0.0 } else { self.read as f64 / self.to_read as f64 }
    }
}

#[derive(Debug, Clone)]
pub struct JobPartition {
    pub source: String,
    pub partition: i32,
    /// The next record of history to be read.
    pub offset: i64,
    /// Where history ends.
    pub end: i64,
    pub left: i64,
}

#[derive(Debug, Clone)]
pub struct ViewStats {
    pub oid: Oid,
    pub schema: String,
    pub name: String,
    /// `current`, `reading history` or `failed`.
    pub state: &'static str,
    pub message: Option<String>,
    /// 1 for one that is current, 0 for one that was not known to read history.
    pub progress: f64,
    pub watermark_us: Option<i64>,
    /// Event time from which on the view is whole; `None`: from the beginning of its sources.
    pub complete_from_us: Option<i64>,
    pub rows: Option<u64>,
    pub state_bytes: u64,
    pub late_rows: u64,
    /// Rows that came for windows which retention had forgotten.
    pub forgotten_rows: u64,
    pub expression_errors: u64,
    /// Aggregates that somebody was shown as NULL because they do not fit their type.
    pub overflowed_values: u64,
    /// Rows without a time, which stand in no window.
    pub rows_without_window: u64,
    pub error_sample: Option<String>,
    /// Names of the stores it reads.
    pub stores: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct SliceStats {
    pub store: String,
    pub worker: usize,
    pub start_us: Option<i64>,
    pub end_us: Option<i64>,
    pub rows: u64,
    pub bytes: u64,
    pub closed: bool,
    /// The tick in which rows last came to the worker's part of the store.
    pub generation: u64,
    /// Names of the views that read the store.
    pub views: Arc<str>,
}

/// What did not count, in chunks that readers share.
#[derive(Debug, Default)]
pub struct Kept {
    late: Mutex<BTreeMap<Oid, Ring<LateRow>>>,
    dead: Mutex<BTreeMap<Oid, Ring<DeadLetter>>>,
    duplicates: Mutex<BTreeMap<Oid, Ring<DuplicateRow>>>,
    pub reconciliations: Reconciliations,
    corrections: Mutex<Vec<Correction>>,
}

/// Slices that were replaced.
#[derive(Debug, Clone)]
pub struct Correction {
    pub at_us: i64,
    pub tick: (u64, u64),
    /// The view that was found wrong, and how many of its rows.
    pub schema: String,
    pub view: String,
    pub rows: u64,
    /// The event times of the slices; `None` without windows.
    pub from_us: Option<i64>,
    pub to_us: Option<i64>,
    /// All views of the store.
    pub changed: Vec<String>,
    /// Those of them that had shown the windows for good.
    pub finals: Vec<String>,
}

#[derive(Debug)]
struct Ring<T> {
    /// Arrival, bytes, rows.
    chunks: VecDeque<(i64, usize, Arc<Vec<T>>)>,
    bytes: usize,
}

impl<T> Default for Ring<T> {
    fn default() -> Self {
        Ring { chunks: VecDeque::new(), bytes: 0 }
    }
}

impl<T> Ring<T> {
    fn push(&mut self, now_us: i64, rows: Vec<T>, bytes_of: impl Fn(&T) -> usize) {
        if !rows.is_empty() {
            let bytes = rows.iter().map(bytes_of).sum();
            self.bytes += bytes;
            self.chunks.push_back((now_us, bytes, Arc::new(rows)));
        }
        while let Some((arrived_us, bytes, _)) = self.chunks.front() {
            if self.bytes <= KEPT_BYTES && now_us.saturating_sub(*arrived_us) <= KEPT_US {
                break;
            }
            self.bytes -= bytes;
            self.chunks.pop_front();
        }
    }

    /// Takes rows off, the newest first: those that change come soon after they were listed.
    fn take_off(&mut self, mut left: usize, mut goes: impl FnMut(&T) -> bool, bytes_of: impl Fn(&T) -> usize)
    where
        T: Clone,
    {
        for (_, bytes, rows) in self.chunks.iter_mut().rev() {
            if left == 0 {
                return;
            }
            let gone: Vec<usize> = (0..rows.len()).filter(|&row| goes(&rows[row])).collect();
            let freed: usize = gone.iter().map(|&row| bytes_of(&rows[row])).sum();
            for &row in gone.iter().rev() {
                Arc::make_mut(rows).remove(row);
            }
            left -= gone.len();
            *bytes -= freed;
            self.bytes -= freed;
        }
    }

    fn all(&self) -> Vec<(i64, Arc<Vec<T>>)> {
        self.chunks.iter().map(|(arrived_us, _, rows)| (*arrived_us, rows.clone())).collect()
    }
}

impl Kept {
    pub fn add(&self, now_us: i64, late: Vec<LateRow>, dead: Vec<DeadLetter>) {
        add(&self.late, now_us, late, |row| row.source, |row| row.payload.len() + size_of::<LateRow>());
        let bytes_of = |row: &DeadLetter| row.payload.len() + row.reason.len() + size_of::<DeadLetter>();
        add(&self.dead, now_us, dead, |row| row.source, bytes_of);
    }

    pub fn note_correction(&self, correction: Correction) {
        self.corrections.lock().push(correction);
    }

    /// What a source or table that is dropped has left.
    pub fn forget(&self, oid: Oid) {
        self.late.lock().remove(&oid);
        self.dead.lock().remove(&oid);
        self.duplicates.lock().remove(&oid);
    }

    /// Lists duplicates, and takes those off the list that are none any more.
    pub fn add_duplicates(&self, now_us: i64, duplicates: Vec<DuplicateRow>, kept_after_all: &[(Oid, Place)]) {
        let mut by_source: BTreeMap<Oid, HashSet<Place>> = BTreeMap::new();
        for &(source, place) in kept_after_all {
            by_source.entry(source).or_default().insert(place);
        }
        let mut kept = self.duplicates.lock();
        for (source, mut places) in by_source {
            if let Some(ring) = kept.get_mut(&source) {
                ring.take_off(places.len(), |row| places.remove(&row.place), duplicate_bytes);
            }
        }
        drop(kept);
        add(&self.duplicates, now_us, duplicates, |row| row.source, duplicate_bytes);
    }
}

fn duplicate_bytes(row: &DuplicateRow) -> usize {
    row.of.id.len() + size_of::<DuplicateRow>()
}

fn add<T>(
    kept: &Mutex<BTreeMap<Oid, Ring<T>>>,
    now_us: i64,
    rows: Vec<T>,
    source_of: impl Fn(&T) -> Oid,
    bytes_of: impl Fn(&T) -> usize,
) {
    let mut by_source: BTreeMap<Oid, Vec<T>> = BTreeMap::new();
    for row in rows {
        by_source.entry(source_of(&row)).or_default().push(row);
    }
    let mut kept = kept.lock();
    for (source, rows) in by_source {
        kept.entry(source).or_default().push(now_us, rows, &bytes_of);
    }
}

/// Every chunk with when it arrived, by source.
fn all<T>(kept: &Mutex<BTreeMap<Oid, Ring<T>>>) -> Vec<(i64, Arc<Vec<T>>)> {
    kept.lock().values().flat_map(Ring::all).collect()
}

fn time() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

fn columns_of(table: &str) -> Option<SchemaRef> {
    use DataType::{Binary, Boolean, Float64, Int32, Int64, Utf8};
    let columns: Vec<(&str, DataType)> = match table {
        "sources" => vec![
            ("id", Int64),
            ("schema", Utf8),
            ("name", Utf8),
            ("connector", Utf8),
            ("state", Utf8),
            ("message", Utf8),
            ("watermark", time()),
            ("unseen_columns", Utf8),
            ("ids", Int64),
            ("id_bytes", Int64),
        ],
        "source_partitions" => vec![
            ("source", Utf8),
            ("partition", Int32),
            ("offset", Int64),
            ("end_offset", Int64),
            ("lag", Int64),
            ("watermark", time()),
            ("idle", Boolean),
            ("read", Int64),
            ("accepted", Int64),
            ("late", Int64),
            ("duplicate", Int64),
            ("dead", Int64),
            ("skipped", Int64),
            ("error", Utf8),
        ],
        "materialized_views" => vec![
            ("id", Int64),
            ("schema", Utf8),
            ("name", Utf8),
            ("state", Utf8),
            ("message", Utf8),
            ("progress", Float64),
            ("records_read", Int64),
            ("records_to_read", Int64),
            ("records_per_second", Float64),
            ("seconds_left", Float64),
            ("watermark", time()),
            ("complete_from", time()),
            ("rows", Int64),
            ("state_bytes", Int64),
            ("late_rows", Int64),
            ("forgotten_rows", Int64),
            ("expression_errors", Int64),
            ("overflowed_values", Int64),
            ("rows_without_window", Int64),
            ("error_sample", Utf8),
            ("stores", Utf8),
        ],
        "slices" => vec![
            ("store", Utf8),
            ("worker", Int32),
            ("slice_start", time()),
            ("slice_end", time()),
            ("rows", Int64),
            ("bytes", Int64),
            ("closed", Boolean),
            ("generation", Int64),
            ("views", Utf8),
        ],
        "late_rows" => vec![
            ("source", Utf8),
            ("partition", Int32),
            ("offset", Int64),
            ("event_time", time()),
            ("watermark", time()),
            ("arrived_at", time()),
            ("reason", Utf8),
            ("payload", Binary),
        ],
        "duplicates" => vec![
            ("source", Utf8),
            ("partition", Int32),
            ("offset", Int64),
            ("id", Utf8),
            ("event_time", time()),
            ("kept_partition", Int32),
            ("kept_offset", Int64),
            ("arrived_at", time()),
        ],
        "source_gaps" => vec![
            ("source", Utf8),
            ("partition", Int32),
            ("from_offset", Int64),
            ("to_offset", Int64),
            ("lost", Int64),
            ("at", time()),
            ("reason", Utf8),
        ],
        "source_changes" => vec![
            ("source", Utf8),
            ("partition", Int32),
            ("offset", Int64),
            ("at", time()),
            ("watermark_before", time()),
            ("watermark", time()),
            ("final_until", time()),
            ("allowed_lateness_us", Int64),
            ("max_future_us", Int64),
        ],
        "jobs" => vec![
            ("id", Int64),
            ("kind", Utf8),
            ("schema", Utf8),
            ("name", Utf8),
            ("started_at", time()),
            ("progress", Float64),
            ("records_read", Int64),
            ("records_to_read", Int64),
            ("records_per_second", Float64),
            ("seconds_left", Float64),
        ],
        "corrections" => vec![
            ("at", time()),
            ("tick", DataType::Decimal128(38, 0)),
            ("schema", Utf8),
            ("view", Utf8),
            ("rows", Int64),
            ("from", time()),
            ("to", time()),
            ("changed_views", Utf8),
            ("changed_final_views", Utf8),
        ],
        "job_partitions" => vec![
            ("job", Int64),
            ("source", Utf8),
            ("partition", Int32),
            ("offset", Int64),
            ("end_offset", Int64),
            ("records_left", Int64),
        ],
        "dead_letters" => vec![
            ("source", Utf8),
            ("partition", Int32),
            ("offset", Int64),
            ("timestamp", time()),
            ("arrived_at", time()),
            ("reason", Utf8),
            ("payload", Binary),
        ],
        _ => return None,
    };
    Some(Arc::new(Schema::new(columns.into_iter().map(|(n, t)| Field::new(n, t, true)).collect::<Vec<_>>())))
}

const TABLES: [&str; 12] = [
    "corrections",
    "sources",
    "source_partitions",
    "materialized_views",
    "slices",
    "late_rows",
    "dead_letters",
    "duplicates",
    "source_gaps",
    "source_changes",
    "jobs",
    "job_partitions",
];

fn text<S: AsRef<str>>(values: impl Iterator<Item = Option<S>>) -> ArrayRef {
    Arc::new(values.collect::<StringArray>())
}

fn int(values: impl Iterator<Item = Option<i64>>) -> ArrayRef {
    Arc::new(values.collect::<Int64Array>())
}

fn float(values: impl Iterator<Item = Option<f64>>) -> ArrayRef {
    Arc::new(values.collect::<Float64Array>())
}

fn count(values: impl Iterator<Item = u64>) -> ArrayRef {
    int(values.map(|v| Some(v as i64)))
}

fn times(values: impl Iterator<Item = Option<i64>>) -> ArrayRef {
    Arc::new(values.collect::<TimestampMicrosecondArray>().with_timezone("UTC"))
}

impl Stats {
    fn name_of(&self, source: Oid) -> Option<&str> {
        let sources = self.sources.iter().map(|s| (s.oid, s.name.as_str()));
        let tables = self.tables.iter().map(|(oid, name)| (*oid, name.as_str()));
        sources.chain(tables).find(|(oid, _)| *oid == source).map(|(_, name)| name)
    }

    /// Views that read history, and what is reconciled at the moment.
    pub fn jobs(&self) -> Vec<JobStats> {
        self.jobs.iter().cloned().chain(self.kept.reconciliations.jobs()).collect()
    }

    fn job(&self, view: Oid) -> Option<&JobStats> {
        self.jobs.iter().find(|job| job.id == view)
    }

    fn columns(&self, table: &str) -> Option<Vec<ArrayRef>> {
        let partitions = || self.sources.iter().flat_map(|s| s.partitions.iter().map(move |p| (s, p)));
        let counted = |get: fn(&Counts) -> u64| count(partitions().map(move |(_, p)| get(&p.counts)));
        Some(match table {
            "sources" => vec![
                int(self.sources.iter().map(|s| Some(i64::from(s.oid)))),
                text(self.sources.iter().map(|s| Some(&s.schema))),
                text(self.sources.iter().map(|s| Some(&s.name))),
                text(self.sources.iter().map(|s| Some(&s.connector))),
                text(self.sources.iter().map(|s| Some(s.state))),
                text(self.sources.iter().map(|s| s.message.as_ref())),
                times(self.sources.iter().map(|s| s.watermark_us)),
                text(self.sources.iter().map(|s| {
                    let unseen = &s.unseen_columns;
                    (!unseen.is_empty()).then(|| unseen.join(", "))
                })),
                count(self.sources.iter().map(|s| s.ids.ids)),
                count(self.sources.iter().map(|s| s.ids.bytes)),
            ],
            "source_partitions" => vec![
                text(partitions().map(|(s, _)| Some(&s.name))),
                Arc::new(partitions().map(|(_, p)| p.partition).collect::<Int32Array>()),
                int(partitions().map(|(_, p)| Some(p.position))),
                int(partitions().map(|(_, p)| p.end)),
                int(partitions().map(|(_, p)| p.end.map(|end| (end - p.position).max(0)))),
                times(partitions().map(|(_, p)| p.watermark_us)),
                Arc::new(partitions().map(|(_, p)| Some(p.idle)).collect::<BooleanArray>()),
                counted(|c| c.read),
                counted(|c| c.accepted),
                counted(|c| c.late),
                counted(|c| c.duplicate),
                counted(|c| c.dead),
                counted(|c| c.skipped),
                text(partitions().map(|(_, p)| p.error.as_ref())),
            ],
            "materialized_views" => vec![
                int(self.views.iter().map(|v| Some(i64::from(v.oid)))),
                text(self.views.iter().map(|v| Some(&v.schema))),
                text(self.views.iter().map(|v| Some(&v.name))),
                text(self.views.iter().map(|v| Some(v.state))),
                text(self.views.iter().map(|v| v.message.as_ref())),
                float(self.views.iter().map(|v| Some(self.job(v.oid).map_or(v.progress, JobStats::progress)))),
                int(self.views.iter().map(|v| Some(self.job(v.oid)?.read))),
                int(self.views.iter().map(|v| Some(self.job(v.oid)?.to_read))),
                float(self.views.iter().map(|v| self.job(v.oid)?.records_per_second)),
                float(self.views.iter().map(|v| self.job(v.oid)?.seconds_left)),
                times(self.views.iter().map(|v| v.watermark_us)),
                times(self.views.iter().map(|v| v.complete_from_us)),
                int(self.views.iter().map(|v| v.rows.map(|r| r as i64))),
                count(self.views.iter().map(|v| v.state_bytes)),
                count(self.views.iter().map(|v| v.late_rows)),
                count(self.views.iter().map(|v| v.forgotten_rows)),
                count(self.views.iter().map(|v| v.expression_errors)),
                count(self.views.iter().map(|v| v.overflowed_values)),
                count(self.views.iter().map(|v| v.rows_without_window)),
                text(self.views.iter().map(|v| v.error_sample.as_ref())),
                text(self.views.iter().map(|v| Some(v.stores.join(", ")))),
            ],
            "slices" => vec![
                text(self.slices.iter().map(|s| Some(&s.store))),
                Arc::new(self.slices.iter().map(|s| s.worker as i32).collect::<Int32Array>()),
                times(self.slices.iter().map(|s| s.start_us)),
                times(self.slices.iter().map(|s| s.end_us)),
                count(self.slices.iter().map(|s| s.rows)),
                count(self.slices.iter().map(|s| s.bytes)),
                Arc::new(self.slices.iter().map(|s| Some(s.closed)).collect::<BooleanArray>()),
                count(self.slices.iter().map(|s| s.generation)),
                text(self.slices.iter().map(|s| Some(&*s.views))),
            ],
            "late_rows" => {
                let chunks = all(&self.kept.late);
                let rows = || chunks.iter().flat_map(|(at, rows)| rows.iter().map(move |row| (*at, row)));
                vec![
                    text(rows().map(|(_, r)| self.name_of(r.source))),
                    Arc::new(rows().map(|(_, r)| r.partition).collect::<Int32Array>()),
                    int(rows().map(|(_, r)| Some(r.offset))),
                    times(rows().map(|(_, r)| r.event_time_us)),
                    times(rows().map(|(_, r)| r.watermark_us)),
                    times(rows().map(|(at, _)| Some(at))),
                    text(rows().map(|(_, r)| Some(r.reason.as_str()))),
                    Arc::new(rows().map(|(_, r)| Some(r.payload.as_slice())).collect::<BinaryArray>()),
                ]
            }
            "duplicates" => {
                let chunks = all(&self.kept.duplicates);
                let rows = || chunks.iter().flat_map(|(at, rows)| rows.iter().map(move |row| (*at, row)));
                vec![
                    text(rows().map(|(_, r)| self.name_of(r.source))),
                    Arc::new(rows().map(|(_, r)| r.place.partition).collect::<Int32Array>()),
                    int(rows().map(|(_, r)| Some(r.place.offset))),
                    text(rows().map(|(_, r)| Some(&r.of.id))),
                    times(rows().map(|(_, r)| Some(r.of.event_time_us))),
                    Arc::new(rows().map(|(_, r)| r.of.kept.partition).collect::<Int32Array>()),
                    int(rows().map(|(_, r)| Some(r.of.kept.offset))),
                    times(rows().map(|(at, _)| Some(at))),
                ]
            }
            "source_gaps" => {
                let gaps = || self.sources.iter().flat_map(|s| s.gaps.iter().map(move |gap| (s, gap)));
                vec![
                    text(gaps().map(|(s, _)| Some(&s.name))),
                    Arc::new(gaps().map(|(_, g)| g.partition).collect::<Int32Array>()),
                    int(gaps().map(|(_, g)| Some(g.from_offset))),
                    int(gaps().map(|(_, g)| Some(g.to_offset))),
                    int(gaps().map(|(_, g)| g.lost)),
                    times(gaps().map(|(_, g)| Some(g.at_us))),
                    text(gaps().map(|(_, g)| Some(&g.reason))),
                ]
            }
            "source_changes" => {
                let changes = || self.sources.iter().flat_map(|s| s.changes.iter().map(move |change| (s, change)));
                let terms = || changes().map(|(_, c)| c.altered.terms);
                vec![
                    text(changes().map(|(s, _)| Some(&s.name))),
                    Arc::new(changes().map(|(_, c)| c.altered.partition).collect::<Int32Array>()),
                    int(changes().map(|(_, c)| Some(c.altered.offset))),
                    times(changes().map(|(_, c)| Some(c.at_us))),
                    times(changes().map(|(_, c)| c.altered.before_us)),
                    times(terms().map(|terms| terms.watermark_us)),
                    times(terms().map(|terms| terms.floor_us)),
                    int(terms().map(|terms| Some(terms.bounds.allowed_lateness_us))),
                    int(terms().map(|terms| Some(terms.bounds.max_future_us))),
                ]
            }
            "jobs" => {
                let jobs = self.jobs();
                vec![
                    int(jobs.iter().map(|j| Some(i64::from(j.id)))),
                    text(jobs.iter().map(|j| Some(j.kind))),
                    text(jobs.iter().map(|j| Some(&j.schema))),
                    text(jobs.iter().map(|j| Some(&j.name))),
                    times(jobs.iter().map(|j| Some(j.started_us))),
                    float(jobs.iter().map(|j| Some(j.progress()))),
                    int(jobs.iter().map(|j| Some(j.read))),
                    int(jobs.iter().map(|j| Some(j.to_read))),
                    float(jobs.iter().map(|j| j.records_per_second)),
                    float(jobs.iter().map(|j| j.seconds_left)),
                ]
            }
            "corrections" => {
                let all = self.kept.corrections.lock();
                let ticks: arrow::array::Decimal128Array = all.iter().map(|c| Some(tick_number(c.tick))).collect();
                vec![
                    times(all.iter().map(|c| Some(c.at_us))),
                    Arc::new(ticks.with_data_type(DataType::Decimal128(38, 0))),
                    text(all.iter().map(|c| Some(&c.schema))),
                    text(all.iter().map(|c| Some(&c.view))),
                    count(all.iter().map(|c| c.rows)),
                    times(all.iter().map(|c| c.from_us)),
                    times(all.iter().map(|c| c.to_us)),
                    text(all.iter().map(|c| Some(c.changed.join(", ")))),
                    text(all.iter().map(|c| (!c.finals.is_empty()).then(|| c.finals.join(", ")))),
                ]
            }
            "job_partitions" => {
                let partitions = || self.jobs.iter().flat_map(|j| j.partitions.iter().map(move |p| (j, p)));
                vec![
                    int(partitions().map(|(j, _)| Some(i64::from(j.id)))),
                    text(partitions().map(|(_, p)| Some(&p.source))),
                    Arc::new(partitions().map(|(_, p)| p.partition).collect::<Int32Array>()),
                    int(partitions().map(|(_, p)| Some(p.offset))),
                    int(partitions().map(|(_, p)| Some(p.end))),
                    int(partitions().map(|(_, p)| Some(p.left))),
                ]
            }
            "dead_letters" => {
                let chunks = all(&self.kept.dead);
                let rows = || chunks.iter().flat_map(|(at, rows)| rows.iter().map(move |row| (*at, row)));
                vec![
                    text(rows().map(|(_, r)| self.name_of(r.source))),
                    Arc::new(rows().map(|(_, r)| r.partition).collect::<Int32Array>()),
                    int(rows().map(|(_, r)| Some(r.offset))),
                    times(rows().map(|(_, r)| (r.timestamp_ms >= 0).then(|| r.timestamp_ms.saturating_mul(1000)))),
                    times(rows().map(|(at, _)| Some(at))),
                    text(rows().map(|(_, r)| Some(&r.reason))),
                    Arc::new(rows().map(|(_, r)| Some(r.payload.as_slice())).collect::<BinaryArray>()),
                ]
            }
            _ => return None,
        })
    }
}

impl SystemTables for Stats {
    fn table(&self, schema: &str, name: &str) -> Option<Arc<dyn TableProvider>> {
        if schema != RIVERRUN {
            return None;
        }
        let schema = columns_of(name)?;
        let batch = RecordBatch::try_new(schema.clone(), self.columns(name)?).expect("columns are built to the schema");
        let table = MemTable::try_new(schema, vec![vec![batch]]).expect("the batch has the schema");
        Some(Arc::new(table))
    }

    fn names(&self) -> Vec<(String, String, SchemaRef)> {
        TABLES
            .iter()
            .map(|&name| (RIVERRUN.to_string(), name.to_string(), columns_of(name).expect("every table has columns")))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_has_the_columns_it_says() {
        let stats = Stats::default();
        for (schema, name, columns) in stats.names() {
            let table = stats.table(&schema, &name).expect("a table that is named is there");
            assert_eq!(table.schema(), columns, "{name}");
        }
    }
}
