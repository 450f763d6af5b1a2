//! Statements that are planned before they run: what they need, and what they will give.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use bytes::Bytes;
use datafusion::common::ScalarValue;
use sqlparser::ast;

use super::decode::decode;
use super::encode::Format;
use super::error::PgError;
use super::pg_type::PgColumn;
use super::session::Session;
use super::show;
use super::sqlstate as code;
use crate::catalog::{PgType, pg_type_of};
use crate::planner;
use crate::sql::{Parsed, Statement};

/// The most statements a session may keep.
const MAX_PREPARED: usize = 10_000;

/// A statement, its parameters and its columns.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The whole text sent, in which positions of errors count.
    pub text: Arc<str>,
    /// `None` for a text without a statement.
    pub parsed: Option<Parsed>,
    /// The types of the parameters as the client sends them.
    pub parameters: Vec<&'static PgType>,
    /// The types that the plan has for the parameters.
    pub(super) parameter_types: Vec<DataType>,
    /// `None` for a statement that gives no rows.
    pub columns: Option<Arc<[PgColumn]>>,
}

impl Prepared {
    /// A statement of a simple query: without parameters, and nobody asks for its columns beforehand.
    pub fn simple(text: Arc<str>, parsed: Parsed) -> Prepared {
        Prepared { text, parsed: Some(parsed), parameters: Vec::new(), parameter_types: Vec::new(), columns: None }
    }

    /// For the planner: each parameter's type.
    pub(super) fn declared(&self) -> Vec<Option<DataType>> {
        self.parameter_types.iter().cloned().map(Some).collect()
    }
}

impl Session {
    /// Plans a text of one statement. `oids` are the parameter types that the client knows, 0 for those it does not.
    pub async fn prepare(&mut self, text: Arc<str>, oids: &[u32]) -> Result<Prepared, PgError> {
        let mut statements = self.parse(&text).await?;
        if statements.len() > 1 {
            let message = "cannot insert multiple commands into a prepared statement";
            return Err(PgError::new(code::SYNTAX_ERROR, message));
        }
        let declared = oids.iter().map(|oid| match oid {
            0 => Ok(None),
            oid => PgType::by_oid(*oid)
                .map(Some)
                .ok_or_else(|| PgError::new(code::UNDEFINED_OBJECT, format!("type with OID {oid} does not exist"))),
        });
        let declared = declared.collect::<Result<Vec<_>, _>>()?;
        self.describe(text, statements.pop(), declared).await
    }

    /// A statement of PREPARE.
    pub(super) async fn prepare_parsed(
        &mut self,
        text: Arc<str>,
        parsed: Option<Parsed>,
        types: &[ast::DataType],
    ) -> Result<Prepared, PgError> {
        let declared = types.iter().map(|written| {
            let written = written.to_string();
            PgType::by_sql_name(&written).map(Some).ok_or_else(|| {
                PgError::new(code::UNDEFINED_OBJECT, format!("type \"{}\" does not exist", written.to_lowercase()))
            })
        });
        let declared = declared.collect::<Result<Vec<_>, _>>()?;
        self.describe(text, parsed, declared).await
    }

    async fn describe(
        &mut self,
        text: Arc<str>,
        parsed: Option<Parsed>,
        mut declared: Vec<Option<&'static PgType>>,
    ) -> Result<Prepared, PgError> {
        // `unknown` says as little as nothing.
        declared.iter_mut().for_each(|known| *known = known.filter(|pg_type| pg_type.name != "unknown"));
        let mut prepared =
            Prepared { text, parsed: None, parameters: Vec::new(), parameter_types: Vec::new(), columns: None };
        let Some(parsed) = parsed else { return Ok(prepared) };
        declared.resize(declared.len().max(parsed.parameters), None);
        let arrow: Vec<Option<DataType>> = declared.iter().map(|known| known.map(PgType::arrow)).collect();
        if let Some((types, columns)) = self.plan_to_describe(&parsed.statement, &arrow, &prepared.text).await? {
            let known = |(i, data_type): (usize, &DataType)| {
                let inferred = pg_type_of(&Field::new("", data_type.clone(), true));
                declared.get(i).copied().flatten().unwrap_or(inferred)
            };
            prepared.parameters = types.iter().enumerate().map(known).collect();
            prepared.parameter_types = types;
            prepared.columns = columns;
        } else {
            prepared.columns = match &parsed.statement {
                Statement::Reconcile(reconcile) => Some(self.reconcile_columns(reconcile).await?),
                other => self.columns_without_a_plan(other)?,
            };
        }
        prepared.parsed = Some(parsed);
        Ok(prepared)
    }

    /// The columns of statements that are no plan of the planner.
    fn columns_without_a_plan(&self, statement: &Statement) -> Result<Option<Arc<[PgColumn]>>, PgError> {
        Ok(match statement {
            Statement::Execute { name, .. } => self.prepared(name)?.columns.clone(),
            Statement::Fetch { cursor, .. } => self.cursor_columns(cursor),
            Statement::Subscribe(subscribe) => Some(self.subscription_columns(subscribe)?.into()),
            other => show::columns(other)?.map(Into::into),
        })
    }

    pub fn prepared(&self, name: &str) -> Result<Arc<Prepared>, PgError> {
        self.statements.get(name).cloned().ok_or_else(|| {
            let message = match name {
                "" => "unnamed prepared statement does not exist".to_string(),
                name => format!("prepared statement \"{name}\" does not exist"),
            };
            PgError::new(code::INVALID_SQL_STATEMENT_NAME, message)
        })
    }

    /// The statement as it is run now: what FETCH gives is known by the cursor that has its name then.
    pub fn prepared_now(&self, name: &str) -> Result<Arc<Prepared>, PgError> {
        let prepared = self.prepared(name)?;
        let Some(Parsed { statement: Statement::Fetch { cursor, .. }, .. }) = &prepared.parsed else {
            return Ok(prepared);
        };
        let columns = self.cursor_columns(cursor);
        if columns == prepared.columns {
            return Ok(prepared);
        }
        Ok(Arc::new(Prepared { columns, ..Prepared::clone(&prepared) }))
    }

    /// Keeps a statement under a name; the one without a name is replaced.
    pub fn keep_prepared(&mut self, name: String, prepared: Prepared) -> Result<(), PgError> {
        if !name.is_empty() && self.statements.contains_key(&name) {
            let message = format!("prepared statement \"{name}\" already exists");
            return Err(PgError::new(code::DUPLICATE_PREPARED_STATEMENT, message));
        }
        if self.statements.len() >= MAX_PREPARED {
            return Err(PgError::new(code::PROGRAM_LIMIT_EXCEEDED, "too many prepared statements")
                .hint("DEALLOCATE those that are not used any more."));
        }
        self.statements.insert(name, Arc::new(prepared));
        Ok(())
    }

    pub fn forget_prepared(&mut self, name: &str) {
        self.statements.remove(name);
    }

    /// The parameters of a Bind as the plan wants them.
    pub fn decode_parameters(
        &self,
        prepared: &Prepared,
        values: &[Option<Bytes>],
        formats: &[Format],
    ) -> Result<Vec<ScalarValue>, PgError> {
        let zone = self.settings().zone();
        let typed = prepared.parameters.iter().zip(&prepared.parameter_types);
        let sent = values.iter().zip(formats);
        typed
            .zip(sent)
            .enumerate()
            .map(|(i, ((pg_type, data_type), (value, format)))| {
                let value = decode(value.as_deref(), *format, pg_type, zone)
                    .map_err(|error| error.context(format!("unnamed portal parameter ${}", i + 1)))?;
                convert(value, data_type, pg_type)
            })
            .collect()
    }

    /// The arguments of EXECUTE, evaluated.
    pub(super) async fn arguments(
        &mut self,
        name: &str,
        prepared: &Prepared,
        arguments: &[ast::Expr],
    ) -> Result<Vec<ScalarValue>, PgError> {
        let wanted = prepared.parameters.len();
        if arguments.len() != wanted {
            let message = format!("wrong number of parameters for prepared statement \"{name}\"");
            return Err(PgError::new(code::SYNTAX_ERROR, message)
                .detail(format!("Expected {wanted} parameters but got {}.", arguments.len())));
        }
        if wanted == 0 {
            return Ok(Vec::new());
        }
        let list: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let row = self.evaluate(&list).await?;
        let typed = prepared.parameters.iter().zip(&prepared.parameter_types);
        typed.zip(row).map(|((pg_type, data_type), value)| convert(value, data_type, pg_type)).collect()
    }
}

/// A value in the type that the plan has for it.
fn convert(value: ScalarValue, data_type: &DataType, pg_type: &PgType) -> Result<ScalarValue, PgError> {
    if value.data_type() == *data_type {
        return Ok(value);
    }
    let options = arrow::compute::CastOptions { safe: false, ..Default::default() };
    value.cast_to_with_options(data_type, &options).map_err(|_| {
        let message =
            format!("a value of type {} does not fit into {}", pg_type.sql_name, planner::sql_name(data_type));
        PgError::new(code::NUMERIC_VALUE_OUT_OF_RANGE, message)
    })
}
