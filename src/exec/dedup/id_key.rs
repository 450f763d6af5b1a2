use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
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
        let columns: Vec<ArrayRef> = columns.iter().map(|&column| rows.column(column).clone()).collect();
        let is_text = |column: &&ArrayRef| matches!(column.data_type(), DataType::Utf8 | DataType::Binary);
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
    fn an_id_reads_as_it_was_written() {
        let rows = parse("s i\n+ a 1").rows;
        assert_eq!(IdKeys::of(&rows, &[0]).unwrap().describe(0).unwrap(), "a");
        assert_eq!(IdKeys::of(&rows, &[0, 1]).unwrap().describe(0).unwrap(), "(a, 1)");
    }
}
