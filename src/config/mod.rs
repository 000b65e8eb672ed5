//! Configuration: defaults → file → environment and `.env` → flags, checked as a whole.

pub mod settings;
