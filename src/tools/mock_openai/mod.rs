//! `chatmesh mock-openai`: a local server with OpenAI's chat completions API, for load tests and
//! demos.
//!
//! The mock must never be the bottleneck of a measurement. Without `--tokens-per-second` an answer
//! is therefore one write, otherwise each write has all tokens that are due, and a request is
//! parsed only as far as the answer depends on it.

use std::sync::Arc;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;

use self::call::MockState;
use super::http;
use crate::signals::Signals;

pub(crate) use self::args::MockArgs;

mod answer;
mod args;
mod body;
mod call;
mod chunk;
mod extras;
mod random;
mod request;
mod server;
mod stats;

/// Serves until a signal stops it. `print` writes the ready line to standard output.
pub(crate) fn run(
    args: MockArgs,
    print: impl FnOnce(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    args.validate()?;
    http::open_files::raise_limit(0);
    let mut builder = match args.threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder
        .worker_threads(args.threads.into())
        .enable_all()
        .build()
        .context("the async runtime can't be started")?;
    runtime.block_on(async {
        let requested = format!("{}:{}", args.host, args.port);
        let listener = match http::resolve(&args.host, args.port).await {
            Ok(address) => http::listen(address),
            Err(error) => Err(error),
        };
        let listener = listener
            .with_context(|| format!("can't listen on {requested}; choose another --port"))?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        tokio::spawn(Signals::new()?.watch(stop.clone()));
        // The ready line has the form of an assignment, so that scripts can read the address.
        print(&format!(
            "mock-openai listens: OPENAI_BASE_URL=http://{address}/v1\n"
        ))?;
        server::serve(listener, Arc::new(MockState::new(&args)), stop).await;
        Ok(())
    })
}
