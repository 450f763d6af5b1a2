-- error: DEDUPLICATE BY needs a watermark: without one every id would be remembered for ever
CREATE SOURCE s (event_id VARCHAR, ts TIMESTAMPTZ, DEDUPLICATE BY (event_id) WITHIN INTERVAL '1 hour') WITH (connector = 'datagen');
