//! Durations as `30s`.

/// Milliseconds of a number with `ms`, `s`, `m` or `h`; `None` if it is none, 0 or more than a day.
pub(super) fn millis(text: &str) -> Option<u64> {
    const DAY: u64 = 86_400_000;
    let text = text.trim();
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let factor = match &text[unit_at..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let millis = text[..unit_at].parse::<u64>().ok()?.checked_mul(factor)?;
    (1..=DAY).contains(&millis).then_some(millis)
}

#[test]
fn durations_have_a_unit() {
    for (text, expected) in [("30s", Some(30_000)), ("250ms", Some(250)), ("2m", Some(120_000)), ("24h", Some(86_400_000))] {
        assert_eq!(millis(text), expected, "{text}");
    }
    for text in ["", "30", "s", "0s", "25h", "1d", "-1s", "99999999999999999999s"] {
        assert_eq!(millis(text), None, "{text}");
    }
}
