//! The `chatmesh` executable: command line to library to exit code.

use std::process::ExitCode;

/// Short-lived strings are most of what a message costs: with the C library's allocator a fifth of
/// a worker's time went into making and freeing them.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    chatmesh::cli::main(std::env::args_os())
}
