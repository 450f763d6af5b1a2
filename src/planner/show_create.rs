//! Objects as the statements that make them: what SHOW CREATE prints, and what start-up plans again.

use std::collections::BTreeMap;
use std::fmt::Write;

use arrow::datatypes::{DataType, IntervalUnit};

use super::stream_plan::Micros;
use crate::catalog::{Object, PUBLIC};
use crate::sql::{
    ColumnDef, CreateMaterializedView, CreateSource, CreateTable, CreateView, DeduplicateDef, EmitClause, Include,
    Name, OnConflict, WatermarkDef, quote,
};

pub(super) fn source(object: &Object, create: &CreateSource, late_into: Option<&Object>) -> String {
    let mut lines: Vec<String> = create.columns.iter().map(column).collect();
    lines.extend(create.watermark.as_ref().map(watermark));
    lines.extend(create.deduplicate.as_ref().map(deduplicate));
    let mut sql = format!("CREATE SOURCE {} (\n  {}\n)", name(object), lines.join(",\n  "));
    for (include, name) in &create.includes {
        let what = match include {
            Include::Partition => "partition",
            Include::Offset => "offset",
            Include::Timestamp => "timestamp",
            Include::Key => "key",
        };
        let _ = write!(sql, "\nINCLUDE {what} AS {}", quote(name));
    }
    with(&mut sql, &create.options);
    let _ = write!(sql, "\nFORMAT {} ENCODE {}", create.format, create.encode);
    if !create.encode_options.is_empty() {
        let _ = write!(sql, " ({})", options(&create.encode_options).join(", "));
    }
    if let Some(table) = late_into {
        let _ = write!(sql, "\nLATE ROWS INTO {}", name(table));
    }
    sql
}

pub(super) fn table(object: &Object, create: &CreateTable) -> String {
    let mut lines: Vec<String> = match create.query {
        // The columns that the query had; its rows are in the table's own log.
        Some(_) => object
            .columns
            .fields()
            .iter()
            .map(|field| format!("{} {}", quote(field.name()), sql_type(field.data_type())))
            .collect(),
        None => create.columns.iter().map(column).collect(),
    };
    if !create.primary_key.is_empty() {
        let key: Vec<_> = create.primary_key.iter().map(|name| quote(name)).collect();
        lines.push(format!("PRIMARY KEY ({})", key.join(", ")));
    }
    lines.extend(create.watermark.as_ref().map(watermark));
    let mut sql = format!("CREATE TABLE {} (\n  {}\n)", name(object), lines.join(",\n  "));
    if create.append_only {
        sql.push_str(" APPEND ONLY");
    }
    match create.on_conflict {
        OnConflict::Error => {}
        OnConflict::DoNothing => sql.push_str(" ON CONFLICT DO NOTHING"),
        OnConflict::Overwrite => sql.push_str(" ON CONFLICT OVERWRITE"),
    }
    sql
}

pub(super) fn view(object: &Object, create: &CreateView, query: &str) -> String {
    format!("CREATE VIEW {}{} AS\n{query}", name(object), column_list(&create.columns))
}

pub(super) fn materialized_view(object: &Object, create: &CreateMaterializedView, query: &str) -> String {
    let mut sql = format!("CREATE MATERIALIZED VIEW {}{}", name(object), column_list(&create.columns));
    with(&mut sql, &create.options);
    let _ = write!(sql, " AS\n{query}");
    match &create.emit {
        EmitClause::OnUpdate => {}
        EmitClause::OnWindowClose => sql.push_str("\nEMIT ON WINDOW CLOSE"),
        EmitClause::Every { text, .. } => {
            let _ = write!(sql, "\nEMIT EVERY INTERVAL '{}'", text.replace('\'', "''"));
        }
    }
    sql
}

/// The name as any session finds it.
fn name(object: &Object) -> Name {
    let mut parts = vec![object.name.clone()];
    if object.schema != PUBLIC {
        parts.insert(0, object.schema.clone());
    }
    Name(parts)
}

fn column(column: &ColumnDef) -> String {
    let mut text = format!("{} {}", quote(&column.name), column.data_type);
    if column.not_null {
        text.push_str(" NOT NULL");
    }
    if let Some(default) = &column.default {
        let _ = write!(text, " DEFAULT {default}");
    }
    text
}

fn watermark(def: &WatermarkDef) -> String {
    let column = quote(&def.column);
    match def.delay_us {
        0 => format!("WATERMARK FOR {column} AS {column}"),
        delay => format!("WATERMARK FOR {column} AS {column} - INTERVAL '{}'", Micros(delay)),
    }
}

fn deduplicate(def: &DeduplicateDef) -> String {
    let columns: Vec<_> = def.columns.iter().map(|name| quote(name)).collect();
    format!("DEDUPLICATE BY ({}) WITHIN INTERVAL '{}'", columns.join(", "), Micros(def.interval_us))
}

fn column_list(columns: &[String]) -> String {
    if columns.is_empty() {
        return String::new();
    }
    let columns: Vec<_> = columns.iter().map(|name| quote(name)).collect();
    format!(" ({})", columns.join(", "))
}

fn with(sql: &mut String, given: &BTreeMap<String, String>) {
    if !given.is_empty() {
        let _ = write!(sql, "\nWITH (\n  {}\n)", options(given).join(",\n  "));
    }
}

/// `key = 'value'`; dotted keys as they are written, each part quoted if it must be.
fn options(given: &BTreeMap<String, String>) -> Vec<String> {
    let key = |key: &str| key.split('.').map(|part| quote(part)).collect::<Vec<_>>().join(".");
    given.iter().map(|(k, value)| format!("{} = '{}'", key(k), value.replace('\'', "''"))).collect()
}

/// A column type that the planner gave, as SQL.
fn sql_type(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "BOOLEAN".into(),
        DataType::Int16 => "SMALLINT".into(),
        DataType::Int32 => "INT".into(),
        DataType::Int64 => "BIGINT".into(),
        DataType::Float32 => "REAL".into(),
        DataType::Float64 => "DOUBLE PRECISION".into(),
        DataType::Decimal128(p, s) => format!("NUMERIC({p},{s})"),
        DataType::Binary => "BYTEA".into(),
        DataType::Date32 => "DATE".into(),
        DataType::Time64(_) => "TIME".into(),
        DataType::Timestamp(_, None) => "TIMESTAMP".into(),
        DataType::Timestamp(_, Some(_)) => "TIMESTAMPTZ".into(),
        DataType::Interval(IntervalUnit::MonthDayNano) => "INTERVAL".into(),
        _ => "VARCHAR".into(),
    }
}
