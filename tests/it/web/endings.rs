//! How a turn ends on the page, also when nothing good came of it, and what a reload keeps.

use serde_json::json;

use super::browser::{ask, open, with_model};
use crate::support::browser::{Browser, pictures};
use crate::support::model::{Answer, Script, ScriptedModel};
use crate::support::process::ProcessSpec;

const FROM_END: &str = "(({scrollHeight, clientHeight, scrollTop}) => \
                        Math.round(scrollHeight - clientHeight - scrollTop))\
                        (document.getElementById('scroll'))";
/// The last turn as it is read.
const LAST: &str = "document.querySelector('.turn:last-of-type')?.innerText ?? ''";
const BOX: &str = "document.getElementById('message-input').value";

async fn says(browser: &Browser, text: &str) {
    browser
        .wait_for(&format!("({LAST}).includes({})", json!(text)))
        .await;
}

async fn reload(browser: &Browser) {
    browser.reload().await;
    browser
        .wait_for("document.getElementById('connection').dataset.state === 'open'")
        .await;
}

/// After what was drawn has been laid out.
async fn settled(browser: &Browser) {
    let frames = "await new Promise((done) => requestAnimationFrame(() => \
                  requestAnimationFrame(() => setTimeout(done)))); return true;";
    assert_eq!(browser.run(frames).await, true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_an_answer_and_of_an_error_is_in_view() {
    let model = ScriptedModel::start_with(|asked| {
        if asked.prompt == "refuse" {
            return Answer::error(401, "invalid_api_key", "wrong key");
        }
        Answer::from(Script::complete(&"A sentence of an answer.\n\n".repeat(30)))
    })
    .await;
    let server = with_model(ProcessSpec::ephemeral(), &model).start().await;
    let browser = Browser::start().await;
    open(&browser, &server.url("/")).await;
    for (width, height) in [(1280, 600), (1280, 800), (390, 844)] {
        browser.screen(width, height, false).await;
        for question in ["long", "refuse"] {
            ask(&browser, question).await;
            let end = match question {
                "long" => ".turn:last-of-type .tools:not([hidden]) button",
                _ => ".turn:last-of-type .note.failed button",
            };
            browser
                .wait_for(&format!("document.querySelector('{end}')"))
                .await;
            settled(&browser).await;
            let left = browser.js(FROM_END).await;
            assert_eq!(left, 0, "{question} at {width}x{height}");
        }
        let name = format!("refused-{width}x{height}.png");
        browser.picture(&pictures().join(name)).await;
    }
    // Who reads further up is left alone.
    browser
        .js("document.getElementById('scroll').scrollTop = 0")
        .await;
    settled(&browser).await;
    browser
        .js("document.querySelector('.turn:last-of-type .note').append('x'.repeat(2000))")
        .await;
    settled(&browser).await;
    let top = browser
        .js("document.getElementById('scroll').scrollTop")
        .await;
    assert_eq!(top, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_or_empty_turn_says_so_and_nothing_else_also_after_a_reload() {
    let model = ScriptedModel::start_with(|asked| match asked.prompt.as_str() {
        "empty" => Script::new().role().finish("stop").done().into(),
        _ => Answer::error(401, "invalid_api_key", "wrong key"),
    })
    .await;
    let server = with_model(ProcessSpec::ephemeral(), &model).start().await;
    let browser = Browser::start().await;
    open(&browser, &server.url("/")).await;
    ask(&browser, "refused").await;
    says(&browser, "may not be set up").await;
    let nothing = "document.querySelector('.turn .answer').childNodes.length";
    assert_eq!(browser.js(nothing).await, 0);
    reload(&browser).await;
    says(&browser, "This message was not answered.").await;
    assert_eq!(browser.js(nothing).await, 0, "no error as an answer");
    let buttons = "document.querySelectorAll('.turn:last-of-type .note button').length";
    assert_eq!(browser.js(buttons).await, 1);

    ask(&browser, "empty").await;
    says(&browser, "The model gave an empty answer.").await;
    reload(&browser).await;
    says(&browser, "The model gave an empty answer.").await;
    assert_eq!(browser.js(buttons).await, 1, "it can be asked again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_refused_or_only_written_is_kept_through_a_reload() {
    let model = ScriptedModel::start().await;
    let server = with_model(ProcessSpec::ephemeral(), &model)
        .env("USER_RATE_LIMIT_MAX_REQUESTS", "1")
        .env("USER_RATE_LIMIT_WINDOW_SECONDS", "15")
        .start()
        .await;
    let browser = Browser::start().await;
    open(&browser, &server.url("/")).await;
    ask(&browser, "one").await;
    says(&browser, "echo: one").await;
    browser.write("#message-input", "half a thought").await;
    browser.click("#new-chat").await;
    assert_eq!(browser.text(BOX).await, "", "a draft belongs to its chat");
    ask(&browser, "two").await;
    says(&browser, "You can send again in").await;
    browser.write("#message-input", "another thought").await;

    reload(&browser).await;
    says(&browser, "This message was not sent.").await;
    assert_eq!(browser.text(BOX).await, "another thought");
    let listed =
        "[...document.querySelectorAll('#conversations a')].map((a) => a.innerText).join()";
    browser.wait_for(&format!("({listed}) === 'two,one'")).await;
    browser.picture(&pictures().join("not-sent.png")).await;
    browser.click("#conversations li:nth-child(2) a").await;
    says(&browser, "echo: one").await;
    assert_eq!(browser.text(BOX).await, "half a thought");
    browser.click("#conversations li:nth-child(1) a").await;
    says(&browser, "This message was not sent.").await;

    // Sent after all, once the server takes it; then nothing is left to be sent.
    browser.click(".turn:last-of-type .note button").await;
    browser
        .wait_for(&format!(
            "({LAST}).includes('echo: two') \
             || document.querySelector('.turn:last-of-type .note button:enabled')?.click()"
        ))
        .await;
    reload(&browser).await;
    says(&browser, "echo: two").await;
    let turns = "document.querySelectorAll('.turn').length";
    assert_eq!(browser.js(turns).await, 1);
    assert_eq!(model.request_count_for("two"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_of_no_conversation_says_so() {
    let model = ScriptedModel::start().await;
    let server = with_model(ProcessSpec::ephemeral(), &model).start().await;
    let browser = Browser::start().await;
    open(&browser, &server.url("/#/c/does-not-exist")).await;
    let nothing =
        "document.getElementById('thread-error').innerText.includes('There is nothing here')";
    browser.wait_for(nothing).await;
    browser.picture(&pictures().join("nothing-here.png")).await;
    browser.click("#new-chat").await;
    assert_eq!(browser.js(nothing).await, false);
    let listed = "document.querySelectorAll('#conversations li').length";
    assert_eq!(browser.js(listed).await, 0);
}
