-- error: array_agg() depends on the order of rows
CREATE MATERIALIZED VIEW v AS SELECT ad_id, array_agg(country) AS countries FROM ad_events GROUP BY ad_id;
