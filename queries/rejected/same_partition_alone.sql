-- error: option deduplicate.same_partition needs DEDUPLICATE BY
CREATE SOURCE s (event_id VARCHAR, ts TIMESTAMPTZ, WATERMARK FOR ts AS ts) WITH (connector = 'datagen', deduplicate.same_partition = true);
