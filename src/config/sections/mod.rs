//! Converts resolved settings to the typed settings of each part of the program, one file per area.

mod auth;
mod backends;
mod consumers;
mod gateway;
mod observability;
