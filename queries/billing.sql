-- The bill: a producer that has not heard that a click was taken writes it again, to whichever partition comes next. Of the
-- records with one event_id that lie less than an hour apart, the earliest counts and the others are duplicates; so each
-- click is paid once. A click that is up to half a minute late still corrects its minute. After that the minute is final and
-- billed: no copy and no late click changes it any more. What comes even later is kept in a table, for a credit note.
--
-- The last minute billed:
--   SELECT ad_id, clicks FROM billed_clicks
--   WHERE window_end = final_window_end('billed_clicks') ORDER BY clicks DESC LIMIT 10;
--
-- What it left out, and which record of the log each of them repeats:
--   SELECT sum(accepted) AS billed, sum(duplicate) AS repeated, sum(late) AS late
--   FROM riverrun.source_partitions WHERE source = 'paid_events';
--   SELECT * FROM riverrun.duplicates ORDER BY arrived_at DESC LIMIT 10;
--
-- Clicks that came too late for their minute:
--   SELECT * FROM credit_notes ORDER BY clicks DESC LIMIT 10;
--   SELECT event_id, ts, late_watermark FROM unbilled_events ORDER BY ts DESC LIMIT 10;

CREATE TABLE unbilled_events (
  event_id VARCHAR, ad_id BIGINT, event_type VARCHAR, ts TIMESTAMPTZ, late_reason VARCHAR, late_watermark TIMESTAMPTZ
);

CREATE SOURCE paid_events (
  event_id VARCHAR, ad_id BIGINT, event_type VARCHAR, country VARCHAR, ts TIMESTAMPTZ,
  WATERMARK FOR ts AS ts - INTERVAL '10 seconds',
  DEDUPLICATE BY (event_id) WITHIN INTERVAL '1 hour'
) WITH (
  connector = 'kafka', topic = 'ad_events',
  properties.bootstrap.server = 'localhost:9092',
  scan.startup.mode = 'earliest',
  allowed_lateness = '30 seconds'
) FORMAT PLAIN ENCODE JSON
LATE ROWS INTO unbilled_events;

CREATE MATERIALIZED VIEW billed_clicks AS
SELECT ad_id, window_start, window_end, count(*) AS clicks
FROM TUMBLE(paid_events, ts, INTERVAL '1 minute')
WHERE event_type = 'click'
GROUP BY ad_id, window_start, window_end
EMIT ON WINDOW CLOSE;

CREATE MATERIALIZED VIEW credit_notes AS
SELECT ad_id, count(*) AS clicks
FROM unbilled_events
WHERE event_type = 'click'
GROUP BY ad_id;
