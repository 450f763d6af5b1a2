-- error: a materialized view must read a source, a table or a view in each of its parts
CREATE MATERIALIZED VIEW v AS SELECT 1 AS one UNION ALL SELECT ad_id FROM ad_events;
