//! What a transaction holds: changes that are not applied yet, and the one tick that it reads.
//!
//! A block opened by BEGIN reads one tick throughout (unless its isolation is READ COMMITTED): the first statement that reads an object
//! of the database takes a version of all of them. Changes wait for COMMIT and are then applied in one tick; what the block itself
//! reads shows them already ([`super::overlay`]). DDL takes effect at once and for all, so it cannot stand in a block.
//!
//! Statements sent together without BEGIN form an implicit block: it ends with the text of a simple query, or at Sync. Its changes
//! are applied together; each of its statements reads a tick of its own.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use datafusion::catalog::TableProvider;

use super::error::PgError;
use super::session::Session;
use super::settings::Settings;
use super::sqlstate as code;
use crate::catalog::{Catalog, ObjectKind, Oid};
use crate::engine::{ReadVersion, TableChange, now_us};
use crate::planner::EventTimes;

/// The most that a transaction may hold back for its COMMIT.
const MAX_PENDING_BYTES: usize = 512 << 20;

/// Where a session stands.
#[derive(Debug, Default)]
pub enum Block {
    #[default]
    Idle,
    /// Statements sent together, without BEGIN.
    Implicit(Transaction),
    Open(Transaction),
    /// A statement of the block failed; only its end is awaited.
    Failed(Transaction),
}

#[derive(Debug)]
pub struct Transaction {
    /// What `now()` is throughout.
    pub started_us: i64,
    /// The settings as they were: ROLLBACK brings them back.
    pub saved: Settings,
    /// Changes in the order of their statements.
    pub pending: Vec<TableChange>,
    pending_bytes: usize,
    pinned: Option<Pinned>,
}

/// The tick that a block reads, and the names it knows.
struct Pinned {
    catalog: Arc<Catalog>,
    version: Arc<dyn ReadVersion>,
}

impl std::fmt::Debug for Pinned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pinned({:?})", self.version.tick())
    }
}

impl Transaction {
    pub fn new(saved: Settings) -> Transaction {
        Transaction { started_us: now_us(), saved, pending: Vec::new(), pending_bytes: 0, pinned: None }
    }

    /// Holds a change back until COMMIT.
    pub fn push(&mut self, change: TableChange) -> Result<(), PgError> {
        self.pending_bytes += change.delta.rows.get_array_memory_size();
        if self.pending_bytes > MAX_PENDING_BYTES {
            let message = "the transaction changes too much at once";
            return Err(PgError::new(code::PROGRAM_LIMIT_EXCEEDED, message)
                .detail(format!("At most {} MiB can wait for COMMIT.", MAX_PENDING_BYTES >> 20))
                .hint("Commit more often."));
        }
        self.pending.push(change);
        Ok(())
    }

    /// The tables that have changes waiting.
    pub fn changed(&self) -> HashSet<Oid> {
        self.pending.iter().map(|change| change.table).collect()
    }
}

impl Block {
    pub fn transaction(&self) -> Option<&Transaction> {
        match self {
            Block::Idle => None,
            Block::Implicit(transaction) | Block::Open(transaction) | Block::Failed(transaction) => Some(transaction),
        }
    }

    pub fn transaction_mut(&mut self) -> Option<&mut Transaction> {
        match self {
            Block::Idle => None,
            Block::Implicit(transaction) | Block::Open(transaction) | Block::Failed(transaction) => Some(transaction),
        }
    }
}

/// The rows that a statement reads.
pub type Tables = HashMap<Oid, Arc<dyn TableProvider>>;

impl Session {
    /// The names that a statement may use: those of the block's tick, else those of now.
    pub(super) fn catalog(&self) -> Arc<Catalog> {
        let pinned = self.block.transaction().and_then(|transaction| transaction.pinned.as_ref());
        pinned.map_or_else(|| self.shared.engine.catalog(), |pinned| Arc::clone(&pinned.catalog))
    }

    /// The rows of the objects, as of the block's tick or of the next.
    pub(super) async fn version(&mut self, objects: &[Oid]) -> Result<(Tables, Option<Arc<dyn EventTimes>>), PgError> {
        if objects.is_empty() {
            return Ok((Tables::new(), None));
        }
        let allow_partial = self.settings().allow_partial();
        let (engine, interrupt) = (self.shared.engine.clone(), Arc::clone(&self.interrupt));
        let read = async |objects: &[Oid]| {
            interrupt.guard(async { engine.read(objects, allow_partial).await.map_err(PgError::from) }).await
        };
        let one_tick = self.settings().isolation() == "repeatable read";
        let catalog = self.catalog();
        let version = match &mut self.block {
            Block::Open(transaction) if one_tick => match &transaction.pinned {
                Some(pinned) => Arc::clone(&pinned.version),
                None => {
                    let mut all = readable(&catalog, &self.names.database, &engine.stats(), allow_partial);
                    all.extend(objects.iter().filter(|oid| !all.contains(oid)).copied().collect::<Vec<_>>());
                    let version = read(&all).await?;
                    transaction.pinned = Some(Pinned { catalog: Arc::clone(&catalog), version: Arc::clone(&version) });
                    version
                }
            },
            _ => read(objects).await?,
        };
        let mut tables = Tables::new();
        for oid in objects {
            let table = version.table(*oid).ok_or_else(|| {
                let name = catalog.get(*oid).map_or_else(|| oid.to_string(), |object| object.name.clone());
                let message = format!("\"{name}\" could not be read yet when the transaction first read");
                PgError::new(code::OBJECT_NOT_IN_PREREQUISITE_STATE, message).hint("COMMIT, and begin anew.")
            })?;
            tables.insert(*oid, table);
        }
        Ok((tables, Some(version.event_times())))
    }
}

/// The objects of a database that can be read now.
fn readable(catalog: &Catalog, database: &str, stats: &crate::engine::Stats, allow_partial: bool) -> Vec<Oid> {
    let in_the_way = |state: &str| if allow_partial { state == "failed" } else { state != "current" };
    let unreadable: HashSet<Oid> = stats.views.iter().filter(|v| in_the_way(v.state)).map(|v| v.oid).collect();
    let objects = catalog.objects(database).filter(|object| !matches!(object.kind, ObjectKind::View { .. }));
    objects.map(|object| object.oid).filter(|oid| !unreadable.contains(oid)).collect()
}
