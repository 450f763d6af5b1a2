-- error: GROUPING SETS, ROLLUP and CUBE cannot be kept in a view yet
CREATE MATERIALIZED VIEW v AS
SELECT country, device, count(*) AS events FROM ad_events GROUP BY ROLLUP (country, device);
