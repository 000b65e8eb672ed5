//! A user's own history over HTTP (protocol.md section 4): listed, paged, forgotten.

use std::borrow::Cow;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CACHE_CONTROL, HeaderValue};
use hyper::http::request::Parts as RequestParts;
use hyper::{Method, Response, StatusCode};
use serde::Serialize;
use serde_json::json;

use super::handshake::Query;
use super::reply::{Refusal, Reply, json_reply};
use super::{Gateway, auth, origin};
use crate::fanout::{FanoutError, Turn, TurnStatus};
use crate::protocol::ids::{ConversationId, MessageId, UserId};
use crate::protocol::timestamp::rfc3339;

/// Entries of a page where the client says nothing, and at most.
const PAGE: usize = 50;
const MAX_PAGE: usize = 200;

/// Turns that are read from the fan-out at once.
const TURNS: usize = 16;

/// A page ends with the turn that brings its texts over so many bytes.
const PAGE_BYTES: usize = 1 << 20;

/// What a page may send here beside the methods that need no asking.
pub(super) const METHODS: &str = "GET, DELETE, OPTIONS";

/// Answers a request below `/conversations`; the caller adds what browsers need.
pub(super) async fn serve(gateway: &Gateway, request: &RequestParts) -> Reply {
    match answer(gateway, request).await {
        Ok(mut reply) => {
            reply
                .headers_mut()
                .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            reply
        }
        Err(refusal) => refusal.reply(),
    }
}

enum Target {
    All,
    Conversation(ConversationId),
    Messages(ConversationId),
}

async fn answer(gateway: &Gateway, request: &RequestParts) -> Result<Reply, Refusal> {
    let target = target(request.uri.path())?;
    let query = Query::of(&request.uri);
    let token = auth::bearer(&request.headers);
    // A signed token says itself whose it is.
    let user = match query.user() {
        Err(refusal) if !query.names_user() => auth::claimed(gateway, token).ok_or(refusal)?,
        user => user?,
    };
    auth::check_token(gateway, &user, token).await?;
    match (&request.method, target) {
        (&Method::GET, Target::All) => conversations(gateway, &user, &query).await,
        (&Method::GET, Target::Messages(of)) => messages(gateway, &user, &of, &query).await,
        (&Method::DELETE, Target::All) => forget(gateway, &user, None).await,
        (&Method::DELETE, Target::Conversation(of)) => forget(gateway, &user, Some(&of)).await,
        (_, Target::All) => Err(Refusal::method(METHODS)),
        (_, Target::Conversation(_)) => Err(Refusal::method("DELETE, OPTIONS")),
        (_, Target::Messages(_)) => Err(Refusal::method("GET, OPTIONS")),
    }
}

fn target(path: &str) -> Result<Target, Refusal> {
    let mut parts = path.split('/').skip(2);
    let Some(name) = parts.next() else {
        return Ok(Target::All);
    };
    let name = decoded(name)
        .and_then(|name| ConversationId::parse(&name).ok())
        .ok_or(Refusal::bad_request(
            "a conversation is 1 to 64 characters of A-Z a-z 0-9 . _ : @ | + -",
        ))?;
    match (parts.next(), parts.next()) {
        (None, None) => Ok(Target::Conversation(name)),
        (Some("messages"), None) => Ok(Target::Messages(name)),
        _ => Err(Refusal::not_found()),
    }
}

/// A part of a path without its percent signs.
fn decoded(part: &str) -> Option<Cow<'_, str>> {
    if !part.contains('%') {
        return Some(part.into());
    }
    let mut text = Vec::with_capacity(part.len());
    let mut bytes = part.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
            text.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            text.push(byte);
        }
    }
    String::from_utf8(text).ok().map(Cow::Owned)
}

fn limit(query: &Query<'_>) -> Result<usize, Refusal> {
    let Some(given) = query.limit.as_deref() else {
        return Ok(PAGE);
    };
    match given.parse() {
        Ok(limit) if limit > 0 => Ok(MAX_PAGE.min(limit)),
        _ => Err(Refusal::bad_request("`limit` must be a number above 0")),
    }
}

fn away(gateway: &Gateway, operation: &'static str, error: &FanoutError) -> Refusal {
    gateway.counters.redis_error(operation);
    tracing::warn!(%error, operation, "the history can't be reached");
    Refusal::unavailable("the history can't be reached now")
}

async fn conversations(
    gateway: &Gateway,
    user: &UserId,
    query: &Query<'_>,
) -> Result<Reply, Refusal> {
    #[derive(Serialize)]
    struct Entry<'a> {
        conversation_id: &'a ConversationId,
        turns: u64,
        updated_at: String,
    }
    let limit = limit(query)?;
    let after = match query.after.as_deref().map(ConversationId::parse) {
        None => None,
        Some(Ok(after)) => Some(after),
        Some(Err(_)) => return Err(Refusal::bad_request("`after` must be a conversation")),
    };
    let listed = gateway
        .fanout
        .conversations(user, after.as_ref(), limit)
        .await
        .map_err(|error| away(gateway, "conversations", &error))?;
    let next = listed.last().filter(|_| listed.len() == limit);
    let entries: Vec<_> = listed
        .iter()
        .map(|one| Entry {
            conversation_id: &one.conversation,
            turns: one.turns,
            updated_at: rfc3339(one.updated_ms),
        })
        .collect();
    Ok(json_reply(
        StatusCode::OK,
        &json!({"conversations": entries, "next": next.map(|one| &one.conversation)}),
    ))
}

async fn messages(
    gateway: &Gateway,
    user: &UserId,
    of: &ConversationId,
    query: &Query<'_>,
) -> Result<Reply, Refusal> {
    #[derive(Serialize)]
    struct Entry<'a> {
        message_id: &'a MessageId,
        question: Option<&'a str>,
        answer: &'a str,
        status: &'static str,
        timestamp: String,
    }
    let limit = limit(query)?;
    let mut before = match query.before.as_deref().map(MessageId::parse) {
        None => None,
        Some(Ok(before)) => Some(before),
        Some(Err(_)) => return Err(Refusal::bad_request("`before` must be a message_id")),
    };
    let mut turns: Vec<Turn> = Vec::new();
    let mut bytes = 0;
    // A page is read in small parts: answers may be long.
    let more = loop {
        let wanted = TURNS.min(limit - turns.len());
        let part = gateway
            .fanout
            .history(user, of, before.as_ref(), wanted)
            .await
            .map_err(|error| away(gateway, "history", &error))?;
        let Some(part) = part else {
            if turns.is_empty() {
                return Err(Refusal::not_found());
            }
            break false;
        };
        let whole = part.len() == wanted;
        let size = |turn: &Turn| turn.answer.len() + turn.question.as_ref().map_or(0, String::len);
        bytes += part.iter().map(size).sum::<usize>();
        turns.extend(part);
        before = turns.last().map(|turn| turn.message_id.clone());
        if !whole || turns.len() >= limit || bytes >= PAGE_BYTES {
            break whole;
        }
    };
    let entries: Vec<_> = turns
        .iter()
        .map(|turn| Entry {
            message_id: &turn.message_id,
            question: turn.question.as_deref(),
            answer: &turn.answer,
            status: match turn.status {
                TurnStatus::Answered => "answered",
                TurnStatus::Cancelled => "cancelled",
                TurnStatus::Failed => "failed",
            },
            timestamp: rfc3339(turn.at_ms),
        })
        .collect();
    Ok(json_reply(
        StatusCode::OK,
        &json!({
            "conversation_id": of,
            "messages": entries,
            "next": before.filter(|_| more),
        }),
    ))
}

async fn forget(
    gateway: &Gateway,
    user: &UserId,
    of: Option<&ConversationId>,
) -> Result<Reply, Refusal> {
    gateway
        .fanout
        .forget(user, of)
        .await
        .map_err(|error| away(gateway, "forget", &error))?;
    tracing::info!(user = user.as_str(), all = of.is_none(), "forgotten");
    let mut reply = Response::new(Full::new(Bytes::new()));
    *reply.status_mut() = StatusCode::NO_CONTENT;
    Ok(reply)
}

/// Answers a browser that asks whether a page may.
pub(super) fn preflight(gateway: &Gateway, request: &RequestParts) -> Result<Reply, Refusal> {
    origin::check(gateway, &request.headers)?;
    Ok(origin::preflight(gateway, &request.headers, METHODS))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_conversation_in_a_path_is_decoded_before_it_is_judged() {
        let conversation = |path: &str| match target(path) {
            Ok(Target::Messages(of) | Target::Conversation(of)) => Some(of.to_string()),
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
        assert!(matches!(target("/conversations"), Ok(Target::All)));
    }

    proptest! {
        #[test]
        fn a_path_names_a_conversation_as_it_was_written_or_none(
            name in "[A-Za-z0-9._:@|+-]{1,64}",
            rest in "[!-~]{0,60}",
        ) {
            use std::fmt::Write as _;
            let mut path = "/conversations/".to_owned();
            for byte in name.bytes() {
                write!(path, "%{byte:02X}").unwrap();
            }
            let read = target(&path);
            prop_assert!(matches!(read, Ok(Target::Conversation(of)) if of.as_str() == name));
            let _ = target(&format!("/conversations{rest}"));
            let _ = target(&format!("/conversations/{rest}"));
        }
    }
}
