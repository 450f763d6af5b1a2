-- error: joins cannot be kept in a view yet
CREATE TABLE campaigns (ad_id BIGINT PRIMARY KEY, campaign VARCHAR);
CREATE MATERIALIZED VIEW v AS
SELECT e.ad_id, c.campaign FROM ad_events e JOIN campaigns c ON c.ad_id = e.ad_id;
