use arrow::array::Array;
use arrow::compute::concat;
use arrow::datatypes::SchemaRef;

use super::Operator;
use crate::exec::rows::batch_of;
use crate::exec::{Delta, ExecError};

/// All rows of all inputs.
///
/// - Inputs: one or more, with the same column types. Output: the node's columns, matched by position.
/// - State: none. Cost: a copy of each row, none where only one input has rows.
/// - Deletions pass; a row that two inputs have counts twice, so each may take back its own.
pub struct UnionAll {
    schema: SchemaRef,
}

impl UnionAll {
    pub fn new(schema: SchemaRef) -> Self {
        UnionAll { schema }
    }
}

impl Operator for UnionAll {
    fn step(&mut self, inputs: &[Delta]) -> Result<Delta, ExecError> {
        let full: Vec<&Delta> = inputs.iter().filter(|input| !input.is_empty()).collect();
        let num_rows = full.iter().map(|input| input.num_rows()).sum();
        let column = |i: usize| match full.as_slice() {
            [] => Ok(arrow::array::new_empty_array(self.schema.field(i).data_type())),
            [input] => Ok(input.column(i).clone()),
            _ => concat(&full.iter().map(|input| input.column(i) as &dyn Array).collect::<Vec<_>>()),
        };
        let columns = (0..self.schema.fields().len()).map(column).collect::<Result<_, _>>()?;
        let rows = batch_of(&self.schema, columns, num_rows)?;
        if full.iter().all(|input| input.weights.is_none()) {
            return Ok(Delta::inserts(rows));
        }
        let weights = full.iter().flat_map(|input| (0..input.num_rows()).map(|row| input.weight(row))).collect();
        Ok(Delta::weighted(rows, weights))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::text::{parse, parse_schema, print};

    fn check(inputs: &[&str]) -> (String, bool) {
        let inputs: Vec<Delta> = inputs.iter().map(|rows| parse(&format!("i s\n{rows}"))).collect();
        let output = UnionAll::new(parse_schema("a:i b:s")).step(&inputs).unwrap();
        (print(&output), output.weights.is_none())
    }

    #[test]
    fn weights_of_equal_rows_add_up() {
        let (output, append_only) = check(&["+ 1 a\n- 2 b", "", "+ 1 a\n+ 2 b\n+ 3 ."]);
        insta::assert_snapshot!(output, @r"
        +2 1 a
        + 3 .
        ");
        assert!(!append_only);
    }

    #[test]
    fn without_weights_there_are_none() {
        assert_eq!(check(&["+ 1 a", "+ 2 b"]), ("+ 1 a\n+ 2 b".into(), true));
        assert_eq!(check(&["", "- 2 b"]), ("- 2 b".into(), false));
        assert_eq!(check(&["", ""]), (String::new(), true));
    }
}
