//! DescribeConfigs: does a topic keep every record, or of each key only the last?

use std::ffi::CString;
use std::time::Duration;

use rdkafka_sys as sys;
use rdkafka_sys::rd_kafka_resp_err_t as Code;

use super::native::{AdminOptions, Client, Queue, code_text, text};

/// Sends the request to this broker, or to the controller; its outcome arrives in `replies` within `timeout`, also if it fails.
pub(super) fn request(client: &Client, broker: Option<i32>, topic: &str, timeout: Duration, replies: &Queue) {
    let name = CString::new(topic).expect("topic names are checked");
    let options =
        AdminOptions::new(client, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS, broker, timeout);
    // SAFETY: client, queue and options are alive; the library copies resources and options.
    unsafe {
        let mut resources =
            [sys::rd_kafka_ConfigResource_new(sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC, name.as_ptr())];
        sys::rd_kafka_DescribeConfigs(
            client.ptr(),
            resources.as_mut_ptr(),
            resources.len(),
            options.ptr(),
            replies.ptr(),
        );
        sys::rd_kafka_ConfigResource_destroy_array(resources.as_mut_ptr(), resources.len());
    }
}

/// Waits for the outcome of a request; `None` if none came within `timeout`. An outcome of `None`: brokers that do not know the
/// request, or do not answer it to us.
pub(super) fn reply(replies: &Queue, timeout: Duration) -> Option<Result<Option<bool>, (Code, String)>> {
    // SAFETY: the event is alive while it is looked at.
    replies.poll(timeout, |event| unsafe { outcome(event) })
}

/// # Safety
/// The event is alive.
unsafe fn outcome(event: *mut sys::rd_kafka_event_t) -> Result<Option<bool>, (Code, String)> {
    // SAFETY: what the result holds lives as long as the event.
    unsafe {
        match sys::rd_kafka_event_error(event) {
            Code::RD_KAFKA_RESP_ERR_NO_ERROR => {}
            code @ (Code::RD_KAFKA_RESP_ERR__TRANSPORT
            | Code::RD_KAFKA_RESP_ERR__TIMED_OUT
            | Code::RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN) => {
                return Err((code, text(sys::rd_kafka_event_error_string(event))));
            }
            _ => return Ok(None),
        }
        let result = sys::rd_kafka_event_DescribeConfigs_result(event);
        if result.is_null() {
            return Err((Code::RD_KAFKA_RESP_ERR__FAIL, code_text(Code::RD_KAFKA_RESP_ERR__FAIL)));
        }
        let mut count = 0;
        let resources = sys::rd_kafka_DescribeConfigs_result_resources(result, &mut count);
        // Without the right to see a topic's settings there is an error in place of them.
        if count != 1 || sys::rd_kafka_ConfigResource_error(*resources) != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Ok(None);
        }
        let mut count = 0;
        let entries = sys::rd_kafka_ConfigResource_configs(*resources, &mut count);
        let entries = (0..count).map(|i| *entries.add(i));
        let policy =
            entries.map(|entry| (sys::rd_kafka_ConfigEntry_name(entry), sys::rd_kafka_ConfigEntry_value(entry)));
        let policy = policy.filter(|(_, value)| !value.is_null()).map(|(name, value)| (text(name), text(value)));
        Ok(policy.filter(|(name, _)| name == "cleanup.policy").map(|(_, policy)| compacts(&policy)).next())
    }
}

/// `compact`, or `compact,delete`.
fn compacts(policy: &str) -> bool {
    policy.split(',').any(|word| word.trim() == "compact")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies() {
        assert!(compacts("compact") && compacts("delete, compact") && compacts("compact,delete"));
        assert!(!compacts("delete") && !compacts("") && !compacts("compacted"));
    }
}
