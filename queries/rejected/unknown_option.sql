-- error: unrecognized option of a materialized view: "color"
CREATE MATERIALIZED VIEW v WITH (color = 'red') AS SELECT ad_id FROM ad_events;
