-- error: EXCEPT cannot be kept in a view yet
CREATE MATERIALIZED VIEW v AS
SELECT ad_id FROM ad_events WHERE event_type = 'impression' EXCEPT SELECT ad_id FROM ad_events WHERE event_type = 'click';
