//! Outcomes of turns on the page (failed, empty, rejected), scrolling, and state after a reload.

use serde_json::json;

use super::chat_page::{open_page, send, with_model};
use crate::support::browser::{Browser, screenshot_dir};
use crate::support::model::{Answer, Script, ScriptedModel};
use crate::support::process::ProcessSpec;

/// Distance of the scroll position from the end, in pixels.
const DISTANCE_FROM_END: &str = "(({scrollHeight, clientHeight, scrollTop}) => \
                        Math.round(scrollHeight - clientHeight - scrollTop))\
                        (document.getElementById('scroll'))";
/// The visible text of the last turn.
const LAST_TURN: &str = "document.querySelector('.turn:last-of-type')?.innerText ?? ''";
const INPUT_TEXT: &str = "document.getElementById('message-input').value";

/// Waits until the last turn contains a text.
async fn wait_for_turn_text(browser: &Browser, text: &str) {
    browser
        .wait_for(&format!("({LAST_TURN}).includes({})", json!(text)))
        .await;
}

async fn reload(browser: &Browser) {
    browser.reload().await;
    browser
        .wait_for("document.getElementById('connection').dataset.state === 'open'")
        .await;
}

/// Waits until everything that was drawn has been laid out.
async fn wait_for_layout(browser: &Browser) {
    let two_frames = "await new Promise((done) => requestAnimationFrame(() => \
                  requestAnimationFrame(() => setTimeout(done)))); return true;";
    assert_eq!(browser.run(two_frames).await, true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn view_follows_the_end_of_answers_and_errors() {
    let model = ScriptedModel::start_with(|request| {
        if request.prompt == "refuse" {
            return Answer::error(401, "invalid_api_key", "wrong key");
        }
        Answer::from(Script::complete(&"A sentence of an answer.\n\n".repeat(30)))
    })
    .await;
    let server = with_model(ProcessSpec::ephemeral(), &model).start().await;
    let browser = Browser::start().await;
    open_page(&browser, &server.url("/")).await;
    for (width, height) in [(1280, 600), (1280, 800), (390, 844)] {
        browser.emulate_screen(width, height, false).await;
        for question in ["long", "refuse"] {
            send(&browser, question).await;
            let end_marker = match question {
                "long" => ".turn:last-of-type .tools:not([hidden]) button",
                _ => ".turn:last-of-type .note.failed button",
            };
            browser
                .wait_for(&format!("document.querySelector('{end_marker}')"))
                .await;
            wait_for_layout(&browser).await;
            let distance = browser.js(DISTANCE_FROM_END).await;
            assert_eq!(distance, 0, "{question} at {width}x{height}");
        }
        let name = format!("refused-{width}x{height}.png");
        browser.save_screenshot(&screenshot_dir().join(name)).await;
    }
    // A user who has scrolled up keeps the position.
    browser
        .js("document.getElementById('scroll').scrollTop = 0")
        .await;
    wait_for_layout(&browser).await;
    browser
        .js("document.querySelector('.turn:last-of-type .note').append('x'.repeat(2000))")
        .await;
    wait_for_layout(&browser).await;
    let scroll_top = browser
        .js("document.getElementById('scroll').scrollTop")
        .await;
    assert_eq!(scroll_top, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_and_empty_turns_are_labelled_also_after_a_reload() {
    let model = ScriptedModel::start_with(|request| match request.prompt.as_str() {
        "empty" => Script::new().role().finish("stop").done().into(),
        _ => Answer::error(401, "invalid_api_key", "wrong key"),
    })
    .await;
    let server = with_model(ProcessSpec::ephemeral(), &model).start().await;
    let browser = Browser::start().await;
    open_page(&browser, &server.url("/")).await;
    send(&browser, "refused").await;
    wait_for_turn_text(&browser, "may not be configured").await;
    let answer_nodes = "document.querySelector('.turn .answer').childNodes.length";
    assert_eq!(browser.js(answer_nodes).await, 0);
    reload(&browser).await;
    wait_for_turn_text(&browser, "This message was not answered.").await;
    assert_eq!(
        browser.js(answer_nodes).await,
        0,
        "expected that an error is not shown as an answer"
    );
    let buttons = "document.querySelectorAll('.turn:last-of-type .note button').length";
    assert_eq!(browser.js(buttons).await, 1);

    send(&browser, "empty").await;
    wait_for_turn_text(&browser, "The model gave an empty answer.").await;
    reload(&browser).await;
    wait_for_turn_text(&browser, "The model gave an empty answer.").await;
    assert_eq!(
        browser.js(buttons).await,
        1,
        "expected a button that sends the question again"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rejected_messages_and_drafts_survive_a_reload() {
    let model = ScriptedModel::start().await;
    let server = with_model(ProcessSpec::ephemeral(), &model)
        .env("USER_RATE_LIMIT_MAX_REQUESTS", "1")
        .env("USER_RATE_LIMIT_WINDOW_SECONDS", "15")
        .start()
        .await;
    let browser = Browser::start().await;
    open_page(&browser, &server.url("/")).await;
    send(&browser, "one").await;
    wait_for_turn_text(&browser, "echo: one").await;
    browser.write("#message-input", "half a thought").await;
    browser.click("#new-chat").await;
    assert_eq!(
        browser.text(INPUT_TEXT).await,
        "",
        "expected an empty input, because a draft belongs to its conversation"
    );
    send(&browser, "two").await;
    wait_for_turn_text(&browser, "You can send again in").await;
    browser.write("#message-input", "another thought").await;

    reload(&browser).await;
    wait_for_turn_text(&browser, "This message was not sent.").await;
    assert_eq!(browser.text(INPUT_TEXT).await, "another thought");
    let listed =
        "[...document.querySelectorAll('#conversations a')].map((a) => a.innerText).join()";
    browser.wait_for(&format!("({listed}) === 'two,one'")).await;
    browser
        .save_screenshot(&screenshot_dir().join("not-sent.png"))
        .await;
    browser.click("#conversations li:nth-child(2) a").await;
    wait_for_turn_text(&browser, "echo: one").await;
    assert_eq!(browser.text(INPUT_TEXT).await, "half a thought");
    browser.click("#conversations li:nth-child(1) a").await;
    wait_for_turn_text(&browser, "This message was not sent.").await;

    // The retry is sent when the server accepts messages again; then the outbox is empty.
    browser.click(".turn:last-of-type .note button").await;
    browser
        .wait_for(&format!(
            "({LAST_TURN}).includes('echo: two') \
             || document.querySelector('.turn:last-of-type .note button:enabled')?.click()"
        ))
        .await;
    reload(&browser).await;
    wait_for_turn_text(&browser, "echo: two").await;
    let turns = "document.querySelectorAll('.turn').length";
    assert_eq!(browser.js(turns).await, 1);
    assert_eq!(model.request_count_for("two"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_conversation_address_shows_a_hint() {
    let model = ScriptedModel::start().await;
    let server = with_model(ProcessSpec::ephemeral(), &model).start().await;
    let browser = Browser::start().await;
    open_page(&browser, &server.url("/#/c/does-not-exist")).await;
    let shows_hint =
        "document.getElementById('thread-error').innerText.includes('There is nothing here')";
    browser.wait_for(shows_hint).await;
    browser
        .save_screenshot(&screenshot_dir().join("nothing-here.png"))
        .await;
    browser.click("#new-chat").await;
    assert_eq!(browser.js(shows_hint).await, false);
    let listed = "document.querySelectorAll('#conversations li').length";
    assert_eq!(browser.js(listed).await, 0);
}
