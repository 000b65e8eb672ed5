//! Reasoning, tool calls, sources and refusals on the page, while they stream and after a reload.

use std::time::Duration;

use serde_json::json;

use super::chat_page::{open_page, send, with_model};
use crate::support::browser::{Browser, screenshot_dir};
use crate::support::model::{AnswerScript, ScriptedModel};
use crate::support::process::{ChatmeshProcess, ProcessSpec};

const ANSWERED: &str = "document.querySelector('.turn') && \
                        !document.querySelector('.turn[aria-busy=true]')";

/// Time for which the model pauses within a part, so that the test sees the part grow.
const PAUSE: Duration = Duration::from_secs(3);

async fn start_server(model: &ScriptedModel, reasoning: &str) -> ChatmeshProcess {
    let spec = with_model(ProcessSpec::ephemeral(), model).env("REASONING", reasoning);
    spec.start().await
}

/// Whether the element is a fold-out with this state whose text contains `text`.
fn shows_fold_out(selector: &str, is_open: bool, text: &str) -> String {
    format!(
        "((element) => element?.open === {is_open} && element.textContent.includes({}))\
         (document.querySelector('{selector}'))",
        json!(text)
    )
}

/// An answer with each kind of part that the page shows in an answer, except a refusal.
fn answer() -> AnswerScript {
    AnswerScript::new()
        .reasoning("I compare the sources first. ")
        .tool_calls(&[(
            "search <b>web</b>",
            r#"{"query": "<img src=x onerror=alert(1)>"}"#,
        )])
        .text("The sources agree. ")
        .source("https://one.test/a?b=1", "The first <i>source</i>")
        .source("javascript:alert(1)", "No address of the web")
        .source("https://two.test/", "The second source")
}

/// Checks the tool call and the sources of the ended answer on the page.
async fn assert_ended_answer_is_shown(browser: &Browser) {
    let arguments = "{\n  \"query\": \"<img src=x onerror=alert(1)>\"\n}";
    browser
        .wait_for(&shows_fold_out("details.tool-call", false, arguments))
        .await;
    let label = "document.querySelector('details.tool-call summary').innerText.trim()";
    assert_eq!(browser.text(label).await, "Tool call: search <b>web</b>");
    let has_spinner =
        "getComputedStyle(document.querySelector('.tool-call .spinner')).display !== 'none'";
    assert_eq!(browser.js(has_spinner).await, false);
    let links = browser
        .js("[...document.querySelectorAll('.sources ol > li > a')]\
             .map((link) => [link.href, link.textContent, link.rel])")
        .await;
    let rel = "noopener noreferrer nofollow";
    assert_eq!(
        links,
        json!([
            ["https://one.test/a?b=1", "The first <i>source</i>", rel],
            ["https://two.test/", "The second source", rel],
        ])
    );
    let numbering = "getComputedStyle(document.querySelector('.sources ol > li')).listStyleType";
    assert_eq!(browser.text(numbering).await, "decimal");
    let active_elements = "document.querySelectorAll('.answer img, .answer script').length";
    assert_eq!(browser.js(active_elements).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_of_an_answer_are_shown_while_they_stream_and_after_a_reload() {
    let model = ScriptedModel::start().await;
    let answer = answer();
    // The reasoning has 5 chunks, the tool call 5, the text 3, and each source 1.
    let script = answer
        .beginning(4)
        .wait(PAUSE)
        .deltas(answer.chunks(4..7))
        .wait(PAUSE)
        .deltas(answer.chunks(7..12))
        .wait(PAUSE)
        .deltas(answer.chunks(12..answer.chunk_count()))
        .finish("stop")
        .usage()
        .done();
    model.queue_answer("parts", script);
    let server = start_server(&model, "keep").await;
    let browser = Browser::start().await;
    open_page(&browser, &server.url("/")).await;
    send(&browser, "parts").await;
    browser
        .wait_for(&shows_fold_out(
            "details.reasoning",
            true,
            "I compare the sources",
        ))
        .await;
    let label = "document.querySelector('details.reasoning summary').innerText.trim()";
    assert_eq!(browser.text(label).await, "Thinking…");
    // The fold-out of a tool call is closed, and its line shows that the call is incomplete.
    browser
        .wait_for(&shows_fold_out("details.tool-call", false, r#"{"query": "#))
        .await;
    let has_spinner =
        "getComputedStyle(document.querySelector('.tool-call .spinner')).display !== 'none'";
    assert_eq!(browser.js(has_spinner).await, true);
    assert_eq!(browser.text(label).await, "Reasoning");
    let is_open = "document.querySelector('details.reasoning').open";
    assert_eq!(browser.js(is_open).await, true, "no text has begun");
    browser
        .save_screenshot(&screenshot_dir().join("parts-streaming.png"))
        .await;
    browser
        .wait_for("document.querySelector('.answer-text')?.innerText.includes('The sources')")
        .await;
    assert_eq!(browser.js(is_open).await, false, "text has begun");
    let source_count = "document.querySelectorAll('.sources li').length";
    assert_eq!(browser.js(source_count).await, 0);
    browser.wait_for(ANSWERED).await;
    assert_ended_answer_is_shown(&browser).await;
    browser
        .save_screenshot(&screenshot_dir().join("parts-ended.png"))
        .await;

    browser.reload().await;
    browser.wait_for("document.querySelector('.sources')").await;
    browser.wait_for(ANSWERED).await;
    assert_ended_answer_is_shown(&browser).await;
    browser
        .wait_for(&shows_fold_out(
            "details.reasoning",
            false,
            "I compare the sources first.",
        ))
        .await;
    browser.assert_console_is_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shown_reasoning_stays_until_the_reload_if_it_is_not_kept() {
    let model = ScriptedModel::start().await;
    let answer = AnswerScript::new()
        .reasoning("A fleeting thought. ")
        .text("The answer. ");
    model.queue_answer("think", answer.complete());
    let server = start_server(&model, "show").await;
    let browser = Browser::start().await;
    open_page(&browser, &server.url("/")).await;
    send(&browser, "think").await;
    browser
        .wait_for("document.querySelector('.answer-text')?.innerText.includes('The answer.')")
        .await;
    browser.wait_for(ANSWERED).await;
    browser
        .wait_for(&shows_fold_out(
            "details.reasoning",
            false,
            "A fleeting thought.",
        ))
        .await;
    browser.reload().await;
    browser
        .wait_for("document.querySelector('.answer-text')?.innerText.includes('The answer.')")
        .await;
    let fold_outs = "document.querySelectorAll('details.reasoning').length";
    assert_eq!(browser.js(fold_outs).await, 0);
    browser.assert_console_is_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusal_is_shown_in_the_words_of_the_model_also_after_a_reload() {
    let model = ScriptedModel::start().await;
    let answer = AnswerScript::new().refusal("I can't help with that. ");
    let script = answer.complete_with_pause(PAUSE);
    model.queue_answer("refused", script);
    let server = start_server(&model, "show").await;
    let browser = Browser::start().await;
    open_page(&browser, &server.url("/")).await;
    send(&browser, "refused").await;
    let refusal = "document.querySelector('.refusal')?.innerText ?? ''";
    browser
        .wait_for(&format!("({refusal}).includes(\"I can't help\")"))
        .await;
    assert_eq!(
        browser.js("document.querySelector('.turn').ariaBusy").await,
        "true"
    );
    let is_complete = format!(
        "({refusal}).includes('The model declined') \
         && ({refusal}).includes(\"I can't help with that.\")"
    );
    browser.wait_for(ANSWERED).await;
    browser.wait_for(&is_complete).await;
    assert_eq!(
        browser.js("document.querySelector('.note.failed')").await,
        json!(null),
        "a refusal is an answer, not a failure"
    );
    browser.reload().await;
    browser.wait_for(&is_complete).await;
    browser.assert_console_is_empty().await;
}
