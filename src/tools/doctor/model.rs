//! Checks the model's API by one short call, which is made in the same way as a worker's calls.

use std::time::Instant;

use futures_util::StreamExt as _;

use super::report::Findings;
use crate::ai_worker::provider::openai::OpenAi;
use crate::ai_worker::provider::{
    ChatMessage, ModelError, ModelEvent, ModelRequest, Provider as _, Role,
};
use crate::config::settings::{ModelApiSettings, WorkerSettings};

/// Maximum number of tokens of the test answer. One word is enough, but reasoning models spend
/// tokens before they write it.
const MAX_ANSWER_TOKENS: u32 = 64;

pub(super) async fn check(settings: &WorkerSettings, findings: &mut Findings) {
    let Some(api) = &settings.model else {
        findings.add_warning(
            "the built-in demo model answers, which only repeats the message",
            "set OPENAI_API_KEY, or OPENAI_BASE_URL for a server of your own",
        );
        return;
    };
    let provider = match OpenAi::new(api) {
        Ok(provider) => provider,
        Err(error) => {
            findings.add_problem(error.to_string(), "correct the setting");
            return;
        }
    };
    let request = ModelRequest {
        model: settings.prompt.model.clone(),
        messages: vec![ChatMessage {
            role: Role::User,
            content: "Say the word ready.".to_owned(),
        }],
        max_tokens: settings.prompt.max_tokens.min(MAX_ANSWER_TOKENS),
        temperature: settings.prompt.temperature,
    };
    let address = address(api);
    match call(&provider, &request).await {
        Ok((first_ms, total_ms)) => {
            let text = format!(
                "{} at {address} answers: first token after {first_ms} ms, all after {total_ms} ms",
                request.model
            );
            let limit_ms = api.first_token_timeout.as_millis();
            // A worker abandons a call that has no token at this limit. If the first token takes
            // more than half of this time now, it may exceed the limit in busy hours.
            if first_ms * 2 > limit_ms {
                findings.add_warning(
                    text,
                    format!("this is close to OPENAI_TIMEOUT_MS ({limit_ms} ms to the first token): raise it"),
                );
            } else {
                findings.add_ok(text);
            }
        }
        Err(error) => {
            let text = format!(
                "{} at {address} does not answer: {}",
                request.model, error.detail
            );
            findings.add_problem(text, advice(&error, api));
        }
    }
}

/// Returns the API's URL without user, password and query, which may be secret.
fn address(api: &ModelApiSettings) -> String {
    let url = &api.base_url;
    let host = url.host_str().unwrap_or_default();
    let port = url
        .port()
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    format!("{}://{host}{port}{}", url.scheme(), url.path())
}

/// Calls the model. Returns the milliseconds to the first token and to the end of the answer; both
/// are the same if the answer has no text.
async fn call(provider: &OpenAi, request: &ModelRequest) -> Result<(u128, u128), ModelError> {
    let started = Instant::now();
    let mut first_ms = None;
    let mut answer = provider.call(request).await?;
    while let Some(event) = answer.next().await {
        match event? {
            ModelEvent::Delta(_) => {
                first_ms.get_or_insert_with(|| started.elapsed().as_millis());
            }
            ModelEvent::Usage(_) | ModelEvent::Finished { .. } => {}
        }
    }
    let total_ms = started.elapsed().as_millis();
    Ok((first_ms.unwrap_or(total_ms), total_ms))
}

/// Returns what the operator can do about a failed call.
fn advice(error: &ModelError, api: &ModelApiSettings) -> String {
    match error.kind {
        "auth" if api.api_key.is_none() => "it requires a key: set OPENAI_API_KEY".to_owned(),
        "auth" => "it rejects the key: correct OPENAI_API_KEY".to_owned(),
        "quota" => "the key's quota is used up: raise it with the provider".to_owned(),
        "rate_limited" => {
            "the key's rate limit is reached: try again later, or ask the provider for more"
                .to_owned()
        }
        "connect" => "it can't be reached: correct OPENAI_BASE_URL, or check the network and the \
                      server's certificate"
            .to_owned(),
        "first_token_timeout" => {
            let limit_ms = api.first_token_timeout.as_millis();
            format!(
                "no token arrived within OPENAI_TIMEOUT_MS ({limit_ms} ms): raise it if the model starts slowly"
            )
        }
        "idle_timeout" => {
            "it stopped during the answer: raise OPENAI_IDLE_TIMEOUT_MS, or check the server"
                .to_owned()
        }
        "rejected" => "it rejects the request: correct OPENAI_MODEL, and the path in \
                       OPENAI_BASE_URL (it usually ends in /v1)"
            .to_owned(),
        _ => "check the server's own log; the worker retries such calls".to_owned(),
    }
}
