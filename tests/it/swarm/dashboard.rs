//! The page of `skep dashboard` of a node of a swarm.

use super::kit::SKEP;
use serde_json::Value;
use skep::lab::Host;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, BufReader};

/// What the page of a host shows.
pub async fn overview(host: &Host) -> Value {
    let mut command = host.command(SKEP);
    command.args(["dashboard", "--json", "--listen", "127.0.0.1:0", "--run-dir"]).arg(host.run_dir());
    let mut page = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("started");
    let mut line = String::new();
    BufReader::new(page.stdout.take().expect("piped")).read_line(&mut line).await.expect("read");
    let printed: Value = serde_json::from_str(&line).expect("JSON");
    let address = printed["address"].as_str().expect("an address");
    let (place, token) = address.split_once("/#token=").expect("a place and a token");
    let shown = host.run(&format!("curl -sS -H skep-dashboard-token:{token} {place}/api/overview")).await.expect("an answer");
    page.kill().await.expect("ended");
    serde_json::from_str(&shown).unwrap_or_else(|error| panic!("{error}: {shown}"))
}
