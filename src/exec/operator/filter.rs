use std::sync::Arc;

use arrow::array::BooleanArray;
use arrow::compute::filter_record_batch;
use datafusion::physical_expr::PhysicalExpr;

use super::Operator;
use crate::exec::expr::Evaluator;
use crate::exec::{Delta, ExecError};

/// Keeps the rows for which a predicate is true.
///
/// - Input: one. Output: its columns.
/// - State: none. Cost: one evaluation per row.
/// - Deletions pass by the same test as additions, so a row is taken back exactly if it was let through.
/// - NULL, and a predicate that fails on a row, count as false; the latter is counted as an error.
pub struct Filter {
    predicate: Evaluator,
}

impl Filter {
    pub fn new(predicate: Arc<dyn PhysicalExpr>) -> Self {
        Filter { predicate: Evaluator::new(predicate) }
    }
}

impl Operator for Filter {
    fn step(&mut self, inputs: &[Delta]) -> Result<Delta, ExecError> {
        let [input] = inputs else { unreachable!("a filter has one input") };
        let kept = self.predicate.evaluate_predicate(&input.rows)?;
        if kept.true_count() == input.num_rows() {
            return Ok(input.clone());
        }
        let rows = filter_record_batch(&input.rows, &kept)?;
        Ok(Delta { rows, weights: input.weights.as_ref().map(|weights| keep(weights, &kept)) })
    }

    fn errors(&self) -> (u64, Option<String>) {
        (self.predicate.errors, self.predicate.sample.clone())
    }
}

fn keep(weights: &[i64], kept: &BooleanArray) -> Vec<i64> {
    kept.values().set_indices().map(|row| weights[row]).collect()
}

#[cfg(test)]
mod tests {
    use datafusion::logical_expr::Operator as Sign;
    use datafusion::physical_expr::expressions::{binary, col, lit};

    use super::*;
    use crate::exec::text::{parse, print};

    /// `10 / a > 1`
    fn check(text: &str) -> (String, u64) {
        let input = parse(text);
        let schema = input.rows.schema();
        let quotient = binary(lit(10i64), Sign::Divide, col("a", &schema).unwrap(), &schema).unwrap();
        let mut filter = Filter::new(binary(quotient, Sign::Gt, lit(1i64), &schema).unwrap());
        let output = filter.step(&[input]).unwrap();
        (print(&output), filter.errors().0)
    }

    #[test]
    fn keeps_what_is_true_and_not_null_whatever_its_weight() {
        let (kept, failed) = check(
            "a:i s
             +  1 x
             -2 2 y
             +  9 z
             -  . n
             +3 5 .
             -  0 zero",
        );
        insta::assert_snapshot!(kept, @r"
        + 1 x
        -2 2 y
        +3 5 .
        ");
        assert_eq!(failed, 1);
    }

    #[test]
    fn append_only_stays_append_only() {
        let input = parse("a:i\n+ 1\n+ 100");
        let schema = input.rows.schema();
        let mut filter = Filter::new(binary(col("a", &schema).unwrap(), Sign::Gt, lit(1i64), &schema).unwrap());
        let output = filter.step(&[input]).unwrap();
        assert!(output.weights.is_none());
        assert_eq!(output.num_rows(), 1);
    }
}
