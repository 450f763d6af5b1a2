-- error: the window function rank() OVER (...) cannot be kept in a view yet
CREATE MATERIALIZED VIEW v AS
SELECT ad_id, rank() OVER (PARTITION BY country ORDER BY ts) AS place FROM ad_events;
