-- error: string_agg() depends on the order of rows
CREATE MATERIALIZED VIEW v AS SELECT ad_id, string_agg(country, ',' ORDER BY ts) AS countries FROM ad_events GROUP BY ad_id;
