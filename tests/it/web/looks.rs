//! How the page looks and is used: pictures, keyboard, names and contrasts.

use serde_json::{Value, json};

use super::browser::{ask, open, with_model};
use crate::support::browser::{Browser, key, pictures};
use crate::support::model::{Answer, Script, ScriptedModel};
use crate::support::process::ProcessSpec;

const SHOWCASE: &str = include_str!("showcase.md");

async fn showcase() -> ScriptedModel {
    ScriptedModel::start_with(|asked| match asked.prompt.as_str() {
        "hang" => Script::new().role().text("It goes on ").hang().into(),
        "rtl" => Answer::from(Script::complete("مرحبا بك في الدردشة")),
        _ => Answer::from(Script::complete(SHOWCASE)),
    })
    .await
}

const ANSWERED: &str = "document.querySelector('.turn .tools:not([hidden])')";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_fits_its_screen_and_can_be_read_in_light_and_dark() {
    let model = showcase().await;
    let server = with_model(ProcessSpec::ephemeral(), &model).start().await;
    let browser = Browser::start().await;
    open(&browser, &server.url("/")).await;
    for question in [
        "Write a haiku about the sea",
        "Compare SQL joins in a table",
    ] {
        ask(&browser, question).await;
        browser.wait_for(ANSWERED).await;
        browser.click("#new-chat").await;
    }
    ask(&browser, "What is a hash map?").await;
    browser.wait_for(ANSWERED).await;
    for (name, width, height, dark) in [
        ("desktop-light", 1280, 800, false),
        ("desktop-dark", 1280, 800, true),
        ("phone-light", 390, 844, false),
        ("phone-dark", 390, 844, true),
    ] {
        browser.screen(width, height, dark).await;
        browser
            .js("(document.getElementById('scroll').scrollTop = 0, document.activeElement.blur())")
            .await;
        browser
            .picture(&pictures().join(format!("{name}.png")))
            .await;
        let wide = browser
            .js("document.documentElement.scrollWidth <= innerWidth")
            .await;
        assert_eq!(wide, true, "{name} is wider than the screen");
        assert_eq!(browser.js(CONTRASTS).await, json!([]), "{name}");
    }
    // On a phone the list is a drawer.
    browser.click("#open-menu").await;
    browser
        .wait_for("document.body.classList.contains('drawer-open')")
        .await;
    browser
        .wait_for("document.getElementById('main').inert")
        .await;
    browser.screen(390, 844, false).await;
    browser.picture(&pictures().join("phone-drawer.png")).await;
    browser.press(&key::ESCAPE.to_string()).await;
    browser
        .wait_for("document.activeElement.id === 'open-menu'")
        .await;
    let small = browser
        .js(
            "[...document.querySelectorAll('.main button')].filter((b) => b.offsetParent && \
             Math.min(b.offsetWidth, b.offsetHeight) < 24).map((b) => b.outerHTML)",
        )
        .await;
    assert_eq!(small, json!([]), "too small for a finger");

    // The person's own choice wins over the system's, and is kept.
    browser.screen(1280, 800, false).await;
    browser.click("#theme-button").await;
    browser.reload().await;
    assert_eq!(
        browser.text("document.documentElement.dataset.theme").await,
        "dark"
    );
    assert_eq!(browser.js(CONTRASTS).await, json!([]));
    browser.assert_no_complaints().await;
}

/// Pairs of text and ground that are too near to each other for the guidelines (WCAG 2.2, AA).
const CONTRASTS: &str = r"(() => {
    const style = getComputedStyle(document.documentElement);
    const light = (name) => {
        const hex = style.getPropertyValue('--' + name).trim();
        const part = (at) => {
            const value = parseInt(hex.slice(at, at + 2), 16) / 255;
            return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
        };
        return 0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5);
    };
    const pairs = [];
    for (const ground of ['background', 'sidebar', 'surface', 'code']) {
        for (const text of ['text', 'muted', 'accent', 'danger', 'warning', 'good']) pairs.push([text, ground]);
    }
    for (const text of ['code-word', 'code-string', 'code-number']) pairs.push([text, 'code']);
    pairs.push(['text', 'bubble'], ['muted', 'bubble'], ['on-accent', 'accent'], ['on-danger', 'danger'], ['background', 'text']);
    return pairs.map(([text, ground]) => {
        const [high, low] = [light(text), light(ground)].sort((a, b) => b - a);
        return [text, ground, (high + 0.05) / (low + 0.05)];
    }).filter(([, , ratio]) => !(ratio >= 4.5));
})()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keyboard_is_enough_and_everything_has_a_name() {
    let model = showcase().await;
    let server = with_model(ProcessSpec::ephemeral(), &model).start().await;
    let browser = Browser::start().await;
    open(&browser, &server.url("/")).await;
    let focused = "document.activeElement.id || document.activeElement.className \
                   || document.activeElement.tagName";
    assert_eq!(
        browser.text(focused).await,
        "message-input",
        "one can type at once"
    );
    browser.press("line one").await;
    browser.press_with(key::SHIFT, key::ENTER).await;
    browser.press("line two").await;
    assert_eq!(
        browser
            .text("document.getElementById('message-input').value")
            .await,
        "line one\nline two"
    );
    assert_eq!(
        browser
            .js("document.querySelectorAll('.turn').length")
            .await,
        0
    );
    browser.press(&key::ENTER.to_string()).await;
    browser.wait_for(ANSWERED).await;
    assert_eq!(
        browser.text(focused).await,
        "message-input",
        "the focus stays"
    );
    let said = browser
        .text("document.getElementById('announcer').textContent")
        .await;
    assert!(said.starts_with("Answer: "), "{said}");

    // Around the page, from its very beginning: everything that can be clicked is there.
    browser.js("document.activeElement.blur()").await;
    browser.reload().await;
    browser.wait_for(ANSWERED).await;
    browser
        .js("(document.body.tabIndex = -1, document.body.focus(), document.body.removeAttribute('tabindex'))")
        .await;
    let mut walked = Vec::new();
    for _ in 0..40 {
        browser.press(&key::TAB.to_string()).await;
        let at = browser.text(focused).await;
        if walked.first() == Some(&at) || at == "BODY" {
            break;
        }
        if at == "new-chat" {
            let ring = "getComputedStyle(document.activeElement).outlineStyle";
            assert_eq!(browser.text(ring).await, "solid", "the focus is seen");
        }
        walked.push(at);
    }
    assert_eq!(
        walked.first().map(String::as_str),
        Some("skip-link"),
        "{walked:?}"
    );
    for stop in ["new-chat", "user-button", "theme-button", "message-input"] {
        assert!(
            walked.iter().any(|at| at == stop),
            "{stop} is not in {walked:?}"
        );
    }

    // Escape stops, and the page says so.
    browser.click("#message-input").await;
    browser.press(&format!("hang{}", key::ENTER)).await;
    browser
        .wait_for("document.body.innerText.includes('It goes on')")
        .await;
    browser.press(&key::ESCAPE.to_string()).await;
    browser
        .wait_for("document.getElementById('announcer').textContent.includes('stopped')")
        .await;
    assert_named(&browser).await;

    browser.press(&format!("rtl{}", key::ENTER)).await;
    browser
        .wait_for("document.body.innerText.includes('مرحبا')")
        .await;
    let direction = browser
        .js("getComputedStyle(document.querySelector('.turn:last-of-type .answer p')).direction")
        .await;
    assert_eq!(direction, "rtl");
    browser.assert_no_complaints().await;
}

/// By the tree that a screen reader gets.
async fn assert_named(browser: &Browser) {
    let tree = browser
        .devtools("Accessibility.getFullAXTree", json!({}))
        .await;
    let nodes = tree["nodes"].as_array().cloned().unwrap_or_default();
    let role = |node: &Value| node["role"]["value"].as_str().unwrap_or("").to_owned();
    let name = |node: &Value| node["name"]["value"].as_str().unwrap_or("").to_owned();
    let shown: Vec<&Value> = nodes
        .iter()
        .filter(|node| node["ignored"] == false)
        .collect();
    for node in &shown {
        let needs = [
            "button",
            "link",
            "textbox",
            "heading",
            "region",
            "navigation",
            "img",
            "dialog",
        ];
        let role = role(node);
        if needs.contains(&role.as_str()) {
            assert!(
                !name(node).trim().is_empty(),
                "a {role} has no name: {node}"
            );
        }
    }
    for wanted in ["main", "navigation", "complementary", "banner", "status"] {
        assert!(
            shown.iter().any(|node| role(node) == wanted),
            "there is no {wanted}"
        );
    }
    let headings = browser.js("document.querySelectorAll('h1').length").await;
    assert_eq!(headings, 1);
    let twice = browser
        .js("[...document.querySelectorAll('[id]')].map((e) => e.id)\
             .filter((id, n, all) => all.indexOf(id) !== n)")
        .await;
    assert_eq!(twice, json!([]), "ids that are there twice");
    assert_eq!(browser.text("document.documentElement.lang").await, "en");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_that_grows_ends_as_the_whole_text_and_keeps_its_finished_parts() {
    let server = ProcessSpec::ephemeral().start().await;
    let browser = Browser::start().await;
    open(&browser, &server.url("/")).await;
    let text = format!(
        "{SHOWCASE}\n- a\n\n  - b\n- c\n1. x\n\n2. y\n\n~~~\nopen `code`\n\n# no\n~~~\nend\n===\n**bold\n\nlast `one"
    );
    let script = format!(
        "const {{ MarkdownView }} = await import('/app/markdown/view.js');
         const text = {};
         const whole = document.createElement('div');
         new MarkdownView(whole).update(text, false);
         const grown = document.createElement('div');
         const view = new MarkdownView(grown);
         let kept = true;
         let first = null;
         for (let end = 1; end <= text.length; end += 1) {{
             view.update(text.slice(0, end), true);
             if (end === 400) first = grown.firstChild;
             if (end > 400) kept &&= grown.firstChild === first;
         }}
         view.update(text, false);
         const long = document.createElement('div');
         const growing = new MarkdownView(long);
         let all = '';
         const began = performance.now();
         for (let n = 0; n < 600; n += 1) {{
             all += n % 40 ? 'A **sentence** of an answer with `code` in it. ' : '\\n\\n';
             growing.update(all, true);
         }}
         const spent = performance.now() - began;
         return {{ same: whole.innerHTML === grown.innerHTML, kept, spent,
                   whole: whole.innerHTML, grown: grown.innerHTML }};",
        json!(text)
    );
    let result = browser.run(&script).await;
    assert_eq!(result["same"], true, "{result:#}");
    assert_eq!(result["kept"], true);
    // A second on a quiet machine; building all of it each time would take minutes.
    let spent = result["spent"].as_f64().unwrap();
    assert!(spent < 30_000.0, "{spent} ms");
    browser.assert_no_complaints().await;
}
