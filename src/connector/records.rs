//! What leaves a connector: many records in one buffer.

/// Records as they were read: one contiguous buffer of bytes and, per record, where its key and value lie in it. No
/// record is a heap object of its own. [`Records::clear`] keeps the capacity, so a reader's buffer is allocated once.
#[derive(Debug, Clone, Default)]
pub struct Records {
    pub bytes: Vec<u8>,
    pub records: Vec<Record>,
}

/// One record: 48 bytes, no heap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    pub offset: i64,
    /// Milliseconds since the epoch; -1 if the record has none.
    pub timestamp_ms: i64,
    pub partition: i32,
    /// The timestamp is the broker's clock, not the producer's.
    pub log_append_time: bool,
    pub key: Option<Span>,
    /// `None` is a tombstone.
    pub value: Option<Span>,
}

/// A range of [`Records::bytes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub start: u32,
    pub len: u32,
}

/// What identifies a record and when it was written, apart from its bytes.
#[derive(Debug, Clone, Copy)]
pub struct RecordMeta {
    pub partition: i32,
    pub offset: i64,
    pub timestamp_ms: i64,
    pub log_append_time: bool,
}

impl Records {
    /// The most bytes that readers put here; what stays below `i32::MAX` fits Arrow's offsets.
    pub const MAX_BYTES: usize = 512 << 20;

    pub fn len(&self) -> usize {
        self.records.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.records.clear();
    }

    /// Copies one record in. A record of Kafka is at most 1 GB, and readers stop at [`Records::MAX_BYTES`], so offsets
    /// fit 32 bits.
    pub fn push(&mut self, meta: RecordMeta, key: Option<&[u8]>, value: Option<&[u8]>) {
        let key = key.map(|k| self.append(k));
        let value = value.map(|v| self.append(v));
        self.records.push(Record {
            offset: meta.offset,
            timestamp_ms: meta.timestamp_ms,
            partition: meta.partition,
            log_append_time: meta.log_append_time,
            key,
            value,
        });
    }

    fn append(&mut self, bytes: &[u8]) -> Span {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        assert!(self.bytes.len() <= i32::MAX as usize, "readers stop at MAX_BYTES and no record exceeds 1 GB");
        Span { start: start as u32, len: bytes.len() as u32 }
    }

    pub fn key(&self, index: usize) -> Option<&[u8]> {
        self.records[index].key.map(|span| self.slice(span))
    }

    /// `None` is a tombstone.
    pub fn value(&self, index: usize) -> Option<&[u8]> {
        self.records[index].value.map(|span| self.slice(span))
    }

    pub fn slice(&self, span: Span) -> &[u8] {
        &self.bytes[span.start as usize..][..span.len as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_keys_values_and_tombstones_apart() {
        let mut records = Records::default();
        let meta = |offset| RecordMeta { partition: 3, offset, timestamp_ms: -1, log_append_time: false };
        records.push(meta(7), Some(b"k"), Some(b"value"));
        records.push(meta(8), None, None);
        records.push(meta(9), None, Some(b""));
        assert_eq!((records.key(0), records.value(0)), (Some(&b"k"[..]), Some(&b"value"[..])));
        assert_eq!((records.key(1), records.value(1)), (None, None));
        assert_eq!((records.key(2), records.value(2)), (None, Some(&b""[..])));
        assert_eq!(size_of::<Record>(), 48);
        let capacity = records.bytes.capacity();
        records.clear();
        assert!(records.is_empty() && records.bytes.capacity() == capacity);
    }
}
