//! What a view shows as final has to be final after a crash, too. But which partitions were idle is decided by the clock, and after a
//! crash once more since the last checkpoint. So of sources beneath an EMIT ON WINDOW CLOSE view nothing counts as final before a
//! checkpoint holds the state in which it was settled ([`Finality`](crate::exec::law::Finality)); without storage all is final at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::coordinator::{Coordinator, Wait};
use super::orders::Command;
use crate::catalog::Oid;
use crate::exec::horizon::newest_closed_end;
use crate::exec::law::SourceTime;
use crate::exec::tail::Times;
use crate::planner::stream_plan::Emit;

/// Times in which all that is settled is final.
struct Settled<'a>(&'a HashMap<Oid, SourceTime>);

impl Times for Settled<'_> {
    fn watermark_us(&self, source: Oid) -> Option<i64> {
        self.0.watermark_us(source)
    }

    fn final_until_us(&self, source: Oid) -> Option<i64> {
        self.0.get(&source)?.settled_us
    }
}

impl Coordinator {
    /// Tells the workers of which sources nothing is final before it is kept.
    pub(super) fn mind_finality(&mut self) {
        if !self.lasts {
            return;
        }
        let finals = self.views.iter().filter(|(_, view)| view.plan.emit == Emit::OnWindowClose);
        self.final_once_kept = finals.clone().map(|(&oid, _)| oid).collect();
        let sources: BTreeSet<Oid> = finals.flat_map(|(_, view)| view.targets.keys().copied()).collect();
        let told = std::mem::take(&mut self.told_final_once_kept);
        for &source in told.symmetric_difference(&sources) {
            let waits = sources.contains(&source);
            self.broadcast(|| Command::FinalOnceKept { source, waits });
        }
        self.told_final_once_kept = sources;
    }

    /// Has a window of the view ended that it does not show yet? Of windows that end by themselves, or follow others: has any time passed?
    pub(super) fn finals_wait(&self, oid: Oid) -> bool {
        let Some(view) = self.views.get(&oid).filter(|view| view.failed.is_none()) else { return false };
        let behind = |source: &Oid| self.times.get(source).is_some_and(|time| time.settled_us > time.final_until_us);
        if !view.targets.keys().any(behind) {
            return false;
        }
        let Some((base, window)) = super::version::windows_of(&view.flow.shown_horizons) else { return true };
        let newest = |times: &dyn Times| base.final_until_us(times).map(|us| newest_closed_end(window, us));
        newest(&Settled(&self.times)) > newest(&self.times)
    }

    /// Of somebody who waits for what was settled when all was read: until it is final.
    pub(super) fn pass_finals(&self, wait: &mut Wait) {
        let settled = wait.settled.get_or_insert_with(|| {
            let sources = wait.ends.keys().filter(|source| self.told_final_once_kept.contains(source));
            let settled_us = |source: &Oid| Some((*source, self.times.get(source)?.settled_us?));
            sources.filter_map(settled_us).collect::<BTreeMap<_, _>>()
        });
        // What is settled goes back when the law is altered.
        settled.retain(|source, until_us| {
            let Some(time) = self.times.get(source) else { return false };
            time.final_until_us < time.settled_us.min(Some(*until_us))
        });
    }
}
