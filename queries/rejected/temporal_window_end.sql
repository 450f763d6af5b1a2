-- error: closed_window_end() cannot be kept in a view
CREATE MATERIALIZED VIEW w AS SELECT window_end, count(*) AS n FROM TUMBLE(ad_events, ts, INTERVAL '1 minute') GROUP BY window_start, window_end;
CREATE MATERIALIZED VIEW v AS SELECT n FROM w WHERE window_end > closed_window_end('w');
