//! Which objects a statement names, with CTEs respected and plain views looked through.

use std::ops::ControlFlow;
use std::sync::Arc;

use sqlparser::ast::{
    self, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectName, Query, TableFactor, Value,
    VisitMut, VisitorMut,
};

use super::error::{At, PlanError, Refusal};
use super::functions::{EventTimeKind, named_object};
use super::select::expand_table_commands;
use crate::catalog::{Catalog, NameContext, Object, ObjectKind, Oid, is_system_schema};
use crate::sql::{self, Name, Statement, fold};

/// The window functions that can stand in FROM, and those of them that we can keep.
pub const WINDOW_FUNCTIONS: [&str; 4] = ["hop", "tumble", "cumulate", "session"];

/// Every source, table and materialized view that the statement reads, through plain views, and those named in
/// `watermark('x')` and its kin. An error if a name means nothing.
pub fn objects_in(statement: &Statement, catalog: &Arc<Catalog>, names: &NameContext) -> Result<Vec<Oid>, PlanError> {
    let mut found: Vec<Oid> = Vec::new();
    let mut pending: Vec<Arc<Object>> = Vec::new();
    each_reference(statement, catalog, names, &mut |object| pending.push(object))?;
    while let Some(object) = pending.pop() {
        match &object.kind {
            ObjectKind::View { query } => {
                let mut query = parse_query(query)?;
                let names = definition_names(&object.database);
                pending.extend(references(&mut query, catalog, &names, false)?);
            }
            _ if !found.contains(&object.oid) => found.push(object.oid),
            _ => {}
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The names by which stored definitions are read: they do not depend on any session's search path.
pub fn definition_names(database: &str) -> NameContext {
    NameContext::new(database, crate::catalog::OWNER)
}

/// A stored query.
pub fn parse_query(text: &str) -> Result<Query, PlanError> {
    let parsed = sql::parse(text).map_err(|e| PlanError::Syntax(Refusal::new(e.to_string())))?;
    match parsed.into_iter().next().map(|parsed| parsed.statement) {
        Some(Statement::Query(query)) => Ok(*query),
        _ => Err(PlanError::Syntax(Refusal::new("a view's definition is not a query"))),
    }
}

/// The objects that a query names directly, each once. With `qualify`, names that the default search path would not find
/// are given their schema, so that the text means the same in any session.
pub fn references(
    query: &mut Query,
    catalog: &Arc<Catalog>,
    names: &NameContext,
    qualify: bool,
) -> Result<Vec<Arc<Object>>, PlanError> {
    let mut visitor = References { catalog, names, qualify, scopes: Vec::new(), found: Vec::new() };
    match query.visit(&mut visitor) {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => Ok(visitor.found),
    }
}

fn each_reference(
    statement: &Statement,
    catalog: &Arc<Catalog>,
    names: &NameContext,
    found: &mut dyn FnMut(Arc<Object>),
) -> Result<(), PlanError> {
    let mut visitor = References { catalog, names, qualify: false, scopes: Vec::new(), found: Vec::new() };
    let flow = match statement {
        Statement::Query(query) | Statement::Declare { query, .. } => query.clone().visit(&mut visitor),
        Statement::CreateMaterializedView(create) => create.query.clone().visit(&mut visitor),
        Statement::CreateView(create) => create.query.clone().visit(&mut visitor),
        Statement::CreateTable(create) => create.query.clone().visit(&mut visitor),
        Statement::Insert(insert) => {
            if let Some(source) = &insert.source {
                source.clone().visit(&mut visitor)
            } else {
                ControlFlow::Continue(())
            }
        }
        Statement::Update(update) => update.clone().visit(&mut visitor),
        Statement::Delete(delete) => {
            let mut statement = ast::Statement::Delete(delete.as_ref().clone());
            statement.visit(&mut visitor)
        }
        Statement::Copy(copy) => match copy.as_ref() {
            ast::Statement::Copy { source: ast::CopySource::Query(query), .. } => query.clone().visit(&mut visitor),
            ast::Statement::Copy { source: ast::CopySource::Table { table_name, .. }, to: true, .. } => {
                match visitor.relation(&mut table_name.clone()) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(error) => ControlFlow::Break(error),
                }
            }
            _ => ControlFlow::Continue(()),
        },
        Statement::Explain { statement, .. } => return each_reference(statement, catalog, names, found),
        Statement::Prepare { statement, .. } => return each_reference(&statement.statement, catalog, names, found),
        _ => ControlFlow::Continue(()),
    };
    match flow {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) => {
            visitor.found.into_iter().for_each(found);
            Ok(())
        }
    }
}

struct References<'a> {
    catalog: &'a Arc<Catalog>,
    names: &'a NameContext,
    qualify: bool,
    scopes: Vec<Scope>,
    found: Vec<Arc<Object>>,
}

/// The CTEs of one query. The visitor comes by their bodies in order before anything else, so a CTE is visible once as many
/// queries directly inside have been left.
struct Scope {
    ctes: Vec<String>,
    visible: usize,
}

impl References<'_> {
    fn is_cte(&self, name: &str) -> bool {
        self.scopes.iter().any(|scope| scope.ctes[..scope.visible].iter().any(|cte| cte == name))
    }

    /// Notes what `name` means; qualifies it if asked to.
    fn relation(&mut self, name: &mut ObjectName) -> Result<(), PlanError> {
        let at = At::of(name);
        let parsed = Name::try_from(&*name).map_err(|e| PlanError::Syntax(Refusal::new(e.to_string()).at(at)))?;
        if let [single] = parsed.0.as_slice()
            && self.is_cte(single)
        {
            return Ok(());
        }
        let Some(object) = resolve(self.catalog, self.names, &parsed).map_err(|e| e.or_at(at))? else { return Ok(()) };
        if self.qualify && parsed.0.len() == 1 && object.schema != crate::catalog::PUBLIC {
            *name = ObjectName::from(vec![quoted(&object.schema), quoted(&object.name)]);
        }
        self.note(object);
        Ok(())
    }

    fn note(&mut self, object: Arc<Object>) {
        if !self.found.iter().any(|known| known.oid == object.oid) {
            self.found.push(object);
        }
    }

    /// The first argument of a window function is a relation.
    fn window_argument(&mut self, argument: &mut FunctionArg) -> Result<(), PlanError> {
        let FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) = argument else { return Ok(()) };
        let Some(mut name) = relation_argument(expr) else { return Ok(()) };
        self.relation(&mut name)?;
        let parts: Vec<Ident> = name.0.iter().filter_map(|part| part.as_ident().cloned()).collect();
        if parts.len() > 1 {
            *expr = Expr::CompoundIdentifier(parts);
        }
        Ok(())
    }

    fn event_time_argument(&mut self, expr: &mut Expr) -> Result<(), PlanError> {
        let Expr::Function(call) = expr else { return Ok(()) };
        let Some(name) = call.name.0.last().and_then(|part| part.as_ident()).map(fold) else { return Ok(()) };
        if EventTimeKind::of_name(&name).is_none() {
            return Ok(());
        }
        let at = At::of(&call.name);
        let FunctionArguments::List(list) = &mut call.args else { return Ok(()) };
        let [FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value)))] = list.args.as_mut_slice() else {
            return Ok(());
        };
        let Value::SingleQuotedString(text) = &mut value.value else { return Ok(()) };
        let parsed = parse_name(text)?;
        let direct = self.catalog.resolve(&parsed, self.names).map_err(|e| PlanError::from(e).or_at(at))?;
        if self.qualify && parsed.0.len() == 1 && direct.schema != crate::catalog::PUBLIC {
            *text = Name(vec![direct.schema.clone(), direct.name.clone()]).to_string();
        }
        let object = named_object(self.catalog, self.names, text).map_err(|e| e.or_at(at))?;
        self.note(object);
        Ok(())
    }
}

fn flow(result: Result<(), PlanError>) -> ControlFlow<PlanError> {
    match result {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => ControlFlow::Break(error),
    }
}

impl VisitorMut for References<'_> {
    type Break = PlanError;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<PlanError> {
        let ctes: Vec<String> = match &query.with {
            Some(with) => with.cte_tables.iter().map(|cte| fold(&cte.alias.name)).collect(),
            None => Vec::new(),
        };
        let visible = if query.with.as_ref().is_some_and(|with| with.recursive) { ctes.len() } else { 0 };
        self.scopes.push(Scope { ctes, visible });
        expand_table_commands(&mut query.body);
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &mut Query) -> ControlFlow<PlanError> {
        self.scopes.pop();
        if let Some(outer) = self.scopes.last_mut()
            && outer.visible < outer.ctes.len()
        {
            outer.visible += 1;
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<PlanError> {
        match factor {
            TableFactor::Table { name, args: None, .. } => flow(self.relation(name)),
            TableFactor::Table { name, args: Some(args), .. } if window_function(name).is_some() => {
                match args.args.first_mut() {
                    Some(argument) => flow(self.window_argument(argument)),
                    None => ControlFlow::Continue(()),
                }
            }
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<PlanError> {
        flow(self.event_time_argument(expr))
    }
}

/// The window function's name in lower case, if it is one.
pub fn window_function(name: &ObjectName) -> Option<&'static str> {
    let [part] = name.0.as_slice() else { return None };
    let word = part.as_ident()?.value.to_ascii_lowercase();
    WINDOW_FUNCTIONS.into_iter().find(|known| *known == word)
}

/// The relation that an argument of a window function names.
pub fn relation_argument(expr: &Expr) -> Option<ObjectName> {
    match expr {
        Expr::Identifier(ident) => Some(ObjectName::from(vec![ident.clone()])),
        Expr::CompoundIdentifier(parts) => Some(ObjectName::from(parts.clone())),
        _ => None,
    }
}

/// The object that a name means; `None` if it may be a table of the system.
pub fn resolve(catalog: &Catalog, names: &NameContext, name: &Name) -> Result<Option<Arc<Object>>, PlanError> {
    let places = catalog.candidates(name, names)?;
    match catalog.resolve(name, names) {
        Ok(object) => Ok(Some(object)),
        // Only what is looked up knows which tables there are.
        Err(_) if places.iter().any(|(schema, _)| is_system_schema(schema)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A name as text, such as the argument of `watermark('s.x')`: folded and unquoted as in SQL.
pub fn parse_name(text: &str) -> Result<Name, PlanError> {
    let invalid = || PlanError::Syntax(Refusal::new(format!("invalid name: \"{text}\"")));
    let mut parts = Vec::new();
    let mut rest = text.trim();
    loop {
        let part;
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut unquoted = String::new();
            let mut chars = quoted.char_indices().peekable();
            let end = loop {
                match chars.next() {
                    Some((_, '"')) if chars.peek().is_some_and(|(_, next)| *next == '"') => {
                        chars.next();
                        unquoted.push('"');
                    }
                    Some((i, '"')) => break i + 1,
                    Some((_, c)) => unquoted.push(c),
                    None => return Err(invalid()),
                }
            };
            (part, rest) = (unquoted, quoted[end..].trim_start());
        } else {
            let end = rest.find('.').unwrap_or(rest.len());
            (part, rest) = (rest[..end].trim().to_ascii_lowercase(), &rest[end..]);
        }
        if part.is_empty() {
            return Err(invalid());
        }
        parts.push(part);
        match rest.strip_prefix('.') {
            Some(more) => rest = more.trim_start(),
            None if rest.is_empty() => return Ok(Name(parts)),
            None => return Err(invalid()),
        }
    }
}

fn quoted(name: &str) -> Ident {
    match sql::quote(name) {
        std::borrow::Cow::Borrowed(plain) => Ident::new(plain),
        std::borrow::Cow::Owned(_) => Ident::with_quote('"', name),
    }
}
