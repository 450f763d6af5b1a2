-- error: DEDUPLICATE BY on a table is not supported
CREATE TABLE t (event_id VARCHAR, ts TIMESTAMPTZ, WATERMARK FOR ts AS ts, DEDUPLICATE BY (event_id) WITHIN INTERVAL '1 hour') APPEND ONLY;
