//! Saved state as bytes.

use std::io::Cursor;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field};
use arrow::ipc::CompressionType;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exec::durable::{Saved, Section};

use super::StorageError;
use super::frame::{self, Form};

const FORM: Form = Form { magic: *b"rrsaved\n", format: 1 };

/// What errors call the bytes: whoever read them knows the file.
const NAME: &str = "a saved state";

#[derive(Serialize, Deserialize)]
struct Directory {
    whole: bool,
    notes: Value,
    streams: Vec<Stream>,
}

/// Sections in a row with one schema.
#[derive(Serialize, Deserialize)]
struct Stream {
    bytes: u64,
    sections: Vec<String>,
}

/// The bytes of some saved state; the module doc of `storage` has their form.
pub fn encode(saved: &Saved) -> Result<Bytes, StorageError> {
    let wrong = |error: &dyn std::fmt::Display| StorageError::Invariant(format!("a state cannot be written: {error}"));
    let options =
        IpcWriteOptions::default().try_with_compression(Some(CompressionType::ZSTD)).map_err(|e| wrong(&e))?;
    let mut streams = Vec::new();
    let mut body = Vec::new();
    for sections in saved.sections.chunk_by(|a, b| a.rows.schema_ref() == b.rows.schema_ref()) {
        let schema = sections[0].rows.schema_ref();
        if let Some(field) = schema.fields().iter().find(|field| has_dictionary(field)) {
            return Err(wrong(&format_args!("column {} has a dictionary", field.name())));
        }
        let start = body.len();
        let mut writer =
            StreamWriter::try_new_with_options(&mut body, schema, options.clone()).map_err(|e| wrong(&e))?;
        sections.iter().try_for_each(|section| writer.write(&section.rows)).map_err(|e| wrong(&e))?;
        writer.finish().map_err(|e| wrong(&e))?;
        let sections = sections.iter().map(|section| section.name.clone()).collect();
        streams.push(Stream { bytes: (body.len() - start) as u64, sections });
    }
    let directory = Directory { whole: saved.whole, notes: saved.notes.clone(), streams };
    let directory = Bytes::from(serde_json::to_vec(&directory).map_err(|e| wrong(&e))?);
    let words = [directory.len() as u64];
    let head = frame::head(&FORM, &words, &[&directory, &body]);
    Ok([&head[..], &directory, &body].concat().into())
}

/// The state in some bytes. All of them are checked before any is understood.
pub fn decode(bytes: &Bytes) -> Result<Saved, StorageError> {
    let corrupt = |reason: &dyn std::fmt::Display| StorageError::corrupt(NAME, reason.to_string());
    let frame = frame::read_whole(&FORM, NAME, bytes)?;
    let mut body = frame.body;
    let mut next = |length: u64| {
        let length = usize::try_from(length).ok().filter(|length| *length <= body.len());
        length.map(|length| body.split_to(length)).ok_or_else(|| corrupt(&"it is cut short"))
    };
    let &[length] = &frame.words[..] else { return Err(corrupt(&"its head is too short or too long")) };
    let directory: Directory = serde_json::from_slice(&next(length)?).map_err(|e| corrupt(&e))?;
    let mut saved = Saved { whole: directory.whole, sections: Vec::new(), notes: directory.notes };
    for stream in directory.streams {
        let reader = StreamReader::try_new(Cursor::new(next(stream.bytes)?), None).map_err(|e| corrupt(&e))?;
        let rows: Vec<RecordBatch> = reader.collect::<Result<_, _>>().map_err(|e| corrupt(&e))?;
        if rows.len() != stream.sections.len() {
            return Err(corrupt(&"it has more or fewer sections than it says"));
        }
        saved.sections.extend(stream.sections.into_iter().zip(rows).map(|(name, rows)| Section { name, rows }));
    }
    if !body.is_empty() {
        return Err(corrupt(&"it is longer than it says"));
    }
    Ok(saved)
}

fn has_dictionary(field: &Field) -> bool {
    match field.data_type() {
        DataType::Dictionary(..) => true,
        DataType::Struct(fields) => fields.iter().any(|field| has_dictionary(field)),
        DataType::Union(fields, _) => fields.iter().any(|(_, field)| has_dictionary(field)),
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _) => has_dictionary(field),
        DataType::RunEndEncoded(ends, values) => has_dictionary(ends) || has_dictionary(values),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        ArrayRef, BinaryArray, DictionaryArray, Int64Array, ListArray, RecordBatchOptions, StringArray, StructArray,
        UInt32Array,
    };
    use arrow::datatypes::{Int32Type, Int64Type, Schema};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
        RecordBatch::try_from_iter(columns).expect("columns of one length")
    }

    fn state() -> Saved {
        let ids = |from: i64, to: i64| Arc::new(Int64Array::from_iter_values(from..to)) as ArrayRef;
        let names = StringArray::from_iter((0..1000).map(|i| (i % 3 > 0).then(|| format!("ad {i}"))));
        let list = ListArray::from_iter_primitive::<Int64Type, _, _>([Some(vec![Some(1), None]), None, Some(vec![])]);
        let pair = StructArray::try_from(vec![
            ("n", ids(0, 3)),
            ("b", Arc::new(BinaryArray::from(vec![&b"x"[..], b"", b"z"]))),
        ]);
        let mut saved =
            Saved { whole: true, notes: json!({ "next": 7, "none": null, "text": "µ" }), sections: Vec::new() };
        saved.push("keys", batch(vec![("id", ids(0, 1000)), ("name", Arc::new(names))]));
        saved.push("slice 1", batch(vec![("id", ids(5, 90))]));
        saved.push("slice 2", batch(vec![("id", ids(0, 0))]));
        saved.push("slice 3", batch(vec![("id", ids(0, 1000))]).slice(990, 10));
        saved.push("nested", batch(vec![("l", Arc::new(list)), ("s", Arc::new(pair.expect("a struct")))]));
        let no_columns = RecordBatchOptions::new().with_row_count(Some(12));
        let rows = RecordBatch::try_new_with_options(Arc::new(Schema::empty()), Vec::new(), &no_columns);
        saved.push("counted", rows.expect("rows without columns"));
        saved
    }

    #[test]
    fn a_state_comes_back_as_it_was() {
        for saved in [state(), Saved::default(), Saved { notes: json!([1]), ..Saved::default() }] {
            assert_eq!(decode(&encode(&saved).expect("encoded")), Ok(saved));
        }
    }

    #[test]
    fn columns_are_compressed() {
        let mut saved = Saved::default();
        saved.push("zeros", batch(vec![("n", Arc::new(UInt32Array::from(vec![0; 100_000])))]));
        let bytes = encode(&saved).expect("encoded").len();
        assert!(bytes < 4_000, "{bytes} bytes");
    }

    #[test]
    fn dictionaries_are_refused() {
        let mut saved = Saved::default();
        let words: DictionaryArray<Int32Type> = ["a", "b", "a"].into_iter().collect();
        saved.push("words", batch(vec![("w", Arc::new(words))]));
        let error = encode(&saved).expect_err("refused").to_string();
        assert_eq!(error, "broken invariant: a state cannot be written: column w has a dictionary");
    }

    /// What somebody wrote on purpose, with the right checksum.
    fn forged(words: &[u64], body: &[u8]) -> Bytes {
        [&frame::head(&FORM, words, &[body])[..], body].concat().into()
    }

    #[test]
    fn lengths_are_not_believed() {
        let huge =
            format!("{{\"whole\":true,\"notes\":null,\"streams\":[{{\"bytes\":{},\"sections\":[]}}]}}", u64::MAX);
        let cases: [(&[u64], &[u8]); 5] =
            [(&[], b""), (&[1, 2], b"x"), (&[u64::MAX], b"{}"), (&[2], b"{}"), (&[huge.len() as u64], huge.as_bytes())];
        for (words, body) in cases {
            assert!(matches!(decode(&forged(words, body)), Err(StorageError::Corrupt { .. })), "{words:?}");
        }
        let mut head = encode(&Saved::default()).expect("encoded").to_vec();
        for at in [12, 16] {
            head[at..at + 4].copy_from_slice(&[0xff; 4]);
            assert!(matches!(decode(&Bytes::from(head.clone())), Err(StorageError::Corrupt { .. })));
        }
    }

    #[test]
    fn a_newer_format_is_refused() {
        let newer = Form { format: 2, ..FORM };
        let error = decode(&frame::head(&newer, &[0], &[])).expect_err("refused");
        assert_eq!(error, StorageError::NewerFormat { file: NAME.into(), format: 2, known: 1 });
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn damaged_bytes_are_an_error(cut in any::<prop::sample::Index>(), flips in prop::collection::vec(any::<prop::sample::Index>(), 0..4)) {
            thread_local!(static BYTES: Bytes = encode(&state()).expect("encoded"));
            let whole = BYTES.with(Bytes::clone);
            let mut bytes = whole.to_vec();
            for flip in &flips {
                let bit = flip.index(bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            if flips.is_empty() {
                bytes.truncate(cut.index(bytes.len()));
            }
            prop_assume!(bytes != whole);
            let decoded = decode(&Bytes::from(bytes));
            let damaged = matches!(decoded, Err(StorageError::Corrupt { .. }));
            prop_assert!(damaged, "{decoded:?}");
        }
    }
}
