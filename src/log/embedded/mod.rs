//! log/embedded: to be written.
