//! Subscriptions: what a table or a materialized view changes, tick by tick, for a reader outside the engine.
//!
//! A subscription begins with the version of one tick; the changes of every later tick follow it, so there is neither a gap nor an
//! overlap. They wait in a queue of bounded size: the coordinator never waits for a reader, and one that is too slow is cut.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::coordinator::Coordinator;
use super::dataflow::TickData;
use super::error::EngineError;
use super::{ReadVersion, TickId};
use crate::catalog::Oid;
use crate::exec::Delta;

/// What may wait for one reader.
const MOST_WAITING_BYTES: usize = 64 << 20;

/// Changes of one tick.
#[derive(Debug)]
pub struct Update {
    pub tick: u64,
    pub deltas: Vec<Delta>,
}

/// The reader's end. Dropping it ends the subscription.
pub struct Subscription {
    /// The rows before the first change.
    version: Arc<dyn ReadVersion>,
    queue: Arc<Queue>,
    /// All up to this tick has been given.
    given: u64,
}

/// The coordinator's end.
pub(super) struct Subscriber {
    oid: Oid,
    name: String,
    queue: Arc<Queue>,
}

struct Queue {
    waiting: Mutex<Waiting>,
    /// One permit for the one reader.
    news: Notify,
    most_bytes: usize,
}

#[derive(Default)]
struct Waiting {
    updates: VecDeque<Update>,
    bytes: usize,
    /// The newest tick of which everything is here or has been given.
    complete: u64,
    end: Option<EngineError>,
    reader_is_gone: bool,
}

impl Queue {
    fn new(complete: u64, most_bytes: usize) -> Queue {
        let waiting = Waiting { complete, ..Waiting::default() };
        Queue { waiting: Mutex::new(waiting), news: Notify::new(), most_bytes }
    }

    /// Takes in what a tick changed; false if nobody wants to hear more.
    fn push(&self, name: &str, tick: u64, deltas: &[Delta]) -> bool {
        let mut waiting = self.waiting.lock();
        if waiting.reader_is_gone || waiting.end.is_some() {
            return false;
        }
        waiting.complete = tick;
        if deltas.iter().any(|delta| !delta.is_empty()) {
            waiting.bytes += bytes(deltas);
            waiting.updates.push_back(Update { tick, deltas: deltas.to_vec() });
        }
        // One update is no sign of a slow reader, however much it is.
        if waiting.bytes > self.most_bytes && waiting.updates.len() > 1 {
            waiting.updates.clear();
            waiting.end = Some(EngineError::TooSlow { name: name.to_string(), most_bytes: self.most_bytes });
        }
        let goes_on = waiting.end.is_none();
        drop(waiting);
        self.news.notify_one();
        goes_on
    }

    /// Says why nothing comes any more, behind what waits.
    fn end(&self, error: EngineError) {
        self.waiting.lock().end.get_or_insert(error);
        self.news.notify_one();
    }
}

fn bytes(deltas: &[Delta]) -> usize {
    let weights = |delta: &Delta| delta.weights.as_ref().map_or(0, |weights| mem::size_of_val(&weights[..]));
    deltas.iter().map(|delta| delta.rows.get_array_memory_size() + weights(delta)).sum()
}

impl Subscription {
    /// The tick of the rows that the subscription begins with, and their version.
    pub fn version(&self) -> &Arc<dyn ReadVersion> {
        &self.version
    }

    /// The next tick's changes, and the tick up to which all has been given with them. Waits for changes; with `progress`
    /// also returns without any when ticks have passed. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// Why nothing more will come: the object was dropped or has failed, the reader was too slow, the engine stops.
    pub async fn next(&mut self, progress: bool) -> Result<(Option<Update>, u64), EngineError> {
        loop {
            {
                let mut waiting = self.queue.waiting.lock();
                if let Some(update) = waiting.updates.pop_front() {
                    waiting.bytes = waiting.bytes.saturating_sub(bytes(&update.deltas));
                    let given = if waiting.updates.is_empty() { waiting.complete } else { update.tick };
                    self.given = given;
                    return Ok((Some(update), given));
                }
                if progress && waiting.complete > self.given {
                    self.given = waiting.complete;
                    return Ok((None, self.given));
                }
                if let Some(end) = waiting.end.take() {
                    waiting.end = Some(EngineError::Stopped);
                    return Err(end);
                }
            }
            self.queue.news.notified().await;
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut waiting = self.queue.waiting.lock();
        waiting.reader_is_gone = true;
        waiting.updates.clear();
    }
}

impl Coordinator {
    /// At the end of the tick in which somebody asks, before which the object's changes were wanted.
    pub(super) fn subscribe(
        &mut self,
        oid: Oid,
        as_of: Option<TickId>,
        data: &TickData,
    ) -> Result<Subscription, EngineError> {
        let begun = self.begin_subscription(oid, as_of, data);
        if begun.is_err() {
            self.unwanted_changes([oid].into_iter());
        }
        begun
    }

    fn begin_subscription(
        &mut self,
        oid: Oid,
        as_of: Option<TickId>,
        data: &TickData,
    ) -> Result<Subscription, EngineError> {
        let newest = (self.epoch, self.tick - 1);
        if let Some(asked) = as_of.filter(|asked| *asked != newest) {
            return Err(EngineError::NoSuchTick { asked, newest });
        }
        let name = match (self.tables.get(&oid), self.views.get(&oid)) {
            (Some(table), _) => table.object.name.clone(),
            (None, Some(view)) => view.object.name.clone(),
            (None, None) => return Err(EngineError::Gone { name: oid.to_string() }),
        };
        let version = Arc::new(self.version(&[oid], false, data)?);
        self.begin_changes(oid)?;
        let queue = Arc::new(Queue::new(newest.1, MOST_WAITING_BYTES));
        self.subscribers.push(Subscriber { oid, name, queue: Arc::clone(&queue) });
        Ok(Subscription { version, queue, given: newest.1 })
    }

    /// Is anybody subscribed to it?
    pub(super) fn is_subscribed(&self, oid: Oid) -> bool {
        self.subscribers.iter().any(|subscriber| subscriber.oid == oid)
    }

    /// Hands on what the tick changed, before anybody is answered.
    pub(super) fn tell_subscribers(&mut self, data: &TickData) {
        let (tick, views) = (self.tick, &self.views);
        let mut left = Vec::new();
        self.subscribers.retain(|subscriber| {
            let failed = views.get(&subscriber.oid).and_then(|view| view.failed.clone());
            if let Some(reason) = failed {
                subscriber.queue.end(EngineError::ViewFailed { view: subscriber.name.clone(), reason });
            }
            let deltas = data.outputs.get(&subscriber.oid).map(Vec::as_slice).unwrap_or_default();
            let stays = subscriber.queue.push(&subscriber.name, tick, deltas);
            if !stays {
                left.push(subscriber.oid);
            }
            stays
        });
        self.unwanted_changes(left.into_iter());
    }

    /// The object has been dropped.
    pub(super) fn end_subscriptions(&mut self, oid: Oid) {
        self.subscribers.retain(|subscriber| {
            let stays = subscriber.oid != oid;
            if !stays {
                subscriber.queue.end(EngineError::Gone { name: subscriber.name.clone() });
            }
            stays
        });
    }
}

impl Drop for Subscriber {
    /// The engine stops, if nothing else was said.
    fn drop(&mut self) {
        self.queue.end(EngineError::Stopped);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use arrow::array::{ArrayRef, Int64Array, RecordBatch};
    use datafusion::catalog::TableProvider;
    use futures::FutureExt;

    use super::*;
    use crate::planner::EventTimes;

    /// A version that nobody reads.
    struct Nothing;

    impl ReadVersion for Nothing {
        fn tick(&self) -> (u64, u64) {
            (1, 5)
        }

        fn table(&self, _: Oid) -> Option<Arc<dyn TableProvider>> {
            None
        }

        fn event_times(&self) -> Arc<dyn EventTimes> {
            unreachable!("no test asks for it")
        }
    }

    fn delta(rows: usize) -> Delta {
        let column: ArrayRef = Arc::new(Int64Array::from(vec![1; rows]));
        Delta::inserts(RecordBatch::try_from_iter([("v", column)]).expect("one column"))
    }

    fn subscription(most_bytes: usize) -> (Subscription, Arc<Queue>) {
        let queue = Arc::new(Queue::new(5, most_bytes));
        (Subscription { version: Arc::new(Nothing), queue: Arc::clone(&queue), given: 5 }, queue)
    }

    /// What comes without waiting: rows by tick, and how far that goes.
    fn next(subscription: &mut Subscription, progress: bool) -> String {
        match subscription.next(progress).now_or_never() {
            None => "nothing yet".into(),
            Some(Err(error)) => error.to_string(),
            Some(Ok((None, given))) => format!("all up to {given}"),
            Some(Ok((Some(update), given))) => {
                let rows: usize = update.deltas.iter().map(Delta::num_rows).sum();
                format!("{rows} rows of {}, all up to {given}", update.tick)
            }
        }
    }

    #[test]
    fn changes_come_by_tick_and_marks_between_them() {
        let (mut subscription, queue) = subscription(1 << 20);
        assert_eq!(next(&mut subscription, true), "nothing yet");
        assert!(queue.push("v", 6, &[]));
        assert_eq!(next(&mut subscription, false), "nothing yet");
        assert_eq!(next(&mut subscription, true), "all up to 6");
        for (tick, rows) in BTreeMap::from([(7, 1), (8, 0), (9, 2), (10, 0)]) {
            assert!(queue.push("v", tick, &[delta(rows)]));
        }
        assert_eq!(next(&mut subscription, true), "1 rows of 7, all up to 7");
        assert_eq!(next(&mut subscription, true), "2 rows of 9, all up to 10");
        assert_eq!(next(&mut subscription, true), "nothing yet");
    }

    #[test]
    fn a_reader_that_is_too_slow_is_cut() {
        let (mut subscription, queue) = subscription(2 * bytes(&[delta(100)]));
        assert!(queue.push("v", 6, &[delta(100)]));
        assert_eq!(next(&mut subscription, false), "100 rows of 6, all up to 6");
        // What has been taken does not count any more.
        assert!(queue.push("v", 7, &[delta(100)]) && queue.push("v", 8, &[delta(100)]));
        assert!(!queue.push("v", 9, &[delta(100)]));
        assert!(next(&mut subscription, false).starts_with("the subscription to \"v\" was too slow"));
        assert!(!queue.push("v", 10, &[]));
    }

    #[test]
    fn one_large_change_is_sent() {
        let (mut subscription, queue) = subscription(bytes(&[delta(100)]));
        assert!(queue.push("v", 6, &[delta(500)]));
        assert_eq!(next(&mut subscription, false), "500 rows of 6, all up to 6");
        assert!(queue.push("v", 7, &[delta(500)]));
        assert!(!queue.push("v", 8, &[delta(1)]));
    }

    #[test]
    fn an_end_comes_behind_what_waits() {
        let (mut subscription, queue) = subscription(1 << 20);
        queue.push("v", 6, &[delta(1)]);
        queue.end(EngineError::Gone { name: "v".into() });
        queue.end(EngineError::Stopped);
        assert_eq!(next(&mut subscription, false), "1 rows of 6, all up to 6");
        assert_eq!(next(&mut subscription, false), "relation \"v\" has been dropped");
    }

    #[test]
    fn nobody_gathers_for_a_reader_that_has_gone() {
        let (subscription, queue) = subscription(1 << 20);
        queue.push("v", 6, &[delta(1)]);
        drop(subscription);
        assert!(!queue.push("v", 7, &[delta(1)]));
        assert!(queue.waiting.lock().updates.is_empty());
    }
}
