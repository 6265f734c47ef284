//! What the connections whose version is the number in their ALPN carry is as recorded: a number or name that changes on both sides
//! breaks a cluster of two builds, which no round trip shows. `SKEP_RECORD=1` writes the recording; one that is released is never
//! changed, but gets a successor with the next number.

use super::frame;
use super::logs::wire::{FromLogs, ToLogs};
use super::managers::wire::{GREETING_NUMBER, ManagerFrame, decode_answer, encode_answer};
use super::tls;
use crate::durable::recorded::RecordedNames;
use crate::model::logs::LogOptions;
use crate::model::{KeyChallenge, LogPiece, LogRequest, LogStream, TaskLog, WgKey};
use crate::protocol::{FromKeyChanger, KeyAnswer, KeyChangeRequest, ToKeyChanger};
use bytes::{Bytes, BytesMut};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/formats/connections-1.json");

const PROTOCOLS: [&[u8]; 8] =
    [tls::JOIN, tls::SESSION, tls::CERTIFICATE, tls::MEMBERSHIP, tls::TUNNEL_KEY, tls::MANAGER, tls::LOGS, tls::ENGINE];

fn from_logs() -> Vec<FromLogs> {
    let piece = |stream| TaskLog::Piece(LogPiece { stream, data: Bytes::from_static(b"line\n") });
    let logs =
        [piece(LogStream::Stdout), piece(LogStream::Stderr), TaskLog::Ended(None), TaskLog::Ended(Some("no container".into()))];
    let of_task = logs.into_iter().map(|log| FromLogs::Log("0123456789abcdefghijklmno".into(), log));
    of_task.chain([FromLogs::Alive]).collect()
}

fn name_from_logs(frame: &FromLogs) -> &'static str {
    match frame {
        FromLogs::Log(_, TaskLog::Piece(LogPiece { stream: LogStream::Stdout, .. })) => "Stdout",
        FromLogs::Log(_, TaskLog::Piece(LogPiece { stream: LogStream::Stderr, .. })) => "Stderr",
        FromLogs::Log(_, TaskLog::Ended(None)) => "Ended",
        FromLogs::Log(_, TaskLog::Ended(Some(_))) => "Failed",
        FromLogs::Alive => "Alive",
    }
}

fn manager_frames() -> [ManagerFrame; 3] {
    let document = Bytes::from_static(b"{}");
    let proposal = ManagerFrame::Proposal { number: 0x0102_0304, document: document.clone() };
    [ManagerFrame::Raft(document.clone()), proposal, ManagerFrame::Greeting(document)]
}

fn name_of_manager_frame(frame: &ManagerFrame) -> &'static str {
    match frame {
        ManagerFrame::Raft(_) => "Raft",
        ManagerFrame::Proposal { .. } => "Proposal",
        ManagerFrame::Greeting(_) => "Greeting",
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &Value) -> Bytes {
    let text = text.as_str().unwrap();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// As this build writes them.
fn written() -> Value {
    let key = WgKey([7; 32]);
    let options = LogOptions {
        stdout: true,
        stderr: true,
        follow: true,
        timestamps: true,
        details: true,
        tail: Some(9),
        since: "1700000000.000000001".to_owned(),
    };
    let frames = |frames: Vec<(&str, Vec<u8>)>| -> Map<String, Value> {
        frames.into_iter().map(|(name, bytes)| (name.to_owned(), hex(&bytes).into())).collect()
    };
    json!({
        "protocols": PROTOCOLS.map(|name| std::str::from_utf8(name).unwrap()),
        "frame": hex(&frame::encode(&"ab", 16).unwrap()),
        "FromKeyChanger": [
            FromKeyChanger::Request(KeyChangeRequest::Begin(key)),
            FromKeyChanger::Request(KeyChangeRequest::InUse(key)),
            FromKeyChanger::Proof(KeyAnswer([9; 32])),
        ],
        "ToKeyChanger": [
            ToKeyChanger::Challenge(KeyChallenge { key, nonce: [1; 32] }),
            ToKeyChanger::Done,
            ToKeyChanger::Refused("why".to_owned()),
        ],
        "ToLogs": [ToLogs::Read(LogRequest { task: "0123456789abcdefghijklmno".into(), tty: true, options }), ToLogs::Alive],
        "FromLogs": frames(from_logs().iter().map(|frame| (name_from_logs(frame), frame.encode())).collect()),
        "ManagerFrame":
            frames(manager_frames().iter().map(|frame| (name_of_manager_frame(frame), frame.encode())).collect()),
        "answers": frames(vec![("greeting", encode_answer(GREETING_NUMBER, b"{}")), ("proposal", encode_answer(0x0102_0304, b"{}"))]),
    })
}

#[test]
fn what_connections_carry_is_read_and_written_as_recorded() {
    if std::env::var_os("SKEP_RECORD").is_some() {
        std::fs::write(PATH, serde_json::to_string_pretty(&written()).unwrap() + "\n").unwrap();
    }
    let recorded: Value = serde_json::from_slice(&std::fs::read(PATH).unwrap()).unwrap();
    assert_eq!(written(), recorded);

    let names = RecordedNames::default();
    names.read_all::<FromKeyChanger>(&recorded, "FromKeyChanger");
    names.read_all::<ToKeyChanger>(&recorded, "ToKeyChanger");
    names.read_all::<ToLogs>(&recorded, "ToLogs");
    assert_eq!(names.missing(), [""; 0], "record them in tests/it/formats/connections-1.json");
    for frame in from_logs() {
        assert_eq!(FromLogs::decode(unhex(&recorded["FromLogs"][name_from_logs(&frame)])), Some(frame));
    }
    for frame in manager_frames() {
        assert_eq!(ManagerFrame::decode(unhex(&recorded["ManagerFrame"][name_of_manager_frame(&frame)])), Some(frame));
    }
    for (name, number) in [("greeting", GREETING_NUMBER), ("proposal", 0x0102_0304)] {
        assert_eq!(decode_answer(unhex(&recorded["answers"][name])), Some((number, Bytes::from_static(b"{}"))));
    }
    let mut stream = BytesMut::from(&unhex(&recorded["frame"])[..]);
    assert_eq!(frame::decode(&mut stream, 16).unwrap(), Some(Bytes::from_static(b"\"ab\"")));
}
