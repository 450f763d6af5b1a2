//! What consumers of a source want, made of its records: decoded once for all, evaluated for each.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::RecordBatch;

use super::orders::PassId;
use super::reader::{Out, SourceSetup};
use super::verdicts::LateInto;
use super::worker::ReadRows;
use crate::connector::JsonDecoder;
use crate::exec::exchange::StoreId;
use crate::exec::feed::{FeedStep, PassStep, Shortfall};
use crate::exec::flow::{Feed, Pass};
use crate::exec::{Delta, ExecError};

/// What reads rows of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Consumer {
    Store(StoreId),
    Pass(PassId),
}

/// A consumer with what it wants.
#[derive(Debug, Clone)]
pub enum Attached {
    Feed(StoreId, Arc<Feed>),
    Pass(PassId, Arc<Pass>),
}

impl Attached {
    pub fn consumer(&self) -> Consumer {
        match self {
            Attached::Feed(store, _) => Consumer::Store(*store),
            Attached::Pass(pass, _) => Consumer::Pass(*pass),
        }
    }

    pub(super) fn columns(&self) -> Vec<usize> {
        match self {
            Attached::Feed(_, feed) => feed.source_columns(),
            Attached::Pass(_, pass) => pass.source_columns(),
        }
    }
}

/// Records → rows, for a set of columns.
pub(super) struct Decoding {
    pub decoder: JsonDecoder,
    /// Columns built, ascending.
    pub present: Vec<usize>,
    pub consumers: Vec<(Attached, Step)>,
}

pub(super) enum Step {
    Feed(FeedStep),
    Pass(PassStep),
}

impl Decoding {
    pub fn new(setup: &SourceSetup, consumers: Vec<Attached>) -> Result<Decoding, ExecError> {
        let mut present: BTreeSet<usize> = consumers.iter().flat_map(Attached::columns).collect();
        present.extend(setup.time_column);
        present.extend(setup.late_into.iter().flat_map(LateInto::source_columns));
        match &setup.deduplicate {
            None => {}
            Some(deduplicate) if deduplicate.same_partition => present.extend(&deduplicate.columns),
            // A row may be taken back when somebody has come who looks at other columns.
            Some(_) => present.extend(0..setup.columns.len()),
        }
        let present: Vec<usize> = present.into_iter().collect();
        let decoder = JsonDecoder::new(&setup.columns, &present, setup.decode)
            .map_err(|error| ExecError::Invariant(error.to_string()))?;
        let mut steps = Vec::new();
        for attached in consumers {
            let step = match &attached {
                Attached::Feed(_, feed) => FeedStep::of_feed(feed, &present).map(Step::Feed),
                Attached::Pass(_, pass) => PassStep::of(pass, &present).map(Step::Pass),
            };
            steps.push((attached, step?));
        }
        Ok(Decoding { decoder, present, consumers: steps })
    }

    pub fn shortfalls(&self) -> impl Iterator<Item = (Consumer, Shortfall)> {
        self.consumers.iter().map(|(attached, step)| {
            let shortfall = match step {
                Step::Feed(step) => step.shortfall(),
                Step::Pass(step) => step.shortfall(),
            };
            (attached.consumer(), shortfall)
        })
    }

    pub fn feed(&mut self, rows: RecordBatch, out: &mut Out) {
        if rows.num_rows() > 0 {
            self.feed_delta(&Delta::inserts(rows), None, out);
        }
    }

    /// Rows were lost to all consumers.
    pub fn fail(&self, error: &ExecError, out: &mut Out) {
        for (attached, _) in &self.consumers {
            out.push((attached.consumer(), Err(ExecError::Invariant(format!("deduplication failed: {error}")))));
        }
    }

    /// Feeds all consumers, or only one.
    pub fn feed_delta(&mut self, delta: &Delta, only: Option<Consumer>, out: &mut Out) {
        let wanted = |attached: &Attached| only.is_none_or(|only| only == attached.consumer());
        for (attached, step) in self.consumers.iter_mut().filter(|(attached, _)| wanted(attached)) {
            let rows = match step {
                Step::Feed(step) => step.rows(delta).map(ReadRows::Store),
                Step::Pass(step) => step.rows(delta).map(ReadRows::Pass),
            };
            out.push((attached.consumer(), rows));
        }
    }
}
