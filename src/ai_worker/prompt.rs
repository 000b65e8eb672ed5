//! Builds the prompt of a model call: the instructions, as many earlier turns as fit, and the
//! question.

use crate::config::settings::PromptSettings;
use crate::fanout::{Turn, TurnStatus};

use super::provider::{ChatMessage, ModelRequest, Role};

/// Number of tokens of a message in addition to its text, for the role and separators.
const MESSAGE_OVERHEAD_TOKENS: usize = 4;
/// Number of tokens of a prompt in addition to its messages, for the start of the answer.
const PROMPT_OVERHEAD_TOKENS: usize = 3;

/// Builds the requests of model calls.
#[derive(Debug)]
pub struct PromptBuilder;

impl PromptBuilder {
    /// The number of messages that `turns` become in a prompt. Excluded turns become none.
    pub(super) fn message_count(turns: &[Turn]) -> usize {
        turns
            .iter()
            .filter(|turn| is_in_context(turn))
            .map(turn_message_count)
            .sum()
    }

    /// Builds a request from the conversation's `turns`, oldest first.
    ///
    /// - The newest turns that fit are included, in order and without a gap: at most
    ///   `history_max_messages` messages, and together with instructions and question at most the
    ///   context window minus the answer's `max_tokens`, as [`estimate_tokens`] counts.
    /// - Turns are not split: an answer without its question would have another meaning.
    /// - Failed turns and turns without an answer are excluded, because the model would answer
    ///   their questions again. Of a turn that was stored without its question, the answer is
    ///   included.
    /// - The instructions, unless blank, and the question are always included, even if they exceed
    ///   the context window.
    pub fn build(settings: &PromptSettings, turns: &[Turn], question: &str) -> ModelRequest {
        let question = message(Role::User, question);
        let system = Some(settings.system_prompt.trim())
            .filter(|text| !text.is_empty())
            .map(|text| message(Role::System, text));

        let mut tokens_left = settings
            .context_window_tokens
            .saturating_sub(settings.max_tokens as usize)
            .saturating_sub(PROMPT_OVERHEAD_TOKENS + token_cost(&question))
            .saturating_sub(system.as_ref().map_or(0, token_cost));
        let mut messages_left = settings.history_max_messages;
        let mut newest_first = Vec::new();
        if settings.keep_history {
            for turn in turns.iter().rev().filter(|turn| is_in_context(turn)) {
                let answer = message(Role::Assistant, &turn.answer);
                let question = turn.question.as_deref();
                let question = question.map(|text| message(Role::User, text));
                let tokens = token_cost(&answer) + question.as_ref().map_or(0, token_cost);
                let count = turn_message_count(turn);
                if count > messages_left || tokens > tokens_left {
                    break;
                }
                messages_left -= count;
                tokens_left -= tokens;
                newest_first.push(answer);
                newest_first.extend(question);
            }
        }

        let history = newest_first.into_iter().rev();
        ModelRequest {
            model: settings.model.clone(),
            messages: system
                .into_iter()
                .chain(history)
                .chain([question])
                .collect(),
            max_tokens: settings.max_tokens,
            temperature: settings.temperature,
        }
    }
}

fn is_in_context(turn: &Turn) -> bool {
    turn.status != TurnStatus::Failed && !turn.answer.is_empty()
}

/// The number of messages that a turn becomes in a prompt: its answer, and its question if stored.
fn turn_message_count(turn: &Turn) -> usize {
    1 + usize::from(turn.question.is_some())
}

fn message(role: Role, content: &str) -> ChatMessage {
    ChatMessage {
        role,
        content: content.to_owned(),
    }
}

/// The estimated number of tokens that a message adds to a prompt.
fn token_cost(message: &ChatMessage) -> usize {
    MESSAGE_OVERHEAD_TOKENS + estimate_tokens(&message.content)
}

/// Estimates the number of tokens of a prompt with these messages, as it counts against the context
/// size.
pub(crate) fn estimate_prompt_tokens(messages: &[ChatMessage]) -> usize {
    PROMPT_OVERHEAD_TOKENS + messages.iter().map(token_cost).sum::<usize>()
}

/// Estimates the number of tokens of a text, rather too high than too low, and for every model
/// alike. A run of ASCII letters and digits counts one token per started 4 bytes, a run of bytes
/// beyond ASCII one token per started 3 bytes, and every other ASCII character but the space one
/// token. A run of spaces counts one token per 2 spaces; a single space counts nothing, because it
/// is part of the next word's token.
pub(crate) fn estimate_tokens(text: &str) -> usize {
    let mut bytes = text.as_bytes();
    let mut tokens = 0;
    while let Some(first) = bytes.first() {
        let class = BYTE_CLASSES[usize::from(*first)];
        let run_bytes = bytes
            .iter()
            .position(|byte| BYTE_CLASSES[usize::from(*byte)] != class)
            .unwrap_or(bytes.len());
        tokens += match class {
            ByteClass::Space => run_bytes / 2,
            ByteClass::Word => run_bytes.div_ceil(4),
            ByteClass::Punctuation => run_bytes,
            ByteClass::NonAscii => run_bytes.div_ceil(3),
        };
        bytes = &bytes[run_bytes..];
    }
    tokens
}

/// A class of bytes. [`estimate_tokens`] counts each run of bytes of one class.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ByteClass {
    Space,
    /// An ASCII letter or digit.
    Word,
    /// Any other ASCII character.
    Punctuation,
    /// A byte of a character beyond ASCII.
    NonAscii,
}

/// The class of each byte value. A table makes the estimates fast, which are a large part of the
/// worker's processor time.
static BYTE_CLASSES: [ByteClass; 256] = {
    let mut classes = [ByteClass::NonAscii; 256];
    let mut byte = 0;
    while byte < 128 {
        let c = byte as u8;
        classes[byte] = match c {
            b' ' => ByteClass::Space,
            _ if c.is_ascii_alphanumeric() => ByteClass::Word,
            _ => ByteClass::Punctuation,
        };
        byte += 1;
    }
    classes
};

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::protocol::ids::MessageId;

    fn settings() -> PromptSettings {
        PromptSettings {
            model: "m".to_owned(),
            system_prompt: "Be brief.".to_owned(),
            max_tokens: 500,
            temperature: 0.7,
            context_window_tokens: 16_385,
            keep_history: true,
            history_max_messages: 20,
            max_newest_turn_age: Duration::from_secs(3600),
        }
    }

    fn turn(question: Option<&str>, answer: &str, status: TurnStatus) -> Turn {
        Turn {
            message_id: MessageId::random(),
            question: question.map(str::to_owned),
            answer: answer.to_owned(),
            parts: None,
            status,
            at_ms: 0,
        }
    }

    fn lines(request: &ModelRequest) -> Vec<String> {
        let line = |m: &ChatMessage| format!("{:?}: {}", m.role, m.content);
        request.messages.iter().map(line).collect()
    }

    #[test]
    fn instructions_turns_and_question_are_in_order() {
        let turns = [
            turn(Some("q1"), "a1", TurnStatus::Answered),
            turn(Some("q2"), "half", TurnStatus::Cancelled),
            turn(None, "a3", TurnStatus::Answered),
        ];
        let request = PromptBuilder::build(&settings(), &turns, "q4");
        assert_eq!(
            lines(&request),
            [
                "System: Be brief.",
                "User: q1",
                "Assistant: a1",
                "User: q2",
                "Assistant: half",
                "Assistant: a3",
                "User: q4"
            ]
        );
    }

    #[test]
    fn failed_and_unanswered_turns_are_excluded() {
        let turns = [
            turn(Some("q1"), "went wrong", TurnStatus::Failed),
            turn(Some("q2"), "", TurnStatus::Cancelled),
        ];
        let request = PromptBuilder::build(&settings(), &turns, "q3");
        assert_eq!(lines(&request), ["System: Be brief.", "User: q3"]);
    }

    #[test]
    fn disabled_history_and_blank_instructions_are_excluded() {
        let turns = [turn(Some("q1"), "a1", TurnStatus::Answered)];
        let settings = PromptSettings {
            keep_history: false,
            system_prompt: "  ".to_owned(),
            ..settings()
        };
        let request = PromptBuilder::build(&settings, &turns, "q2");
        assert_eq!(lines(&request), ["User: q2"]);
    }

    #[test]
    fn an_odd_message_limit_splits_no_turn() {
        let turns = [
            turn(Some("q1"), "a1", TurnStatus::Answered),
            turn(Some("q2"), "a2", TurnStatus::Answered),
        ];
        let settings = PromptSettings {
            history_max_messages: 3,
            ..settings()
        };
        let request = PromptBuilder::build(&settings, &turns, "q3");
        assert_eq!(
            lines(&request),
            ["System: Be brief.", "User: q2", "Assistant: a2", "User: q3"]
        );
    }

    #[test]
    fn a_question_over_the_budget_is_sent_without_history() {
        let turns = [turn(Some("q1"), "a1", TurnStatus::Answered)];
        let settings = PromptSettings {
            context_window_tokens: 10,
            ..settings()
        };
        let request = PromptBuilder::build(&settings, &turns, "q2");
        assert_eq!(lines(&request), ["System: Be brief.", "User: q2"]);
    }

    #[test]
    fn estimates_are_not_below_real_token_counts() {
        // The real counts are those of the tokenizer `cl100k_base`.
        for (text, real) in [
            ("", 0),
            ("Hello, how are you?", 6),
            ("The quick brown fox jumps over the lazy dog.", 10),
            ("日本語", 3),
        ] {
            let estimate = estimate_tokens(text);
            assert!(
                estimate >= real && estimate <= real * 2,
                "{text}: {estimate} for {real}"
            );
        }
    }

    fn any_turn() -> impl Strategy<Value = Turn> {
        let status = prop_oneof![
            4 => Just(TurnStatus::Answered),
            1 => Just(TurnStatus::Cancelled),
            1 => Just(TurnStatus::Failed),
        ];
        (
            prop::option::weighted(0.8, "\\PC{0,60}"),
            "\\PC{0,120}",
            status,
        )
            .prop_map(|(question, answer, status)| turn(question.as_deref(), &answer, status))
    }

    proptest! {
        #[test]
        fn prompts_stay_within_the_budget_and_contain_the_newest_turns(
            turns in prop::collection::vec(any_turn(), 0..30),
            question in "\\PC{1,80}",
            context_window_tokens in 0_usize..1500,
            max_tokens in 0_u32..300,
            history_max_messages in 0_usize..30,
        ) {
            let settings = PromptSettings {
                max_tokens, context_window_tokens, history_max_messages, ..settings()
            };
            let request = PromptBuilder::build(&settings, &turns, &question);
            let (last, earlier) = request.messages.split_last().unwrap();
            prop_assert_eq!(&last.content, &question);
            prop_assert_eq!(earlier[0].role, Role::System);
            let history = &earlier[1..];

            let budget = context_window_tokens.saturating_sub(max_tokens as usize);
            prop_assert!(history.is_empty() || estimate_prompt_tokens(&request.messages) <= budget);
            prop_assert!(history.len() <= history_max_messages);

            // The history is a suffix of the conversation, cut between turns.
            let messages_of = |turns: &[Turn]| -> Vec<ChatMessage> {
                turns.iter().filter(|turn| is_in_context(turn)).flat_map(|turn| {
                    let question = turn.question.as_deref().map(|text| message(Role::User, text));
                    question.into_iter().chain([message(Role::Assistant, &turn.answer)])
                }).collect()
            };
            let cut = (0..=turns.len()).rev().find(|cut| messages_of(&turns[*cut..]) == history);
            prop_assert!(cut.is_some(), "not a suffix of whole turns");

            // With the next older turn, the prompt would exceed its maximum number of turns or of
            // tokens.
            let older = turns[..cut.unwrap()].iter().rev().find(|turn| is_in_context(turn));
            if let Some(older) = older {
                let older_messages = messages_of(std::slice::from_ref(older));
                let mut extended = request.messages.clone();
                extended.extend(older_messages.iter().cloned());
                prop_assert!(
                    history.len() + older_messages.len() > history_max_messages
                        || estimate_prompt_tokens(&extended) > budget
                );
            }
        }
    }
}
