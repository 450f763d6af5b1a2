//! Which column of an object carries its event time.

use arrow::datatypes::DataType;

use super::stream_plan::window_type;
use super::types::timestamptz;
use crate::catalog::{Catalog, Object, ObjectKind};

/// The column of the object that a watermark runs along: of a source or table the one that WATERMARK names, of a
/// materialized view the first that carries event time through from what it reads. `None` without a watermark.
pub fn event_time_column(object: &Object) -> Option<usize> {
    match &object.kind {
        ObjectKind::Source(source) => source.watermark.as_ref().map(|watermark| watermark.column),
        ObjectKind::Table(table) => table.watermark.as_ref().map(|watermark| watermark.column),
        ObjectKind::MaterializedView(view) => view.event_time.first().copied(),
        ObjectKind::View { .. } => None,
    }
}

/// All columns of the object that carry event time, those by which windows over it can close.
pub fn event_time_columns(object: &Object) -> Vec<usize> {
    match &object.kind {
        ObjectKind::MaterializedView(view) => view.event_time.clone(),
        _ => event_time_column(object).into_iter().collect(),
    }
}

/// The type of the object's event time: TIMESTAMPTZ or TIMESTAMP (DATE counts as that). A view that puts out no event time
/// has that of what it reads; without a watermark it is TIMESTAMPTZ.
pub fn event_time_type(object: &Object, catalog: &Catalog) -> DataType {
    if let Some(column) = event_time_column(object) {
        return window_type(object.columns.field(column).data_type());
    }
    let inputs = object.depends_on.iter().filter_map(|oid| catalog.get(*oid));
    inputs.map(|input| event_time_type(&input, catalog)).next().unwrap_or_else(timestamptz)
}
