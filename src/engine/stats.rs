//! The engine's figures as tables of the schema `riverrun`.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Float64Array, Int32Array, Int64Array, IntervalMonthDayNanoArray, RecordBatch,
    StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, IntervalMonthDayNano, IntervalUnit, Schema, SchemaRef, TimeUnit};
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;

use super::alter::{Change, Gap};
use super::checkpointer::Committed;
use super::error::tick_number;
use super::kept::Kept;
use super::verdicts::Counts;
use crate::catalog::{Oid, RIVERRUN, SystemTables};

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
    /// The newest last.
    pub checkpoints: Vec<CheckpointStats>,
    /// Why nothing is read, if it is so.
    pub rests: Option<String>,
    /// The present tick does not end: why, and for how many seconds.
    pub stalled: Option<(String, u64)>,
    pub memory: MemoryStats,
    /// How far `now()` in views is ahead of the clock, which was set back then.
    pub ahead_us: i64,
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
    /// `idle` (no view reads it), `running`, `retrying`, `failed`, or `resting`: what is read could not be kept or held.
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

/// A checkpoint, as `riverrun.checkpoints` lists it.
#[derive(Debug, Clone)]
pub struct CheckpointStats {
    /// Of its manifest; none before it is committed.
    pub number: Option<u64>,
    pub generation: Option<u64>,
    pub tick: (u64, u64),
    /// `writing`, `failing` (it is tried again) or `committed`.
    pub state: &'static str,
    pub began_us: i64,
    pub committed_us: Option<i64>,
    /// Encoding and writing.
    pub took_us: u64,
    pub bytes: u64,
    pub files: u64,
    pub parts: u64,
    pub tries: u32,
    pub error: Option<String>,
}

/// What state takes of memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// But for closed slices that are in files.
    pub state_bytes: u64,
    /// Closed slices that are in files, and in memory as well.
    pub cached_bytes: u64,
    pub limit_bytes: Option<u64>,
}

impl CheckpointStats {
    pub(super) fn writing(tick: (u64, u64), parts: usize, now_us: i64) -> CheckpointStats {
        CheckpointStats {
            number: None,
            generation: None,
            tick,
            state: "writing",
            began_us: now_us,
            committed_us: None,
            took_us: 0,
            bytes: 0,
            files: 0,
            parts: parts as u64,
            tries: 1,
            error: None,
        }
    }

    pub(super) fn failed(&mut self, tries: u32, error: &str) {
        (self.state, self.tries, self.error) = ("failing", tries, Some(error.to_string()));
    }

    pub(super) fn committed(&mut self, committed: &Committed, generation: u64) {
        (self.state, self.error) = ("committed", None);
        (self.number, self.generation) = (Some(committed.number), Some(generation));
        (self.committed_us, self.took_us) = (Some(committed.at_us), committed.took.as_micros() as u64);
        (self.bytes, self.files, self.tries) = (committed.bytes, committed.files, committed.tries);
    }
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
    /// How long ago all that then stood in its topics and tables is in it; `None` while that is not known.
    pub freshness_us: Option<i64>,
    pub watermark_us: Option<i64>,
    /// The clock at the last emission of an EMIT EVERY view.
    pub emitted_us: Option<i64>,
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
    /// How many panes that are in files it is in.
    pub panes: u64,
    /// The tick in which rows last came to the worker's part of the store.
    pub generation: u64,
    /// Names of the views that read the store.
    pub views: Arc<str>,
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
            ("freshness", DataType::Interval(IntervalUnit::MonthDayNano)),
            ("watermark", time()),
            ("emitted_at", time()),
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
        "checkpoints" => vec![
            ("number", Int64),
            ("generation", Int64),
            ("tick", Utf8),
            ("state", Utf8),
            ("began_at", time()),
            ("committed_at", time()),
            ("took_ms", Float64),
            ("bytes", Int64),
            ("files", Int64),
            ("parts", Int64),
            ("tries", Int64),
            ("error", Utf8),
        ],
        "slices" => vec![
            ("store", Utf8),
            ("worker", Int32),
            ("slice_start", time()),
            ("slice_end", time()),
            ("rows", Int64),
            ("bytes", Int64),
            ("closed", Boolean),
            ("panes", Int64),
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

const TABLES: [&str; 13] = [
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
    "checkpoints",
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

fn interval(us: i64) -> IntervalMonthDayNano {
    IntervalMonthDayNano::new(0, 0, us.saturating_mul(1_000))
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
                Arc::new(
                    self.views.iter().map(|v| v.freshness_us.map(interval)).collect::<IntervalMonthDayNanoArray>(),
                ),
                times(self.views.iter().map(|v| v.watermark_us)),
                times(self.views.iter().map(|v| v.emitted_us)),
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
            "checkpoints" => {
                let all = || self.checkpoints.iter();
                vec![
                    int(all().map(|c| Some(c.number? as i64))),
                    int(all().map(|c| Some(c.generation? as i64))),
                    text(all().map(|c| Some(tick_number(c.tick).to_string()))),
                    text(all().map(|c| Some(c.state))),
                    times(all().map(|c| Some(c.began_us))),
                    times(all().map(|c| c.committed_us)),
                    float(all().map(|c| Some(c.took_us as f64 / 1000.0))),
                    count(all().map(|c| c.bytes)),
                    count(all().map(|c| c.files)),
                    count(all().map(|c| c.parts)),
                    count(all().map(|c| u64::from(c.tries))),
                    text(all().map(|c| c.error.as_ref())),
                ]
            }
            "slices" => vec![
                text(self.slices.iter().map(|s| Some(&s.store))),
                Arc::new(self.slices.iter().map(|s| s.worker as i32).collect::<Int32Array>()),
                times(self.slices.iter().map(|s| s.start_us)),
                times(self.slices.iter().map(|s| s.end_us)),
                count(self.slices.iter().map(|s| s.rows)),
                count(self.slices.iter().map(|s| s.bytes)),
                Arc::new(self.slices.iter().map(|s| Some(s.closed)).collect::<BooleanArray>()),
                count(self.slices.iter().map(|s| s.panes)),
                count(self.slices.iter().map(|s| s.generation)),
                text(self.slices.iter().map(|s| Some(&*s.views))),
            ],
            "late_rows" => {
                let chunks = self.kept.late();
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
                let chunks = self.kept.duplicates();
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
                let all = self.kept.corrections();
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
                let chunks = self.kept.dead();
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
