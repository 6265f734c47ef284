//! The demo's output: a line per step with its duration, or one JSON document at the end.

use serde::Serialize;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;
use tokio::time::Instant;

/// Steps so far.
pub(super) struct DemoReport {
    json: bool,
    live: bool,
    start: Instant,
    step: Instant,
    current: String,
    /// Lines of live output above the cursor, to erase.
    drawn: usize,
    steps: Vec<StepRecord>,
    proof: serde_json::Map<String, serde_json::Value>,
    closing: String,
}

#[derive(Serialize)]
struct StepRecord {
    #[serde(rename = "step")]
    name: String,
    result: String,
    seconds: f64,
    ok: bool,
}

impl DemoReport {
    pub(super) fn new(json: bool) -> Self {
        let now = Instant::now();
        Self {
            json,
            live: !json && std::io::stdout().is_terminal(),
            start: now,
            step: now,
            current: String::new(),
            drawn: 0,
            steps: Vec::new(),
            proof: serde_json::Map::new(),
            closing: String::new(),
        }
    }

    /// Starts a step.
    pub(super) fn begin(&mut self, step: &str) {
        step.clone_into(&mut self.current);
        self.step = Instant::now();
        self.progress("…");
    }

    /// Replaces the progress of the current step; shown on a terminal only.
    pub(super) fn progress(&mut self, observed: &str) {
        if self.live {
            self.erase();
            print!("  {:>5.1} s  {}: {observed}", self.step.elapsed().as_secs_f64(), self.current);
            self.drawn = observed.matches('\n').count();
            let _ = std::io::stdout().flush();
        }
    }

    fn erase(&mut self) {
        if self.live {
            print!("\r\x1b[K{}", "\x1b[1A\x1b[K".repeat(std::mem::take(&mut self.drawn)));
        }
    }

    /// Ends the current step with its result.
    pub(super) fn done(&mut self, result: String) {
        let seconds = self.step.elapsed();
        self.erase();
        if !self.json {
            println!("{:>7.1} s  {}: {result}", seconds.as_secs_f64(), self.current);
        }
        self.push(result, seconds, true);
    }

    /// Adds a measured value to the JSON document.
    pub(super) fn measured(&mut self, name: &str, value: impl Serialize) {
        self.proof.insert(name.to_owned(), serde_json::to_value(value).unwrap_or_default());
    }

    /// Sets the text that is printed after the last step.
    pub(super) fn closing(&mut self, text: String) {
        self.closing = text;
    }

    /// Prints the end: the failure of the current step, or success.
    pub(super) fn finish(&mut self, error: Option<&anyhow::Error>) {
        if let Some(error) = error {
            let text = format!("{error:#}");
            self.erase();
            if !self.json {
                println!("failed: {}: {text}", self.current);
            }
            let seconds = self.step.elapsed();
            self.push(text, seconds, false);
        }
        let seconds = self.start.elapsed().as_secs_f64();
        if self.json {
            let document =
                serde_json::json!({ "ok": error.is_none(), "seconds": round(seconds), "steps": self.steps, "proof": self.proof });
            println!("{document:#}");
        } else if error.is_none() {
            println!("all steps succeeded in {seconds:.1} s\n\n{}", self.closing);
        }
    }

    fn push(&mut self, result: String, took: Duration, ok: bool) {
        self.steps.push(StepRecord { name: std::mem::take(&mut self.current), result, seconds: round(took.as_secs_f64()), ok });
    }
}

fn round(seconds: f64) -> f64 {
    (seconds * 100.0).round() / 100.0
}
