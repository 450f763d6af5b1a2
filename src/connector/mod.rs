//! Records from outside: Kafka (sole user of rdkafka), the generator, and the formats.
