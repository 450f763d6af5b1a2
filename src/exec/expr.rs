//! Expressions over batches, where a row that fails becomes NULL and is counted.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, new_null_array};
use arrow::compute::{and, concat, is_not_null};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::BinaryExpr;

use super::ExecError;

/// One expression of a view. Vectorised; when DataFusion refuses a batch (overflow, division by zero, a cast), the batch is
/// halved until the failing rows stand alone. Those become NULL and are counted, the others keep their values.
#[derive(Debug, Clone)]
pub struct Evaluator {
    expr: Arc<dyn PhysicalExpr>,
    /// Rows that failed so far.
    pub errors: u64,
    /// What the first of them said.
    pub sample: Option<String>,
}

impl Evaluator {
    pub fn new(expr: Arc<dyn PhysicalExpr>) -> Self {
        Evaluator { expr: checked(expr), errors: 0, sample: None }
    }

    pub fn expr(&self) -> &Arc<dyn PhysicalExpr> {
        &self.expr
    }

    /// One value per row. An error here means that the expression does not fit the batch's schema.
    pub fn evaluate(&mut self, batch: &RecordBatch) -> Result<ArrayRef, ExecError> {
        match self.vectorised(batch) {
            Ok(values) => Ok(values),
            Err(_) => {
                let mut parts = Vec::new();
                self.halve(batch, &mut parts)?;
                let parts: Vec<&dyn Array> = parts.iter().map(|p| p.as_ref()).collect();
                Ok(concat(&parts)?)
            }
        }
    }

    /// [`Evaluator::evaluate`] of a BOOLEAN expression, NULL being false: the result has no NULLs.
    pub fn evaluate_predicate(&mut self, batch: &RecordBatch) -> Result<BooleanArray, ExecError> {
        let values = self.evaluate(batch)?;
        let Some(bools) = values.as_boolean_opt() else {
            return Err(ExecError::Unsupported {
                what: format!("a predicate of type {}", values.data_type()),
                hint: "Use a BOOLEAN expression.".into(),
            });
        };
        if bools.null_count() == 0 {
            return Ok(bools.clone());
        }
        let (set, _) = bools.clone().into_parts();
        Ok(and(&BooleanArray::new(set, None), &is_not_null(bools)?)?)
    }

    fn vectorised(&self, batch: &RecordBatch) -> Result<ArrayRef, datafusion::error::DataFusionError> {
        self.expr.evaluate(batch)?.into_array(batch.num_rows())
    }

    fn halve(&mut self, batch: &RecordBatch, out: &mut Vec<ArrayRef>) -> Result<(), ExecError> {
        match self.vectorised(batch) {
            Ok(values) => out.push(values),
            Err(error) if batch.num_rows() <= 1 => {
                self.errors += batch.num_rows() as u64;
                self.sample.get_or_insert_with(|| first_line(&error.strip_backtrace()));
                out.push(new_null_array(&self.expr.data_type(&batch.schema())?, batch.num_rows()));
            }
            Err(_) => {
                let half = batch.num_rows() / 2;
                self.halve(&batch.slice(0, half), out)?;
                self.halve(&batch.slice(half, batch.num_rows() - half), out)?;
            }
        }
        Ok(())
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_string()
}

/// The same expression with `+`, `-` and `*` that fail on overflow; DataFusion's own wrap around.
pub fn checked(expr: Arc<dyn PhysicalExpr>) -> Arc<dyn PhysicalExpr> {
    let original = Arc::clone(&expr);
    expr.transform_up(|node| {
        let Some(binary) = node.downcast_ref::<BinaryExpr>() else {
            return Ok(Transformed::no(node));
        };
        if !matches!(binary.op(), Operator::Plus | Operator::Minus | Operator::Multiply) {
            return Ok(Transformed::no(node));
        }
        let strict = binary.clone().with_fail_on_overflow(true);
        Ok(Transformed::yes(Arc::new(strict) as Arc<dyn PhysicalExpr>))
    })
    .map_or(original, |t| t.data)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int32Array, RecordBatch};
    use arrow::datatypes::{DataType, Field, Schema};
    use arrow::util::pretty::pretty_format_columns;
    use datafusion::logical_expr::Operator;
    use datafusion::physical_expr::PhysicalExpr;
    use datafusion::physical_expr::expressions::{binary, col, lit};

    use super::Evaluator;

    fn check(op: Operator, right: i32) -> String {
        let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int32, true)]));
        let values = Int32Array::from(vec![Some(7), None, Some(i32::MAX), Some(0), Some(-7)]);
        let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(values)]).unwrap();
        let expr: Arc<dyn PhysicalExpr> = match op {
            Operator::Divide => binary(lit(right), op, col("a", &schema).unwrap(), &schema).unwrap(),
            _ => binary(col("a", &schema).unwrap(), op, lit(right), &schema).unwrap(),
        };
        let mut evaluator = Evaluator::new(expr);
        let values = evaluator.evaluate(&batch).unwrap();
        let shown = pretty_format_columns("v", &[values]).unwrap();
        format!("{shown}\n{} {:?}", evaluator.errors, evaluator.sample)
    }

    #[test]
    fn a_failing_row_is_null_and_counted() {
        insta::assert_snapshot!(check(Operator::Plus, 1), @r#"
        +----+
        | v  |
        +----+
        | 8  |
        |    |
        |    |
        | 1  |
        | -6 |
        +----+
        1 Some("Arrow error: Arithmetic overflow: Overflow happened on: 2147483647 + 1")
        "#);
        insta::assert_snapshot!(check(Operator::Divide, 14), @r#"
        +----+
        | v  |
        +----+
        | 2  |
        |    |
        | 0  |
        |    |
        | -2 |
        +----+
        1 Some("Arrow error: Divide by zero error")
        "#);
    }

    #[test]
    fn null_is_not_true() {
        let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int32, true)]));
        let batch =
            RecordBatch::try_new(schema.clone(), vec![Arc::new(Int32Array::from(vec![Some(1), None, Some(3)]))]);
        let expr = binary(col("a", &schema).unwrap(), Operator::Gt, lit(1), &schema).unwrap();
        let kept = Evaluator::new(expr).evaluate_predicate(&batch.unwrap()).unwrap();
        assert_eq!(kept, vec![false, false, true].into());
    }
}
