//! Implements the fan-out's traits: each method runs the method of the same name on the user's
//! state ([`UserState`](super::user::UserState)) under the user's lock, or uses the store directly.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};

use super::EmbeddedFanout;
use super::feed::EmbeddedFeed;
use super::keys;
use super::user::ForgetScope;
use crate::fanout::{
    Admission, Admissions, Answers, AppendRequest, BeginRequest, BeginResponse, ConversationEntry,
    DeliverRequest, DeliverResponse, DeliveredOutcome, Deliveries, FanoutHealth, Feed, FeedEvent,
    Feeds, History, KeepRequest, KeepResponse, MessageRef, OpenPartRequest, ReadRequest, Reads,
    RenewRequest, Result, StreamResponse, Turn, UserView,
};
use crate::protocol::ids::{ConversationId, MessageId, UserId};
use crate::protocol::open_message::CancelResult;
use crate::protocol::position::Epoch;
use crate::store::{Batch, Table};

#[async_trait]
impl Admissions for EmbeddedFanout {
    async fn admit(&self, message: &MessageRef, content: &str) -> Result<Admission> {
        self.users.with_state(&message.user, |state, context| {
            state.admit(message, content, context)
        })
    }

    async fn accept(&self, message: &MessageRef, frame: String) -> Result<()> {
        self.users.with_state(&message.user, |state, context| {
            state.accept(&message.message_id, &frame, context)
        })
    }

    async fn cancel(&self, user: &UserId, message_id: &MessageId) -> Result<CancelResult> {
        self.users
            .with_state(user, |state, context| state.cancel(message_id, context))
    }

    async fn clear_pending(&self, user: &UserId, message_id: &MessageId) -> Result<()> {
        self.users.with_state(user, |state, context| {
            state.clear_pending(message_id, context)
        })
    }
}

#[async_trait]
impl Answers for EmbeddedFanout {
    async fn begin(&self, call: BeginRequest) -> Result<BeginResponse> {
        let user = call.message.user.clone();
        self.users
            .with_state(&user, |state, context| state.begin(call, context))
    }

    async fn open_part(&self, call: OpenPartRequest) -> Result<StreamResponse> {
        self.users.with_state(&call.message.user, |state, context| {
            state.open_part(&call, context)
        })
    }

    async fn append(&self, call: AppendRequest) -> Result<u64> {
        self.users.with_state(&call.message.user, |state, context| {
            Ok(state.append(&call, context))
        })
    }

    async fn renew(&self, call: RenewRequest) -> Result<StreamResponse> {
        self.users.with_state(&call.message.user, |state, context| {
            state.renew(&call, context)
        })
    }

    async fn keep(&self, call: KeepRequest) -> Result<KeepResponse> {
        let user = call.message.user.clone();
        self.users
            .with_state(&user, |state, context| state.keep(call, context))
    }

    async fn context(
        &self,
        user: &UserId,
        conversation: &ConversationId,
        limit: usize,
        max_newest_turn_age: Duration,
    ) -> Result<Vec<Turn>> {
        self.users.with_state(user, |state, context| {
            state.context(conversation, limit, max_newest_turn_age, context)
        })
    }
}

#[async_trait]
impl Deliveries for EmbeddedFanout {
    async fn deliver(&self, call: DeliverRequest) -> Result<DeliverResponse> {
        self.users
            .with_state(&call.user, |state, context| state.deliver(&call, context))
    }

    async fn has_marker(&self, epoch: &Epoch) -> Result<bool> {
        let key = keys::marker(epoch.as_str());
        let marker = self.users.store.get(Table::Users, &key)?;
        Ok(marker.is_some())
    }

    async fn set_marker(&self, epoch: &Epoch) -> Result<()> {
        let mut batch = Batch::default();
        batch.put(Table::Users, keys::marker(epoch.as_str()), b"1");
        self.users.store.commit(batch)?;
        Ok(())
    }

    fn disruptions(&self) -> watch::Receiver<u64> {
        self.disruptions.subscribe()
    }
}

#[async_trait]
impl Reads for EmbeddedFanout {
    async fn read(&self, call: ReadRequest) -> Result<UserView> {
        self.users
            .with_state(&call.user, |state, context| state.read(&call, context))
    }

    async fn delivered_outcomes(
        &self,
        user: &UserId,
        messages: &[MessageId],
    ) -> Result<Vec<DeliveredOutcome>> {
        self.users.with_state(user, |state, context| {
            state.delivered_outcomes(messages, context)
        })
    }
}

#[async_trait]
impl History for EmbeddedFanout {
    async fn conversations(
        &self,
        user: &UserId,
        after: Option<&ConversationId>,
        limit: usize,
    ) -> Result<Vec<ConversationEntry>> {
        self.users.with_state(user, |state, context| {
            state.conversations(after, limit, context)
        })
    }

    async fn history(
        &self,
        user: &UserId,
        conversation: &ConversationId,
        before: Option<&MessageId>,
        limit: usize,
    ) -> Result<Option<Vec<Turn>>> {
        self.users.with_state(user, |state, context| {
            state.history(conversation, before, limit, context)
        })
    }

    async fn forget(&self, user: &UserId, conversation: Option<&ConversationId>) -> Result<bool> {
        self.users.with_state(user, |state, context| {
            state.forget(&ForgetScope::new(conversation), context)
        })
    }
}

#[async_trait]
impl Feeds for EmbeddedFanout {
    async fn open_feed(
        &self,
        capacity: usize,
    ) -> Result<(Arc<dyn Feed>, mpsc::Receiver<FeedEvent>)> {
        let (feed, events) = EmbeddedFeed::open(Arc::clone(&self.users), capacity);
        Ok((Arc::new(feed), events))
    }
}

#[async_trait]
impl FanoutHealth for EmbeddedFanout {
    async fn check(&self) -> Result<()> {
        Ok(self.users.store.check()?)
    }

    async fn warnings(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
}
