use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, RecordBatch, StringArray};
use arrow::datatypes::DataType;
use arrow::row::{RowConverter, Rows, SortField};
use arrow::util::display::{ArrayFormatter, FormatOptions};

use crate::exec::ExecError;

/// The ids of a batch's rows as bytes: equal ids have equal bytes, different ids different ones.
pub struct IdKeys {
    columns: Vec<ArrayRef>,
    /// Text and bytes: the length, then the bytes.
    texts: Vec<ArrayRef>,
    /// What has a fixed width, by arrow's row format, behind them.
    fixed: Option<Rows>,
}

impl IdKeys {
    pub fn of(rows: &RecordBatch, columns: &[usize]) -> Result<IdKeys, ExecError> {
        IdKeys::of_columns(columns.iter().map(|&column| rows.column(column).clone()).collect())
    }

    pub fn of_columns(columns: Vec<ArrayRef>) -> Result<IdKeys, ExecError> {
        let is_text = |column: &&ArrayRef| is_text(column.data_type());
        let fixed: Vec<ArrayRef> = columns.iter().filter(|column| !is_text(column)).cloned().collect();
        let texts = columns.iter().filter(is_text).cloned().collect();
        let fixed = match fixed.is_empty() {
            true => None,
            false => {
                let fields = fixed.iter().map(|column| SortField::new(column.data_type().clone())).collect();
                Some(RowConverter::new(fields)?.convert_columns(&fixed)?)
            }
        };
        Ok(IdKeys { columns, texts, fixed })
    }

    pub fn columns(&self) -> &[ArrayRef] {
        &self.columns
    }

    /// Has the row no id?
    pub fn is_null(&self, row: usize) -> bool {
        self.columns.iter().any(|column| column.is_null(row))
    }

    /// Puts the row's id into `key` in place of what is there.
    pub fn write(&self, row: usize, key: &mut Vec<u8>) {
        key.clear();
        for column in &self.texts {
            let text = match column.data_type() {
                DataType::Utf8 => column.as_string::<i32>().value(row).as_bytes(),
                _ => column.as_binary::<i32>().value(row),
            };
            let mut length = text.len();
            while length >= 0x80 {
                key.push(length as u8 | 0x80);
                length >>= 7;
            }
            key.push(length as u8);
            key.extend_from_slice(text);
        }
        if let Some(fixed) = &self.fixed {
            key.extend_from_slice(fixed.row(row).data());
        }
    }

    /// The columns, of these types, of ids that [`IdKeys::write`] has written.
    pub fn read(types: &[DataType], keys: &[&[u8]]) -> Result<Vec<ArrayRef>, ExecError> {
        let num_texts = types.iter().filter(|data_type| is_text(data_type)).count();
        let mut texts: Vec<Vec<&[u8]>> = vec![Vec::with_capacity(keys.len()); num_texts];
        let mut fixed = Vec::with_capacity(keys.len());
        for key in keys {
            let mut rest = *key;
            for texts in &mut texts {
                let (text, behind) =
                    split_text(rest).ok_or_else(|| ExecError::Invariant("an id is shorter than its parts".into()))?;
                texts.push(text);
                rest = behind;
            }
            fixed.push(rest);
        }
        let fields: Vec<SortField> =
            types.iter().filter(|data_type| !is_text(data_type)).cloned().map(SortField::new).collect();
        let mut fixed = match fields.is_empty() {
            true => Vec::new(),
            false => {
                let converter = RowConverter::new(fields)?;
                let parser = converter.parser();
                converter.convert_rows(fixed.into_iter().map(|bytes| parser.parse(bytes)))?
            }
        }
        .into_iter();
        let mut texts = texts.into_iter();
        let column = |data_type: &DataType| -> Result<ArrayRef, ExecError> {
            let lost = || ExecError::Invariant("a part of an id is missing".into());
            Ok(match data_type {
                DataType::Utf8 => {
                    let texts: Vec<Option<&str>> =
                        texts.next().ok_or_else(lost)?.into_iter().map(|text| std::str::from_utf8(text).ok()).collect();
                    Arc::new(StringArray::from(texts))
                }
                DataType::Binary => Arc::new(BinaryArray::from_iter_values(texts.next().ok_or_else(lost)?)),
                _ => fixed.next().ok_or_else(lost)?,
            })
        };
        types.iter().map(column).collect()
    }

    /// The id for people.
    pub fn describe(&self, row: usize) -> Result<String, ExecError> {
        let options = FormatOptions::default();
        let parts: Vec<String> = self
            .columns
            .iter()
            .map(|column| Ok(ArrayFormatter::try_new(column, &options)?.value(row).try_to_string()?))
            .collect::<Result<_, ExecError>>()?;
        Ok(match parts.as_slice() {
            [one] => one.clone(),
            several => format!("({})", several.join(", ")),
        })
    }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::Binary)
}

/// A text with its length before it, and what stands behind.
fn split_text(key: &[u8]) -> Option<(&[u8], &[u8])> {
    let (mut length, mut at) = (0usize, 0);
    loop {
        let byte = *key.get(at)?;
        length |= usize::from(byte & 0x7f) << (7 * at);
        at += 1;
        if byte < 0x80 {
            break;
        }
    }
    key[at..].split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::text::parse;

    /// How many of the rows' ids differ.
    fn check(text: &str) -> usize {
        let rows = parse(text).rows;
        let columns: Vec<usize> = (0..rows.num_columns()).collect();
        let keys = IdKeys::of(&rows, &columns).unwrap();
        let mut distinct = std::collections::BTreeSet::new();
        let mut key = Vec::new();
        for row in 0..rows.num_rows() {
            if !keys.is_null(row) {
                keys.write(row, &mut key);
                distinct.insert(key.clone());
            }
        }
        distinct.len()
    }

    #[test]
    fn ids_of_several_columns_are_told_apart() {
        assert_eq!(check("s s\n+ ab c\n+ a bc\n+ \"\" abc\n+ abc \"\"\n+ ab c"), 4);
        assert_eq!(check("s i\n+ a 1\n+ a 2\n+ b 1\n+ a 1\n+ . 1\n+ a ."), 3);
        let long = "x".repeat(200);
        assert_eq!(check(&format!("s s\n+ {long} y\n+ {long}y \"\"\n+ {long} y")), 2);
    }

    #[test]
    fn an_id_gives_its_columns_back() {
        let long = "x".repeat(200);
        let rows = parse(&format!("s i s t\n+ ab 1 \"\" 5\n+ \"\" -7 {long} 0\n+ ä 0 b 9")).rows;
        for columns in [vec![0, 1, 2, 3], vec![2, 0], vec![3, 1], vec![1, 0]] {
            let keys = IdKeys::of(&rows, &columns).unwrap();
            let (mut key, mut written) = (Vec::new(), Vec::new());
            for row in 0..rows.num_rows() {
                keys.write(row, &mut key);
                written.push(key.clone());
            }
            let types: Vec<DataType> = columns.iter().map(|&column| rows.column(column).data_type().clone()).collect();
            let read = IdKeys::read(&types, &written.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
            assert_eq!(read, keys.columns());
        }
        assert!(IdKeys::read(&[DataType::Utf8], &[b"\x05abc"]).is_err());
    }

    #[test]
    fn an_id_reads_as_it_was_written() {
        let rows = parse("s i\n+ a 1").rows;
        assert_eq!(IdKeys::of(&rows, &[0]).unwrap().describe(0).unwrap(), "a");
        assert_eq!(IdKeys::of(&rows, &[0, 1]).unwrap().describe(0).unwrap(), "(a, 1)");
    }
}
