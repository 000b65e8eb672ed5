//! `chatmesh mock-openai`: a local server of OpenAI's chat completions for load tests and demos.
//!
//! It must never be what a measurement measures: an answer that isn't paced is one write, a paced
//! one a write for everything that is due, and nothing is looked at in a request but what the
//! answer depends on.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::span::{Share, Span};
use super::{Misused, descriptors};
use crate::signals::Signals;

mod answer;
mod body;
mod request;
mod server;
mod stats;

const EXAMPLES: &str = "\
Examples:
  chatmesh mock-openai                                   answers at once, 20 tokens
  chatmesh mock-openai --latency-ms 200..800 --tokens 50..300 --tokens-per-second 60
  chatmesh mock-openai --error-share 5% --rate-limit-share 1% --cut-share 1%
  OPENAI_BASE_URL=http://127.0.0.1:9100/v1 chatmesh all-in-one

An answer begins with the FNV-1a hash (64 bits, hexadecimal) of the seed, if it isn't 0, and the
last user message, and is the same for the same message and seed. GET /stats has what was asked and
how it ended.";

/// Where it listens, and how it behaves.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct MockArgs {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 9100)]
    port: u16,
    /// Time before an answer's first token, in milliseconds: fixed, or from a to b.
    #[arg(long, value_name = "N|A..B", default_value = "0")]
    latency_ms: Span,
    /// Tokens of an answer, up to 100000.
    #[arg(long, value_name = "N|A..B", default_value = "20", value_parser = tokens)]
    tokens: Span,
    /// Pace of an answer's tokens; 0 sends all at once.
    #[arg(long, value_name = "N", default_value_t = 0.0, value_parser = pace)]
    tokens_per_second: f64,
    /// Calls that fail with a status of 500, 502 or 503.
    #[arg(long, value_name = "SHARE", default_value = "0")]
    error_share: Share,
    /// Calls that are refused with 429.
    #[arg(long, value_name = "SHARE", default_value = "0")]
    rate_limit_share: Share,
    /// What a 429 says in Retry-After, in seconds.
    #[arg(long, value_name = "N", default_value_t = 1)]
    retry_after: u32,
    /// Streams that break off before their end.
    #[arg(long, value_name = "SHARE", default_value = "0")]
    cut_share: Share,
    /// Begins the dice and the texts; the same calls in the same order get the same outcomes.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Answer "echo: " and the last user message, word by word, instead of --tokens.
    #[arg(long, conflicts_with = "stamp")]
    echo: bool,
    /// Each token is the time when it was written (@ and microseconds since 1970), from which a
    /// load test on the same machine tells how long it was under way.
    #[arg(long)]
    stamp: bool,
    /// The model's name.
    #[arg(long, value_name = "NAME", default_value = "mock", value_parser = name)]
    model: String,
    /// Threads that serve.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
}

fn pace(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(pace) if (0.0..=1e9).contains(&pace) => Ok(pace),
        _ => Err("needs a number from 0 on".to_owned()),
    }
}

/// An unpaced answer is made in one piece, of some 200 bytes a token.
const MOST_TOKENS: u64 = 100_000;

fn tokens(text: &str) -> Result<Span, String> {
    let span: Span = text.parse()?;
    if span.most() > MOST_TOKENS {
        return Err(format!("an answer has up to {MOST_TOKENS} tokens"));
    }
    Ok(span)
}

fn name(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("needs a name".to_owned()),
        _ => Ok(text.to_owned()),
    }
}

impl MockArgs {
    /// What no flag by itself can tell.
    fn check(&self) -> Result<(), Misused> {
        let shares = [self.rate_limit_share, self.error_share, self.cut_share];
        let all: f64 = shares.iter().map(|share| share.part()).sum();
        if all > 1.0 + 1e-9 {
            return Err(Misused(format!(
                "--rate-limit-share, --error-share and --cut-share are {:.0} % together, and there \
                 are only 100 % of calls",
                all * 100.0
            )));
        }
        Ok(())
    }
}

/// Serves until a signal ends it. `say` prints for the user.
pub(crate) fn run(
    args: MockArgs,
    say: impl FnOnce(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    args.check()?;
    descriptors::raise(0);
    let mut builder = match args.threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = builder
        .worker_threads(args.threads.into())
        .enable_all()
        .build()
        .context("the runtime can't be started")?;
    runtime.block_on(async {
        let place = format!("{}:{}", args.host, args.port);
        let listener = listen(&args)
            .await
            .with_context(|| format!("{place} can't be listened on; choose another by --port"))?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        tokio::spawn(Signals::new()?.watch(stop.clone()));
        say(&greeting(address))?;
        server::serve(listener, Arc::new(server::Mock::new(&args)), stop).await;
        Ok(())
    })
}

async fn listen(args: &MockArgs) -> anyhow::Result<TcpListener> {
    let address = tokio::net::lookup_host((args.host.as_str(), args.port))
        .await?
        .next()
        .context("the host has no address")?;
    let socket = if address.is_ipv4() {
        tokio::net::TcpSocket::new_v4()?
    } else {
        tokio::net::TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    // Workers may open a thousand connections at once.
    Ok(socket.listen(4096)?)
}

/// One line that a script can read, too.
fn greeting(address: SocketAddr) -> String {
    format!("mock-openai listens: OPENAI_BASE_URL=http://{address}/v1\n")
}
