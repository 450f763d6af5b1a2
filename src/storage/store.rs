//! The right to write, and what is done with it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;

use super::blobs::{Place, take_place};
use super::data_file;
use super::figures::{Counts, add};
use super::log::{Entry, Group, Spot};
use super::opening::highest;
use super::{Blobs, Manifest, SectionRef, StorageError, Written};

/// State under one generation. All clones are one; the lock of a local folder goes with the last.
#[derive(Clone)]
pub struct Storage {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub blobs: Arc<dyn Blobs>,
    pub generation: u64,
    writer: u64,
    /// How it came out that another process has taken over.
    fenced: OnceLock<String>,
    pub counts: Counts,
    pub files: Mutex<Files>,
    pub head: Mutex<Head>,
    /// Held while a group is appended.
    appending: Mutex<()>,
    /// The number of the next record of the log.
    next: AtomicU64,
}

pub(super) struct Files {
    next: u64,
    /// Written by this process, and in no manifest yet.
    pub unnamed: BTreeSet<String>,
}

/// The last two manifests.
pub(super) struct Head {
    pub last: Manifest,
    pub before: Option<Manifest>,
}

impl Storage {
    pub(super) fn new(
        blobs: Arc<dyn Blobs>,
        writer: u64,
        last: Manifest,
        before: Option<Manifest>,
        next: u64,
    ) -> Storage {
        let inner = Inner {
            blobs,
            generation: last.generation,
            writer,
            fenced: OnceLock::new(),
            counts: Counts::default(),
            files: Mutex::new(Files { next: 0, unnamed: BTreeSet::new() }),
            head: Mutex::new(Head { last, before }),
            appending: Mutex::new(()),
            next: AtomicU64::new(next),
        };
        Storage { inner: Arc::new(inner) }
    }

    /// Higher than that of every process before.
    pub fn generation(&self) -> u64 {
        self.inner.generation
    }

    /// A path or a URL, without secrets.
    pub fn location(&self) -> String {
        self.inner.blobs.location()
    }

    pub fn written(&self) -> Written {
        self.inner.counts.get(self.inner.blobs.syncs())
    }

    /// Writes one new file with these sections; durable on return. It is kept from sweeps until a manifest has named it and
    /// the last two do no longer.
    pub fn write(&self, sections: &[Bytes]) -> Result<Vec<SectionRef>, StorageError> {
        let inner = &*self.inner;
        inner.check()?;
        let name = {
            let mut files = inner.files.lock();
            files.next += 1;
            // The nonce keeps names of a process that failed to begin apart from ours.
            let name = format!("data/{:010}-{:010}-{:08x}", inner.generation, files.next, inner.writer as u32);
            files.unnamed.insert(name.clone());
            name
        };
        let (chunks, places) = data_file::lay_out(&name, sections);
        if let Err(error) = inner.blobs.put(&name, &chunks, false) {
            inner.files.lock().unnamed.remove(&name);
            return Err(error);
        }
        add(&inner.counts.files, 1);
        add(&inner.counts.written_bytes, chunks.iter().map(Bytes::len).sum());
        Ok(places)
    }

    /// Says that no manifest will name a file that this process has written, so that the next sweep takes it.
    pub fn discard(&self, file: &str) {
        self.inner.files.lock().unnamed.remove(file);
    }

    /// A section, checked. Works also once another process has taken over, as long as the file is there.
    pub fn read(&self, section: &SectionRef) -> Result<Bytes, StorageError> {
        let bytes = section.read(&*self.inner.blobs)?;
        add(&self.inner.counts.reads, 1);
        add(&self.inner.counts.read_bytes, bytes.len());
        Ok(bytes)
    }

    /// Commits the next manifest and returns its number. `files` are all that the state needs, those still read from included;
    /// `log_through` is the number of the last log record that the state contains, and never goes back. Of an error that is
    /// retryable the caller does not know whether it was committed; a later commit will find out, and supersedes it.
    pub fn commit(
        &self,
        body: Value,
        files: BTreeSet<String>,
        log_through: u64,
        now_us: i64,
    ) -> Result<u64, StorageError> {
        let inner = &*self.inner;
        inner.check()?;
        let end = inner.next.load(Ordering::Acquire);
        let mut head = inner.head.lock();
        let mut manifest = Manifest {
            number: 0,
            generation: inner.generation,
            // It could not have begun otherwise.
            sealed_below: inner.generation,
            writer: inner.writer,
            committed_at_us: now_us,
            log_through,
            files: files.into_iter().collect(),
            body,
        };
        loop {
            if log_through < head.last.log_through || log_through >= end {
                return Err(StorageError::Invariant(format!(
                    "a state with log records up to {log_through} follows one up to {}, and the log ends before {end}",
                    head.last.log_through
                )));
            }
            manifest.number = head.last.number + 1;
            let (name, bytes) = (Manifest::name(manifest.number), manifest.encode()?);
            match take_place(&*inner.blobs, &name, &bytes)? {
                Place::Ours => {
                    inner.check_newest(manifest.number)?;
                    add(&inner.counts.manifests, 1);
                    add(&inner.counts.written_bytes, bytes.len());
                    let number = manifest.number;
                    inner.advance(&mut head, manifest);
                    return Ok(number);
                }
                Place::Taken(found) => inner.adopt(&mut head, &name, &found)?,
            }
        }
    }

    /// Appends records numbered `first`, `first + 1`, ... as one group; durable on return. `first` is the number after the last
    /// record of the log. After an error that is retryable the records may be in the log: the next call must give them again
    /// (and may give more).
    pub fn append(&self, first: u64, records: &[Bytes]) -> Result<(), StorageError> {
        let inner = &*self.inner;
        if records.is_empty() {
            return Ok(());
        }
        let _one_at_a_time = inner.appending.lock();
        inner.check()?;
        let next = inner.next.load(Ordering::Acquire);
        if first != next {
            return Err(StorageError::Invariant(format!("record {first} is appended where {next} follows")));
        }
        let end = first + records.len() as u64;
        let (mut at, mut rest) = (first, records);
        while !rest.is_empty() {
            let spot = Spot::new(inner.generation, at);
            let group = Group { writer: inner.writer, entry: Entry::Records(rest.to_vec()) };
            let bytes = group.encode(inner.generation, at);
            let found = match take_place(&*inner.blobs, &spot.name, &bytes)? {
                Place::Ours => {
                    add(&inner.counts.log_groups, 1);
                    add(&inner.counts.log_records, rest.len());
                    add(&inner.counts.written_bytes, bytes.len());
                    break;
                }
                Place::Taken(found) => Group::decode(&spot, &found)?,
            };
            match found.entry {
                // What an earlier call wrote without learning of it.
                Entry::Records(earlier) if found.writer == inner.writer => {
                    let Some(more) = rest.strip_prefix(&earlier[..]) else {
                        return Err(StorageError::Invariant(format!(
                            "the log holds other records from {at} on, of an append that was given up"
                        )));
                    };
                    (at, rest) = (at + earlier.len() as u64, more);
                }
                Entry::Records(_) => return Err(inner.fence(format!("{} is another's", spot.name))),
                Entry::Seal { by } => {
                    return Err(
                        inner.fence(format!("generation {by} has sealed the log, this is {}", inner.generation))
                    );
                }
            }
        }
        inner.next.store(end, Ordering::Release);
        Ok(())
    }
}

impl std::fmt::Debug for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Storage").field("location", &self.location()).finish_non_exhaustive()
    }
}

impl Inner {
    /// Fails once another process has taken over.
    pub fn check(&self) -> Result<(), StorageError> {
        match self.fenced.get() {
            None => Ok(()),
            Some(proof) => Err(StorageError::Fenced { location: self.blobs.location(), proof: proof.clone() }),
        }
    }

    fn fence(&self, proof: String) -> StorageError {
        let proof = self.fenced.get_or_init(|| proof).clone();
        StorageError::Fenced { location: self.blobs.location(), proof }
    }

    /// Fails if there is a manifest with a higher number. The place of one that was swept is free again: only for a process that
    /// has been away while another committed several.
    pub fn check_newest(&self, number: u64) -> Result<(), StorageError> {
        match highest(&*self.blobs)? {
            highest if highest > number => {
                Err(self.fence(format!("{} is there, this one was at {number}", Manifest::name(highest))))
            }
            _ => Ok(()),
        }
    }

    fn advance(&self, head: &mut Head, manifest: Manifest) {
        let mut files = self.files.lock();
        manifest.files.iter().for_each(|file| {
            files.unnamed.remove(file);
        });
        head.before = Some(std::mem::replace(&mut head.last, manifest));
    }

    /// Takes what lies in the place of the next manifest as the last: a commit of ours whose answer was lost.
    pub fn adopt(&self, head: &mut Head, name: &str, found: &Bytes) -> Result<(), StorageError> {
        let found = Manifest::decode(name, found)?;
        if found.writer != self.writer {
            let proof = format!("{name} is of generation {}, this is {}", found.generation, self.generation);
            return Err(self.fence(proof));
        }
        self.advance(head, found);
        Ok(())
    }
}
