//! The `chatmesh` executable: command line to library to exit code.

fn main() {}
