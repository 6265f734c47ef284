//! Decodes posted bodies: checks the content type, parses the JSON, and reports errors as the real server (in Go) does.

use super::error::{ApiError, Result};
use super::query::quote;
use super::schema::{self, Struct};
use hyper::HeaderMap;
use serde_json::Value;

/// Decodes a body by its schema ([`schema::decode`]). An empty body is the empty object.
///
/// # Errors
/// 400 in the real server's words.
pub fn decode(headers: &HeaderMap, body: &[u8], schema: &'static Struct) -> Result<Value> {
    if body.is_empty() {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    check_content_type(headers)?;
    let decode_text = |body: &[u8]| {
        let mut values = serde_json::Deserializer::from_slice(body).into_iter::<Value>();
        let value = match values.next() {
            Some(Ok(value)) => value,
            Some(Err(error)) => return Err(ApiError::bad(format!("invalid JSON: {}", go_syntax_error(&error, body)))),
            None => return Ok(Value::Object(serde_json::Map::new())),
        };
        if values.next().is_some() {
            return Err(ApiError::bad("unexpected content after JSON"));
        }
        schema::decode(value, schema)
    };
    // A number that was kept takes as much memory as hundreds of others.
    match schema::keep_literals(body, LITERALS) {
        Some(kept) => decode_text(&kept),
        None => decode_text(body),
    }
}

/// Numbers whose text is kept: more are no document of a user.
const LITERALS: usize = 64;

fn check_content_type(headers: &HeaderMap) -> Result<()> {
    let field = headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
    let kind = field.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match kind.as_str() {
        "application/json" => Ok(()),
        "" => Err(ApiError::bad("malformed Content-Type header (): mime: no media type")),
        other => Err(ApiError::bad(format!("unsupported Content-Type header ({other}): must be 'application/json'"))),
    }
}

/// The message of Go's `encoding/json` for an error of serde, approximated.
fn go_syntax_error(error: &serde_json::Error, body: &[u8]) -> String {
    if error.is_eof() {
        return "unexpected EOF".to_owned();
    }
    let line = body.split(|b| *b == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let Some(byte) = line.get(error.column().saturating_sub(1)) else { return error.to_string() };
    let text = error.to_string();
    let context = [
        ("key must be a string", "looking for beginning of object key string"),
        ("expected value", "looking for beginning of value"),
        ("expected ident", "in literal"),
        ("expected `:`", "after object key"),
        ("expected `,` or `}`", "after object key:value pair"),
        ("expected `,` or `]`", "after array element"),
        ("trailing comma", "looking for beginning of value"),
        ("invalid number", "in numeric literal"),
        ("invalid escape", "in string escape code"),
        ("control character", "in string literal"),
    ]
    .iter()
    .find(|(serde, _)| text.starts_with(serde));
    match context {
        Some((_, go)) => format!("invalid character {} {go}", quote(&char::from(*byte).to_string()).replace('"', "'")),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{CONTENT_TYPE, HeaderValue};

    fn decode_as(kind: Option<&'static str>, body: &str) -> String {
        let mut headers = HeaderMap::new();
        if let Some(kind) = kind {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        }
        match decode(&headers, body.as_bytes(), &schema::SERVICE_SPEC) {
            Ok(value) => value.to_string(),
            Err(error) => error.message,
        }
    }

    #[test]
    fn malformed_bodies_are_refused_in_gos_words() {
        let json = Some("application/json");
        assert_eq!(decode_as(json, "{bad"), "invalid JSON: invalid character 'b' looking for beginning of object key string");
        assert_eq!(decode_as(json, "{\"Name\":"), "invalid JSON: unexpected EOF");
        assert_eq!(decode_as(json, "{}{\"x\":1}"), "unexpected content after JSON");
        assert_eq!(decode_as(None, "{}"), "malformed Content-Type header (): mime: no media type");
        assert_eq!(
            decode_as(Some("text/plain"), "{}"),
            "unsupported Content-Type header (text/plain): must be 'application/json'"
        );
        assert_eq!(decode_as(json, "[]"), "invalid JSON: json: cannot unmarshal array into Go value of type swarm.ServiceSpec");
    }

    #[test]
    fn keys_match_in_any_case_and_unknown_ones_are_dropped() {
        let json = Some("application/json; charset=utf-8");
        assert_eq!(decode_as(json, "{\"Name\":null,\"name\":\"lower\",\"Bogus\":1}"), "{\"Name\":\"lower\"}");
        assert_eq!(decode_as(json, ""), "{}");
        assert_eq!(decode_as(json, "null"), "{}");
    }
}
