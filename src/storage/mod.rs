//! Where state is kept: files of immutable sections, a manifest that names them, and a log of records.
//!
//! ```text
//! Storage::open(url) ──> Opened { storage, manifest, log }          what is there, and the right to write
//!   write(sections) ──> SectionRef ...                              a new file, durable on return
//!   commit(body, files, log_through) ──> number of the manifest     the one atomic swap
//!   append(first, records)                                          a group of records, durable on return
//!   sweep()                                                         deletes what nothing names any more
//! ```
//!
//! All calls block; they may be made from any thread, one of tokio's included. Retrying is the caller's business:
//! [`StorageError::is_retryable`] says where it makes sense.
//!
//! # What lies where
//!
//! Names are relative to the folder, or to the prefix in a bucket.
//!
//! | name | what it is |
//! |---|---|
//! | `manifest/{number:020}` | a manifest; the highest number is the state |
//! | `data/{generation:010}-{n:010}-{nonce:08x}` | sections of state, written once |
//! | `log/{generation:010}-{first:020}` | a group of log records, numbered from `first` on, or the seal of its generation |
//! | `lock` | local folders only: locked (flock) by the process that writes, whose id is in it |
//! | `tmp/` | in a local folder files that are being written, emptied by `open`; in a bucket `condition`, which shows that puts are heeded |
//!
//! Numbers are little-endian. All checksums are XXH3 (64 bit).
//!
//! **A frame** ([`frame`]) is the form of data files, log groups and what [`encode`] makes: 8 bytes magic, u32 format, u32
//! number of words, u64 bytes of the body, u64 checksum of words and body (its seed is the checksum of the 24 bytes before
//! it), the words (u64 each), the body.
//!
//! - **Data file**, magic `rrdata\r\n`, format 1: a frame without a body whose words are offset, bytes and checksum of each
//!   section; then the sections. Offsets count from the beginning of the file.
//! - **Log group**, magic `rrlog\r\n\0`, format 1: words kind (0 records, 1 seal), writer, generation, number of the first record,
//!   count; the body is, for each record, u32 bytes and the record. The generation in a seal is the one that sealed.
//! - **Saved state** ([`encode`]), magic `rrsaved\n`, format 1: one word, the bytes of the directory; the body is the directory
//!   (JSON: `whole`, `notes`, and for each stream its bytes and the names of its batches) and then Arrow IPC streams,
//!   compressed with zstd, without dictionaries.
//! - **Manifest**, format 1: a line `riverrun manifest {format} {checksum} {bytes}` and that many bytes of JSON, compressed with
//!   zstd if there are many. The checksum's seed is the format.
//!
//! A format number higher than what this version writes is refused ([`StorageError::NewerFormat`]).
//!
//! # One writer
//!
//! Manifests and log groups are put only where nothing is yet, and carry a random number of the process that wrote them, so
//! that each place has one winner, who can tell that it is his even if the answer was lost.
//!
//! `open` commits the next manifest with the next *generation* and the content of the last: from then on no commit of an older
//! process succeeds, as its place is taken. Records of the log are numbered through all generations, and each generation's groups
//! follow each other without a gap. `open` reads what is after the manifest's `log_through` and *seals* every generation before
//! its own by a blob at the place where its next group would be. If the older process was faster, the seal's place is taken,
//! and the log is read again: its records count. If the seal was faster, the older process finds its place taken: it is fenced.
//! Generations are sealed in order, and only then does one begin to append: so a blob of a generation in the log proves that
//! all before it are sealed. Seals are never deleted (an old process may sleep for long): one small blob for each start.
//!
//! An older process may be in the middle of `sweep` when another takes over. It deletes only files of its own and earlier generations
//! that neither of the last two manifests names; what a later manifest may name is in its last or of a later generation.

mod blobs;
mod copying;
mod data_file;
mod error;
mod figures;
mod frame;
mod local;
mod log;
mod manifest;
mod opening;
mod remote;
mod saved;
pub mod sim;
mod store;
mod sweeping;

pub use blobs::{Blob, Blobs, Put, at};
pub use copying::{Copied, backup, restore};
pub use data_file::SectionRef;
pub use error::StorageError;
pub use figures::Written;
pub use manifest::Manifest;
pub use opening::{IfDamaged, Opened};
pub use saved::{decode, encode};
pub use store::Storage;
pub use sweeping::Swept;

#[cfg(test)]
mod race_tests;
#[cfg(test)]
mod storage_tests;
