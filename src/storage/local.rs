//! A local folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Blob, Blobs, Put, StorageError};

/// Folders that hold blobs.
const FOLDERS: [&str; 3] = ["manifest", "data", "log"];

const TEMPORARY: &str = "tmp";

/// Blobs are files: written under a temporary name, synced, and linked or renamed to their own; then the folder is synced.
#[derive(Debug)]
pub(super) struct LocalBlobs {
    root: PathBuf,
    held: Mutex<Option<Held>>,
    temporary: AtomicU64,
    syncs: AtomicU64,
}

/// What keeps others out.
#[derive(Debug)]
struct Held {
    /// Locked while it is open.
    _lock: File,
    /// The folder; it is no other one as long as this is open.
    root: File,
}

impl LocalBlobs {
    pub fn new(root: PathBuf) -> LocalBlobs {
        LocalBlobs { root, held: Mutex::default(), temporary: AtomicU64::new(0), syncs: AtomicU64::new(0) }
    }

    /// Refuses a folder that is no longer the one that was locked: what is put there is not where the rest is. It may come back.
    fn check_root(&self) -> Result<(), StorageError> {
        let held = self.held.lock();
        let Some(Held { root, .. }) = &*held else { return Ok(()) };
        let place = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        match (root.metadata().map(place), fs::metadata(&self.root).map(place)) {
            (Ok(held), Ok(there)) if held == there => Ok(()),
            _ => Err(StorageError::Unavailable {
                doing: format!("using {}", self.location()),
                reason: "it has been removed or replaced since the start".into(),
            }),
        }
    }

    /// Of a call that found nothing: folders of ours that have gone may come back.
    fn unless_gone(&self, error: StorageError) -> StorageError {
        let is_held = self.held.lock().is_some();
        let gone = || FOLDERS.iter().chain([&TEMPORARY]).find(|folder| !self.root.join(folder).is_dir());
        match (error, is_held) {
            (error @ StorageError::NotFound { .. }, true) => match (self.check_root(), gone()) {
                (Err(replaced), _) => replaced,
                (Ok(()), Some(folder)) => StorageError::Unavailable {
                    doing: format!("using {}", self.location()),
                    reason: format!("its folder {folder} is not there"),
                },
                (Ok(()), None) => error,
            },
            (error, _) => error,
        }
    }

    fn path(&self, name: &str) -> Result<PathBuf, StorageError> {
        let plain = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        match name.split_once('/') {
            Some((folder, file)) if FOLDERS.contains(&folder) && plain(file) => Ok(self.root.join(name)),
            _ => Err(StorageError::corrupt(name, "no file of ours has such a name")),
        }
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        file.sync_all()
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.sync(&File::open(folder)?)
    }

    /// Writes the chunks under a temporary name.
    fn write_temporary(&self, chunks: &[Bytes]) -> Result<PathBuf, StorageError> {
        let n = self.temporary.fetch_add(1, Ordering::Relaxed);
        // A copy takes no lock: the name must be its own.
        let path = self.root.join(TEMPORARY).join(format!("{}-{n}", std::process::id()));
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
            chunks.iter().try_for_each(|chunk| file.write_all(chunk))?;
            self.sync(&file)
        };
        match write() {
            Ok(()) => Ok(path),
            Err(error) => {
                let failed = self.failed("writing", &path, &error);
                discard(&path);
                Err(failed)
            }
        }
    }

    /// Makes sure that a file which is there stays there.
    fn settle(&self, target: &Path) -> io::Result<()> {
        self.sync(&File::open(target)?)?;
        self.sync_folder(target.parent().unwrap_or(&self.root))
    }

    fn make_folders(&self) -> Result<(), StorageError> {
        let make = |folder: &Path| -> io::Result<()> {
            // What is in the tables, and how brokers are spoken to, is for nobody else to read.
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            self.sync_folder(folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))
        };
        let folders = FOLDERS.iter().chain([&TEMPORARY]).map(|folder| self.root.join(folder));
        std::iter::once(self.root.clone()).chain(folders).filter(|folder| !folder.is_dir()).try_for_each(|folder| {
            make(&folder).map_err(|error| match error.kind() {
                ErrorKind::NotFound => {
                    StorageError::InvalidUrl { url: self.location(), reason: format!("it cannot be made: {error}") }
                }
                _ => self.failed("making", &folder, &error),
            })
        })
    }

    fn failed(&self, doing: &str, path: &Path, error: &io::Error) -> StorageError {
        let (doing, reason) = (format!("{doing} {}", path.display()), error.to_string());
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                StorageError::Full { doing, reason }
            }
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => StorageError::Denied { doing, reason },
            ErrorKind::NotFound => StorageError::NotFound { name: path.display().to_string() },
            ErrorKind::NotADirectory => StorageError::NotRiverrun {
                location: self.location(),
                found: "a file where a folder is needed".to_string(),
            },
            _ => StorageError::Unavailable { doing, reason },
        }
    }
}

/// Takes away a temporary file; what stays is removed by the next `open`.
fn discard(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "a temporary file stays");
    }
}

impl Blobs for LocalBlobs {
    fn location(&self) -> String {
        self.root.display().to_string()
    }

    fn lock(&self) -> Result<(), StorageError> {
        self.make_folders()?;
        let path = self.root.join("lock");
        let failed = |error: io::Error| self.failed("locking", &path, &error);
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(failed)?;
        // SAFETY: the descriptor is open as long as `file` lives.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            let error = io::Error::last_os_error();
            if error.kind() != ErrorKind::WouldBlock {
                return Err(failed(error));
            }
            let mut holder = String::new();
            let read = file.take(32).read_to_string(&mut holder);
            let pid = read.ok().and_then(|_| holder.trim().parse().ok());
            return Err(StorageError::Locked { location: self.location(), pid });
        }
        let write = |file: &mut File| -> io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(failed)?;
        let root = File::open(&self.root).map_err(|error| self.failed("opening", &self.root, &error))?;
        *self.held.lock() = Some(Held { _lock: file, root });
        let temporary = self.root.join(TEMPORARY);
        let failed = |error: io::Error| self.failed("emptying", &temporary, &error);
        for entry in fs::read_dir(&temporary).map_err(failed)? {
            fs::remove_file(entry.map_err(failed)?.path()).map_err(failed)?;
        }
        Ok(())
    }

    fn put(&self, name: &str, chunks: &[Bytes], create_only: bool) -> Result<Put, StorageError> {
        let target = self.path(name)?;
        self.check_root()?;
        let temporary = match self.write_temporary(chunks) {
            // A copy finds no folders.
            Err(StorageError::NotFound { .. }) if self.held.lock().is_none() => {
                self.make_folders()?;
                self.write_temporary(chunks)?
            }
            written => written.map_err(|error| self.unless_gone(error))?,
        };
        let failed = |error: io::Error| self.unless_gone(self.failed("writing", &target, &error));
        if create_only {
            let linked = fs::hard_link(&temporary, &target);
            discard(&temporary);
            match linked {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    return self.settle(&target).map(|()| Put::Taken).map_err(failed);
                }
                linked => linked.map_err(failed)?,
            }
        } else if let Err(error) = fs::rename(&temporary, &target) {
            discard(&temporary);
            return Err(failed(error));
        }
        let folder = target.parent().unwrap_or(&self.root);
        self.sync_folder(folder).map_err(|error| self.unless_gone(self.failed("syncing", folder, &error)))?;
        self.check_root()?;
        Ok(Put::Done)
    }

    fn get(&self, name: &str, range: Option<Range<u64>>) -> Result<Bytes, StorageError> {
        let path = self.path(name)?;
        let failed = |error: io::Error| match error.kind() {
            ErrorKind::NotFound => self.unless_gone(StorageError::NotFound { name: path.display().to_string() }),
            _ => self.failed("reading", &path, &error),
        };
        let file = File::open(&path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let range = range.unwrap_or(0..length);
        if range.end > length || range.start > range.end {
            let place = format!(" (bytes {} to {})", range.start, range.end);
            let reason = format!("it has {length} bytes");
            return Err(StorageError::Corrupt { file: name.to_string(), place, reason });
        }
        let mut bytes = vec![0; (range.end - range.start) as usize];
        file.read_exact_at(&mut bytes, range.start).map_err(failed)?;
        Ok(bytes.into())
    }

    fn list(&self, folder: &str) -> Result<Vec<Blob>, StorageError> {
        let path = self.root.join(folder);
        self.check_root()?;
        let failed = |error: io::Error| self.unless_gone(self.failed("listing", &path, &error));
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound && self.held.lock().is_none() => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut blobs = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let bytes = match entry.metadata() {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                metadata => metadata.map_err(failed)?.len(),
            };
            if let Some(name) = entry.file_name().to_str() {
                blobs.push(Blob { name: format!("{folder}/{name}"), bytes });
            }
        }
        blobs.sort();
        Ok(blobs)
    }

    fn top(&self) -> Result<Vec<String>, StorageError> {
        let failed = |error: io::Error| self.failed("listing", &self.root, &error);
        let entries = match fs::read_dir(&self.root) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            // Made by mkfs in the root of a volume.
            if name != "lost+found" {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn delete(&self, names: &[String]) -> Result<(), StorageError> {
        self.check_root()?;
        for name in names {
            let path = self.path(name)?;
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(self.failed("deleting", &path, &error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }
}
