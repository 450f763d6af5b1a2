-- error: subqueries in expressions cannot be kept in a view yet
CREATE MATERIALIZED VIEW v AS
SELECT ad_id FROM ad_events WHERE ad_id IN (SELECT ad_id FROM ad_events WHERE event_type = 'click');
