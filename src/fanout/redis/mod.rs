//! fanout/redis: to be written.
