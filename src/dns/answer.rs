//! Encodes answers from our own records (RFC 1035, SRV RFC 2782, negative answers RFC 2308, EDNS RFC 6891). Written for one
//! pass over one buffer: this is what every question inside the cluster costs.

use super::records::RecordAnswer;
use super::zone::ServiceTarget;
use hickory_proto::op::ResponseCode;
use std::net::Ipv4Addr;

/// Length of the header in bytes.
pub const HEADER: usize = 12;
/// Pointer to the name of the question.
const QUESTION_NAME: [u8; 2] = [0xc0, 12];
/// Bytes of an A record whose name is a pointer.
const A_RECORD: usize = 16;
/// Bytes of an AAAA record, likewise.
const AAAA_RECORD: usize = 28;
/// Bytes of the OPT record.
const OPT_RECORD: usize = 11;
/// Bytes before the data of a record whose name is a pointer.
const RECORD_HEAD: usize = 12;
/// Compression pointers reach so far.
const POINTER_RANGE: usize = 1 << 14;

/// What an answer repeats of the query.
#[derive(Clone, Copy, Debug)]
pub struct AnswerHead<'a> {
    pub id: u16,
    /// The query's flags.
    pub flags: [u8; 2],
    /// Name, type and class as received; empty in an answer to what cannot be parsed.
    pub question: &'a [u8],
    /// UDP payload of this server in bytes, for a client that sent EDNS.
    pub edns: Option<u16>,
}

/// How long an answer may be, and what to do with more records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AnswerLimit {
    pub bytes: usize,
    /// `None`: the records that fit are sent with the truncation flag, so that the client asks over TCP. `Some(key)`: a subset
    /// that depends on the key (the client) and on which records there are, without the flag.
    pub subset: Option<u64>,
}

/// Encodes an answer. `None` for a name that is to be forwarded.
#[must_use]
pub fn encode(head: AnswerHead, answer: &RecordAnswer, ttl: u32, limit: AnswerLimit) -> Option<Vec<u8>> {
    Some(match answer {
        RecordAnswer::Addresses(addresses) => {
            let records = addresses.iter().map(|address| (address.to_bits(), A_RECORD));
            address_records(head, records, limit, |reply, index| reply.address(QUESTION_NAME, addresses[index], ttl))
        }
        RecordAnswer::Addresses6(addresses) => {
            // The last word has the host's number.
            let records =
                addresses.iter().map(|address| (u32::try_from(address.to_bits() & 0xffff_ffff).unwrap_or_default(), AAAA_RECORD));
            address_records(head, records, limit, |reply, index| {
                reply.record(QUESTION_NAME, 28, ttl, &[&addresses[index].octets()]);
            })
        }
        RecordAnswer::Services(targets) => services(head, targets, ttl, limit),
        RecordAnswer::Pointer(name) => {
            let mut reply = ReplyWriter::new(head, ResponseCode::NoError, 300);
            if let Some(name) = encode_name(name) {
                reply.record(QUESTION_NAME, 12, ttl, &[&name]);
            }
            reply.finish()
        }
        RecordAnswer::Empty => {
            let mut reply = ReplyWriter::new(head, ResponseCode::NoError, 40);
            reply.authority(&QUESTION_NAME, ttl);
            reply.finish()
        }
        RecordAnswer::NoSuchName => {
            let mut reply = ReplyWriter::new(head, ResponseCode::NXDomain, 40);
            reply.authority(&[0], ttl);
            reply.finish()
        }
        RecordAnswer::Refused => encode_error(head, ResponseCode::Refused),
        RecordAnswer::Forward(_) => return None,
    })
}

/// Encodes an answer without records.
#[must_use]
pub fn encode_error(head: AnswerHead, code: ResponseCode) -> Vec<u8> {
    ReplyWriter::new(head, code, 0).finish()
}

/// A reply with those of the records that fit; `write` writes one, by its index.
fn address_records(
    head: AnswerHead,
    records: impl ExactSizeIterator<Item = (u32, usize)> + Clone,
    limit: AnswerLimit,
    write: impl Fn(&mut ReplyWriter, usize),
) -> Vec<u8> {
    let size = records.clone().next().map_or(0, |(_, size)| size);
    let chosen = choose(records, limit, head.room(limit.bytes));
    let mut reply = ReplyWriter::new(head, ResponseCode::NoError, chosen.indexes.len() * size);
    reply.truncated(chosen.truncated);
    for index in chosen.indexes {
        write(&mut reply, index);
    }
    reply.finish()
}

fn services(head: AnswerHead, targets: &[ServiceTarget], ttl: u32, limit: AnswerLimit) -> Vec<u8> {
    // A name that is too long for DNS is left out: nothing could ask for it either.
    let targets: Vec<(&ServiceTarget, Vec<u8>)> = targets.iter().filter_map(|t| Some((t, encode_name(&t.host)?))).collect();
    let records = targets.iter().map(|(target, host)| (target.address.to_bits(), RECORD_HEAD + 6 + host.len()));
    let room = head.room(limit.bytes);
    let chosen = choose(records, limit, room);
    let mut reply = ReplyWriter::new(head, ResponseCode::NoError, room.min(targets.len() * 128));
    reply.truncated(chosen.truncated);
    let mut hosts = Vec::with_capacity(chosen.indexes.len());
    for index in chosen.indexes {
        let (target, host) = &targets[index];
        let at = reply.bytes.len() + RECORD_HEAD + 6;
        // Equal priorities and weights: the client selects among all with equal probability.
        reply.record(QUESTION_NAME, 33, ttl, &[&[0, 0, 0, 1], &target.port.to_be_bytes(), host]);
        hosts.push((at, target.address));
    }
    // Addresses of the targets spare the client one query each. Those that do not fit are left out: they are no answers.
    let end = limit.bytes.saturating_sub(if head.edns.is_some() { OPT_RECORD } else { 0 });
    reply.section(Section::Additional);
    for (at, address) in hosts {
        if at >= POINTER_RANGE || reply.bytes.len() + A_RECORD > end {
            break;
        }
        let [high, low] = u16::try_from(at).unwrap_or_default().to_be_bytes();
        reply.address([0xc0 | high, low], address, ttl);
    }
    reply.finish()
}

/// The records of an answer, and whether it has to be marked as truncated.
struct ChosenRecords {
    indexes: Indexes,
    truncated: bool,
}

/// All records, or some of them in their order.
enum Indexes {
    All(std::ops::Range<usize>),
    Some(std::vec::IntoIter<usize>),
}

impl Iterator for Indexes {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        match self {
            Self::All(range) => range.next(),
            Self::Some(list) => list.next(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match self {
            Self::All(range) => range.size_hint(),
            Self::Some(list) => list.size_hint(),
        }
    }
}

impl ExactSizeIterator for Indexes {}

/// Chooses among records, of which it is given the address and the size in bytes, those that fit into `room` bytes.
fn choose(records: impl ExactSizeIterator<Item = (u32, usize)> + Clone, limit: AnswerLimit, room: usize) -> ChosenRecords {
    if records.clone().map(|(_, size)| size).sum::<usize>() <= room {
        return ChosenRecords { indexes: Indexes::All(0..records.len()), truncated: false };
    }
    let records: Vec<(u32, usize)> = records.collect();
    let mut order: Vec<usize> = (0..records.len()).collect();
    if let Some(key) = limit.subset {
        // Highest random weight: a client has the same records as long as they exist, and another client has others.
        order.sort_by_cached_key(|index| mix(key ^ mix(u64::from(records[*index].0))));
    }
    let mut left = room;
    let fits = order.iter().take_while(|index| {
        let rest = left.checked_sub(records[**index].1);
        left = rest.unwrap_or(left);
        rest.is_some()
    });
    let fits = fits.count();
    order.truncate(fits);
    order.sort_unstable();
    ChosenRecords { indexes: Indexes::Some(order.into_iter()), truncated: limit.subset.is_none() }
}

/// A permutation of 64-bit numbers that scatters consecutive ones (the finisher of `SplitMix64`).
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The name in wire format; `None` if it or one of its labels is too long or empty.
fn encode_name(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        bytes.push(length);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    (bytes.len() <= 255).then_some(bytes)
}

impl AnswerHead<'_> {
    /// Bytes for records in an answer of at most `limit` bytes.
    fn room(&self, limit: usize) -> usize {
        let edns = if self.edns.is_some() { OPT_RECORD } else { 0 };
        limit.saturating_sub(HEADER + self.question.len() + edns)
    }
}

#[derive(Clone, Copy)]
enum Section {
    Answer = 6,
    Authority = 8,
    Additional = 10,
}

struct ReplyWriter {
    bytes: Vec<u8>,
    section: Section,
    code: u16,
    edns: Option<u16>,
}

impl ReplyWriter {
    fn new(head: AnswerHead, code: ResponseCode, records: usize) -> Self {
        let code = u16::from(code);
        let mut bytes = Vec::with_capacity(HEADER + head.question.len() + records + OPT_RECORD);
        bytes.extend_from_slice(&head.id.to_be_bytes());
        // QR, the query's operation and RD; RA, the query's CD, the code.
        let [_, low] = (code & 0x0f).to_be_bytes();
        bytes.extend_from_slice(&[0x80 | (head.flags[0] & 0x79), 0x80 | (head.flags[1] & 0x10) | low]);
        bytes.extend_from_slice(&[0, u8::from(!head.question.is_empty()), 0, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(head.question);
        Self { bytes, section: Section::Answer, code, edns: head.edns }
    }

    fn truncated(&mut self, truncated: bool) {
        self.bytes[2] |= u8::from(truncated) << 1;
    }

    fn section(&mut self, section: Section) {
        self.section = section;
    }

    fn count(&mut self) {
        let at = self.section as usize;
        let count = u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]]).saturating_add(1);
        self.bytes[at..at + 2].copy_from_slice(&count.to_be_bytes());
    }

    fn address(&mut self, name: [u8; 2], address: Ipv4Addr, ttl: u32) {
        self.record(name, 1, ttl, &[&address.octets()]);
    }

    /// Appends a record of class IN.
    fn record(&mut self, name: [u8; 2], kind: u8, ttl: u32, data: &[&[u8]]) {
        self.count();
        self.bytes.extend_from_slice(&[name[0], name[1], 0, kind, 0, 1]);
        self.bytes.extend_from_slice(&ttl.to_be_bytes());
        let length = data.iter().map(|part| part.len()).sum::<usize>();
        self.bytes.extend_from_slice(&u16::try_from(length).unwrap_or_default().to_be_bytes());
        for part in data {
            self.bytes.extend_from_slice(part);
        }
    }

    /// Appends a SOA record: a resolver between the client and us takes a negative answer without one for a broken server. Its
    /// names are empty, its times those of a name that does not change its server; the last one, for how long the answer may be
    /// cached, is our TTL.
    fn authority(&mut self, owner: &[u8], ttl: u32) {
        self.section(Section::Authority);
        self.count();
        self.bytes.extend_from_slice(owner);
        self.bytes.extend_from_slice(&[0, 6, 0, 1]);
        self.bytes.extend_from_slice(&ttl.to_be_bytes());
        self.bytes.extend_from_slice(&[0, 22, 0, 0]);
        for number in [1, 3600, 600, 86_400, ttl] {
            self.bytes.extend_from_slice(&number.to_be_bytes());
        }
    }

    fn finish(mut self) -> Vec<u8> {
        if let Some(payload) = self.edns {
            self.section(Section::Additional);
            self.count();
            let [high, low] = payload.to_be_bytes();
            let [_, extended] = (self.code >> 4).to_be_bytes();
            self.bytes.extend_from_slice(&[0, 0, 41, high, low, extended, 0, 0, 0, 0, 0]);
        }
        self.bytes
    }
}

#[cfg(test)]
mod tests;
