//! The calls on Redis with which a worker streams an answer: `open_part`, `append`, which needs no
//! script, and `renew`.

use fred::types::Value;
use serde_json::value::RawValue;

use super::append_queue::AppendCommands;
use super::args::{number, random_id, text};
use super::connection::fanout_error;
use super::pieces::{opening_element, piece_element};
use super::reply::{Reply, unreadable_reply_error};
use super::{RedisFanout, channel, unexpected_reply_error};
use crate::fanout::{
    AppendRequest, Channel, MessageRef, OpenPartRequest, RenewRequest, Result, StreamResponse,
};
use crate::protocol::ids::StreamId;
use crate::protocol::v1::{DeltaTarget, PartOpening, delta_frame};

fn delta_target<'a>(
    message: &'a MessageRef,
    stream: &'a StreamId,
    attempt: u32,
) -> DeltaTarget<'a> {
    DeltaTarget {
        message_id: &message.message_id,
        id: message.id.as_ref(),
        conversation: &message.conversation,
        stream,
        attempt,
    }
}

fn decode_stream_response(mut reply: Reply) -> Result<StreamResponse> {
    match reply.text()?.as_str() {
        "confirmed" => Ok(StreamResponse::Confirmed(reply.parse("number of pieces")?)),
        "fenced" => Ok(StreamResponse::Fenced),
        "cancelled" => Ok(StreamResponse::Cancelled),
        "lost" => Ok(StreamResponse::DataLost),
        word => Err(unexpected_reply_error(word)),
    }
}

impl RedisFanout {
    pub(super) async fn run_open_part(&self, call: &OpenPartRequest) -> Result<StreamResponse> {
        let message = &call.message;
        let meta = call
            .meta
            .as_deref()
            .map(|meta| RawValue::from_string(meta.to_owned()));
        let meta = meta
            .transpose()
            .map_err(|_| unreadable_reply_error("meta"))?;
        let opening = PartOpening {
            kind: call.kind.as_str(),
            meta: meta.as_deref(),
            previous_end: call.previous_end,
        };
        let stream = call.owner.stream(call.attempt);
        let target = delta_target(message, &stream, call.attempt);
        let frame = delta_frame(target, call.piece.range, Some(opening), &call.piece.text);
        let args = vec![
            random_id(),
            text(message.message_id.as_str()),
            text(call.owner.as_str()),
            number(call.attempt),
            number(call.piece.range.part),
            Value::from(opening_element(call)),
            Value::from(frame),
        ];
        let script = &self.scripts.open_part;
        decode_stream_response(self.run_for(script, &message.user, args).await?)
    }

    /// Appends and publishes a piece by two commands, which are not atomic: if only one is carried
    /// out, the caller's repeat sends both again, and readers drop what they have.
    pub(super) async fn run_append(&self, call: &AppendRequest) -> Result<u64> {
        let message = &call.message;
        let stream = call.owner.stream(call.attempt);
        let tag = channel::hash_tag(&message.user);
        let target = delta_target(message, &stream, call.attempt);
        let commands = AppendCommands {
            key: channel::stream_key(&tag, &message.message_id, &stream),
            element: piece_element(&call.piece),
            live_channel: channel::name(&message.user, Channel::Live),
            frame: delta_frame(target, call.piece.range, None, &call.piece.text),
        };
        let append = async {
            let result = self.appends.append(commands).await;
            result.map_err(|error| fanout_error(&self.client, &error))
        };
        self.with_timeout(append).await
    }

    pub(super) async fn run_renew(&self, call: &RenewRequest) -> Result<StreamResponse> {
        let args = vec![
            text(call.message.message_id.as_str()),
            text(call.owner.as_str()),
            number(call.attempt),
            number(call.parts),
            number(call.last_length),
            number(call.pieces),
        ];
        let user = &call.message.user;
        decode_stream_response(self.run_for(&self.scripts.renew, user, args).await?)
    }
}
