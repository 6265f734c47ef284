//! Writes lines of tasks as the real server does: frames that tell the streams apart, the time, the details, the text.

use crate::model::{LogPiece, LogStream, NodeId, ServiceId, TaskId, Timestamp};
use bytes::{BufMut as _, Bytes, BytesMut};

/// Stream of a message of the server itself; the stock CLI prints it as an error and ends.
const SYSTEM: u8 = 3;
/// Prefix of the details that name a line's origin.
const CONTEXT: &str = "com.docker.swarm";

/// How a client wants its lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogFormat {
    /// In frames; otherwise as they are, for services with a terminal.
    pub framed: bool,
    pub timestamps: bool,
    pub details: bool,
}

/// Whose line it is.
pub struct LineOrigin<'a> {
    pub node: &'a NodeId,
    pub service: &'a ServiceId,
    pub task: &'a TaskId,
    /// The node wrote a time before it.
    pub is_stamped: bool,
}

impl LogFormat {
    /// A line of a task for the client, and its time if it has one.
    pub fn line(self, piece: &LogPiece, origin: &LineOrigin<'_>) -> (Bytes, Option<Timestamp>) {
        let (time, rest) = if origin.is_stamped { split_time(&piece.data) } else { (None, &piece.data[..]) };
        let (attributes, text) = if self.details { split_word(rest) } else { (&[][..], rest) };
        let mut line = Vec::with_capacity(piece.data.len() + 160);
        if self.timestamps
            && let Some(time) = time
        {
            line.put_slice(nine_digits(time).as_bytes());
            line.put_u8(b' ');
        }
        if self.details {
            line.put_slice(details(attributes, origin).as_bytes());
            line.put_u8(b' ');
        }
        line.put_slice(text);
        let stream = match piece.stream {
            LogStream::Stdout => 1,
            LogStream::Stderr => 2,
        };
        (self.frame(stream, &line), time)
    }

    /// The message by which the real server ends a stream that lacks something.
    pub fn failure(self, reasons: &[String]) -> Bytes {
        let text = format!(
            "Error grabbing logs: rpc error: code = Unknown desc = warning: incomplete log stream. some logs could not be retrieved \
             for the following reasons: {}\n",
            reasons.join(", ")
        );
        self.frame(SYSTEM, text.as_bytes())
    }

    fn frame(self, stream: u8, text: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(8 + text.len());
        if self.framed {
            out.put_slice(&[stream, 0, 0, 0]);
            out.put_u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
        }
        out.put_slice(text);
        out.freeze()
    }
}

/// The text before the first blank, and the text after it.
fn split_word(text: &[u8]) -> (&[u8], &[u8]) {
    match text.iter().position(|byte| *byte == b' ') {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (&[], text),
    }
}

/// The engine's time before a line; some log drivers give it with an offset.
fn split_time(text: &[u8]) -> (Option<Timestamp>, &[u8]) {
    let (word, rest) = split_word(text);
    match std::str::from_utf8(word).ok().and_then(Timestamp::parse) {
        Some(time) => (Some(time), rest),
        None => (None, text),
    }
}

/// RFC 3339 in UTC, always with nine digits.
fn nine_digits(time: Timestamp) -> String {
    let text = time.to_rfc3339();
    let (seconds, fraction) = text.trim_end_matches('Z').split_once('.').unwrap_or((text.trim_end_matches('Z'), ""));
    format!("{seconds}.{fraction:0<9}Z")
}

/// The attributes that the log driver kept, without those that could be taken for the origin, and the origin; sorted.
fn details(attributes: &[u8], origin: &LineOrigin<'_>) -> String {
    let LineOrigin { node, service, task, .. } = origin;
    let own = [("node.id", node.as_str()), ("service.id", service.as_str()), ("task.id", task.as_str())];
    let own = own.map(|(key, value)| format!("{CONTEXT}.{key}={value}"));
    let kept = String::from_utf8_lossy(attributes);
    let is_own = |pair: &str| own.iter().any(|own| own.split('=').next() == pair.split('=').next());
    let mut all: Vec<String> = kept.split(',').filter(|pair| !pair.is_empty() && !is_own(pair)).map(str::to_owned).collect();
    all.extend(own.clone());
    all.sort();
    all.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(format: LogFormat, is_stamped: bool, text: &str) -> (String, Option<Timestamp>) {
        let (node, service, task) = (NodeId::from("n1"), ServiceId::from("s1"), TaskId::from("t1"));
        let origin = LineOrigin { node: &node, service: &service, task: &task, is_stamped };
        let piece = LogPiece { stream: LogStream::Stderr, data: Bytes::copy_from_slice(text.as_bytes()) };
        let (bytes, time) = format.line(&piece, &origin);
        let text = if format.framed {
            assert_eq!(bytes[..4], [2, 0, 0, 0]);
            assert_eq!(usize::try_from(u32::from_be_bytes(bytes[4..8].try_into().unwrap())).unwrap(), bytes.len() - 8);
            &bytes[8..]
        } else {
            &bytes[..]
        };
        (String::from_utf8(text.to_vec()).unwrap(), time)
    }

    const ORIGIN: &str = "com.docker.swarm.node.id=n1,com.docker.swarm.service.id=s1,com.docker.swarm.task.id=t1";

    #[test]
    fn a_line_is_written_as_recorded_from_a_real_swarm() {
        let plain = LogFormat { framed: true, timestamps: false, details: false };
        let stamped = "2026-11-23T20:37:47.338074499Z err 4\n";
        assert_eq!(line(plain, true, stamped).0, "err 4\n");
        assert_eq!(line(plain, true, stamped).1, Timestamp::parse("2026-11-23T20:37:47.338074499Z"));
        assert_eq!(line(LogFormat { timestamps: true, ..plain }, true, stamped).0, stamped);
        // The engine writes a blank for no attributes.
        let detailed = "2026-11-23T20:37:47.338074499Z  err 4\n";
        assert_eq!(line(LogFormat { details: true, ..plain }, true, detailed).0, format!("{ORIGIN} err 4\n"));
        let both = LogFormat { details: true, timestamps: true, ..plain };
        assert_eq!(line(both, true, detailed).0, format!("2026-11-23T20:37:47.338074499Z {ORIGIN} err 4\n"));
    }

    #[test]
    fn attributes_of_the_log_driver_are_kept_and_cannot_feign_an_origin() {
        let format = LogFormat { framed: false, timestamps: true, details: true };
        let (text, _) =
            line(format, true, "2026-11-23T21:37:47.5+01:00 zone=a,com.docker.swarm.node.id=other,Env=x text  with blanks");
        assert_eq!(text, format!("2026-11-23T20:37:47.500000000Z Env=x,{ORIGIN},zone=a text  with blanks"));
    }

    #[test]
    fn what_looks_like_no_time_stays_and_empty_lines_have_their_prefix() {
        let format = LogFormat { framed: true, timestamps: false, details: false };
        for text in ["", "\n", "no time", "2026-11-23 x\n"] {
            assert_eq!(line(format, true, text), (text.to_owned(), None));
        }
        assert_eq!(line(format, false, "2026-11-23T20:37:47Z x\n").0, "2026-11-23T20:37:47Z x\n");
        let detailed = LogFormat { details: true, ..format };
        assert_eq!(line(detailed, true, "2026-11-23T20:37:47.000000001Z  \n").0, format!("{ORIGIN} \n"));
    }

    #[test]
    fn what_is_missing_is_named_in_the_servers_own_stream() {
        let format = LogFormat { framed: true, timestamps: false, details: false };
        let bytes = format.failure(&["node n2 is not available".to_owned(), "task t9 has not been scheduled".to_owned()]);
        assert_eq!(bytes[0], 3);
        let text = String::from_utf8(bytes[8..].to_vec()).unwrap();
        assert!(
            text.starts_with("Error grabbing logs: ")
                && text.ends_with("node n2 is not available, task t9 has not been scheduled\n"),
            "{text}"
        );
    }
}
