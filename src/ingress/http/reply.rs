//! Answers of the ingress itself: a status, and a word that says why.

use bytes::Bytes;
use pingora::Result;
use pingora::http::{Method, ResponseHeader};
use pingora::proxy::Session;

/// An answer.
pub(super) struct Reply {
    pub status: u16,
    pub text: String,
    pub headers: Vec<(&'static str, String)>,
}

impl Reply {
    pub fn new(status: u16, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), headers: Vec::new() }
    }
    pub fn with(mut self, header: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((header, value.into()));
        self
    }

    /// Sends it; the connection is kept.
    pub async fn send(self, session: &mut Session) -> Result<()> {
        let body = Bytes::from(format!("{} {}\n", self.status, self.text));
        let mut head = ResponseHeader::build(self.status, Some(4 + self.headers.len()))?;
        head.insert_header("content-type", "text/plain; charset=utf-8")?;
        head.insert_header("cache-control", "no-store")?;
        head.set_content_length(body.len())?;
        for (name, value) in self.headers {
            head.insert_header(name, value)?;
        }
        let is_head = session.req_header().method == Method::HEAD;
        session.write_response_header(Box::new(head), is_head).await?;
        if !is_head {
            session.write_response_body(Some(body), true).await?;
        }
        Ok(())
    }
}

/// An answer whose body is this text and nothing else.
#[derive(Debug)]
pub(super) struct Plain(pub String);

impl Plain {
    /// Sends it; the connection is kept.
    pub async fn send(self, session: &mut Session) -> Result<()> {
        let mut head = ResponseHeader::build(200, Some(3))?;
        head.insert_header("content-type", "application/octet-stream")?;
        head.insert_header("cache-control", "no-store")?;
        head.set_content_length(self.0.len())?;
        let is_head = session.req_header().method == Method::HEAD;
        session.write_response_header(Box::new(head), is_head).await?;
        if !is_head {
            session.write_response_body(Some(Bytes::from(self.0)), true).await?;
        }
        Ok(())
    }
}
