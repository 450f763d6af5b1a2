//! What the planner refuses, and why.

use std::fmt;

use datafusion::arrow::error::ArrowError;
use datafusion::common::{Column, DataFusionError, SchemaError};
use thiserror::Error;

use crate::catalog::CatalogError;

/// Every refusal of the planner. The variant says what the reader must do; the SQLSTATE stands at each and is assigned by
/// the server.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum PlanError {
    /// Fix the name of a relation, schema or database.
    #[error("{error}")]
    Catalog { error: CatalogError, at: Option<At> },
    /// 42703: fix the column's name.
    #[error("{0}")]
    UndefinedColumn(Refusal),
    /// 42702: qualify the column.
    #[error("{0}")]
    AmbiguousColumn(Refusal),
    /// 42701: name the column once.
    #[error("{0}")]
    DuplicateColumn(Refusal),
    /// 42803: group by the column, or aggregate it.
    #[error("{0}")]
    Grouping(Refusal),
    /// 42883: call a function that exists, with arguments of its types.
    #[error("{0}")]
    UndefinedFunction(Refusal),
    /// 42P02: there is no such parameter here.
    #[error("{0}")]
    UndefinedParameter(Refusal),
    /// 42704: use a type that exists.
    #[error("{0}")]
    UndefinedType(Refusal),
    /// 42804: cast, or give a value of the column's type.
    #[error("{0}")]
    TypeMismatch(Refusal),
    /// 42601: fix the statement.
    #[error("{0}")]
    Syntax(Refusal),
    /// 42P16, 22023: fix the definition or an argument of it.
    #[error("{0}")]
    Invalid(Refusal),
    /// 0A000: write it another way; the hint says how.
    #[error("{0}")]
    Unsupported(Refusal),
    /// 42809: the object is of another kind.
    #[error("{0}")]
    WrongObject(Refusal),
    /// 55000: the object is not in a state to answer that.
    #[error("{0}")]
    NotReady(Refusal),
    /// 22012, also while a query runs.
    #[error("division by zero")]
    DivisionByZero,
    /// 22003, also while a query runs.
    #[error("{0}")]
    OutOfRange(Refusal),
    /// 22P02, 22007, 22003: fix the data; also while a query runs. Arrow's cast of a text or a number, of which only the message
    /// says more.
    #[error("{0}")]
    InvalidText(Refusal),
    /// 22P02: the text is no value of the type; also while a query runs.
    #[error("{0}")]
    InvalidValue(Refusal),
    /// 22007: the text is no date, time or interval; also while a query runs.
    #[error("{0}")]
    InvalidDatetime(Refusal),
    /// 22008: a date, time or interval beyond what the type can hold; also while a query runs.
    #[error("{0}")]
    DatetimeOverflow(Refusal),
    /// 53200: let the query hold less at once.
    #[error("{0}")]
    OutOfMemory(Refusal),
    /// 54000: a value larger than any may be; also while a query runs.
    #[error("{0}")]
    TooLarge(Refusal),
    /// 54011: select fewer columns.
    #[error("{0}")]
    TooManyColumns(Refusal),
}

/// A message, what would work instead, and where in the text.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Refusal {
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    pub at: Option<At>,
}

/// A place in a statement's text: line and column in characters, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    pub line: u64,
    pub column: u64,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Refusal {
    pub fn new(message: impl Into<String>) -> Refusal {
        Refusal { message: message.into(), ..Refusal::default() }
    }

    pub fn detail(mut self, detail: impl Into<String>) -> Refusal {
        self.detail = Some(detail.into());
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Refusal {
        self.hint = Some(hint.into());
        self
    }

    pub fn at(mut self, at: Option<At>) -> Refusal {
        self.at = at;
        self
    }
}

impl At {
    /// The place where an AST node begins, if the parser kept it.
    pub fn of(node: &impl sqlparser::ast::Spanned) -> Option<At> {
        let start = node.span().start;
        (start.line > 0).then_some(At { line: start.line, column: start.column })
    }

    /// The place as an index of characters from 1, as Postgres counts.
    fn index_in(self, text: &str) -> Option<usize> {
        let mut before = 0;
        for (number, line) in (1..).zip(text.split('\n')) {
            if number == self.line {
                return Some(before + self.column as usize);
            }
            before += line.chars().count() + 1;
        }
        None
    }
}

impl PlanError {
    pub fn unsupported(message: impl Into<String>, hint: impl Into<String>) -> PlanError {
        PlanError::Unsupported(Refusal::new(message).hint(hint))
    }

    pub fn invalid(message: impl Into<String>) -> PlanError {
        PlanError::Invalid(Refusal::new(message))
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            PlanError::Catalog { error, .. } => error.hint(),
            other => other.refusal().and_then(|refusal| refusal.hint.clone()),
        }
    }

    pub fn detail(&self) -> Option<String> {
        match self {
            PlanError::Catalog { error, .. } => error.detail(),
            other => other.refusal().and_then(|refusal| refusal.detail.clone()),
        }
    }

    /// Where the error stands in `text`, the whole text that was parsed: an index of characters from 1.
    pub fn position(&self, text: &str) -> Option<usize> {
        let at = match self {
            PlanError::Catalog { at, .. } => *at,
            other => other.refusal().and_then(|refusal| refusal.at),
        };
        at?.index_in(text)
    }

    /// The same error, standing at `at` unless it knows better.
    pub fn or_at(mut self, place: Option<At>) -> PlanError {
        let at = match &mut self {
            PlanError::Catalog { at, .. } => Some(at),
            other => other.refusal_mut().map(|refusal| &mut refusal.at),
        };
        if let Some(at) = at {
            *at = at.or(place);
        }
        self
    }

    fn refusal(&self) -> Option<&Refusal> {
        match self {
            PlanError::Catalog { .. } | PlanError::DivisionByZero => None,
            PlanError::UndefinedColumn(r)
            | PlanError::AmbiguousColumn(r)
            | PlanError::DuplicateColumn(r)
            | PlanError::Grouping(r)
            | PlanError::UndefinedFunction(r)
            | PlanError::UndefinedParameter(r)
            | PlanError::UndefinedType(r)
            | PlanError::TypeMismatch(r)
            | PlanError::Syntax(r)
            | PlanError::Invalid(r)
            | PlanError::Unsupported(r)
            | PlanError::WrongObject(r)
            | PlanError::NotReady(r)
            | PlanError::OutOfRange(r)
            | PlanError::InvalidText(r)
            | PlanError::InvalidValue(r)
            | PlanError::InvalidDatetime(r)
            | PlanError::DatetimeOverflow(r)
            | PlanError::OutOfMemory(r)
            | PlanError::TooLarge(r)
            | PlanError::TooManyColumns(r) => Some(r),
        }
    }

    fn refusal_mut(&mut self) -> Option<&mut Refusal> {
        match self {
            PlanError::Catalog { .. } | PlanError::DivisionByZero => None,
            PlanError::UndefinedColumn(r)
            | PlanError::AmbiguousColumn(r)
            | PlanError::DuplicateColumn(r)
            | PlanError::Grouping(r)
            | PlanError::UndefinedFunction(r)
            | PlanError::UndefinedParameter(r)
            | PlanError::UndefinedType(r)
            | PlanError::TypeMismatch(r)
            | PlanError::Syntax(r)
            | PlanError::Invalid(r)
            | PlanError::Unsupported(r)
            | PlanError::WrongObject(r)
            | PlanError::NotReady(r)
            | PlanError::OutOfRange(r)
            | PlanError::InvalidText(r)
            | PlanError::InvalidValue(r)
            | PlanError::InvalidDatetime(r)
            | PlanError::DatetimeOverflow(r)
            | PlanError::OutOfMemory(r)
            | PlanError::TooLarge(r)
            | PlanError::TooManyColumns(r) => Some(r),
        }
    }
}

impl From<CatalogError> for PlanError {
    fn from(error: CatalogError) -> PlanError {
        PlanError::Catalog { error, at: None }
    }
}

/// So that extension points of DataFusion can refuse: the way back is [`PlanError::from`].
impl From<PlanError> for DataFusionError {
    fn from(error: PlanError) -> DataFusionError {
        DataFusionError::External(Box::new(error))
    }
}

impl From<DataFusionError> for PlanError {
    fn from(error: DataFusionError) -> PlanError {
        match error {
            DataFusionError::External(error) => match error.downcast::<PlanError>() {
                Ok(error) => *error,
                Err(error) => match error.downcast::<ArrowError>() {
                    Ok(error) => of_arrow(*error),
                    Err(other) => PlanError::invalid(other.to_string()),
                },
            },
            DataFusionError::Context(_, inner) => PlanError::from(*inner),
            DataFusionError::Diagnostic(diagnostic, inner) => {
                let at = diagnostic.span.map(|span| At { line: span.start.line, column: span.start.column });
                PlanError::from(*inner).or_at(at)
            }
            DataFusionError::Collection(errors) => match errors.into_iter().next() {
                Some(first) => PlanError::from(first),
                None => PlanError::invalid("planning failed"),
            },
            DataFusionError::Shared(shared) => match std::sync::Arc::try_unwrap(shared) {
                Ok(error) => PlanError::from(error),
                Err(shared) => of_shared(&shared),
            },
            DataFusionError::SchemaError(error, _) => of_schema(*error),
            DataFusionError::ArrowError(error, _) => of_arrow(*error),
            DataFusionError::SQL(error, _) => PlanError::Syntax(Refusal::new(first_lower(&error.to_string()))),
            DataFusionError::NotImplemented(message) => match of_message(&message) {
                PlanError::Invalid(refusal) => PlanError::Unsupported(refusal),
                other => other,
            },
            DataFusionError::ResourcesExhausted(message) => PlanError::OutOfMemory(
                Refusal::new(format!("out of memory: {}", first_lower(&message)))
                    .hint("Filter or aggregate more, or start the server with more memory for queries."),
            ),
            DataFusionError::Plan(message) => of_message(&message),
            DataFusionError::Execution(message) => of_message(&message),
            other => of_message(&other.strip_backtrace()),
        }
    }
}

/// An error that several parts of a plan have been told.
fn of_shared(error: &DataFusionError) -> PlanError {
    match error {
        DataFusionError::Shared(inner) => of_shared(inner),
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => of_shared(inner),
        DataFusionError::ResourcesExhausted(message) => {
            PlanError::from(DataFusionError::ResourcesExhausted(message.clone()))
        }
        DataFusionError::External(inner) if inner.is::<PlanError>() => {
            inner.downcast_ref::<PlanError>().cloned().expect("it is one")
        }
        DataFusionError::ArrowError(inner, _) => match inner.as_ref() {
            ArrowError::DivideByZero => PlanError::DivisionByZero,
            ArrowError::ArithmeticOverflow(message) => of_arrow(ArrowError::ArithmeticOverflow(message.clone())),
            ArrowError::CastError(message) => of_arrow(ArrowError::CastError(message.clone())),
            ArrowError::ParseError(message) => of_arrow(ArrowError::ParseError(message.clone())),
            ArrowError::ComputeError(message) => of_arrow(ArrowError::ComputeError(message.clone())),
            ArrowError::ExternalError(inner) if inner.is::<PlanError>() => {
                inner.downcast_ref::<PlanError>().cloned().expect("it is one")
            }
            _ => of_message(&error.strip_backtrace()),
        },
        other => of_message(&other.strip_backtrace()),
    }
}

fn of_schema(error: SchemaError) -> PlanError {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let at = field.spans.first().map(|span| At { line: span.start.line, column: span.start.column });
            let message = match &field.relation {
                Some(relation) => format!("column {relation}.{} does not exist", field.name),
                None => format!("column \"{}\" does not exist", field.name),
            };
            let refusal = Refusal::new(message).at(at);
            PlanError::UndefinedColumn(match nearest(&field, &valid_fields) {
                Some(near) => refusal.hint(format!("Perhaps you meant to reference the column \"{}\".", near)),
                None => refusal,
            })
        }
        SchemaError::AmbiguousReference { field } => {
            let at = field.spans.first().map(|span| At { line: span.start.line, column: span.start.column });
            let message = format!("column reference \"{}\" is ambiguous", field.name);
            PlanError::AmbiguousColumn(Refusal::new(message).hint("Qualify it with the table's name.").at(at))
        }
        SchemaError::DuplicateQualifiedField { name, .. } | SchemaError::DuplicateUnqualifiedField { name } => {
            duplicate_column(&name)
        }
    }
}

pub(super) fn duplicate_column(name: &str) -> PlanError {
    let message = format!("column \"{name}\" specified more than once");
    PlanError::DuplicateColumn(Refusal::new(message).hint("Give each column a name of its own with AS."))
}

fn of_arrow(error: ArrowError) -> PlanError {
    match error {
        ArrowError::DivideByZero => PlanError::DivisionByZero,
        // Its text is `Overflow happened on: a + b`, in front of which the type of the error says the same.
        ArrowError::ArithmeticOverflow(message) => {
            let operation = message.split_once(": ").map_or(message.as_str(), |(_, operation)| operation);
            PlanError::OutOfRange(Refusal::new("value out of range").detail(operation))
        }
        ArrowError::ParseError(message) | ArrowError::CastError(message) => {
            PlanError::InvalidText(Refusal::new(first_lower(&message)))
        }
        ArrowError::MemoryError(message) => {
            PlanError::OutOfMemory(Refusal::new(format!("out of memory: {}", first_lower(&message))))
        }
        ArrowError::OffsetOverflowError(_) => {
            PlanError::TooLarge(Refusal::new("the texts of one batch of rows are larger than 2 GiB"))
        }
        ArrowError::ExternalError(inner) => match inner.downcast::<DataFusionError>() {
            Ok(inner) => PlanError::from(*inner),
            Err(inner) => match inner.downcast::<PlanError>() {
                Ok(inner) => *inner,
                Err(other) => of_message(&other.to_string()),
            },
        },
        other => of_message(&other.to_string()),
    }
}

/// DataFusion tells many errors apart by their text alone.
fn of_message(message: &str) -> PlanError {
    if let Some(rest) = message.strip_prefix("Invalid function '") {
        let name = rest.split('\'').next().unwrap_or(rest);
        let refusal = Refusal::new(format!("function {name} does not exist"));
        let near = rest.split("Did you mean '").nth(1).and_then(|rest| rest.split('\'').next());
        let near = near.filter(|near| edit_distance(near, name) <= name.chars().count() / 3);
        return PlanError::UndefinedFunction(match near {
            Some(near) => refusal.hint(format!("Perhaps you meant to call {near}.")),
            None => refusal,
        });
    }
    if message.contains("No function matches the given name and argument types") {
        let call = message.split("argument types '").nth(1).and_then(|rest| rest.split('\'').next());
        let call = call.unwrap_or("with these argument types");
        return PlanError::UndefinedFunction(
            Refusal::new(format!("function {call} does not exist")).hint("You might need to add explicit type casts."),
        );
    }
    if message.starts_with("Projections require unique expression names")
        && let Some(name) = message.split("the expression \"").nth(1).and_then(|rest| rest.split('"').next())
    {
        return duplicate_column(name);
    }
    if message.contains("does not support logical expression")
        && ["Subquery", "Exists", "SetComparison"].iter().any(|kind| message.contains(kind))
    {
        return PlanError::unsupported(
            "a correlated subquery of this form is not supported",
            "Correlate by equalities joined with AND, or write a join.",
        );
    }
    if message.contains("must be in GROUP BY") || message.contains("must appear in the GROUP BY") {
        let message = match message.split("olumn \"").nth(1).and_then(|rest| rest.split('"').next()) {
            Some(column) => {
                format!("column \"{column}\" must appear in the GROUP BY clause or be used in an aggregate function")
            }
            None => first_lower(first_line(message)),
        };
        return PlanError::Grouping(Refusal::new(message));
    }
    PlanError::invalid(first_lower(first_line(message)))
}

fn first_line(message: &str) -> &str {
    message.lines().next().unwrap_or(message)
}

fn first_lower(message: &str) -> String {
    let message = message.strip_prefix("Error during planning: ").unwrap_or(message);
    let mut chars = message.chars();
    match (chars.next(), message.chars().nth(1)) {
        // An acronym keeps its capitals.
        (Some(_), Some(second)) if second.is_uppercase() => message.to_string(),
        (Some(first), _) => first.to_lowercase().chain(chars).collect(),
        (None, _) => String::new(),
    }
}

/// The valid column whose name is nearest, if it is near.
fn nearest(field: &Column, valid: &[Column]) -> Option<String> {
    let distance = |column: &Column| edit_distance(&column.name, &field.name);
    let best = valid.iter().min_by_key(|column| distance(column))?;
    (distance(best) <= 1 + field.name.chars().count() / 3).then(|| best.flat_name())
}

/// Levenshtein's distance.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
