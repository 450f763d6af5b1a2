//! Checked bytes under a magic and a format number: see the module doc of `storage` for the form.

use std::hash::Hasher;

use bytes::Bytes;
use twox_hash::XxHash3_64;

use super::StorageError;

const FIXED: usize = 32;

/// A kind of frame.
pub(super) struct Form {
    pub magic: [u8; 8],
    /// The newest format: what is written. All up to it are read.
    pub format: u32,
}

/// Words and body, put together.
pub(super) struct Frame {
    pub words: Vec<u64>,
    pub body: Bytes,
    /// Of the whole frame.
    pub bytes: usize,
}

/// What comes before the body.
pub(super) fn head(form: &Form, words: &[u64], body: &[&[u8]]) -> Bytes {
    let length: usize = body.iter().map(|chunk| chunk.len()).sum();
    let count = u32::try_from(words.len()).expect("a frame has few words");
    let mut head = Vec::with_capacity(FIXED + words.len() * 8);
    head.extend_from_slice(&form.magic);
    head.extend_from_slice(&form.format.to_le_bytes());
    head.extend_from_slice(&count.to_le_bytes());
    head.extend_from_slice(&(length as u64).to_le_bytes());
    let mut hash = XxHash3_64::with_seed(XxHash3_64::oneshot(&head));
    words.iter().for_each(|word| hash.write(&word.to_le_bytes()));
    body.iter().for_each(|chunk| hash.write(chunk));
    head.extend_from_slice(&hash.finish().to_le_bytes());
    words.iter().for_each(|word| head.extend_from_slice(&word.to_le_bytes()));
    head.into()
}

/// Reads the frame at the beginning of `bytes`; `name` is for errors.
pub(super) fn read(form: &Form, name: &str, bytes: &Bytes) -> Result<Frame, StorageError> {
    let corrupt = |reason: &str| StorageError::corrupt(name, reason);
    let fixed = bytes.get(..FIXED).ok_or_else(|| corrupt("it is cut short"))?;
    if fixed[..8] != form.magic {
        return Err(corrupt("it does not begin as it should"));
    }
    let format = u32::from_le_bytes(fixed[8..12].try_into().expect("four bytes"));
    let words = u32::from_le_bytes(fixed[12..16].try_into().expect("four bytes")) as usize * 8;
    let body = word(fixed, 16);
    let start = FIXED + words;
    let end = usize::try_from(body).ok().and_then(|body| start.checked_add(body)).filter(|end| *end <= bytes.len());
    let end = end.ok_or_else(|| corrupt("it is cut short"))?;
    let mut hash = XxHash3_64::with_seed(XxHash3_64::oneshot(&fixed[..24]));
    hash.write(&bytes[FIXED..end]);
    if hash.finish() != word(fixed, 24) {
        return Err(corrupt("its checksum is another"));
    }
    if format > form.format {
        return Err(StorageError::NewerFormat { file: name.to_string(), format, known: form.format });
    }
    let words = bytes[FIXED..start].chunks_exact(8).map(|chunk| word(chunk, 0)).collect();
    Ok(Frame { words, body: bytes.slice(start..end), bytes: end })
}

/// Reads bytes that are one frame and nothing more.
pub(super) fn read_whole(form: &Form, name: &str, bytes: &Bytes) -> Result<Frame, StorageError> {
    let frame = read(form, name, bytes)?;
    if frame.bytes != bytes.len() {
        return Err(StorageError::corrupt(name, "it is longer than it says"));
    }
    Ok(frame)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
