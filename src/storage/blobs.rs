//! Named bytes: what a folder and a bucket have in common.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::StorageError;
use super::local::LocalBlobs;
use super::remote::RemoteBlobs;

/// A place for blobs. Names are of lower-case letters, digits and `-`, in one folder or none: `log/0000000001-7`.
pub trait Blobs: Send + Sync {
    /// Where this is, for people: a path or a URL, without secrets.
    fn location(&self) -> String;

    /// Claims the place for this process, as far as it knows processes; makes it if it is not there.
    fn lock(&self) -> Result<(), StorageError> {
        Ok(())
    }

    /// Writes a blob of the chunks one after the other, whole or not at all; durable on return. With `create_only` a blob that
    /// is there stays, and is durable on return. After an error that is retryable the blob may be there, or come to be there later.
    fn put(&self, name: &str, chunks: &[Bytes], create_only: bool) -> Result<Put, StorageError>;

    /// A blob, or a range of its bytes. NotFound if there is none, Corrupt if it ends before the range does.
    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Bytes, StorageError>;

    /// Several blobs, whole, in the order of their names given.
    fn get_all(&self, names: &[String]) -> Result<Vec<Bytes>, StorageError> {
        names.iter().map(|name| self.get(name, None)).collect()
    }

    /// What is in a folder, in the order of names; nothing if it does not exist.
    fn list(&self, folder: &str) -> Result<Vec<Blob>, StorageError>;

    /// The first names at the top, files and folders; nothing if the place does not exist.
    fn top(&self) -> Result<Vec<String>, StorageError>;

    /// Deletes blobs; one that is not there is no error.
    fn delete(&self, names: &[String]) -> Result<(), StorageError>;

    /// How often the operating system was told to write through.
    fn syncs(&self) -> u64 {
        0
    }
}

/// What came of a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    Done,
    /// Another blob was there before, and still is.
    Taken,
}

/// A blob in a list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Blob {
    /// With its folder.
    pub name: String,
    pub bytes: u64,
}

/// What came of trying to take a place.
#[derive(Debug)]
pub(super) enum Place {
    Ours,
    /// Another blob has it.
    Taken(Bytes),
}

/// Puts a blob where none is yet. `bytes` says who wrote it, so that finding them there is success, whatever was answered.
pub(super) fn take_place(blobs: &dyn Blobs, name: &str, bytes: &Bytes) -> Result<Place, StorageError> {
    let put = || blobs.put(name, std::slice::from_ref(bytes), true);
    let outcome = match put() {
        // The answer may have been lost after the effect. Where something is there now, the second put is what makes it durable.
        Err(error) if error.is_retryable() => match blobs.get(name, None) {
            Ok(_) => put(),
            Err(_) => return Err(error),
        },
        outcome => outcome,
    };
    if outcome? == Put::Done {
        return Ok(Place::Ours);
    }
    match blobs.get(name, None) {
        Ok(found) if found == *bytes => Ok(Place::Ours),
        Ok(found) => Ok(Place::Taken(found)),
        // Some stores say so while another put is under way.
        Err(StorageError::NotFound { .. }) => Err(StorageError::Unavailable {
            doing: format!("writing {name}"),
            reason: "it was said to be there, and is not".into(),
        }),
        Err(error) => Err(error),
    }
}

/// The place a URL names.
pub fn at(url: &str) -> Result<Arc<dyn Blobs>, StorageError> {
    let invalid = |reason: &str| StorageError::InvalidUrl { url: url.to_string(), reason: reason.to_string() };
    let path = match url.split_once("://") {
        None => url,
        Some(("file", path)) if path.starts_with('/') => path,
        Some(("file", _)) => return Err(invalid("file:// wants an absolute path, file:///var/lib/riverrun")),
        Some((scheme, rest)) => return Ok(Arc::new(RemoteBlobs::at(scheme, rest)?)),
    };
    if path.is_empty() {
        return Err(invalid("it is empty"));
    }
    Ok(Arc::new(LocalBlobs::new(path.into())))
}
