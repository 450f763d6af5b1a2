//! Reconciliations under way: how far they have come, and how they are stopped.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::clock;
use super::error::EngineError;
use super::stats::JobStats;
use crate::catalog::{FIRST_USER_OID, Object, Oid};

/// All that are under way; one is until nobody works for it any more.
#[derive(Debug, Default)]
pub struct Reconciliations {
    known: Mutex<Known>,
    /// One repair at a time: one must not let a source go on that another holds.
    pub repairing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Known {
    last_id: Oid,
    running: Vec<Weak<Reconciliation>>,
}

/// One statement's work.
#[derive(Debug)]
pub struct Reconciliation {
    pub id: Oid,
    database: String,
    schema: String,
    name: String,
    started_us: i64,
    pub work: Work,
    /// By topic, why rows that differ prove nothing: its log no longer holds all that was read of it.
    thinned: Mutex<BTreeMap<String, String>>,
    cancelled: watch::Sender<bool>,
}

/// What has been done of it.
#[derive(Debug, Default)]
pub struct Work {
    /// Records that came.
    records: AtomicI64,
    /// Offsets of the logs, passed and in all.
    read: AtomicI64,
    to_read: AtomicI64,
    repairs: AtomicBool,
}

impl Work {
    /// So many offsets, with so many records.
    pub fn has_read(&self, offsets: i64, records: usize) {
        self.read.fetch_add(offsets, Ordering::Relaxed);
        self.records.fetch_add(records as i64, Ordering::Relaxed);
    }

    pub fn is_to_read(&self, offsets: i64) {
        self.to_read.fetch_add(offsets, Ordering::Relaxed);
    }

    pub fn records(&self) -> i64 {
        self.records.load(Ordering::Relaxed)
    }

    /// From comparing on to repairing.
    pub fn repairs(&self) {
        self.repairs.store(true, Ordering::Relaxed);
    }
}

impl Reconciliations {
    pub fn begin(&self, view: &Object) -> Arc<Reconciliation> {
        let mut known = self.known.lock();
        known.running.retain(|running| running.strong_count() > 0);
        let taken: Vec<Oid> = known.running.iter().filter_map(Weak::upgrade).map(|running| running.id).collect();
        // Below the OIDs, which are the ids of other jobs.
        let next = |id: Oid| if id + 1 < FIRST_USER_OID { id + 1 } else { 1 };
        let mut id = next(known.last_id);
        while taken.contains(&id) {
            id = next(id);
        }
        known.last_id = id;
        let running = Arc::new(Reconciliation {
            id,
            database: view.database.clone(),
            schema: view.schema.clone(),
            name: view.name.clone(),
            started_us: clock::now_us(),
            work: Work::default(),
            thinned: Mutex::default(),
            cancelled: watch::Sender::new(false),
        });
        known.running.push(Arc::downgrade(&running));
        running
    }

    /// One of a database's.
    pub fn get(&self, id: Oid, database: &str) -> Option<Arc<Reconciliation>> {
        let known = self.known.lock();
        known.running.iter().filter_map(Weak::upgrade).find(|running| running.id == id && running.database == database)
    }

    pub fn jobs(&self) -> Vec<JobStats> {
        let running: Vec<Arc<Reconciliation>> = self.known.lock().running.iter().filter_map(Weak::upgrade).collect();
        running.iter().map(|running| running.job()).collect()
    }
}

impl Reconciliation {
    pub fn cancel(&self) {
        self.cancelled.send_replace(true);
    }

    pub fn is_cancelled(&self) -> bool {
        *self.cancelled.borrow()
    }

    /// Returns when it has been cancelled.
    pub async fn cancelled(&self) {
        // The sender is `self`, so the channel is open.
        let mut cancelled = self.cancelled.subscribe();
        let _open = cancelled.wait_for(|cancelled| *cancelled).await;
    }

    /// A topic's log no longer holds all that was read of it, as `why` says.
    pub fn has_thinned(&self, topic: &str, why: String) {
        self.thinned.lock().entry(topic.to_string()).or_insert(why);
    }

    /// Why rows that differ prove nothing.
    pub fn thinned(&self) -> Vec<String> {
        self.thinned.lock().values().cloned().collect()
    }

    /// # Errors
    /// If what the logs give is not what was read of them.
    pub fn check_repairs(&self) -> Result<(), EngineError> {
        match self.thinned.lock().values().next() {
            None => Ok(()),
            Some(why) => Err(EngineError::Unsupported {
                message: format!("REPAIR of \"{}\" is not supported: {why}", self.name),
                hint: "It would put what is left in the place of what was counted. RECONCILE without REPAIR shows the rows that \
                       differ; DROP the view and CREATE it again to have it from what the topic still holds."
                    .into(),
            }),
        }
    }

    fn job(&self) -> JobStats {
        let (read, to_read) = (self.work.read.load(Ordering::Relaxed), self.work.to_read.load(Ordering::Relaxed));
        let seconds = clock::now_us().saturating_sub(self.started_us) as f64 / 1e6;
        let rate = (seconds > 0.0 && read > 0).then(|| read as f64 / seconds);
        JobStats {
            id: self.id,
            kind: if self.work.repairs.load(Ordering::Relaxed) { "repair" } else { "reconcile" },
            schema: self.schema.clone(),
            name: self.name.clone(),
            started_us: self.started_us,
            read,
            to_read,
            records_per_second: rate,
            seconds_left: rate.map(|rate| (to_read - read).max(0) as f64 / rate),
            partitions: Vec::new(),
        }
    }
}
