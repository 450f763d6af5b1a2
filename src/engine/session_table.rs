//! A view of sessions as a table.

use std::sync::Arc;

use arrow::array::ArrayRef;

use super::pushdown::{Physical, keys_where};
use super::view_table::{ViewPart, ViewTable};
use crate::exec::ExecError;
use crate::exec::id_set::IdSet;
use crate::exec::session_batch::{SessionBatch, SessionSnapshot};
use crate::exec::window_view::{Shown, WindowView, Within};

pub type SessionTable = ViewTable<Part>;

/// One worker's sessions, or those of a tail, and how they are read.
#[derive(Clone)]
pub struct Part {
    pub view: WindowView,
    pub snapshot: SessionSnapshot,
}

impl ViewPart for Part {
    /// `None`: all.
    type Only = Option<Arc<IdSet>>;

    fn view(&self) -> &WindowView {
        &self.view
    }

    fn only(&self, key_filters: Vec<Physical>) -> Result<Self::Only, ExecError> {
        keys_where(&self.snapshot.layout, &self.snapshot.keys, &key_filters)
    }

    fn read(
        self,
        only: Self::Only,
        shown: Shown,
        within: Within,
        needed: Vec<usize>,
    ) -> impl Iterator<Item = Result<Vec<(usize, Vec<ArrayRef>)>, ExecError>> + Send + 'static {
        let batches: Vec<Arc<SessionBatch>> = self.snapshot.batches(&self.view).cloned().collect();
        let Part { view, snapshot } = self;
        batches.into_iter().map(move |batch| snapshot.read(&batch, &view, &shown, &within, only.as_deref(), &needed))
    }
}
