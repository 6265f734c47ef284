//! Clients that load a proxy, and what the proxy spends on them.

use super::config::host;
use super::proxies::{Proxy, SPACE};
use crate::process::{cpu, inside};
use std::process::Command;
use std::time::Duration;

/// Length of a slice if the variable is not set.
const SECONDS: u32 = 3;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Client {
    Wrk,
    H2load,
}

/// What the clients do.
#[derive(Clone, Copy)]
pub struct Load {
    pub tls: bool,
    /// A connection for each request.
    pub new: bool,
    pub path: &'static str,
    pub client: Client,
}

pub fn seconds() -> u32 {
    std::env::var("SKEP_BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SECONDS)
}

/// Microseconds of the proxy's processor time per request, and requests per second.
pub fn measure(proxy: &Proxy, load: &Load) -> (f64, f64) {
    let before = cpu(proxy.pid());
    let (requests, rate) = drive(proxy, load, seconds());
    // The clients are gone: what is left of their connections is closed.
    std::thread::sleep(Duration::from_millis(50));
    ((cpu(proxy.pid()) - before) / requests * 1e6, rate)
}

pub fn warm(proxy: &Proxy, load: &Load) {
    drive(proxy, load, 1);
}

/// Requests that were answered, and how many per second.
fn drive(proxy: &Proxy, load: &Load, seconds: u32) -> (f64, f64) {
    let (scheme, port) = if load.tls { ("https", proxy.tls) } else { ("http", proxy.plain) };
    let mut command = on_its_processor(super::proxies::OTHERS);
    match load.client {
        Client::Wrk => {
            // It sends the server name of its URL, and has no option for the address.
            let with_names = format!("mount --bind {}/hosts /etc/hosts; exec \"$@\"", proxy.dir);
            command.args(["unshare", "-m", "sh", "-ec", &with_names, "sh", "wrk", "-t1", "-c64", &format!("-d{seconds}")]);
            if load.new {
                command.args(["-H", "Connection: close"]);
            }
            command.arg(format!("{scheme}://{}:{port}{}", host(3), load.path));
        }
        Client::H2load => {
            command.args(["h2load", "-t1", "-c32", "-m8", "-D", &seconds.to_string(), &format!("--connect-to=127.0.0.1:{port}")]);
            command.arg(format!("{scheme}://{}{}", host(3), load.path));
        }
    }
    let output = command.output().expect("the client starts");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let result = match load.client {
        Client::Wrk => wrk(&text),
        Client::H2load => h2load(&text),
    };
    result.unwrap_or_else(|why| panic!("{}, {}: {why}: {text}", proxy.name, load.path))
}

/// A command in the namespace, on one processor if there are two.
pub fn on_its_processor(processor: usize) -> Command {
    let mut command = inside(SPACE);
    if std::thread::available_parallelism().is_ok_and(|count| count.get() > 1) {
        command.args(["taskset", "-c", &processor.to_string()]);
    }
    command
}

fn first_number(line: &str) -> Option<f64> {
    line.split(|c: char| !c.is_ascii_digit() && c != '.').find(|word| !word.is_empty())?.parse().ok()
}

fn wrk(text: &str) -> Result<(f64, f64), String> {
    let line = |mark: &str| text.lines().find(|line| line.contains(mark));
    if let Some(wrong) =
        line("Non-2xx").or_else(|| line("Socket errors: connect 0, read 0, write 0, timeout 0").xor(line("Socket errors")))
    {
        return Err(wrong.trim().to_owned());
    }
    let requests = line("requests in").and_then(first_number).ok_or("no number of requests")?;
    let rate = line("Requests/sec").and_then(first_number).ok_or("no rate")?;
    Ok((requests, rate))
}

fn h2load(text: &str) -> Result<(f64, f64), String> {
    let line = |mark: &str| text.lines().find(|line| line.starts_with(mark));
    let counts: Vec<f64> = line("requests:").ok_or("no requests")?.split(',').filter_map(first_number).collect();
    // total, started, done, succeeded, failed, errored, timeout
    let [.., succeeded, failed, errored, timeout] = counts[..] else { return Err("fewer counts".to_owned()) };
    if failed + errored + timeout > 0.0 || succeeded == 0.0 || line("status codes:").and_then(first_number) != Some(succeeded) {
        return Err("requests have failed".to_owned());
    }
    let rate = line("finished in").and_then(|line| line.split(',').nth(1)).and_then(first_number).ok_or("no rate")?;
    Ok((succeeded, rate))
}
