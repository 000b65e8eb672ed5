//! The chat page in a real browser, and the JavaScript client.

mod answer_parts;
mod appearance;
mod chat_page;
mod js_client;
mod static_files;
mod turn_outcomes;
