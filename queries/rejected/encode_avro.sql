-- error: FORMAT PLAIN ENCODE AVRO is not supported
CREATE SOURCE visits (page VARCHAR) WITH (connector = 'kafka', topic = 'visits', properties.bootstrap.server = 'localhost:9092') FORMAT PLAIN ENCODE AVRO;
