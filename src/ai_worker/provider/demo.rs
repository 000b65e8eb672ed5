//! The built-in demo model, for trying chatmesh without a model API.

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream;

use super::{
    ModelError, ModelEvent, ModelRequest, ModelStream, PartDelta, PartKey, Provider, Role,
};
use crate::ai_worker::prompt::{estimate_prompt_tokens, estimate_tokens};
use crate::protocol::record::Usage;

/// Answers every message by repeating it, one word per event and without delay.
#[derive(Debug, Clone, Copy, Default)]
pub struct Demo;

impl Demo {
    /// The model name in answers and metrics.
    pub const MODEL: &'static str = "chatmesh-demo";

    const INTRODUCTION: &'static str = "This is the demo model of chatmesh, which only repeats \
        what it is told. Set OPENAI_API_KEY (or OPENAI_BASE_URL for a local server) to connect a \
        real one.\n\nYou said: ";
}

#[async_trait]
impl Provider for Demo {
    async fn call(&self, request: &ModelRequest) -> Result<ModelStream, ModelError> {
        let question = request.messages.iter().rev().find(|m| m.role == Role::User);
        let question = question.map_or("", |message| message.content.as_str());
        let answer = format!("{}{question}", Self::INTRODUCTION);

        let prompt_tokens = estimate_prompt_tokens(&request.messages) as u64;
        let completion_tokens = estimate_tokens(&answer) as u64;
        let usage = Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
        };
        let words: Vec<String> = answer
            .split_inclusive(char::is_whitespace)
            .map(str::to_owned)
            .collect();
        let last_events = [
            ModelEvent::Usage(usage),
            ModelEvent::Finished {
                reason: "stop".to_owned(),
                model: Some(Self::MODEL.to_owned()),
            },
        ];
        let deltas = words
            .into_iter()
            .map(|word| ModelEvent::Delta(PartDelta::new(PartKey::Text, word)));
        let events = deltas.chain(last_events).map(Ok);
        Ok(stream::iter(events).boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ai_worker::provider::ChatMessage;

    #[tokio::test]
    async fn the_demo_model_introduces_itself_and_repeats_the_question() {
        let message = |role, content: &str| ChatMessage {
            role,
            content: content.to_owned(),
        };
        let request = ModelRequest {
            model: "anything".to_owned(),
            messages: vec![
                message(Role::System, "Be brief."),
                message(Role::User, "earlier"),
                message(Role::Assistant, "answer"),
                message(Role::User, "Grüße  an\nalle 👋"),
            ],
            max_tokens: 1,
            temperature: 0.0,
        };
        let events: Vec<_> = Demo.call(&request).await.unwrap().collect().await;
        let mut text = String::new();
        let mut last_events = Vec::new();
        for event in events {
            match event.unwrap() {
                ModelEvent::Delta(delta) => {
                    assert!(!delta.text.is_empty() && last_events.is_empty());
                    assert_eq!(delta.key, PartKey::Text);
                    text.push_str(&delta.text);
                }
                event => last_events.push(event),
            }
        }
        assert!(text.ends_with("You said: Grüße  an\nalle 👋"), "{text}");
        assert!(text.contains("demo model of chatmesh") && text.contains("OPENAI_API_KEY"));
        let [
            ModelEvent::Usage(usage),
            ModelEvent::Finished { reason, model },
        ] = &last_events[..]
        else {
            panic!("{last_events:?}")
        };
        assert_eq!(
            usage.total_tokens,
            usage.prompt_tokens + usage.completion_tokens
        );
        assert!(usage.prompt_tokens > 0 && usage.completion_tokens > 0);
        assert_eq!(
            (reason.as_str(), model.as_deref()),
            ("stop", Some(Demo::MODEL))
        );
    }
}
