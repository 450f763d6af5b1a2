-- error: first_value() depends on the order of rows
CREATE MATERIALIZED VIEW v AS SELECT ad_id, first_value(country ORDER BY ts) AS first FROM ad_events GROUP BY ad_id;
