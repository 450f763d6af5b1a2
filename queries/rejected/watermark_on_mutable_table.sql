-- error: a table with a WATERMARK must be APPEND ONLY
CREATE TABLE visits (page VARCHAR, ts TIMESTAMPTZ, WATERMARK FOR ts AS ts);
