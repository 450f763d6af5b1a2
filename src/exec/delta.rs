//! The unit of change: rows with weights (a Z-set).

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;

/// Rows and how often each was added (+) or taken back (-) in a tick. `weights` of `None` means +1 for every row, the form
/// in which append-only streams travel.
#[derive(Debug, Clone)]
pub struct Delta {
    pub rows: RecordBatch,
    pub weights: Option<Vec<i64>>,
}

impl Delta {
    pub fn inserts(rows: RecordBatch) -> Self {
        Delta { rows, weights: None }
    }

    pub fn empty(schema: SchemaRef) -> Self {
        Delta::inserts(RecordBatch::new_empty(schema))
    }

    pub fn weighted(rows: RecordBatch, weights: Vec<i64>) -> Self {
        assert_eq!(rows.num_rows(), weights.len(), "one weight per row");
        Delta { rows, weights: Some(weights) }
    }

    pub fn num_rows(&self) -> usize {
        self.rows.num_rows()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.num_rows() == 0
    }

    pub fn weight(&self, row: usize) -> i64 {
        self.weights.as_ref().map_or(1, |w| w[row])
    }

    pub fn column(&self, i: usize) -> &ArrayRef {
        self.rows.column(i)
    }
}
