-- error: DISTINCT ON without ORDER BY cannot be kept in a view
CREATE MATERIALIZED VIEW v AS SELECT DISTINCT ON (ad_id) ad_id, country FROM ad_events;
