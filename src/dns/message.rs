//! The wire format: bytes to a question, an answer to bytes. Knows nothing of who asks or what the answer is.

use super::records::Answer;
use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, rdata};

/// Length of the header in bytes.
pub const HEADER: usize = 12;
/// Longest question that is read, in bytes: a name, a type and options need no more.
pub const MAX_QUERY: usize = 4096;
/// What a client without EDNS takes over UDP, in bytes.
const PLAIN_UDP: u16 = 512;
/// What we send over UDP at most, in bytes: fits every path without fragments (DNS flag day 2020).
const MAX_UDP: u16 = 1232;

/// A well-formed question.
#[derive(Debug)]
pub struct Request {
    metadata: Metadata,
    query: Query,
    edns: Option<Edns>,
}

/// What came of a packet.
#[derive(Debug)]
pub enum Parsed {
    /// A question.
    Request(Box<Request>),
    /// Not one; this is what to say.
    Reply(Vec<u8>),
    /// Not one, and nothing is to be said: too short for a header, or an answer (answering those makes loops).
    Ignore,
}

/// Reads a packet.
#[must_use]
pub fn parse(packet: &[u8]) -> Parsed {
    let Some((&[id_high, id_low, flags, ..], _)) = packet.split_first_chunk::<HEADER>() else { return Parsed::Ignore };
    if flags & 0x80 != 0 {
        return Parsed::Ignore;
    }
    let id = u16::from_be_bytes([id_high, id_low]);
    let op_code = OpCode::from_u8((flags >> 3) & 0x0f);
    let refuse = |code| Message::error_msg(id, op_code, code).to_vec().map_or(Parsed::Ignore, Parsed::Reply);
    if op_code != OpCode::Query {
        return refuse(ResponseCode::NotImp);
    }
    if packet.len() > MAX_QUERY {
        return refuse(ResponseCode::FormErr);
    }
    let Ok(message) = Message::from_vec(packet) else { return refuse(ResponseCode::FormErr) };
    let Ok([query]) = <[Query; 1]>::try_from(message.queries) else { return refuse(ResponseCode::FormErr) };
    let request = Request { metadata: message.metadata, query, edns: message.edns };
    if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return Parsed::Reply(request.respond(ResponseCode::BADVERS, Vec::new(), usize::from(PLAIN_UDP)));
    }
    if !matches!(request.query.query_class(), DNSClass::IN | DNSClass::ANY) {
        return Parsed::Reply(request.respond(ResponseCode::Refused, Vec::new(), usize::from(PLAIN_UDP)));
    }
    Parsed::Request(Box::new(request))
}

impl Request {
    /// What is asked.
    #[must_use]
    pub fn query(&self) -> &Query {
        &self.query
    }

    /// Bytes that the client takes over UDP.
    #[must_use]
    pub fn udp_limit(&self) -> usize {
        usize::from(self.edns.as_ref().map_or(PLAIN_UDP, |edns| edns.max_payload().clamp(PLAIN_UDP, MAX_UDP)))
    }

    /// The bytes of one of our own answers, at most `limit` of them. `None` for what is not ours to answer.
    #[must_use]
    pub fn answer(&self, answer: &Answer, ttl: u32, limit: usize) -> Option<Vec<u8>> {
        let record = |data| Record::from_rdata(self.query.name().clone(), ttl, data);
        let (code, records) = match answer {
            Answer::Addresses(addresses) => {
                (ResponseCode::NoError, addresses.iter().map(|a| record(RData::A(rdata::A(*a)))).collect())
            }
            Answer::Pointer(name) => match Name::from_ascii(format!("{name}.")) {
                Ok(name) => (ResponseCode::NoError, vec![record(RData::PTR(rdata::PTR(name)))]),
                Err(_) => (ResponseCode::NoError, Vec::new()),
            },
            Answer::Empty => (ResponseCode::NoError, Vec::new()),
            Answer::NoSuchName => (ResponseCode::NXDomain, Vec::new()),
            Answer::Refused => (ResponseCode::Refused, Vec::new()),
            Answer::Foreign(_) => return None,
        };
        Some(self.respond(code, records, limit))
    }

    /// Says that nobody could be asked.
    #[must_use]
    pub fn failed(&self) -> Vec<u8> {
        self.respond(ResponseCode::ServFail, Vec::new(), usize::from(PLAIN_UDP))
    }

    fn respond(&self, code: ResponseCode, records: Vec<Record>, limit: usize) -> Vec<u8> {
        let mut message = Message::new(0, MessageType::Response, OpCode::Query);
        message.metadata = Metadata::response_from_request(&self.metadata);
        message.metadata.recursion_available = true;
        message.metadata.response_code = code;
        message.add_query(self.query.clone());
        message.answers = records;
        if self.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP);
            message.set_edns(edns);
        }
        shorten(message, limit).unwrap_or_default()
    }

    /// The question as it is passed on: the client's name, flags and EDNS under another id, and nothing else it sent.
    #[must_use]
    pub fn outward(&self, id: u16) -> Option<Vec<u8>> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = self.metadata.recursion_desired;
        message.metadata.checking_disabled = self.metadata.checking_disabled;
        message.metadata.authentic_data = self.metadata.authentic_data;
        message.add_query(self.query.clone());
        message.edns.clone_from(&self.edns);
        message.to_vec().ok()
    }

    /// A resolver's answer for the client: its own id again, at most `limit` bytes.
    #[must_use]
    pub fn inward(&self, mut response: Vec<u8>, limit: usize) -> Vec<u8> {
        let Some(id) = response.first_chunk_mut::<2>() else { return self.failed() };
        *id = self.metadata.id.to_be_bytes();
        if response.len() <= limit {
            return response;
        }
        let shortened = Message::from_vec(&response).ok().and_then(|mut message| {
            message.authorities.clear();
            message.additionals.clear();
            shorten(message, limit)
        });
        shortened.unwrap_or_else(|| self.failed())
    }
}

/// Encodes, leaving out as many answers as do not fit; then the truncation flag is set. What fits is sent all the same:
/// some resolvers (musl before 1.2.4) never ask again over TCP.
fn shorten(mut message: Message, limit: usize) -> Option<Vec<u8>> {
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

/// Whether `response` answers `query` (as we sent it): same id, an answer, the same question. Letters may differ in case.
#[must_use]
pub fn answers(response: &[u8], query: &[u8]) -> bool {
    let (Some(head), Some(sent)) = (response.first_chunk::<HEADER>(), query.first_chunk::<HEADER>()) else { return false };
    if head[..2] != sent[..2] || head[2] & 0x80 == 0 {
        return false;
    }
    // Some servers leave the question out of an error.
    if head[4..6] == [0, 0] {
        return head[3] & 0x0f != 0;
    }
    let Some(length) = question_length(&query[HEADER..]) else { return false };
    let asked = query.get(HEADER..HEADER + length);
    head[4..6] == [0, 1]
        && asked.zip(response.get(HEADER..HEADER + length)).is_some_and(|(asked, said)| asked.eq_ignore_ascii_case(said))
}

/// Whether the answer was cut.
#[must_use]
pub fn truncated(response: &[u8]) -> bool {
    response.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

/// Whether another resolver may know better: SERVFAIL, NOTIMP or REFUSED.
#[must_use]
pub fn worth_asking_on(response: &[u8]) -> bool {
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
