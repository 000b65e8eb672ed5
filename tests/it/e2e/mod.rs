//! End-to-end tests: messages through real processes, from the client to the model API and back.

mod all_in_one;
mod bad_input;
mod distributed;
mod load;
mod originals;
mod outages;
mod provider;
mod streaming;
