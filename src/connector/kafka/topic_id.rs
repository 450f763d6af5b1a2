//! DescribeTopics: the id of a topic, which another topic of the same name does not have.

use std::ffi::CString;
use std::time::Duration;

use rdkafka_sys as sys;
use rdkafka_sys::rd_kafka_resp_err_t as Code;

use super::native::{AdminOptions, Client, Queue, code_text, text};

/// Sends the request to this broker, or to the controller; its outcome arrives in `replies` within `timeout`, also if it fails.
pub(super) fn request(client: &Client, broker: Option<i32>, topic: &str, timeout: Duration, replies: &Queue) {
    let name = CString::new(topic).expect("topic names are checked");
    let mut names = [name.as_ptr()];
    let options =
        AdminOptions::new(client, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, broker, timeout);
    // SAFETY: client, queue and options are alive; the library copies names and options.
    unsafe {
        let topics = sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
        sys::rd_kafka_DescribeTopics(client.ptr(), topics, options.ptr(), replies.ptr());
        sys::rd_kafka_TopicCollection_destroy(topics);
    }
}

/// Waits for the outcome of a request; `None` if none came within `timeout`. Brokers before Kafka 2.8 know no ids.
pub(super) fn reply(replies: &Queue, timeout: Duration) -> Option<Result<Option<String>, (Code, String)>> {
    // SAFETY: the event is alive while it is looked at.
    replies.poll(timeout, |event| unsafe { outcome(event) })
}

/// # Safety
/// The event is alive.
unsafe fn outcome(event: *mut sys::rd_kafka_event_t) -> Result<Option<String>, (Code, String)> {
    let failed = |code: Code| Err((code, code_text(code)));
    // SAFETY: what the result holds lives as long as the event.
    unsafe {
        match sys::rd_kafka_event_error(event) {
            Code::RD_KAFKA_RESP_ERR_NO_ERROR => {}
            Code::RD_KAFKA_RESP_ERR__UNSUPPORTED_FEATURE => return Ok(None),
            code => return Err((code, text(sys::rd_kafka_event_error_string(event)))),
        }
        let result = sys::rd_kafka_event_DescribeTopics_result(event);
        if result.is_null() {
            return failed(Code::RD_KAFKA_RESP_ERR__FAIL);
        }
        let mut count = 0;
        let topics = sys::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        if count != 1 {
            return failed(Code::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC);
        }
        let topic = *topics;
        let error = sys::rd_kafka_TopicDescription_error(topic);
        if !error.is_null() && sys::rd_kafka_error_code(error) != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
            return failed(sys::rd_kafka_error_code(error));
        }
        let id = sys::rd_kafka_TopicDescription_topic_id(topic);
        let known = !id.is_null()
            && (sys::rd_kafka_Uuid_most_significant_bits(id), sys::rd_kafka_Uuid_least_significant_bits(id)) != (0, 0);
        Ok(known.then(|| text(sys::rd_kafka_Uuid_base64str(id))))
    }
}
