//! librdkafka's client behind a safe face: set up, log, remember errors, destroy.
//!
//! The `unsafe` of the connector lives here, in [`super::reader`] and in [`super::metadata`]. librdkafka is thread-safe: a
//! client may be called from any thread at once.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka_sys as sys;
use rdkafka_sys::rd_kafka_resp_err_t as Code;

use super::options::{KafkaOptions, is_secret};
use crate::connector::error::{ConnectorError, nearest};

/// Settings that librdkafka has accepted, until a client is made of them.
pub(super) struct Config(*mut sys::rd_kafka_conf_t);

/// A client of type consumer, without a consumer group. Background threads of librdkafka serve it until it is dropped.
pub(super) struct Client {
    rk: *mut sys::rd_kafka_t,
    /// Boxed, because librdkafka holds its address.
    context: Box<Context>,
    servers: String,
    topic: String,
}

// SAFETY: librdkafka's client handle may be used from any thread; the context is a mutex.
unsafe impl Send for Client {}
// SAFETY: as above.
unsafe impl Sync for Client {}

#[derive(Default)]
struct Context {
    last_error: Mutex<Option<ClientError>>,
    /// On properties, as the client was made.
    warnings: Mutex<Vec<String>>,
}

/// What librdkafka reported about its connections since they last worked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClientError {
    pub code: Code,
    pub reason: String,
    /// Waiting a little will not help: no broker is connected, or we are refused.
    pub decisive: bool,
}

impl Config {
    /// Tries the settings, and what can be checked without a network of how they fit together.
    pub fn check(options: &KafkaOptions) -> Result<(), ConnectorError> {
        // A client is made and dropped: some rules (SASL mechanisms, files of certificates) are checked only then. It has
        // no server to connect to.
        let config = Config::new(options.settings().filter(|(key, _)| *key != "bootstrap.servers"))?;
        let client = Client::create(config, options)?;
        let warnings = client.context.warnings.lock();
        // An option that would have no effect is refused; a deprecated one still has it.
        match warnings.iter().find(|warning| !warning.contains("is deprecated")) {
            Some(warning) => {
                Err(ConnectorError::InvalidOption { option: "properties.*".into(), reason: warning.clone() })
            }
            None => Ok(()),
        }
    }

    fn new<'a>(settings: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Config, ConnectorError> {
        // SAFETY: no preconditions; never null.
        let config = Config(unsafe { sys::rd_kafka_conf_new() });
        for (key, value) in settings {
            config.set(key, value)?;
        }
        Ok(config)
    }

    fn set(&self, key: &str, value: &str) -> Result<(), ConnectorError> {
        let option = format!("properties.{key}");
        let invalid = |reason: String| ConnectorError::InvalidOption { option: option.clone(), reason };
        let (Ok(key_c), Ok(value_c)) = (CString::new(key), CString::new(value)) else {
            return Err(invalid("it contains a zero byte".into()));
        };
        let mut message = ErrorBuffer::new();
        // SAFETY: the configuration is alive, both strings end in a zero, the buffer has the length said.
        let outcome = unsafe {
            sys::rd_kafka_conf_set(self.0, key_c.as_ptr(), value_c.as_ptr(), message.as_mut_ptr(), message.len())
        };
        match outcome {
            sys::rd_kafka_conf_res_t::RD_KAFKA_CONF_OK => Ok(()),
            sys::rd_kafka_conf_res_t::RD_KAFKA_CONF_UNKNOWN => {
                let text = message.text();
                if !text.starts_with("No such configuration property") {
                    // librdkafka knows the names of the Java client and says what to use instead.
                    return Err(invalid(text));
                }
                let names = self.property_names();
                let nearest = nearest(key, names.iter().map(String::as_str)).map(|name| format!("properties.{name}"));
                Err(ConnectorError::UnknownOption { option, nearest })
            }
            sys::rd_kafka_conf_res_t::RD_KAFKA_CONF_INVALID => {
                Err(invalid(if is_secret(key) { "librdkafka refuses its value".into() } else { message.text() }))
            }
        }
    }

    fn property_names(&self) -> Vec<String> {
        let mut count = 0;
        // SAFETY: the dump is an array of `count` strings, name and value in turn, freed below.
        unsafe {
            let dump = sys::rd_kafka_conf_dump(self.0, &mut count);
            let names = (0..count).step_by(2).map(|i| text(*dump.add(i))).collect();
            sys::rd_kafka_conf_dump_free(dump, count);
            names
        }
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: owned, and not given to a client.
            unsafe { sys::rd_kafka_conf_destroy(self.0) }
        }
    }
}

impl Client {
    pub fn new(options: &KafkaOptions) -> Result<Client, ConnectorError> {
        Client::create(Config::new(options.settings())?, options)
    }

    fn create(mut config: Config, options: &KafkaOptions) -> Result<Client, ConnectorError> {
        let context = Box::<Context>::default();
        let mut message = ErrorBuffer::new();
        // SAFETY: the context outlives the client, which is destroyed before it in `Drop`; on success the client owns the
        // configuration, on failure we still do.
        let rk = unsafe {
            sys::rd_kafka_conf_set_opaque(config.0, ptr::from_ref(&*context) as *mut c_void);
            sys::rd_kafka_conf_set_error_cb(config.0, Some(on_error));
            sys::rd_kafka_conf_set_log_cb(config.0, Some(on_log));
            let kind = sys::rd_kafka_type_t::RD_KAFKA_CONSUMER;
            sys::rd_kafka_new(kind, config.0, message.as_mut_ptr(), message.len())
        };
        if rk.is_null() {
            return Err(not_made(options, message.text()));
        }
        config.0 = ptr::null_mut();
        Ok(Client { rk, context, servers: options.servers.clone(), topic: options.topic.clone() })
    }

    pub fn ptr(&self) -> *mut sys::rd_kafka_t {
        self.rk
    }

    /// Runs the error callbacks that are due, on this thread. Never blocks.
    pub fn serve(&self) {
        // SAFETY: the client is alive.
        unsafe { sys::rd_kafka_poll(self.rk, 0) };
    }

    /// The last connection error, unless [`Client::clear_error`] has been called since.
    pub fn error(&self) -> Option<ClientError> {
        self.serve();
        self.context.last_error.lock().clone()
    }

    /// To be called when a broker has answered. librdkafka tells a repeated error only every 30 s, so an error holds until
    /// then.
    pub fn clear_error(&self) {
        *self.context.last_error.lock() = None;
    }

    /// What a failed request means to the user, with what is known about the connections.
    pub fn explain(&self, doing: &'static str, code: Code, detail: Option<String>) -> ConnectorError {
        let cause = self.error();
        let connection = matches!(
            code,
            Code::RD_KAFKA_RESP_ERR__TRANSPORT
                | Code::RD_KAFKA_RESP_ERR__TIMED_OUT
                | Code::RD_KAFKA_RESP_ERR__TIMED_OUT_QUEUE
                | Code::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN
                | Code::RD_KAFKA_RESP_ERR__DESTROY
        );
        match cause {
            Some(cause) if connection => self.classify(doing, cause.code, cause.reason),
            _ => self.classify(doing, code, detail.unwrap_or_else(|| code_text(code))),
        }
    }

    pub fn classify(&self, doing: &'static str, code: Code, reason: String) -> ConnectorError {
        let servers = self.servers.clone();
        let topic = self.topic.clone();
        match code {
            Code::RD_KAFKA_RESP_ERR__AUTHENTICATION
            | Code::RD_KAFKA_RESP_ERR_SASL_AUTHENTICATION_FAILED
            | Code::RD_KAFKA_RESP_ERR_UNSUPPORTED_SASL_MECHANISM
            | Code::RD_KAFKA_RESP_ERR_ILLEGAL_SASL_STATE => ConnectorError::AuthenticationFailed { servers, reason },
            Code::RD_KAFKA_RESP_ERR__SSL => ConnectorError::Tls { servers, reason },
            Code::RD_KAFKA_RESP_ERR__TRANSPORT
            | Code::RD_KAFKA_RESP_ERR__RESOLVE
            | Code::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN
            | Code::RD_KAFKA_RESP_ERR__TIMED_OUT
            | Code::RD_KAFKA_RESP_ERR__TIMED_OUT_QUEUE => ConnectorError::Unreachable { servers, reason },
            Code::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC
            | Code::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION
            | Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART
            | Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_ID => ConnectorError::TopicMissing { servers, topic },
            Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED
            | Code::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED => ConnectorError::NotAuthorized { topic, reason },
            _ => ConnectorError::Kafka { doing, reason },
        }
    }
}

/// librdkafka names the property of a file that it cannot use, and not the file.
fn not_made(options: &KafkaOptions, reason: String) -> ConnectorError {
    let of_file = |(key, _): &(&str, &str)| key.ends_with(".location") && reason.starts_with(*key);
    match options.settings().find(of_file) {
        Some((key, path)) => ConnectorError::InvalidOption {
            option: format!("properties.{key}"),
            reason: format!("the file {path} cannot be used: {reason}"),
        },
        None => ConnectorError::InvalidOption { option: "properties.*".into(), reason },
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // SAFETY: owned; topics and queues made from it are dropped before it by their owners.
        unsafe { sys::rd_kafka_destroy(self.rk) }
    }
}

/// A handle on the topic; must be dropped before its client.
pub(super) struct Topic(*mut sys::rd_kafka_topic_t);

// SAFETY: as for the client.
unsafe impl Send for Topic {}
// SAFETY: as for the client.
unsafe impl Sync for Topic {}

impl Topic {
    pub fn new(client: &Client) -> Result<Topic, ConnectorError> {
        let name = CString::new(client.topic.as_str()).expect("topic names are checked");
        // SAFETY: the client is alive, the name ends in a zero, a null configuration means the client's.
        let topic = unsafe { sys::rd_kafka_topic_new(client.rk, name.as_ptr(), ptr::null_mut()) };
        if topic.is_null() {
            return Err(client.explain("opening the topic", last_error(), None));
        }
        Ok(Topic(topic))
    }

    pub fn ptr(&self) -> *mut sys::rd_kafka_topic_t {
        self.0
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        // SAFETY: owned.
        unsafe { sys::rd_kafka_topic_destroy(self.0) }
    }
}

/// A queue of the client; must be dropped before it.
pub(super) struct Queue(*mut sys::rd_kafka_queue_t);

// SAFETY: as for the client.
unsafe impl Send for Queue {}
// SAFETY: as for the client.
unsafe impl Sync for Queue {}

impl Queue {
    pub fn new(client: &Client) -> Queue {
        // SAFETY: the client is alive.
        Queue(unsafe { sys::rd_kafka_queue_new(client.rk) })
    }

    pub fn ptr(&self) -> *mut sys::rd_kafka_queue_t {
        self.0
    }

    /// Looks at the next event; `None` if none came within `timeout`. Nothing of it may be kept.
    pub fn poll<T>(&self, timeout: Duration, look: impl FnOnce(*mut sys::rd_kafka_event_t) -> T) -> Option<T> {
        // SAFETY: the queue is alive; the event is ours until destroyed.
        unsafe {
            let event = sys::rd_kafka_queue_poll(self.0, millis(timeout));
            if event.is_null() {
                return None;
            }
            let seen = look(event);
            sys::rd_kafka_event_destroy(event);
            Some(seen)
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: owned.
        unsafe { sys::rd_kafka_queue_destroy(self.0) }
    }
}

/// Options of an administrative request: who is asked, and how long.
pub(super) struct AdminOptions(*mut sys::rd_kafka_AdminOptions_t);

impl AdminOptions {
    /// For this broker, or the controller.
    pub fn new(client: &Client, request: sys::rd_kafka_admin_op_t, broker: Option<i32>, timeout: Duration) -> Self {
        let mut message = ErrorBuffer::new();
        // SAFETY: the client is alive. The setters fail only for values out of range, which these are not: brokers have numbers from 0
        // on, the timeout is clamped to an hour.
        unsafe {
            let options = sys::rd_kafka_AdminOptions_new(client.ptr(), request);
            let timeout_ms = millis(timeout).clamp(1, 3_600_000);
            let code = sys::rd_kafka_AdminOptions_set_request_timeout(
                options,
                timeout_ms,
                message.as_mut_ptr(),
                message.len(),
            );
            assert!(code == Code::RD_KAFKA_RESP_ERR_NO_ERROR, "the timeout is in range");
            if let Some(broker) = broker {
                let code = sys::rd_kafka_AdminOptions_set_broker(options, broker, message.as_mut_ptr(), message.len());
                assert!(code == Code::RD_KAFKA_RESP_ERR_NO_ERROR, "the broker is in range");
            }
            AdminOptions(options)
        }
    }

    pub fn ptr(&self) -> *mut sys::rd_kafka_AdminOptions_t {
        self.0
    }
}

impl Drop for AdminOptions {
    fn drop(&mut self) {
        // SAFETY: owned.
        unsafe { sys::rd_kafka_AdminOptions_destroy(self.0) }
    }
}

/// Partitions of one topic with an offset each.
pub(super) struct PartitionList(*mut sys::rd_kafka_topic_partition_list_t);

impl PartitionList {
    pub fn new(topic: &str, partitions: impl Iterator<Item = (i32, i64)>) -> PartitionList {
        let name = CString::new(topic).expect("topic names are checked");
        // SAFETY: the list is ours; `add` returns a valid element.
        unsafe {
            let list = sys::rd_kafka_topic_partition_list_new(partitions.size_hint().0.max(1) as c_int);
            for (partition, offset) in partitions {
                (*sys::rd_kafka_topic_partition_list_add(list, name.as_ptr(), partition)).offset = offset;
            }
            PartitionList(list)
        }
    }

    pub fn ptr(&self) -> *mut sys::rd_kafka_topic_partition_list_t {
        self.0
    }
}

impl Drop for PartitionList {
    fn drop(&mut self) {
        // SAFETY: owned.
        unsafe { sys::rd_kafka_topic_partition_list_destroy(self.0) }
    }
}

/// Where librdkafka writes what it has to say.
pub(super) struct ErrorBuffer([c_char; 512]);

impl ErrorBuffer {
    pub fn new() -> Self {
        ErrorBuffer([0; 512])
    }

    pub fn as_mut_ptr(&mut self) -> *mut c_char {
        self.0.as_mut_ptr()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn text(&self) -> String {
        let bytes: Vec<u8> = self.0.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

pub(super) fn millis(duration: Duration) -> c_int {
    c_int::try_from(duration.as_millis()).unwrap_or(c_int::MAX)
}

pub(super) fn last_error() -> Code {
    // SAFETY: reads a thread-local.
    unsafe { sys::rd_kafka_last_error() }
}

pub(super) fn code_text(code: Code) -> String {
    // SAFETY: returns a static string.
    unsafe { text(sys::rd_kafka_err2str(code)) }
}

/// # Safety
/// `s` is null or ends in a zero.
pub(super) unsafe fn text(s: *const c_char) -> String {
    if s.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(s) }.to_string_lossy().trim().to_string()
}

unsafe extern "C" fn on_error(rk: *mut sys::rd_kafka_t, code: c_int, reason: *const c_char, opaque: *mut c_void) {
    let mut reason_text = ErrorBuffer::new();
    // SAFETY: `opaque` is the context given in `Client::create`, which outlives the client; `reason` ends in a zero.
    let (context, mut reason) = unsafe { (&*(opaque as *const Context), text(reason)) };
    let mut code = Code::try_from(code).unwrap_or(Code::RD_KAFKA_RESP_ERR__FAIL);
    if code == Code::RD_KAFKA_RESP_ERR__FATAL {
        // SAFETY: the client is alive while it calls back; the buffer has the length said.
        code = unsafe { sys::rd_kafka_fatal_error(rk, reason_text.as_mut_ptr(), reason_text.len()) };
        reason = reason_text.text();
    }
    tracing::debug!(code = ?code, reason, "kafka client error");
    let mut last = context.last_error.lock();
    match &mut *last {
        // It says less than the reason that came before it.
        Some(error) if code == Code::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN => error.decisive = true,
        _ => {
            let decisive = !matches!(code, Code::RD_KAFKA_RESP_ERR__TRANSPORT | Code::RD_KAFKA_RESP_ERR__TIMED_OUT);
            *last = Some(ClientError { code, reason, decisive });
        }
    }
}

unsafe extern "C" fn on_log(rk: *const sys::rd_kafka_t, level: c_int, facility: *const c_char, line: *const c_char) {
    // SAFETY: both strings end in a zero.
    let (facility, line) = unsafe { (text(facility), text(line)) };
    if facility == "CONFWARN" && level <= 4 {
        // SAFETY: the client's opaque is the context given in `Client::create`, which outlives it.
        let context = unsafe { &*(sys::rd_kafka_opaque(rk) as *const Context) };
        // The line begins with the thread's name in brackets and a colon.
        let warning = line.split_once("]: ").map_or(line.as_str(), |(_, warning)| warning);
        context.warnings.lock().push(warning.to_string());
        return;
    }
    // Connection failures repeat at every attempt; they are the source's state and are told by it once.
    let repeats = matches!(facility.as_str(), "FAIL" | "ERROR" | "BROKERFAIL" | "FETCH");
    match level {
        ..=4 if !repeats => tracing::warn!(target: "librdkafka", facility, "{line}"),
        ..=6 => tracing::debug!(target: "librdkafka", facility, "{line}"),
        _ => tracing::trace!(target: "librdkafka", facility, "{line}"),
    }
}
