//! ALTER SOURCE: other bounds, a watermark taken back, and where reading goes on when the log has lost its place.
//!
//! What it does to acceptance is a fact of the law with the offset from which on it holds, so that readers which come later
//! reach the same verdicts. No accepted row ever lies in what was final before.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::coordinator::Coordinator;
use super::error::EngineError;
use super::freshness::Freshness;
use super::orders::Command;
use super::reader::{Altered, SourceChange};
use super::request::Request;
use super::{DdlOutcome, Inner, source_setup, topic};
use crate::catalog::{NameContext, Object, ObjectKind, Oid};
use crate::connector::Watermarks;
use crate::exec::law::{Bounds, SourceTime};
use crate::planner::{self, timestamp_text};
use crate::sql::{AlterSource, Name, ObjectType, Place};

/// What is asked of the coordinator.
pub(super) enum Alteration {
    Bounds(Bounds),
    Watermark {
        to_us: Option<i64>,
    },
    /// The topic's partitions as they are now.
    Restart {
        place: Place,
        topic_id: Option<String>,
        partitions: Vec<Watermarks>,
    },
}

/// Records between two offsets that were never read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    pub partition: i32,
    pub from_offset: i64,
    /// Where reading went on.
    pub to_offset: i64,
    /// How many offsets were passed over; `None` if the log is another one, and nobody knows what the old one still held.
    pub lost: Option<i64>,
    pub at_us: i64,
    pub reason: String,
}

/// An alteration of the law for one partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub at_us: i64,
    pub altered: Altered,
}

/// An alteration that is told of at the end of its tick.
pub(super) struct Pending {
    source: Oid,
    /// For RESET WATERMARK: how things stood before, and the changes known then.
    watermark: Option<(SourceTime, usize)>,
    notices: Vec<String>,
}

impl Inner {
    pub(super) async fn alter_source(
        &self,
        name: &Name,
        if_exists: bool,
        change: &AlterSource,
        names: &NameContext,
    ) -> Result<DdlOutcome, EngineError> {
        let _one_at_a_time = self.ddl.lock().await;
        let catalog = self.catalog();
        let tag = "ALTER SOURCE".to_string();
        let object = match catalog.resolve(name, names) {
            Err(error) if if_exists => {
                return Ok(DdlOutcome { tag, notices: vec![format!("{error}, skipping")], created: None });
            }
            object => object?,
        };
        let ObjectKind::Source(source) = &object.kind else {
            let (name, is) = (object.name.clone(), object.kind.object_type());
            return Err(crate::catalog::CatalogError::WrongKind { name, wanted: ObjectType::Source, is }.into());
        };
        let (object, alteration) = match change {
            AlterSource::Set(_) | AlterSource::Reset(_) => {
                let changed = planner::altered_source(&object, change, &catalog)?;
                let ObjectKind::Source(source) = &changed.kind else { return Err(EngineError::Stopped) };
                let (setup, _) = source_setup(&changed, source, &catalog)?;
                (Arc::new(changed), Alteration::Bounds(setup.bounds))
            }
            AlterSource::ResetWatermark { to } => {
                if source.watermark.is_none() {
                    return Err(EngineError::Invalid {
                        message: format!("source \"{}\" has no watermark", object.name),
                        hint: "There is nothing to take back: every row of it counts.".into(),
                    });
                }
                let to_us = to.as_deref().map(planner::timestamp_us).transpose()?;
                (object, Alteration::Watermark { to_us })
            }
            AlterSource::ResetTo(place) => {
                let (setup, _) = source_setup(&object, source, &catalog)?;
                let look = move || topic::spans(&setup.options);
                let (topic_id, partitions) =
                    tokio::task::spawn_blocking(look).await.map_err(|_| EngineError::Stopped)??;
                (object, Alteration::Restart { place: *place, topic_id, partitions })
            }
        };
        let next = Arc::new(catalog.with_replaced(object.clone()));
        let catalog = next.clone();
        let altered = self.ask(|reply| Request::Alter { object, alteration, catalog, reply }).await;
        let notices = self.in_force(altered, next)?;
        Ok(DdlOutcome { tag, notices, created: None })
    }
}

impl Coordinator {
    pub(super) fn alter(&mut self, object: Arc<Object>, alteration: Alteration) -> Result<Pending, EngineError> {
        let oid = object.oid;
        let time = self.times.get(&oid).copied().unwrap_or_default();
        let source = self.sources.get_mut(&oid).ok_or_else(|| EngineError::NotReady {
            message: "the source has been dropped".into(),
            hint: "Run the statement again.".into(),
        })?;
        let mut pending = Pending { source: oid, watermark: None, notices: Vec::new() };
        let change = match alteration {
            Alteration::Bounds(bounds) => {
                source.object = object;
                if let Some(floor_us) = time.final_until_us
                    && bounds.allowed_lateness_us > source.setup.bounds.allowed_lateness_us
                {
                    let floor = timestamp_text(floor_us);
                    pending.notices.push(format!("windows that end at or before {floor} are final and stay so"));
                }
                source.setup.bounds = bounds;
                SourceChange::Bounds(bounds)
            }
            Alteration::Watermark { to_us } => {
                if let (Some(to_us), Some(furthest_us)) = (to_us, furthest(source.partitions.values()))
                    && to_us > furthest_us
                {
                    return Err(EngineError::Invalid {
                        message: format!(
                            "no partition of \"{}\" has come further than {}",
                            object.name,
                            timestamp_text(furthest_us)
                        ),
                        hint: "RESET WATERMARK takes a watermark back, not on.".into(),
                    });
                }
                pending.watermark = Some((time, source.changes.len()));
                SourceChange::Watermark { to_us }
            }
            Alteration::Restart { place, topic_id, partitions } => {
                self.restart(oid, place, topic_id, &partitions, &mut pending)?
            }
        };
        self.broadcast(|| Command::AlterSource { source: oid, change: change.clone() });
        Ok(pending)
    }

    /// Partitions that have lost their place go on where they are told; the others are left alone.
    fn restart(
        &mut self,
        oid: Oid,
        place: Place,
        topic_id: Option<String>,
        partitions: &[Watermarks],
        pending: &mut Pending,
    ) -> Result<SourceChange, EngineError> {
        let source = self.sources.get_mut(&oid).expect("the caller has looked it up");
        let name = source.object.name.clone();
        let lost: Vec<(i32, i64, String)> =
            source.partitions.values().filter_map(|p| Some((p.partition, p.position, p.error.clone()?))).collect();
        if lost.is_empty() {
            return Err(EngineError::NotReady {
                message: format!("no partition of \"{name}\" has lost its place in the log"),
                hint: "RESET TO is for a source that has failed: riverrun.sources says which has.".into(),
            });
        }
        let made_anew = topic::is_another(source.topic_id.as_deref(), topic_id.as_deref());
        let mut restarts = BTreeMap::new();
        for (partition, from_offset, reason) in lost {
            let Some(span) = partitions.iter().find(|w| w.partition == partition) else {
                return Err(EngineError::NotReady {
                    message: format!("the topic of \"{name}\" has no partition {partition} any more"),
                    hint: "Drop the source and create it again to read the topic as it is now.".into(),
                });
            };
            let to_offset = if place == Place::Earliest { span.low } else { span.high };
            // A log that could hold the offset now has not lost it: it was made anew.
            let lost = (!made_anew && from_offset < span.low).then(|| to_offset - from_offset);
            let gap = Gap { partition, from_offset, to_offset, lost, at_us: super::clock::now_us(), reason };
            pending.notices.push(match gap.lost {
                Some(lost) => format!(
                    "partition {partition} goes on at offset {to_offset}; {lost} offsets from {from_offset} on were not read"
                ),
                None => format!(
                    "partition {partition} goes on at offset {to_offset} of another log; the old one was read up to {from_offset}"
                ),
            });
            source.gaps.push(gap);
            source.starts.insert(partition, to_offset);
            if let Some(known) = source.partitions.get_mut(&partition) {
                (known.position, known.end, known.error) = (to_offset, Some(span.high), None);
            }
            restarts.insert(partition, (to_offset, span.high));
        }
        (source.topic_id, source.made_anew) = (topic_id.or(source.topic_id.take()), false);
        // Ends of another log would never be reached.
        source.freshness = Freshness::default();
        // What was to be reached in the old log ends with it. (Nobody waits for a source that has failed.)
        let targets = self.views.values_mut().filter_map(|view| view.targets.get_mut(&oid)?.as_mut());
        for (partition, end) in targets.flatten() {
            if let Some((_, high)) = restarts.get(partition) {
                *end = (*end).min(*high);
            }
        }
        let restarts = restarts.into_iter().map(|(partition, (offset, _))| (partition, offset)).collect();
        Ok(SourceChange::Restart(restarts))
    }

    /// What to tell of an alteration once its tick has ended.
    pub(super) fn what_changed(&self, pending: Pending) -> Vec<String> {
        let mut notices = pending.notices;
        let (Some(source), Some((before, known))) = (self.sources.get(&pending.source), pending.watermark) else {
            return notices;
        };
        let now = self.times.get(&pending.source).copied().unwrap_or_default();
        let text = |us: Option<i64>| us.map_or("nothing".to_string(), timestamp_text);
        for Change { altered, .. } in &source.changes[known..] {
            if altered.terms.watermark_us < altered.before_us {
                let (from, to) = (text(altered.before_us), text(altered.terms.watermark_us));
                notices.push(format!("the watermark of partition {} went back from {from} to {to}", altered.partition));
            }
        }
        notices.push(match now.watermark_us < before.watermark_us {
            true => format!(
                "the watermark of \"{}\" went back from {} to {}",
                source.object.name,
                text(before.watermark_us),
                text(now.watermark_us)
            ),
            false => format!("the watermark of \"{}\" stays at {}", source.object.name, text(now.watermark_us)),
        });
        if let Some(final_us) = now.final_until_us {
            let until = timestamp_text(final_us);
            notices
                .push(format!("windows that end at or before {until} are final and stay so; rows before it are late"));
        }
        notices
    }
}

/// A reader that has given up never gets anywhere; where its topic was made anew it may even stand behind the end.
pub(super) fn source_failed(name: &str, reason: &str) -> EngineError {
    EngineError::NotReady {
        message: format!("source \"{name}\" has failed: {reason}"),
        hint: format!("ALTER SOURCE {name} RESET TO earliest | latest says where reading goes on."),
    }
}

fn furthest<'a>(partitions: impl Iterator<Item = &'a super::PartitionStats>) -> Option<i64> {
    partitions.filter_map(|p| p.watermark_us).max()
}
