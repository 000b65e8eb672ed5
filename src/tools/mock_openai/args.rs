//! The options of `chatmesh mock-openai`.

use clap::Args;

use super::random::{Fraction, NumberRange};
use crate::tools::UsageError;

const EXAMPLES: &str = "\
Examples:
  chatmesh mock-openai                                   answers at once, 20 tokens
  chatmesh mock-openai --latency-ms 200..800 --tokens 50..300 --tokens-per-second 60
  chatmesh mock-openai --reasoning-tokens 100..400 --sources 3 --tool-call
  chatmesh mock-openai --error-share 5% --rate-limit-share 1% --cut-share 1%
  OPENAI_BASE_URL=http://127.0.0.1:9100/v1 chatmesh all-in-one

The text of an answer begins with the FNV-1a hash (64 bits, hexadecimal) of the seed, unless it is 0, and the
last user message. The same message and seed always get the same answer. GET /stats returns counters
of the calls and their outcomes.";

/// The options of `chatmesh mock-openai`: where the mock listens and how it answers.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct MockArgs {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    pub(super) host: String,
    /// Port to listen on; 0 chooses a free port.
    #[arg(long, default_value_t = 9100)]
    pub(super) port: u16,
    /// Time before the first token of an answer, in milliseconds: fixed, or random from A to B.
    #[arg(long, value_name = "N|A..B", default_value = "0")]
    pub(super) latency_ms: NumberRange,
    /// Tokens of an answer, up to 100000: fixed, or random from A to B.
    #[arg(long, value_name = "N|A..B", default_value = "20", value_parser = parse_tokens)]
    pub(super) tokens: NumberRange,
    /// Tokens of reasoning before the text, in addition to --tokens: fixed, or random from A to B.
    #[arg(long, value_name = "N|A..B", default_value = "0", value_parser = parse_tokens)]
    pub(super) reasoning_tokens: NumberRange,
    /// Send the text as the model's refusal.
    #[arg(long)]
    pub(super) refusal: bool,
    /// Sources that each answer names after its text, up to 100.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=100))]
    pub(super) sources: u16,
    /// Call the tool "search" at the end of each answer, with the last user message as its query.
    #[arg(long)]
    pub(super) tool_call: bool,
    /// Tokens a second of each answer; 0 sends all tokens at once.
    #[arg(long, value_name = "N", default_value_t = 0.0, value_parser = parse_token_rate)]
    pub(super) tokens_per_second: f64,
    /// Fraction of calls that fail with status 500, 502 or 503.
    #[arg(long, value_name = "SHARE", default_value = "0")]
    pub(super) error_share: Fraction,
    /// Fraction of calls that are refused with status 429.
    #[arg(long, value_name = "SHARE", default_value = "0")]
    pub(super) rate_limit_share: Fraction,
    /// Retry-After of a 429 response, in seconds.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) retry_after: u32,
    /// Fraction of streams that are cut off in the middle.
    #[arg(long, value_name = "SHARE", default_value = "0")]
    pub(super) cut_share: Fraction,
    /// Seed of the random outcomes and of the texts; the same calls in the same order get the same
    /// outcomes.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,
    /// Answer "echo: " and the last user message, word by word, instead of --tokens.
    #[arg(long, conflicts_with = "stamp")]
    pub(super) echo: bool,
    /// Make each token the time when it was written (@ and microseconds since 1970), so that a load
    /// test on the same machine can measure the latency of each token.
    #[arg(long)]
    pub(super) stamp: bool,
    /// Name of the model.
    #[arg(long, value_name = "NAME", default_value = "mock", value_parser = parse_model)]
    pub(super) model: String,
    /// Number of server threads.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(super) threads: u16,
}

fn parse_token_rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.0..=1e9).contains(&rate) => Ok(rate),
        _ => Err("needs a number that is 0 or more".to_owned()),
    }
}

/// Largest value of `--tokens` and of `--reasoning-tokens`. An answer without `--tokens-per-second` is built in memory as a
/// whole, at about 200 bytes per token.
const MAX_TOKENS: u64 = 100_000;

fn parse_tokens(text: &str) -> Result<NumberRange, String> {
    let tokens: NumberRange = text.parse()?;
    if tokens.max() > MAX_TOKENS {
        return Err(format!("an answer has up to {MAX_TOKENS} tokens"));
    }
    Ok(tokens)
}

fn parse_model(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("needs a name".to_owned()),
        _ => Ok(text.to_owned()),
    }
}

impl MockArgs {
    /// Checks that the shares of the outcomes do not exceed 100 % together, because a call has only
    /// one outcome.
    pub(super) fn validate(&self) -> Result<(), UsageError> {
        let shares = [self.rate_limit_share, self.error_share, self.cut_share];
        let total: f64 = shares.iter().map(|share| share.value()).sum();
        if total > 1.0 + 1e-9 {
            return Err(UsageError(format!(
                "--rate-limit-share, --error-share and --cut-share are {:.0} % together; lower them \
                 to 100 % or less",
                total * 100.0
            )));
        }
        Ok(())
    }
}
