-- error: SESSION needs a GROUP BY that says whose sessions they are
CREATE MATERIALIZED VIEW v AS SELECT ad_id, window_start FROM SESSION(ad_events, ts, INTERVAL '30 minutes');
