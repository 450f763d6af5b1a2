//! What happens at the start: finding the state and taking it over.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use super::blobs::{Place, take_place};
use super::store::Storage;
use super::{Blobs, Manifest, StorageError, log};

/// What lies at the top of a place of ours.
const OURS: [&str; 5] = ["manifest", "data", "log", "lock", "tmp"];

/// How often another process may commit before us.
const MAX_ATTEMPTS: usize = 100;

#[derive(Debug)]
pub struct Opened {
    pub storage: Storage,
    /// None before the first commit.
    pub manifest: Option<Manifest>,
    /// The records after the manifest's `log_through`, or all, with their numbers: in order, without a gap.
    pub log: Vec<(u64, Bytes)>,
    /// Says so if the newest manifest was not whole.
    pub fallback: Option<String>,
}

/// What a start does about a manifest that was whole once and is damaged, or misses files of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IfDamaged {
    /// What was acknowledged may be in nothing else.
    #[default]
    Refuse,
    /// The one before it is taken; one whose files are missing is taken as it is.
    GoOn,
}

impl Storage {
    /// Takes over what is at `url`: a path, `file://`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
    /// Clouds are told the rest by the variables that are usual there (`AWS_*`, `GOOGLE_*`, `AZURE_*`).
    pub fn open(url: &str, now_us: i64) -> Result<Opened, StorageError> {
        Storage::open_with(super::blobs::at(url)?, rand::random(), now_us, IfDamaged::Refuse)
    }

    /// Takes over what is in `blobs`. `writer` tells this process from all others.
    pub fn open_with(
        blobs: Arc<dyn Blobs>,
        writer: u64,
        now_us: i64,
        if_damaged: IfDamaged,
    ) -> Result<Opened, StorageError> {
        check_ours(&*blobs)?;
        blobs.lock()?;
        let (newest, last) = take_over(&*blobs, writer, now_us, if_damaged)?;
        let Newest { manifest, fallback, .. } = newest;
        let before = manifest.clone();
        let through = last.log_through;
        let read = log::take_over(&*blobs, through, last.sealed_below, last.generation, writer)?;
        if let Some(fallback) = &fallback {
            tracing::error!(location = blobs.location(), "{fallback}");
        }
        let storage = Storage::new(blobs, writer, last, before, read.next);
        let manifest = manifest.filter(|manifest| !manifest.body.is_null());
        Ok(Opened { storage, manifest, log: read.records, fallback })
    }
}

/// Refuses a place that holds something else, before anything is written there.
fn check_ours(blobs: &dyn Blobs) -> Result<(), StorageError> {
    let top = blobs.top()?;
    let location = blobs.location();
    if let Some(found) = top.iter().find(|name| !OURS.contains(&name.as_str()))
        && blobs.list("manifest")?.is_empty()
    {
        return Err(StorageError::NotRiverrun { location, found: found.clone() });
    }
    Ok(())
}

/// The highest number of a manifest; 0 without any.
pub(super) fn highest(blobs: &dyn Blobs) -> Result<u64, StorageError> {
    let numbers = blobs.list("manifest")?.into_iter().filter_map(|blob| Manifest::number_in(&blob.name));
    Ok(numbers.max().unwrap_or(0))
}

/// The state as it is now.
pub(super) struct Newest {
    pub manifest: Option<Manifest>,
    /// The highest number of a manifest, whole or not; 0 without any.
    pub highest: u64,
    pub fallback: Option<String>,
}

/// The newest manifest. One that is cut short was never acknowledged, as its bytes are synced before it gets its name: then it is
/// the one before it.
pub(super) fn newest(blobs: &dyn Blobs, if_damaged: IfDamaged) -> Result<Newest, StorageError> {
    loop {
        let before = highest(blobs)?;
        match newest_listed(blobs, if_damaged) {
            // Who writes meanwhile deletes what is older.
            Err(StorageError::Corrupt { .. }) | Ok(Newest { fallback: Some(_), .. }) if highest(blobs)? > before => {}
            outcome => return outcome,
        }
    }
}

fn newest_listed(blobs: &dyn Blobs, if_damaged: IfDamaged) -> Result<Newest, StorageError> {
    let names = blobs.list("manifest")?.into_iter().map(|blob| blob.name);
    let mut numbered: Vec<(u64, String)> = names.filter_map(|name| Some((Manifest::number_in(&name)?, name))).collect();
    numbered.sort();
    let Some(&(highest, _)) = numbered.last() else {
        let stray = blobs.list("data")?.into_iter().chain(blobs.list("log")?).next();
        return match stray {
            None => Ok(Newest { manifest: None, highest: 0, fallback: None }),
            Some(stray) => {
                let name = format!("{}/manifest", blobs.location());
                Err(StorageError::corrupt(&name, format!("there is no manifest, and yet {} is there", stray.name)))
            }
        };
    };
    let mut damaged: Vec<String> = Vec::new();
    // Only for the last two are all files and the log kept.
    for (_, name) in numbered.iter().rev().take(2) {
        let bytes = match blobs.get(name, None) {
            Ok(bytes) => bytes,
            Err(StorageError::NotFound { .. }) => {
                damaged.push(format!("{name} went away"));
                continue;
            }
            Err(error) => return Err(error),
        };
        match Manifest::decode(name, &bytes) {
            Ok(manifest) => {
                let missing = missing_file(blobs, &manifest)?;
                if missing.is_some() && if_damaged == IfDamaged::Refuse {
                    let reason = format!("its file {} is not there", missing.unwrap_or_default());
                    return Err(StorageError::corrupt(name, reason));
                }
                let older = damaged.first().map(|why| format!("{why}; the state is that of {name}"));
                let fallback = older
                    .or(missing.map(|file| format!("{name} is taken without its file {file}, which is not there")));
                return Ok(Newest { manifest: Some(manifest), highest, fallback });
            }
            Err(error @ StorageError::Corrupt { .. })
                if if_damaged == IfDamaged::GoOn || Manifest::is_cut_short(&bytes) =>
            {
                damaged.push(error.to_string());
            }
            Err(error) => return Err(error),
        }
    }
    let name = format!("{}/manifest", blobs.location());
    Err(StorageError::corrupt(&name, format!("no manifest is whole: {}", damaged.join("; "))))
}

fn missing_file(blobs: &dyn Blobs, manifest: &Manifest) -> Result<Option<String>, StorageError> {
    let there: BTreeSet<String> = blobs.list("data")?.into_iter().map(|blob| blob.name).collect();
    Ok(manifest.files.iter().find(|file| !there.contains(*file)).cloned())
}

/// Commits the next manifest with the next generation. Returns what was there and what is there now.
fn take_over(
    blobs: &dyn Blobs,
    writer: u64,
    now_us: i64,
    if_damaged: IfDamaged,
) -> Result<(Newest, Manifest), StorageError> {
    let mut seen = None;
    for _ in 0..MAX_ATTEMPTS {
        let newest = newest(blobs, if_damaged)?;
        let before = newest.manifest.as_ref();
        let generation = before.map_or(0, |manifest| manifest.generation);
        if let Some(seen) = seen
            && seen != generation
        {
            let proof = format!("generation {generation} began at the same time");
            return Err(StorageError::Fenced { location: blobs.location(), proof });
        }
        seen = Some(generation);
        let number = newest.highest + 1;
        let manifest = Manifest {
            number,
            // A manifest that cannot be read may have raised it by one.
            generation: generation + (number - before.map_or(0, |manifest| manifest.number)),
            sealed_below: before.map_or(1, |manifest| manifest.sealed_below),
            writer,
            committed_at_us: now_us,
            log_through: before.map_or(0, |manifest| manifest.log_through),
            files: before.map_or_else(Vec::new, |manifest| manifest.files.clone()),
            body: before.map_or(Value::Null, |manifest| manifest.body.clone()),
        };
        // The place of a manifest that was swept is free again.
        if let Place::Ours = take_place(blobs, &Manifest::name(number), &manifest.encode()?)?
            && highest(blobs)? == number
        {
            return Ok((newest, manifest));
        }
    }
    Err(StorageError::Unavailable {
        doing: format!("taking over {}", blobs.location()),
        reason: "another process goes on committing".into(),
    })
}
