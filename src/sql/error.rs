//! What can be wrong with a text.

/// The text must be changed; every variant says how. Positions count characters of the whole text from 1, as Postgres does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SqlError {
    /// Not SQL as Postgres or Riverrun know it.
    #[error("{message}")]
    Syntax { message: String, hint: Option<String>, position: Option<usize> },
    /// Understood, and not offered; the hint says what works instead.
    #[error("{what} is not supported")]
    Unsupported { what: String, hint: Option<String>, position: Option<usize> },
    /// A literal or an option whose value does not fit.
    #[error("{message}")]
    Value { message: String, hint: Option<String>, position: Option<usize> },
    /// A column named twice.
    #[error("column \"{column}\" specified more than once")]
    DuplicateColumn { column: String, position: Option<usize> },
    /// A statement nested so deeply that working on it could exhaust the stack.
    #[error("statement is nested too deeply")]
    TooDeep { position: Option<usize> },
    /// A text of so many words and signs that working on it could exhaust memory.
    #[error("statement is too complex: it has more than {most} words and signs")]
    TooComplex { most: usize },
    /// More columns than a list can have.
    #[error("{what} can have at most {most} entries")]
    TooManyColumns { what: &'static str, most: usize, position: Option<usize> },
}

impl SqlError {
    /// Where in the text, in characters from 1; `None` when the fault is in a value handed in alone.
    pub fn position(&self) -> Option<usize> {
        match self {
            SqlError::Syntax { position, .. }
            | SqlError::Unsupported { position, .. }
            | SqlError::Value { position, .. }
            | SqlError::DuplicateColumn { position, .. }
            | SqlError::TooManyColumns { position, .. }
            | SqlError::TooDeep { position } => *position,
            SqlError::TooComplex { .. } => None,
        }
    }

    pub fn hint(&self) -> Option<&str> {
        match self {
            SqlError::Syntax { hint, .. } | SqlError::Unsupported { hint, .. } | SqlError::Value { hint, .. } => {
                hint.as_deref()
            }
            SqlError::DuplicateColumn { .. } | SqlError::TooManyColumns { .. } => None,
            SqlError::TooComplex { .. } => Some("Load rows with COPY, or split the statement."),
            SqlError::TooDeep { .. } => Some("Simplify the statement, or split it with views."),
        }
    }

    pub(super) fn syntax(message: impl Into<String>, position: usize) -> Self {
        SqlError::Syntax { message: message.into(), hint: None, position: Some(position) }
    }

    /// A refusal by name. An empty hint is none.
    pub(super) fn unsupported(what: impl Into<String>, hint: &str) -> Self {
        let hint = (!hint.is_empty()).then(|| sentence(hint));
        SqlError::Unsupported { what: what.into(), hint, position: None }
    }

    pub(super) fn value(message: impl Into<String>) -> Self {
        SqlError::Value { message: message.into(), hint: None, position: None }
    }

    pub(super) fn with_hint(mut self, text: &str) -> Self {
        if let SqlError::Syntax { hint, .. } | SqlError::Unsupported { hint, .. } | SqlError::Value { hint, .. } =
            &mut self
        {
            *hint = Some(sentence(text));
        }
        self
    }

    /// The same error at a position, if it has none yet.
    pub(super) fn at(mut self, place: usize) -> Self {
        match &mut self {
            SqlError::Syntax { position, .. }
            | SqlError::Unsupported { position, .. }
            | SqlError::Value { position, .. }
            | SqlError::DuplicateColumn { position, .. }
            | SqlError::TooManyColumns { position, .. }
            | SqlError::TooDeep { position } => {
                position.get_or_insert(place);
            }
            SqlError::TooComplex { .. } => {}
        }
        self
    }
}

/// Hints are sentences, as Postgres' are: with a capital letter and a full stop.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(chars).chain(['.']).collect()
}
