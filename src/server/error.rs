//! An error as a client sees it.

use std::fmt;

use super::sqlstate;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Severity {
    /// The statement failed.
    #[default]
    Error,
    /// The connection ends.
    Fatal,
}

/// What a client is told when a statement fails. Codes are assigned in [`super::sqlstate`] alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PgError {
    pub severity: Severity,
    /// SQLSTATE: five characters.
    pub code: &'static str,
    pub message: String,
    pub detail: Option<Box<str>>,
    pub hint: Option<Box<str>>,
    /// Where in the text sent, in characters from 1.
    pub position: Option<usize>,
    /// Where else, such as the line of a COPY.
    pub context: Option<Box<str>>,
}

impl PgError {
    pub fn new(code: &'static str, message: impl Into<String>) -> PgError {
        PgError { code, message: message.into(), ..PgError::default() }
    }

    /// 0A000.
    pub fn unsupported(message: impl Into<String>) -> PgError {
        PgError::new(sqlstate::FEATURE_NOT_SUPPORTED, message)
    }

    pub fn detail(mut self, detail: impl Into<Box<str>>) -> PgError {
        self.detail = Some(detail.into());
        self
    }

    pub fn hint(mut self, hint: impl Into<Box<str>>) -> PgError {
        self.hint = Some(hint.into());
        self
    }

    pub fn context(mut self, context: impl Into<Box<str>>) -> PgError {
        self.context = Some(context.into());
        self
    }

    pub fn fatal(mut self) -> PgError {
        self.severity = Severity::Fatal;
        self
    }
}

impl fmt::Display for PgError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for PgError {}

/// How loud a notice is; the setting `client_min_messages` is compared with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoticeLevel {
    Notice,
    Warning,
}

/// Something a client is told while its statement goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    pub level: NoticeLevel,
    pub code: &'static str,
    pub message: String,
}

impl Notice {
    pub fn new(message: impl Into<String>) -> Notice {
        Notice { level: NoticeLevel::Notice, code: sqlstate::SUCCESSFUL_COMPLETION, message: message.into() }
    }

    pub fn warning(code: &'static str, message: impl Into<String>) -> Notice {
        Notice { level: NoticeLevel::Warning, code, message: message.into() }
    }
}
