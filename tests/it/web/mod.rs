//! What people see in a browser, and the client that other programs use.

mod browser;
mod client;
mod endings;
mod files;
mod looks;
