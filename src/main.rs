//! The `chatmesh` executable. Everything is in the library; this only chooses the allocator.

use std::process::ExitCode;

/// Allocating and freeing short strings is a large part of the cost of a message: with the C
/// library's allocator it took a fifth of a worker's time.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    chatmesh::cli::main(std::env::args_os())
}
