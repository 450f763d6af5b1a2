//! A statement's rows on their way out.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::watch;

use super::error::PgError;
use super::interrupt::Interrupt;
use super::pg_type::PgColumn;

/// Rows that come as they are asked for. Nothing is computed far ahead of the reader, and the session's [`Interrupt`] stops it.
pub struct RowStream {
    pub columns: Arc<[PgColumn]>,
    /// What the command tag begins with.
    pub tag: RowsTag,
    batches: BoxStream<'static, Result<RecordBatch, PgError>>,
    /// What is left of a batch that held more rows than were asked for.
    rest: Option<RecordBatch>,
    interrupt: Arc<Interrupt>,
    /// Of rows that come as things happen: true once those that were there have come.
    caught_up: Option<watch::Receiver<bool>>,
}

/// The command tags of statements that give rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowsTag {
    /// `SELECT n`
    Select,
    /// `FETCH n`
    Fetch,
    /// `RECONCILE n`
    Reconcile,
    /// Without a number.
    Bare(&'static str),
}

impl RowsTag {
    pub fn with_rows(self, rows: u64) -> String {
        match self {
            RowsTag::Select => format!("SELECT {rows}"),
            RowsTag::Fetch => format!("FETCH {rows}"),
            RowsTag::Reconcile => format!("RECONCILE {rows}"),
            RowsTag::Bare(word) => word.to_string(),
        }
    }
}

impl fmt::Debug for RowStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowStream").field("columns", &self.columns).field("tag", &self.tag).finish_non_exhaustive()
    }
}

impl RowStream {
    pub fn new(
        columns: impl Into<Arc<[PgColumn]>>,
        tag: RowsTag,
        batches: BoxStream<'static, Result<RecordBatch, PgError>>,
        interrupt: Arc<Interrupt>,
    ) -> RowStream {
        RowStream { columns: columns.into(), tag, batches, rest: None, interrupt, caught_up: None }
    }

    /// The same, of rows that come as things happen and do not end.
    pub fn live(self, caught_up: watch::Receiver<bool>) -> RowStream {
        RowStream { caught_up: Some(caught_up), ..self }
    }

    pub fn is_live(&self) -> bool {
        self.caught_up.is_some()
    }

    /// Becomes true when the next rows are still to happen.
    pub fn caught_up(&self) -> watch::Receiver<bool> {
        self.caught_up.clone().unwrap_or_else(|| watch::channel(false).1)
    }

    /// The rows of one batch, such as SHOW gives.
    pub fn of(batch: RecordBatch, tag: RowsTag, interrupt: Arc<Interrupt>) -> RowStream {
        let columns = PgColumn::all(&batch.schema());
        RowStream::new(columns, tag, stream::iter([Ok(batch)]).boxed(), interrupt)
    }

    /// The next rows, at most `most` of them; `None` at the end. Batches without rows are passed over.
    pub async fn next(&mut self, most: usize) -> Result<Option<RecordBatch>, PgError> {
        loop {
            let batch = match self.rest.take() {
                Some(rest) => rest,
                None => match self.interrupt.guard(async { self.batches.next().await.transpose() }).await? {
                    Some(batch) => batch,
                    None => return Ok(None),
                },
            };
            if batch.num_rows() > most {
                self.rest = Some(batch.slice(most, batch.num_rows() - most));
                return Ok(Some(batch.slice(0, most)));
            }
            if batch.num_rows() > 0 {
                return Ok(Some(batch));
            }
        }
    }
}

/// A batch of text columns.
pub fn texts<const N: usize>(names: [&str; N], rows: &[[Option<String>; N]]) -> RecordBatch {
    use arrow::array::{ArrayRef, StringArray};
    use arrow::datatypes::{DataType, Field};
    let fields: Vec<Field> = names.iter().map(|name| Field::new(*name, DataType::Utf8, true)).collect();
    let columns = (0..N).map(|i| {
        let column: StringArray = rows.iter().map(|row| row[i].as_deref()).collect();
        Arc::new(column) as ArrayRef
    });
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.collect())
        .expect("each column has one value for each row")
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, Int64Array};

    #[tokio::test]
    async fn rows_come_in_the_portions_asked_for() {
        let batch = |rows: std::ops::Range<i64>| {
            let column: ArrayRef = Arc::new(Int64Array::from_iter_values(rows));
            Ok(RecordBatch::try_from_iter([("n", column)]).expect("one column"))
        };
        let batches = stream::iter([batch(0..5), batch(0..0), batch(5..6)]).boxed();
        let mut rows = RowStream::new(vec![], RowsTag::Select, batches, Arc::default());
        let mut portions = Vec::new();
        while let Some(portion) = rows.next(2).await.expect("no error in it") {
            portions.push(portion.num_rows());
        }
        assert_eq!(portions, [2, 2, 1, 1]);
    }
}
