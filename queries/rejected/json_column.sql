-- error: type JSONB is not supported
CREATE TABLE visits (page VARCHAR, detail JSONB);
