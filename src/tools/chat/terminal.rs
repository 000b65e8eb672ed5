//! Questions and answers: one through a pipe, or one after the other at a prompt.

use std::io;

use anyhow::{Context as _, bail};
use rustyline::ExternalPrinter as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::lines::{Line, Lines};
use super::screen::Screen;
use super::text::harmless;
use super::words;
use crate::client::{Answer, Client, End, Event, Question, State};
use crate::protocol::ids::ConversationId;
use crate::protocol::wire::http::TurnEnd;

/// Turns that are shown at the start.
const SHOWN: usize = 10;

/// How an answer came out.
enum Outcome {
    Done,
    Stopped,
    Failed(String),
    /// The person doesn't want to wait for anything any more.
    Leave,
    /// Nobody reads the output any more.
    Unread,
}

/// One question, and its answer.
pub(super) async fn once(
    client: &Client,
    question: Question,
    screen: &mut Screen,
) -> anyhow::Result<()> {
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut state = client.state();
    let answer = client.ask(question).await?;
    match show(&mut state, answer, screen, &mut interrupts).await? {
        Outcome::Done | Outcome::Unread => Ok(()),
        Outcome::Stopped | Outcome::Leave => bail!("stopped before the answer was whole"),
        Outcome::Failed(why) => bail!(why),
    }
}

/// Until the person leaves.
pub(super) async fn talk(
    client: &Client,
    conversation: ConversationId,
    mut screen: Screen,
) -> anyhow::Result<()> {
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut lines = Lines::open().context("the terminal can't be used")?;
    let mut notices = lines.notices();
    screen.faint(&format!(
        "conversation {conversation}; Ctrl-C stops an answer, at the prompt it leaves"
    ))?;
    show_history(client, &conversation, &mut screen).await?;
    let mut state = client.state();
    loop {
        let reading = tokio::task::spawn_blocking(move || {
            let line = lines.next();
            (lines, line)
        });
        tokio::pin!(reading);
        let line = loop {
            tokio::select! {
                read = &mut reading => {
                    let (back, line) = read.context("the terminal can't be read")?;
                    lines = back;
                    break line.context("the terminal can't be read")?;
                }
                Ok(()) = state.changed() => {
                    let said = in_words(&state.borrow_and_update());
                    match &mut notices {
                        Some(printer) => { let _ = printer.print(format!("{said}\n")); }
                        None => screen.notice(&said),
                    }
                }
            }
        };
        let Line::Text(text) = line else {
            return Ok(());
        };
        if text.trim().is_empty() {
            continue;
        }
        let question = Question::new(text.trim()).in_conversation(conversation.clone());
        let answer = client.ask(question).await?;
        match show(&mut state, answer, &mut screen, &mut interrupts).await? {
            Outcome::Done => screen.line("")?,
            Outcome::Stopped => screen.notice("stopped\n"),
            Outcome::Failed(why) => screen.notice(&format!("error: {why}\n")),
            Outcome::Leave | Outcome::Unread => return Ok(()),
        }
        if let State::Over(why) = &*client.state().borrow() {
            bail!("the connection is over: {why}");
        }
    }
}

fn in_words(state: &State) -> String {
    harmless(&match state {
        State::Connected => "connected again".to_owned(),
        State::Lost(why) => format!("connection lost ({why}), coming back…"),
        State::Over(why) => format!("the connection is over: {why}"),
    })
}

async fn show(
    state: &mut watch::Receiver<State>,
    answer: Answer,
    screen: &mut Screen,
    interrupts: &mut Signal,
) -> anyhow::Result<Outcome> {
    match follow(state, answer, screen, interrupts).await {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Outcome::Unread),
        other => Ok(other?),
    }
}

/// Shows an answer until it has ended.
async fn follow(
    state: &mut watch::Receiver<State>,
    mut answer: Answer,
    screen: &mut Screen,
    interrupts: &mut Signal,
) -> io::Result<Outcome> {
    let mut stopping = false;
    loop {
        let event = tokio::select! {
            // What came over a new connection is shown after the notice of it.
            biased;
            _ = interrupts.recv() => {
                if stopping {
                    return Ok(Outcome::Leave);
                }
                stopping = true;
                screen.notice("stopping… (Ctrl-C again leaves without waiting)");
                answer.cancel().await;
                continue;
            }
            Ok(()) = state.changed() => {
                let said = in_words(&state.borrow_and_update());
                screen.notice(&said);
                continue;
            }
            event = answer.next() => event,
        };
        let end = match event {
            Some(Event::Delta(text)) => {
                screen.more(&text)?;
                continue;
            }
            Some(Event::Snapshot(text)) => {
                screen.whole(&text)?;
                continue;
            }
            Some(Event::Restarted) => {
                screen.anew("that attempt broke off; the answer begins anew:");
                continue;
            }
            Some(Event::Accepted(_) | Event::Cancel(_)) => continue,
            Some(Event::Ended(end)) => end,
            None => return Ok(Outcome::Done),
        };
        return match end {
            End::Answered {
                content,
                finish_reason,
                ..
            } => {
                screen.whole(&content)?;
                screen.finish()?;
                if content.trim().is_empty() {
                    screen.notice("the answer is empty");
                }
                if finish_reason.as_deref() == Some("length") {
                    screen.notice("the answer was cut off: it reached the length limit");
                }
                Ok(Outcome::Done)
            }
            End::Cancelled { content } => {
                if let Some(content) = content {
                    screen.whole(&content)?;
                }
                screen.finish()?;
                Ok(Outcome::Stopped)
            }
            End::Failed {
                code,
                message,
                retry_after,
                ..
            } => {
                screen.anew("the answer broke off");
                let why = words::failed(code, &message, retry_after);
                Ok(Outcome::Failed(harmless(&why)))
            }
            End::Lost { why } => {
                screen.anew("the answer did not come to its end");
                let why = format!("{why}; the answer may be in the conversation later");
                Ok(Outcome::Failed(harmless(&why)))
            }
        };
    }
}

async fn show_history(
    client: &Client,
    conversation: &ConversationId,
    screen: &mut Screen,
) -> anyhow::Result<()> {
    let page = match client.messages(conversation, None, SHOWN).await {
        Ok(page) => page,
        Err(error) => {
            screen.notice(&format!("earlier turns can't be shown: {error}"));
            return Ok(());
        }
    };
    if page.next.is_some() {
        screen.faint("…")?;
    }
    for turn in page.messages.iter().rev() {
        let question = turn.question.as_deref().unwrap_or("(not known)");
        screen.faint(&format!("> {question}"))?;
        match turn.status {
            TurnEnd::Answered => {}
            TurnEnd::Cancelled => screen.faint("(stopped)")?,
            TurnEnd::Failed => screen.faint("(failed)")?,
        }
        screen.line(&turn.answer)?;
        screen.line("")?;
    }
    Ok(())
}
