//! Composes the settings of the two consumers of the log: worker and relay.

use crate::config::keys::Key;
use crate::config::settings::{
    ModelApiSettings, PipelineSettings, PromptSettings, Reasoning, RelaySettings, WorkerSettings,
};
use crate::config::{Config, keys};

impl Config {
    fn pipeline(&self, topic: String, group: &str, max_workers: &Key) -> PipelineSettings {
        PipelineSettings {
            dead_letter_topic: format!("{topic}.dlq"),
            topic,
            group: group.to_owned(),
            max_workers: self.size(max_workers),
            max_deliveries: self.int_as(&keys::MAX_DELIVERIES),
            read_ahead_bytes: self.size(&keys::READ_AHEAD_BYTES),
            drain_timeout: self.duration(&keys::DRAIN_TIMEOUT_MS),
        }
    }

    /// Settings of the worker.
    pub fn worker(&self) -> WorkerSettings {
        WorkerSettings {
            pipeline: self.pipeline(
                self.messages_topic(),
                "ai-consumer-group",
                &keys::MAX_WORKERS,
            ),
            responses_topic: self.responses_topic(),
            model: self.model_api(),
            prompt: PromptSettings {
                model: self.text_or_empty(&keys::OPENAI_MODEL),
                system_prompt: self.text_or_empty(&keys::SYSTEM_PROMPT),
                max_tokens: self.int_as(&keys::OPENAI_MAX_TOKENS),
                temperature: self.float(&keys::OPENAI_TEMPERATURE),
                context_window_tokens: self.size(&keys::OPENAI_CONTEXT_TOKENS),
                keep_history: self.bool(&keys::KEEP_HISTORY),
                history_max_messages: self.size(&keys::CHAT_HISTORY_MAX_MESSAGES),
                max_newest_turn_age: self.duration(&keys::CHAT_HISTORY_TTL),
            },
            message_max_age: self.duration(&keys::MESSAGE_MAX_AGE),
            message_deadline: self.duration(&keys::MESSAGE_DEADLINE_MS),
            max_answer_bytes: self.size(&keys::MAX_ANSWER_BYTES),
            reasoning: match self.text(&keys::REASONING) {
                Some("keep") => Reasoning::Keep,
                Some("drop") => Reasoning::Drop,
                _ => Reasoning::Show,
            },
            stream_flush: self.duration(&keys::STREAM_FLUSH_MS),
            stream_flush_bytes: self.size(&keys::STREAM_FLUSH_BYTES),
            admin_listen: self.admin_listen(),
        }
    }

    /// Settings of the model's API. `None` if neither a key nor a URL is set: then the demo model
    /// answers.
    fn model_api(&self) -> Option<ModelApiSettings> {
        let api_key = self.secret(&keys::OPENAI_API_KEY);
        let base_url = match (self.text(&keys::OPENAI_BASE_URL), &api_key) {
            (Some(url), _) => url,
            (None, Some(_)) => "https://api.openai.com/v1",
            (None, None) => return None,
        };
        Some(ModelApiSettings {
            base_url: url::Url::parse(base_url).ok()?,
            api_key,
            first_token_timeout: self.duration(&keys::OPENAI_TIMEOUT_MS),
            idle_timeout: self.duration(&keys::OPENAI_IDLE_TIMEOUT_MS),
            max_attempts: self.int_as(&keys::OPENAI_MAX_ATTEMPTS),
        })
    }

    /// Settings of the relay.
    pub fn relay(&self) -> RelaySettings {
        RelaySettings {
            pipeline: self.pipeline(
                self.responses_topic(),
                "message-relay-group",
                &keys::RELAY_MAX_IN_FLIGHT,
            ),
            rewind_window: self.duration(&keys::RELAY_REWIND_SECONDS),
            rebuild_window: self.duration(&keys::RELAY_REBUILD_SECONDS),
            log_epoch: self.text_or_empty(&keys::LOG_EPOCH),
            admin_listen: self.admin_listen(),
        }
    }
}
