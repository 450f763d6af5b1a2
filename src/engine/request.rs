//! What is asked of the coordinator.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::alter::{Alteration, Pending};
use super::checkpointer::Said;
use super::dataflow::TickData;
use super::error::EngineError;
use super::reader::SourceSetup;
use super::reconcile::{AskedBasis, Basis, Logs};
use super::repair::{RepairStep, Repairs};
use super::subscription::Subscription;
use super::table::Written;
use super::table_log::Logged;
use super::topic::Seen;
use super::version::Version;
use super::{TableChange, TickId, WriteOutcome};
use crate::catalog::{Catalog, Object, Oid};
use crate::planner::stream_plan::StreamPlan;

pub(super) enum Request {
    /// A source, table, view or materialized view that is in the catalog from now on.
    Create {
        object: Arc<Object>,
        setup: Option<Box<NewSource>>,
        plan: Option<Box<StreamPlan>>,
        catalog: Arc<Catalog>,
        reply: Reply<Vec<String>>,
    },
    /// A schema or database has come or gone.
    Namespaces {
        catalog: Arc<Catalog>,
        reply: Reply<()>,
    },
    /// In an order in which nothing is left that reads what has gone.
    Drop {
        oids: Vec<Oid>,
        catalog: Arc<Catalog>,
        reply: Reply<()>,
    },
    /// Drops views unless one of them has read its history by now.
    Cancel {
        oids: Vec<Oid>,
        catalog: Arc<Catalog>,
        reply: Reply<()>,
    },
    /// What ALTER SOURCE does; the object as it is from now on.
    Alter {
        object: Arc<Object>,
        alteration: Alteration,
        catalog: Arc<Catalog>,
        reply: Reply<Vec<String>>,
    },
    Read {
        objects: Vec<Oid>,
        allow_partial: bool,
        reply: Reply<Arc<Version>>,
    },
    Subscribe {
        object: Oid,
        as_of: Option<TickId>,
        committed: bool,
        reply: Reply<Subscription>,
    },
    Write {
        changes: Vec<TableChange>,
        reply: Reply<WriteOutcome>,
    },
    /// Until the sources are read to these ends and every view over them has absorbed that, and those of `views` that are EMIT
    /// EVERY have emitted it.
    Wait {
        ends: BTreeMap<Oid, Vec<(i32, i64)>>,
        /// Ascending.
        views: Vec<Oid>,
        reply: Reply<()>,
    },
    Topic(Seen),
    /// Of a checkpoint.
    Said(Said),
    /// Of the log of tables.
    Logged(Logged),
    Repair(RepairStep),
    /// What a view is compared by, as of one tick.
    Reconcile {
        asked: AskedBasis,
        reply: Reply<Basis>,
    },
    /// Text for EXPLAIN.
    Explain {
        what: Explained,
        reply: Reply<Vec<String>>,
    },
    /// After a last checkpoint, if there is storage.
    Stop {
        /// Without one.
        at_once: bool,
    },
}

/// What EXPLAIN is asked about.
pub(super) enum Explained {
    /// A view that runs, and with ANALYZE what it holds and has done.
    View { oid: Oid, analyze: bool },
    /// What a plan would become.
    Plan(Box<StreamPlan>),
}

pub(super) type Reply<T> = oneshot::Sender<Outcome<T>>;
pub(super) type Outcome<T> = Result<T, EngineError>;

pub(super) struct NewSource {
    pub setup: SourceSetup,
    pub connector: String,
    pub starts: BTreeMap<i32, i64>,
    /// Of the topic that the starts are offsets of, if it is known.
    pub topic_id: Option<String>,
}

/// An object that was made, or why not, and who asked for it.
pub(super) struct Created {
    pub oid: Oid,
    pub made: Outcome<Vec<String>>,
    /// The catalog without it.
    pub before: Arc<Catalog>,
    pub reply: Reply<Vec<String>>,
}

#[derive(Default)]
pub(super) struct Asked {
    pub data: TickData,
    pub created: Vec<Created>,
    pub changed: Vec<Reply<()>>,
    pub altered: Vec<(Outcome<Pending>, Reply<Vec<String>>)>,
    pub written: Vec<Written>,
    pub reads: Vec<(Vec<Oid>, bool, Reply<Arc<Version>>)>,
    pub bases: Vec<(AskedBasis, Logs, Reply<Basis>)>,
    pub repairs: Repairs,
    pub subscriptions: Vec<(Oid, Option<TickId>, bool, Reply<Subscription>)>,
    pub explained: Vec<(Explained, Reply<Vec<String>>)>,
    /// Who created something waits for a manifest that names it, and not for a checkpoint.
    pub created_alone: bool,
}

impl Asked {
    /// Whatever of this tick is told of only when it lasts was created, and follows from what is kept.
    pub fn only_creates(&self) -> bool {
        self.changed.is_empty()
            && self.altered.is_empty()
            && !self.written.iter().any(Written::waits_for_checkpoint)
            && self.repairs.replaced.is_empty()
    }

    /// Somebody will be told only once a checkpoint holds what this tick does.
    pub fn changes_what_lasts(&self) -> bool {
        !(self.created.is_empty() && self.changed.is_empty() && self.altered.is_empty())
            || self.written.iter().any(Written::waits_for_checkpoint)
            || !self.repairs.replaced.is_empty()
    }
}
