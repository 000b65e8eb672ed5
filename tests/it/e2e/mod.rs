//! Whole ways of a message, through real processes.

mod all_in_one;
mod bad_input;
mod distributed;
mod load;
mod originals;
mod outages;
mod provider;
mod streaming;
