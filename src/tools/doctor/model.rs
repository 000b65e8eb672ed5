//! The model's API: one short call, as a worker would make it.

use std::time::Instant;

use futures_util::StreamExt as _;

use super::report::Findings;
use crate::ai_worker::provider::openai::OpenAi;
use crate::ai_worker::provider::{
    ChatMessage, ModelError, ModelEvent, ModelRequest, Provider as _, Role,
};
use crate::config::settings::{ModelApiSettings, WorkerSettings};

/// Enough for a word; models that think before they speak need some of it for that.
const MAX_TOKENS: u32 = 64;

pub(super) async fn look(settings: &WorkerSettings, findings: &mut Findings) {
    let Some(api) = &settings.model else {
        findings.warning(
            "the built-in demo model answers, which only repeats what it is told",
            "set OPENAI_API_KEY, or OPENAI_BASE_URL for a server of your own",
        );
        return;
    };
    let provider = match OpenAi::new(api) {
        Ok(provider) => provider,
        Err(error) => {
            findings.problem(error.to_string(), "correct it");
            return;
        }
    };
    let request = ModelRequest {
        model: settings.prompt.model.clone(),
        messages: vec![ChatMessage {
            role: Role::User,
            content: "Say the word ready.".to_owned(),
        }],
        max_tokens: settings.prompt.max_tokens.min(MAX_TOKENS),
        temperature: settings.prompt.temperature,
    };
    let place = place(api);
    match call(&provider, &request).await {
        Ok((first_ms, all_ms)) => {
            let text = format!(
                "{} at {place} answers: first token after {first_ms} ms, all after {all_ms} ms",
                request.model
            );
            let limit = api.first_token_timeout.as_millis();
            // A worker gives up at the limit; half of it leaves no room for a busy hour.
            if first_ms * 2 > limit {
                findings.warning(
                    text,
                    format!("OPENAI_TIMEOUT_MS ({limit} ms to the first token) is near: raise it"),
                );
            } else {
                findings.ok(text);
            }
        }
        Err(error) => {
            let text = format!(
                "{} at {place} does not answer: {}",
                request.model, error.detail
            );
            findings.problem(text, advice(&error, api));
        }
    }
}

/// Without user, password and query, which may be secret.
fn place(api: &ModelApiSettings) -> String {
    let url = &api.base_url;
    let host = url.host_str().unwrap_or_default();
    let port = url
        .port()
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    format!("{}://{host}{port}{}", url.scheme(), url.path())
}

/// Milliseconds to the first token and to the end.
async fn call(provider: &OpenAi, request: &ModelRequest) -> Result<(u128, u128), ModelError> {
    let began = Instant::now();
    let mut first = None;
    let mut answer = provider.call(request).await?;
    while let Some(event) = answer.next().await {
        match event? {
            ModelEvent::Text(_) => {
                first.get_or_insert_with(|| began.elapsed().as_millis());
            }
            ModelEvent::Usage(_) | ModelEvent::Finished { .. } => {}
        }
    }
    let all = began.elapsed().as_millis();
    Ok((first.unwrap_or(all), all))
}

fn advice(error: &ModelError, api: &ModelApiSettings) -> String {
    match error.kind {
        "auth" if api.api_key.is_none() => "it wants a key: set OPENAI_API_KEY".to_owned(),
        "auth" => "it does not take the key: correct OPENAI_API_KEY".to_owned(),
        "quota" => "the key's quota is used up: raise it with the provider".to_owned(),
        "rate_limited" => {
            "the key's rate is used up: try again later, or ask the provider for more".to_owned()
        }
        "connect" => "nothing can be reached there: correct OPENAI_BASE_URL, or look at the \
                      network and at the server's certificate"
            .to_owned(),
        "first_token_timeout" => {
            let limit = api.first_token_timeout.as_millis();
            format!(
                "nothing came within OPENAI_TIMEOUT_MS ({limit} ms): raise it if the model is slow to begin"
            )
        }
        "idle_timeout" => {
            "it began and stopped: raise OPENAI_IDLE_TIMEOUT_MS, or look at the server".to_owned()
        }
        "rejected" => "it refuses the request: correct OPENAI_MODEL, and the path in \
                       OPENAI_BASE_URL (it mostly ends in /v1)"
            .to_owned(),
        _ => "look at the server's own log; the worker tries such calls again".to_owned(),
    }
}
