//! The calls of [`Deliveries`] on Redis: `deliver`, and the markers and disruptions that show a
//! data loss.

use async_trait::async_trait;
use tokio::sync::watch;

use super::args::{flag, number, random_id, text};
use super::turn::status_code;
use super::{RedisFanout, servers, unexpected_reply_error};
use crate::fanout::{DeliverRequest, DeliverResponse, Deliveries, Result};
use crate::protocol::ids::ConversationId;
use crate::protocol::position::Epoch;

#[async_trait]
impl Deliveries for RedisFanout {
    async fn deliver(&self, call: DeliverRequest) -> Result<DeliverResponse> {
        let (known_epoch, known_offset) = match &call.known_end {
            Some(known_end) => (text(known_end.epoch.as_str()), number(known_end.offset)),
            None => (text(""), text("")),
        };
        let conversation = call.conversation.as_ref();
        let args = vec![
            random_id(),
            random_id(),
            text(call.message_id.as_str()),
            text(conversation.map_or("", ConversationId::as_str)),
            text(call.position.epoch.as_str()),
            number(call.position.offset),
            known_epoch,
            known_offset,
            flag(call.is_rewind),
            text(call.frame.trim_end()),
            text(&call.answer),
            text(status_code(call.status)),
            call.logged_at_ms.map_or_else(|| text(""), number),
            text(call.parts.as_deref().unwrap_or("")),
        ];
        let script = &self.scripts.deliver;
        let mut reply = self.run_for(script, &call.user, args).await?;
        match reply.text()?.as_str() {
            "published" => Ok(DeliverResponse::Published(reply.parse("count")?)),
            "already" => Ok(DeliverResponse::AlreadyDelivered),
            "lost" => Ok(DeliverResponse::DataLost),
            word => Err(unexpected_reply_error(word)),
        }
    }

    async fn has_marker(&self, epoch: &Epoch) -> Result<bool> {
        self.run_marker(&self.scripts.has_marker, epoch, "").await
    }

    async fn begin_rebuild(&self, epoch: &Epoch, token: &str) -> Result<bool> {
        let script = &self.scripts.begin_rebuild;
        self.run_marker(script, epoch, token).await
    }

    async fn complete_rebuild(&self, epoch: &Epoch, token: &str) -> Result<bool> {
        let script = &self.scripts.complete_rebuild;
        self.run_marker(script, epoch, token).await
    }

    async fn set_marker(&self, epoch: &Epoch) -> Result<()> {
        servers::set_marker(&self.client, epoch).await
    }

    fn disruptions(&self) -> watch::Receiver<u64> {
        self.disruptions.clone()
    }
}
