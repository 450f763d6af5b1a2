//! The manifest: what is kept, at one moment.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use twox_hash::XxHash3_64;

use super::StorageError;

const FORMAT: u32 = 1;

/// JSON with more bytes than this is compressed.
const COMPRESSED_FROM: usize = 64 << 10;

const ZSTD_LEVEL: i32 = 3;

/// The first bytes of what zstd makes; JSON begins with a brace.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];

/// Room for the first line.
const MAX_LINE: usize = 100;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub number: u64,
    /// Of the process that committed it.
    pub generation: u64,
    /// All generations of the log below this one are known to be sealed.
    pub(super) sealed_below: u64,
    /// Tells processes apart; random.
    pub(super) writer: u64,
    pub committed_at_us: i64,
    /// The number of the last log record that the state contains.
    pub log_through: u64,
    /// In order, each once.
    pub files: Vec<String>,
    /// Whatever the engine wants to find again. Null until the first commit.
    pub body: Value,
}

impl Manifest {
    pub(super) fn name(number: u64) -> String {
        format!("manifest/{number:020}")
    }

    pub(super) fn number_in(name: &str) -> Option<u64> {
        let digits = name.strip_prefix("manifest/")?;
        digits.parse().ok().filter(|number| Manifest::name(*number) == name)
    }

    pub(super) fn encode(&self) -> Result<Bytes, StorageError> {
        let wrong =
            |error: &dyn std::fmt::Display| StorageError::Invariant(format!("a manifest cannot be written: {error}"));
        let mut rest = serde_json::to_vec(self).map_err(|e| wrong(&e))?;
        if rest.len() > COMPRESSED_FROM {
            rest = zstd::bulk::compress(&rest, ZSTD_LEVEL).map_err(|e| wrong(&e))?;
        }
        let checksum = XxHash3_64::oneshot_with_seed(FORMAT.into(), &rest);
        let mut bytes = format!("riverrun manifest {FORMAT} {checksum:016x} {}\n", rest.len()).into_bytes();
        bytes.append(&mut rest);
        Ok(bytes.into())
    }

    /// The beginning of a manifest, and not all of it.
    pub(super) fn is_cut_short(bytes: &[u8]) -> bool {
        let begins = format!("riverrun manifest {FORMAT} ").into_bytes();
        let shared = bytes.len().min(begins.len());
        if bytes[..shared] != begins[..shared] {
            return false;
        }
        let Some(line_end) = bytes.iter().position(|byte| *byte == b'\n') else { return bytes.len() < MAX_LINE };
        let length = std::str::from_utf8(&bytes[..line_end]).ok().and_then(|line| line.rsplit(' ').next());
        length.and_then(|length| length.parse().ok()).is_some_and(|length| bytes.len() - line_end - 1 < length)
    }

    pub(super) fn decode(name: &str, bytes: &Bytes) -> Result<Manifest, StorageError> {
        let corrupt = |reason: &str| StorageError::corrupt(name, reason);
        let no_line = || corrupt("its first line is not that of a manifest");
        let line_end = bytes.iter().take(MAX_LINE).position(|byte| *byte == b'\n').ok_or_else(no_line)?;
        let line = std::str::from_utf8(&bytes[..line_end]).map_err(|_| no_line())?;
        let words: Vec<&str> = line.split(' ').collect();
        let ["riverrun", "manifest", format, checksum, length] = words[..] else { return Err(no_line()) };
        let format: u32 = format.parse().map_err(|_| no_line())?;
        let checksum = u64::from_str_radix(checksum, 16).map_err(|_| no_line())?;
        let rest = &bytes[line_end + 1..];
        if length.parse() != Ok(rest.len()) {
            return Err(corrupt("it is cut short, or longer than it says"));
        }
        if XxHash3_64::oneshot_with_seed(format.into(), rest) != checksum {
            return Err(corrupt("its checksum is another"));
        }
        if format > FORMAT {
            return Err(StorageError::NewerFormat { file: name.to_string(), format, known: FORMAT });
        }
        let json = if rest.starts_with(&ZSTD_MAGIC) {
            zstd::stream::decode_all(rest).map_err(|e| corrupt(&format!("it cannot be decompressed: {e}")))?
        } else {
            rest.to_vec()
        };
        let manifest: Manifest = serde_json::from_slice(&json).map_err(|e| corrupt(&e.to_string()))?;
        if Manifest::name(manifest.number) != name {
            return Err(corrupt(&format!("it is the manifest of number {}", manifest.number)));
        }
        Ok(manifest)
    }
}
