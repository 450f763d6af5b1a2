-- error: row_number() without ORDER BY cannot be kept in a view
CREATE MATERIALIZED VIEW v AS
SELECT ad_id FROM (SELECT ad_id, row_number() OVER (PARTITION BY country) AS n FROM ad_events) ranked WHERE n <= 3;
