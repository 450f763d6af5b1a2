//! ListOffsets: the first and last offsets of partitions, and the first at a time.

use std::time::Duration;

use rdkafka_sys as sys;
use rdkafka_sys::rd_kafka_resp_err_t as Code;

use super::native::{Client, ErrorBuffer, PartitionList, Queue, code_text, millis, text};
use super::options::Isolation;

/// Which offset of a partition is asked for. The end is where a reader of the isolation level stops: the last stable offset
/// or the high watermark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spec {
    First,
    End,
    /// The first record at or after this time; there may be none.
    AtMs(i64),
}

/// The answer for one partition: its offset, -1 where no record is that young.
pub(super) type PartitionOffset = (i32, Result<i64, Code>);

/// Sends the request; its outcome arrives in `replies` within `timeout`, also if it fails.
pub(super) fn request(
    client: &Client,
    topic: &str,
    partitions: &[i32],
    spec: Spec,
    isolation: Isolation,
    timeout: Duration,
    replies: &Queue,
) {
    let code = match spec {
        Spec::First => -2,
        Spec::End => -1,
        Spec::AtMs(ms) => ms,
    };
    let list = PartitionList::new(topic, partitions.iter().map(|p| (*p, code)));
    let level = match isolation {
        Isolation::ReadUncommitted => sys::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_UNCOMMITTED,
        Isolation::ReadCommitted => sys::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED,
    };
    let mut message = ErrorBuffer::new();
    // SAFETY: client and queue are alive; the library copies list and options. Both setters fail only for values out of
    // range, which these are not: the timeout is clamped to an hour.
    unsafe {
        let options =
            sys::rd_kafka_AdminOptions_new(client.ptr(), sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS);
        let error = sys::rd_kafka_AdminOptions_set_isolation_level(options, level);
        assert!(error.is_null(), "the isolation level is one of two");
        let timeout_ms = millis(timeout).clamp(1, 3_600_000);
        let code =
            sys::rd_kafka_AdminOptions_set_request_timeout(options, timeout_ms, message.as_mut_ptr(), message.len());
        assert!(code == Code::RD_KAFKA_RESP_ERR_NO_ERROR, "the timeout is in range");
        sys::rd_kafka_ListOffsets(client.ptr(), list.ptr(), options, replies.ptr());
        sys::rd_kafka_AdminOptions_destroy(options);
    }
}

/// Waits for the outcome of a request; `None` if none came within `timeout`.
pub(super) fn reply(replies: &Queue, timeout: Duration) -> Option<Result<Vec<PartitionOffset>, (Code, String)>> {
    // SAFETY: the queue is alive; the event is ours until destroyed and nothing of it is kept.
    unsafe {
        let event = sys::rd_kafka_queue_poll(replies.ptr(), millis(timeout));
        if event.is_null() {
            return None;
        }
        let code = sys::rd_kafka_event_error(event);
        let result = sys::rd_kafka_event_ListOffsets_result(event);
        let outcome = if code != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
            Err((code, text(sys::rd_kafka_event_error_string(event))))
        } else if result.is_null() {
            Err((Code::RD_KAFKA_RESP_ERR__FAIL, code_text(Code::RD_KAFKA_RESP_ERR__FAIL)))
        } else {
            let mut count = 0;
            let infos = sys::rd_kafka_ListOffsets_result_infos(result, &mut count);
            Ok((0..count)
                .map(|i| {
                    let partition = &*sys::rd_kafka_ListOffsetsResultInfo_topic_partition(*infos.add(i));
                    let offset = match partition.err {
                        Code::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(partition.offset),
                        code => Err(code),
                    };
                    (partition.partition, offset)
                })
                .collect())
        };
        sys::rd_kafka_event_destroy(event);
        Some(outcome)
    }
}
