//! A file of sections, written once.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use super::frame::{self, Form};
use super::{Blobs, StorageError};

const FORM: Form = Form { magic: *b"rrdata\r\n", format: 1 };

/// Where a section is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SectionRef {
    /// As [`Storage::commit`](super::Storage::commit) wants it among the files.
    pub file: String,
    /// In bytes from the beginning of the file.
    pub offset: u64,
    pub bytes: u64,
    /// XXH3 of the bytes.
    pub checksum: u64,
}

impl SectionRef {
    /// What [`SectionRef::checksum`] is of some bytes.
    pub fn checksum_of(bytes: &[u8]) -> u64 {
        XxHash3_64::oneshot(bytes)
    }

    /// Reads the section and checks it.
    pub(super) fn read(&self, blobs: &dyn Blobs) -> Result<Bytes, StorageError> {
        let end = self.offset.checked_add(self.bytes).ok_or_else(|| self.corrupt("it lies beyond any file"))?;
        let bytes = blobs.get(&self.file, Some(self.offset..end))?;
        if Self::checksum_of(&bytes) != self.checksum {
            return Err(self.corrupt("its checksum is another"));
        }
        Ok(bytes)
    }

    fn corrupt(&self, reason: &str) -> StorageError {
        let place = format!(" (bytes {} to {})", self.offset, self.offset.saturating_add(self.bytes));
        StorageError::Corrupt { file: self.file.clone(), place, reason: reason.to_string() }
    }
}

/// The chunks of a file with these sections, and where they are in it.
pub(super) fn lay_out(file: &str, sections: &[Bytes]) -> (Vec<Bytes>, Vec<SectionRef>) {
    let mut offset = frame::head(&FORM, &vec![0; sections.len() * 3], &[]).len() as u64;
    let place = |section: &Bytes| {
        let (bytes, checksum) = (section.len() as u64, SectionRef::checksum_of(section));
        let place = SectionRef { file: file.to_string(), offset, bytes, checksum };
        offset += bytes;
        place
    };
    let places: Vec<SectionRef> = sections.iter().map(place).collect();
    let words: Vec<u64> = places.iter().flat_map(|place| [place.offset, place.bytes, place.checksum]).collect();
    let chunks = std::iter::once(frame::head(&FORM, &words, &[])).chain(sections.iter().cloned()).collect();
    (chunks, places)
}

/// Checks a whole file and says what is in it.
pub(super) fn verify(file: &str, bytes: &Bytes) -> Result<Vec<SectionRef>, StorageError> {
    let head = frame::read(&FORM, file, bytes)?;
    let mut end = head.bytes;
    let mut places = Vec::new();
    for words in head.words.chunks(3) {
        let &[offset, length, checksum] = words else {
            return Err(StorageError::corrupt(file, "its directory is no directory"));
        };
        let place = SectionRef { file: file.to_string(), offset, bytes: length, checksum };
        let until = usize::try_from(length).ok().and_then(|length| end.checked_add(length));
        let section = until.filter(|_| offset == end as u64).and_then(|until| bytes.get(end..until));
        let section = section.ok_or_else(|| place.corrupt("it is cut short"))?;
        if SectionRef::checksum_of(section) != checksum {
            return Err(place.corrupt("its checksum is another"));
        }
        end += section.len();
        places.push(place);
    }
    if end != bytes.len() {
        return Err(StorageError::corrupt(file, "it is longer than it says"));
    }
    Ok(places)
}
