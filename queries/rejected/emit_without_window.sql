-- error: EMIT ON WINDOW CLOSE needs a view that groups by windows
CREATE MATERIALIZED VIEW v AS SELECT ad_id, count(*) AS events FROM ad_events GROUP BY ad_id EMIT ON WINDOW CLOSE;
