//! Arrow types and the Postgres types that clients see.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, IntervalUnit, TimeUnit};

use super::Oid;

/// Key of a field's metadata: the Postgres type's name as in `pg_type.typname`, where the Arrow type alone does not say it
/// ("oid" for an Int64, "varchar" for a Utf8, "_oid" for a list of such Int64, "int2vector").
pub const PG_TYPE: &str = "pg_type";

/// One row of `pg_type`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PgType {
    pub oid: Oid,
    /// `typname`, such as "int8".
    pub name: &'static str,
    /// Bytes of a value; -1 where that varies, -2 for a text that ends in a zero byte.
    pub len: i16,
    pub by_value: bool,
    /// `b` base type, `p` pseudo-type.
    pub kind: &'static str,
    pub category: &'static str,
    pub preferred: bool,
    /// The type of the elements, 0 for none.
    pub elem: Oid,
    /// The type of arrays of this one, 0 for none.
    pub array: Oid,
    pub input: &'static str,
    pub output: &'static str,
    pub receive: &'static str,
    pub send: &'static str,
    pub align: &'static str,
    pub storage: &'static str,
    pub collation: Oid,
    /// The name in SQL, such as "bigint" or "timestamp with time zone".
    pub sql_name: &'static str,
}

static TYPES: LazyLock<Vec<PgType>> = LazyLock::new(|| {
    let lines = include_str!("system/types.txt").lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| parse(line).expect("types.txt has 17 columns in each line")).collect()
});

static BY_OID: LazyLock<HashMap<Oid, &'static PgType>> =
    LazyLock::new(|| TYPES.iter().map(|pg_type| (pg_type.oid, pg_type)).collect());

static BY_NAME: LazyLock<HashMap<&'static str, &'static PgType>> =
    LazyLock::new(|| TYPES.iter().map(|pg_type| (pg_type.name, pg_type)).collect());

fn parse(line: &'static str) -> Option<PgType> {
    let mut columns = line.splitn(17, ' ');
    let mut next = || columns.next();
    Some(PgType {
        oid: next()?.parse().ok()?,
        name: next()?,
        len: next()?.parse().ok()?,
        by_value: next()? == "t",
        kind: next()?,
        category: next()?,
        preferred: next()? == "t",
        elem: next()?.parse().ok()?,
        array: next()?.parse().ok()?,
        input: next()?,
        output: next()?,
        receive: next()?,
        send: next()?,
        align: next()?,
        storage: next()?,
        collation: next()?.parse().ok()?,
        sql_name: next()?,
    })
}

impl PgType {
    pub fn all() -> &'static [PgType] {
        &TYPES
    }

    pub fn by_oid(oid: Oid) -> Option<&'static PgType> {
        BY_OID.get(&oid).copied()
    }

    /// By `typname`.
    pub fn by_name(name: &str) -> Option<&'static PgType> {
        BY_NAME.get(name).copied()
    }

    /// By any name that SQL text may use: "int8", "bigint", "timestamptz", "text[]"; case and precision are ignored.
    pub fn by_sql_name(text: &str) -> Option<&'static PgType> {
        let text = text.trim().to_ascii_lowercase();
        let text = text.strip_prefix("pg_catalog.").unwrap_or(&text);
        if let Some(elem) = text.strip_suffix("[]") {
            return PgType::by_sql_name(elem).and_then(|elem| PgType::by_oid(elem.array));
        }
        let bare = match (text.find('('), text.find(')')) {
            (Some(open), Some(close)) if open < close => format!("{}{}", &text[..open], &text[close + 1..]),
            _ => text.to_string(),
        };
        let bare = match bare.trim() {
            "int" => "int4",
            "decimal" => "numeric",
            "char" => "bpchar",
            "\"char\"" => "char",
            "float" => "float8",
            "string" => "text",
            "timestamp" => "timestamp",
            other => other,
        };
        PgType::by_name(bare).or_else(|| TYPES.iter().find(|pg_type| pg_type.sql_name == bare))
    }

    /// The Arrow type that holds values of this one.
    pub fn arrow(&self) -> DataType {
        match self.name {
            "bool" => DataType::Boolean,
            "int2" => DataType::Int16,
            "int4" => DataType::Int32,
            "int8" | "oid" | "xid" | "cid" | "regproc" | "regprocedure" | "regclass" | "regtype" | "regrole"
            | "regnamespace" => DataType::Int64,
            "float4" => DataType::Float32,
            "float8" => DataType::Float64,
            "numeric" => DataType::Decimal128(38, 10),
            "bytea" => DataType::Binary,
            "date" => DataType::Date32,
            "time" => DataType::Time64(TimeUnit::Microsecond),
            "timestamp" => DataType::Timestamp(TimeUnit::Microsecond, None),
            "timestamptz" => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            "interval" => DataType::Interval(IntervalUnit::MonthDayNano),
            _ => match PgType::by_oid(self.elem) {
                Some(elem) if self.category == "A" => {
                    DataType::List(Arc::new(Field::new_list_field(elem.arrow(), true)))
                }
                _ => DataType::Utf8,
            },
        }
    }

    /// A nullable column of this type, with metadata if the Arrow type alone would be read as another type.
    pub fn field(&self, name: impl Into<String>) -> Field {
        let field = Field::new(name, self.arrow(), true);
        if pg_type_of(&field).oid == self.oid {
            return field;
        }
        field.with_metadata(HashMap::from([(PG_TYPE.to_string(), self.name.to_string())]))
    }
}

/// `field` with the metadata that makes clients see `pg_type`.
pub fn with_pg_type(field: Field, pg_type: &PgType) -> Field {
    let mut metadata = field.metadata().clone();
    metadata.insert(PG_TYPE.to_string(), pg_type.name.to_string());
    field.with_metadata(metadata)
}

/// The Postgres type of a column: what its metadata names, else by its Arrow type. What Postgres has no type for is text;
/// unsigned integers are the signed type that holds them, UInt64 int8.
pub fn pg_type_of(field: &Field) -> &'static PgType {
    let named = field.metadata().get(PG_TYPE).and_then(|name| PgType::by_name(name));
    named.unwrap_or_else(|| {
        let name = base_name(field.data_type());
        PgType::by_name(&name).unwrap_or_else(|| PgType::by_name("text").expect("types.txt has text"))
    })
}

fn base_name(data_type: &DataType) -> String {
    let name = match data_type {
        DataType::Boolean => "bool",
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => "int2",
        DataType::Int32 | DataType::UInt16 => "int4",
        DataType::Int64 | DataType::UInt32 | DataType::UInt64 => "int8",
        DataType::Float16 | DataType::Float32 => "float4",
        DataType::Float64 => "float8",
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..) => {
            "numeric"
        }
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => "bytea",
        DataType::Date32 | DataType::Date64 => "date",
        DataType::Time32(_) | DataType::Time64(_) => "time",
        DataType::Timestamp(_, None) => "timestamp",
        DataType::Timestamp(_, Some(_)) => "timestamptz",
        DataType::Interval(_) | DataType::Duration(_) => "interval",
        DataType::Struct(_) => "record",
        DataType::Dictionary(_, value) => return base_name(value),
        DataType::List(elem) | DataType::LargeList(elem) | DataType::FixedSizeList(elem, _) => {
            return format!("_{}", pg_type_of(elem).name);
        }
        _ => "text",
    };
    name.to_string()
}

/// `atttypmod`: precision and scale of a numeric as Postgres packs them, -1 for every other type.
pub fn typmod_of(field: &Field) -> i32 {
    match field.data_type() {
        DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale) => {
            ((i32::from(*precision) << 16) | (i32::from(*scale) & 0x7ff)) + 4
        }
        _ => -1,
    }
}

/// What the SQL function of that name gives: the type as SQL writes it, `???` for an OID that is no type, `-` for 0.
pub fn format_type(oid: Oid, typmod: Option<i32>) -> String {
    let Some(pg_type) = PgType::by_oid(oid) else {
        return if oid == 0 { "-".to_string() } else { "???".to_string() };
    };
    let Some(typmod) = typmod.filter(|typmod| *typmod >= 0) else { return pg_type.sql_name.to_string() };
    let (name, array) = match pg_type.sql_name.strip_suffix("[]") {
        Some(elem) => (elem, "[]"),
        None => (pg_type.sql_name, ""),
    };
    match name {
        "numeric" => {
            let packed = typmod - 4;
            format!("numeric({},{}){array}", (packed >> 16) & 0xffff, ((packed & 0x7ff) ^ 1024) - 1024)
        }
        "character varying" | "character" => format!("{name}({}){array}", typmod - 4),
        _ => match name.strip_prefix("time") {
            Some(rest) => match rest.split_once(' ') {
                Some((stamp, zone)) => format!("time{stamp}({typmod}) {zone}{array}"),
                None => format!("{name}({typmod}){array}"),
            },
            None => format!("{name}{array}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(data_type: DataType, expected: &str) {
        let field = Field::new("c", data_type, true);
        assert_eq!(format_type(pg_type_of(&field).oid, Some(typmod_of(&field))), expected);
    }

    #[test]
    fn arrow_types_have_names() {
        check(DataType::Int64, "bigint");
        check(DataType::UInt64, "bigint");
        check(DataType::Utf8, "text");
        check(DataType::Decimal128(12, 2), "numeric(12,2)");
        check(DataType::Decimal128(12, -2), "numeric(12,-2)");
        check(DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), "timestamp with time zone");
        check(DataType::List(Arc::new(Field::new_list_field(DataType::Int32, true))), "integer[]");
        check(DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)), "text");
    }

    #[test]
    fn a_type_survives_its_column() {
        for pg_type in PgType::all() {
            assert_eq!(pg_type_of(&pg_type.field("c")), pg_type);
        }
    }

    #[test]
    fn names_of_sql_are_found() {
        for (text, name) in [
            ("BIGINT", "int8"),
            ("int", "int4"),
            ("numeric(10,2)", "numeric"),
            ("timestamp(3) with time zone", "timestamptz"),
            ("pg_catalog.text[]", "_text"),
            ("\"char\"", "char"),
        ] {
            assert_eq!(PgType::by_sql_name(text).map(|pg_type| pg_type.name), Some(name), "{text}");
        }
        assert_eq!(format_type(1184, Some(3)), "timestamp(3) with time zone");
        assert_eq!(format_type(1043, Some(24)), "character varying(20)");
    }
}
