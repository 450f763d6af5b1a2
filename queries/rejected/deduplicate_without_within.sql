-- error: DEDUPLICATE BY without WITHIN is not supported
CREATE SOURCE s (event_id VARCHAR, ts TIMESTAMPTZ, WATERMARK FOR ts AS ts, DEDUPLICATE BY (event_id)) WITH (connector = 'datagen');
