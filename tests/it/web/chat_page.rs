//! Flows of the chat page: streaming, reconnecting, several tabs, hostile content, sign-in.

use serde_json::json;

use crate::support::browser::Browser;
use crate::support::model::{Answer, Script, ScriptedModel};
use crate::support::process::{ChatmeshProcess, ProcessSpec};
use crate::support::tcp_proxy::{ProxyMode, TcpProxy};
use crate::support::{TEST_TIMEOUT, wait_until};

use std::time::Duration;

/// The text of the last answer on the page.
const ANSWER: &str = "document.querySelector('.turn:last-of-type .answer')?.innerText ?? ''";
const CONNECTED: &str = "document.getElementById('connection').dataset.state === 'open'";
/// True if there is a turn and no answer is in progress.
const ANSWERED: &str = "document.querySelector('.turn') && \
                        !document.querySelector('.turn[aria-busy=true]')";

pub(super) fn with_model(spec: ProcessSpec, model: &ScriptedModel) -> ProcessSpec {
    spec.env("OPENAI_BASE_URL", &model.base_url())
        .env("OPENAI_TIMEOUT_MS", "60000")
        .env("OPENAI_IDLE_TIMEOUT_MS", "60000")
}

/// Opens the page and waits until it is connected.
pub(super) async fn open_page(browser: &Browser, url: &str) {
    browser.open(url).await;
    browser.wait_for(CONNECTED).await;
}

/// Types a message and sends it with Enter.
pub(super) async fn send(browser: &Browser, question: &str) {
    browser
        .write("#message-input", &format!("{question}\u{e007}"))
        .await;
}

/// Waits until the last answer contains a text.
async fn wait_for_answer(browser: &Browser, text: &str) {
    browser
        .wait_for(&format!("({ANSWER}).includes({})", json!(text)))
        .await;
}

async fn start_server(model: &ScriptedModel) -> ChatmeshProcess {
    with_model(ProcessSpec::ephemeral(), model).start().await
}

/// A text of numbered words.
fn numbered_words(count: usize) -> String {
    let words: Vec<String> = (1..=count).map(|n| format!("word{n}")).collect();
    words.join(" ")
}

/// An answer that starts with a text and never ends.
fn unfinished_answer(text: &str) -> Script {
    Script::new().role().text(text).hang()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answer_streams_and_its_conversation_is_listed_and_deleted() {
    let model = ScriptedModel::start().await;
    model.queue_answer("first", unfinished_answer("It *begins* "));
    let server = start_server(&model).await;
    let browser = Browser::start().await;
    open_page(&browser, &server.url("/test-ui.html")).await;
    send(&browser, "first").await;
    wait_for_answer(&browser, "It begins").await;
    let busy = browser
        .js("document.querySelector('.turn').getAttribute('aria-busy')")
        .await;
    assert_eq!(busy, "true");
    assert_eq!(
        browser
            .js("document.querySelectorAll('.answer em').length")
            .await,
        1
    );
    assert_eq!(
        browser
            .text("document.getElementById('title').textContent")
            .await,
        "first"
    );

    // A second conversation shows only its own answer while the first is in progress.
    browser.click("#new-chat").await;
    send(&browser, "second").await;
    wait_for_answer(&browser, "echo: second").await;
    browser
        .wait_for("document.querySelectorAll('#conversations li').length === 2")
        .await;
    assert_eq!(
        browser
            .js("document.querySelectorAll('.turn').length")
            .await,
        1
    );
    browser.click("#conversations li:nth-child(2) a").await;
    wait_for_answer(&browser, "It begins").await;

    // The stop button stops the answer.
    browser.click("#stop").await;
    browser
        .wait_for("document.body.innerText.includes('Stopped here.')")
        .await;
    assert!(browser.text(ANSWER).await.contains("It begins"));
    browser
        .wait_for("document.getElementById('stop').hidden")
        .await;
    wait_until("the model's stream is closed", TEST_TIMEOUT, || async {
        model.aborted_prompts() == ["first"]
    })
    .await;

    // Asking again sends a new message, which is answered.
    browser.click(".turn:last-of-type .note button").await;
    wait_for_answer(&browser, "echo: first").await;
    assert_eq!(
        browser
            .js("document.querySelectorAll('.turn').length")
            .await,
        2
    );

    // After a reload both turns are loaded from the server's history.
    browser.wait_for(ANSWERED).await;
    browser.reload().await;
    wait_for_answer(&browser, "echo: first").await;
    browser
        .wait_for("document.body.innerText.includes('Stopped here.')")
        .await;

    browser.click("#conversations li.current button").await;
    browser.click("#confirm button[value=yes]").await;
    browser
        .wait_for("document.querySelectorAll('#conversations li').length === 1")
        .await;
    browser
        .wait_for("!document.getElementById('welcome').hidden")
        .await;
    browser.reload().await;
    browser.wait_for(CONNECTED).await;
    browser
        .wait_for("document.querySelectorAll('#conversations li').length === 1")
        .await;
    browser.assert_console_is_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answer_completes_after_the_server_is_killed_in_its_middle() {
    let model = ScriptedModel::start().await;
    model.queue_answer("long", unfinished_answer("one two three "));
    let spec = with_model(ProcessSpec::durable(), &model);
    let mut server = spec.start().await;
    let browser = Browser::start().await;
    open_page(&browser, &server.url("/")).await;
    send(&browser, "long").await;
    wait_for_answer(&browser, "one two three").await;
    model.queue_answer("long", Script::complete("four five six, and that is all."));

    server.kill();
    browser.wait_for(&format!("!({CONNECTED})")).await;
    let label = browser
        .text("document.getElementById('connection-label').textContent")
        .await;
    assert!(label.contains("again"), "{label}");
    assert!(browser.text(ANSWER).await.contains("one two three"));

    let _server = spec.start().await;
    wait_for_answer(&browser, "four five six, and that is all.").await;
    browser.wait_for(ANSWERED).await;
    let answer = browser.text(ANSWER).await;
    assert_eq!(
        answer.trim(),
        "four five six, and that is all.",
        "expected no text of the first attempt"
    );
    assert_eq!(
        browser
            .js("document.querySelectorAll('.turn').length")
            .await,
        1
    );
    assert_eq!(model.request_count_for("long"), 2);
    // The browser logs failed WebSocket connections itself; no other entries are allowed.
    let log: Vec<String> = browser.log().await;
    let unexpected: Vec<&String> = log
        .iter()
        .filter(|line| !line.contains("WebSocket"))
        .collect();
    assert!(unexpected.is_empty(), "{unexpected:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answer_continues_after_a_lost_connection_and_a_reload() {
    let text = numbered_words(150);
    let model = ScriptedModel::start().await;
    let slow = |text: &str| Script::complete(text).chunk_interval(Duration::from_millis(20));
    model.queue_answer("count", slow(&text));
    model.queue_answer("again", slow(&text));
    let server = start_server(&model).await;
    let proxy = TcpProxy::start(server.port()).await;
    let browser = Browser::start().await;
    open_page(&browser, &format!("http://127.0.0.1:{}/", proxy.port())).await;
    send(&browser, "count").await;
    wait_for_answer(&browser, "word10 ").await;
    proxy.set_mode(ProxyMode::Disconnect);
    browser.wait_for(&format!("!({CONNECTED})")).await;
    // A message that is sent while disconnected is answered after the reconnect.
    send(&browser, "meanwhile").await;
    browser
        .wait_for("document.body.innerText.includes('when there is a connection')")
        .await;
    proxy.set_mode(ProxyMode::Forward);
    browser
        .wait_for("document.querySelectorAll('.turn').length === 2")
        .await;
    wait_for_answer(&browser, "echo: meanwhile").await;
    let first_answer = browser
        .text("document.querySelector('.turn .answer').innerText")
        .await;
    assert_eq!(first_answer.trim(), text);
    assert_eq!(
        model.request_count_for("count"),
        1,
        "expected one model call"
    );

    send(&browser, "again").await;
    wait_for_answer(&browser, "word10 ").await;
    browser.reload().await;
    browser
        .wait_for("document.querySelectorAll('.turn').length === 3")
        .await;
    wait_for_answer(&browser, "word150").await;
    browser.wait_for(ANSWERED).await;
    assert_eq!(browser.text(ANSWER).await.trim(), text);
    let questions =
        browser.text("[...document.querySelectorAll('.question')].map((q) => q.innerText).join()");
    assert_eq!(questions.await, "count,meanwhile,again");
    assert_eq!(model.request_count(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tabs_show_the_same_conversation_state() {
    let model = ScriptedModel::start().await;
    model.queue_answer("shared", unfinished_answer("both see this "));
    let server = start_server(&model).await;
    let browser = Browser::start().await;
    open_page(&browser, &server.url("/")).await;
    send(&browser, "shared").await;
    wait_for_answer(&browser, "both see this").await;
    let address = browser.text("location.href").await;
    let [first_tab, second_tab] = browser.new_tab().await;
    browser.switch_to(&second_tab).await;
    open_page(&browser, &address).await;
    // The second tab shows the answer in progress with its question.
    wait_for_answer(&browser, "both see this").await;
    assert_eq!(
        browser
            .text("document.querySelector('.question').innerText")
            .await,
        "shared"
    );
    // Stopping in one tab stops the answer in the other one.
    browser.click("#message-input").await;
    browser
        .press(&crate::support::browser::key::ESCAPE.to_string())
        .await;
    browser
        .wait_for("document.body.innerText.includes('Stopped here.')")
        .await;
    send(&browser, "from the second tab").await;
    wait_for_answer(&browser, "echo: from the second tab").await;
    browser.switch_to(&first_tab).await;
    wait_for_answer(&browser, "echo: from the second tab").await;
    assert!(
        browser
            .js("document.body.innerText.includes('Stopped here.')")
            .await
            == true
    );
    let questions =
        browser.text("[...document.querySelectorAll('.question')].map((q) => q.innerText).join()");
    assert_eq!(questions.await, "shared,from the second tab");
    // Deleting in one tab removes the conversation from the other one.
    browser.click("#conversations li.current button").await;
    browser.click("#confirm button[value=yes]").await;
    browser
        .wait_for("!document.getElementById('welcome').hidden")
        .await;
    browser.switch_to(&second_tab).await;
    browser
        .wait_for("!document.getElementById('welcome').hidden")
        .await;
    browser.assert_console_is_empty().await;
}

const HOSTILE_MARKDOWN: &str = r#"<img src=x onerror="window.hacked=1"> <script>window.hacked=2</script>
<svg onload="window.hacked=3"><iframe src="javascript:window.hacked=4"></iframe>

[click](javascript:window.hacked=5) [me](JaVaScRiPt:window.hacked=6) <javascript:window.hacked=7>
[data](data:text/html,<script>window.hacked=8</script>) [file](file:///etc/passwd) [near](/token)
![pixel](https://evil.test/pixel.png) [ok](https://ok.test/ "x\" onmouseover=window.hacked=9")

| <b onclick=1>a</b> | b
|---|---|
| `</code><script>window.hacked=10</script>` | [x](vbscript:y) |

```html"><script>window.hacked=11</script>
<script>window.hacked=12</script>
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_markdown_runs_no_code_and_loads_nothing() {
    let model = ScriptedModel::start_with(|request| {
        let prompt = &request.prompt;
        let deeply_nested =
            "> ".repeat(2000) + &"- ".repeat(2000) + &"[".repeat(2000) + &"**a".repeat(2000);
        let text = if prompt.contains("deep") {
            deeply_nested
        } else {
            HOSTILE_MARKDOWN.to_owned()
        };
        Answer::from(Script::complete(&text))
    })
    .await;
    let server = start_server(&model).await;
    let browser = Browser::start().await;
    open_page(&browser, &server.url("/")).await;
    send(&browser, "<img src=x onerror=window.hacked=13>").await;
    browser.wait_for(ANSWERED).await;
    browser
        .wait_for("document.querySelector('.answer figure.code')")
        .await;
    let active_elements = browser
        .js("[...document.querySelectorAll('#turns *')].filter((e) => \
             ['IMG','SCRIPT','IFRAME','OBJECT','EMBED','STYLE','FORM','BASE'].includes(e.tagName) \
             || [...e.attributes].some((a) => /^on/i.test(a.name) || a.name === 'style')) \
             .map((e) => e.outerHTML)")
        .await;
    assert_eq!(active_elements, json!([]));
    let links = browser
        .js("[...document.querySelectorAll('#turns a')].map((a) => a.href)")
        .await;
    assert_eq!(
        links,
        json!(["https://evil.test/pixel.png", "https://ok.test/"])
    );
    let are_isolated = browser
        .js("[...document.querySelectorAll('#turns a')].every((a) => \
             a.rel.includes('noopener') && a.target === '_blank')")
        .await;
    assert_eq!(are_isolated, true);
    for text in [
        "<img src=x",
        "<script>window.hacked=2",
        "<b onclick=1>a</b>",
    ] {
        assert!(
            browser.text(ANSWER).await.contains(text),
            "expected {text} to be shown as text"
        );
    }
    send(&browser, "deep").await;
    browser
        .wait_for("document.querySelectorAll('.turn').length === 2")
        .await;
    browser.wait_for(ANSWERED).await;
    assert_eq!(browser.js("window.hacked ?? null").await, json!(null));
    let loaded = browser
        .js(
            "performance.getEntriesByType('resource').map((e) => e.name)\
             .filter((name) => !name.startsWith(location.origin))",
        )
        .await;
    assert_eq!(loaded, json!([]), "expected no resources of other hosts");
    browser.assert_console_is_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rate_limits_and_rejected_tokens_are_explained_and_recoverable() {
    let model = ScriptedModel::start().await;
    let server = with_model(ProcessSpec::ephemeral(), &model)
        .env("AUTH_MODE", "stored")
        .env("TOKEN_ENDPOINT", "admin")
        .env("ADMIN_KEY", "an-admin-key-of-this-test")
        .env("USER_RATE_LIMIT_MAX_REQUESTS", "1")
        .env("USER_RATE_LIMIT_WINDOW_SECONDS", "6")
        .start()
        .await;
    let key = [("authorization", "Bearer an-admin-key-of-this-test")];
    let url = server.url("/token?userid=alice");
    let reply = crate::support::http::post(&url, &key).await.json();
    let token = reply["token"].as_str().unwrap().to_owned();

    let browser = Browser::start().await;
    browser.open(&server.url("/")).await;
    browser
        .wait_for("document.getElementById('identity').open")
        .await;
    browser.write("#identity-user", "alice").await;
    browser.write("#identity-token", "wrong\u{e007}").await;
    browser
        .wait_for("document.getElementById('identity-text').textContent.includes('check both')")
        .await;
    browser
        .write("#identity-token", &format!("{token}\u{e007}"))
        .await;
    browser.wait_for(CONNECTED).await;
    let _ = browser.log().await;
    let is_in_url = browser
        .js(&format!(
            "performance.getEntries().some((e) => e.name.includes({}))",
            json!(token)
        ))
        .await;
    assert_eq!(is_in_url, false);

    send(&browser, "one").await;
    send(&browser, "two").await;
    browser
        .wait_for("document.body.innerText.includes('You can send again in')")
        .await;
    let is_disabled = "document.querySelector('.turn:last-of-type .note button').disabled";
    assert_eq!(browser.js(is_disabled).await, true);
    browser.wait_for(&format!("!{is_disabled}")).await;
    browser.click(".turn:last-of-type .note button").await;
    wait_for_answer(&browser, "echo: two").await;
    assert_eq!(
        browser
            .js("document.querySelectorAll('.turn').length")
            .await,
        2
    );

    // After a revocation the page asks for a new token.
    let revocation = crate::support::http::try_call(reqwest::Method::DELETE, &url, &key).await;
    assert_eq!(revocation.unwrap().status, 200);
    browser
        .wait_for("document.getElementById('identity').open")
        .await;

    browser
        .wait_for("document.getElementById('identity-text').textContent.includes('no longer accepts this token')")
        .await;

    // With an open token endpoint the page requests a token automatically.
    let open_server = with_model(ProcessSpec::ephemeral(), &model)
        .env("AUTH_MODE", "stored")
        .env("TOKEN_ENDPOINT", "open")
        .start()
        .await;
    open_page(&browser, &open_server.url("/")).await;
    send(&browser, "three").await;
    wait_for_answer(&browser, "echo: three").await;
}
