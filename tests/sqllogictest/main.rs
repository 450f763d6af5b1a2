//! Runs every `*.slt` beside this file over a real connection, once by the simple and once by the extended protocol (results in
//! binary, shown as text by [`text`]). Each run has an engine and a server of its own in this process, on a free port.
//!
//! `cargo test --test sqllogictest -- windows` runs the files whose name contains `windows`. To write results into a file
//! instead of comparing them, set `SLT_UPDATE=1`; then read the difference.

mod text;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use async_trait::async_trait;
use riverrun::engine::{Engine, EngineOptions};
use riverrun::server::{Server, ServerOptions};
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Runner};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use text::Text;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Simple,
    Extended,
}

struct Connection {
    client: Client,
    protocol: Protocol,
}

/// An error as a test file sees it: `42P01: message`, with the hint on a line of its own.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Failure {
    text: String,
    sqlstate: Option<String>,
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(db) = error.as_db_error() else {
            return Failure { text: error.to_string(), sqlstate: None };
        };
        let detail = db.detail().map(|detail| format!("\ndetail: {detail}")).unwrap_or_default();
        let hint = db.hint().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
        let text = format!("{}: {}{detail}{hint}", db.code().code(), db.message());
        Failure { text, sqlstate: Some(db.code().code().to_string()) }
    }
}

impl Connection {
    async fn simple(&self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Failure> {
        let (mut columns, mut rows, mut count) = (None, Vec::new(), 0);
        for message in self.client.simple_query(sql).await? {
            match message {
                SimpleQueryMessage::RowDescription(description) => {
                    columns = Some(description.len());
                    rows.clear();
                }
                SimpleQueryMessage::Row(row) => {
                    rows.push((0..row.len()).map(|i| show(row.get(i).map(str::to_string))).collect());
                }
                SimpleQueryMessage::CommandComplete(rows) => count = rows,
                _ => {}
            }
        }
        Ok(match columns {
            Some(columns) => DBOutput::Rows { types: vec![DefaultColumnType::Any; columns], rows },
            None => DBOutput::StatementComplete(count),
        })
    }

    async fn extended(&self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Failure> {
        let statement = self.client.prepare(sql).await?;
        if statement.columns().is_empty() {
            return Ok(DBOutput::StatementComplete(self.client.execute(&statement, &[]).await?));
        }
        let mut rows = Vec::new();
        for row in self.client.query(&statement, &[]).await? {
            let values: Result<Vec<Option<Text>>, _> = (0..row.len()).map(|i| row.try_get(i)).collect();
            rows.push(values?.into_iter().map(|value| show(value.map(|text| text.0))).collect());
        }
        Ok(DBOutput::Rows { types: vec![DefaultColumnType::Any; statement.columns().len()], rows })
    }
}

fn show(value: Option<String>) -> String {
    match value.as_deref() {
        None => "NULL".into(),
        Some("") => "(empty)".into(),
        // A row is a line.
        Some(text) => text.replace('\n', "⏎"),
    }
}

#[async_trait]
impl AsyncDB for Connection {
    type Error = Failure;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Failure> {
        match self.protocol {
            Protocol::Simple => self.simple(sql).await,
            Protocol::Extended => self.extended(sql).await,
        }
    }

    async fn shutdown(&mut self) {}

    fn engine_name(&self) -> &str {
        match self.protocol {
            Protocol::Simple => "simple",
            Protocol::Extended => "extended",
        }
    }

    fn error_sql_state(error: &Failure) -> Option<String> {
        error.sqlstate.clone()
    }
}

async fn connect(port: u16, protocol: Protocol) -> Result<Connection, Failure> {
    let config = format!("host=127.0.0.1 port={port} user=tester dbname=dev");
    let (client, connection) = tokio_postgres::connect(&config, NoTls).await?;
    // What goes wrong on the way, the statement under way reports.
    tokio::spawn(connection);
    Ok(Connection { client, protocol })
}

async fn run(file: &Path, protocol: Protocol) -> Result<(), String> {
    let engine =
        Engine::start(EngineOptions { workers: 2, ..EngineOptions::default() }).map_err(|error| error.to_string())?;
    let options = ServerOptions { listen: ([127, 0, 0, 1], 0).into(), ..ServerOptions::default() };
    let server = Server::start(engine.clone(), options).await.map_err(|error| error.to_string())?;
    let port = server.address().port();

    let mut runner = Runner::new(move || connect(port, protocol));
    let result = if std::env::var_os("SLT_UPDATE").is_some() {
        runner
            .update_test_file(
                file,
                "\t",
                sqllogictest::default_validator,
                sqllogictest::default_normalizer,
                sqllogictest::default_column_validator,
            )
            .await
            .map_err(|error| error.to_string())
    } else {
        runner.run_file_async(file).await.map_err(|error| error.display(false).to_string())
    };
    runner.shutdown_async().await;
    drop(runner);
    server.stop().await;
    engine.stop().await;
    result
}

fn main() -> ExitCode {
    let filters: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sqllogictest");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("the folder of test files")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "slt"))
        .filter(|path| filters.is_empty() || filters.iter().any(|filter| path.to_string_lossy().contains(filter)))
        .collect();
    files.sort();

    // Statements run on threads with the stack that the server's have.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_stack_size(16 << 20)
        .enable_all()
        .build()
        .expect("a runtime");
    let protocols: &[Protocol] = if std::env::var_os("SLT_UPDATE").is_some() {
        &[Protocol::Simple]
    } else {
        &[Protocol::Simple, Protocol::Extended]
    };
    println!("\nrunning {} tests", files.len() * protocols.len());
    let mut failures = Vec::new();
    for file in &files {
        for &protocol in protocols {
            let name =
                format!("{} ({protocol:?})", file.file_stem().unwrap_or_default().to_string_lossy()).to_lowercase();
            // On a thread of the runtime, so that a panic is one failure.
            let (path, handle) = (file.clone(), runtime.handle());
            let outcome = runtime.block_on(handle.spawn(async move { run(&path, protocol).await }));
            match outcome.unwrap_or_else(|panic| Err(panic.to_string())) {
                Ok(()) => println!("test {name} ... ok"),
                Err(error) => {
                    println!("test {name} ... FAILED");
                    failures.push(format!("---- {name} ----\n{error}\n"));
                }
            }
        }
    }
    let failed = failures.len();
    if failed > 0 {
        println!("\nfailures:\n\n{}", failures.join("\n"));
    }
    let verdict = if failed > 0 { "FAILED" } else { "ok" };
    println!("\ntest result: {verdict}. {} passed; {failed} failed\n", files.len() * protocols.len() - failed);
    if failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
