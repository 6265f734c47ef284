//! `/drops`: what the eBPF datapath drops or refuses, live, one JSON object per line.

use axum::body::Body;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// An empty line is sent after so long without an event: only by a write is a client noticed that has gone.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// A line of `/drops`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DropLine {
    Event(Box<DropEvent>),
    Lost(LostEvents),
}

/// Events that are not shown, because there were more than the bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LostEvents {
    pub lost: u64,
}

/// A packet or call that was dropped, refused or left to the host.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct DropEvent {
    /// RFC 3339.
    pub time: String,
    /// `dropped`, `refused` (a socket call) or `left` (to the host).
    pub action: String,
    /// Name of the kernel program.
    pub hook: String,
    /// As the label `reason` of the metrics.
    pub reason: String,
    /// `tcp`, `udp`, … or a number.
    pub protocol: String,
    /// Address and port, or an address alone; `-` at a socket call.
    pub source: String,
    /// As the hook had it at the end: behind `from_uplink` a client's packet has the address of its container.
    pub destination: String,
    /// Port that the packet comes from and is for; 0: none.
    pub source_port: u16,
    pub destination_port: u16,
    /// Name of the device; empty at a socket call.
    pub device: String,
    /// Name of the service; empty if it is for none, or for one that is gone.
    pub service: String,
}

/// Which events are sent. What is not set matches every event.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DropFilter {
    /// Also what is left to the host, for a reason.
    pub left: bool,
    /// Source or destination port.
    pub port: Option<u16>,
    pub service: Option<String>,
    pub reason: Option<String>,
}

impl DropFilter {
    /// Whether an event is one of those asked for.
    #[must_use]
    pub fn matches(&self, event: &DropEvent) -> bool {
        self.port.is_none_or(|port| port == event.source_port || port == event.destination_port)
            && self.service.as_ref().is_none_or(|service| *service == event.service)
            && self.reason.as_ref().is_none_or(|reason| *reason == event.reason)
    }

    /// The query of a request.
    #[must_use]
    pub fn query(&self) -> String {
        let mut pairs = vec![format!("left={}", self.left)];
        pairs.extend(self.port.map(|port| format!("port={port}")));
        pairs.extend(self.service.iter().map(|service| format!("service={}", encoded(service))));
        pairs.extend(self.reason.iter().map(|reason| format!("reason={}", encoded(reason))));
        pairs.join("&")
    }
}

/// Percent-encodes what has a meaning in a query.
pub(super) fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// The body of a reply that ends with the lines, or when its client has gone.
pub(super) fn body(lines: BoxStream<'static, DropLine>, filter: DropFilter) -> Body {
    let sent = lines.filter(move |line| {
        let wanted = match line {
            DropLine::Event(event) => filter.matches(event),
            DropLine::Lost(_) => true,
        };
        std::future::ready(wanted)
    });
    let text = sent.map(|line| serde_json::to_string(&line).unwrap_or_default() + "\n");
    // The first line at once: the client sees that its watch has begun.
    let with_heartbeats = stream::unfold((text.boxed(), true), async |(mut text, first)| {
        let line = if first { Ok(Some(String::new())) } else { tokio::time::timeout(HEARTBEAT, text.next()).await };
        match line {
            Ok(Some(line)) if !line.is_empty() => Some((line, (text, false))),
            Ok(None) => None,
            Ok(Some(_)) | Err(_) => Some(("\n".to_owned(), (text, false))),
        }
    });
    Body::from_stream(with_heartbeats.map(Ok::<String, std::convert::Infallible>))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(destination_port: u16, service: &str, reason: &str) -> DropEvent {
        DropEvent {
            destination_port,
            source_port: 40_000,
            service: service.to_owned(),
            reason: reason.to_owned(),
            ..DropEvent::default()
        }
    }

    #[test]
    fn a_filter_names_a_port_of_either_end_a_service_and_a_reason() {
        let seen = event(80, "web", "unknown_flow");
        let filter = |port, service: Option<&str>, reason: Option<&str>| DropFilter {
            left: false,
            port,
            service: service.map(str::to_owned),
            reason: reason.map(str::to_owned),
        };
        for (filter, expected) in [
            (filter(None, None, None), true),
            (filter(Some(80), None, None), true),
            (filter(Some(40_000), None, None), true),
            (filter(Some(81), None, None), false),
            (filter(None, Some("web"), None), true),
            (filter(None, Some("we"), None), false),
            (filter(Some(80), Some("web"), Some("unknown_flow")), true),
            (filter(Some(80), Some("web"), Some("forged_source")), false),
        ] {
            assert_eq!(filter.matches(&seen), expected, "{filter:?}");
        }
    }

    #[tokio::test]
    async fn the_body_begins_at_once_and_holds_what_the_filter_lets_through() {
        let lines = [
            DropLine::Event(Box::new(event(80, "web", "unknown_flow"))),
            DropLine::Event(Box::new(event(81, "dns", "unknown_flow"))),
            DropLine::Lost(LostEvents { lost: 7 }),
        ];
        let filter = DropFilter { service: Some("dns".to_owned()), ..DropFilter::default() };
        let body = body(stream::iter(lines).boxed(), filter);
        let bytes = axum::body::to_bytes(body, 1 << 16).await.expect("complete");
        let text = String::from_utf8(bytes.to_vec()).expect("text");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[0], "");
        let event: DropLine = serde_json::from_str(lines[1]).expect("a line");
        assert!(matches!(event, DropLine::Event(event) if event.service == "dns"));
        assert_eq!(lines[2], r#"{"lost":7}"#);
    }

    #[test]
    fn a_query_is_read_as_it_was_written() {
        let filter = DropFilter {
            left: true,
            port: Some(80),
            service: Some("a b&c=d%\u{e9}".to_owned()),
            reason: Some("unknown_flow".to_owned()),
        };
        let uri: axum::http::Uri = format!("/drops?{}", filter.query()).parse().expect("an address");
        let read = axum::extract::Query::<DropFilter>::try_from_uri(&uri).expect("a query");
        assert_eq!(read.0, filter);
    }
}
