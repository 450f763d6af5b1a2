//! A copy of the state, taken while a process goes on writing to it, and put back.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::blobs::{Place, at, take_place};
use super::log::ReadError;
use super::opening::{IfDamaged, newest};
use super::{Blobs, Manifest, SectionRef, StorageError, data_file, log};

/// How often the state may move on under a copy.
const MAX_ATTEMPTS: usize = 20;

/// What a copy holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copied {
    /// The number of the manifest.
    pub manifest: u64,
    pub committed_at_us: i64,
    pub files: usize,
    /// Records of the log that are not in the state.
    pub log_records: usize,
    pub bytes: u64,
    /// Says so if the newest manifest was cut short and the one before it was taken.
    pub fallback: Option<String>,
}

/// Copies the newest state and the records after it to an empty place. A process may go on writing at `from`: what is copied is
/// a state that it has committed, and all records that it had acknowledged when the copy began. Every byte is checked on
/// the way; the manifest comes last, so that a copy that was interrupted is no state.
pub fn backup(from: &str, to: &str) -> Result<Copied, StorageError> {
    copy(&*at(from)?, &*at(to)?)
}

/// Puts a backup in an empty place, where a process may then be started.
pub fn restore(from: &str, to: &str) -> Result<Copied, StorageError> {
    copy(&*at(from)?, &*at(to)?)
}

pub(super) fn copy(from: &dyn Blobs, to: &dyn Blobs) -> Result<Copied, StorageError> {
    if let Some(found) = to.top()?.into_iter().next() {
        return Err(StorageError::NotEmpty { location: to.location(), found });
    }
    copy_whole(from, to).map_err(|cause| match (&cause, to.top()) {
        // Another one's.
        (StorageError::NotEmpty { .. }, _) => cause,
        (_, Ok(left)) if !left.is_empty() => {
            StorageError::Unfinished { location: to.location(), cause: Box::new(cause) }
        }
        // Nothing is there, or nobody can tell.
        _ => cause,
    })
}

fn copy_whole(from: &dyn Blobs, to: &dyn Blobs) -> Result<Copied, StorageError> {
    // What was copied is kept over attempts: files do not change.
    let mut done = BTreeMap::new();
    let mut last = None;
    for _ in 0..MAX_ATTEMPTS {
        let newest = newest(from, IfDamaged::Refuse)?;
        let Some(manifest) = newest.manifest else {
            return Err(StorageError::NotFound { name: format!("a state of riverrun in {}", from.location()) });
        };
        match copy_state(from, to, &manifest, &mut done) {
            Ok(copied) => return Ok(Copied { fallback: newest.fallback, ..copied }),
            Err(Failure::Target(error)) => return Err(error),
            // It was swept, if the state has moved on. Else it is missing.
            Err(Failure::Source(error)) => match error {
                StorageError::NotFound { name } if last == Some(manifest.number) => {
                    let reason = format!("{name} is not there");
                    return Err(StorageError::corrupt(&Manifest::name(manifest.number), reason));
                }
                StorageError::Corrupt { .. } if last == Some(manifest.number) => return Err(error),
                StorageError::NotFound { .. } | StorageError::Corrupt { .. } => last = Some(manifest.number),
                error => return Err(error),
            },
        }
    }
    Err(StorageError::Unavailable {
        doing: format!("copying {}", from.location()),
        reason: "the state moves on faster than it can be copied".into(),
    })
}

/// Where it failed.
enum Failure {
    Source(StorageError),
    Target(StorageError),
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        Failure::Source(error)
    }
}

/// Copies one state. `done` are the files that are copied, with what is in them and their bytes.
fn copy_state(
    from: &dyn Blobs,
    to: &dyn Blobs,
    manifest: &Manifest,
    done: &mut BTreeMap<String, (Vec<SectionRef>, u64)>,
) -> Result<Copied, Failure> {
    for file in &manifest.files {
        if !done.contains_key(file) {
            let bytes = from.get(file, None)?;
            let sections = data_file::verify(file, &bytes)?;
            to.put(file, std::slice::from_ref(&bytes), false).map_err(Failure::Target)?;
            done.insert(file.clone(), (sections, bytes.len() as u64));
        }
    }
    let there: BTreeSet<&SectionRef> = manifest.files.iter().flat_map(|file| &done[file].0).collect();
    let name = Manifest::name(manifest.number);
    if let Some(missing) = sections(&manifest.body).iter().find(|section| !there.contains(section)) {
        let place = format!("bytes {} of {}", missing.offset, missing.file);
        let reason = format!("it names a section at {place}, and there is none in its files");
        return Err(StorageError::corrupt(&name, reason).into());
    }

    let read = match log::read(from, manifest.log_through) {
        Err(ReadError::Gap(error) | ReadError::Failed(error)) => return Err(error.into()),
        Ok(read) => read,
    };
    let mut copied = Copied {
        manifest: manifest.number,
        committed_at_us: manifest.committed_at_us,
        files: manifest.files.len(),
        log_records: read.records.len(),
        bytes: manifest.files.iter().map(|file| done[file].1).sum(),
        fallback: None,
    };
    for (spot, bytes) in &read.spots {
        to.put(&spot.name, std::slice::from_ref(bytes), false).map_err(Failure::Target)?;
        copied.bytes += bytes.len() as u64;
    }

    let superseded: Vec<String> = done.keys().filter(|file| !manifest.files.contains(file)).cloned().collect();
    to.delete(&superseded).map_err(Failure::Target)?;
    let bytes: Bytes = manifest.encode()?;
    copied.bytes += bytes.len() as u64;
    match take_place(to, &name, &bytes).map_err(Failure::Target)? {
        Place::Ours => Ok(copied),
        Place::Taken(_) => Err(Failure::Target(StorageError::NotEmpty { location: to.location(), found: name })),
    }
}

/// All references to sections in what the engine keeps in a manifest.
fn sections(body: &Value) -> Vec<SectionRef> {
    match body {
        Value::Array(values) => values.iter().flat_map(sections).collect(),
        Value::Object(values) => match SectionRef::deserialize(body) {
            Ok(section) => vec![section],
            Err(_) => values.values().flat_map(sections).collect(),
        },
        _ => Vec::new(),
    }
}
