//! A client of a connection that was upgraded as those of WebSocket are: lines go up and come back. A server that ends says so, and
//! the client goes to another one then, as browsers do. A connection may end with its server alone: one that leads to the same server as
//! before is a failure.

use super::http::LIMIT;
use anyhow::{Context as _, ensure};
use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};

/// What a server sends before it ends.
pub const BYE: &str = "bye";

/// A client of one address.
pub struct UpgradedClient {
    to: SocketAddr,
    stream: Option<BufReader<TcpStream>>,
    server: String,
    /// Servers whose connection has ended.
    left: BTreeSet<String>,
    next: u64,
}

impl UpgradedClient {
    pub fn new(to: SocketAddr) -> Self {
        Self { to, stream: None, server: String::new(), left: BTreeSet::new(), next: 0 }
    }

    /// Sends one numbered line and expects it back; the name of the server.
    pub fn ask(&mut self) -> anyhow::Result<String> {
        let outcome = self.exchange();
        if outcome.is_err() {
            self.stream = None;
        }
        outcome
    }

    fn exchange(&mut self) -> anyhow::Result<String> {
        self.next += 1;
        for _ in 0..3 {
            let mut stream = match self.stream.take() {
                Some(stream) => stream,
                None => self.connect()?,
            };
            let line = format!("{}\n", self.next);
            let written = stream.get_mut().write_all(line.as_bytes());
            let mut answer = String::new();
            stream.read_line(&mut answer).context("read")?;
            if answer.trim() == BYE {
                self.left.insert(self.server.clone());
                continue;
            }
            written.context("write")?;
            ensure!(answer == line, "{answer:?} instead of {line:?}");
            self.stream = Some(stream);
            return Ok(self.server.clone());
        }
        anyhow::bail!("every server says {BYE}")
    }

    fn connect(&mut self) -> anyhow::Result<BufReader<TcpStream>> {
        let mut stream = TcpStream::connect_timeout(&self.to, LIMIT).context("connect")?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let head = format!("GET / HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{key}\r\n");
        stream.write_all(head.as_bytes()).context("write")?;
        let mut reader = BufReader::new(stream);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            ensure!(reader.read_line(&mut line).context("read the head")? > 0, "the connection ended without an answer");
            if line.trim().is_empty() {
                break;
            }
            lines.push(line.trim().to_owned());
        }
        ensure!(lines[0].contains(" 101 "), "{lines:?}");
        let server = lines.iter().find_map(|line| line.to_ascii_lowercase().strip_prefix("x-server: ").map(str::to_owned));
        self.server = server.context("no name of a server")?;
        ensure!(!self.left.contains(&self.server), "{} has ended a connection and runs on", self.server);
        Ok(reader)
    }
}
