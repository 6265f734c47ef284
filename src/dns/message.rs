//! The wire format (RFC 1035, EDNS RFC 6891): parses queries, encodes answers. Knows nothing of clients and names.

use super::records::RecordAnswer;
use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, rdata};

/// Length of the header in bytes.
pub const HEADER: usize = 12;
/// Longest query that is read, in bytes: a name, a type and options need no more.
pub const MAX_QUERY: usize = 4096;
/// Longest answer over UDP to a client without EDNS, in bytes.
const PLAIN_UDP: u16 = 512;
/// Longest answer over UDP to any client, in bytes: no path fragments it (DNS flag day 2020).
const MAX_UDP: u16 = 1232;

/// A well-formed query.
#[derive(Debug)]
pub struct DnsQuery {
    metadata: Metadata,
    question: Query,
    edns: Option<Edns>,
}

/// The result of [`parse`].
#[derive(Debug)]
pub enum ParsedPacket {
    Query(Box<DnsQuery>),
    /// No query that can be answered: the error to reply with.
    Reply(Vec<u8>),
    /// Not to be replied to: too short for a header, or an answer (replying to answers makes loops).
    Ignore,
}

/// Parses a packet.
#[must_use]
pub fn parse(packet: &[u8]) -> ParsedPacket {
    let Some((&[id_high, id_low, flags, ..], _)) = packet.split_first_chunk::<HEADER>() else { return ParsedPacket::Ignore };
    if flags & 0x80 != 0 {
        return ParsedPacket::Ignore;
    }
    let id = u16::from_be_bytes([id_high, id_low]);
    let op_code = OpCode::from_u8((flags >> 3) & 0x0f);
    let reply_error = |code| Message::error_msg(id, op_code, code).to_vec().map_or(ParsedPacket::Ignore, ParsedPacket::Reply);
    if op_code != OpCode::Query {
        return reply_error(ResponseCode::NotImp);
    }
    if packet.len() > MAX_QUERY {
        return reply_error(ResponseCode::FormErr);
    }
    let Ok(message) = Message::from_vec(packet) else { return reply_error(ResponseCode::FormErr) };
    let Ok([question]) = <[Query; 1]>::try_from(message.queries) else { return reply_error(ResponseCode::FormErr) };
    let query = DnsQuery { metadata: message.metadata, question, edns: message.edns };
    if query.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return ParsedPacket::Reply(query.respond(ResponseCode::BADVERS, Vec::new(), usize::from(PLAIN_UDP)));
    }
    if !matches!(query.question.query_class(), DNSClass::IN | DNSClass::ANY) {
        return ParsedPacket::Reply(query.respond(ResponseCode::Refused, Vec::new(), usize::from(PLAIN_UDP)));
    }
    ParsedPacket::Query(Box::new(query))
}

impl DnsQuery {
    /// Name, type and class.
    #[must_use]
    pub fn question(&self) -> &Query {
        &self.question
    }

    /// Longest answer over UDP that the client accepts, in bytes.
    #[must_use]
    pub fn udp_limit(&self) -> usize {
        usize::from(self.edns.as_ref().map_or(PLAIN_UDP, |edns| edns.max_payload().clamp(PLAIN_UDP, MAX_UDP)))
    }

    /// Encodes an answer from our records in at most `limit` bytes. `None` for a name that is to be forwarded.
    #[must_use]
    pub fn answer(&self, answer: &RecordAnswer, ttl: u32, limit: usize) -> Option<Vec<u8>> {
        let record = |data| Record::from_rdata(self.question.name().clone(), ttl, data);
        let (code, records) = match answer {
            RecordAnswer::Addresses(addresses) => {
                (ResponseCode::NoError, addresses.iter().map(|a| record(RData::A(rdata::A(*a)))).collect())
            }
            RecordAnswer::Pointer(name) => match Name::from_ascii(format!("{name}.")) {
                Ok(name) => (ResponseCode::NoError, vec![record(RData::PTR(rdata::PTR(name)))]),
                Err(_) => (ResponseCode::NoError, Vec::new()),
            },
            RecordAnswer::Empty => (ResponseCode::NoError, Vec::new()),
            RecordAnswer::NoSuchName => (ResponseCode::NXDomain, Vec::new()),
            RecordAnswer::Refused => (ResponseCode::Refused, Vec::new()),
            RecordAnswer::Forward(_) => return None,
        };
        Some(self.respond(code, records, limit))
    }

    /// The answer SERVFAIL: no resolver could answer.
    #[must_use]
    pub fn servfail(&self) -> Vec<u8> {
        self.respond(ResponseCode::ServFail, Vec::new(), usize::from(PLAIN_UDP))
    }

    fn respond(&self, code: ResponseCode, records: Vec<Record>, limit: usize) -> Vec<u8> {
        let mut message = Message::new(0, MessageType::Response, OpCode::Query);
        message.metadata = Metadata::response_from_request(&self.metadata);
        message.metadata.recursion_available = true;
        message.metadata.response_code = code;
        message.add_query(self.question.clone());
        message.answers = records;
        if self.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP);
            message.set_edns(edns);
        }
        encode_within(message, limit).unwrap_or_default()
    }

    /// Encodes the query for a resolver: the client's question, flags and EDNS with another id, and nothing else it sent.
    #[must_use]
    pub fn upstream_query(&self, id: u16) -> Option<Vec<u8>> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = self.metadata.recursion_desired;
        message.metadata.checking_disabled = self.metadata.checking_disabled;
        message.metadata.authentic_data = self.metadata.authentic_data;
        message.add_query(self.question.clone());
        message.edns.clone_from(&self.edns);
        message.to_vec().ok()
    }

    /// Turns a resolver's answer into the client's: with the id of the query, in at most `limit` bytes.
    #[must_use]
    pub fn client_answer(&self, mut response: Vec<u8>, limit: usize) -> Vec<u8> {
        let Some(id) = response.first_chunk_mut::<2>() else { return self.servfail() };
        *id = self.metadata.id.to_be_bytes();
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
}

/// Encodes in at most `limit` bytes: omits the answers that do not fit, and sets the truncation flag. The others are sent
/// because some resolvers (musl before 1.2.4) never retry over TCP.
fn encode_within(mut message: Message, limit: usize) -> Option<Vec<u8>> {
    let whole = message.to_vec().ok()?;
    if whole.len() <= limit {
        return Some(whole);
    }
    message.metadata.truncation = true;
    let answers = std::mem::take(&mut message.answers);
    let (mut fits, mut too_many, mut best) = (0, answers.len(), None);
    // Records differ in size and share names: only encoding tells how many fit.
    while fits < too_many {
        let count = fits + (too_many - fits) / 2;
        message.answers = answers[..count].to_vec();
        let bytes = message.to_vec().ok()?;
        if bytes.len() <= limit {
            fits = count + 1;
            best = Some(bytes);
        } else {
            too_many = count;
        }
    }
    best
}

/// Whether `response` is an answer with the id and the question of `query`. Letters may differ in case.
#[must_use]
pub fn answers(response: &[u8], query: &[u8]) -> bool {
    let (Some(head), Some(sent)) = (response.first_chunk::<HEADER>(), query.first_chunk::<HEADER>()) else { return false };
    if head[..2] != sent[..2] || head[2] & 0x80 == 0 {
        return false;
    }
    // Some servers omit the question in an error.
    if head[4..6] == [0, 0] {
        return head[3] & 0x0f != 0;
    }
    let Some(length) = question_length(&query[HEADER..]) else { return false };
    let question = query.get(HEADER..HEADER + length);
    head[4..6] == [0, 1]
        && question.zip(response.get(HEADER..HEADER + length)).is_some_and(|(sent, received)| sent.eq_ignore_ascii_case(received))
}

/// Whether the answer has the truncation flag.
#[must_use]
pub fn truncated(response: &[u8]) -> bool {
    response.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

/// Whether the answer is one of this resolver only, so that another one is worth a query: SERVFAIL, NOTIMP or REFUSED.
#[must_use]
pub fn is_server_failure(response: &[u8]) -> bool {
    response.get(3).is_none_or(|flags| matches!(flags & 0x0f, 2 | 4 | 5))
}

fn question_length(question: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match *question.get(at)? {
            0 => return Some(at + 1 + 4),
            label @ 1..=63 => at += 1 + usize::from(label),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests;
