-- error: subqueries in expressions cannot be kept in a view yet
CREATE MATERIALIZED VIEW v AS
SELECT ad_id, (SELECT max(ts) FROM ad_events) AS newest FROM ad_events;
