-- error: the volatile function random() cannot be kept in a view
CREATE MATERIALIZED VIEW v AS SELECT ad_id FROM ad_events WHERE random() < 0.1;
