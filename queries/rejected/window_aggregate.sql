-- error: the window function sum() OVER (...) cannot be kept in a view yet
CREATE MATERIALIZED VIEW v AS
SELECT ad_id, sum(user_id) OVER (PARTITION BY country ORDER BY ts) AS running FROM ad_events;
