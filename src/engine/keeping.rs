//! What lasts: when a checkpoint is due, who waits for it, and what the storage has said.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::checkpoint::SaveOrder;
use super::checkpointer::{Checkpointer, Committed, Creations, Holding, Job, Said};
use super::clock::{self, Stopwatch};
use super::stats::CheckpointStats;
use super::table_log::{Logged, TableLog};
use super::{EngineError, TickId};
use crate::catalog::Oid;
use crate::storage::{Storage, StorageError};

/// A checkpoint is due when replaying what has come since the last would take this long (SEMANTICS 6.5).
const MOST_REPLAY: Duration = Duration::from_secs(2);
/// And when so much time has passed, unless an option says otherwise.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(10);
/// A checkpoint that nobody waits for begins when so many times as long as the last took have passed.
const RESTS: u32 = 2;
/// What is shown once it is kept does not wait longer than this for the next checkpoint to begin.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// When a checkpoint has failed so often, some seconds, those who wait are told that it is not known when it will be there.
const PATIENCE: u32 = 6;
/// `riverrun.checkpoints` lists so many.
const LISTED: usize = 100;

type Waiter = Box<dyn FnOnce(Result<(), EngineError>) + Send>;

pub(super) struct Keeping {
    pub storage: Storage,
    checkpointer: Checkpointer,
    log: TableLog,
    interval: Duration,
    in_flight: Option<InFlight>,
    /// When the last one began.
    since: Stopwatch,
    took: Duration,
    /// What reading since then took, by worker.
    busy: Vec<Duration>,
    /// Nothing has changed since the last but the clock.
    quiet: bool,
    /// A checkpoint is wanted by who is shown what it holds.
    is_awaited_soon: bool,
    /// Parts that are better saved whole the next time.
    grown: BTreeSet<String>,
    /// Until a checkpoint of the tick or a later one is there.
    waiting: Vec<(u64, Waiter)>,
    /// Until a manifest names what was created by the tick.
    creators: Vec<(u64, Waiter)>,
    next_record: u64,
    /// By record, who waits for it.
    writes: BTreeMap<u64, Waiter>,
    /// Records for which nobody waits yet, with what became of them.
    logged: BTreeMap<u64, Result<(), EngineError>>,
    /// What has become of records below this has been said once.
    told: u64,
    /// The log cannot be written.
    log_failure: Option<String>,
    /// The present checkpoint cannot be written.
    failure: Option<String>,
    history: VecDeque<CheckpointStats>,
    /// The last tick that was kept.
    kept: TickId,
    /// The engine stops once a tick from this one on is kept.
    last_from: Option<TickId>,
    wants_last: bool,
}

struct InFlight {
    tick: u64,
    settled: Settled,
}

/// Up to where sources are settled.
pub(super) type Settled = Arc<Vec<(Oid, i64)>>;

/// What a word of the storage means for the engine.
pub(super) enum Heard {
    /// Reading may go on.
    Well,
    /// And a checkpoint of this tick holds that sources are settled so far.
    Kept(u64, Settled),
    /// Reading rests until the storage is mended.
    Failing,
    /// Another process owns the data: this one must end.
    Fenced(String),
}

impl Keeping {
    pub fn new(
        storage: Storage,
        checkpointer: Checkpointer,
        log: TableLog,
        interval: Duration,
        workers: usize,
        next_record: u64,
    ) -> Keeping {
        Keeping {
            storage,
            checkpointer,
            log,
            interval,
            in_flight: None,
            since: Stopwatch::start(),
            took: Duration::ZERO,
            busy: vec![Duration::ZERO; workers],
            quiet: false,
            is_awaited_soon: false,
            grown: BTreeSet::new(),
            waiting: Vec::new(),
            creators: Vec::new(),
            next_record,
            writes: BTreeMap::new(),
            logged: BTreeMap::new(),
            told: next_record,
            log_failure: None,
            failure: None,
            history: VecDeque::new(),
            kept: (0, 0),
            last_from: None,
            wants_last: false,
        }
    }

    /// Whether the tick that ends is to be kept, and then what is to be saved whole. `changed`: somebody waits for that.
    pub fn order(&mut self, changed: bool) -> Option<Arc<SaveOrder>> {
        if self.in_flight.is_some() {
            return None;
        }
        let asked = changed || self.wants_last || !self.waiting.is_empty();
        let rested = self.since.elapsed() >= self.took * RESTS;
        let replay = self.busy.iter().max().copied().unwrap_or_default();
        let due = self.since.elapsed() >= self.interval
            || rested && (replay >= MOST_REPLAY || self.is_awaited_soon && self.since.elapsed() >= LONGEST_WAIT);
        let due = due && !self.quiet;
        (asked || due).then(|| Arc::new(SaveOrder { grown: std::mem::take(&mut self.grown) }))
    }

    /// Before the process ends: true until a checkpoint of this tick or a later one is there.
    pub fn wants_last(&mut self, tick: TickId) -> bool {
        let from = *self.last_from.get_or_insert(tick);
        self.wants_last = self.kept < from;
        self.wants_last
    }

    /// Somebody waits for what a checkpoint in flight holds, or the next one.
    pub fn is_awaited(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Can a manifest name what is created now before a checkpoint holds it?
    pub fn can_add(&self) -> bool {
        self.kept > (0, 0)
    }

    /// Has a manifest name what was created. Soon a checkpoint holds what it has become.
    pub fn add(&mut self, creations: Creations) {
        self.quiet = false;
        self.checkpointer.begin(Job::Creations(Box::new(creations)));
    }

    /// When what was created by the end of this tick, and [`added`](Keeping::add), will be there after a crash.
    pub fn once_added(&mut self, tick: u64, then: impl FnOnce(Result<(), EngineError>) + Send + 'static) {
        self.creators.push((tick, Box::new(then)));
    }

    pub fn begin(&mut self, tick: u64, job: Holding, settled: Settled) {
        self.in_flight = Some(InFlight { tick, settled });
        self.is_awaited_soon = false;
        self.since = Stopwatch::start();
        self.busy.fill(Duration::ZERO);
        self.quiet = true;
        self.push(CheckpointStats::writing(job.body.tick, job.parts.len(), clock::now_us()));
        self.checkpointer.begin(Job::Checkpoint(Box::new(job)));
    }

    /// What reading took a worker in a tick.
    pub fn note_busy(&mut self, worker: usize, busy: Duration) {
        self.busy[worker] += busy;
        self.quiet &= busy.is_zero();
    }

    /// Somebody is shown something once a checkpoint holds it: a window that has ended, or what is subscribed to as committed.
    pub fn note_awaited(&mut self) {
        (self.quiet, self.is_awaited_soon) = (false, true);
    }

    /// A checkpoint of this tick or a later one begins as soon as it can.
    pub fn hasten(&mut self, tick: u64) {
        self.quiet = false;
        self.once_kept(tick, |_| {});
    }

    /// Something is there now that is worth a checkpoint within the interval.
    pub fn note_change(&mut self) {
        self.quiet = false;
    }

    /// When what the tick has done will be there after a crash.
    pub fn once_kept(&mut self, tick: u64, then: impl FnOnce(Result<(), EngineError>) + Send + 'static) {
        self.waiting.push((tick, Box::new(then)));
    }

    /// Refuses what could not be kept now.
    pub fn check(&self) -> Result<(), EngineError> {
        match self.failure.as_ref().or(self.log_failure.as_ref()) {
            Some(error) => Err(EngineError::Storage { message: error.clone() }),
            None => Ok(()),
        }
    }

    /// The number of the last record that was given away.
    pub fn last_record(&self) -> u64 {
        self.next_record - 1
    }

    /// Puts a transaction's changes into the log, under the number returned.
    pub fn append(&mut self, record: bytes::Bytes) -> u64 {
        let number = self.next_record;
        self.next_record += 1;
        self.quiet = false;
        self.log.append(number, record);
        number
    }

    /// When the record is there after a crash.
    pub fn once_logged(&mut self, number: u64, then: impl FnOnce(Result<(), EngineError>) + Send + 'static) {
        match self.logged.remove(&number) {
            Some(outcome) => then(outcome),
            None => drop(self.writes.insert(number, Box::new(then))),
        }
    }

    pub fn logged(&mut self, said: Logged) -> Heard {
        let outcome = match said.outcome {
            Ok(()) => Ok(()),
            Err(StorageError::Fenced { .. }) => return Heard::Fenced(fenced()),
            Err(error) => Err(error.to_string()),
        };
        for number in said.first..said.first + said.records {
            let told = outcome.clone().map_err(|cause| EngineError::Unknown { cause });
            match self.writes.remove(&number) {
                Some(then) => then(told),
                // Not again to those who have been told of a failure.
                None if number >= self.told => drop(self.logged.insert(number, told)),
                None => {}
            }
            self.told = self.told.max(number + 1);
        }
        match outcome {
            Ok(()) => {
                self.log_failure = None;
                Heard::Well
            }
            Err(error) => {
                tracing::error!(%error, "the log of tables cannot be written; it is tried again");
                self.log_failure = Some(error);
                Heard::Failing
            }
        }
    }

    pub fn said(&mut self, said: Said) -> Heard {
        match said {
            Said::Committed(committed) => match self.committed(&committed) {
                Some(InFlight { tick, settled }) => Heard::Kept(tick, settled),
                None => Heard::Well,
            },
            Said::Created { tick } => {
                self.works(tick);
                for (_, then) in self.creators.extract_if(.., |(made_in, _)| *made_in <= tick.1) {
                    then(Ok(()));
                }
                Heard::Well
            }
            Said::Failed { error: StorageError::Fenced { .. }, .. } => Heard::Fenced(fenced()),
            Said::Failed { tick, error, tries } => {
                tracing::error!(%error, tries, "a checkpoint cannot be written; nothing is read meanwhile");
                let message = error.to_string();
                // Who waits for a checkpointer that has given up would wait for ever.
                if !error.is_retryable() || tries >= PATIENCE {
                    let waiting = std::mem::take(&mut self.waiting);
                    for (_, then) in waiting.into_iter().chain(std::mem::take(&mut self.creators)) {
                        then(Err(EngineError::Unknown { cause: message.clone() }));
                    }
                }
                if let Some(listed) = self.history.back_mut().filter(|listed| listed.tick == tick) {
                    listed.failed(tries, &message);
                }
                self.failure = Some(message);
                Heard::Failing
            }
        }
    }

    fn committed(&mut self, committed: &Committed) -> Option<InFlight> {
        let in_flight = self.in_flight.take()?;
        self.works(committed.tick);
        (self.took, self.kept) = (committed.took, committed.tick);
        self.grown = committed.grown.clone();
        let generation = self.storage.generation();
        if let Some(listed) = self.history.back_mut() {
            listed.committed(committed, generation);
        }
        let (done, left) = std::mem::take(&mut self.waiting).into_iter().partition(|(tick, _)| *tick <= in_flight.tick);
        self.waiting = left;
        let done: Vec<(u64, Waiter)> = done;
        done.into_iter().for_each(|(_, then)| then(Ok(())));
        Some(in_flight)
    }

    fn works(&mut self, tick: TickId) {
        if self.failure.take().is_some() {
            tracing::info!(?tick, "checkpoints are written again");
        }
    }

    fn push(&mut self, listed: CheckpointStats) {
        if self.history.len() == LISTED {
            self.history.pop_front();
        }
        self.history.push_back(listed);
    }

    pub fn history(&self) -> Vec<CheckpointStats> {
        self.history.iter().cloned().collect()
    }

    /// Ends the threads.
    pub fn stop(self) {
        self.log.stop();
        self.checkpointer.stop();
    }
}

fn fenced() -> String {
    "another process has taken over the data: this one ends".into()
}
