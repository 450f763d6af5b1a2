-- error: WITH RECURSIVE cannot be kept in a view
CREATE MATERIALIZED VIEW v AS
WITH RECURSIVE r AS (SELECT ad_id FROM ad_events UNION ALL SELECT ad_id + 1 FROM r WHERE ad_id < 10) SELECT ad_id FROM r;
