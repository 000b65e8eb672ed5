//! fanout/embedded: to be written.
