//! Subscriptions: what a table or a materialized view changes, tick by tick, for a reader outside the engine.
//!
//! A subscription begins with the version of one tick; the changes of every later tick follow it, so there is neither a gap nor an
//! overlap. They wait in a queue of bounded size: the coordinator never waits for a reader, and one that is too slow is cut. What is
//! subscribed to as committed waits there until a checkpoint holds it.

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
    /// Nothing is given before a checkpoint holds it.
    committed: bool,
}

#[derive(Default)]
struct Waiting {
    updates: VecDeque<Update>,
    bytes: usize,
    /// The newest tick of which everything is here or has been given.
    complete: u64,
    /// What may be given: all up to this tick.
    released: u64,
    end: Option<EngineError>,
    reader_is_gone: bool,
}

impl Waiting {
    /// The next update that may be given.
    fn take(&mut self) -> Option<Update> {
        let released = self.released;
        let update = self.updates.pop_front_if(|update| update.tick <= released)?;
        self.bytes = self.bytes.saturating_sub(bytes(&update.deltas));
        Some(update)
    }

    fn given_up_to(&self) -> u64 {
        let before_next = self.updates.front().map_or(u64::MAX, |next| next.tick - 1);
        self.complete.min(self.released).min(before_next)
    }
}

/// What became of changes for one reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pushed {
    Taken,
    /// Changes wait for a checkpoint: for one soon, or, as they take much room, for the next that can be.
    Unkept {
        at_once: bool,
    },
    /// Nobody wants to hear more.
    Unwanted,
}

impl Queue {
    fn new(complete: u64, most_bytes: usize, committed: bool) -> Queue {
        let released = if committed { 0 } else { u64::MAX };
        let waiting = Waiting { complete, released, ..Waiting::default() };
        Queue { waiting: Mutex::new(waiting), news: Notify::new(), most_bytes, committed }
    }

    /// Takes in what a tick changed.
    fn push(&self, name: &str, tick: u64, deltas: &[Delta]) -> Pushed {
        let mut waiting = self.waiting.lock();
        if waiting.reader_is_gone || waiting.end.is_some() {
            return Pushed::Unwanted;
        }
        waiting.complete = tick;
        if deltas.iter().any(|delta| !delta.is_empty()) {
            waiting.bytes += bytes(deltas);
            waiting.updates.push_back(Update { tick, deltas: deltas.to_vec() });
        }
        // One update is no sign of a slow reader, however much it is.
        if waiting.bytes > self.most_bytes && waiting.updates.len() > 1 {
            let (name, most_bytes) = (name.to_string(), self.most_bytes);
            let unkept = waiting.updates.front().is_some_and(|first| first.tick > waiting.released);
            waiting.updates.clear();
            waiting.end = Some(match unkept {
                true => EngineError::TooMuchUnkept { name, most_bytes },
                false => EngineError::TooSlow { name, most_bytes },
            });
        }
        let pushed = match &waiting.end {
            Some(_) => Pushed::Unwanted,
            None if waiting.updates.back().is_some_and(|last| last.tick > waiting.released) => {
                Pushed::Unkept { at_once: waiting.bytes > self.most_bytes / 2 }
            }
            None => Pushed::Taken,
        };
        drop(waiting);
        self.news.notify_one();
        pushed
    }

    /// A checkpoint of this tick is there.
    fn release(&self, tick: u64) {
        let mut waiting = self.waiting.lock();
        waiting.released = waiting.released.max(tick);
        drop(waiting);
        self.news.notify_one();
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

    /// Waits until what the subscription begins with may be given.
    ///
    /// # Errors
    /// As those of [`Subscription::next`].
    pub(super) async fn released(&mut self) -> Result<(), EngineError> {
        loop {
            {
                let mut waiting = self.queue.waiting.lock();
                if waiting.released >= self.given {
                    return Ok(());
                }
                if let Some(end) = waiting.end.take() {
                    waiting.end = Some(EngineError::Stopped);
                    return Err(end);
                }
            }
            self.queue.news.notified().await;
        }
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
                if let Some(update) = waiting.take() {
                    self.given = waiting.given_up_to();
                    return Ok((Some(update), self.given));
                }
                let given = waiting.given_up_to();
                if progress && given > self.given {
                    self.given = given;
                    return Ok((None, given));
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
        committed: bool,
        data: &TickData,
    ) -> Result<Subscription, EngineError> {
        let begun = self.begin_subscription(oid, as_of, committed, data);
        if begun.is_err() {
            self.unwanted_changes([oid].into_iter());
        }
        begun
    }

    fn begin_subscription(
        &mut self,
        oid: Oid,
        as_of: Option<TickId>,
        committed: bool,
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
        if committed {
            self.hasten_checkpoint(newest.1)?;
        }
        self.begin_changes(oid)?;
        let queue = Arc::new(Queue::new(newest.1, MOST_WAITING_BYTES, committed));
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
        let (mut left, mut unkept) = (Vec::new(), None);
        self.subscribers.retain(|subscriber| {
            let failed = views.get(&subscriber.oid).and_then(|view| view.failed.clone());
            if let Some(reason) = failed {
                subscriber.queue.end(EngineError::ViewFailed { view: subscriber.name.clone(), reason });
            }
            let deltas = data.outputs.get(&subscriber.oid).map(Vec::as_slice).unwrap_or_default();
            let pushed = subscriber.queue.push(&subscriber.name, tick, deltas);
            match pushed {
                Pushed::Taken => {}
                Pushed::Unkept { at_once } => unkept = Some(at_once || unkept.unwrap_or_default()),
                Pushed::Unwanted => left.push(subscriber.oid),
            }
            pushed != Pushed::Unwanted
        });
        self.unwanted_changes(left.into_iter());
        let Some(keeping) = &mut self.keeping else { return };
        match unkept {
            Some(true) => keeping.hasten(tick),
            Some(false) => keeping.note_awaited(),
            // Somebody may wait to hear that nothing has changed.
            None if self.subscribers.iter().any(|s| s.queue.committed) => keeping.note_change(),
            None => {}
        }
    }

    /// A checkpoint of this tick is there.
    pub(super) fn release_subscribers(&self, tick: u64) {
        self.subscribers.iter().filter(|s| s.queue.committed).for_each(|s| s.queue.release(tick));
    }

    fn hasten_checkpoint(&mut self, tick: u64) -> Result<(), EngineError> {
        match &mut self.keeping {
            Some(keeping) => {
                keeping.check()?;
                keeping.hasten(tick);
                Ok(())
            }
            None => Err(EngineError::Unsupported {
                message: "nothing that this server has is ever committed: it keeps no state".into(),
                hint: "Leave COMMITTED out, or start the server without --in-memory.".into(),
            }),
        }
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
        let queue = Arc::new(Queue::new(5, most_bytes, false));
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
        assert_eq!(queue.push("v", 6, &[]), Pushed::Taken);
        assert_eq!(next(&mut subscription, false), "nothing yet");
        assert_eq!(next(&mut subscription, true), "all up to 6");
        for (tick, rows) in BTreeMap::from([(7, 1), (8, 0), (9, 2), (10, 0)]) {
            assert_eq!(queue.push("v", tick, &[delta(rows)]), Pushed::Taken);
        }
        assert_eq!(next(&mut subscription, true), "1 rows of 7, all up to 8");
        assert_eq!(next(&mut subscription, true), "2 rows of 9, all up to 10");
        assert_eq!(next(&mut subscription, true), "nothing yet");
    }

    #[test]
    fn a_reader_that_is_too_slow_is_cut() {
        let (mut subscription, queue) = subscription(2 * bytes(&[delta(100)]));
        assert_eq!(queue.push("v", 6, &[delta(100)]), Pushed::Taken);
        assert_eq!(next(&mut subscription, false), "100 rows of 6, all up to 6");
        // What has been taken does not count any more.
        assert_eq!([7, 8].map(|tick| queue.push("v", tick, &[delta(100)])), [Pushed::Taken; 2]);
        assert_eq!(queue.push("v", 9, &[delta(100)]), Pushed::Unwanted);
        assert!(next(&mut subscription, false).starts_with("the subscription to \"v\" was too slow"));
        assert_eq!(queue.push("v", 10, &[]), Pushed::Unwanted);
    }

    #[test]
    fn one_large_change_is_sent() {
        let (mut subscription, queue) = subscription(bytes(&[delta(100)]));
        assert_eq!(queue.push("v", 6, &[delta(500)]), Pushed::Taken);
        assert_eq!(next(&mut subscription, false), "500 rows of 6, all up to 6");
        assert_eq!(queue.push("v", 7, &[delta(500)]), Pushed::Taken);
        assert_eq!(queue.push("v", 8, &[delta(1)]), Pushed::Unwanted);
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
        assert_eq!(queue.push("v", 7, &[delta(1)]), Pushed::Unwanted);
        assert!(queue.waiting.lock().updates.is_empty());
    }

    fn committed(most_bytes: usize) -> (Subscription, Arc<Queue>) {
        let queue = Arc::new(Queue::new(5, most_bytes, true));
        (Subscription { version: Arc::new(Nothing), queue: Arc::clone(&queue), given: 5 }, queue)
    }

    #[test]
    fn what_is_to_be_committed_waits_for_checkpoints() {
        let (mut subscription, queue) = committed(1 << 20);
        assert!(subscription.released().now_or_never().is_none());
        queue.release(4);
        assert!(subscription.released().now_or_never().is_none());
        assert_eq!(queue.push("v", 6, &[delta(1)]), Pushed::Unkept { at_once: false });
        queue.release(5);
        assert!(subscription.released().now_or_never().is_some_and(|released| released.is_ok()));
        assert_eq!(next(&mut subscription, true), "nothing yet");
        for (tick, rows) in [(7, 0), (8, 2), (9, 0)] {
            assert_eq!(queue.push("v", tick, &[delta(rows)]), Pushed::Unkept { at_once: false });
        }
        queue.release(7);
        assert_eq!(next(&mut subscription, true), "1 rows of 6, all up to 7");
        assert_eq!(next(&mut subscription, true), "nothing yet");
        queue.release(9);
        assert_eq!(next(&mut subscription, false), "2 rows of 8, all up to 9");
        assert_eq!(queue.push("v", 10, &[]), Pushed::Taken);
        assert_eq!(next(&mut subscription, true), "nothing yet");
        // A checkpoint may be of a tick that has not been told.
        queue.release(12);
        assert_eq!(next(&mut subscription, true), "all up to 10");
        queue.push("v", 13, &[delta(3)]);
        queue.end(EngineError::Gone { name: "v".into() });
        assert_eq!(next(&mut subscription, true), "all up to 12");
        assert_eq!(next(&mut subscription, true), "relation \"v\" has been dropped");
    }

    #[test]
    fn what_waits_long_for_a_checkpoint_asks_for_one_and_has_its_bounds() {
        let (mut subscription, queue) = committed(4 * bytes(&[delta(100)]));
        queue.release(5);
        assert_eq!([6, 7].map(|tick| queue.push("v", tick, &[delta(100)])), [Pushed::Unkept { at_once: false }; 2]);
        assert_eq!([8, 9].map(|tick| queue.push("v", tick, &[delta(100)])), [Pushed::Unkept { at_once: true }; 2]);
        assert_eq!(queue.push("v", 10, &[delta(100)]), Pushed::Unwanted);
        let error = next(&mut subscription, false);
        assert_eq!(error, "more than 0 MiB of changes of \"v\" wait for a checkpoint");
    }
}
