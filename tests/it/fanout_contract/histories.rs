//! What the model is told of the conversation, tokens, markers, and whose data is whose.

use std::time::Duration;

use chatmesh::config::bounds::Bounds;
use chatmesh::fanout::{
    BeginRequest, BeginResponse, HistoryRequest, HistoryResponse, HistoryVersion, KeepResponse,
    MessageRef, Owner, TurnStatus,
};
use chatmesh::protocol::ids::{ConversationId, MessageId, UserId};
use chatmesh::protocol::position::Epoch;

use super::case::{Backend, Case, attempt, kept, unique};

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
        let first = attempt(&case.begin(&message, &owner, 0).await);
        let text = format!("answer {number} \u{1F600}/\\\" \u{0} end");
        for _ in 0..2 {
            kept(case.keep_as(&message, &owner, first, &text, status).await);
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
            .is_some_and(|q| q.starts_with("question"))
    );
    assert!(turns[0].at_ms <= turns[2].at_ms && turns[0].at_ms > 1_600_000_000_000);
    let other = case.context(&ConversationId::default_conversation()).await;
    assert!(other.is_empty(), "turns of another conversation");
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
    let all = answers(case.context(&conversation).await);
    assert_eq!(all, ["2", "3", "4", "5"]);
    let hour = Duration::from_secs(3600);
    let some = case
        .fanout
        .context(&case.user, &conversation, 2, hour)
        .await;
    assert_eq!(answers(some.unwrap()), ["4", "5"]);
    let none = case
        .fanout
        .context(&case.user, &conversation, 0, hour)
        .await;
    assert!(none.unwrap().is_empty());
    tokio::time::sleep(Duration::from_millis(30)).await;
    let old = Duration::from_millis(10);
    let none = case.fanout.context(&case.user, &conversation, 9, old).await;
    assert!(none.unwrap().is_empty(), "the newest turn is too old");
}

pub(crate) async fn history_has_the_delivered_answer(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let (kept_one, rebuilt) = (case.message(), case.message());
    case.answer(&kept_one, "kept").await;
    case.deliver(&kept_one, 0, "told").await;
    case.deliver(&rebuilt, 1, "from the log").await;
    let turns = case.context(&kept_one.conversation).await;
    assert_eq!(turns.len(), 2);
    assert_eq!(turns[0].answer, "told");
    assert!(turns[0].question.is_some());
    assert_eq!(turns[1].answer, "from the log");
    assert_eq!(turns[1].question, None);

    let mut unknown = case.delivery(&case.message(), 2, "x");
    unknown.conversation = None;
    case.deliver_call(unknown).await;
    assert_eq!(case.context(&kept_one.conversation).await.len(), 2);
}

pub(crate) async fn tokens_are_issued_once_and_expire(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    assert_eq!(case.fanout.stored_token(&case.user).await.unwrap(), None);
    let hour = Duration::from_secs(3600);
    let issued = case.fanout.issue_token(&case.user, "one", hour).await;
    let (token, left) = issued.unwrap();
    assert_eq!(token, "one");
    assert!((3500..=3600).contains(&left));
    let again = case.fanout.issue_token(&case.user, "two", hour).await;
    assert_eq!(again.unwrap().0, "one");
    let stored = case.fanout.stored_token(&case.user).await.unwrap();
    assert_eq!(stored.unwrap().0, "one");

    let other = UserId::parse(&format!("t-{}", unique())).unwrap();
    let second = Duration::from_secs(1);
    case.fanout
        .issue_token(&other, "short", second)
        .await
        .unwrap();
    let started = tokio::time::Instant::now();
    while case.fanout.stored_token(&other).await.unwrap().is_some() {
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "it never expires"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(crate) async fn hostile_user_ids_do_not_affect_other_users(backend: &dyn Backend) {
    let base = unique();
    let plain = UserId::parse(&base).unwrap();
    let victim = Case::for_user(backend, Bounds::default(), plain).await;
    let before = victim.read(None).await;
    for form in ["user:X", "X:live", "X:cancel", "X:1:m", "X|a", "X+", "X:"] {
        let user = UserId::parse(&form.replace('X', &base)).unwrap();
        let other = Case::for_user(backend, Bounds::default(), user).await;
        let message = other.message();
        other.admit(&message).await;
        other.answer(&message, "theirs").await;
        other.deliver(&message, 1, "theirs").await;
        other.admit(&other.message()).await;
        let hour = Duration::from_secs(3600);
        other
            .fanout
            .issue_token(&other.user, "theirs", hour)
            .await
            .unwrap();
        assert_eq!(other.read(None).await.pending.len(), 1, "{form}");
        assert_eq!(
            other.context(&message.conversation).await.len(),
            1,
            "{form}"
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
    let other = Epoch::new(&unique(), "0", 0);
    assert!(!case.fanout.has_marker(&other).await.unwrap());
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
        kept(case.keep_as(&message, &owner, 1, &text, status).await);
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
    assert_eq!(page(Some(&messages[0]), 2).await, None, "it was trimmed");
    assert_eq!(page(Some(&MessageId::random()), 2).await, None);

    let newest = case.fanout.history(&case.user, &conversation, None, 2);
    let newest = newest.await.unwrap().unwrap();
    assert_eq!(newest[1].status, TurnStatus::Failed);
    assert_eq!(newest[0].message_id, messages[5]);
    let question = format!("question {}", messages[5]);
    assert_eq!(newest[0].question, Some(question));
    assert!(newest[0].at_ms >= newest[1].at_ms && newest[1].at_ms > 1_600_000_000_000);
    let never = ConversationId::default_conversation();
    let none = case.fanout.history(&case.user, &never, None, 2).await;
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
    let all = page(None, 100).await;
    let listed: Vec<_> = all
        .iter()
        .map(|(name, turns, _)| (name.as_str(), *turns))
        .collect();
    assert_eq!(listed, [("a", 2), ("a.b", 1), ("b", 1), ("a:b", 1)]);
    assert!(all.is_sorted_by(|left, right| left.2 > right.2) && all[3].2 > 1_600_000_000_000);
    assert_eq!(page(None, 2).await, all[..2]);
    assert_eq!(page(Some("a.b"), 2).await, all[2..]);
    assert!(page(Some("a:b"), 2).await.is_empty());
    assert!(page(Some("never"), 2).await.is_empty());
    assert!(page(None, 0).await.is_empty());
    let other = Case::new(backend).await;
    assert!(
        other
            .fanout
            .conversations(&other.user, None, 9)
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

async fn begin_with(
    case: &Case<'_>,
    message: &MessageRef,
    owner: &Owner,
    known: Option<&HistoryVersion>,
) -> (u32, Option<Cache>) {
    let call = BeginRequest {
        message: message.clone(),
        owner: owner.clone(),
        last_attempt: 0,
        cancelled_outcome: Case::new_outcome(message, "", TurnStatus::Cancelled).into(),
        history: Some(HistoryRequest {
            limit: 100,
            max_idle_time: Duration::from_secs(3600),
            known_version: known.cloned(),
        }),
    };
    match case.fanout.begin(call).await.unwrap() {
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
        other => panic!("expected an attempt with the history, got {other:?}"),
    }
}

pub(crate) async fn begin_returns_the_history_unless_the_known_version_is_current(
    backend: &dyn Backend,
) {
    let case = Case::new(backend).await;
    let conversation = ConversationId::default_conversation();
    let mut cache: Option<Cache> = None;
    let mut loaded_count = 0;
    let mut first = None;
    for step in 0..12 {
        // Changes between two messages of the conversation that the cache does not know of.
        let is_unchanged = match step {
            3 => {
                let other = case.message();
                case.answer(&other, "other worker").await;
                false
            }
            5 => {
                // The delivered answer replaces the stored one.
                let message: &MessageRef = first.as_ref().unwrap();
                case.deliver(message, 1, "told otherwise").await;
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
        let known = cache.as_ref().map(|cache| cache.version.clone());
        let (number, news) = begin_with(&case, &message, &owner, known.as_ref()).await;
        loaded_count += usize::from(news.is_some());
        assert_eq!(news.is_none(), is_unchanged, "step {step}");
        let mut current = news.or_else(|| cache.take()).unwrap();
        let real = case.context(&conversation).await;
        let real: Vec<String> = real.into_iter().map(|turn| turn.answer).collect();
        assert_eq!(current.answers, real, "step {step}");
        let KeepResponse::Appended(_, appended) = case.keep(&message, &owner, number, "mine").await
        else {
            panic!("step {step}: a new turn");
        };
        assert_eq!(appended.version_before, current.version);
        current.version = appended.version_after;
        current.answers.push("mine".to_owned());
        cache = Some(current);
        first.get_or_insert(message);
    }
    assert_eq!(loaded_count, 5);
}

pub(crate) async fn keep_after_forget_reports_no_append(backend: &dyn Backend) {
    let case = Case::new(backend).await;
    let conversation = ConversationId::default_conversation();
    case.answer(&case.message(), "secret").await;
    let (message, owner) = (case.message(), Owner::random());
    let (_, news) = begin_with(&case, &message, &owner, None).await;
    assert_eq!(news.unwrap().answers, ["secret"]);
    case.fanout
        .forget(&case.user, Some(&conversation))
        .await
        .unwrap();
    // The message in flight in that conversation is forgotten itself.
    let kept = case.keep(&message, &owner, 1, "mine").await;
    assert!(matches!(kept, KeepResponse::Outcome(_)), "{kept:?}");
    let (_, news) = begin_with(&case, &case.message(), &owner, None).await;
    assert!(news.unwrap().answers.is_empty());
}
