//! From rows to what a store takes: filters, keys, slice numbers and arguments, a batch at a time.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, Int64Array, RecordBatch};
use arrow::compute::{cast, filter, filter_record_batch};
use arrow::datatypes::{DataType, TimeUnit};
use datafusion::physical_expr::PhysicalExpr;

use super::expr::Evaluator;
use super::flow::{Feed, Pass, TailAggregate, over_present};
use super::slice_store::{Grid, StoreRows};
use super::{Delta, ExecError};
use crate::planner::stream_plan::stands_in_windows;

type Expr = Arc<dyn PhysicalExpr>;

/// Evaluates a feed's expressions. Holds no state but counts.
pub struct FeedStep {
    filters: Vec<Evaluator>,
    time: Option<Evaluator>,
    grid: Option<Grid>,
    keys: Vec<Evaluator>,
    args: Vec<Vec<Evaluator>>,
    call_filters: Vec<Option<Evaluator>>,
    nowhere: u64,
}

impl FeedStep {
    /// For batches that hold the source's columns at `present` (ascending).
    pub fn of_feed(feed: &Feed, present: &[usize]) -> Result<FeedStep, ExecError> {
        let at = |e: &Expr| Ok::<_, ExecError>(Evaluator::new(over_present(e, present)?));
        Ok(FeedStep {
            filters: feed.filters.iter().map(at).collect::<Result<_, _>>()?,
            time: feed.time.as_ref().map(at).transpose()?,
            grid: feed.layout.grid,
            keys: feed.keys.iter().map(at).collect::<Result<_, _>>()?,
            args: feed.args.iter().map(|args| args.iter().map(at).collect()).collect::<Result<_, _>>()?,
            call_filters: feed.call_filters.iter().map(|f| f.as_ref().map(at).transpose()).collect::<Result<_, _>>()?,
            nowhere: 0,
        })
    }

    pub fn of_aggregate(aggregate: &TailAggregate, time: Option<Expr>) -> FeedStep {
        let at = |e: &Expr| Evaluator::new(e.clone());
        FeedStep {
            filters: Vec::new(),
            time: time.as_ref().map(at),
            grid: aggregate.layout.grid,
            keys: aggregate.keys.iter().map(at).collect(),
            args: aggregate.args.iter().map(|args| args.iter().map(at).collect()).collect(),
            call_filters: aggregate.call_filters.iter().map(|f| f.as_ref().map(at)).collect(),
            nowhere: 0,
        }
    }

    /// Rows whose time is NULL or too far away belong to no window; they are left out and counted in [`FeedStep::shortfall`].
    pub fn rows(&mut self, delta: &Delta) -> Result<StoreRows, ExecError> {
        let mut delta = keep(delta, &mut self.filters)?;
        let slices = match (&mut self.time, self.grid) {
            (Some(time), Some(grid)) => {
                let mut times = micros(&time.evaluate(&delta.rows)?)?;
                if times.null_count() > 0 || !times.values().iter().all(|&us| stands_in_windows(us)) {
                    let there: BooleanArray = times.iter().map(|us| Some(us.is_some_and(stands_in_windows))).collect();
                    // What is taken back was counted when it came.
                    let came = |row: &usize| !there.value(*row) && delta.weight(*row) > 0;
                    self.nowhere += (0..times.len()).filter(came).count() as u64;
                    delta = retain(&delta, &there)?;
                    times = micros(&filter(&times, &there)?)?;
                }
                times.values().iter().map(|&us| grid.slice_of(us)).collect()
            }
            _ => vec![0; delta.num_rows()],
        };
        let all = |evaluators: &mut [Evaluator]| {
            evaluators.iter_mut().map(|e| e.evaluate(&delta.rows)).collect::<Result<Vec<_>, _>>()
        };
        Ok(StoreRows {
            rows: delta.num_rows(),
            slices,
            keys: all(&mut self.keys)?,
            args: self.args.iter_mut().map(|args| all(args)).collect::<Result<_, _>>()?,
            filters: self
                .call_filters
                .iter_mut()
                .map(|f| f.as_mut().map(|f| f.evaluate_predicate(&delta.rows)).transpose())
                .collect::<Result<_, _>>()?,
            weights: delta.weights,
        })
    }

    pub fn shortfall(&self) -> Shortfall {
        let all = self.filters.iter().chain(&self.time).chain(&self.keys).chain(self.args.iter().flatten());
        Shortfall { left_out: self.nowhere, ..shortfall(all.chain(self.call_filters.iter().flatten())) }
    }
}

/// What became of rows and values that could not be taken as they are: none is lost without a count.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Shortfall {
    /// Values that became NULL because their expression failed.
    pub errors: u64,
    /// What the first of them said.
    pub sample: Option<String>,
    /// Rows that no window could take: those without a time, or with one too far away.
    pub left_out: u64,
}

impl Shortfall {
    pub fn add(&mut self, other: Shortfall) {
        self.errors += other.errors;
        self.sample = self.sample.take().or(other.sample);
        self.left_out += other.left_out;
    }
}

/// Evaluates a pass: a source's rows, filtered and projected.
pub struct PassStep {
    filters: Vec<Evaluator>,
    columns: Vec<Evaluator>,
    schema: arrow::datatypes::SchemaRef,
}

impl PassStep {
    pub fn of(pass: &Pass, present: &[usize]) -> Result<PassStep, ExecError> {
        let at = |e: &Expr| Ok::<_, ExecError>(Evaluator::new(over_present(e, present)?));
        Ok(PassStep {
            filters: pass.rows.filters.iter().map(at).collect::<Result<_, _>>()?,
            columns: pass.rows.columns.iter().map(at).collect::<Result<_, _>>()?,
            schema: pass.schema.clone(),
        })
    }

    pub fn shortfall(&self) -> Shortfall {
        shortfall(self.filters.iter().chain(&self.columns))
    }

    pub fn rows(&mut self, delta: &Delta) -> Result<Delta, ExecError> {
        let delta = keep(delta, &mut self.filters)?;
        let columns = self.columns.iter_mut().map(|e| e.evaluate(&delta.rows)).collect::<Result<Vec<_>, _>>()?;
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(delta.num_rows()));
        let rows = RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)?;
        Ok(Delta { rows, weights: delta.weights })
    }
}

fn shortfall<'a>(evaluators: impl Iterator<Item = &'a Evaluator>) -> Shortfall {
    let mut total = Shortfall::default();
    for evaluator in evaluators {
        total.add(Shortfall { errors: evaluator.errors, sample: evaluator.sample.clone(), left_out: 0 });
    }
    total
}

fn keep(delta: &Delta, filters: &mut [Evaluator]) -> Result<Delta, ExecError> {
    let mut kept = delta.clone();
    for predicate in filters {
        let mask = predicate.evaluate_predicate(&kept.rows)?;
        if mask.true_count() < kept.num_rows() {
            kept = retain(&kept, &mask)?;
        }
    }
    Ok(kept)
}

/// The rows for which the mask is true.
pub fn retain(delta: &Delta, mask: &BooleanArray) -> Result<Delta, ExecError> {
    let weights = delta
        .weights
        .as_ref()
        .map(|w| w.iter().enumerate().filter(|(i, _)| mask.is_valid(*i) && mask.value(*i)).map(|(_, &w)| w).collect());
    Ok(Delta { rows: filter_record_batch(&delta.rows, mask)?, weights })
}

/// A time column as microseconds since the epoch.
pub fn micros(times: &ArrayRef) -> Result<Int64Array, ExecError> {
    let micros = match times.data_type() {
        DataType::Int64 => times.clone(),
        DataType::Timestamp(TimeUnit::Microsecond, _) => cast(times, &DataType::Int64)?,
        _ => cast(&cast(times, &DataType::Timestamp(TimeUnit::Microsecond, None))?, &DataType::Int64)?,
    };
    Ok(micros.as_any().downcast_ref::<Int64Array>().expect("just cast to Int64").clone())
}
