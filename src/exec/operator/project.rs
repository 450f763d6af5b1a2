use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::physical_expr::PhysicalExpr;

use super::Operator;
use crate::exec::expr::Evaluator;
use crate::exec::rows::batch_of;
use crate::exec::{Delta, ExecError};

/// Computes one output column per expression.
///
/// - Input: one. Output: the columns of the node's schema.
/// - State: none. Cost: one evaluation of each expression per row.
/// - Deletions keep their weight: expressions are pure, so the row that is taken back is the one that was added. Rows that
///   differed may become equal; nothing is added up here.
/// - An expression that fails on a row yields NULL there and is counted as an error.
pub struct Project {
    exprs: Vec<Evaluator>,
    schema: SchemaRef,
}

impl Project {
    pub fn new(exprs: &[Arc<dyn PhysicalExpr>], schema: SchemaRef) -> Self {
        Project { exprs: exprs.iter().map(|expr| Evaluator::new(Arc::clone(expr))).collect(), schema }
    }
}

impl Operator for Project {
    fn step(&mut self, inputs: &[Delta]) -> Result<Delta, ExecError> {
        let [input] = inputs else { unreachable!("a projection has one input") };
        let columns = self.exprs.iter_mut().map(|expr| expr.evaluate(&input.rows)).collect::<Result<_, _>>()?;
        let rows = batch_of(&self.schema, columns, input.num_rows())?;
        Ok(Delta { rows, weights: input.weights.clone() })
    }

    fn errors(&self) -> (u64, Option<String>) {
        let count = self.exprs.iter().map(|expr| expr.errors).sum();
        (count, self.exprs.iter().find_map(|expr| expr.sample.clone()))
    }
}

#[cfg(test)]
mod tests {
    use datafusion::logical_expr::Operator as Sign;
    use datafusion::physical_expr::expressions::{binary, col, lit};

    use super::*;
    use crate::exec::text::{parse, parse_schema, print};

    fn check(exprs: impl Fn(&SchemaRef) -> Vec<Arc<dyn PhysicalExpr>>, output: &str, text: &str) -> (String, u64) {
        let input = parse(text);
        let mut project = Project::new(&exprs(&input.rows.schema()), parse_schema(output));
        let output = project.step(&[input]).unwrap();
        (print(&output), project.errors().0)
    }

    #[test]
    fn one_column_per_expression_and_the_same_weights() {
        let exprs = |schema: &SchemaRef| {
            let sum = binary(col("a", schema).unwrap(), Sign::Plus, lit(1i64), schema).unwrap();
            vec![col("b", schema).unwrap(), sum]
        };
        let (output, errors) = check(
            exprs,
            "b:s c:i",
            "a:i b:s
             +  1 x
             -2 . y
             +  9223372036854775807 z",
        );
        insta::assert_snapshot!(output, @r"
        + x 2
        -2 y .
        + z .
        ");
        assert_eq!(errors, 1);
    }

    #[test]
    fn no_expression_leaves_the_count() {
        let (output, _) = check(|_| Vec::new(), "", "a:i\n+ 1\n+ 2");
        assert_eq!(output, "+2 ");
    }
}
