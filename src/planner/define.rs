//! CREATE SOURCE, TABLE, VIEW and MATERIALIZED VIEW: from a statement to an object of the catalog, and to the dataflow that
//! keeps it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::DFSchema;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::planner::{PlannerContext, SqlToRel};
use sqlparser::ast;

use super::error::{PlanError, Refusal, duplicate_column};
use super::functions::{Clock, EventTime};
use super::lower::{self, Lowered};
use super::names::{name_columns, result_names};
use super::query::with_output_types;
use super::relations::references;
use super::scope::Scope;
use super::session::planning_state;
use super::show_create;
use super::stream_plan::{StoreChoice, StreamPlan};
use super::types::{arrow_type, output_type, sql_name, timestamptz};
use crate::catalog::{
    Catalog, Deduplicate, LateColumn, LateRows, MaterializedView, NameContext, Object, ObjectKind, Oid, PG_TYPE,
    PgType, Source, Table, Watermark, with_pg_type,
};
use crate::sql::{
    ColumnDef, CreateMaterializedView, CreateSource, CreateTable, CreateView, DeduplicateDef, EmitClause, Include,
    Name, OnConflict, Statement, WatermarkDef, interval_us,
};

/// What a CREATE makes.
#[derive(Debug)]
pub struct Definition {
    /// Its OID is 0: the catalog gives it one.
    pub object: Object,
    /// The dataflow of a materialized view.
    pub plan: Option<StreamPlan>,
    /// CREATE OR REPLACE.
    pub replace: bool,
    pub if_not_exists: bool,
    /// NOTICEs in order.
    pub notices: Vec<String>,
    /// CREATE TABLE AS: the first rows, in the table's column order. To be executed after [`super::bind`].
    pub initial_rows: Option<LogicalPlan>,
}

/// Binds the types, columns and options of a CREATE SOURCE, TABLE, VIEW or MATERIALIZED VIEW and plans its query. Whether the
/// name is free, and whether a source's options make sense to its connector, is for others to say.
pub fn define(statement: &Statement, catalog: &Arc<Catalog>, names: &NameContext) -> Result<Definition, PlanError> {
    let definer = Definer { catalog, names };
    match statement {
        Statement::CreateSource(create) => definer.source(create),
        Statement::CreateTable(create) => definer.table(create),
        Statement::CreateView(create) => definer.view(create),
        Statement::CreateMaterializedView(create) => definer.materialized_view(create),
        _ => Err(PlanError::invalid("this statement defines no relation")),
    }
}

struct Definer<'a> {
    catalog: &'a Arc<Catalog>,
    names: &'a NameContext,
}

impl Definer<'_> {
    fn scope(&self) -> Result<Scope, PlanError> {
        let mut functions = EventTime::functions(self.catalog, self.names, None);
        functions.extend(Clock::functions(None));
        Ok(Scope {
            catalog: Arc::clone(self.catalog),
            names: self.names.clone(),
            system: None,
            state: planning_state(functions)?,
            nested_views: 0,
        })
    }

    fn object(
        &self,
        name: &Name,
        columns: SchemaRef,
        kind: ObjectKind,
        depends_on: Vec<Oid>,
    ) -> Result<Object, PlanError> {
        let (database, schema, name) = self.catalog.target_schema(name, self.names)?;
        Ok(Object { oid: 0, database, schema, name, sql: String::new(), columns, kind, depends_on })
    }

    fn source(&self, create: &CreateSource) -> Result<Definition, PlanError> {
        if create.format != "PLAIN" || create.encode != "JSON" {
            return Err(PlanError::unsupported(
                format!("FORMAT {} ENCODE {} is not supported", create.format, create.encode),
                "Use FORMAT PLAIN ENCODE JSON.",
            ));
        }
        for column in &create.columns {
            let what = match column {
                ColumnDef { primary_key: true, .. } => "PRIMARY KEY",
                ColumnDef { default: Some(_), .. } => "DEFAULT",
                _ => continue,
            };
            return Err(PlanError::unsupported(
                format!("{what} of column \"{}\" is not supported for a source", column.name),
                "A source keeps no rows of its own: use CREATE TABLE, or a materialized view over the source.",
            ));
        }
        let mut fields = fields(&create.columns)?;
        let mut includes = Vec::with_capacity(create.includes.len());
        for (include, name) in &create.includes {
            if fields.iter().any(|field| field.name() == name) {
                return Err(duplicate_column(name));
            }
            includes.push((fields.len(), *include));
            fields.push(Field::new(name, included_type(*include), true));
        }
        let columns = Arc::new(Schema::new(fields));
        let mut options = create.options.clone();
        for (key, value) in &create.encode_options {
            if options.insert(key.clone(), value.clone()).is_some() {
                return Err(PlanError::invalid(format!("option \"{key}\" is given in WITH and in ENCODE")));
            }
        }
        let mut source = Source {
            options,
            watermark: create.watermark.as_ref().map(|w| watermark(w, &columns)).transpose()?,
            deduplicate: deduplicate(create, &columns)?,
            includes,
            not_null: not_null(&create.columns),
            late_rows: None,
        };
        let late_into =
            create.late_rows_into.as_ref().map(|name| self.catalog.resolve(name, self.names)).transpose()?;
        source.late_rows = late_into.as_deref().map(|table| late_rows(table, &source, &columns)).transpose()?;
        let depends_on = source.late_rows.iter().map(|late| late.table).collect();
        let mut object = self.object(&create.name, columns, ObjectKind::Source(Arc::new(source)), depends_on)?;
        object.sql = show_create::source(&object, create, late_into.as_deref());
        Ok(definition(object, create.if_not_exists))
    }

    fn table(&self, create: &CreateTable) -> Result<Definition, PlanError> {
        let mut definition = match &create.query {
            Some(query) => {
                let scope = self.scope()?;
                let (plan, columns) = self.query_columns(query, &[], &scope)?;
                let kind = ObjectKind::Table(Arc::new(self.table_kind(create, &columns)?));
                let mut definition =
                    definition(self.object(&create.name, columns, kind, vec![])?, create.if_not_exists);
                definition.initial_rows = Some(plan);
                definition
            }
            None => {
                let columns = Arc::new(Schema::new(fields(&create.columns)?));
                let kind = ObjectKind::Table(Arc::new(self.table_kind(create, &columns)?));
                definition(self.object(&create.name, columns, kind, vec![])?, create.if_not_exists)
            }
        };
        definition.object.sql = show_create::table(&definition.object, create);
        Ok(definition)
    }

    fn table_kind(&self, create: &CreateTable, columns: &SchemaRef) -> Result<Table, PlanError> {
        let mut primary_key = Vec::with_capacity(create.primary_key.len());
        for name in &create.primary_key {
            let i = column(columns, name)?;
            if primary_key.contains(&i) {
                return Err(duplicate_column(name));
            }
            primary_key.push(i);
        }
        let mut not_null = not_null(&create.columns);
        not_null.extend(&primary_key);
        not_null.sort_unstable();
        not_null.dedup();
        if create.watermark.is_some() && !create.append_only {
            return Err(PlanError::Invalid(
                Refusal::new("a table with a WATERMARK must be APPEND ONLY")
                    .hint("Add APPEND ONLY after the columns: rows that can change have no watermark."),
            ));
        }
        if create.on_conflict != OnConflict::Error && primary_key.is_empty() {
            return Err(PlanError::Invalid(
                Refusal::new("ON CONFLICT needs a primary key")
                    .hint("Declare a PRIMARY KEY, or leave ON CONFLICT out."),
            ));
        }
        if create.on_conflict == OnConflict::Overwrite && create.append_only {
            return Err(PlanError::Invalid(
                Refusal::new("ON CONFLICT OVERWRITE changes rows, which an APPEND ONLY table does not")
                    .hint("Use ON CONFLICT DO NOTHING, or leave APPEND ONLY out."),
            ));
        }
        let mut defaults = BTreeMap::new();
        for (i, def) in create.columns.iter().enumerate() {
            if let Some(default) = &def.default {
                self.check_default(default, def, columns.field(i).data_type())?;
                defaults.insert(i, default.to_string());
            }
        }
        Ok(Table {
            primary_key,
            not_null,
            defaults,
            append_only: create.append_only,
            watermark: create.watermark.as_ref().map(|w| watermark(w, columns)).transpose()?,
            on_conflict: create.on_conflict,
        })
    }

    /// A default is an expression without columns that casts to the column's type.
    fn check_default(&self, default: &ast::Expr, def: &ColumnDef, target: &DataType) -> Result<(), PlanError> {
        let scope = self.scope()?;
        let empty = DFSchema::empty();
        let planned = SqlToRel::new(&scope).sql_to_expr(default.clone(), &empty, &mut PlannerContext::new())?;
        let data_type = datafusion::logical_expr::ExprSchemable::get_type(&planned, &empty)?;
        if data_type.is_null() || arrow::compute::can_cast_types(&data_type, target) {
            return Ok(());
        }
        let message = format!(
            "column \"{}\" is of type {} but default expression is of type {}",
            def.name,
            sql_name(target),
            sql_name(&data_type)
        );
        Err(PlanError::TypeMismatch(Refusal::new(message).hint("Rewrite or cast the expression.")))
    }

    fn view(&self, create: &CreateView) -> Result<Definition, PlanError> {
        let scope = self.scope()?;
        let (_, columns) = self.query_columns(&create.query, &create.columns, &scope)?;
        let (query, depends_on) = self.stored(&create.query)?;
        let kind = ObjectKind::View { query: query.clone() };
        let mut object = self.object(&create.name, columns, kind, depends_on)?;
        object.sql = show_create::view(&object, create, &query);
        Ok(Definition { replace: create.or_replace, ..definition(object, create.if_not_exists) })
    }

    fn materialized_view(&self, create: &CreateMaterializedView) -> Result<Definition, PlanError> {
        let (mut retention_us, mut store) = (None, StoreChoice::Auto);
        for (key, value) in &create.options {
            match key.as_str() {
                "retention" => retention_us = Some(retention(value)?),
                "store" => store = store_choice(value)?,
                _ => {
                    return Err(PlanError::Invalid(
                        Refusal::new(format!("unrecognized option of a materialized view: \"{key}\""))
                            .hint("There are retention, such as WITH (retention = '30 days'), and store = 'auto', 'own' or 'shared'."),
                    ));
                }
            }
        }
        let scope = self.scope()?;
        let mut query = create.query.as_ref().clone();
        name_columns(&mut query);
        let analyzed = scope.analyze(scope.plan(query, &[])?)?;
        let names = column_names(&analyzed, &create.columns)?;
        let sql_types = Arc::clone(analyzed.schema());
        let Lowered { plan, event_time, mut notices } =
            lower::lower(analyzed, &names, &create.emit, retention_us, store, &scope)?;
        notices.dedup();
        if let (Some(_), true) = (retention_us, event_time.is_empty()) {
            return Err(PlanError::Invalid(
                Refusal::new("retention needs a view that puts out an event time with a watermark")
                    .hint("Select window_start or window_end, over a source with WATERMARK FOR."),
            ));
        }
        let (query, depends_on) = self.stored(&create.query)?;
        let columns = with_sql_types(&plan.output().schema, &sql_types);
        let view = MaterializedView {
            query: query.clone(),
            options: create.options.clone(),
            emit_on_window_close: create.emit == EmitClause::OnWindowClose,
            // What is final is not taken back, wherever it comes from.
            append_only: plan.output().append_only || create.emit == EmitClause::OnWindowClose,
            event_time,
        };
        let kind = ObjectKind::MaterializedView(Arc::new(view));
        let mut object = self.object(&create.name, columns, kind, depends_on)?;
        object.sql = show_create::materialized_view(&object, create, &query);
        Ok(Definition { plan: Some(plan), notices, ..definition(object, create.if_not_exists) })
    }

    /// The analyzed plan of a query that is not lowered, and its columns under these names.
    fn query_columns(
        &self,
        query: &ast::Query,
        names: &[String],
        scope: &Scope,
    ) -> Result<(LogicalPlan, SchemaRef), PlanError> {
        let mut query = query.clone();
        name_columns(&mut query);
        let plan = with_output_types(scope.analyze_open(scope.plan(query, &[])?)?)?;
        let names = column_names(&plan, names)?;
        let mut fields = Vec::with_capacity(names.len());
        for (name, field) in names.into_iter().zip(plan.schema().fields()) {
            let Some(data_type) = output_type(field.data_type()) else {
                return Err(PlanError::unsupported(
                    format!(
                        "column \"{name}\" is of type {}, which no column can have yet",
                        sql_name(field.data_type())
                    ),
                    "Cast it to a scalar type, or take it apart into columns.",
                ));
            };
            fields.push(Field::new(name, data_type, true));
        }
        let columns = with_sql_types(&Schema::new(fields), plan.schema());
        Ok((plan, columns))
    }

    /// The query's text for the catalog, and what it reads.
    fn stored(&self, query: &ast::Query) -> Result<(String, Vec<Oid>), PlanError> {
        let mut query = query.clone();
        let mut reads: Vec<Oid> =
            references(&mut query, self.catalog, self.names, true)?.into_iter().map(|object| object.oid).collect();
        reads.sort_unstable();
        Ok((query.to_string(), reads))
    }
}

fn definition(object: Object, if_not_exists: bool) -> Definition {
    Definition { object, plan: None, replace: false, if_not_exists, notices: vec![], initial_rows: None }
}

/// Columns as SQL declares them. Each may be NULL for Arrow: NOT NULL is kept beside, so that who checks it can say why.
fn fields(columns: &[ColumnDef]) -> Result<Vec<Field>, PlanError> {
    let mut seen: HashMap<&str, ()> = HashMap::new();
    let mut fields = Vec::with_capacity(columns.len());
    for column in columns {
        if seen.insert(&column.name, ()).is_some() {
            return Err(duplicate_column(&column.name));
        }
        let field = Field::new(&column.name, arrow_type(&column.data_type)?, true);
        // VARCHAR and TEXT are one type to Arrow; clients are told the one that was written.
        let is_varchar = matches!(column.data_type, ast::DataType::Varchar(_) | ast::DataType::CharacterVarying(_));
        fields.push(match PgType::by_name("varchar") {
            Some(varchar) if is_varchar => with_pg_type(field, varchar),
            _ => field,
        });
    }
    Ok(fields)
}

/// The columns, each with the SQL type that the query's column of its place carries.
fn with_sql_types(columns: &Schema, query: &DFSchema) -> SchemaRef {
    let typed = columns.fields().iter().zip(query.fields()).map(|(column, from)| {
        let mut metadata = from.metadata().clone();
        metadata.retain(|key, _| key == PG_TYPE);
        column.as_ref().clone().with_metadata(metadata)
    });
    Arc::new(Schema::new(typed.collect::<Vec<_>>()))
}

fn not_null(columns: &[ColumnDef]) -> Vec<usize> {
    (0..columns.len()).filter(|&i| columns[i].not_null || columns[i].primary_key).collect()
}

/// How a table takes a source's late rows: each of its columns has one of the source's, by name, or says what of the verdict.
fn late_rows(table: &Object, source: &Source, columns: &Schema) -> Result<LateRows, PlanError> {
    let refuse = |message: String, hint: &str| Err(PlanError::Invalid(Refusal::new(message).hint(hint.to_string())));
    let name = &table.name;
    let ObjectKind::Table(rules) = &table.kind else {
        return Err(PlanError::WrongObject(Refusal::new(format!("LATE ROWS INTO: \"{name}\" is not a table"))));
    };
    if source.watermark.is_none() {
        return refuse("LATE ROWS INTO needs a watermark: without one no row is late".into(), "Declare WATERMARK FOR.");
    }
    if !rules.primary_key.is_empty() || rules.watermark.is_some() {
        let what = if rules.primary_key.is_empty() { "a WATERMARK" } else { "a primary key" };
        let message = format!("LATE ROWS INTO: table \"{name}\" has {what}, which could refuse a row");
        return refuse(message, "Use a table without: every late row is to be kept.");
    }
    let mut into = Vec::with_capacity(table.columns.fields().len());
    for (i, field) in table.columns.fields().iter().enumerate() {
        let of_source = columns.fields().iter().position(|column| column.name() == field.name());
        let (kept, data_type, filled) = match (of_source, field.name().as_str()) {
            (Some(at), _) => {
                (LateColumn::Source(at), columns.field(at).data_type().clone(), source.not_null.contains(&at))
            }
            (None, "late_reason") => (LateColumn::Reason, DataType::Utf8, true),
            (None, "late_watermark") => (LateColumn::Watermark, timestamptz(), false),
            (None, "late_partition") => (LateColumn::Partition, DataType::Int32, true),
            (None, "late_offset") => (LateColumn::Offset, DataType::Int64, true),
            (None, other) => {
                return refuse(
                    format!("LATE ROWS INTO: the source has no column \"{other}\" for that of table \"{name}\""),
                    "Besides the source's columns there are late_reason, late_watermark, late_partition and late_offset.",
                );
            }
        };
        if *field.data_type() != data_type {
            let (is, wanted) = (sql_name(field.data_type()), sql_name(&data_type));
            let message = format!("LATE ROWS INTO: column \"{}\" of table \"{name}\" is of type {is}", field.name());
            return Err(PlanError::TypeMismatch(Refusal::new(message).hint(format!("It must be {wanted}."))));
        }
        if rules.not_null.contains(&i) && !filled {
            let message = format!("LATE ROWS INTO: column \"{}\" of table \"{name}\" is NOT NULL", field.name());
            return refuse(message, "A late row may have no value there: leave NOT NULL out.");
        }
        into.push(kept);
    }
    Ok(LateRows { table: table.oid, columns: into })
}

fn included_type(include: Include) -> DataType {
    match include {
        Include::Partition => DataType::Int32,
        Include::Offset => DataType::Int64,
        Include::Timestamp => timestamptz(),
        // Keys are bytes, whoever made them.
        Include::Key => DataType::Binary,
    }
}

fn column(columns: &Schema, name: &str) -> Result<usize, PlanError> {
    let found = columns.fields().iter().position(|field| field.name() == name);
    found.ok_or_else(|| PlanError::UndefinedColumn(Refusal::new(format!("column \"{name}\" does not exist"))))
}

fn watermark(def: &WatermarkDef, columns: &Schema) -> Result<Watermark, PlanError> {
    let column = column(columns, &def.column)?;
    let data_type = columns.field(column).data_type();
    if !matches!(data_type, DataType::Timestamp(..)) {
        let message = format!("WATERMARK FOR \"{}\": the column is of type {}", def.column, sql_name(data_type));
        return Err(PlanError::TypeMismatch(Refusal::new(message).hint("It must be TIMESTAMPTZ or TIMESTAMP.")));
    }
    Ok(Watermark { column, delay_us: def.delay_us })
}

const SAME_PARTITION: &str = "deduplicate.same_partition";

fn deduplicate(create: &CreateSource, columns: &Schema) -> Result<Option<Deduplicate>, PlanError> {
    let refuse = |message: String, hint: &str| Err(PlanError::Invalid(Refusal::new(message).hint(hint.to_string())));
    let same_partition = match create.options.get(SAME_PARTITION).map(|value| value.to_ascii_lowercase()).as_deref() {
        None => None,
        Some("true" | "on") => Some(true),
        Some("false" | "off") => Some(false),
        Some(other) => {
            return refuse(
                format!("option {SAME_PARTITION}: '{other}' is neither true nor false"),
                "Write true, or leave it out.",
            );
        }
    };
    let Some(DeduplicateDef { columns: names, interval_us }) = &create.deduplicate else {
        return match same_partition {
            None => Ok(None),
            Some(_) => refuse(
                format!("option {SAME_PARTITION} needs DEDUPLICATE BY"),
                "Add DEDUPLICATE BY (event_id) WITHIN INTERVAL '1 hour' behind the columns.",
            ),
        };
    };
    if create.watermark.is_none() {
        return refuse(
            "DEDUPLICATE BY needs a watermark: without one every id would be remembered for ever".into(),
            "Declare WATERMARK FOR ts AS ts - INTERVAL '10 seconds' among the columns.",
        );
    }
    let mut id = Vec::with_capacity(names.len());
    for name in names {
        let i = column(columns, name)?;
        let data_type = columns.field(i).data_type();
        if matches!(data_type, DataType::Float32 | DataType::Float64 | DataType::Interval(_)) {
            let message = format!("DEDUPLICATE BY \"{name}\": the column is of type {}", sql_name(data_type));
            let hint = "Its values may be equal and look different: declare the column VARCHAR, or use another one.";
            return Err(PlanError::TypeMismatch(Refusal::new(message).hint(hint)));
        }
        id.push(i);
    }
    let same_partition = same_partition.unwrap_or(false);
    Ok(Some(Deduplicate { columns: id, interval_us: *interval_us, same_partition }))
}

fn retention(value: &str) -> Result<i64, PlanError> {
    let micros = interval_us(value).map_err(|e| {
        let refusal = Refusal::new(format!("retention: {e}"));
        PlanError::Invalid(match e.hint() {
            Some(hint) => refusal.hint(hint),
            None => refusal.hint("Write it as '30 days' or the like."),
        })
    })?;
    if micros <= 0 {
        return Err(PlanError::invalid(format!("retention must be longer than zero: '{value}'")));
    }
    Ok(micros)
}

fn store_choice(value: &str) -> Result<StoreChoice, PlanError> {
    match value.to_ascii_lowercase().as_str() {
        "auto" => Ok(StoreChoice::Auto),
        "own" => Ok(StoreChoice::Own),
        "shared" => Ok(StoreChoice::Shared),
        _ => Err(PlanError::Invalid(
            Refusal::new(format!("store cannot be '{value}'")).hint("It is 'auto', 'own' or 'shared'."),
        )),
    }
}

/// The output's column names: those given, then the query's own. Each must be unique.
fn column_names(plan: &LogicalPlan, given: &[String]) -> Result<Vec<String>, PlanError> {
    let mut names = result_names(plan);
    if given.len() > names.len() {
        return Err(PlanError::Syntax(Refusal::new("more column names are specified than the query has columns")));
    }
    names[..given.len()].clone_from_slice(given);
    for (i, name) in names.iter().enumerate() {
        if names[..i].contains(name) {
            return Err(duplicate_column(name));
        }
    }
    Ok(names)
}
