//! Sizes as `10m`.

/// Bytes of a number with `k`, `m` or `g`, of 1024; `None` if it is none or 0.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let text = text.strip_suffix('b').unwrap_or(&text);
    let (number, shift) = match text.as_bytes().last()? {
        b'k' => (&text[..text.len() - 1], 10),
        b'm' => (&text[..text.len() - 1], 20),
        b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = number.parse().ok().filter(|number| *number > 0)?;
    number.checked_mul(1 << shift)
}

#[test]
fn sizes_have_a_unit_or_none() {
    for (text, expected) in [("1", Some(1)), ("10m", Some(10 << 20)), ("2KB", Some(2048)), ("1g", Some(1 << 30))] {
        assert_eq!(bytes(text), expected, "{text}");
    }
    for text in ["", "0", "m", "-1", "1.5m", "1x", "99999999999g"] {
        assert_eq!(bytes(text), None, "{text}");
    }
}
