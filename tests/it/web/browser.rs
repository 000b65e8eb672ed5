//! The chat page in a real browser.

use serde_json::json;

use crate::support::browser::Browser;
use crate::support::model::{Answer, Script, ScriptedModel};
use crate::support::process::{ChatmeshProcess, ProcessSpec};
use crate::support::tcp_proxy::{ProxyMode, TcpProxy};
use crate::support::{TEST_TIMEOUT, wait_until};

use std::time::Duration;

/// The last answer on the page, as text.
const ANSWER: &str = "document.querySelector('.turn:last-of-type .answer')?.innerText ?? ''";
const CONNECTED: &str = "document.getElementById('connection').dataset.state === 'open'";
/// No answer grows any more, and there is one.
const ANSWERED: &str = "document.querySelector('.turn') && \
                        !document.querySelector('.turn[aria-busy=true]')";

pub(super) fn with_model(spec: ProcessSpec, model: &ScriptedModel) -> ProcessSpec {
    spec.env("OPENAI_BASE_URL", &model.base_url())
        .env("OPENAI_TIMEOUT_MS", "60000")
        .env("OPENAI_IDLE_TIMEOUT_MS", "60000")
}

/// The page, connected.
pub(super) async fn open(browser: &Browser, url: &str) {
    browser.open(url).await;
    browser.wait_for(CONNECTED).await;
}

pub(super) async fn ask(browser: &Browser, question: &str) {
    browser
        .write("#message-input", &format!("{question}\u{e007}"))
        .await;
}

/// Waits until the answer holds this.
async fn shows(browser: &Browser, text: &str) {
    browser
        .wait_for(&format!("({ANSWER}).includes({})", json!(text)))
        .await;
}

async fn started(model: &ScriptedModel) -> ChatmeshProcess {
    with_model(ProcessSpec::ephemeral(), model).start().await
}

fn words(count: usize) -> String {
    let words: Vec<String> = (1..=count).map(|n| format!("word{n}")).collect();
    words.join(" ")
}

/// Begins and never ends.
fn half(text: &str) -> Script {
    Script::new().role().text(text).hang()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_streams_in_and_the_conversation_is_listed_and_deleted() {
    let model = ScriptedModel::start().await;
    model.queue_answer("first", half("It *begins* "));
    let server = started(&model).await;
    let browser = Browser::start().await;
    open(&browser, &server.url("/test-ui.html")).await;
    ask(&browser, "first").await;
    shows(&browser, "It begins").await;
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

    // Another conversation meanwhile, and its answer is the only one that it shows.
    browser.click("#new-chat").await;
    ask(&browser, "second").await;
    shows(&browser, "echo: second").await;
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
    shows(&browser, "It begins").await;

    // Stop, by the button.
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

    // Ask again: another message, answered this time.
    browser.click(".turn:last-of-type .note button").await;
    shows(&browser, "echo: first").await;
    assert_eq!(
        browser
            .js("document.querySelectorAll('.turn').length")
            .await,
        2
    );

    // Both are there after a reload, from the server's history.
    browser.wait_for(ANSWERED).await;
    browser.reload().await;
    shows(&browser, "echo: first").await;
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
    browser.assert_no_complaints().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_goes_on_to_its_end_after_kill_9_in_its_middle() {
    let model = ScriptedModel::start().await;
    model.queue_answer("long", half("one two three "));
    let spec = with_model(ProcessSpec::durable(), &model);
    let mut server = spec.start().await;
    let browser = Browser::start().await;
    open(&browser, &server.url("/")).await;
    ask(&browser, "long").await;
    shows(&browser, "one two three").await;
    model.queue_answer("long", Script::complete("four five six, and that is all."));

    server.kill();
    browser.wait_for(&format!("!({CONNECTED})")).await;
    let said = browser
        .text("document.getElementById('connection-label').textContent")
        .await;
    assert!(said.contains("again"), "{said}");
    assert!(browser.text(ANSWER).await.contains("one two three"));

    let _server = spec.start().await;
    shows(&browser, "four five six, and that is all.").await;
    browser.wait_for(ANSWERED).await;
    let whole = browser.text(ANSWER).await;
    assert_eq!(
        whole.trim(),
        "four five six, and that is all.",
        "no text of the first attempt"
    );
    assert_eq!(
        browser
            .js("document.querySelectorAll('.turn').length")
            .await,
        1
    );
    assert_eq!(model.request_count_for("long"), 2);
    // The browser itself notes every connection that fails, and nothing else may be there.
    let other: Vec<String> = browser.log().await;
    let other: Vec<&String> = other
        .iter()
        .filter(|line| !line.contains("WebSocket"))
        .collect();
    assert!(other.is_empty(), "{other:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_goes_on_through_lost_connections_and_a_reload() {
    let text = words(150);
    let model = ScriptedModel::start().await;
    let paced = |text: &str| Script::complete(text).chunk_interval(Duration::from_millis(20));
    model.queue_answer("count", paced(&text));
    model.queue_answer("again", paced(&text));
    let server = started(&model).await;
    let link = TcpProxy::start(server.port()).await;
    let browser = Browser::start().await;
    open(&browser, &format!("http://127.0.0.1:{}/", link.port())).await;
    ask(&browser, "count").await;
    shows(&browser, "word10 ").await;
    link.set_mode(ProxyMode::Disconnect);
    browser.wait_for(&format!("!({CONNECTED})")).await;
    // Sent while nobody is there, and answered after that.
    ask(&browser, "meanwhile").await;
    browser
        .wait_for("document.body.innerText.includes('when there is a connection')")
        .await;
    link.set_mode(ProxyMode::Forward);
    browser
        .wait_for("document.querySelectorAll('.turn').length === 2")
        .await;
    shows(&browser, "echo: meanwhile").await;
    let first = browser
        .text("document.querySelector('.turn .answer').innerText")
        .await;
    assert_eq!(first.trim(), text);
    assert_eq!(
        model.request_count_for("count"),
        1,
        "the model was asked once"
    );

    ask(&browser, "again").await;
    shows(&browser, "word10 ").await;
    browser.reload().await;
    browser
        .wait_for("document.querySelectorAll('.turn').length === 3")
        .await;
    shows(&browser, "word150").await;
    browser.wait_for(ANSWERED).await;
    assert_eq!(browser.text(ANSWER).await.trim(), text);
    let asked =
        browser.text("[...document.querySelectorAll('.question')].map((q) => q.innerText).join()");
    assert_eq!(asked.await, "count,meanwhile,again");
    assert_eq!(model.request_count(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_tabs_are_in_step() {
    let model = ScriptedModel::start().await;
    model.queue_answer("shared", half("both see this "));
    let server = started(&model).await;
    let browser = Browser::start().await;
    open(&browser, &server.url("/")).await;
    ask(&browser, "shared").await;
    shows(&browser, "both see this").await;
    let address = browser.text("location.href").await;
    let [one, two] = browser.new_tab().await;
    browser.switch_to(&two).await;
    open(&browser, &address).await;
    // What was under way before this tab was there, with its question.
    shows(&browser, "both see this").await;
    assert_eq!(
        browser
            .text("document.querySelector('.question').innerText")
            .await,
        "shared"
    );
    // Stopped here, stopped there.
    browser.click("#message-input").await;
    browser
        .press(&crate::support::browser::key::ESCAPE.to_string())
        .await;
    browser
        .wait_for("document.body.innerText.includes('Stopped here.')")
        .await;
    ask(&browser, "from the second tab").await;
    shows(&browser, "echo: from the second tab").await;
    browser.switch_to(&one).await;
    shows(&browser, "echo: from the second tab").await;
    assert!(
        browser
            .js("document.body.innerText.includes('Stopped here.')")
            .await
            == true
    );
    let asked =
        browser.text("[...document.querySelectorAll('.question')].map((q) => q.innerText).join()");
    assert_eq!(asked.await, "shared,from the second tab");
    // Deleted here, gone there.
    browser.click("#conversations li.current button").await;
    browser.click("#confirm button[value=yes]").await;
    browser
        .wait_for("!document.getElementById('welcome').hidden")
        .await;
    browser.switch_to(&two).await;
    browser
        .wait_for("!document.getElementById('welcome').hidden")
        .await;
    browser.assert_no_complaints().await;
}

const HOSTILE: &str = r#"<img src=x onerror="window.hacked=1"> <script>window.hacked=2</script>
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
async fn a_hostile_answer_and_question_do_nothing() {
    let model = ScriptedModel::start_with(|asked| {
        let prompt = &asked.prompt;
        let deep = "> ".repeat(2000) + &"- ".repeat(2000) + &"[".repeat(2000) + &"**a".repeat(2000);
        let text = if prompt.contains("deep") {
            deep
        } else {
            HOSTILE.to_owned()
        };
        Answer::from(Script::complete(&text))
    })
    .await;
    let server = started(&model).await;
    let browser = Browser::start().await;
    open(&browser, &server.url("/")).await;
    ask(&browser, "<img src=x onerror=window.hacked=13>").await;
    browser.wait_for(ANSWERED).await;
    browser
        .wait_for("document.querySelector('.answer figure.code')")
        .await;
    let found = browser
        .js("[...document.querySelectorAll('#turns *')].filter((e) => \
             ['IMG','SCRIPT','IFRAME','OBJECT','EMBED','STYLE','FORM','BASE'].includes(e.tagName) \
             || [...e.attributes].some((a) => /^on/i.test(a.name) || a.name === 'style')) \
             .map((e) => e.outerHTML)")
        .await;
    assert_eq!(found, json!([]));
    let links = browser
        .js("[...document.querySelectorAll('#turns a')].map((a) => a.href)")
        .await;
    assert_eq!(
        links,
        json!(["https://evil.test/pixel.png", "https://ok.test/"])
    );
    let safe = browser
        .js("[...document.querySelectorAll('#turns a')].every((a) => \
             a.rel.includes('noopener') && a.target === '_blank')")
        .await;
    assert_eq!(safe, true);
    for text in [
        "<img src=x",
        "<script>window.hacked=2",
        "<b onclick=1>a</b>",
    ] {
        assert!(
            browser.text(ANSWER).await.contains(text),
            "{text} is shown as text"
        );
    }
    ask(&browser, "deep").await;
    browser
        .wait_for("document.querySelectorAll('.turn').length === 2")
        .await;
    browser.wait_for(ANSWERED).await;
    assert_eq!(browser.js("window.hacked ?? null").await, json!(null));
    let asked = browser
        .js(
            "performance.getEntriesByType('resource').map((e) => e.name)\
             .filter((name) => !name.startsWith(location.origin))",
        )
        .await;
    assert_eq!(asked, json!([]), "nothing is loaded from elsewhere");
    browser.assert_no_complaints().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_and_tokens_are_explained_and_can_be_mended() {
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
    let leaked = browser
        .js(&format!(
            "performance.getEntries().some((e) => e.name.includes({}))",
            json!(token)
        ))
        .await;
    assert_eq!(leaked, false);

    ask(&browser, "one").await;
    ask(&browser, "two").await;
    browser
        .wait_for("document.body.innerText.includes('You can send again in')")
        .await;
    let waits = "document.querySelector('.turn:last-of-type .note button').disabled";
    assert_eq!(browser.js(waits).await, true);
    browser.wait_for(&format!("!{waits}")).await;
    browser.click(".turn:last-of-type .note button").await;
    shows(&browser, "echo: two").await;
    assert_eq!(
        browser
            .js("document.querySelectorAll('.turn').length")
            .await,
        2
    );

    // Revoked: asked for again.
    let revoked = crate::support::http::try_call(reqwest::Method::DELETE, &url, &key).await;
    assert_eq!(revoked.unwrap().status, 200);
    browser
        .wait_for("document.getElementById('identity').open")
        .await;

    browser
        .wait_for("document.getElementById('identity-text').textContent.includes('any more')")
        .await;

    // Where everybody may have a token, the page gets one by itself.
    let open_server = with_model(ProcessSpec::ephemeral(), &model)
        .env("AUTH_MODE", "stored")
        .env("TOKEN_ENDPOINT", "open")
        .start()
        .await;
    open(&browser, &open_server.url("/")).await;
    ask(&browser, "three").await;
    shows(&browser, "echo: three").await;
}
