//! SQL types and the Arrow types that stand for them.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, IntervalUnit, TimeUnit};
use datafusion::common::Result as DataFusionResult;
use datafusion::logical_expr::planner::TypePlanner;
use sqlparser::ast::{self, ExactNumberInfo, TimezoneInfo};

use super::error::{PlanError, Refusal};

/// The zone that every TIMESTAMPTZ carries.
pub const UTC: &str = "UTC";

pub fn timestamptz() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into()))
}

pub fn timestamp() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, None)
}

pub fn time() -> DataType {
    DataType::Time64(TimeUnit::Microsecond)
}

/// The Arrow type of a column or a cast. An error names the type that is refused.
pub fn arrow_type(sql: &ast::DataType) -> Result<DataType, PlanError> {
    use ast::DataType as Sql;
    Ok(match sql {
        Sql::Boolean | Sql::Bool => DataType::Boolean,
        Sql::SmallInt(_) | Sql::Int2(_) => DataType::Int16,
        Sql::Int(_) | Sql::Integer(_) | Sql::Int4(_) => DataType::Int32,
        Sql::BigInt(_) | Sql::Int8(_) => DataType::Int64,
        Sql::Real | Sql::Float4 => DataType::Float32,
        // FLOAT(p) is REAL up to 24 binary digits, DOUBLE PRECISION above, as in Postgres.
        Sql::Float(ExactNumberInfo::Precision(p)) if *p <= 24 => DataType::Float32,
        Sql::Float(_) | Sql::Double(ExactNumberInfo::None) | Sql::DoublePrecision | Sql::Float8 => DataType::Float64,
        Sql::Numeric(info) | Sql::Decimal(info) | Sql::Dec(info) => decimal(info, sql)?,
        Sql::Varchar(length)
        | Sql::CharacterVarying(length)
        | Sql::CharVarying(length)
        | Sql::Char(length)
        | Sql::Character(length) => match length {
            None => DataType::Utf8,
            Some(_) => {
                return Err(unsupported_type(sql, "Lengths are not enforced yet: use VARCHAR or TEXT without one."));
            }
        },
        Sql::Text | Sql::String(None) => DataType::Utf8,
        Sql::Bytea => DataType::Binary,
        Sql::Date => DataType::Date32,
        Sql::Time(None | Some(6), TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => time(),
        Sql::Timestamp(None | Some(6), zone) => match zone {
            TimezoneInfo::None | TimezoneInfo::WithoutTimeZone => timestamp(),
            TimezoneInfo::Tz | TimezoneInfo::WithTimeZone => timestamptz(),
        },
        Sql::Timestamp(Some(_), _) => {
            return Err(unsupported_type(sql, "Timestamps are microseconds: use it without a precision."));
        }
        Sql::Interval { fields: None, precision: None } => DataType::Interval(IntervalUnit::MonthDayNano),
        Sql::Regclass => DataType::Int64,
        Sql::JSON | Sql::JSONB => {
            return Err(unsupported_type(sql, "Use VARCHAR: an object or array arrives as its JSON text."));
        }
        Sql::Array(_) => return Err(unsupported_type(sql, "Use VARCHAR, or one column for each element.")),
        Sql::Custom(name, modifiers) => return custom(name, modifiers, sql),
        _ => return Err(unsupported_type(sql, SUPPORTED)),
    })
}

const SUPPORTED: &str = "Types are BOOLEAN, SMALLINT, INT, BIGINT, REAL, DOUBLE PRECISION, NUMERIC(p,s), VARCHAR, TEXT, BYTEA, \
                         DATE, TIME, TIMESTAMP, TIMESTAMPTZ and INTERVAL.";

fn unsupported_type(sql: &ast::DataType, hint: &str) -> PlanError {
    PlanError::unsupported(format!("type {sql} is not supported"), hint)
}

fn decimal(info: &ExactNumberInfo, sql: &ast::DataType) -> Result<DataType, PlanError> {
    let (precision, scale) = match *info {
        // NUMERIC alone has no limit in Postgres; 38 digits, 10 of them behind the point, is what a Decimal128 can give.
        ExactNumberInfo::None => (38, 10),
        ExactNumberInfo::Precision(p) => (p, 0),
        ExactNumberInfo::PrecisionAndScale(p, s) => (p, s),
    };
    match (u8::try_from(precision), i8::try_from(scale)) {
        (Ok(p @ 1..=38), Ok(s)) if s >= 0 && s as u8 <= p => Ok(DataType::Decimal128(p, s)),
        _ => Err(unsupported_type(sql, "NUMERIC(p,s) takes p from 1 to 38 and s from 0 to p.")),
    }
}

/// Types that the parser knows by name alone: those of Postgres's own catalog, as clients cast to them.
fn custom(name: &ast::ObjectName, modifiers: &[String], sql: &ast::DataType) -> Result<DataType, PlanError> {
    let parts: Vec<String> = name.0.iter().map(|part| part.to_string().trim_matches('"').to_lowercase()).collect();
    let word = match parts.as_slice() {
        [word] => word.as_str(),
        [schema, word] if schema == "pg_catalog" => word.as_str(),
        _ => "",
    };
    Ok(match word {
        "serial" | "serial4" | "bigserial" | "serial8" | "smallserial" | "serial2" => {
            return Err(unsupported_type(sql, "Use INT or BIGINT and give the values: there are no sequences."));
        }
        _ if !modifiers.is_empty() => {
            return Err(PlanError::UndefinedType(
                Refusal::new(format!("type \"{sql}\" does not exist")).hint(SUPPORTED),
            ));
        }
        "bool" => DataType::Boolean,
        "int2" => DataType::Int16,
        "int4" => DataType::Int32,
        "int8" => DataType::Int64,
        "float4" => DataType::Float32,
        "float8" => DataType::Float64,
        "numeric" => DataType::Decimal128(38, 10),
        "text" | "varchar" | "bpchar" | "name" | "char" | "unknown" | "cstring" => DataType::Utf8,
        "bytea" => DataType::Binary,
        "timestamptz" => timestamptz(),
        "timestamp" => timestamp(),
        "date" => DataType::Date32,
        "interval" => DataType::Interval(IntervalUnit::MonthDayNano),
        "oid" | "regclass" | "regtype" | "regproc" | "regprocedure" | "regnamespace" | "regrole" | "xid" | "cid" => {
            DataType::Int64
        }
        _ => {
            return Err(PlanError::UndefinedType(
                Refusal::new(format!("type \"{sql}\" does not exist")).hint(SUPPORTED),
            ));
        }
    })
}

/// The type's name as Postgres prints it in messages.
pub fn sql_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "boolean".into(),
        DataType::Int8 | DataType::Int16 => "smallint".into(),
        DataType::Int32 => "integer".into(),
        DataType::Int64 => "bigint".into(),
        DataType::Float32 => "real".into(),
        DataType::Float64 => "double precision".into(),
        DataType::Decimal128(..) | DataType::Decimal256(..) => "numeric".into(),
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => "text".into(),
        DataType::Binary | DataType::BinaryView | DataType::LargeBinary => "bytea".into(),
        DataType::Date32 => "date".into(),
        DataType::Time64(_) => "time without time zone".into(),
        DataType::Timestamp(_, None) => "timestamp without time zone".into(),
        DataType::Timestamp(_, Some(_)) => "timestamp with time zone".into(),
        DataType::Interval(_) | DataType::Duration(_) => "interval".into(),
        DataType::List(element) | DataType::LargeList(element) | DataType::FixedSizeList(element, _) => {
            format!("{}[]", sql_name(element.data_type()))
        }
        other => other.to_string().to_lowercase(),
    }
}

/// The type in which a column of this type leaves the planner: one of those that SQL can name. `None` if there is none.
pub fn output_type(data_type: &DataType) -> Option<DataType> {
    Some(match data_type {
        DataType::Boolean
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::Float32
        | DataType::Float64
        | DataType::Utf8
        | DataType::Binary
        | DataType::Date32
        | DataType::Time64(TimeUnit::Microsecond)
        | DataType::Decimal128(..)
        | DataType::Interval(IntervalUnit::MonthDayNano) => data_type.clone(),
        DataType::Null | DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::Int8 | DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        // Counts and row numbers; none can pass 2^63.
        DataType::UInt32 | DataType::UInt64 => DataType::Int64,
        DataType::Float16 => DataType::Float32,
        DataType::BinaryView | DataType::LargeBinary | DataType::FixedSizeBinary(_) => DataType::Binary,
        DataType::Date64 => timestamp(),
        DataType::Time32(_) | DataType::Time64(_) => DataType::Time64(TimeUnit::Microsecond),
        DataType::Timestamp(_, None) => timestamp(),
        DataType::Timestamp(_, Some(_)) => timestamptz(),
        DataType::Duration(_) | DataType::Interval(_) => DataType::Interval(IntervalUnit::MonthDayNano),
        DataType::Decimal32(p, s) | DataType::Decimal64(p, s) => DataType::Decimal128(*p, *s),
        DataType::Decimal256(_, s) => DataType::Decimal128(38, *s),
        DataType::Dictionary(_, value) => return output_type(value),
        _ => return None,
    })
}

/// Gives DataFusion our types wherever SQL names one.
#[derive(Debug)]
pub struct SqlTypes;

impl TypePlanner for SqlTypes {
    fn plan_type_field(&self, sql_type: &ast::DataType) -> DataFusionResult<Option<FieldRef>> {
        // A list of a type we know is fine inside a query; only columns cannot have it.
        if matches!(sql_type, ast::DataType::Array(_)) {
            return Ok(None);
        }
        // Postgres cuts `x::varchar(3)` to length in a cast; we refuse rather than not do it.
        let data_type = arrow_type(sql_type)?;
        Ok(Some(Arc::new(Field::new("", data_type, true))))
    }
}
