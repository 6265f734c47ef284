//! The wire format of queries (RFC 1035, EDNS RFC 6891). Knows nothing of clients and names.

use super::answer::{self, AnswerHead, AnswerLimit, HEADER};
use super::records::RecordAnswer;
use super::response::{self, encode_within, question_length};
use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::RecordType;

/// Longest query that is read, in bytes: a name, a type and options need no more. It is also the UDP payload that we offer.
pub const MAX_QUERY: usize = 4096;
/// Longest answer over UDP to a client without EDNS, in bytes.
const PLAIN_UDP: u16 = 512;
/// Longest answer over UDP to any client, in bytes. More than DNS servers send elsewhere (1232, which no path fragments): ours
/// never leaves the host, and what HAProxy's documentation lets it take (`accepted_payload_size 8192`) is not truncated.
const MAX_UDP: u16 = 8192;
/// The UDP payload that we offer in answers, in bytes.
const OFFERED_UDP: u16 = 1232;
/// Longest message over TCP, in bytes.
pub const MAX_TCP: usize = u16::MAX as usize;

/// A well-formed query.
#[derive(Debug)]
pub struct DnsQuery {
    id: u16,
    flags: [u8; 2],
    /// Name, type and class as received.
    question: Vec<u8>,
    name: String,
    kind: RecordType,
    edns: Option<ClientEdns>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct ClientEdns {
    payload: u16,
    /// The OPT record as it is sent to resolvers.
    record: Vec<u8>,
}

/// The result of [`parse`].
#[derive(Debug)]
pub enum ParsedPacket {
    Query(DnsQuery),
    /// No query that can be answered: the error to reply with.
    Reply(Vec<u8>),
    /// Not to be replied to: too short for a header, or an answer (replying to answers makes loops).
    Ignore,
}

/// Parses a packet.
#[must_use]
pub fn parse(packet: &[u8]) -> ParsedPacket {
    let Some((header, body)) = packet.split_first_chunk::<HEADER>() else { return ParsedPacket::Ignore };
    let flags = [header[2], header[3]];
    if flags[0] & 0x80 != 0 {
        return ParsedPacket::Ignore;
    }
    let id = u16::from_be_bytes([header[0], header[1]]);
    let error = |code| ParsedPacket::Reply(answer::encode_error(AnswerHead { id, flags, question: &[], edns: None }, code));
    if OpCode::from_u8((flags[0] >> 3) & 0x0f) != OpCode::Query {
        return error(ResponseCode::NotImp);
    }
    let question = if packet.len() > MAX_QUERY || header[4..6] != [0, 1] { None } else { split_question(body) };
    let Some((question, rest)) = question else { return error(ResponseCode::FormErr) };
    let Ok(edns) = edns(&header[6..], rest, packet) else { return error(ResponseCode::FormErr) };
    let [.., kind_high, kind_low, class_high, class_low] = *question else { return error(ResponseCode::FormErr) };
    let query = DnsQuery {
        id,
        flags,
        name: lower_text(question),
        kind: RecordType::from(u16::from_be_bytes([kind_high, kind_low])),
        question: question.to_vec(),
        edns,
    };
    if query.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return ParsedPacket::Reply(query.error(ResponseCode::BADVERS));
    }
    // IN and ANY.
    if !matches!([class_high, class_low], [0, 1 | 255]) {
        return ParsedPacket::Reply(query.error(ResponseCode::Refused));
    }
    ParsedPacket::Query(query)
}

/// The EDNS record behind the question: `counts` are the numbers of records of the three sections. What stub resolvers send
/// (no record, or EDNS alone) is read here, everything else by the library.
fn edns(counts: &[u8], rest: &[u8], packet: &[u8]) -> Result<Option<ClientEdns>, ()> {
    match (counts, rest) {
        ([0, 0, 0, 0, 0, 0], []) => Ok(None),
        ([0, 0, 0, 0, 0, 1], [0, 0, 41, high, low, _, _, _, _, length_high, length_low, options @ ..])
            if options.len() == usize::from(u16::from_be_bytes([*length_high, *length_low])) =>
        {
            let edns = || ClientEdns { payload: u16::from_be_bytes([*high, *low]), record: rest.to_vec() };
            well_formed(options).then(|| Some(edns())).ok_or(())
        }
        _ => {
            let message = Message::from_vec(packet).map_err(|_| ())?;
            // Options are left out: the library does not keep all of them as they were.
            Ok(message.edns.map(|edns| {
                let ([high, low], secure) = (edns.max_payload().to_be_bytes(), u8::from(edns.flags().dnssec_ok) << 7);
                let record = vec![0, 0, 41, high, low, 0, edns.version(), secure, 0, 0, 0];
                ClientEdns { payload: edns.max_payload(), record }
            }))
        }
    }
}

/// Whether EDNS options fill their bytes.
fn well_formed(mut options: &[u8]) -> bool {
    while let [_, _, high, low, rest @ ..] = options {
        let Some(next) = rest.get(usize::from(u16::from_be_bytes([*high, *low]))..) else { return false };
        options = next;
    }
    options.is_empty()
}

/// Splits a packet's body after its first question, whose name must be without compression.
fn split_question(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = question_length(body)?;
    (length <= 255 + 4).then(|| body.split_at_checked(length)).flatten()
}

/// A question's name in lower case, its labels joined by dots. A dot in a label is escaped, unlike those between labels.
fn lower_text(question: &[u8]) -> String {
    let mut text = String::with_capacity(question.len());
    let mut rest = question;
    while let [length @ 1..=63, tail @ ..] = rest {
        let (label, next) = tail.split_at_checked(usize::from(*length)).unwrap_or((tail, &[]));
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label {
            match byte {
                b'.' | b'\\' => text.extend(['\\', char::from(*byte)]),
                0x21..=0x7e => text.push(char::from(byte.to_ascii_lowercase())),
                _ => text.push(char::REPLACEMENT_CHARACTER),
            }
        }
        rest = next;
    }
    text
}

impl ClientEdns {
    fn version(&self) -> u8 {
        self.record[6]
    }
}

impl DnsQuery {
    /// The name in lower case without the final dot; see [`super::records::Records::answer`].
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of the records that are asked for.
    #[must_use]
    pub fn kind(&self) -> RecordType {
        self.kind
    }

    /// The bounds of an answer over UDP to the client with this key.
    ///
    /// A client that names the smallest payload of all is HAProxy with its default: it takes a truncated answer for a failure,
    /// never asks over TCP, and stops all servers of the pool after 30 s. It gets a subset that is not marked as truncated. Every
    /// other client asks over TCP, and gets all.
    #[must_use]
    pub fn udp_limit(&self, key: u64) -> AnswerLimit {
        let payload = self.edns.as_ref().map(|edns| edns.payload);
        AnswerLimit {
            bytes: usize::from(payload.unwrap_or(PLAIN_UDP).clamp(PLAIN_UDP, MAX_UDP)),
            subset: payload.filter(|payload| *payload <= PLAIN_UDP).map(|_| key),
        }
    }

    /// The bound of an answer over TCP.
    #[must_use]
    pub fn tcp_limit() -> AnswerLimit {
        AnswerLimit { bytes: MAX_TCP, subset: None }
    }

    /// Encodes an answer from our records. `None` for a name that is to be forwarded.
    #[must_use]
    pub fn answer(&self, answer: &RecordAnswer, ttl: u32, limit: AnswerLimit) -> Option<Vec<u8>> {
        answer::encode(self.head(), answer, ttl, limit)
    }

    /// The answer SERVFAIL: no resolver could answer.
    #[must_use]
    pub fn servfail(&self) -> Vec<u8> {
        self.error(ResponseCode::ServFail)
    }

    fn error(&self, code: ResponseCode) -> Vec<u8> {
        answer::encode_error(self.head(), code)
    }

    fn head(&self) -> AnswerHead<'_> {
        AnswerHead { id: self.id, flags: self.flags, question: &self.question, edns: self.edns.as_ref().map(|_| OFFERED_UDP) }
    }

    /// Encodes the query for a resolver: the client's question, flags and EDNS with another id, and nothing else it sent.
    #[must_use]
    pub fn upstream_query(&self, id: u16) -> Vec<u8> {
        let edns = self.edns.as_ref().map_or(&[][..], |edns| edns.record.as_slice());
        let mut bytes = Vec::with_capacity(HEADER + self.question.len() + edns.len());
        bytes.extend_from_slice(&id.to_be_bytes());
        // RD, AD and CD.
        bytes.extend_from_slice(&[self.flags[0] & 0x01, self.flags[1] & 0x30]);
        bytes.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, u8::from(!edns.is_empty())]);
        bytes.extend_from_slice(&self.question);
        bytes.extend_from_slice(edns);
        bytes
    }

    /// Turns a resolver's answer into the client's: with the id of the query, in at most `limit` bytes.
    #[must_use]
    pub fn client_answer(&self, mut response: Vec<u8>, limit: usize) -> Vec<u8> {
        let Some(id) = response.first_chunk_mut::<2>() else { return self.servfail() };
        *id = self.id.to_be_bytes();
        if response.len() <= limit {
            return response;
        }
        let shortened = Message::from_vec(&response).ok().and_then(|mut message| {
            message.authorities.clear();
            message.additionals.clear();
            encode_within(message, limit)
        });
        shortened.unwrap_or_else(|| self.servfail())
    }

    /// Whether another resolver is worth a query after this answer, because it is one of this resolver only: SERVFAIL, NOTIMP,
    /// REFUSED, and FORMERR unless the client's EDNS may be why.
    #[must_use]
    pub fn is_failure(&self, response: &[u8]) -> bool {
        match response::code(response) {
            Some(1) => self.edns.is_none(),
            Some(2 | 4 | 5) | None => true,
            Some(_) => false,
        }
    }
}

#[cfg(test)]
mod tests;
