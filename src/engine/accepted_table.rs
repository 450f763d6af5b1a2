//! A source's accepted rows as of one tick, read anew from its log: what RECONCILE recomputes a view from.
//!
//! The law with its facts comes to the verdicts of the source's own reader; the offsets of duplicates are known from it. Rows
//! are read, judged and handed on in threads of their own, a batch at a time, and never held.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, BooleanArray, BooleanBufferBuilder, RecordBatch, RecordBatchOptions};
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream};

use super::backfill::{Mark, Replay};
use super::clock::Stopwatch;
use super::judge::{complete_behind, event_times};
use super::log_stream::{Out, log_stream};
use super::pushdown::moments_where;
use super::reader::SourceSetup;
use super::reconcile::PartitionLog;
use super::reconciliations::Reconciliation;
use super::topic::Topic;
use crate::connector::{ConnectorError, Health, JsonDecoder, PartitionOffset, Records};
use crate::exec::law::{PartitionLaw, Row};
use crate::planner::{PlanError, Refusal};

const POLL_BYTES: usize = 1 << 20;
const POLL_WAIT: Duration = Duration::from_millis(100);
/// A log that cannot be read for this long ends the statement with the reason.
const PATIENCE: Duration = Duration::from_secs(15);
/// Ingestion has the machine's other cores.
const MOST_THREADS: usize = 2;

#[derive(Clone)]
pub struct AcceptedTable {
    setup: Arc<SourceSetup>,
    name: Arc<str>,
    logs: Arc<Vec<PartitionLog>>,
    /// Where the logs begin by now.
    lows: Arc<BTreeMap<i32, i64>>,
    running: Arc<Reconciliation>,
}

impl fmt::Debug for AcceptedTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AcceptedTable({})", self.name)
    }
}

impl AcceptedTable {
    /// `topic`: how it stands after the tick of the logs.
    ///
    /// # Errors
    /// If the log ends before what has been read of it: then it is another one.
    pub fn new(
        name: &str,
        setup: SourceSetup,
        logs: Vec<PartitionLog>,
        topic: &Topic,
        running: Arc<Reconciliation>,
    ) -> Result<AcceptedTable, PlanError> {
        let ends: BTreeMap<i32, i64> = topic.ends.iter().copied().collect();
        for log in &logs {
            let end = ends.get(&log.partition).copied().unwrap_or(0);
            if end < log.until {
                let (partition, until) = (log.partition, log.until);
                return Err(PlanError::NotReady(Refusal::new(format!(
                    "the log of source \"{name}\" is not the one that was read: partition {partition} ends at offset {end}, and {until} was read"
                ))));
            }
        }
        Ok(AcceptedTable {
            setup: Arc::new(setup),
            name: name.into(),
            logs: Arc::new(logs),
            lows: Arc::new(topic.lows.iter().copied().collect()),
            running,
        })
    }

    /// Rows of earlier event times may be missing, as the log no longer has them. `None`: none is missing.
    pub fn complete_from_us(&self) -> Option<i64> {
        let of = |log: &PartitionLog| {
            let lost_us = self.lost_before(log).and_then(|mark| complete_behind(&self.setup, mark.watermark_us));
            lost_us.max(log.complete_from_us)
        };
        self.logs.iter().filter_map(of).max()
    }

    /// The log has lost records at its beginning, whatever their time.
    pub fn has_lost(&self) -> bool {
        let lost = |log: &PartitionLog| {
            let counted = |mark: Mark| mark.watermark_us.is_some() || self.setup.bounds.delay_us.is_none();
            log.complete_from_us.is_some() || self.lost_before(log).is_some_and(counted)
        };
        self.logs.iter().any(lost)
    }

    /// The first place of what is left at which the watermark is known, if the log no longer has what came first.
    fn lost_before(&self, log: &PartitionLog) -> Option<Mark> {
        let low = self.lows.get(&log.partition).copied().unwrap_or(log.until);
        if low <= log.start || log.start >= log.until {
            return None;
        }
        let now = Mark { offset: log.until, watermark_us: log.law.watermark_us() };
        Some(log.marks.at_or_after(low).unwrap_or(now))
    }

    /// What is read of a partition for the rows of these event times. Before the first offset no accepted row reaches up to the
    /// range, from the last on none reaches down to it.
    fn replay(&self, log: &PartitionLog, times: &Range<i64>) -> Replay {
        let lost = self.lost_before(log);
        let mut begin = lost;
        let mut until = log.until;
        // A watermark that was taken back, or other bounds, and marks say less.
        if let (Some(delay_us), 1) = (self.setup.bounds.delay_us, log.law.facts().terms().count()) {
            let lateness_us = self.setup.bounds.allowed_lateness_us;
            let all_before = |mark: &Mark| mark.watermark_us.is_some_and(|w| w.saturating_add(delay_us) < times.start);
            let all_after = |mark: &Mark| mark.watermark_us.is_some_and(|w| w.saturating_sub(lateness_us) >= times.end);
            let first = lost.map_or(log.start, |mark| mark.offset);
            let known = || log.marks.iter().filter(|mark| mark.offset >= first && mark.offset <= log.until);
            begin = known().rfind(all_before).or(begin);
            until = known().find(all_after).map_or(until, |mark| mark.offset);
        }
        let facts = log.law.facts().clone();
        let (start, law) = match begin {
            Some(mark) => (mark.offset, PartitionLaw::resuming(facts, mark.offset, mark.watermark_us)),
            None => (log.start, PartitionLaw::replaying(facts)),
        };
        let duplicates = log.duplicates.clone();
        Replay { start, position: start, until: until.max(start), law, duplicates, from: Some(start) }
    }

    /// The event times that filters leave.
    fn times(&self, filters: &[Expr]) -> Range<i64> {
        let mut times = i64::MIN..i64::MAX;
        for range in filters.iter().filter_map(|filter| self.times_where(filter)) {
            times = times.start.max(range.start)..times.end.min(range.end);
        }
        times
    }

    fn times_where(&self, filter: &Expr) -> Option<Range<i64>> {
        let (column, range) = moments_where(filter)?;
        (self.setup.schema.index_of(&column).ok() == Some(self.setup.time_column?)).then_some(range)
    }

    /// Reads the rows of these event times, and perhaps others, with the columns at `present` (ascending). Ends early when `take`
    /// says false or the work is cancelled. Blocks: for a thread of its own.
    pub fn read(
        &self,
        mut replays: BTreeMap<i32, Replay>,
        present: &[usize],
        take: &mut dyn FnMut(RecordBatch) -> Result<bool>,
    ) -> Result<()> {
        let failed = |error: ConnectorError| DataFusionError::External(Box::new(error));
        let setup = &self.setup;
        replays.retain(|_, replay| replay.position < replay.until);
        if replays.is_empty() {
            return Ok(());
        }
        let mut built: Vec<usize> = present.iter().copied().chain(setup.time_column).collect();
        built.sort_unstable();
        built.dedup();
        let columns: Vec<usize> = present.iter().filter_map(|column| built.binary_search(column).ok()).collect();
        let mut decoder = JsonDecoder::new(&setup.columns, &built, setup.decode).map_err(failed)?;
        let mut reader = setup.options.reader().map_err(failed)?;
        let assigned: Vec<PartitionOffset> =
            replays.iter().map(|(&partition, r)| PartitionOffset { partition, offset: r.position }).collect();
        reader.assign(&assigned).map_err(failed)?;
        let mut whole: BTreeMap<i32, Whole> = self
            .logs
            .iter()
            .filter_map(|log| Some((log.partition, Whole::of(log, replays.get(&log.partition)?)?)))
            .collect();
        let mut records = Records::default();
        let mut silence = Stopwatch::start();
        while !replays.is_empty() && !self.running.is_cancelled() {
            records.clear();
            match reader.poll(&mut records, POLL_BYTES, POLL_WAIT) {
                Err(ConnectorError::OffsetLost { .. }) => return Err(self.log_was_cut()),
                polled => polled.map_err(failed)?,
            }
            records.records.retain(|r| replays.get(&r.partition).is_some_and(|replay| r.offset < replay.until));
            for record in &records.records {
                whole.entry(record.partition).and_modify(|whole| whole.came += 1);
            }
            let mut came = records.len();
            if !records.is_empty() {
                silence = Stopwatch::start();
                let decoded = decoder.decode(&records, 0..records.len());
                let times = event_times(setup, &built, &decoded);
                let mut keep = BooleanBufferBuilder::new(decoded.rows.len());
                for (row, &record) in decoded.rows.iter().enumerate() {
                    let record = &records.records[record as usize];
                    let replay = replays.get_mut(&record.partition).expect("records were chosen by partition");
                    let row = Row {
                        offset: record.offset,
                        event_time_us: times.as_ref().and_then(|t| t.is_valid(row).then(|| t.value(row))),
                        arrival_us: record.timestamp_ms.saturating_mul(1000),
                        arrival_in_log: record.log_append_time,
                    };
                    keep.append(replay.law.judge(row).is_ok() && !replay.duplicates.contains(record.offset));
                }
                let mask = BooleanArray::new(keep.finish(), None);
                let accepted = filter_record_batch(&decoded.batch.project(&columns)?, &mask)?;
                if accepted.num_rows() > 0 && !take(accepted)? {
                    return Ok(());
                }
            } else if silence.elapsed() > PATIENCE {
                let reason = match reader.health() {
                    Health::Retrying { message } => message.clone(),
                    Health::Running => "no record came for 15 seconds".to_string(),
                };
                return Err(failed(ConnectorError::Kafka { doing: "reading the topic", reason }));
            }
            for (&partition, replay) in &mut replays {
                let position =
                    reader.position(partition).unwrap_or(replay.position).clamp(replay.position, replay.until);
                self.running.work.has_read(position - replay.position, std::mem::take(&mut came));
                replay.position = position;
            }
            let done: Vec<i32> =
                replays.iter().filter(|(_, replay)| replay.position >= replay.until).map(|(&p, _)| p).collect();
            reader.remove(&done);
            let of = self.setup.options.topic();
            let thinned = done.iter().find_map(|partition| whole.get(partition)?.thinned(of, *partition));
            if let Some(why) = thinned {
                self.running.has_thinned(of, why);
            }
            replays.retain(|partition, _| !done.contains(partition));
        }
        Ok(())
    }

    fn log_was_cut(&self) -> DataFusionError {
        let message = format!("the log of source \"{}\" lost records while they were read again", self.name);
        let hint = "The topic's retention removed them: run RECONCILE again, FROM a later moment.";
        DataFusionError::External(Box::new(PlanError::NotReady(Refusal::new(message).hint(hint))))
    }

    /// By thread, what is to be read for the rows of these event times.
    pub fn replays(&self, times: &Range<i64>) -> Vec<BTreeMap<i32, Replay>> {
        let mut threads: Vec<BTreeMap<i32, Replay>> = Vec::new();
        threads.resize_with(MOST_THREADS.min(self.logs.len()).max(1), BTreeMap::new);
        let count = threads.len();
        for (i, log) in self.logs.iter().enumerate() {
            let replay = self.replay(log, times);
            self.running.work.is_to_read(replay.until - replay.start);
            threads[i % count].insert(log.partition, replay);
        }
        threads
    }
}

/// A log that is read again from its first record to the last that was read of it.
struct Whole {
    counted: u64,
    came: u64,
}

impl Whole {
    fn of(log: &PartitionLog, replay: &Replay) -> Option<Whole> {
        let is_whole = (replay.position, replay.until) == (log.start, log.until);
        is_whole.then_some(Whole { counted: log.read?, came: 0 })
    }

    /// What to tell of it at its end, if it no longer holds what it held.
    fn thinned(&self, topic: &str, partition: i32) -> Option<String> {
        let Whole { counted, came } = self;
        (came < counted).then(|| {
            format!(
                "partition {partition} of topic \"{topic}\" holds {came} of the {counted} records that were read of it"
            )
        })
    }
}

#[async_trait]
impl TableProvider for AcceptedTable {
    fn schema(&self) -> SchemaRef {
        self.setup.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let narrows = |filter: &&Expr| match self.times_where(filter) {
            Some(_) => TableProviderFilterPushDown::Inexact,
            None => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().map(narrows).collect())
    }

    async fn scan(
        &self,
        _: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let projection = projection.cloned().unwrap_or_else(|| (0..self.setup.schema.fields().len()).collect());
        let schema = Arc::new(self.setup.schema.project(&projection)?);
        let times = self.times(filters);
        let scans = self.replays(&times).into_iter().map(|replays| {
            let scan = Scan {
                table: self.clone(),
                partitions: replays.into_keys().collect(),
                times: times.clone(),
                projection: projection.clone(),
                schema: schema.clone(),
            };
            Arc::new(scan) as Arc<dyn PartitionStream>
        });
        let scans = scans.collect();
        Ok(Arc::new(StreamingTableExec::try_new(schema, scans, None, None, false, limit)?))
    }
}

#[derive(Debug)]
struct Scan {
    table: AcceptedTable,
    partitions: Vec<i32>,
    times: Range<i64>,
    projection: Vec<usize>,
    schema: SchemaRef,
}

impl PartitionStream for Scan {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (table, projection, schema) = (self.table.clone(), self.projection.clone(), self.schema.clone());
        let of_scan = |log: &&PartitionLog| self.partitions.contains(&log.partition);
        let logs = table.logs.iter().filter(of_scan);
        let replays = logs.map(|log| (log.partition, table.replay(log, &self.times))).collect();
        log_stream("log-replay", self.schema.clone(), move |out| scan(&table, replays, &projection, &schema, out))
    }
}

/// Ends early when the reader of the channel has gone.
fn scan(
    table: &AcceptedTable,
    replays: BTreeMap<i32, Replay>,
    projection: &[usize],
    schema: &SchemaRef,
    out: &Out,
) -> Result<()> {
    let mut present = projection.to_vec();
    present.sort_unstable();
    present.dedup();
    table.read(replays, &present, &mut |accepted| {
        let columns = projection
            .iter()
            .map(|c| accepted.column(present.binary_search(c).expect("every projected column is built")).clone())
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(accepted.num_rows()));
        let batch = RecordBatch::try_new_with_options(schema.clone(), columns, &options)?;
        Ok(out.blocking_send(Ok(batch)).is_ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::law::{Bounds, Terms};

    /// A log of which the offsets 10 to 30 were read with `counted` records; the offsets `again` are read again, with `came`.
    fn check(counted: Option<u64>, again: Range<i64>, came: u64) -> Option<String> {
        let law = PartitionLaw::new(10, Terms { bounds: Bounds::default(), floor_us: None, watermark_us: None });
        let log = PartitionLog {
            partition: 3,
            start: 10,
            until: 30,
            read: counted,
            law: law.clone(),
            marks: Default::default(),
            duplicates: Default::default(),
            complete_from_us: None,
            error: None,
        };
        let (start, until) = (again.start, again.end);
        let replay = Replay { start, position: start, until, law, duplicates: Default::default(), from: Some(start) };
        let whole = Whole::of(&log, &replay)?;
        Whole { came, ..whole }.thinned("t", 3)
    }

    #[test]
    fn a_log_that_was_read_whole_and_gives_fewer_records_is_told() {
        let told = "partition 3 of topic \"t\" holds 11 of the 12 records that were read of it";
        assert_eq!(check(Some(12), 10..30, 11).as_deref(), Some(told));
        // Offsets without records are of transactions.
        assert_eq!(check(Some(12), 10..30, 12), None);
        assert_eq!(check(Some(12), 11..30, 3), None);
        assert_eq!(check(Some(12), 10..29, 3), None);
        assert_eq!(check(None, 10..30, 3), None);
    }
}
