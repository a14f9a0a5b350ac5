//! A page in a real browser: headless Chromium, driven over WebDriver.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{Process, free_port};
use crate::{http, until};

const HELP: &str = "This scenario needs `chromedriver` and Chromium (or Chrome) on the PATH.\n\
    Debian, Ubuntu: apt-get install chromium chromium-driver   macOS: brew install chromedriver\n\
    Or run ./test.sh, which installs what is missing.";

/// An open page; its browser ends with it.
#[derive(Debug)]
pub struct Page {
    driver: String,
    session: String,
    _process: Process,
    _profile: TempDir,
}

impl Page {
    /// Opens `url` in a browser of its own, 1280 by 800.
    ///
    /// # Panics
    /// With instructions when a browser is missing.
    pub async fn open(url: &str) -> Self {
        let port = free_port();
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={port}"));
        let process = Process::spawn("chromedriver", command, HELP);
        let driver = format!("127.0.0.1:{port}");
        until("chromedriver is ready", async || {
            let status = http::call(&driver, Method::GET, "/status", &[], "").await.ok()?;
            (status.json()["value"]["ready"] == true).then_some(())
        })
        .await;

        let profile = TempDir::new().expect("a temporary directory");
        let body = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": options(profile.path()),
        }}});
        let reply = http::call(&driver, Method::POST, "/session", &[], body.to_string()).await;
        let reply = reply.unwrap_or_else(|error| panic!("chromedriver: {error}"));
        let created = reply.json();
        let session = created["value"]["sessionId"].as_str();
        let session = session.unwrap_or_else(|| panic!("no browser: {created}\n{HELP}")).to_owned();
        let page = Self { driver, session, _process: process, _profile: profile };
        page.resize(1280, 800).await;
        page.command("/url", json!({"url": url})).await;
        page
    }

    /// Makes the page `width` by `height` CSS pixels; the window's own edges do not count.
    pub async fn resize(&self, width: u32, height: u32) {
        let size =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", size).await;
    }

    /// Takes the network away from the page, or gives it back.
    pub async fn set_offline(&self, offline: bool) {
        let network = json!({
            "offline": offline, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1,
        });
        self.devtools("Network.enable", json!({})).await;
        self.devtools("Network.emulateNetworkConditions", network).await;
    }

    async fn devtools(&self, cmd: &str, params: Value) {
        self.command("/goog/cdp/execute", json!({"cmd": cmd, "params": params})).await;
    }

    /// Runs a script, which may `return` something.
    pub async fn run(&self, script: &str) -> Value {
        self.command("/execute/sync", json!({"script": script, "args": []})).await
    }

    /// Waits until the expression is true.
    ///
    /// # Panics
    /// When it does not become so; prints what the page's hooks say.
    pub async fn wait(&self, what: &str, expression: &str) {
        let hooks = "return ['connection', 'run', 'notice', 'integrity', 'text'].map((id) => {
            const node = document.getElementById(id);
            return `#${id} ` + (node ? `${JSON.stringify(node.dataset)} hidden=${node.hidden} \
                ${node.textContent.slice(-200)}` : 'is missing');
        }).join('\\n')";
        let script = format!("return !!({expression})");
        let deadline = tokio::time::Instant::now() + crate::PATIENCE;
        while self.run(&script).await != true {
            if tokio::time::Instant::now() > deadline {
                let hooks = self.run(hooks).await;
                panic!("waited in vain: {what}\n{}", hooks.as_str().unwrap_or_default());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Clicks, as a person would: what is covered or disabled cannot be clicked.
    pub async fn click(&self, selector: &str) {
        let found =
            self.command("/element", json!({"using": "css selector", "value": selector})).await;
        let element = found.as_object().and_then(|found| found.values().next()).cloned();
        let element = element.unwrap_or_else(|| panic!("no {selector}: {found}"));
        let element = element.as_str().expect("an element's reference is a string").to_owned();
        self.command(&format!("/element/{element}/click"), json!({})).await;
    }

    /// Writes what is to be seen to a PNG.
    pub async fn screenshot(&self, file: &Path) {
        let path = format!("/session/{}/screenshot", self.session);
        let reply = http::call(&self.driver, Method::GET, &path, &[], "").await;
        let reply = reply.unwrap_or_else(|error| panic!("chromedriver: {error}")).json();
        let png = BASE64_STANDARD.decode(reply["value"].as_str().unwrap_or_default());
        std::fs::write(file, png.expect("a screenshot is base64")).expect("writes the screenshot");
    }

    async fn command(&self, path: &str, body: Value) -> Value {
        let path = format!("/session/{}{path}", self.session);
        let reply = http::call(&self.driver, Method::POST, &path, &[], body.to_string()).await;
        let mut reply = reply.unwrap_or_else(|error| panic!("chromedriver: {error}")).json();
        assert!(reply["value"]["error"].is_null(), "{path}: {reply}");
        reply["value"].take()
    }
}

impl Drop for Page {
    /// Ends the browser: killing its driver alone would leave it running.
    fn drop(&mut self) {
        let end = || -> std::io::Result<()> {
            let mut driver = TcpStream::connect(&self.driver)?;
            driver.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(
                driver,
                "DELETE /session/{} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
                self.session, self.driver
            )?;
            driver.read(&mut [0]).map(drop)
        };
        if let Err(error) = end() {
            eprintln!("the browser may be left behind: {error}");
        }
    }
}

fn options(profile: &Path) -> Value {
    let mut options = json!({"args": [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--hide-scrollbars",
        format!("--user-data-dir={}", profile.display()),
    ]});
    if let Some(binary) = chromium() {
        options["binary"] = json!(binary);
    }
    options
}

/// The browser, where it is not the Chrome that chromedriver finds by itself.
fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let names = ["chromium", "chromium-browser"].into_iter();
    let candidates = names.flat_map(|name| directories.iter().map(move |dir| dir.join(name)));
    candidates.into_iter().find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::Page;

    #[tokio::test]
    async fn a_page_is_opened_clicked_and_read() {
        let button = "<button id=b onclick='this.dataset.was=1'>press</button>";
        let page = Page::open(&format!("data:text/html,{button}")).await;

        page.click("#b").await;

        page.wait("it was pressed", "document.querySelector('#b').dataset.was === '1'").await;
        let size = page.run("return `${innerWidth}x${innerHeight}`").await;
        assert_eq!(size, "1280x800");
    }
}
