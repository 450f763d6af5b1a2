//! SUBSCRIBE: a table's or a materialized view's rows, then what changes in them, as rows with a weight.
//!
//! Columns: `tick` (NUMERIC, [`tick_number`]), `progressed` (BOOLEAN, with PROGRESS), `diff` (BIGINT, the weight), and the object's. All
//! rows of one tick come together. Summing `diff` by the object's columns up to a tick gives the object as of that tick. A row
//! with `progressed` says that all up to its tick has been sent.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, BooleanArray, Decimal128Array, Int64Array, RecordBatch, new_null_array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use futures::{StreamExt, stream};
use tokio::sync::{Mutex, watch};

use super::error::PgError;
use super::pg_type::PgColumn;
use super::reading::Batches;
use super::rows::{RowStream, RowsTag};
use super::session::Session;
use super::sqlstate as code;
use crate::catalog::{Object, ObjectKind};
use crate::engine::{Subscription, tick_number, tick_of_number};
use crate::exec::Delta;
use crate::sql::{self, Name, Statement, Subscribe};

/// Room for the 16 digits of an epoch and the 12 of a count.
const TICK: DataType = DataType::Decimal128(38, 0);

/// How rows of a subscription are laid out.
struct Shape {
    schema: SchemaRef,
    progress: bool,
}

impl Shape {
    fn new(object: &Object, progress: bool) -> Shape {
        let own = [
            Some(Field::new("tick", TICK, true)),
            progress.then(|| Field::new("progressed", DataType::Boolean, true)),
            Some(Field::new("diff", DataType::Int64, true)),
        ];
        // In a row of progress all of them are NULL.
        let columns = object.columns.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
        Shape { schema: Arc::new(Schema::new(own.into_iter().flatten().chain(columns).collect::<Vec<_>>())), progress }
    }

    fn rows(&self, tick: i128, rows: &RecordBatch, weights: Int64Array) -> Result<RecordBatch, PgError> {
        self.batch(tick, rows.num_rows(), false, Arc::new(weights), rows.columns())
    }

    /// All up to this tick has been sent.
    fn mark(&self, tick: i128) -> Result<RecordBatch, PgError> {
        let own = if self.progress { 3 } else { 2 };
        let nulls: Vec<ArrayRef> =
            self.schema.fields()[own..].iter().map(|field| new_null_array(field.data_type(), 1)).collect();
        self.batch(tick, 1, true, new_null_array(&DataType::Int64, 1), &nulls)
    }

    fn batch(
        &self,
        tick: i128,
        rows: usize,
        is_mark: bool,
        diff: ArrayRef,
        columns: &[ArrayRef],
    ) -> Result<RecordBatch, PgError> {
        let ticks = Decimal128Array::from(vec![tick; rows]).with_data_type(TICK);
        let progressed: ArrayRef = Arc::new(BooleanArray::from(vec![is_mark; rows]));
        let own = [Some(Arc::new(ticks) as ArrayRef), self.progress.then_some(progressed), Some(diff)];
        let all = own.into_iter().flatten().chain(columns.iter().cloned()).collect();
        RecordBatch::try_new(Arc::clone(&self.schema), all).map_err(code::from_arrow)
    }
}

/// Where a subscription's stream stands.
struct Live {
    shape: Shape,
    epoch: u64,
    /// The snapshot, until it has been sent.
    snapshot: Option<Batches>,
    /// A mark that is due.
    mark: Option<u64>,
    /// Changes of a tick that are still to be sent.
    deltas: std::vec::IntoIter<Delta>,
    delta_tick: u64,
    subscription: Subscription,
    caught_up: watch::Sender<bool>,
}

impl Live {
    async fn next(mut self) -> Result<Option<(RecordBatch, Live)>, PgError> {
        loop {
            if let Some(snapshot) = &mut self.snapshot {
                match snapshot.next().await {
                    Some(rows) => {
                        let rows = rows?;
                        let weights = Int64Array::from(vec![1; rows.num_rows()]);
                        let batch = self.shape.rows(self.number(self.delta_tick), &rows, weights)?;
                        return Ok(Some((batch, self)));
                    }
                    None => self.snapshot = None,
                }
            }
            if let Some(delta) = self.deltas.next() {
                let weights = (0..delta.num_rows()).map(|row| delta.weight(row)).collect();
                let batch = self.shape.rows(self.number(self.delta_tick), &delta.rows, weights)?;
                return Ok(Some((batch, self)));
            }
            if let Some(tick) = self.mark.take().filter(|_| self.shape.progress) {
                let batch = self.shape.mark(self.number(tick))?;
                return Ok(Some((batch, self)));
            }
            self.caught_up.send_replace(true);
            let (update, given) = self.subscription.next(self.shape.progress).await?;
            if let Some(update) = update {
                self.delta_tick = update.tick;
                self.deltas = update.deltas.into_iter();
            }
            self.mark = Some(given);
        }
    }

    fn number(&self, tick: u64) -> i128 {
        tick_number((self.epoch, tick))
    }
}

/// What a FETCH of at most `most` rows gives: the rows that are there, or else the first that come before `timeout` is over.
pub(super) fn fetch(cursor: Arc<Mutex<RowStream>>, most: usize, timeout: Option<Duration>) -> Batches {
    let batches = stream::try_unfold((cursor, most, timeout, true), |(cursor, left, timeout, is_first)| async move {
        if left == 0 {
            return Ok(None);
        }
        let batch = {
            let mut rows = cursor.lock().await;
            let mut caught_up = rows.caught_up();
            match timeout {
                Some(timeout) if is_first => {
                    tokio::time::timeout(timeout, rows.next(left)).await.unwrap_or(Ok(None))?
                }
                _ if is_first => rows.next(left).await?,
                // What was there at the beginning comes whole, however long it takes to compute.
                _ => tokio::select! {
                    biased;
                    batch = rows.next(left) => batch?,
                    () = async { caught_up.wait_for(|caught_up| *caught_up).await.map_or((), |_| ()) } => None,
                },
            }
        };
        Ok(batch.map(|batch| {
            let left = left - batch.num_rows();
            (batch, (cursor, left, timeout, false))
        }))
    });
    batches.boxed()
}

impl Session {
    /// The columns of a subscription.
    pub(super) fn subscription_columns(&self, subscribe: &Subscribe) -> Result<Vec<PgColumn>, PgError> {
        let object = self.subscribed_object(&subscribe.name)?;
        Ok(PgColumn::all(&Shape::new(&object, subscribe.progress).schema))
    }

    /// Subscribes. The rows go on until the client, the object or the server ends them.
    pub(super) async fn subscribe(&mut self, subscribe: &Subscribe) -> Result<RowStream, PgError> {
        self.interrupt.without_limit();
        let object = self.subscribed_object(&subscribe.name)?;
        let as_of = match subscribe.as_of.map(|number| tick_of_number(number).ok_or(number)) {
            None => None,
            Some(Ok(tick)) => Some(tick),
            Some(Err(number)) => {
                return Err(PgError::new(code::INVALID_PARAMETER_VALUE, format!("{number} is no tick")));
            }
        };
        let engine = self.shared.engine.clone();
        let begun = async { engine.subscribe(object.oid, as_of, subscribe.committed).await.map_err(PgError::from) };
        let subscription = self.interrupt.guard(begun).await?;
        let (epoch, tick) = subscription.version().tick();
        let snapshot = match subscribe.snapshot {
            true => Some(self.snapshot(&object, &subscription).await?),
            false => None,
        };
        let shape = Shape::new(&object, subscribe.progress);
        let columns = PgColumn::all(&shape.schema);
        let (caught_up, is_caught_up) = watch::channel(false);
        let live = Live {
            shape,
            epoch,
            snapshot,
            mark: Some(tick),
            deltas: Vec::new().into_iter(),
            delta_tick: tick,
            subscription,
            caught_up,
        };
        let batches = stream::try_unfold(live, Live::next).boxed();
        let rows = RowStream::new(columns, RowsTag::Bare("SUBSCRIBE"), batches, Arc::clone(&self.interrupt));
        Ok(rows.live(is_caught_up))
    }

    /// The rows that a subscription begins with.
    async fn snapshot(&self, object: &Object, subscription: &Subscription) -> Result<Batches, PgError> {
        let version = subscription.version();
        let tables = version.table(object.oid).map(|table| (object.oid, table)).into_iter().collect();
        let reads = self.reads(self.shared.engine.catalog(), tables, Some(version.event_times()));
        let text = format!("SELECT * FROM {}", Name(vec![object.schema.clone(), object.name.clone()]));
        let parsed = sql::parse(&text)?.into_iter().next();
        let Some(Statement::Query(query)) = parsed.map(|parsed| parsed.statement) else {
            return Err(PgError::new(code::SYNTAX_ERROR, "a query was expected"));
        };
        let plan = self.plan(&query, &reads, &[], &text).await?;
        self.run(plan, &reads, &[], &text).await
    }

    fn subscribed_object(&self, name: &Name) -> Result<Arc<Object>, PgError> {
        let object = self.shared.engine.catalog().resolve(name, &self.name_context())?;
        let (kind, hint) = match &object.kind {
            ObjectKind::Table(_) | ObjectKind::MaterializedView(_) => return Ok(object),
            ObjectKind::Source(_) => ("source", "Subscribe to a materialized view over it."),
            ObjectKind::View { .. } => ("view", "Make a materialized view of its query, and subscribe to that."),
        };
        let message = format!("cannot subscribe to \"{}\": it is a {kind}", object.name);
        Err(PgError::new(code::WRONG_OBJECT_TYPE, message).hint(hint))
    }
}
