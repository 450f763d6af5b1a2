-- error: DEDUPLICATE BY "price": the column is of type double precision
CREATE SOURCE s (price DOUBLE PRECISION, ts TIMESTAMPTZ, WATERMARK FOR ts AS ts, DEDUPLICATE BY (price) WITHIN INTERVAL '1 hour') WITH (connector = 'datagen');
