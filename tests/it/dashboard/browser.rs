//! The page in headless Chromium. Ignored: Chromium takes 290 MB; `make soak` runs it where it is installed.

use super::{EVIL, start};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A browser with one window, by its debugging pipe.
struct Browser {
    dir: PathBuf,
    child: Child,
    to: File,
    from: File,
    buffer: Vec<u8>,
    session: Option<String>,
    number: u64,
    /// Exceptions and messages of its log.
    errors: Vec<Value>,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Browser {
    fn start() -> Self {
        let dir = std::env::temp_dir().join(format!("skep-browser-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let pipe = |name: &str| dir.join(name);
        assert!(Command::new("mkfifo").arg(pipe("to")).arg(pipe("from")).status().is_ok_and(|status| status.success()));
        let mut command = Command::new("sh");
        // Both ends are open before the browser is: an open of one end alone waits for the other.
        command.args(["-c", "exec chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --user-data-dir=\"$1/data\" --remote-debugging-pipe about:blank 3<\"$1/to\" 4>\"$1/from\" 2>/dev/null", "sh"]);
        let child = command.arg(&dir).stdout(Stdio::null()).spawn().expect("started");
        let to = File::options().write(true).open(pipe("to")).expect("opened");
        let from = File::open(pipe("from")).expect("opened");
        let mut browser = Self { dir, child, to, from, buffer: Vec::new(), session: None, number: 0, errors: Vec::new() };
        let targets = browser.command("Target.getTargets", &json!({}));
        let page = targets["targetInfos"]
            .as_array()
            .and_then(|all| all.iter().find(|target| target["type"] == "page"))
            .expect("a page")
            .clone();
        let attached = browser.command("Target.attachToTarget", &json!({ "targetId": page["targetId"], "flatten": true }));
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            browser.command(&format!("{domain}.enable"), &json!({}));
        }
        browser
    }

    fn message(&mut self) -> Value {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == 0) {
                let message: Vec<u8> = self.buffer.drain(..=end).collect();
                return serde_json::from_slice(&message[..end]).expect("JSON");
            }
            let mut chunk = [0; 8192];
            let length = self.from.read(&mut chunk).expect("read");
            assert!(length > 0, "the browser has ended");
            self.buffer.extend_from_slice(&chunk[..length]);
        }
    }

    fn command(&mut self, method: &str, parameters: &Value) -> Value {
        self.number += 1;
        let mut message = json!({ "id": self.number, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).expect("sent");
        loop {
            let answer = self.message();
            if answer["id"] == json!(self.number) {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].clone();
            }
            if answer["method"] == "Runtime.exceptionThrown" || answer["method"] == "Log.entryAdded" {
                self.errors.push(answer["params"].clone());
            }
        }
    }

    fn value(&mut self, script: &str) -> Value {
        let answer = self.command("Runtime.evaluate", &json!({ "expression": script, "returnByValue": true }));
        assert!(answer["exceptionDetails"].is_null(), "{script}: {answer}");
        answer["result"]["value"].clone()
    }

    fn wait(&mut self, script: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.value(script) != json!(true) {
            assert!(Instant::now() < deadline, "{script}: {}", self.value("document.body.innerText"));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn key(&mut self, key: &str, code: u32, text: &str) {
        for kind in ["keyDown", "keyUp"] {
            let text = if kind == "keyDown" { text } else { "" };
            let event = json!({ "type": kind, "key": key, "windowsVirtualKeyCode": code, "text": text });
            self.command("Input.dispatchKeyEvent", &event);
        }
    }

    fn size(&mut self, width: u32, height: u32) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.command("Emulation.setDeviceMetricsOverride", &metrics);
    }

    fn dark(&mut self, dark: bool) {
        let scheme = if dark { "dark" } else { "light" };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.command("Emulation.setEmulatedMedia", &features);
    }

    /// To `SKEP_SCREENSHOTS`, if it names a directory.
    fn screenshot(&mut self, name: &str) {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let taken = self.command("Page.captureScreenshot", &json!({ "format": "png", "captureBeyondViewport": true }));
        let image = STANDARD.decode(taken["data"].as_str().expect("an image")).expect("base64");
        assert!(image.len() > 10_000, "{name} is empty");
        if let Some(dir) = std::env::var_os("SKEP_SCREENSHOTS") {
            std::fs::write(Path::new(&dir).join(format!("{name}.png")), image).expect("written");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Chromium (Debian's package chromium), 290 MB: make soak"]
async fn the_page_shows_the_cluster_by_keyboard_on_a_phone_and_in_the_dark_and_runs_nothing_of_others() {
    if Command::new("chromium").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("not tested: chromium is not installed (apt-get install chromium)");
        return;
    }
    let page = start("browser").await;
    let address = page.address.clone();
    tokio::task::spawn_blocking(move || visit(&address)).await.expect("it passes");
}

fn visit(address: &str) {
    let mut browser = Browser::start();
    browser.size(1280, 900);
    browser.command("Page.navigate", &json!({ "url": address }));
    browser.wait("document.querySelectorAll('#service-table tbody tr').length === 2");
    assert_eq!(browser.value("location.search + location.hash"), json!(""), "the token does not stay in the address");
    assert_eq!(browser.value("document.cookie"), json!(""), "every port of the host would get it");
    let text = browser.value("document.body.innerText").as_str().expect("text").to_owned();
    for part in
        ["3 of 3", "first", "shop.example.com", "50/s", "10 %", "48.0 ms", "unknown flow", "2 of 2", "silent for 15 min", EVIL]
    {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
    assert_eq!(browser.value("document.querySelectorAll('#map svg line').length >= 2"), json!(true));
    // What others have named is shown as text, and is in no place where it would be run.
    assert_eq!(browser.value("document.title"), json!("first – skep"));
    assert_eq!(browser.value("document.querySelectorAll('main script, main img').length"), json!(0));

    // By keyboard: the first stop is the way to the services, and Enter opens a service with its history.
    browser.key("Tab", 9, "");
    assert_eq!(browser.value("document.activeElement.className"), json!("skip"));
    browser.key("Enter", 13, "\r");
    browser.wait("location.hash === '#services'");
    browser.value("[...document.querySelectorAll('.open')].find((one) => one.textContent === 'web').focus()");
    browser.key("Enter", 13, "\r");
    browser.wait("document.querySelectorAll('.story li').length === 1 && document.querySelectorAll('.tasks li').length === 2");
    assert_eq!(browser.value("document.activeElement.getAttribute('aria-expanded')"), json!("true"));
    // The next readings keep the focus.
    let age = "performance.getEntriesByType('resource').filter((one) => one.name.endsWith('/api/overview')).length";
    let asked = browser.value(age).as_u64().expect("a number");
    browser.wait(&format!("{age} >= {}", asked + 2));
    assert_eq!(browser.value("document.activeElement.textContent"), json!("web"));
    browser.screenshot("dashboard-desktop");

    let light = browser.value("getComputedStyle(document.body).backgroundColor");
    browser.dark(true);
    assert_ne!(browser.value("getComputedStyle(document.body).backgroundColor"), light);
    browser.screenshot("dashboard-dark");
    browser.size(390, 844);
    assert_eq!(browser.value("document.documentElement.scrollWidth"), json!(390), "nothing is wider than a phone");
    browser.screenshot("dashboard-phone");
    assert_eq!(browser.errors, Vec::<Value>::new());
}
