//! log/kafka: to be written.
