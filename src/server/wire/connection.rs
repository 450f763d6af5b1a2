//! One client: its messages in, the session's answers out.
//!
//! A message is answered before the next is read. Rows are written as the session yields them and sent when 64 KiB wait, so a slow
//! client slows its own query and nothing else. After an error in the extended protocol everything up to Sync is passed over.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BufMut;
use pgwire::messages::PgWireFrontendMessage as Frontend;
use pgwire::messages::copy::{CopyData, CopyDone, CopyInResponse, CopyOutResponse};
use pgwire::messages::data::{FieldDescription, NoData, ParameterDescription, RowDescription};
use pgwire::messages::extendedquery::{
    Bind, BindComplete, Close, CloseComplete, Describe, Execute, Parse, ParseComplete, PortalSuspended,
    TARGET_TYPE_BYTE_STATEMENT,
};
use pgwire::messages::response::{
    CommandComplete, EmptyQueryResponse, ErrorResponse, NoticeResponse, ReadyForQuery, TransactionStatus,
};
use pgwire::messages::startup::ParameterStatus;

use super::transport::{ReadError, Transport};
use crate::server::copy::CopyOut;
use crate::server::copy_in::CopyIn;
use crate::server::encode::{Format, RowEncoder};
use crate::server::error::{Notice, NoticeLevel, PgError, Severity};
use crate::server::pg_type::PgColumn;
use crate::server::prepared::Prepared;
use crate::server::rows::RowStream;
use crate::server::session::{Response, Session, Status};
use crate::server::sqlstate as code;

/// How long a client that is sent away has to read why.
const FAREWELL: Duration = Duration::from_secs(2);
/// Texts of an error are cut to this many characters: a message may quote a value of any size.
const MAX_ERROR_CHARS: usize = 4_000;

/// A bound statement.
struct Portal {
    prepared: Arc<Prepared>,
    formats: Vec<Format>,
    state: PortalState,
}

enum PortalState {
    /// Bound and not yet run.
    Ready(Vec<datafusion::common::ScalarValue>),
    /// Running or suspended.
    Rows {
        rows: RowStream,
        encoder: RowEncoder,
    },
    Finished,
}

pub struct Connection {
    transport: Transport,
    session: Session,
    portals: HashMap<String, Portal>,
    /// Settings as the client was last told.
    reported: HashMap<&'static str, String>,
    /// An error happened, and its Sync has not come yet.
    skipping: bool,
}

/// Why a connection's loop ends before the client says so.
enum End {
    /// Tell the client.
    Fatal(PgError),
    /// Nobody is there to be told.
    Gone,
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> End {
        End::Gone
    }
}

impl From<ReadError> for End {
    fn from(error: ReadError) -> End {
        match error {
            ReadError::Protocol(error) => End::Fatal(error),
            ReadError::Closed => End::Gone,
        }
    }
}

/// What stops a statement: its own error, or the connection's end.
enum Stop {
    Error(PgError),
    End(End),
}

impl From<PgError> for Stop {
    fn from(error: PgError) -> Stop {
        match error.severity {
            Severity::Error => Stop::Error(error),
            Severity::Fatal => Stop::End(End::Fatal(error)),
        }
    }
}

impl<E: Into<End>> From<E> for Stop {
    fn from(error: E) -> Stop {
        Stop::End(error.into())
    }
}

impl Connection {
    pub fn new(transport: Transport, session: Session) -> Connection {
        Connection { transport, session, portals: HashMap::new(), reported: HashMap::new(), skipping: false }
    }

    /// Serves the client until it leaves, does not keep to the protocol, or the server stops.
    pub async fn run(mut self) {
        let end = match self.welcome().await {
            Ok(()) => self.serve().await,
            Err(end) => Err(end),
        };
        if let Err(End::Fatal(error)) = end {
            put_error(&mut self.transport, &error);
            // A client that does not read is left behind.
            let _late = tokio::time::timeout(FAREWELL, self.transport.flush()).await;
        }
        let _gone = self.transport.shutdown().await;
    }

    async fn welcome(&mut self) -> Result<(), End> {
        self.report_settings();
        self.ready().await
    }

    async fn serve(&mut self) -> Result<(), End> {
        let interrupt = Arc::clone(self.session.interrupt());
        loop {
            let in_block = self.session.status() != Status::Idle;
            let idle = self.session.settings().idle_timeout(in_block);
            let next = async {
                let read = self.transport.read();
                match idle {
                    Some(idle) => tokio::time::timeout(idle, read).await.map_err(|_| idle_too_long(in_block)),
                    None => Ok(read.await),
                }
            };
            let message = tokio::select! {
                message = next => message.map_err(End::Fatal)??,
                error = interrupt.terminated() => return Err(End::Fatal(error)),
            };
            match message {
                Frontend::Terminate(_) => return Ok(()),
                Frontend::Sync(_) => {
                    self.skipping = false;
                    self.finish_batch().await?;
                    self.ready().await?;
                }
                _ if self.skipping => {}
                Frontend::Query(query) => {
                    let result = self.simple_query(query.query.into()).await;
                    self.settle(result)?;
                    self.finish_batch().await?;
                    self.ready().await?;
                }
                // What a client still sends after an error in COPY means nothing.
                Frontend::CopyData(_) | Frontend::CopyDone(_) | Frontend::CopyFail(_) => {}
                Frontend::Flush(_) => self.transport.flush().await?,
                other => {
                    let result = self.extended(other).await;
                    self.skipping = self.settle(result)?;
                    if self.transport.is_full() || self.skipping {
                        self.transport.flush().await?;
                    }
                }
            }
        }
    }

    /// Tells the client of an error. True if there was one.
    fn settle(&mut self, result: Result<(), Stop>) -> Result<bool, End> {
        self.session.finish_statement();
        match result {
            Ok(()) => Ok(false),
            Err(Stop::Error(error)) => {
                self.session.fail();
                self.put_notices();
                put_error(&mut self.transport, &error);
                Ok(true)
            }
            Err(Stop::End(end)) => {
                self.session.fail();
                Err(end)
            }
        }
    }

    /// Commits what no BEGIN holds open. Portals live as long as their transaction.
    async fn finish_batch(&mut self) -> Result<(), End> {
        let result = self.session.finish_batch().await.map_err(Stop::from);
        self.settle(result)?;
        self.put_notices();
        if self.session.status() == Status::Idle {
            self.portals.clear();
        }
        Ok(())
    }

    async fn ready(&mut self) -> Result<(), End> {
        self.report_settings();
        let status = match self.session.status() {
            Status::Idle => TransactionStatus::Idle,
            Status::InBlock => TransactionStatus::Transaction,
            Status::Failed => TransactionStatus::Error,
        };
        self.transport.put(&ReadyForQuery::new(status));
        Ok(self.transport.flush().await?)
    }

    async fn simple_query(&mut self, text: Arc<str>) -> Result<(), Stop> {
        self.session.start_statement();
        let statements = self.session.parse(&text).await?;
        if statements.is_empty() {
            self.transport.put(&EmptyQueryResponse::new());
        }
        let count = statements.len();
        for (i, parsed) in statements.into_iter().enumerate() {
            self.session.start_statement();
            if parsed.parameters > 0 {
                return Err(PgError::new(code::UNDEFINED_PARAMETER, "there is no parameter $1").into());
            }
            let statement = Prepared::simple(Arc::clone(&text), parsed);
            let tag = match self.session.execute(&statement, Vec::new(), i + 1 == count).await? {
                Response::Rows(mut rows) => {
                    self.transport.put(&row_description(&rows.columns, &[]));
                    let formats = vec![Format::Text; rows.columns.len()];
                    let encoder = RowEncoder::new(&rows.columns, &formats, self.session.settings().style())?;
                    let (sent, _) = self.send_rows(&mut rows, &encoder, u64::MAX).await?;
                    rows.tag.with_rows(sent)
                }
                other => self.without_rows(other, i + 1 == count).await?,
            };
            self.complete(&tag);
        }
        Ok(())
    }

    /// The command tag of a response that is no rows, after what it asks for has been done.
    async fn without_rows(&mut self, response: Response, last: bool) -> Result<String, Stop> {
        match response {
            Response::Done(tag) => Ok(tag),
            Response::CopyIn(copy) => self.copy_in(*copy, last).await,
            Response::CopyOut(copy) => self.copy_out(*copy).await,
            Response::Rows(_) => Err(PgError::new(code::INTERNAL_ERROR, "a statement gave rows unexpectedly").into()),
        }
    }

    /// Notices come before the tag of the statement they belong to.
    fn complete(&mut self, tag: &str) {
        self.put_notices();
        self.transport.put(&CommandComplete::new(tag.to_string()));
    }

    /// Writes at most `most` rows. Gives their number, and whether `most` was reached.
    async fn send_rows(&mut self, rows: &mut RowStream, encoder: &RowEncoder, most: u64) -> Result<(u64, bool), Stop> {
        let columns = encoder.num_columns() as u16;
        let mut sent = 0;
        if rows.is_live() {
            self.session.interrupt().without_limit();
        }
        while sent < most {
            let portion = usize::try_from(most - sent).unwrap_or(usize::MAX);
            let next = if rows.is_live() {
                self.flush_guarded().await?;
                unless_gone(&self.transport, rows.next(portion)).await?
            } else {
                rows.next(portion).await?
            };
            let Some(batch) = next else { return Ok((sent, false)) };
            let batch = encoder.batch(&batch)?;
            for row in 0..batch.num_rows() {
                self.transport.put_raw(b'D', |out| {
                    out.put_u16(columns);
                    batch.put(row, out)
                })?;
                if self.transport.is_full() {
                    self.flush_guarded().await?;
                }
            }
            sent += batch.num_rows() as u64;
        }
        Ok((sent, true))
    }

    /// Sends what waits, unless the statement is stopped while the client does not read.
    async fn flush_guarded(&mut self) -> Result<(), Stop> {
        let interrupt = Arc::clone(self.session.interrupt());
        interrupt.guard(async { Ok(self.transport.flush().await) }).await??;
        Ok(())
    }

    async fn extended(&mut self, message: Frontend) -> Result<(), Stop> {
        match message {
            Frontend::Parse(parse) => self.parse(parse).await,
            Frontend::Bind(bind) => self.bind(bind),
            Frontend::Describe(describe) => self.describe(describe),
            Frontend::Execute(execute) => self.execute(execute).await,
            Frontend::Close(close) => {
                self.close(close);
                Ok(())
            }
            _ => Err(PgError::new(code::PROTOCOL_VIOLATION, "unexpected message").fatal().into()),
        }
    }

    async fn parse(&mut self, message: Parse) -> Result<(), Stop> {
        self.session.start_statement();
        let name = message.name.unwrap_or_default();
        let prepared = self.session.prepare(message.query.into(), &message.type_oids).await?;
        self.session.keep_prepared(name, prepared)?;
        self.transport.put(&ParseComplete::new());
        Ok(())
    }

    fn bind(&mut self, message: Bind) -> Result<(), Stop> {
        let prepared = self.session.prepared_now(message.statement_name.as_deref().unwrap_or_default())?;
        let name = message.portal_name.unwrap_or_default();
        let count = prepared.parameters.len();
        if message.parameters.len() != count {
            return Err(protocol(format!(
                "bind message supplies {} parameters, but prepared statement \"{}\" requires {count}",
                message.parameters.len(),
                message.statement_name.unwrap_or_default(),
            )));
        }
        let formats = formats(&message.parameter_format_codes, count).ok_or_else(|| {
            protocol(format!(
                "bind message has {} parameter formats but {count} parameters",
                message.parameter_format_codes.len()
            ))
        })?;
        let parameters = self.session.decode_parameters(&prepared, &message.parameters, &formats)?;
        let columns = prepared.columns.as_ref().map_or(0, |columns| columns.len());
        let formats = self::formats(&message.result_column_format_codes, columns).ok_or_else(|| {
            protocol(format!(
                "bind message has {} result formats but query has {columns} columns",
                message.result_column_format_codes.len()
            ))
        })?;
        if !name.is_empty() && self.portals.contains_key(&name) {
            return Err(PgError::new(code::DUPLICATE_CURSOR, format!("cursor \"{name}\" already exists")).into());
        }
        self.portals.insert(name, Portal { prepared, formats, state: PortalState::Ready(parameters) });
        self.transport.put(&BindComplete::new());
        Ok(())
    }

    fn describe(&mut self, message: Describe) -> Result<(), Stop> {
        let name = message.name.unwrap_or_default();
        let (columns, formats) = if message.target_type == TARGET_TYPE_BYTE_STATEMENT {
            let prepared = self.session.prepared(&name)?;
            let types = prepared.parameters.iter().map(|pg_type| pg_type.oid).collect();
            self.transport.put(&ParameterDescription::new(types));
            (prepared.columns.clone(), Vec::new())
        } else {
            let portal = self.portals.get(&name).ok_or_else(|| no_portal(&name))?;
            (portal.prepared.columns.clone(), portal.formats.clone())
        };
        match columns {
            Some(columns) => self.transport.put(&row_description(&columns, &formats)),
            None => self.transport.put(&NoData::new()),
        }
        Ok(())
    }

    async fn execute(&mut self, message: Execute) -> Result<(), Stop> {
        let name = message.name.unwrap_or_default();
        let mut portal = self.portals.remove(&name).ok_or_else(|| no_portal(&name))?;
        self.session.start_statement();
        let result = self.execute_portal(&mut portal, message.max_rows).await;
        if result.is_ok() {
            self.portals.insert(name, portal);
        }
        result
    }

    async fn execute_portal(&mut self, portal: &mut Portal, max_rows: i32) -> Result<(), Stop> {
        if portal.prepared.parsed.is_none() {
            self.transport.put(&EmptyQueryResponse::new());
            return Ok(());
        }
        if let PortalState::Ready(parameters) = &mut portal.state {
            let parameters = std::mem::take(parameters);
            let last = self.transport.sync_is_next();
            let response = self.session.execute(&portal.prepared, parameters, last).await?;
            portal.state = match response {
                Response::Rows(rows) => {
                    if portal.prepared.columns.as_deref() != Some(&rows.columns[..]) {
                        return Err(PgError::unsupported("cached plan must not change result type").into());
                    }
                    let encoder = RowEncoder::new(&rows.columns, &portal.formats, self.session.settings().style())?;
                    PortalState::Rows { rows, encoder }
                }
                other => {
                    portal.state = PortalState::Finished;
                    let tag = self.without_rows(other, last).await?;
                    self.complete(&tag);
                    return Ok(());
                }
            };
        }
        let PortalState::Rows { rows, encoder } = &mut portal.state else {
            return Err(PgError::new(code::OBJECT_NOT_IN_PREREQUISITE_STATE, "portal cannot be run again").into());
        };
        let most = u64::try_from(max_rows).ok().filter(|most| *most > 0).unwrap_or(u64::MAX);
        let (sent, more) = self.send_rows(rows, encoder, most).await?;
        if more {
            self.put_notices();
            self.transport.put(&PortalSuspended::new());
        } else {
            let tag = rows.tag.with_rows(sent);
            self.complete(&tag);
        }
        Ok(())
    }

    fn close(&mut self, message: Close) {
        let name = message.name.unwrap_or_default();
        if message.target_type == TARGET_TYPE_BYTE_STATEMENT {
            self.session.forget_prepared(&name);
        } else {
            self.portals.remove(&name);
        }
        self.transport.put(&CloseComplete::new());
    }

    async fn copy_in(&mut self, mut copy: CopyIn, last: bool) -> Result<String, Stop> {
        let columns = copy.num_columns();
        self.transport.put(&CopyInResponse::new(0, columns as i16, vec![0; columns]));
        self.flush_guarded().await?;
        let interrupt = Arc::clone(self.session.interrupt());
        loop {
            match interrupt.guard(async { Ok(self.transport.read().await) }).await?? {
                Frontend::CopyData(data) => copy.push(&data.data)?,
                Frontend::CopyDone(_) => break,
                Frontend::CopyFail(fail) => {
                    let message = format!("COPY from stdin failed: {}", fail.message);
                    return Err(PgError::new(code::QUERY_CANCELED, message).into());
                }
                // A client may send Sync together with Execute, before it knows that data is awaited.
                Frontend::Flush(_) | Frontend::Sync(_) => {}
                Frontend::Terminate(_) => return Err(Stop::End(End::Gone)),
                _ => {
                    let error = PgError::new(code::PROTOCOL_VIOLATION, "unexpected message during COPY from stdin");
                    return Err(error.fatal().into());
                }
            }
        }
        Ok(self.session.finish_copy(copy, last).await?)
    }

    async fn copy_out(&mut self, mut copy: CopyOut) -> Result<String, Stop> {
        let columns = copy.num_columns();
        self.transport.put(&CopyOutResponse::new(0, columns as i16, vec![0; columns]));
        let is_live = copy.is_live();
        loop {
            let next = if is_live {
                self.flush_guarded().await?;
                unless_gone(&self.transport, copy.next()).await?
            } else {
                copy.next().await?
            };
            let Some(lines) = next else { break };
            for line in lines {
                self.transport.put(&CopyData::new(line));
                if self.transport.is_full() {
                    self.flush_guarded().await?;
                }
            }
        }
        self.transport.put(&CopyDone::new());
        Ok(copy.tag())
    }

    fn put_notices(&mut self) {
        for notice in self.session.take_notices() {
            self.transport.put(&notice_response(notice));
        }
    }

    /// Tells the client of settings that are not what it was last told.
    fn report_settings(&mut self) {
        let settings = self.session.settings();
        for (name, value) in settings.reported() {
            if self.reported.get(name).is_none_or(|told| told != value) {
                self.transport.put(&ParameterStatus::new(name.to_string(), value.to_string()));
                self.reported.insert(name, value.to_string());
            }
        }
    }
}

/// What may not come for long, unless the client leaves meanwhile.
async fn unless_gone<T>(transport: &Transport, work: impl Future<Output = Result<T, PgError>>) -> Result<T, Stop> {
    tokio::select! {
        biased;
        result = work => Ok(result?),
        () = transport.client_leaves() => Err(Stop::End(End::Gone)),
    }
}

fn protocol(message: String) -> Stop {
    PgError::new(code::PROTOCOL_VIOLATION, message).into()
}

fn no_portal(name: &str) -> PgError {
    PgError::new(code::INVALID_CURSOR_NAME, format!("portal \"{name}\" does not exist"))
}

fn idle_too_long(in_block: bool) -> PgError {
    if in_block {
        let message = "terminating connection due to idle-in-transaction timeout";
        PgError::new(code::IDLE_IN_TRANSACTION_SESSION_TIMEOUT, message).fatal()
    } else {
        PgError::new(code::IDLE_SESSION_TIMEOUT, "terminating connection due to idle-session timeout").fatal()
    }
}

/// One format for each of `count` values: none given means text for all, one is that of all.
fn formats(codes: &[i16], count: usize) -> Option<Vec<Format>> {
    let format = |code: &i16| match code {
        0 => Some(Format::Text),
        1 => Some(Format::Binary),
        _ => None,
    };
    match codes {
        [] => Some(vec![Format::Text; count]),
        [code] => Some(vec![format(code)?; count]),
        codes if codes.len() == count => codes.iter().map(format).collect(),
        _ => None,
    }
}

fn row_description(columns: &[PgColumn], formats: &[Format]) -> RowDescription {
    let field = |(i, column): (usize, &PgColumn)| {
        let format = i16::from(formats.get(i) == Some(&Format::Binary));
        let pg_type = column.pg_type;
        FieldDescription::new(column.name.clone(), 0, 0, pg_type.oid, pg_type.len, column.modifier, format)
    };
    RowDescription::new(columns.iter().enumerate().map(field).collect())
}

pub fn put_error(transport: &mut Transport, error: &PgError) {
    let severity = match error.severity {
        Severity::Error => "ERROR",
        Severity::Fatal => "FATAL",
    };
    let mut fields = vec![
        (b'S', severity.to_string()),
        (b'V', severity.to_string()),
        (b'C', error.code.to_string()),
        (b'M', cut(&error.message)),
    ];
    fields.extend(error.detail.as_deref().map(|detail| (b'D', cut(detail))));
    fields.extend(error.hint.as_deref().map(|hint| (b'H', cut(hint))));
    fields.extend(error.position.map(|position| (b'P', position.to_string())));
    fields.extend(error.context.as_deref().map(|context| (b'W', cut(context))));
    transport.put(&ErrorResponse::new(fields));
}

fn notice_response(notice: Notice) -> NoticeResponse {
    let severity = match notice.level {
        NoticeLevel::Notice => "NOTICE",
        NoticeLevel::Warning => "WARNING",
    };
    NoticeResponse::new(vec![
        (b'S', severity.to_string()),
        (b'V', severity.to_string()),
        (b'C', notice.code.to_string()),
        (b'M', cut(&notice.message)),
    ])
}

/// Without zero bytes, which would end the text early.
fn cut(text: &str) -> String {
    text.chars().filter(|c| *c != '\0').take(MAX_ERROR_CHARS).collect()
}
