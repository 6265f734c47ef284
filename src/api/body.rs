//! Reading what was posted: the content type, the JSON, and Go's words for what is wrong with it.

use super::error::{ApiError, Result};
use super::query::quote;
use super::schema::{self, Struct};
use hyper::HeaderMap;
use serde_json::Value;

/// Reads a body as a value of this type: keys in any case, unknown ones dropped, `null` as absent. An empty body is the
/// empty value.
///
/// # Errors
/// 400 in the real server's words.
pub fn read(headers: &HeaderMap, body: &[u8], of: &'static Struct) -> Result<Value> {
    if body.is_empty() {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    content_type(headers)?;
    let mut values = serde_json::Deserializer::from_slice(body).into_iter::<Value>();
    let value = match values.next() {
        Some(Ok(value)) => value,
        Some(Err(error)) => return Err(ApiError::bad(format!("invalid JSON: {}", go_syntax_error(&error, body)))),
        None => return Ok(Value::Object(serde_json::Map::new())),
    };
    if values.next().is_some() {
        return Err(ApiError::bad("unexpected content after JSON"));
    }
    schema::normalise(value, of)
}

fn content_type(headers: &HeaderMap) -> Result<()> {
    let field = headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
    let kind = field.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match kind.as_str() {
        "application/json" => Ok(()),
        "" => Err(ApiError::bad("malformed Content-Type header (): mime: no media type")),
        other => Err(ApiError::bad(format!("unsupported Content-Type header ({other}): must be 'application/json'"))),
    }
}

/// The sentence of Go's JSON reader for an error of ours, as near as it is cheap.
fn go_syntax_error(error: &serde_json::Error, body: &[u8]) -> String {
    if error.is_eof() {
        return "unexpected EOF".to_owned();
    }
    let line = body.split(|b| *b == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let Some(seen) = line.get(error.column().saturating_sub(1)) else { return error.to_string() };
    let text = error.to_string();
    let place = [
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
    .find(|(ours, _)| text.starts_with(ours));
    match place {
        Some((_, go)) => format!("invalid character {} {go}", quote(&char::from(*seen).to_string()).replace('"', "'")),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{CONTENT_TYPE, HeaderValue};

    fn read_as(kind: Option<&'static str>, body: &str) -> String {
        let mut headers = HeaderMap::new();
        if let Some(kind) = kind {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        }
        match read(&headers, body.as_bytes(), &schema::SERVICE_SPEC) {
            Ok(value) => value.to_string(),
            Err(error) => error.message,
        }
    }

    #[test]
    fn garbage_is_refused_in_gos_words() {
        let json = Some("application/json");
        assert_eq!(read_as(json, "{bad"), "invalid JSON: invalid character 'b' looking for beginning of object key string");
        assert_eq!(read_as(json, "{\"Name\":"), "invalid JSON: unexpected EOF");
        assert_eq!(read_as(json, "{}{\"x\":1}"), "unexpected content after JSON");
        assert_eq!(read_as(None, "{}"), "malformed Content-Type header (): mime: no media type");
        assert_eq!(read_as(Some("text/plain"), "{}"), "unsupported Content-Type header (text/plain): must be 'application/json'");
        assert_eq!(read_as(json, "[]"), "invalid JSON: json: cannot unmarshal array into Go value of type swarm.ServiceSpec");
    }

    #[test]
    fn keys_match_in_any_case_and_unknown_ones_vanish() {
        let json = Some("application/json; charset=utf-8");
        assert_eq!(read_as(json, "{\"Name\":null,\"name\":\"lower\",\"Bogus\":1}"), "{\"Name\":\"lower\"}");
        assert_eq!(read_as(json, ""), "{}");
        assert_eq!(read_as(json, "null"), "{}");
    }
}
