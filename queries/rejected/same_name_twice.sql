-- error: column "ad_id" specified more than once
CREATE MATERIALIZED VIEW v AS SELECT ad_id, ad_id FROM ad_events;
