-- Ad impressions and clicks, one JSON object a record, as an ad server writes them to the topic ad_events.
-- An event may come late by 10 seconds before windows close without it; later ones are counted and listed in
-- riverrun.late_rows, malformed ones in riverrun.dead_letters.
--
-- To look into the topic:
--   SELECT * FROM ad_events LIMIT 10;
--   SELECT * FROM riverrun.source_partitions;

CREATE SOURCE ad_events (
  event_id VARCHAR, ad_id BIGINT, event_type VARCHAR, user_id BIGINT,
  country VARCHAR, device VARCHAR, ts TIMESTAMPTZ,
  WATERMARK FOR ts AS ts - INTERVAL '10 seconds'
) WITH (
  connector = 'kafka', topic = 'ad_events',
  properties.bootstrap.server = 'localhost:9092',
  scan.startup.mode = 'earliest'
) FORMAT PLAIN ENCODE JSON;
