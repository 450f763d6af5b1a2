-- Page views of a web site, one JSON object a record, as the site writes them to the topic page_views.
--
-- To look into the topic:
--   SELECT * FROM page_views LIMIT 10;

CREATE SOURCE page_views (
  page VARCHAR, user_id BIGINT, referrer VARCHAR, ts TIMESTAMPTZ,
  WATERMARK FOR ts AS ts - INTERVAL '10 seconds'
) WITH (
  connector = 'kafka', topic = 'page_views',
  properties.bootstrap.server = 'localhost:9092',
  scan.startup.mode = 'earliest'
) FORMAT PLAIN ENCODE JSON;
