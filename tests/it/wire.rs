//! The server over TCP: tokio-postgres as a client that binds and reads in binary, and raw bytes where a client would not dare.

use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;
use std::time::{Duration, UNIX_EPOCH};

use futures::{SinkExt, StreamExt, TryStreamExt, future, stream};
use riverrun::engine::{Engine, EngineOptions};
use riverrun::server::{Server, ServerOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::error::{ErrorPosition, SqlState};
use tokio_postgres::{AsyncMessage, Client, NoTls, SimpleQueryMessage};

/// An engine and its server on a free port.
struct Running {
    engine: Engine,
    server: Server,
    address: SocketAddr,
}

impl Running {
    async fn start(options: ServerOptions) -> Running {
        let engine = Engine::start(EngineOptions { workers: 1, ..EngineOptions::default() }).expect("an engine");
        let listen = ([127, 0, 0, 1], 0).into();
        let server = Server::start(engine.clone(), ServerOptions { listen, ..options }).await.expect("a server");
        Running { address: server.address(), engine, server }
    }

    fn url(&self) -> String {
        format!("host={} port={} user=tester", self.address.ip(), self.address.port())
    }

    async fn client(&self) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.url(), NoTls).await.expect("a connection");
        tokio::spawn(connection);
        client
    }

    async fn stop(self) {
        self.server.stop().await;
        self.engine.stop().await;
    }
}

/// Runs a test against a server of its own.
async fn with_server<F: Future<Output = ()>>(test: impl FnOnce(Client, String) -> F) {
    let running = Running::start(ServerOptions::default()).await;
    let client = running.client().await;
    test(client, running.url()).await;
    running.stop().await;
}

fn code(error: &tokio_postgres::Error) -> &str {
    error.code().map_or("no code", SqlState::code)
}

async fn count(client: &Client, table: &str) -> i64 {
    client.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.expect("a count").get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_and_results_in_binary() {
    with_server(|client, _| async move {
        client
            .batch_execute(
                "CREATE TABLE t (k BIGINT PRIMARY KEY, i INT, s SMALLINT, f REAL, d DOUBLE PRECISION, b BOOLEAN, v VARCHAR,
                 raw BYTEA, ts TIMESTAMPTZ)",
            )
            .await
            .expect("a table");
        let insert = client.prepare("INSERT INTO t VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)").await.expect("prepared");
        let types: Vec<&str> = insert.params().iter().map(|t| t.name()).collect();
        assert_eq!(types, ["int8", "int4", "int2", "float4", "float8", "bool", "text", "bytea", "timestamptz"]);
        let moment = UNIX_EPOCH + Duration::from_micros(1_767_322_845_123_456);
        let rows = client
            .execute(&insert, &[&1i64, &-2i32, &3i16, &1.5f32, &0.1f64, &true, &"späß", &&b"\0\xff"[..], &moment])
            .await;
        assert_eq!(rows.expect("inserted"), 1);
        let none: Option<i32> = None;
        client.execute("INSERT INTO t (k, i) VALUES ($1, $2)", &[&2i64, &none]).await.expect("inserted");

        let row = client.query_one("SELECT * FROM t WHERE k = $1", &[&1i64]).await.expect("a row");
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i32>(1), row.get::<_, i16>(2)), (1, -2, 3));
        assert_eq!((row.get::<_, f32>(3), row.get::<_, f64>(4), row.get::<_, bool>(5)), (1.5, 0.1, true));
        assert_eq!((row.get::<_, &str>(6), row.get::<_, &[u8]>(7)), ("späß", &b"\0\xff"[..]));
        assert_eq!(row.get::<_, std::time::SystemTime>(8), moment);

        let rows = client.query("SELECT k FROM t WHERE k = ANY($1) ORDER BY k", &[&vec![1i64, 2, 3]]).await.expect("rows");
        assert_eq!(rows.iter().map(|row| row.get::<_, i64>(0)).collect::<Vec<_>>(), [1, 2]);
        let typed = client.prepare_typed("SELECT $1 + 1", &[tokio_postgres::types::Type::INT4]).await.expect("prepared");
        assert_eq!(client.query_one(&typed, &[&41i32]).await.expect("a row").get::<_, i64>(0), 42);
        let untyped = client.query_one("SELECT $1", &[&"text"]).await.expect("a row");
        assert_eq!(untyped.get::<_, &str>(0), "text");

        let wrong = client.query("SELECT k FROM t WHERE k = $1", &[&"x"]).await.expect_err("no bigint");
        assert!(wrong.source().is_some(), "the client itself knows better: {wrong}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_is_described_before_it_runs() {
    with_server(|client, _| async move {
        client.batch_execute("CREATE TABLE t (n NUMERIC(10,2), ts TIMESTAMP)").await.expect("a table");
        for (text, expected) in [
            ("SELECT *, count(*) OVER () FROM t", "n numeric, ts timestamp, count int8"),
            ("SELECT 1 AS a, 'x', NULL, ARRAY[1]", "a int8, ?column? text, ?column? text, array _int8"),
            ("SHOW TimeZone", "TimeZone text"),
            ("EXPLAIN SELECT 1", "QUERY PLAN text"),
            ("DESCRIBE t", "column text, type text, nullable text, note text"),
            ("INSERT INTO t VALUES (1, NULL)", ""),
            ("BEGIN", ""),
            ("", ""),
        ] {
            let statement = client.prepare(text).await.expect(text);
            let columns: Vec<String> =
                statement.columns().iter().map(|c| format!("{} {}", c.name(), c.type_().name())).collect();
            assert_eq!(columns.join(", "), expected, "{text}");
        }
        // A plan whose columns have changed since is refused, and can be prepared again.
        let old = client.prepare("SELECT * FROM t").await.expect("prepared");
        client.batch_execute("DROP TABLE t; CREATE TABLE t (x INT)").await.expect("another table");
        assert_eq!(code(&client.query(&old, &[]).await.expect_err("another shape")), "0A000");
        assert_eq!(client.query("SELECT * FROM t", &[]).await.expect("rows").len(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_portal_is_suspended_and_goes_on() {
    with_server(|mut client, _| async move {
        client.batch_execute("CREATE TABLE t (k INT)").await.expect("a table");
        client.batch_execute("INSERT INTO t VALUES (1), (2), (3), (4), (5)").await.expect("rows");
        let block = client.transaction().await.expect("a block");
        let portal = block.bind("SELECT k FROM t ORDER BY k", &[]).await.expect("a portal");
        let mut portions = Vec::new();
        for most in [2, 2, 2, 2] {
            let rows = block.query_portal(&portal, most).await.expect("rows");
            portions.push(rows.iter().map(|row| row.get::<_, i32>(0)).collect::<Vec<_>>());
        }
        assert_eq!(portions, [vec![1, 2], vec![3, 4], vec![5], vec![]]);
        // The portal keeps its version while the block writes.
        let portal = block.bind("SELECT k FROM t ORDER BY k", &[]).await.expect("a portal");
        assert_eq!(block.query_portal(&portal, 1).await.expect("rows").len(), 1);
        block.execute("DELETE FROM t", &[]).await.expect("deleted");
        assert_eq!(block.query_portal(&portal, 0).await.expect("rows").len(), 4);
        block.rollback().await.expect("rolled back");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_together_is_done_together_or_not_at_all() {
    with_server(|client, _| async move {
        client.batch_execute("CREATE TABLE t (k INT PRIMARY KEY)").await.expect("a table");
        let error = client.batch_execute("INSERT INTO t VALUES (1); INSERT INTO t VALUES (2); SELECT 1 / 0").await;
        assert_eq!(code(&error.expect_err("a division by zero")), "22012");
        assert_eq!(count(&client, "t").await, 0);
        client.batch_execute("INSERT INTO t VALUES (1); INSERT INTO t VALUES (2)").await.expect("inserted");
        assert_eq!(count(&client, "t").await, 2);
        let messages = client.simple_query("INSERT INTO t VALUES (3); SELECT count(*) FROM t").await.expect("both");
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        assert_eq!(rows.collect::<Vec<_>>(), ["3"]);
        let error = client.batch_execute("INSERT INTO t VALUES (4); CREATE TABLE u (x INT)").await;
        assert_eq!(code(&error.expect_err("DDL after DML")), "25001");
        assert_eq!(count(&client, "t").await, 3);
        // A duplicate is found out at the end, and undoes the rest.
        let error = client.batch_execute("INSERT INTO t VALUES (5); INSERT INTO t VALUES (3); SELECT 1").await;
        assert_eq!(code(&error.expect_err("a duplicate")), "23505");
        assert_eq!(count(&client, "t").await, 3);

        // Pipelined: each has its own Sync.
        let insert = client.prepare("INSERT INTO t VALUES ($1)").await.expect("prepared");
        let inserts = (10..60).map(|k: i32| {
            let (client, insert) = (&client, insert.clone());
            async move { client.execute(&insert, &[&k]).await }
        });
        let inserted = future::join_all(inserts).await;
        assert!(inserted.iter().all(|result| matches!(result, Ok(1))), "{inserted:?}");
        assert_eq!(count(&client, "t").await, 53);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_code_and_position_and_the_session_goes_on() {
    with_server(|client, _| async move {
        client.batch_execute("CREATE TABLE t (k INT)").await.expect("a table");
        let check = async |text: &str, expected_code: &str, position: Option<u32>| {
            let error = client.query(text, &[]).await.expect_err(text);
            let told = error.as_db_error().and_then(|error| error.position()).map(|position| match position {
                ErrorPosition::Original(at) => *at,
                ErrorPosition::Internal { position, .. } => *position,
            });
            assert_eq!((code(&error), told), (expected_code, position), "{text}");
            assert_eq!(client.query_one("SELECT 1", &[]).await.expect("a row").get::<_, i64>(0), 1);
        };
        check("SELEC", "42601", Some(1)).await;
        check("SELECT k,\n  missing FROM t", "42703", Some(13)).await;
        check("SELECT * FROM nothing", "42P01", Some(15)).await;
        check("SELECT 1; SELECT 2", "42601", None).await;
        check("SELECT 1 / 0", "22012", None).await;
        check("SELECT 'x'::int", "22P02", None).await;
        let wrong = client.query("SELECT $2", &[&1i32]).await.expect_err("one parameter only");
        assert!(wrong.to_string().contains("parameter"), "{wrong}");
    })
    .await;
}

/// As clients do that prepare by themselves what they run often.
#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_fetch_reads_whatever_has_the_name() {
    with_server(|client, _| async move {
        client.batch_execute("BEGIN; DECLARE c CURSOR FOR SELECT 1::INT AS a").await.expect("a cursor");
        let fetch = client.prepare("FETCH ALL FROM c").await.expect("prepared");
        assert_eq!(client.query_one(&fetch, &[]).await.expect("a row").get::<_, i32>(0), 1);
        client.batch_execute("ROLLBACK; BEGIN; DECLARE c CURSOR FOR SELECT 2::INT AS b").await.expect("another cursor");
        assert_eq!(client.query_one(&fetch, &[]).await.expect("a row").get::<_, i32>(0), 2);
        client.batch_execute("ROLLBACK").await.expect("an end");
        let error = client.query(&fetch, &[]).await.expect_err("no cursor");
        assert_eq!(code(&error), "34000");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_is_cancelled_and_has_its_time() {
    with_server(|client, _| async move {
        client.batch_execute("CREATE TABLE t (k INT)").await.expect("a table");
        let values: Vec<String> = (0..2_000).map(|k| format!("({k})")).collect();
        client.batch_execute(&format!("INSERT INTO t VALUES {}", values.join(","))).await.expect("rows");
        let endless = "SELECT count(*) FROM t a, t b, t c, t d WHERE a.k + b.k + c.k + d.k > 0";

        let token = client.cancel_token();
        let mut running = Box::pin(client.query(endless, &[]));
        let error = loop {
            // A request that comes too early means nothing, so it is sent until it is heard.
            let cancel = token.cancel_query(NoTls);
            match future::select(&mut running, Box::pin(cancel)).await {
                future::Either::Left((result, _)) => break result.expect_err("it was cancelled"),
                future::Either::Right((cancelled, _)) => cancelled.expect("the request was sent"),
            }
        };
        drop(running);
        assert_eq!(code(&error), "57014");

        client.batch_execute("SET statement_timeout = '50ms'").await.expect("set");
        let error = client.query(endless, &[]).await.expect_err("too slow");
        assert_eq!(
            (code(&error), error.as_db_error().map(|e| e.message())),
            ("57014", Some("canceling statement due to statement timeout"))
        );
        client.batch_execute("SET statement_timeout = 0").await.expect("set");

        // Rows stream: the first are here long before the last.
        let rows = client.query_raw("SELECT a.k FROM t a, t b, t c", stream_of_nothing()).await.expect("a stream");
        let first: Vec<_> = Box::pin(rows).take(3).try_collect().await.expect("three rows");
        assert_eq!(first.len(), 3);
    })
    .await;
}

fn stream_of_nothing() -> Vec<i32> {
    Vec::new()
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_in_and_out() {
    with_server(|client, _| async move {
        client.batch_execute("CREATE TABLE t (k INT PRIMARY KEY, v VARCHAR DEFAULT 'none')").await.expect("a table");
        let copy = async |statement: &str, parts: Vec<&'static [u8]>| {
            let sink = client.copy_in::<_, &[u8]>(statement).await?;
            let mut sink = Box::pin(sink);
            sink.send_all(&mut stream::iter(parts.into_iter().map(Ok))).await?;
            sink.as_mut().finish().await
        };
        assert_eq!(copy("COPY t FROM STDIN", vec![b"1\to", b"ne\n2\t\\N\n"]).await.expect("copied"), 2);
        assert_eq!(copy("COPY t (k) FROM STDIN WITH (FORMAT csv, HEADER)", vec![b"k\n3\n"]).await.expect("copied"), 1);
        let error = copy("COPY t FROM STDIN", vec![b"4\tx\nfive\ty\n"]).await.expect_err("no integer");
        assert_eq!(code(&error), "22P02");
        let place = error.as_db_error().and_then(|error| error.where_());
        assert_eq!(place, Some("COPY public.t, line 2, column k: \"five\""));
        let error = copy("COPY t FROM STDIN", vec![b"1\tagain\n"]).await.expect_err("a duplicate");
        assert_eq!(code(&error), "23505");
        let dropped = client.copy_in::<_, &[u8]>("COPY t FROM STDIN").await.expect("a sink");
        drop(dropped);

        let out = client.copy_out("COPY (SELECT * FROM t ORDER BY k) TO STDOUT").await.expect("a stream");
        let bytes: Vec<u8> = out.map_ok(|part| part.to_vec()).try_concat().await.expect("lines");
        assert_eq!(String::from_utf8_lossy(&bytes), "1\tone\n2\t\\N\n3\tnone\n");
        let out = client.copy_out("COPY t (v) TO STDOUT (FORMAT csv, NULL 'nil')").await.expect("a stream");
        let bytes: Vec<u8> = out.map_ok(|part| part.to_vec()).try_concat().await.expect("lines");
        assert_eq!(String::from_utf8_lossy(&bytes).lines().count(), 3);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn notices_come_with_their_statement() {
    let running = Running::start(ServerOptions::default()).await;
    let (client, mut connection) = tokio_postgres::connect(&running.url(), NoTls).await.expect("a connection");
    let (send, mut notices) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = future::poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notice(notice) = message {
                let _ = send.send(format!("{}: {}", notice.severity(), notice.message()));
            }
        }
    });
    client.batch_execute("DROP TABLE IF EXISTS nothing; COMMIT").await.expect("nothing to do");
    assert_eq!(notices.recv().await.as_deref(), Some("NOTICE: table \"nothing\" does not exist, skipping"));
    assert_eq!(notices.recv().await.as_deref(), Some("WARNING: there is no transaction in progress"));
    drop(client);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_come_in_and_when_they_must_leave() {
    let running = Running::start(ServerOptions { max_connections: 2, ..ServerOptions::default() }).await;
    let first = running.client().await;
    assert_eq!(first.query_one("SELECT current_database()", &[]).await.expect("a row").get::<_, String>(0), "dev");
    let refused = async |url: String| {
        let error = tokio_postgres::connect(&url, NoTls).await.err().expect("refused");
        code(&error).to_string()
    };
    assert_eq!(refused(format!("{} dbname=nothing", running.url())).await, "3D000");
    assert_eq!(refused(format!("{} options='-c nothing=1'", running.url())).await, "42704");
    let second = running.client().await;
    assert_eq!(refused(running.url()).await, "53300");
    drop(second);

    let elsewhere = Server::start(
        running.engine.clone(),
        ServerOptions { listen: ([0, 0, 0, 0], 0).into(), ..ServerOptions::default() },
    );
    assert!(elsewhere.await.err().is_some_and(|error| error.to_string().contains("loopback")));

    let (stopped, error) = future::join(running.stop(), async {
        loop {
            if let Err(error) = first.query("SELECT 1", &[]).await {
                break error;
            }
        }
    })
    .await;
    let () = stopped;
    assert!(error.is_closed() || code(&error) == "57P01", "{error:?}");
}

/// What the server answers to bytes, until it closes.
async fn answer(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(bytes).await.expect("sent");
    stream.shutdown().await.expect("half closed");
    let mut answer = Vec::new();
    // A server that resets the connection has answered too.
    let _reset = stream.read_to_end(&mut answer).await;
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_bytes_end_one_connection_and_no_more() {
    let running =
        Running::start(ServerOptions { http: Some(([127, 0, 0, 1], 0).into()), ..ServerOptions::default() }).await;
    let startup = &b"\x00\x00\x00\x11\x00\x03\x00\x00user\0me\0\0"[..];
    assert_eq!(answer(running.address, b"\x00\x00\x00\x08\x04\xd2\x16\x2f").await, b"N");
    for (bytes, told) in [
        (&b"\x00\x00\x00\x04"[..], "invalid length of startup packet"),
        (b"\xff\xff\xff\xff\x00\x03\x00\x00", "invalid length of startup packet"),
        (b"\x00\x00\x00\x0c\x00\x03\x00\x00user", "invalid"),
        (b"\x00\x00\x00\x09\x00\x02\x00\x00\x00", "version 3"),
        (b"\x00\x00\x00\x09\x00\x03\x00\x00\x00", "no PostgreSQL user name"),
        (b"GET / HTTP/1.1\r\n\r\n", "invalid length of startup packet"),
    ] {
        let answer = String::from_utf8_lossy(&answer(running.address, bytes).await).into_owned();
        assert!(answer.contains("FATAL") && answer.contains(told), "{bytes:?}: {answer}");
    }
    for (message, told) in [
        (&b"Q\x00\x00\x00\x03"[..], "invalid message length"),
        (b"Q\x7f\xff\xff\xff", "too long"),
        (b"Q\x00\x00\x00\x0cselect 1", "invalid string"),
        (b"Q\x00\x00\x00\x07\xff\xfe\0", "invalid byte sequence"),
        (b"!\x00\x00\x00\x04", "invalid frontend message type"),
        (b"B\x00\x00\x00\x0c\0\0\xff\xff\xff\xff\xff\xff", "insufficient data"),
        (b"D\x00\x00\x00\x06Z\0", "invalid message subtype"),
        (b"E\x00\x00\x00\x09\0\x00\x00\x00\x00", "portal \"\" does not exist"),
    ] {
        let answer = String::from_utf8_lossy(&answer(running.address, &[startup, message].concat()).await).into_owned();
        assert!(answer.contains(told), "{message:?}: {answer}");
    }
    let client = running.client().await;
    assert_eq!(client.query_one("SELECT 1", &[]).await.expect("still there").get::<_, i64>(0), 1);

    let http = running.server.http_address().expect("an address");
    let page = String::from_utf8(answer(http, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await).expect("text");
    assert!(page.starts_with("HTTP/1.1 200 OK") && page.ends_with("\r\n\r\nok\n"), "{page}");
    let page = String::from_utf8(answer(http, b"GET /readyz HTTP/1.1\r\n\r\n").await).expect("text");
    assert!(page.starts_with("HTTP/1.1 200 OK") && page.ends_with("\r\n\r\nok\n"), "{page}");
    let page = String::from_utf8(answer(http, b"GET /metrics HTTP/1.1\r\n\r\n").await).expect("text");
    assert!(page.contains("riverrun_tick "), "{page}");
    drop(client);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_told_and_obeyed() {
    let running = Running::start(ServerOptions::default()).await;
    let url = format!("{} options='-c TimeZone=Asia/Tokyo' application_name=test", running.url());
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("a connection");
    assert_eq!(connection.parameter("server_version"), Some("15.0"));
    assert_eq!(connection.parameter("TimeZone"), Some("Asia/Tokyo"));
    assert_eq!(connection.parameter("application_name"), Some("test"));
    assert_eq!(connection.parameter("client_encoding"), Some("UTF8"));
    tokio::spawn(connection);
    let shown =
        async |text: &str| match client.simple_query(text).await.expect(text).into_iter().find_map(|m| match m {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_string),
            _ => None,
        }) {
            Some(value) => value,
            None => panic!("{text} gives no row"),
        };
    assert_eq!(shown("SELECT TIMESTAMPTZ '2026-01-01 00:00:00+00'").await, "2026-01-01 09:00:00+09");
    assert_eq!(shown("SELECT set_config('timezone', 'UTC', false)").await, "UTC");
    assert_eq!(shown("SELECT TIMESTAMPTZ '2026-01-01 00:00:00+00'").await, "2026-01-01 00:00:00+00");
    assert_eq!(shown("SELECT current_setting('application_name')").await, "test");
    assert_eq!(shown("SET extra_float_digits = 0; SELECT 0.1::float8 + 0.2::float8").await, "0.3");
    drop(client);
    running.stop().await;
}

/// On one thread: what plans there would keep the others waiting.
#[tokio::test]
async fn a_statement_that_takes_long_to_plan_holds_up_nobody_and_can_be_cancelled() {
    with_server(|client, url| async move {
        let (other, connection) = tokio_postgres::connect(&url, NoTls).await.expect("a connection");
        tokio::spawn(connection);
        let list: Vec<String> = (0..100_000).map(|n| n.to_string()).collect();
        let text = format!("SELECT count(*) FROM (VALUES (1), (-1)) t(v) WHERE v IN ({})", list.join(","));
        let long = std::pin::pin!(client.simple_query(&text));
        let short = std::pin::pin!(async {
            for _ in 0..20 {
                other.simple_query("SELECT 1").await.expect("a row");
            }
        });
        let future::Either::Right((_, long)) = future::select(long, short).await else {
            panic!("the long one was first")
        };
        client.cancel_token().cancel_query(NoTls).await.expect("a cancel request");
        assert_eq!(code(&long.await.expect_err("cancelled")), "57014");
        assert_eq!(count(&client, "(VALUES (1), (2))").await, 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_has_bounds() {
    with_server(|client, _| async move {
        let columns = |n: usize| format!("SELECT {}", vec!["1"; n].join(","));
        let named = |prefix: &str| {
            let list: Vec<String> = (0..1000).map(|i| format!("1 AS {prefix}{i}")).collect();
            format!("SELECT {}", list.join(","))
        };
        assert_eq!(client.query_one(&columns(1664), &[]).await.expect("a row").len(), 1664);
        for (text, expected) in [
            (columns(1665), "54011"),
            (columns(100_000), "54011"),
            (format!("SELECT * FROM ({}) t, ({}) u", named("a"), named("b")), "54011"),
            (format!("SELECT 1 WHERE 1 IN ({})", vec!["1"; 600_000].join(",")), "54001"),
        ] {
            assert_eq!(code(&client.simple_query(&text).await.expect_err("too much")), expected, "{:.60}", text);
        }
        // What stands between quotes is one.
        let long = format!("SELECT length('{}')", "a,".repeat(600_000));
        assert_eq!(client.query_one(&long, &[]).await.expect("a row").get::<_, i32>(0), 1_200_000);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_statement_that_makes_a_table_fills_it() {
    with_server(|client, url| async move {
        let mut clients = Vec::new();
        for _ in 0..4 {
            let (client, connection) = tokio_postgres::connect(&url, NoTls).await.expect("a connection");
            tokio::spawn(connection);
            clients.push(client);
        }
        for round in 0..10 {
            let text = format!("CREATE TABLE IF NOT EXISTS t{round} AS SELECT x FROM (VALUES (1), (2)) v(x)");
            let made = future::join_all(clients.iter().map(|client| client.batch_execute(&text))).await;
            assert!(made.iter().all(Result::is_ok), "{made:?}");
            assert_eq!(count(&client, &format!("t{round}")).await, 2);
        }
    })
    .await;
}
