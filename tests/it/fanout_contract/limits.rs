//! Limits per user, and revocations.

use std::time::Duration;

use chatmesh::config::bounds::{Bounds, UserLimits};
use chatmesh::fanout::{
    AdmissionDecision, Channel, FeedEvent, KeepRequest, Limit, Owner, REVOKED_FRAME, TurnStatus,
};
use chatmesh::protocol::ids::{ConversationId, UserId};

use super::Backend;
use super::case::*;

fn bounds_with(limits: UserLimits) -> Bounds {
    Bounds {
        limits,
        ..Bounds::default()
    }
}

pub(crate) async fn message_rate_is_one_budget_for_all_gateways(backend: &dyn Backend) {
    let bounds = bounds_with(UserLimits {
        requests: 4,
        window: Duration::from_secs(3600),
        ..UserLimits::default()
    });
    let case = Case::with_bounds(backend, bounds.clone()).await;
    // Two gateways admit all messages at the same time. Exactly four are allowed.
    let other_gateway = backend.open(bounds).await;
    let messages: Vec<_> = (0..12).map(|_| case.message()).collect();
    let calls = messages.iter().enumerate().map(|(i, message)| {
        let fanout = if i % 2 == 0 {
            &case.fanout
        } else {
            &other_gateway
        };
        fanout.admit(message, "question")
    });
    let responses = futures_util::future::join_all(calls).await;
    let mut admitted = Vec::new();
    for (message, response) in messages.iter().zip(responses) {
        match response.unwrap().decision {
            AdmissionDecision::New => admitted.push(message),
            AdmissionDecision::Refused(Limit::Rate(wait)) => {
                // The next message is allowed after a quarter of the window.
                assert!(wait <= Duration::from_secs(900), "{wait:?}");
                assert!(wait > Duration::from_secs(850), "{wait:?}");
            }
            decision => panic!("expected an admission or a rate limit, got {decision:?}"),
        }
    }
    assert_eq!(admitted.len(), 4);
    // A repeated call and a message that is sent again do not count, and are not refused.
    assert_eq!(case.admit(admitted[0]).await, AdmissionDecision::New);
    // Refused messages are not pending.
    assert_eq!(case.read(None).await.pending.len(), 4);
    // Messages with an outcome still count.
    for message in admitted {
        case.answer(message, "text").await;
    }
    let refused = case.admit(&case.message()).await;
    assert!(matches!(
        refused,
        AdmissionDecision::Refused(Limit::Rate(_))
    ));
    // Another user has a separate budget.
    let bounds = bounds_with(UserLimits {
        requests: 4,
        window: Duration::from_secs(3600),
        ..UserLimits::default()
    });
    let other_user = Case::with_bounds(backend, bounds).await;
    assert_eq!(
        other_user.admit(&other_user.message()).await,
        AdmissionDecision::New
    );
}

pub(crate) async fn message_rate_recovers_with_time(backend: &dyn Backend) {
    let bounds = bounds_with(UserLimits {
        requests: 2,
        window: Duration::from_secs(1),
        ..UserLimits::default()
    });
    let case = Case::with_bounds(backend, bounds).await;
    case.admit(&case.message()).await;
    case.admit(&case.message()).await;
    let mut was_limited = false;
    for _ in 0..3 {
        let message = case.message();
        while let AdmissionDecision::Refused(limit) = case.admit(&message).await {
            let Limit::Rate(wait) = limit else {
                panic!("expected a rate limit, got {limit:?}");
            };
            assert!(wait <= Duration::from_millis(500), "{wait:?}");
            tokio::time::sleep(wait).await;
            was_limited = true;
        }
    }
    assert!(was_limited);
}

pub(crate) async fn pending_messages_are_limited(backend: &dyn Backend) {
    let bounds = bounds_with(UserLimits {
        max_pending: 2,
        ..UserLimits::default()
    });
    let case = Case::with_bounds(backend, bounds).await;
    let (first, second) = (case.message(), case.message());
    case.admit(&first).await;
    case.admit(&second).await;
    let third = case.message();
    assert_eq!(
        case.admit(&third).await,
        AdmissionDecision::Refused(Limit::Pending)
    );
    assert_eq!(case.admit(&first).await, AdmissionDecision::New);
    case.answer(&first, "text").await;
    case.deliver(&first, 1, "text").await;
    assert_eq!(case.admit(&third).await, AdmissionDecision::New);
}

pub(crate) async fn conversations_are_limited(backend: &dyn Backend) {
    let bounds = bounds_with(UserLimits {
        conversations: 2,
        ..UserLimits::default()
    });
    let case = Case::with_bounds(backend, bounds).await;
    let conversation = |name: &str| ConversationId::parse(name).unwrap();
    for name in ["a", "b"] {
        let message = case.message_in(&conversation(name));
        assert_eq!(case.admit(&message).await, AdmissionDecision::New);
        case.answer(&message, "text").await;
    }
    let third = case.message_in(&conversation("c"));
    let refused = AdmissionDecision::Refused(Limit::Conversations);
    assert_eq!(case.admit(&third).await, refused);
    let further_message = case.message_in(&conversation("b"));
    assert_eq!(case.admit(&further_message).await, AdmissionDecision::New);
    case.fanout
        .forget(&case.user, Some(&conversation("a")))
        .await
        .unwrap();
    assert_eq!(case.admit(&third).await, AdmissionDecision::New);
}

pub(crate) async fn conversations_with_only_pending_messages_count(backend: &dyn Backend) {
    let bounds = bounds_with(UserLimits {
        conversations: 2,
        ..UserLimits::default()
    });
    let case = Case::with_bounds(backend, bounds).await;
    let conversation = |name: &str| ConversationId::parse(name).unwrap();
    let first = case.message_in(&conversation("a"));
    assert_eq!(case.admit(&first).await, AdmissionDecision::New);
    assert_eq!(
        case.admit(&case.message_in(&conversation("b"))).await,
        AdmissionDecision::New
    );
    let third = case.message_in(&conversation("c"));
    let refused = AdmissionDecision::Refused(Limit::Conversations);
    assert_eq!(case.admit(&third).await, refused);
    // Further messages of a pending conversation, and repeated ones, begin no new conversation.
    assert_eq!(
        case.admit(&case.message_in(&conversation("b"))).await,
        AdmissionDecision::New
    );
    assert_eq!(case.admit(&first).await, AdmissionDecision::New);
    // A conversation with a turn and a pending message counts once.
    case.answer(&first, "text").await;
    assert_eq!(
        case.admit(&case.message_in(&conversation("a"))).await,
        AdmissionDecision::New
    );
    assert_eq!(case.admit(&third).await, refused);
}

pub(crate) async fn daily_tokens_are_counted_once(backend: &dyn Backend) {
    let bounds = bounds_with(UserLimits {
        daily_tokens: 100,
        ..UserLimits::default()
    });
    let case = Case::with_bounds(backend, bounds).await;
    let spend = async |tokens: u32| {
        let message = case.message();
        assert_eq!(case.admit(&message).await, AdmissionDecision::New);
        let owner = Owner::random();
        let attempt = attempt_number(&case.begin(&message, &owner, 0).await);
        let mut outcome = Case::new_outcome(&message, "text", TurnStatus::Answered);
        outcome.frame = format!(
            r#"{{"type":"response","content":"text","usage":{{"prompt_tokens":1,"completion_tokens":1,"total_tokens":{tokens}}}}}"#
        );
        let request = KeepRequest {
            cancelled_outcome: Case::new_outcome(&message, "", TurnStatus::Cancelled).into(),
            message,
            owner,
            attempt,
            outcome: outcome.into(),
        };
        // The Redis client may send a call twice. The second call must not count.
        let first = stored_outcome(case.fanout.keep(request.clone()).await.unwrap());
        assert_eq!(
            stored_outcome(case.fanout.keep(request).await.unwrap()),
            first
        );
    };
    spend(60).await;
    spend(40).await;
    match case.admit(&case.message()).await {
        AdmissionDecision::Refused(Limit::Tokens(wait)) => {
            assert!(wait <= Duration::from_secs(86_400), "{wait:?}");
        }
        decision => panic!("expected the limit of tokens, got {decision:?}"),
    }
}

pub(crate) async fn revocation_is_recorded_published_and_removes_the_token(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let (feed, mut events) = case.fanout.open_feed(64).await.unwrap();
    feed.subscribe(&case.user, Channel::Terminal).await.unwrap();
    let hour = Duration::from_secs(3600);
    case.fanout
        .issue_token(&case.user, "theirs", hour)
        .await
        .unwrap();
    assert_eq!(case.fanout.revoked_at(&case.user).await.unwrap(), None);
    case.fanout.revoke(&case.user).await.unwrap();
    let token = case.fanout.stored_token(&case.user).await.unwrap();
    assert_eq!(token, None);
    let at_ms = case.fanout.revoked_at(&case.user).await.unwrap().unwrap();
    let next_frame = async {
        loop {
            if let Some(FeedEvent::Frame { user, payload, .. }) = events.recv().await {
                return (user, String::from_utf8(payload.to_vec()).unwrap());
            }
        }
    };
    let received = tokio::time::timeout(Duration::from_secs(20), next_frame).await;
    let (user, payload) = received.unwrap();
    assert_eq!(user, case.user);
    assert!(payload.starts_with(REVOKED_FRAME), "{payload}");
    let frame: serde_json::Value = serde_json::from_str(&payload).unwrap();
    assert_eq!(frame["at_ms"], at_ms);
    assert_eq!(frame["userid"], case.user.as_str());
    // A second revocation never moves the time back, and does not affect other users.
    case.fanout.revoke(&case.user).await.unwrap();
    let second_at_ms = case.fanout.revoked_at(&case.user).await.unwrap().unwrap();
    assert!(second_at_ms >= at_ms);
    let other_user = UserId::parse(&format!("{}.", case.user)).unwrap();
    assert_eq!(case.fanout.revoked_at(&other_user).await.unwrap(), None);
}
