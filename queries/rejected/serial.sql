-- error: type SERIAL is not supported
CREATE TABLE visits (id SERIAL, page VARCHAR);
