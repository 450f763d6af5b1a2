-- error: LATE ROWS INTO: table "late_clicks" has a primary key, which could refuse a row
CREATE TABLE late_clicks (event_id VARCHAR PRIMARY KEY, late_reason VARCHAR);
CREATE SOURCE clicks (event_id VARCHAR, ts TIMESTAMPTZ, WATERMARK FOR ts AS ts)
WITH (connector = 'kafka', topic = 'clicks', properties.bootstrap.server = '127.0.0.1:9092')
FORMAT PLAIN ENCODE JSON
LATE ROWS INTO late_clicks;
