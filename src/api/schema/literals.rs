//! Numbers as they were posted: Go's errors repeat them letter for letter, and a parsed one is a float that has forgotten its text.

use serde_json::{Map, Value};

/// The only key of the object that stands for such a number.
const KEY: &str = "\u{1}number";

/// The text of a JSON document with every number that is no integer of 64 bits as an object of its text. What is no JSON stays as it is,
/// so that a parser finds the same fault in it. `None`: there are none of these numbers, or more than `most`.
#[must_use]
pub fn keep_literals(body: &[u8], most: usize) -> Option<Vec<u8>> {
    let (mut out, mut copied, mut at, mut count) = (Vec::new(), 0, 0, 0);
    while let Some(byte) = body.get(at) {
        if *byte == b'"' {
            at = end_of_string(body, at);
            continue;
        }
        if *byte != b'-' && !byte.is_ascii_digit() {
            at += 1;
            continue;
        }
        let begin = at;
        at += body[at..].iter().take_while(|b| b.is_ascii_alphanumeric() || b"+-.".contains(b)).count();
        let Ok(text) = std::str::from_utf8(&body[begin..at]) else { continue };
        if is_number(text) && text.parse::<i64>().is_err() && text.parse::<u64>().is_err() {
            out.extend_from_slice(&body[copied..begin]);
            out.extend_from_slice(format!(r#"{{"\u0001number":"{text}"}}"#).as_bytes());
            copied = at;
            count += 1;
            if count > most {
                return None;
            }
        }
    }
    out.extend_from_slice(&body[copied..]);
    (count > 0).then_some(out)
}

/// Behind the closing quote; the end of the document if there is none.
fn end_of_string(body: &[u8], begin: usize) -> usize {
    let mut at = begin + 1;
    while let Some(byte) = body.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    body.len()
}

/// A number of RFC 8259.
fn is_number(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let text = text.strip_prefix('-').unwrap_or(text);
    let (number, exponent) = text.split_once(['e', 'E']).map_or((text, None), |(number, exponent)| (number, Some(exponent)));
    let (whole, fraction) = number.split_once('.').map_or((number, None), |(whole, fraction)| (whole, Some(fraction)));
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(|exponent| digits(exponent.strip_prefix(['+', '-']).unwrap_or(exponent)))
}

/// The text of a number that was kept so.
pub(super) fn literal(value: &Value) -> Option<&str> {
    let map = value.as_object().filter(|map| map.len() == 1)?;
    map.get(KEY)?.as_str()
}

/// A float of 32 bits, as Go reads one.
pub(super) fn float(value: &Value) -> Option<Value> {
    let text = literal(value)?;
    let fits = text.parse::<f32>().is_ok_and(f32::is_finite);
    text.parse::<f64>().ok().filter(|_| fits).map(Value::from)
}

/// A value with its numbers as numbers, those that no float has as 0.
pub(super) fn with_numbers(value: Value) -> Value {
    if let Some(text) = literal(&value) {
        return Value::from(text.parse::<f64>().ok().filter(|number| number.is_finite()).unwrap_or_default());
    }
    match value {
        Value::Array(list) => list.into_iter().map(with_numbers).collect(),
        Value::Object(map) => {
            Value::Object(map.into_iter().map(|(key, value)| (key, with_numbers(value))).collect::<Map<_, _>>())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(text: &str) -> String {
        keep_literals(text.as_bytes(), 64).map_or_else(|| text.to_owned(), |kept| String::from_utf8(kept).expect("text"))
    }

    #[test]
    fn numbers_that_are_no_integers_of_64_bits_keep_their_text() {
        for plain in [
            "{}",
            "18446744073709551615",
            "[-9223372036854775808,0]",
            r#"{"a":"1.5","b\"2.5":[7,"\\"]}"#,
            "[01,1.,1e,.5,-]",
            "\"1.5",
        ] {
            assert_eq!(kept(plain), plain);
        }
        for text in ["1.50", "1e30", "-0.1E-2", "18446744073709551616", "99999999999999999999", "-9223372036854775809", "1e400"] {
            let value: Value = serde_json::from_str(&kept(&format!(r#"[{{"x": {text} }},"{text}"]"#))).expect("JSON");
            assert_eq!((literal(&value[0]["x"]), value[1].as_str()), (Some(text), Some(text)));
        }
    }

    /// Each takes the room of hundreds of others.
    #[test]
    fn no_more_than_so_many_are_kept() {
        let numbers = |count| format!("[{}]", vec!["1.5"; count].join(","));
        assert!(kept(&numbers(64)).contains("number") && kept(&numbers(65)) == numbers(65));
    }

    #[test]
    fn what_is_not_checked_gets_its_numbers_back() {
        let value: Value = serde_json::from_str(&kept("[1.5,{\"a\":[2e3,1]},1e400]")).expect("JSON");
        assert_eq!(with_numbers(value), serde_json::json!([1.5, {"a": [2000.0, 1]}, 0.0]));
    }

    #[test]
    fn a_float_is_one_of_32_bits() {
        let float = |text: &str| float(&serde_json::from_str(&kept(text)).expect("JSON"));
        assert_eq!(float("0.25"), Some(Value::from(0.25)));
        assert_eq!((float("1e39"), float("-1e39"), float("1e400")), (None, None, None));
    }
}
