//! Appearance and accessibility of the page: layout, contrast, keyboard and accessible names.

use serde_json::{Value, json};

use super::chat_page::{open_page, send, with_model};
use crate::support::browser::{Browser, key, screenshot_dir};
use crate::support::model::{Answer, Script, ScriptedModel};
use crate::support::process::ProcessSpec;

const SHOWCASE: &str = include_str!("showcase.md");

async fn start_model() -> ScriptedModel {
    ScriptedModel::start_with(|request| match request.prompt.as_str() {
        "hang" => Script::new().role().text("It goes on ").hang().into(),
        "rtl" => Answer::from(Script::complete("مرحبا بك في الدردشة")),
        _ => Answer::from(Script::complete(SHOWCASE)),
    })
    .await
}

const ANSWERED: &str = "document.querySelector('.turn .tools:not([hidden])')";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_fits_the_screen_and_has_sufficient_contrast_in_both_themes() {
    let model = start_model().await;
    let server = with_model(ProcessSpec::ephemeral(), &model).start().await;
    let browser = Browser::start().await;
    open_page(&browser, &server.url("/")).await;
    for question in [
        "Write a haiku about the sea",
        "Compare SQL joins in a table",
    ] {
        send(&browser, question).await;
        browser.wait_for(ANSWERED).await;
        browser.click("#new-chat").await;
    }
    send(&browser, "What is a hash map?").await;
    browser.wait_for(ANSWERED).await;
    for (name, width, height, dark) in [
        ("desktop-light", 1280, 800, false),
        ("desktop-dark", 1280, 800, true),
        ("phone-light", 390, 844, false),
        ("phone-dark", 390, 844, true),
    ] {
        browser.emulate_screen(width, height, dark).await;
        browser
            .js("(document.getElementById('scroll').scrollTop = 0, document.activeElement.blur())")
            .await;
        browser
            .save_screenshot(&screenshot_dir().join(format!("{name}.png")))
            .await;
        let fits_width = browser
            .js("document.documentElement.scrollWidth <= innerWidth")
            .await;
        assert_eq!(
            fits_width, true,
            "expected {name} to fit the width of the screen"
        );
        assert_eq!(
            browser.js(LOW_CONTRASTS).await,
            json!([]),
            "expected sufficient contrast in {name}"
        );
    }
    // On a phone the sidebar is a drawer.
    browser.click("#open-menu").await;
    browser
        .wait_for("document.body.classList.contains('drawer-open')")
        .await;
    browser
        .wait_for("document.getElementById('main').inert")
        .await;
    browser.emulate_screen(390, 844, false).await;
    browser
        .save_screenshot(&screenshot_dir().join("phone-drawer.png"))
        .await;
    browser.press(&key::ESCAPE.to_string()).await;
    browser
        .wait_for("document.activeElement.id === 'open-menu'")
        .await;
    let small_buttons = browser
        .js(
            "[...document.querySelectorAll('.main button')].filter((b) => b.offsetParent && \
             Math.min(b.offsetWidth, b.offsetHeight) < 24).map((b) => b.outerHTML)",
        )
        .await;
    assert_eq!(
        small_buttons,
        json!([]),
        "expected no buttons that are too small for touch"
    );

    // The user's choice of theme overrides the system's and survives a reload.
    browser.emulate_screen(1280, 800, false).await;
    browser.click("#theme-button").await;
    browser.reload().await;
    assert_eq!(
        browser.text("document.documentElement.dataset.theme").await,
        "dark"
    );
    assert_eq!(browser.js(LOW_CONTRASTS).await, json!([]));
    browser.assert_console_is_empty().await;
}

/// Pairs of text and background colours whose contrast is below the minimum of WCAG 2.2 AA.
const LOW_CONTRASTS: &str = r"(() => {
    const style = getComputedStyle(document.documentElement);
    const luminance = (name) => {
        const hex = style.getPropertyValue('--' + name).trim();
        const channel = (start) => {
            const value = parseInt(hex.slice(start, start + 2), 16) / 255;
            return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
        };
        return 0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5);
    };
    const pairs = [];
    for (const background of ['background', 'sidebar', 'surface', 'code']) {
        for (const text of ['text', 'muted', 'accent', 'danger', 'warning', 'good']) pairs.push([text, background]);
    }
    for (const text of ['code-word', 'code-string', 'code-number']) pairs.push([text, 'code']);
    pairs.push(['text', 'bubble'], ['muted', 'bubble'], ['on-accent', 'accent'], ['on-danger', 'danger'], ['background', 'text']);
    return pairs.map(([text, background]) => {
        const [high, low] = [luminance(text), luminance(background)].sort((a, b) => b - a);
        return [text, background, (high + 0.05) / (low + 0.05)];
    }).filter(([, , ratio]) => !(ratio >= 4.5));
})()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn page_is_usable_by_keyboard_and_all_controls_have_names() {
    let model = start_model().await;
    let server = with_model(ProcessSpec::ephemeral(), &model).start().await;
    let browser = Browser::start().await;
    open_page(&browser, &server.url("/")).await;
    let focused = "document.activeElement.id || document.activeElement.className \
                   || document.activeElement.tagName";
    assert_eq!(
        browser.text(focused).await,
        "message-input",
        "expected the focus on the message box"
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
        "expected the focus to stay"
    );
    let announcement = browser
        .text("document.getElementById('announcer').textContent")
        .await;
    assert!(announcement.starts_with("Answer: "), "{announcement}");

    // Tab visits all controls, from the start of the page.
    browser.js("document.activeElement.blur()").await;
    browser.reload().await;
    browser.wait_for(ANSWERED).await;
    browser
        .js("(document.body.tabIndex = -1, document.body.focus(), document.body.removeAttribute('tabindex'))")
        .await;
    let mut visited = Vec::new();
    for _ in 0..40 {
        browser.press(&key::TAB.to_string()).await;
        let control = browser.text(focused).await;
        if visited.first() == Some(&control) || control == "BODY" {
            break;
        }
        if control == "new-chat" {
            let outline_style = "getComputedStyle(document.activeElement).outlineStyle";
            assert_eq!(
                browser.text(outline_style).await,
                "solid",
                "expected a visible focus"
            );
        }
        visited.push(control);
    }
    assert_eq!(
        visited.first().map(String::as_str),
        Some("skip-link"),
        "{visited:?}"
    );
    for expected in ["new-chat", "user-button", "theme-button", "message-input"] {
        assert!(
            visited.iter().any(|control| control == expected),
            "expected {expected} among {visited:?}"
        );
    }

    // Escape stops the answer, and the page announces it.
    browser.click("#message-input").await;
    browser.press(&format!("hang{}", key::ENTER)).await;
    browser
        .wait_for("document.body.innerText.includes('It goes on')")
        .await;
    browser.press(&key::ESCAPE.to_string()).await;
    browser
        .wait_for("document.getElementById('announcer').textContent.includes('stopped')")
        .await;
    assert_controls_are_named(&browser).await;

    browser.press(&format!("rtl{}", key::ENTER)).await;
    browser
        .wait_for("document.body.innerText.includes('مرحبا')")
        .await;
    let direction = browser
        .js("getComputedStyle(document.querySelector('.turn:last-of-type .answer p')).direction")
        .await;
    assert_eq!(direction, "rtl");
    browser.assert_console_is_empty().await;
}

/// Checks the names and roles in the accessibility tree, which screen readers use.
async fn assert_controls_are_named(browser: &Browser) {
    let tree = browser
        .devtools("Accessibility.getFullAXTree", json!({}))
        .await;
    let nodes = tree["nodes"].as_array().cloned().unwrap_or_default();
    let role = |node: &Value| node["role"]["value"].as_str().unwrap_or("").to_owned();
    let name = |node: &Value| node["name"]["value"].as_str().unwrap_or("").to_owned();
    let visible_nodes: Vec<&Value> = nodes
        .iter()
        .filter(|node| node["ignored"] == false)
        .collect();
    for node in &visible_nodes {
        let named_roles = [
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
        if named_roles.contains(&role.as_str()) {
            assert!(
                !name(node).trim().is_empty(),
                "expected a name of the {role}: {node}"
            );
        }
    }
    for required in ["main", "navigation", "complementary", "banner", "status"] {
        assert!(
            visible_nodes.iter().any(|node| role(node) == required),
            "expected an element with the role {required}"
        );
    }
    let headings = browser.js("document.querySelectorAll('h1').length").await;
    assert_eq!(headings, 1);
    let duplicates = browser
        .js("[...document.querySelectorAll('[id]')].map((e) => e.id)\
             .filter((id, n, all) => all.indexOf(id) !== n)")
        .await;
    assert_eq!(duplicates, json!([]), "expected no duplicate ids");
    assert_eq!(browser.text("document.documentElement.lang").await, "en");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn incremental_markdown_equals_the_full_rendering_and_keeps_finished_blocks() {
    let _machine = crate::support::machine::reserve_machine().await;
    let server = ProcessSpec::ephemeral().start().await;
    let browser = Browser::start().await;
    open_page(&browser, &server.url("/")).await;
    let text = format!(
        "{SHOWCASE}\n- a\n\n  - b\n- c\n1. x\n\n2. y\n\n~~~\nopen `code`\n\n# no\n~~~\nend\n===\n**bold\n\nlast `one"
    );
    let script = format!(
        "const {{ MarkdownView }} = await import('/app/markdown/view.js');
         const text = {};
         const full = document.createElement('div');
         new MarkdownView(full).update(text, false);
         const incremental = document.createElement('div');
         const view = new MarkdownView(incremental);
         let keepsFirstBlock = true;
         let firstBlock = null;
         for (let end = 1; end <= text.length; end += 1) {{
             view.update(text.slice(0, end), true);
             if (end === 400) firstBlock = incremental.firstChild;
             if (end > 400) keepsFirstBlock &&= incremental.firstChild === firstBlock;
         }}
         view.update(text, false);
         const longAnswer = document.createElement('div');
         const longView = new MarkdownView(longAnswer);
         let longText = '';
         const start = performance.now();
         for (let n = 0; n < 600; n += 1) {{
             longText += n % 40 ? 'A **sentence** of an answer with `code` in it. ' : '\\n\\n';
             longView.update(longText, true);
         }}
         const milliseconds = performance.now() - start;
         return {{ isEqual: full.innerHTML === incremental.innerHTML, keepsFirstBlock, milliseconds,
                   full: full.innerHTML, incremental: incremental.innerHTML }};",
        json!(text)
    );
    let result = browser.run(&script).await;
    assert_eq!(result["isEqual"], true, "{result:#}");
    assert_eq!(result["keepsFirstBlock"], true);
    // The updates take about a second on an idle machine. Rendering the whole text at each update
    // would take minutes.
    let milliseconds = result["milliseconds"].as_f64().unwrap();
    assert!(milliseconds < 30_000.0, "{milliseconds} ms");
    browser.assert_console_is_empty().await;
}
