//! Converts the values of a [`Config`](super::Config) to the typed settings of each part of the
//! program, one file per area. `app` and `tools` call these methods and pass the settings on.

mod auth;
mod backends;
mod consumers;
mod gateway;
mod observability;
