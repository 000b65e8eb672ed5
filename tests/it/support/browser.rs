//! A headless Chromium that tests control through WebDriver.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::process::free_port;
use super::{TEST_TIMEOUT, wait_until};

const ARGUMENTS: [&str; 10] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1280,800",
];

/// Held while a browser runs. Only one runs at a time, because each has several processes.
static RUNNING_BROWSER: Mutex<()> = Mutex::const_new(());

/// The folder for screenshots. It is created if it does not exist.
pub(crate) fn screenshot_dir() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("screenshots");
    std::fs::create_dir_all(&folder).expect("a folder for screenshots");
    folder
}

/// A running browser with a profile of its own. Drop kills its processes.
pub(crate) struct Browser {
    driver: Child,
    client: reqwest::Client,
    /// URL of the WebDriver session; before the session is created, of chromedriver.
    session_url: String,
    profile: TempDir,
    _guard: MutexGuard<'static, ()>,
}

impl Browser {
    pub(crate) async fn start() -> Self {
        let guard = RUNNING_BROWSER.lock().await;
        let profile = tempfile::tempdir().expect("a temporary folder");
        let port = free_port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .env("HOME", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start chromedriver (tests/run installs it)");
        let mut browser = Self {
            driver,
            client: reqwest::Client::builder().no_proxy().build().expect("HTTP"),
            session_url: format!("http://127.0.0.1:{port}"),
            profile,
            _guard: guard,
        };
        wait_until("chromedriver answers", TEST_TIMEOUT, || async {
            browser.try_call(Method::GET, "/status", None).await.is_ok()
        })
        .await;
        let data = browser.profile.path().join("profile");
        let mut arguments: Vec<String> = ARGUMENTS.map(str::to_owned).into();
        arguments.push(format!("--user-data-dir={}", data.display()));
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"args": arguments},
        }}});
        let session = browser.post("/session", capabilities).await;
        let id = session["sessionId"]
            .as_str()
            .expect("a session id")
            .to_owned();
        browser.session_url = format!("{}/session/{id}", browser.session_url);
        browser
    }

    async fn try_call(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, String> {
        let mut request = self
            .client
            .request(method, format!("{}{path}", self.session_url))
            .timeout(Duration::from_secs(60));
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        let reply = request.send().await.map_err(|error| error.to_string())?;
        let is_error = !reply.status().is_success();
        let text = reply.text().await.map_err(|error| error.to_string())?;
        let mut body: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        if is_error {
            return Err(body["value"]["message"].to_string());
        }
        Ok(body["value"].take())
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        self.try_call(Method::POST, path, Some(body))
            .await
            .unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    async fn get(&self, path: &str) -> Value {
        self.try_call(Method::GET, path, None)
            .await
            .unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub(crate) async fn open(&self, url: &str) {
        self.post("/url", json!({"url": url})).await;
    }

    pub(crate) async fn reload(&self) {
        self.post("/refresh", json!({})).await;
    }

    /// Evaluates an expression in the page.
    pub(crate) async fn js(&self, script: &str) -> Value {
        let script = format!("return ({script})");
        let body = json!({"script": script, "args": []});
        self.post("/execute/sync", body).await
    }

    /// Evaluates an expression whose value is text.
    pub(crate) async fn text(&self, script: &str) -> String {
        self.js(script).await.as_str().unwrap_or("").to_owned()
    }

    /// Runs the body of an async function in the page and returns its result.
    pub(crate) async fn run(&self, body: &str) -> Value {
        let script = format!(
            "const done = arguments[0]; (async () => {{ {body} }})()\
             .then(done, (error) => done({{ failed: String(error) }}))"
        );
        let body = json!({"script": script, "args": []});
        self.post("/execute/async", body).await
    }

    /// Waits until an expression is true in the page. On a timeout it saves a screenshot and
    /// panics.
    pub(crate) async fn wait_for(&self, condition: &str) {
        let deadline = Instant::now() + TEST_TIMEOUT;
        loop {
            if self.js(&format!("Boolean({condition})")).await == true {
                return;
            }
            if Instant::now() >= deadline {
                let screenshot = screenshot_dir().join("failed.png");
                self.save_screenshot(&screenshot).await;
                let text = self.text("document.body.innerText").await;
                let console = self.log().await;
                panic!(
                    "not within {TEST_TIMEOUT:?}: {condition}\nthe page shows:\n{text}\n\
                     its console: {console:?}"
                );
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Returns the WebDriver id of the first element that matches the selector.
    async fn element(&self, selector: &str) -> String {
        let locator = json!({"using": "css selector", "value": selector});
        let reference = self.post("/element", locator).await;
        let id = reference
            .as_object()
            .and_then(|fields| fields.values().next());
        id.and_then(Value::as_str).expect("an element").to_owned()
    }

    pub(crate) async fn click(&self, selector: &str) {
        let element = self.element(selector).await;
        self.post(&format!("/element/{element}/click"), json!({}))
            .await;
    }

    pub(crate) async fn write(&self, selector: &str, text: &str) {
        let element = self.element(selector).await;
        self.post(&format!("/element/{element}/value"), json!({"text": text}))
            .await;
    }

    /// Presses keys one after another at the current focus. See [`key`].
    pub(crate) async fn press(&self, keys: &str) {
        let mut actions = Vec::new();
        for key in keys.chars() {
            actions.push(json!({"type": "keyDown", "value": key}));
            actions.push(json!({"type": "keyUp", "value": key}));
        }
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": actions});
        self.post("/actions", json!({"actions": [keyboard]})).await;
    }

    /// Presses a key while another one is held.
    pub(crate) async fn press_with(&self, held: char, key: char) {
        let actions = json!([
            {"type": "keyDown", "value": held},
            {"type": "keyDown", "value": key},
            {"type": "keyUp", "value": key},
            {"type": "keyUp", "value": held},
        ]);
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": actions});
        self.post("/actions", json!({"actions": [keyboard]})).await;
    }

    /// Opens a new tab. Returns the handles of the current and the new one.
    pub(crate) async fn new_tab(&self) -> [String; 2] {
        let current = self.get("/window").await;
        let new = self.post("/window/new", json!({"type": "tab"})).await;
        let handle = |value: &Value| value.as_str().expect("a handle").to_owned();
        [handle(&current), handle(&new["handle"])]
    }

    pub(crate) async fn switch_to(&self, tab: &str) {
        self.post("/window", json!({"handle": tab})).await;
    }

    /// Sends a command of the Chrome DevTools protocol.
    pub(crate) async fn devtools(&self, command: &str, parameters: Value) -> Value {
        let body = json!({"cmd": command, "params": parameters});
        self.post("/goog/cdp/execute", body).await
    }

    /// Emulates a screen of this size with a dark or light color scheme, and waits until all finite
    /// animations have finished.
    pub(crate) async fn emulate_screen(&self, width: u32, height: u32, dark: bool) {
        let scheme = if dark { "dark" } else { "light" };
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.devtools("Emulation.setEmulatedMedia", json!({"features": features}))
            .await;
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1,
            "mobile": width < 600});
        self.devtools("Emulation.setDeviceMetricsOverride", metrics)
            .await;
        let finished = "document.getAnimations().every((animation) => \
            animation.playState === 'finished' \
            || animation.effect.getTiming().iterations === Infinity)";
        self.wait_for(finished).await;
    }

    pub(crate) async fn save_screenshot(&self, file: &std::path::Path) {
        let screenshot = self
            .devtools("Page.captureScreenshot", json!({"format": "png"}))
            .await;
        let data = screenshot["data"].as_str().expect("a screenshot");
        std::fs::write(file, decode_base64(data)).expect("write a screenshot");
    }

    /// The entries of the browser's console since the last call.
    pub(crate) async fn log(&self) -> Vec<String> {
        let entries = self.post("/se/log", json!({"type": "browser"})).await;
        let entries = entries.as_array().cloned().unwrap_or_default();
        let line = |entry: Value| format!("{} {}", entry["level"], entry["message"]);
        entries.into_iter().map(line).collect()
    }

    /// Panics if the browser's console has entries.
    pub(crate) async fn assert_console_is_empty(&self) {
        let log = self.log().await;
        assert!(log.is_empty(), "{log:#?}");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        // Kill all processes of the browser: their command lines contain the path of the profile.
        let profile = self.profile.path().display().to_string();
        let is_own = |pid: u32| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&profile))
        };
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        for process in processes {
            let pid = process.file_name().to_string_lossy().parse();
            if let Ok(pid) = pid
                && is_own(pid)
            {
                super::process::signal(pid, "KILL");
            }
        }
    }
}

/// The characters by which WebDriver names keys that produce no character.
pub(crate) mod key {
    pub(crate) const TAB: char = '\u{e004}';
    pub(crate) const ENTER: char = '\u{e007}';
    pub(crate) const SHIFT: char = '\u{e008}';
    pub(crate) const ESCAPE: char = '\u{e00c}';
}

/// Decodes base64 and ignores characters outside of its alphabet.
fn decode_base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for character in text.bytes() {
        let Some(value) = ALPHABET.iter().position(|symbol| *symbol == character) else {
            continue;
        };
        bits = (bits << 6) | value as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}
