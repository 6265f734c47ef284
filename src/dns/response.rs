//! Answers of resolvers in wire format (RFC 1035): whether they belong to a query, and what they say.

use super::answer::HEADER;
use hickory_proto::op::Message;
use std::borrow::Cow;

/// Encodes in at most `limit` bytes: omits the answers that do not fit, and sets the truncation flag. The others are sent
/// because some resolvers (musl before 1.2.4) never retry over TCP. `None` if it cannot be encoded.
#[must_use]
pub fn encode_within(mut message: Message, limit: usize) -> Option<Vec<u8>> {
    let whole = message.to_vec().ok()?;
    if whole.len() <= limit {
        return Some(whole);
    }
    message.metadata.truncation = true;
    let answers = std::mem::take(&mut message.answers);
    let (mut fits, mut too_many, mut best) = (0, answers.len(), None);
    // Records differ in size and share names: only encoding shows how many fit.
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

/// Whether the name does not exist, or has no records of the type.
#[must_use]
pub fn is_negative(response: &[u8]) -> bool {
    let no_records = response.get(6..8) == Some(&[0, 0]);
    matches!(code(response), Some(3)) || (code(response) == Some(0) && no_records && !truncated(response))
}

/// The code in the header of an answer.
#[must_use]
pub fn code(response: &[u8]) -> Option<u8> {
    response.get(3).map(|flags| flags & 0x0f)
}

/// Bytes of a question: its name, which must be without compression, type and class.
#[must_use]
pub fn question_length(question: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match *question.get(at)? {
            0 => return Some(at + 1 + 4),
            label @ 1..=63 => at += 1 + usize::from(label),
            _ => return None,
        }
    }
}

/// The name of a response code in logs and metrics.
#[must_use]
pub fn code_text(code: u8) -> Cow<'static, str> {
    match code {
        0 => "noerror".into(),
        1 => "formerr".into(),
        2 => "servfail".into(),
        3 => "nxdomain".into(),
        4 => "notimp".into(),
        5 => "refused".into(),
        other => format!("rcode{other}").into(),
    }
}
