//! A client that speaks HTTP/1.1, with one connection for all requests or one for each.

use anyhow::{Context as _, ensure};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub const LIMIT: Duration = Duration::from_secs(5);

/// A client of one address.
pub struct HttpClient {
    to: SocketAddr,
    keeps: bool,
    stream: Option<BufReader<TcpStream>>,
}

impl HttpClient {
    pub fn new(to: SocketAddr, keeps: bool) -> Self {
        Self { to, keeps, stream: None }
    }

    /// One request; the name of the server that answered. A connection that the server has announced to close is followed by
    /// another one; one that ends in another way is a failure.
    pub fn ask(&mut self) -> anyhow::Result<String> {
        let outcome = self.exchange();
        if outcome.is_err() {
            self.stream = None;
        }
        outcome
    }

    fn exchange(&mut self) -> anyhow::Result<String> {
        let mut stream = if let Some(stream) = self.stream.take() {
            stream
        } else {
            let stream = TcpStream::connect_timeout(&self.to, LIMIT).context("connect")?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(LIMIT))?;
            BufReader::new(stream)
        };
        let connection = if self.keeps { "keep-alive" } else { "close" };
        let request = format!("GET / HTTP/1.1\r\nHost: test\r\nConnection: {connection}\r\n\r\n");
        stream.get_mut().write_all(request.as_bytes()).context("write")?;
        let (mut length, mut closes) = (0, !self.keeps);
        loop {
            let mut line = String::new();
            ensure!(stream.read_line(&mut line).context("read")? > 0, "the connection ended without an answer");
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().context("a length")?;
            }
            closes |= line == "connection: close";
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).context("the body")?;
        let body = String::from_utf8_lossy(&body).into_owned();
        let (server, note) = body.trim().split_once(' ').with_context(|| format!("not an answer: {body:?}"))?;
        ensure!(note.starts_with("ok"), "{server} says: {note}");
        if closes {
            // Whole, to the end that the server has announced.
            ensure!(stream.read(&mut [0; 1]).context("the end")? == 0, "more than the answer");
        } else {
            self.stream = Some(stream);
        }
        Ok(server.to_owned())
    }
}
