//! Runs a chat: asks a single question from a pipe, or holds a conversation at a prompt.

use std::io;

use anyhow::{Context as _, bail};
use rustyline::ExternalPrinter as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::connection_notices::ConnectionNotices;
use super::error_text::failure_text;
use super::line_editor::{Input, LineEditor};
use super::sanitize::sanitize;
use super::screen::Screen;
use crate::client::{Answer, Client, Event, Outcome, Part, Question, State};
use crate::protocol::ids::ConversationId;
use crate::protocol::parts::PartKind;
use crate::protocol::wire::http::TurnStatus;

/// Maximum number of earlier turns that are shown at the start of a conversation.
const MAX_SHOWN_TURNS: usize = 10;

/// The result of showing an answer.
enum ShowResult {
    /// The whole answer was shown.
    Answered,
    /// The answer was cancelled.
    Cancelled,
    /// The answer failed for this reason, or its outcome is unknown.
    Failed(String),
    /// The person pressed Ctrl-C a second time, and does not wait for the outcome of the cancelled
    /// message.
    Quit,
    /// The reader of standard output has closed the pipe.
    OutputClosed,
}

/// Asks one question and shows its answer.
pub(super) async fn ask_once(
    client: &Client,
    question: Question,
    screen: &mut Screen,
) -> anyhow::Result<()> {
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut notices = ConnectionNotices::new(client.state());
    let answer = client.ask(question).await?;
    match show_answer(&mut notices, answer, screen, &mut interrupts).await? {
        ShowResult::Answered | ShowResult::OutputClosed => Ok(()),
        ShowResult::Cancelled | ShowResult::Quit => bail!("stopped before the answer was complete"),
        ShowResult::Failed(reason) => bail!(reason),
    }
}

/// Asks questions at a prompt until the person quits.
pub(super) async fn converse(
    client: &Client,
    conversation: ConversationId,
    mut screen: Screen,
) -> anyhow::Result<()> {
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut editor = LineEditor::open().context("the terminal can't be used")?;
    let mut notice_printer = editor.notice_printer();
    screen.print_dimmed(&format!(
        "conversation {conversation}; Ctrl-C stops an answer, at the prompt it exits"
    ))?;
    show_history(client, &conversation, &mut screen).await?;
    let mut notices = ConnectionNotices::new(client.state());
    loop {
        let reading = tokio::task::spawn_blocking(move || {
            let input = editor.read_line();
            (editor, input)
        });
        tokio::pin!(reading);
        let input = loop {
            tokio::select! {
                read = &mut reading => {
                    let (returned, input) = read.context("the terminal can't be read")?;
                    editor = returned;
                    break input.context("the terminal can't be read")?;
                }
                notice = notices.next() => {
                    match &mut notice_printer {
                        Some(printer) => { let _ = printer.print(format!("{notice}\n")); }
                        None => screen.print_notice(&notice),
                    }
                }
            }
        };
        let Input::Text(text) = input else {
            return Ok(());
        };
        if text.trim().is_empty() {
            continue;
        }
        let question = Question::new(text.trim()).in_conversation(conversation.clone());
        let answer = client.ask(question).await?;
        match show_answer(&mut notices, answer, &mut screen, &mut interrupts).await? {
            ShowResult::Answered => screen.print_line("")?,
            ShowResult::Cancelled => screen.print_notice("stopped\n"),
            ShowResult::Failed(reason) => screen.print_notice(&format!("error: {reason}\n")),
            ShowResult::Quit | ShowResult::OutputClosed => return Ok(()),
        }
        if let State::Closed(reason) = &*client.state().borrow() {
            bail!("the connection is closed: {reason}");
        }
    }
}

async fn show_answer(
    notices: &mut ConnectionNotices,
    answer: Answer,
    screen: &mut Screen,
    interrupts: &mut Signal,
) -> anyhow::Result<ShowResult> {
    match show_events(notices, answer, screen, interrupts).await {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ShowResult::OutputClosed),
        other => Ok(other?),
    }
}

/// Shows the events of an answer until its outcome, or until the person quits.
async fn show_events(
    notices: &mut ConnectionNotices,
    mut answer: Answer,
    screen: &mut Screen,
    interrupts: &mut Signal,
) -> io::Result<ShowResult> {
    let mut is_cancelling = false;
    loop {
        let event = tokio::select! {
            // The branches are polled in this order, so that the notice of a new connection is
            // shown before the events that arrived over the connection.
            biased;
            _ = interrupts.recv() => {
                if is_cancelling {
                    return Ok(ShowResult::Quit);
                }
                is_cancelling = true;
                screen.print_notice("stopping… (Ctrl-C again exits without waiting)");
                answer.cancel().await;
                continue;
            }
            notice = notices.next() => {
                screen.print_notice(&notice);
                continue;
            }
            event = answer.next() => event,
        };
        let outcome = match event {
            Some(Event::Delta(delta)) => {
                screen.append(delta)?;
                continue;
            }
            Some(Event::Snapshot(parts)) => {
                screen.replace(&parts)?;
                continue;
            }
            Some(Event::Restarted) => {
                screen.restart("the attempt failed; the answer starts again:");
                continue;
            }
            Some(Event::Accepted(_) | Event::Cancel(_)) => continue,
            Some(Event::Ended(outcome)) => outcome,
            None => return Ok(ShowResult::Answered),
        };
        return show_outcome(outcome, screen);
    }
}

fn show_outcome(outcome: Outcome, screen: &mut Screen) -> io::Result<ShowResult> {
    match outcome {
        Outcome::Answered {
            content,
            parts,
            finish_reason,
            ..
        } => {
            screen.replace(&parts)?;
            screen.finish()?;
            if content.trim().is_empty() {
                let is_tool_call = |part: &Part| part.kind == Some(PartKind::ToolCall);
                screen.print_notice(if parts.iter().any(is_tool_call) {
                    "the answer has no text, it calls tools only"
                } else {
                    "the answer is empty"
                });
            }
            if finish_reason.as_deref() == Some("length") {
                screen.print_notice("the answer was cut off: it reached the length limit");
            }
            Ok(ShowResult::Answered)
        }
        Outcome::Cancelled { content, parts } => {
            if content.is_some() {
                screen.replace(&parts)?;
            }
            screen.finish()?;
            Ok(ShowResult::Cancelled)
        }
        Outcome::Failed {
            code,
            message,
            retry_after,
            ..
        } => {
            screen.restart("the answer failed");
            let reason = failure_text(code, &message, retry_after);
            Ok(ShowResult::Failed(sanitize(&reason)))
        }
        Outcome::Unknown { reason } => {
            screen.restart("the answer is incomplete");
            let reason = format!("{reason}; the answer may be in the conversation later");
            Ok(ShowResult::Failed(sanitize(&reason)))
        }
    }
}

async fn show_history(
    client: &Client,
    conversation: &ConversationId,
    screen: &mut Screen,
) -> anyhow::Result<()> {
    let page = match client.messages(conversation, None, MAX_SHOWN_TURNS).await {
        Ok(page) => page,
        Err(error) => {
            screen.print_notice(&format!("earlier turns can't be shown: {error}"));
            return Ok(());
        }
    };
    if page.next.is_some() {
        screen.print_dimmed("…")?;
    }
    for turn in page.messages.iter().rev() {
        let question = turn.question.as_deref().unwrap_or("(not known)");
        screen.print_dimmed(&format!("> {question}"))?;
        match turn.status {
            TurnStatus::Answered => {}
            TurnStatus::Cancelled => screen.print_dimmed("(stopped)")?,
            TurnStatus::Failed => screen.print_dimmed("(failed)")?,
        }
        let parts = Part::from_finished(&turn.answer, turn.parts.as_deref());
        screen.replace(&parts)?;
        screen.finish()?;
        screen.print_line("")?;
    }
    Ok(())
}
