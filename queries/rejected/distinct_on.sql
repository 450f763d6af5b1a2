-- error: DISTINCT ON cannot be kept in a view yet
CREATE MATERIALIZED VIEW v AS SELECT DISTINCT ON (ad_id) ad_id, country FROM ad_events ORDER BY ad_id, ts;
