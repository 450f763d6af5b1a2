//! The one place where SQLSTATEs are assigned: every error of every room, in Postgres' words.

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;

use super::error::PgError;
use super::pg_type;
use crate::catalog::CatalogError;
use crate::engine::{ConnectorError, EngineError, tick_number};
use crate::exec::ExecError;
use crate::planner::PlanError;
use crate::sql::SqlError;

pub const SUCCESSFUL_COMPLETION: &str = "00000";
pub const PROTOCOL_VIOLATION: &str = "08P01";
pub const FEATURE_NOT_SUPPORTED: &str = "0A000";
pub const CARDINALITY_VIOLATION: &str = "21000";
pub const NUMERIC_VALUE_OUT_OF_RANGE: &str = "22003";
pub const INVALID_DATETIME_FORMAT: &str = "22007";
pub const DATETIME_FIELD_OVERFLOW: &str = "22008";
pub const DIVISION_BY_ZERO: &str = "22012";
pub const CHARACTER_NOT_IN_REPERTOIRE: &str = "22021";
pub const INVALID_PARAMETER_VALUE: &str = "22023";
pub const INVALID_TEXT_REPRESENTATION: &str = "22P02";
pub const INVALID_BINARY_REPRESENTATION: &str = "22P03";
pub const BAD_COPY_FILE_FORMAT: &str = "22P04";
pub const NOT_NULL_VIOLATION: &str = "23502";
pub const UNIQUE_VIOLATION: &str = "23505";
pub const ACTIVE_SQL_TRANSACTION: &str = "25001";
pub const READ_ONLY_SQL_TRANSACTION: &str = "25006";
pub const NO_ACTIVE_SQL_TRANSACTION: &str = "25P01";
pub const IN_FAILED_SQL_TRANSACTION: &str = "25P02";
pub const IDLE_IN_TRANSACTION_SESSION_TIMEOUT: &str = "25P03";
pub const INVALID_SQL_STATEMENT_NAME: &str = "26000";
pub const INVALID_AUTHORIZATION: &str = "28000";
pub const DEPENDENT_OBJECTS_STILL_EXIST: &str = "2BP01";
pub const INVALID_CURSOR_NAME: &str = "34000";
pub const INVALID_CATALOG_NAME: &str = "3D000";
pub const INVALID_SCHEMA_NAME: &str = "3F000";
pub const INSUFFICIENT_PRIVILEGE: &str = "42501";
pub const SYNTAX_ERROR: &str = "42601";
pub const DUPLICATE_COLUMN: &str = "42701";
pub const AMBIGUOUS_COLUMN: &str = "42702";
pub const UNDEFINED_COLUMN: &str = "42703";
pub const UNDEFINED_OBJECT: &str = "42704";
pub const GROUPING_ERROR: &str = "42803";
pub const DATATYPE_MISMATCH: &str = "42804";
pub const WRONG_OBJECT_TYPE: &str = "42809";
pub const UNDEFINED_FUNCTION: &str = "42883";
pub const RESERVED_NAME: &str = "42939";
pub const UNDEFINED_TABLE: &str = "42P01";
pub const UNDEFINED_PARAMETER: &str = "42P02";
pub const DUPLICATE_CURSOR: &str = "42P03";
pub const DUPLICATE_DATABASE: &str = "42P04";
pub const DUPLICATE_PREPARED_STATEMENT: &str = "42P05";
pub const DUPLICATE_SCHEMA: &str = "42P06";
pub const DUPLICATE_TABLE: &str = "42P07";
pub const INVALID_TABLE_DEFINITION: &str = "42P16";
pub const OUT_OF_MEMORY: &str = "53200";
pub const TOO_MANY_CONNECTIONS: &str = "53300";
pub const SERIALIZATION_FAILURE: &str = "40001";
pub const PROGRAM_LIMIT_EXCEEDED: &str = "54000";
pub const CONFIGURATION_LIMIT_EXCEEDED: &str = "53400";
pub const STATEMENT_TOO_COMPLEX: &str = "54001";
pub const TOO_MANY_COLUMNS: &str = "54011";
pub const OBJECT_NOT_IN_PREREQUISITE_STATE: &str = "55000";
pub const OBJECT_IN_USE: &str = "55006";
pub const CANT_CHANGE_RUNTIME_PARAM: &str = "55P02";
pub const QUERY_CANCELED: &str = "57014";
pub const ADMIN_SHUTDOWN: &str = "57P01";
pub const IDLE_SESSION_TIMEOUT: &str = "57P05";
pub const SYSTEM_ERROR: &str = "58000";
pub const IO_ERROR: &str = "58030";
pub const STATEMENT_COMPLETION_UNKNOWN: &str = "40003";
pub const INTERNAL_ERROR: &str = "XX000";

impl From<SqlError> for PgError {
    fn from(error: SqlError) -> PgError {
        let code = match &error {
            SqlError::Syntax { .. } => SYNTAX_ERROR,
            SqlError::Unsupported { .. } => FEATURE_NOT_SUPPORTED,
            SqlError::Value { .. } => INVALID_PARAMETER_VALUE,
            SqlError::DuplicateColumn { .. } => DUPLICATE_COLUMN,
            SqlError::TooDeep { .. } | SqlError::TooComplex { .. } => STATEMENT_TOO_COMPLEX,
            SqlError::TooManyColumns { .. } => TOO_MANY_COLUMNS,
        };
        let (position, hint) = (error.position(), error.hint().map(Box::from));
        PgError { position, hint, ..PgError::new(code, error.to_string()) }
    }
}

impl From<CatalogError> for PgError {
    fn from(error: CatalogError) -> PgError {
        let code = match &error {
            CatalogError::NoRelation { .. } => UNDEFINED_TABLE,
            CatalogError::NoSchema(_) | CatalogError::NoTargetSchema => INVALID_SCHEMA_NAME,
            CatalogError::NoDatabase(_) => INVALID_CATALOG_NAME,
            CatalogError::RelationExists(_) => DUPLICATE_TABLE,
            CatalogError::SchemaExists(_) => DUPLICATE_SCHEMA,
            CatalogError::DatabaseExists(_) => DUPLICATE_DATABASE,
            CatalogError::CrossDatabase(_) => FEATURE_NOT_SUPPORTED,
            CatalogError::TooManyParts(_) => SYNTAX_ERROR,
            CatalogError::ReservedSchema(_) => RESERVED_NAME,
            CatalogError::System(_) => INSUFFICIENT_PRIVILEGE,
            CatalogError::CurrentDatabase => OBJECT_IN_USE,
            CatalogError::WrongKind { .. } => WRONG_OBJECT_TYPE,
            CatalogError::DependedOn { .. } => DEPENDENT_OBJECTS_STILL_EXIST,
            CatalogError::ViewColumns(_) => INVALID_TABLE_DEFINITION,
            CatalogError::NoSetting(_) | CatalogError::NoType(_) | CatalogError::NoRole(_) => UNDEFINED_OBJECT,
            CatalogError::NoFunction(_) => UNDEFINED_FUNCTION,
            CatalogError::BadArgument(_) => INVALID_PARAMETER_VALUE,
        };
        PgError {
            detail: error.detail().map(Into::into),
            hint: error.hint().map(Into::into),
            ..PgError::new(code, error.to_string())
        }
    }
}

/// An error of the planner over the whole text that was parsed.
pub fn from_plan(error: &PlanError, text: &str) -> PgError {
    let message = error.to_string();
    let mapped = match error {
        PlanError::Catalog { error, .. } => error.clone().into(),
        PlanError::UndefinedColumn(_) => PgError::new(UNDEFINED_COLUMN, message),
        PlanError::AmbiguousColumn(_) => PgError::new(AMBIGUOUS_COLUMN, message),
        PlanError::DuplicateColumn(_) => PgError::new(DUPLICATE_COLUMN, message),
        PlanError::UndefinedFunction(_) => PgError::new(UNDEFINED_FUNCTION, pg_type::in_postgres_words(&message)),
        PlanError::Grouping(_) => PgError::new(GROUPING_ERROR, message),
        PlanError::UndefinedParameter(_) => PgError::new(UNDEFINED_PARAMETER, message),
        PlanError::UndefinedType(_) => PgError::new(UNDEFINED_OBJECT, message),
        PlanError::TypeMismatch(_) => PgError::new(DATATYPE_MISMATCH, pg_type::in_postgres_words(&message)),
        PlanError::Syntax(_) => PgError::new(SYNTAX_ERROR, message),
        PlanError::Unsupported(_) => PgError::unsupported(pg_type::in_postgres_words(&message)),
        PlanError::WrongObject(_) => PgError::new(WRONG_OBJECT_TYPE, message),
        PlanError::NotReady(_) => PgError::new(OBJECT_NOT_IN_PREREQUISITE_STATE, message),
        PlanError::DivisionByZero => PgError::new(DIVISION_BY_ZERO, message),
        PlanError::OutOfRange(_) => PgError::new(NUMERIC_VALUE_OUT_OF_RANGE, message),
        PlanError::InvalidValue(_) => PgError::new(INVALID_TEXT_REPRESENTATION, message),
        PlanError::InvalidDatetime(_) => PgError::new(INVALID_DATETIME_FORMAT, message),
        PlanError::DatetimeOverflow(_) => PgError::new(DATETIME_FIELD_OVERFLOW, message),
        PlanError::OutOfMemory(_) => PgError::new(OUT_OF_MEMORY, message),
        PlanError::TooLarge(_) => PgError::new(PROGRAM_LIMIT_EXCEEDED, message),
        PlanError::TooManyColumns(_) => PgError::new(TOO_MANY_COLUMNS, message),
        PlanError::Invalid(_) | PlanError::InvalidText(_) => from_message(&message),
    };
    PgError {
        hint: error.hint().map(Into::into).or(mapped.hint),
        detail: error.detail().map(Into::into).or(mapped.detail),
        position: error.position(text),
        ..mapped
    }
}

/// An error of the engine over the whole text that was parsed.
pub fn from_engine(error: EngineError, text: &str) -> PgError {
    let message = error.to_string();
    match error {
        EngineError::Plan(error) => from_plan(&error, text),
        other => PgError { message, ..PgError::from(other) },
    }
}

impl From<EngineError> for PgError {
    fn from(error: EngineError) -> PgError {
        let message = error.to_string();
        match error {
            EngineError::Sql(error) => error.into(),
            EngineError::Catalog(error) => error.into(),
            EngineError::Plan(error) => from_plan(&error, ""),
            EngineError::Connector(error) => from_connector(&error),
            EngineError::Exec(error) => from_exec(error),
            EngineError::NotReady { hint, .. } => PgError::new(OBJECT_NOT_IN_PREREQUISITE_STATE, message).hint(hint),
            EngineError::ViewFailed { .. } => {
                PgError::new(OBJECT_NOT_IN_PREREQUISITE_STATE, message).hint("Drop the view and create it again.")
            }
            EngineError::Invalid { hint, .. } => PgError::new(INVALID_PARAMETER_VALUE, message).hint(hint),
            EngineError::OutOfMemory { hint, .. } => PgError::new(OUT_OF_MEMORY, message).hint(hint),
            EngineError::Unsupported { hint, .. } => PgError::unsupported(message).hint(hint),
            EngineError::DuplicateKey { key, .. } => {
                PgError::new(UNIQUE_VIOLATION, message).detail(format!("Key {key} already exists."))
            }
            EngineError::NotNull { .. } => PgError::new(NOT_NULL_VIOLATION, message),
            EngineError::Conflict { detail } => PgError::new(SERIALIZATION_FAILURE, message).detail(detail),
            EngineError::Gone { .. } => PgError::new(UNDEFINED_TABLE, message),
            EngineError::TooSlow { .. } => PgError::new(CONFIGURATION_LIMIT_EXCEEDED, message)
                .hint("Read faster or subscribe to a view with fewer changes, and subscribe again."),
            EngineError::TooMuchUnkept { .. } => PgError::new(CONFIGURATION_LIMIT_EXCEEDED, message).hint(
                "See riverrun.checkpoints. Where checkpoints are well, subscribe to a view with fewer changes, and leave COMMITTED \
                 out if what a crash may take back does no harm.",
            ),
            EngineError::NoSuchTick { newest, .. } => PgError::new(OBJECT_NOT_IN_PREREQUISITE_STATE, message)
                .detail(format!("The newest, and the only one that is kept, is {}.", tick_number(newest)))
                .hint("Leave AS OF out to begin at the newest."),
            EngineError::Timeout { .. } | EngineError::JobCancelled => PgError::new(QUERY_CANCELED, message),
            EngineError::Storage { .. } | EngineError::Kept(_) => PgError::new(IO_ERROR, message)
                .hint("riverrun.checkpoints says how it stands; the storage is tried again by itself."),
            EngineError::Unknown { .. } => PgError::new(STATEMENT_COMPLETION_UNKNOWN, message)
                .hint("It outlives a restart if the storage is mended before one."),
            EngineError::Restore { .. } => PgError::new(SYSTEM_ERROR, message),
            EngineError::Stopped => PgError::new(ADMIN_SHUTDOWN, message),
        }
    }
}

fn from_connector(error: &ConnectorError) -> PgError {
    let code = if error.is_retryable() { SYSTEM_ERROR } else { INVALID_PARAMETER_VALUE };
    PgError::new(code, error.to_string())
}

fn from_exec(error: ExecError) -> PgError {
    let message = error.to_string();
    match error {
        ExecError::Unsupported { hint, .. } => PgError::unsupported(message).hint(hint),
        ExecError::DuplicateKey { .. } => PgError::new(UNIQUE_VIOLATION, message),
        ExecError::RowMissing { .. } => PgError::new(SERIALIZATION_FAILURE, message),
        ExecError::DataFusion(error) => from_datafusion(*error, ""),
        ExecError::Arrow(error) => from_arrow(*error),
        ExecError::Storage { .. } => PgError::new(IO_ERROR, message).hint(
            "If a file is damaged, restore a backup, or start once with --rebuild-damaged; what does not need it can be read.",
        ),
        ExecError::State { .. }
        | ExecError::Saved { .. }
        | ExecError::NegativeWeight { .. }
        | ExecError::Invariant(_) => PgError::new(INTERNAL_ERROR, message),
    }
}

/// An error of DataFusion over the whole text that was parsed, whether it comes while a query is planned or while it runs.
pub fn from_datafusion(error: DataFusionError, text: &str) -> PgError {
    match own_error(&error) {
        Some(own) => own,
        None => from_plan(&PlanError::from(error), text),
    }
}

/// An error of ours that has gone through DataFusion or Arrow in a box.
fn own_error(error: &(dyn std::error::Error + 'static)) -> Option<PgError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<PgError>() {
            return Some(error.clone());
        }
        if let Some(error) = error.downcast_ref::<CatalogError>() {
            return Some(error.clone().into());
        }
        if let Some(error) = error.downcast_ref::<ConnectorError>() {
            return Some(from_connector(error));
        }
        next = match error.downcast_ref::<DataFusionError>() {
            // Its `source` skips the box and the shared pointer.
            Some(DataFusionError::External(inner)) => Some(inner.as_ref()),
            Some(DataFusionError::Shared(inner)) => Some(inner.as_ref()),
            Some(DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner)) => Some(inner.as_ref()),
            Some(DataFusionError::ArrowError(inner, _)) => Some(inner.as_ref()),
            Some(_) => None,
            None => match error.downcast_ref::<ArrowError>() {
                Some(ArrowError::ExternalError(inner)) => Some(inner.as_ref()),
                _ => None,
            },
        };
    }
    None
}

pub fn from_arrow(error: ArrowError) -> PgError {
    from_datafusion(DataFusionError::ArrowError(Box::new(error), None), "")
}

/// DataFusion and Arrow tell some errors of data apart by their text alone. Each phrase has its case in
/// `phrases_of_libraries_are_understood`.
fn from_message(message: &str) -> PgError {
    let line = message.lines().next().unwrap_or(message).trim_end_matches('.');
    // Arrow: "Cannot cast string 'x' to value of Int64 type".
    if let Some((value, rest)) = quoted_after(line, "annot cast string '").or(quoted_after(line, "annot cast value '"))
    {
        let data_type = rest.trim_start_matches(" to value of ").trim_end_matches(" type");
        return invalid_text(&pg_type::in_postgres_words(data_type), value);
    }
    if let Some((value, _)) = quoted_after(line, "rror parsing timestamp from '") {
        return invalid_text("timestamp", value);
    }
    if let Some((_, data_type)) = line.split_once("an't cast value ").and_then(|(_, rest)| rest.split_once(" to type "))
    {
        let name = pg_type::in_postgres_words(data_type);
        return PgError::new(NUMERIC_VALUE_OUT_OF_RANGE, format!("{name} out of range"));
    }
    if line.contains("verflow") || line.contains("out of range") {
        return PgError::new(NUMERIC_VALUE_OUT_OF_RANGE, "value out of range").detail(pg_type::in_postgres_words(line));
    }
    if let Some((_, returned)) =
        line.split_once("non-boolean predicate ").and_then(|(_, r)| r.split_once(" returning "))
    {
        let message =
            format!("argument of WHERE must be type boolean, not type {}", pg_type::in_postgres_words(returned));
        return PgError::new(DATATYPE_MISMATCH, message);
    }
    if line.contains("nvalid timezone") {
        return PgError::new(INVALID_PARAMETER_VALUE, line);
    }
    if line.contains("GROUP BY") && (line.contains("must be in") || line.contains("must appear in")) {
        return PgError::new(GROUPING_ERROR, line);
    }
    if line.contains("more than one row returned by a subquery") || line.contains("returned more than one row") {
        let message = "more than one row returned by a subquery used as an expression";
        return PgError::new(CARDINALITY_VIOLATION, message);
    }
    if line.starts_with("cannot coerce arithmetic expression ") || line.starts_with("cannot infer common ") {
        return PgError::new(UNDEFINED_FUNCTION, format!("operator does not exist: {}", operands(line)))
            .hint("No operator matches the given types. You might need to add explicit type casts.");
    }
    PgError::new(INVALID_PARAMETER_VALUE, pg_type::in_postgres_words(line))
}

/// `cannot coerce arithmetic expression Utf8 + Int64 to valid types` → `text + bigint`.
fn operands(line: &str) -> String {
    let rest = line.strip_prefix("cannot coerce arithmetic expression ").unwrap_or(line);
    let rest = rest.rsplit("operation ").next().unwrap_or(rest);
    pg_type::in_postgres_words(rest.trim_end_matches(" to valid types"))
}

/// What a value that is no literal of a type is told.
pub fn invalid_text(type_name: &str, value: &str) -> PgError {
    let moment = ["date", "time", "timestamp", "interval"].iter().any(|prefix| type_name.starts_with(prefix));
    let code = if moment { INVALID_DATETIME_FORMAT } else { INVALID_TEXT_REPRESENTATION };
    PgError::new(code, format!("invalid input syntax for type {type_name}: \"{value}\""))
}

/// The text between `prefix` and the last quote, and what follows.
fn quoted_after<'a>(line: &'a str, prefix: &str) -> Option<(&'a str, &'a str)> {
    let rest = &line[line.find(prefix)? + prefix.len()..];
    let end = rest.rfind('\'')?;
    Some((&rest[..end], &rest[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::{At, Refusal};

    fn check(got: PgError, expected: &str) {
        let hint = got.hint.map(|hint| format!(" [{hint}]")).unwrap_or_default();
        let position = got.position.map(|at| format!(" at {at}")).unwrap_or_default();
        assert_eq!(format!("{}: {}{hint}{position}", got.code, got.message), expected);
    }

    fn ran(error: DataFusionError, expected: &str) {
        check(from_datafusion(error, "select 1,\n  x from t"), expected);
    }

    #[test]
    fn errors_speak_as_postgres_does() {
        let arrow = |error: ArrowError| DataFusionError::ArrowError(Box::new(error), None);
        ran(arrow(ArrowError::DivideByZero), "22012: division by zero");
        ran(arrow(ArrowError::ArithmeticOverflow("Overflow happened on: 1 + 2".into())), "22003: value out of range");
        ran(arrow(ArrowError::MemoryError("1 TiB".into())), "53200: out of memory: 1 TiB");
        let typed = PlanError::InvalidValue(Refusal::new("invalid hexadecimal digit: \"g\""));
        ran(arrow(ArrowError::ExternalError(Box::new(typed.clone()))), "22P02: invalid hexadecimal digit: \"g\"");
        ran(DataFusionError::External(Box::new(typed)), "22P02: invalid hexadecimal digit: \"g\"");
        let boxed = DataFusionError::External(Box::new(CatalogError::NoSchema("s".into())));
        ran(DataFusionError::Context("while".into(), Box::new(boxed)), "3F000: schema \"s\" does not exist");
        let own = PgError::new(QUERY_CANCELED, "canceling statement due to user request");
        ran(DataFusionError::External(Box::new(own)), "57014: canceling statement due to user request");
    }

    #[test]
    fn phrases_of_libraries_are_understood() {
        let cast = |text: &str| DataFusionError::ArrowError(Box::new(ArrowError::CastError(text.into())), None);
        let ran_as = |text: &str| DataFusionError::Execution(text.into());
        let planned = |text: &str| DataFusionError::Plan(text.into());
        let operator = "[No operator matches the given types. You might need to add explicit type casts.]";
        ran(
            cast("Cannot cast string 'it's' to value of Int64 type"),
            "22P02: invalid input syntax for type bigint: \"it's\"",
        );
        ran(
            cast("Cannot cast value 'x' to value of Boolean type"),
            "22P02: invalid input syntax for type boolean: \"x\"",
        );
        ran(cast("Can't cast value 300000 to type Int16"), "22003: smallint out of range");
        ran(
            DataFusionError::ArrowError(
                Box::new(ArrowError::ParseError("Error parsing timestamp from 'x': error parsing date".into())),
                None,
            ),
            "22007: invalid input syntax for type timestamp: \"x\"",
        );
        ran(ran_as("Overflow happened on FACTORIAL(30)"), "22003: value out of range");
        ran(ran_as("value 1 is out of range"), "22003: value out of range");
        ran(
            planned("Cannot create filter with non-boolean predicate 't.v' returning Utf8"),
            "42804: argument of WHERE must be type boolean, not type text",
        );
        ran(ran_as("Invalid timezone \"x\""), "22023: invalid timezone \"x\"");
        ran(
            planned("Column \"v\" must appear in the GROUP BY clause"),
            "42803: column \"v\" must appear in the GROUP BY clause or be used in an aggregate function",
        );
        let rows = "21000: more than one row returned by a subquery used as an expression";
        ran(ran_as("Scalar subquery returned more than one row"), rows);
        ran(ran_as("more than one row returned by a subquery used as an expression"), rows);
        ran(
            planned("Cannot coerce arithmetic expression Utf8 + Int64 to valid types"),
            &format!("42883: operator does not exist: text + bigint {operator}"),
        );
        ran(
            planned("Cannot infer common argument type for comparison operation Utf8 = Boolean"),
            &format!("42883: operator does not exist: text = boolean {operator}"),
        );
    }

    #[test]
    fn positions_count_characters_of_the_whole_text() {
        let refusal = Refusal::new("column \"x\" does not exist").at(Some(At { line: 2, column: 3 }));
        check(
            from_plan(&PlanError::UndefinedColumn(refusal), "select 1,\n  x from t"),
            "42703: column \"x\" does not exist at 13",
        );
        let syntax = crate::sql::parse("select 1 from").expect_err("no SQL");
        check(syntax.into(), "42601: syntax error at end of input at 14");
    }

    #[test]
    fn the_engine_tells_what_to_do() {
        let error =
            EngineError::NotReady { message: "view v is still reading history".into(), hint: "WAIT FOR v".into() };
        check(error.into(), "55000: view v is still reading history [WAIT FOR v]");
        check(
            EngineError::Conflict { detail: String::new() }.into(),
            "40001: could not serialize access due to concurrent update",
        );
    }
}
