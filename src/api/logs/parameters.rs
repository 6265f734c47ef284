//! The query of a request for logs, with the real server's refusals.

use crate::api::error::{ApiError, Result};
use crate::api::query::{RequestQuery, quote};
use crate::model::LogOptions;

/// Refuses a request that asks for neither stream.
///
/// # Errors
/// 500, before anything is looked up, as the real server does.
pub fn check_streams(query: &RequestQuery) -> Result<()> {
    if query.loose_bool("stdout") || query.loose_bool("stderr") {
        return Ok(());
    }
    Err(ApiError::failed("Bad parameters: you must choose at least one stream"))
}

/// # Errors
/// 500 for what cannot be read, in the real server's words.
pub fn log_options(query: &RequestQuery) -> Result<LogOptions> {
    Ok(LogOptions {
        stdout: query.loose_bool("stdout"),
        stderr: query.loose_bool("stderr"),
        follow: query.loose_bool("follow"),
        timestamps: query.loose_bool("timestamps"),
        details: query.loose_bool("details"),
        tail: tail(query.get("tail"))?,
        since: since(query.get("since"))?,
    })
}

fn tail(text: &str) -> Result<Option<u64>> {
    match (text, text.parse::<i64>()) {
        ("" | "all", _) => Ok(None),
        (_, Err(_)) => Err(ApiError::failed("tail value must be a positive integer or \"all\"")),
        (_, Ok(lines)) => match u64::try_from(lines) {
            Ok(lines) => Ok(Some(lines)),
            Err(_) => Err(ApiError::failed("negative tail values not supported")),
        },
    }
}

/// A time as clients send it: seconds since 1970, and after a point a fraction of up to nine digits.
fn since(text: &str) -> Result<String> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let number = |part: &str| {
        let digits = part.strip_prefix(['-', '+']).unwrap_or(part);
        part.parse::<i64>().map_err(|_| {
            let reason = if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
                "value out of range"
            } else {
                "invalid syntax"
            };
            ApiError::failed(format!("could not parse since timestamp: strconv.ParseInt: parsing {}: {reason}", quote(part)))
        })
    };
    let whole = number(seconds)?;
    number(fraction)?;
    // A shorter fraction has its missing zeros at the end.
    let nanos: String = fraction.chars().filter(char::is_ascii_digit).chain("000000000".chars()).take(9).collect();
    Ok(format!("{whole}.{nanos}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> std::result::Result<LogOptions, String> {
        let query = RequestQuery::parse(query);
        check_streams(&query).and_then(|()| log_options(&query)).map_err(|e| format!("{} {}", e.status.as_u16(), e.message))
    }

    #[test]
    fn what_clients_send_is_read() {
        let read = read("stdout=1&stderr=0&follow=1&tail=3&since=1700000000.5&details=True").expect("read");
        assert!(read.stdout && !read.stderr && read.follow && read.details && !read.timestamps);
        assert_eq!((read.tail, read.since.as_str()), (Some(3), "1700000000.500000000"));
    }

    #[test]
    fn bad_values_are_refused_in_the_real_servers_words() {
        for (query, refusal) in [
            ("", "500 Bad parameters: you must choose at least one stream"),
            ("stdout=0&stderr=false", "500 Bad parameters: you must choose at least one stream"),
            ("stdout=1&tail=x", "500 tail value must be a positive integer or \"all\""),
            ("stdout=1&tail=1.5", "500 tail value must be a positive integer or \"all\""),
            ("stdout=1&tail=-1", "500 negative tail values not supported"),
            (
                "stdout=1&since=yesterday",
                "500 could not parse since timestamp: strconv.ParseInt: parsing \"yesterday\": invalid syntax",
            ),
            ("stdout=1&since=1.x", "500 could not parse since timestamp: strconv.ParseInt: parsing \"x\": invalid syntax"),
            (
                "stdout=1&since=99999999999999999999",
                "500 could not parse since timestamp: strconv.ParseInt: parsing \"99999999999999999999\": value out of range",
            ),
        ] {
            assert_eq!(read(query).unwrap_err(), refusal, "{query}");
        }
        for (text, sent) in
            [("17", "17.000000000"), ("17.000000001", "17.000000001"), ("17.25", "17.250000000"), ("-3", "-3.000000000")]
        {
            assert_eq!(since(text).expect("a time"), sent);
        }
    }
}
