//! The context of the model, the history, tokens, markers, and the separation of users.

use std::time::Duration;

use chatmesh::config::bounds::Bounds;
use chatmesh::fanout::{
    BeginRequest, BeginResponse, HistoryRequest, HistoryResponse, HistoryVersion, KeepResponse,
    MessageRef, Owner, TurnStatus,
};
use chatmesh::protocol::ids::{ConversationId, MessageId, UserId};
use chatmesh::protocol::position::Epoch;

use super::case::{Backend, Case, attempt_number, stored_outcome, unique_id};

pub(crate) async fn context_has_each_turn_once_in_order_without_failed_ones(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let conversation = ConversationId::parse("a:b|c+d").unwrap();
    let statuses = [
        TurnStatus::Answered,
        TurnStatus::Failed,
        TurnStatus::Cancelled,
        TurnStatus::Answered,
    ];
    for (number, status) in statuses.into_iter().enumerate() {
        let message = case.message_in(&conversation);
        let owner = Owner::random();
        let first = attempt_number(&case.begin(&message, &owner, 0).await);
        let text = format!("answer {number} \u{1F600}/\\\" \u{0} end");
        for _ in 0..2 {
            stored_outcome(case.keep_as(&message, &owner, first, &text, status).await);
        }
    }
    let turns = case.context(&conversation).await;
    let answers: Vec<_> = turns.iter().map(|turn| &turn.answer[..8]).collect();
    assert_eq!(answers, ["answer 0", "answer 2", "answer 3"]);
    assert!(turns[0].answer.ends_with("\u{1F600}/\\\" \u{0} end"));
    assert_eq!(turns[1].status, TurnStatus::Cancelled);
    assert!(
        turns[0]
            .question
            .as_ref()
            .is_some_and(|question| question.starts_with("question"))
    );
    assert!(turns[0].at_ms <= turns[2].at_ms && turns[0].at_ms > 1_600_000_000_000);
    let other_turns = case.context(&ConversationId::default_conversation()).await;
    assert!(
        other_turns.is_empty(),
        "expected no turns in another conversation"
    );
}

pub(crate) async fn context_is_bounded_in_number_and_age(backend: &dyn Backend) {
    let bounds = Bounds {
        history_turns: 4,
        ..Bounds::default()
    };
    let case = Case::with_bounds(backend, bounds).await;
    let conversation = ConversationId::default_conversation();
    for number in 0..6 {
        case.answer(&case.message(), &format!("{number}")).await;
    }
    let answers = |turns: Vec<chatmesh::fanout::Turn>| -> Vec<String> {
        turns.into_iter().map(|turn| turn.answer).collect()
    };
    let all_answers = answers(case.context(&conversation).await);
    assert_eq!(all_answers, ["2", "3", "4", "5"]);
    let hour = Duration::from_secs(3600);
    let newest_turns = case
        .fanout
        .context(&case.user, &conversation, 2, hour)
        .await;
    assert_eq!(answers(newest_turns.unwrap()), ["4", "5"]);
    let none = case
        .fanout
        .context(&case.user, &conversation, 0, hour)
        .await;
    assert!(none.unwrap().is_empty());
    tokio::time::sleep(Duration::from_millis(30)).await;
    let short_age = Duration::from_millis(10);
    let none = case
        .fanout
        .context(&case.user, &conversation, 9, short_age)
        .await;
    assert!(
        none.unwrap().is_empty(),
        "expected no turns, because all are too old"
    );
}

pub(crate) async fn history_has_the_delivered_answer(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let (answered, rebuilt) = (case.message(), case.message());
    case.answer(&answered, "stored").await;
    case.deliver(&answered, 0, "delivered").await;
    case.deliver(&rebuilt, 1, "from the log").await;
    let turns = case.context(&answered.conversation).await;
    assert_eq!(turns.len(), 2);
    assert_eq!(turns[0].answer, "delivered");
    assert!(turns[0].question.is_some());
    assert_eq!(turns[1].answer, "from the log");
    assert_eq!(turns[1].question, None);

    let mut delivery_without_conversation = case.delivery(&case.message(), 2, "x");
    delivery_without_conversation.conversation = None;
    case.deliver_call(delivery_without_conversation).await;
    assert_eq!(case.context(&answered.conversation).await.len(), 2);
}

pub(crate) async fn tokens_are_issued_once_and_expire(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    assert_eq!(case.fanout.stored_token(&case.user).await.unwrap(), None);
    let hour = Duration::from_secs(3600);
    let issued = case.fanout.issue_token(&case.user, "one", hour).await;
    let (token, remaining_seconds) = issued.unwrap();
    assert_eq!(token, "one");
    assert!((3500..=3600).contains(&remaining_seconds));
    let repeated = case.fanout.issue_token(&case.user, "two", hour).await;
    assert_eq!(repeated.unwrap().0, "one");
    let stored = case.fanout.stored_token(&case.user).await.unwrap();
    assert_eq!(stored.unwrap().0, "one");

    let other_user = UserId::parse(&format!("t-{}", unique_id())).unwrap();
    let one_second = Duration::from_secs(1);
    case.fanout
        .issue_token(&other_user, "short", one_second)
        .await
        .unwrap();
    let started = tokio::time::Instant::now();
    while case
        .fanout
        .stored_token(&other_user)
        .await
        .unwrap()
        .is_some()
    {
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "expected the token to expire"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) async fn hostile_user_ids_do_not_affect_other_users(backend: &dyn Backend) {
    let base = unique_id();
    let plain = UserId::parse(&base).unwrap();
    let victim = Case::for_user(backend, Bounds::default(), plain).await;
    let before = victim.read(None).await;
    for pattern in ["user:X", "X:live", "X:cancel", "X:1:m", "X|a", "X+", "X:"] {
        let user = UserId::parse(&pattern.replace('X', &base)).unwrap();
        let hostile = Case::for_user(backend, Bounds::default(), user).await;
        let message = hostile.message();
        hostile.admit(&message).await;
        hostile.answer(&message, "theirs").await;
        hostile.deliver(&message, 1, "theirs").await;
        hostile.admit(&hostile.message()).await;
        let hour = Duration::from_secs(3600);
        hostile
            .fanout
            .issue_token(&hostile.user, "theirs", hour)
            .await
            .unwrap();
        assert_eq!(hostile.read(None).await.pending.len(), 1, "{pattern}");
        assert_eq!(
            hostile.context(&message.conversation).await.len(),
            1,
            "{pattern}"
        );
    }
    let after = victim.read(Some(&before.end)).await;
    assert_eq!((after.number.n, &after.end), (before.number.n, &before.end));
    assert!(after.recovered && after.frames.is_empty() && after.pending.is_empty());
    let turns = victim
        .context(&ConversationId::default_conversation())
        .await;
    assert!(turns.is_empty());
    let token = victim.fanout.stored_token(&victim.user).await.unwrap();
    assert_eq!(token, None);
}

pub(crate) async fn marker_exists_once_set(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    assert!(!case.fanout.has_marker(&case.epoch).await.unwrap());
    for _ in 0..2 {
        case.fanout.set_marker(&case.epoch).await.unwrap();
        assert!(case.fanout.has_marker(&case.epoch).await.unwrap());
    }
    let other_epoch = Epoch::new(&unique_id(), "0", 0);
    assert!(!case.fanout.has_marker(&other_epoch).await.unwrap());
}

pub(crate) async fn history_is_paged_from_the_newest_turn(backend: &dyn Backend) {
    let bounds = Bounds {
        history_turns: 5,
        ..Bounds::default()
    };
    let case = Case::with_bounds(backend, bounds).await;
    let conversation = ConversationId::parse("paged").unwrap();
    let mut messages = Vec::new();
    for number in 0..6 {
        let message = case.message_in(&conversation);
        let owner = Owner::random();
        case.begin(&message, &owner, 0).await;
        let status = if number % 2 == 0 {
            TurnStatus::Failed
        } else {
            TurnStatus::Answered
        };
        let text = format!("{number}");
        stored_outcome(case.keep_as(&message, &owner, 1, &text, status).await);
        messages.push(message.message_id);
    }
    let page = async |before: Option<&MessageId>, limit| {
        let page = case
            .fanout
            .history(&case.user, &conversation, before, limit);
        let turns = page.await.unwrap();
        turns.map(|turns| {
            turns
                .into_iter()
                .map(|turn| turn.answer)
                .collect::<Vec<_>>()
        })
    };
    assert_eq!(page(None, 2).await.unwrap(), ["5", "4"]);
    assert_eq!(page(Some(&messages[4]), 2).await.unwrap(), ["3", "2"]);
    assert_eq!(page(Some(&messages[2]), 2).await.unwrap(), ["1"]);
    assert!(page(Some(&messages[1]), 2).await.unwrap().is_empty());
    assert_eq!(page(None, 100).await.unwrap().len(), 5);
    assert!(page(None, 0).await.unwrap().is_empty());
    assert_eq!(
        page(Some(&messages[0]), 2).await,
        None,
        "expected no page before a trimmed turn"
    );
    assert_eq!(page(Some(&MessageId::random()), 2).await, None);

    let newest = case.fanout.history(&case.user, &conversation, None, 2);
    let newest = newest.await.unwrap().unwrap();
    assert_eq!(newest[1].status, TurnStatus::Failed);
    assert_eq!(newest[0].message_id, messages[5]);
    let question = format!("question {}", messages[5]);
    assert_eq!(newest[0].question, Some(question));
    assert!(newest[0].at_ms >= newest[1].at_ms && newest[1].at_ms > 1_600_000_000_000);
    let unused_conversation = ConversationId::default_conversation();
    let none = case
        .fanout
        .history(&case.user, &unused_conversation, None, 2)
        .await;
    assert_eq!(none.unwrap(), Some(vec![]));
}

pub(crate) async fn conversations_are_listed_by_their_newest_turn(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let names = ["a", "a:b", "b", "a.b"];
    for name in names.iter().chain(["a"].iter()) {
        let message = case.message_in(&ConversationId::parse(name).unwrap());
        case.answer(&message, "text").await;
        // The list is ordered by milliseconds.
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    let page = async |after: Option<&str>, limit| {
        let after = after.map(|name| ConversationId::parse(name).unwrap());
        let entries = case
            .fanout
            .conversations(&case.user, after.as_ref(), limit)
            .await
            .unwrap();
        entries
            .into_iter()
            .map(|entry| {
                (
                    entry.conversation.to_string(),
                    entry.turns,
                    entry.updated_ms,
                )
            })
            .collect::<Vec<_>>()
    };
    let all_entries = page(None, 100).await;
    let listed: Vec<_> = all_entries
        .iter()
        .map(|(name, turns, _)| (name.as_str(), *turns))
        .collect();
    assert_eq!(listed, [("a", 2), ("a.b", 1), ("b", 1), ("a:b", 1)]);
    assert!(
        all_entries.is_sorted_by(|left, right| left.2 > right.2)
            && all_entries[3].2 > 1_600_000_000_000
    );
    assert_eq!(page(None, 2).await, all_entries[..2]);
    assert_eq!(page(Some("a.b"), 2).await, all_entries[2..]);
    assert!(page(Some("a:b"), 2).await.is_empty());
    assert!(page(Some("never"), 2).await.is_empty());
    assert!(page(None, 0).await.is_empty());
    let other_case = Case::new(backend).await;
    assert!(
        other_case
            .fanout
            .conversations(&other_case.user, None, 9)
            .await
            .unwrap()
            .is_empty()
    );
}

/// A worker's cache of a conversation.
struct Cache {
    version: HistoryVersion,
    answers: Vec<String>,
}

/// Calls `begin` like a worker whose cache has this version of the history. Returns the attempt,
/// and the new content of the cache if the history has changed.
async fn begin_with(
    case: &Case<'_>,
    message: &MessageRef,
    owner: &Owner,
    known_version: Option<&HistoryVersion>,
) -> (u32, Option<Cache>) {
    let request = BeginRequest {
        message: message.clone(),
        owner: owner.clone(),
        last_attempt: 0,
        cancelled_outcome: Case::new_outcome(message, "", TurnStatus::Cancelled).into(),
        history: Some(HistoryRequest {
            limit: 100,
            max_newest_turn_age: Duration::from_secs(3600),
            known_version: known_version.cloned(),
        }),
    };
    match case.fanout.begin(request).await.unwrap() {
        BeginResponse::Attempt {
            number,
            history: Some(history),
            ..
        } => match history {
            HistoryResponse::Unchanged => (number, None),
            HistoryResponse::Turns(version, turns) => {
                let answers = turns.into_iter().map(|turn| turn.answer).collect();
                (number, Some(Cache { version, answers }))
            }
        },
        response => panic!("expected an attempt with the history, got {response:?}"),
    }
}

pub(crate) async fn begin_returns_the_history_unless_the_known_version_is_current(
    backend: &dyn Backend,
) {
    let case = Case::new(backend).await;
    let conversation = ConversationId::default_conversation();
    let mut cache: Option<Cache> = None;
    let mut loaded_count = 0;
    let mut first_message = None;
    for step in 0..12 {
        // Before some messages the history changes without the knowledge of the cache.
        let is_unchanged = match step {
            3 => {
                let other_message = case.message();
                case.answer(&other_message, "other worker").await;
                false
            }
            5 => {
                // The delivered answer replaces the stored one.
                let message: &MessageRef = first_message.as_ref().unwrap();
                case.deliver(message, 1, "delivered text").await;
                false
            }
            7 => {
                case.deliver(&case.message(), 2, "original worker").await;
                false
            }
            9 => {
                case.fanout
                    .forget(&case.user, Some(&conversation))
                    .await
                    .unwrap();
                false
            }
            0 => false,
            _ => true,
        };
        let (message, owner) = (case.message(), Owner::random());
        let known_version = cache.as_ref().map(|cache| cache.version.clone());
        let (number, loaded) = begin_with(&case, &message, &owner, known_version.as_ref()).await;
        loaded_count += usize::from(loaded.is_some());
        assert_eq!(loaded.is_none(), is_unchanged, "step {step}");
        let mut current = loaded.or_else(|| cache.take()).unwrap();
        let expected_answers = case.context(&conversation).await;
        let expected_answers: Vec<String> = expected_answers
            .into_iter()
            .map(|turn| turn.answer)
            .collect();
        assert_eq!(current.answers, expected_answers, "step {step}");
        let KeepResponse::Appended(_, appended) = case.keep(&message, &owner, number, "mine").await
        else {
            panic!("step {step}: expected that the turn is appended");
        };
        assert_eq!(appended.version_before, current.version);
        current.version = appended.version_after;
        current.answers.push("mine".to_owned());
        cache = Some(current);
        first_message.get_or_insert(message);
    }
    assert_eq!(loaded_count, 5);
}

pub(crate) async fn keep_after_forget_reports_no_append(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let conversation = ConversationId::default_conversation();
    case.answer(&case.message(), "secret").await;
    let (message, owner) = (case.message(), Owner::random());
    let (_, loaded) = begin_with(&case, &message, &owner, None).await;
    assert_eq!(loaded.unwrap().answers, ["secret"]);
    case.fanout
        .forget(&case.user, Some(&conversation))
        .await
        .unwrap();
    // The message in flight belongs to the conversation, so it is forgotten, too.
    let response = case.keep(&message, &owner, 1, "mine").await;
    assert!(matches!(response, KeepResponse::Outcome(_)), "{response:?}");
    let (_, loaded) = begin_with(&case, &case.message(), &owner, None).await;
    assert!(loaded.unwrap().answers.is_empty());
}
