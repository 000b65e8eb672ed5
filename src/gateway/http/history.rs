//! Serves a user's own conversations over HTTP (protocol.md section 4): lists the conversations,
//! reads a conversation in pages, and forgets a conversation or all.

use std::borrow::Cow;

use hyper::{Method, StatusCode};
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::origin;
use super::query::{Head, Query};
use super::response::{HttpError, HttpResponse, forbid_caching, json_response, no_content};
use crate::fanout::{FanoutError, Turn, TurnStatus};
use crate::gateway::auth;
use crate::gateway::context::Gateway;
use crate::protocol::ids::{ConversationId, MessageId, UserId};
use crate::protocol::timestamp::rfc3339;

/// Maximum number of entries of a page if the request has no `limit`.
const DEFAULT_PAGE_ENTRIES: usize = 50;

/// Maximum number of entries of a page, whatever the request's `limit`.
const MAX_PAGE_ENTRIES: usize = 200;

/// Maximum number of turns that one call to the fan-out returns. Small, because answers may be
/// long.
const MAX_TURNS_PER_CALL: usize = 16;

/// Size of a page's questions, answers and parts, in bytes, from which on no turns are added. The last
/// call to the fan-out may raise the size of the page above this size.
const FULL_PAGE_BYTES: usize = 1 << 20;

/// The methods that `/conversations` serves. Preflights announce them for every path below
/// `/conversations` too, although not each of these paths serves every method.
const METHODS: &str = "GET, DELETE, OPTIONS";

/// The resource that a path below `/conversations` names.
enum Resource {
    /// The path `/conversations`.
    AllConversations,
    /// A path `/conversations/{id}`.
    Conversation(ConversationId),
    /// A path `/conversations/{id}/messages`.
    Messages(ConversationId),
}

/// Serves `/conversations` and every path below it.
pub(super) async fn serve(gateway: &Gateway, request: &Head) -> Result<HttpResponse, HttpError> {
    let resource = parse_resource(request.uri().path())?;
    let query = Query::parse(request.uri());
    let token = auth::bearer_token(request.headers());
    // Without `userid`, the user is the subject of the signed token, which is verified below.
    let user = match query.user() {
        Err(error) if !query.has_userid() => auth::unverified_user(gateway, token).ok_or(error)?,
        user => user?,
    };
    auth::check_token(gateway, &user, token).await?;
    let mut response = match (request.method(), resource) {
        (&Method::GET, Resource::AllConversations) => {
            list_conversations(gateway, &user, &query).await?
        }
        (&Method::GET, Resource::Messages(conversation)) => {
            read_messages(gateway, &user, &conversation, &query).await?
        }
        (&Method::DELETE, Resource::AllConversations) => forget(gateway, &user, None).await?,
        (&Method::DELETE, Resource::Conversation(conversation)) => {
            forget(gateway, &user, Some(&conversation)).await?
        }
        (_, Resource::AllConversations) => return Err(HttpError::method_not_allowed(METHODS)),
        (_, Resource::Conversation(_)) => {
            return Err(HttpError::method_not_allowed("DELETE, OPTIONS"));
        }
        (_, Resource::Messages(_)) => return Err(HttpError::method_not_allowed("GET, OPTIONS")),
    };
    forbid_caching(&mut response);
    Ok(response)
}

fn parse_resource(path: &str) -> Result<Resource, HttpError> {
    let mut segments = path.split('/').skip(2);
    let Some(conversation) = segments.next() else {
        return Ok(Resource::AllConversations);
    };
    let conversation = percent_decoded(conversation)
        .and_then(|id| ConversationId::parse(&id).ok())
        .ok_or(HttpError::bad_request(
            "a conversation is 1 to 64 characters of A-Z a-z 0-9 . _ : @ | + -",
        ))?;
    match (segments.next(), segments.next()) {
        (None, None) => Ok(Resource::Conversation(conversation)),
        (Some("messages"), None) => Ok(Resource::Messages(conversation)),
        _ => Err(HttpError::not_found()),
    }
}

/// Decodes one segment of a path. `None` if a percent escape is malformed or the result is not
/// UTF-8. In contrast to form decoding, `+` stays a plus sign.
fn percent_decoded(segment: &str) -> Option<Cow<'_, str>> {
    if !segment.contains('%') {
        return Some(segment.into());
    }
    let mut decoded = Vec::with_capacity(segment.len());
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
            decoded.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

fn page_limit(query: &Query<'_>) -> Result<usize, HttpError> {
    let Some(limit) = query.limit.as_deref() else {
        return Ok(DEFAULT_PAGE_ENTRIES);
    };
    match limit.parse() {
        Ok(limit) if limit > 0 => Ok(MAX_PAGE_ENTRIES.min(limit)),
        _ => Err(HttpError::bad_request("`limit` must be a number above 0")),
    }
}

/// Counts and logs a failed call to the fan-out. Returns the error for the client.
fn report_unavailable(
    gateway: &Gateway,
    operation: &'static str,
    error: &FanoutError,
) -> HttpError {
    gateway.metrics.count_fanout_error(operation);
    tracing::warn!(
        %error,
        operation,
        "history request failed, the fan-out is unavailable; check redis"
    );
    HttpError::unavailable("the history can't be reached now")
}

async fn list_conversations(
    gateway: &Gateway,
    user: &UserId,
    query: &Query<'_>,
) -> Result<HttpResponse, HttpError> {
    #[derive(Serialize)]
    struct Entry<'a> {
        conversation_id: &'a ConversationId,
        turns: u64,
        updated_at: String,
    }
    let limit = page_limit(query)?;
    let after = match query.after.as_deref().map(ConversationId::parse) {
        None => None,
        Some(Ok(after)) => Some(after),
        Some(Err(_)) => return Err(HttpError::bad_request("`after` must be a conversation")),
    };
    let conversations = gateway
        .fanout
        .conversations(user, after.as_ref(), limit)
        .await
        .map_err(|error| report_unavailable(gateway, "conversations", &error))?;
    let is_full_page = conversations.len() == limit;
    let next = conversations.last().filter(|_| is_full_page);
    let entries: Vec<_> = conversations
        .iter()
        .map(|conversation| Entry {
            conversation_id: &conversation.conversation,
            turns: conversation.turns,
            updated_at: rfc3339(conversation.updated_ms),
        })
        .collect();
    Ok(json_response(
        StatusCode::OK,
        &json!({"conversations": entries, "next": next.map(|last| &last.conversation)}),
    ))
}

/// One page of a conversation, newest turn first, and whether older turns follow.
struct Page {
    turns: Vec<Turn>,
    has_more: bool,
}

/// Reads the turns older than that of the message `before` (`None`: the newest turns) until there
/// are `limit` turns or [`FULL_PAGE_BYTES`]. A 404 if the conversation has no turn `before`.
async fn read_page(
    gateway: &Gateway,
    user: &UserId,
    conversation: &ConversationId,
    mut before: Option<MessageId>,
    limit: usize,
) -> Result<Page, HttpError> {
    let mut turns: Vec<Turn> = Vec::new();
    let mut page_bytes = 0;
    loop {
        let requested_turns = MAX_TURNS_PER_CALL.min(limit - turns.len());
        let batch = gateway
            .fanout
            .history(user, conversation, before.as_ref(), requested_turns)
            .await
            .map_err(|error| report_unavailable(gateway, "history", &error))?;
        let Some(batch) = batch else {
            if turns.is_empty() {
                return Err(HttpError::not_found());
            }
            // The last turn was removed since the previous call, so there are no older turns.
            let has_more = false;
            return Ok(Page { turns, has_more });
        };
        let has_more = batch.len() == requested_turns;
        page_bytes += batch.iter().map(content_bytes).sum::<usize>();
        turns.extend(batch);
        before = turns.last().map(|turn| turn.message_id.clone());
        if !has_more || turns.len() >= limit || page_bytes >= FULL_PAGE_BYTES {
            return Ok(Page { turns, has_more });
        }
    }
}

/// Size of a turn's question, answer and parts, in bytes.
fn content_bytes(turn: &Turn) -> usize {
    let question_bytes = turn.question.as_ref().map_or(0, String::len);
    let parts_bytes = turn.parts.as_ref().map_or(0, |parts| parts.len());
    question_bytes + turn.answer.len() + parts_bytes
}

/// A turn in the response body.
#[derive(Serialize)]
struct MessageEntry<'a> {
    message_id: &'a MessageId,
    question: Option<&'a str>,
    answer: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    parts: Option<&'a RawValue>,
    status: &'static str,
    timestamp: String,
}

impl<'a> MessageEntry<'a> {
    fn new(turn: &'a Turn) -> Self {
        let parts = turn.parts.as_deref();
        Self {
            message_id: &turn.message_id,
            question: turn.question.as_deref(),
            answer: &turn.answer,
            // Passed on without decoding, so that the parts of a later version reach the client.
            parts: parts.and_then(|parts| serde_json::from_str(parts).ok()),
            status: match turn.status {
                TurnStatus::Answered => "answered",
                TurnStatus::Cancelled => "cancelled",
                TurnStatus::Failed => "failed",
            },
            timestamp: rfc3339(turn.at_ms),
        }
    }
}

async fn read_messages(
    gateway: &Gateway,
    user: &UserId,
    conversation: &ConversationId,
    query: &Query<'_>,
) -> Result<HttpResponse, HttpError> {
    #[derive(Serialize)]
    struct Body<'a> {
        conversation_id: &'a ConversationId,
        messages: Vec<MessageEntry<'a>>,
        next: Option<&'a MessageId>,
    }
    let limit = page_limit(query)?;
    let before = match query.before.as_deref().map(MessageId::parse) {
        None => None,
        Some(Ok(before)) => Some(before),
        Some(Err(_)) => return Err(HttpError::bad_request("`before` must be a message_id")),
    };
    let Page { turns, has_more } = read_page(gateway, user, conversation, before, limit).await?;
    let next = turns.last().filter(|_| has_more);
    Ok(json_response(
        StatusCode::OK,
        &Body {
            conversation_id: conversation,
            messages: turns.iter().map(MessageEntry::new).collect(),
            next: next.map(|turn| &turn.message_id),
        },
    ))
}

/// Deletes a conversation, or all conversations of the user if `conversation` is `None`.
async fn forget(
    gateway: &Gateway,
    user: &UserId,
    conversation: Option<&ConversationId>,
) -> Result<HttpResponse, HttpError> {
    gateway
        .fanout
        .forget(user, conversation)
        .await
        .map_err(|error| report_unavailable(gateway, "forget", &error))?;
    let all = conversation.is_none();
    tracing::info!(user = user.as_str(), all, "history forgotten");
    Ok(no_content())
}

/// Answers a browser's preflight for `/conversations` and every path below it.
pub(super) fn preflight(gateway: &Gateway, request: &Head) -> HttpResponse {
    origin::preflight(gateway, request.headers(), METHODS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn turn(parts: Option<&str>) -> Turn {
        Turn {
            message_id: MessageId::parse("m").unwrap(),
            question: Some("Why?".into()),
            answer: "So.".into(),
            parts: parts.map(Into::into),
            status: TurnStatus::Answered,
            at_ms: 0,
        }
    }

    #[test]
    fn turn_has_its_parts_as_they_are_stored() {
        let encode = |turn: &Turn| serde_json::to_string(&MessageEntry::new(turn)).unwrap();
        let parts = r#"[{"kind":"image", "meta":{"w":7.50}},{"kind":"text","length":3}]"#;
        let entry = encode(&turn(Some(parts)));
        assert!(
            entry.contains(&format!(r#""answer":"So.","parts":{parts},"#)),
            "{entry}"
        );
        for unreadable in [None, Some("[")] {
            let entry = encode(&turn(unreadable));
            assert!(!entry.contains("parts"), "{entry}");
        }
    }

    #[test]
    fn size_of_a_turn_counts_its_parts() {
        assert_eq!(content_bytes(&turn(None)), 7);
        assert_eq!(content_bytes(&turn(Some("[{}]"))), 11);
    }

    #[test]
    fn conversation_in_path_is_decoded_before_it_is_validated() {
        let conversation = |path: &str| match parse_resource(path) {
            Ok(Resource::Messages(id) | Resource::Conversation(id)) => Some(id.to_string()),
            _ => None,
        };
        assert_eq!(
            conversation("/conversations/a%7cb/messages").unwrap(),
            "a|b"
        );
        assert_eq!(conversation("/conversations/a+b").unwrap(), "a+b");
        for bad in [
            "/conversations/",
            "/conversations/a%2",
            "/conversations/a%zz",
            "/conversations/%2e%2e%2f",
            "/conversations/a/other",
            "/conversations/a/messages/b",
        ] {
            assert_eq!(conversation(bad), None, "{bad}");
        }
        assert!(matches!(
            parse_resource("/conversations"),
            Ok(Resource::AllConversations)
        ));
    }

    proptest! {
        #[test]
        fn encoded_conversation_is_read_as_written_and_no_path_panics(
            name in "[A-Za-z0-9._:@|+-]{1,64}",
            suffix in "[!-~]{0,60}",
        ) {
            use std::fmt::Write as _;
            let mut path = "/conversations/".to_owned();
            for byte in name.bytes() {
                write!(path, "%{byte:02X}").unwrap();
            }
            let read = parse_resource(&path);
            prop_assert!(matches!(read, Ok(Resource::Conversation(id)) if id.as_str() == name));
            let _ = parse_resource(&format!("/conversations{suffix}"));
            let _ = parse_resource(&format!("/conversations/{suffix}"));
        }
    }
}
