-- error: now() cannot be kept in a view but in WHERE and HAVING
CREATE MATERIALIZED VIEW v AS SELECT ad_id, now() - ts AS age FROM ad_events;
