//! The two text formats of metrics, and which of them a client takes. Pure.

/// A format.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum MetricsFormat {
    /// Prometheus' text format 0.0.4.
    #[default]
    Prometheus,
    /// OpenMetrics 1.0, which has exemplars.
    OpenMetrics,
}

impl MetricsFormat {
    /// The one that a client prefers by its header `Accept`.
    pub fn accepted(header: &str) -> Self {
        let quality = |media: &str| header.split(',').filter_map(|range| quality(range, media)).fold(0.0, f64::max);
        let open = quality("application/openmetrics-text");
        if open > 0.0 && open >= quality("text/plain") { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Media type of a text in this format.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

impl MetricsFormat {
    /// The upper bound of a class: OpenMetrics writes whole numbers with a point.
    pub fn bound(self, number: String) -> String {
        let is_whole = self == Self::OpenMetrics && !number.contains('.');
        if is_whole { number + ".0" } else { number }
    }
}

/// How much a media type is wanted, 1 at most, if the range is this one and the version one that we write.
fn quality(range: &str, media: &str) -> Option<f64> {
    let mut parts = range.split(';').map(str::trim);
    if !parts.next()?.eq_ignore_ascii_case(media) {
        return None;
    }
    let mut quality = 1.0;
    for (name, value) in parts.filter_map(|part| part.split_once('=')) {
        match name.to_ascii_lowercase().as_str() {
            "q" => quality = value.parse::<f64>().ok().filter(|q| q.is_finite())?.clamp(0.0, 1.0),
            "version" if !matches!(value, "1.0.0" | "0.0.4") => return None,
            _ => {}
        }
    }
    Some(quality)
}

#[test]
fn open_metrics_are_for_those_who_ask_for_them() {
    let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    for (header, expected) in [
        ("", MetricsFormat::Prometheus),
        ("*/*", MetricsFormat::Prometheus),
        ("text/plain", MetricsFormat::Prometheus),
        (prometheus, MetricsFormat::OpenMetrics),
        ("Application/OpenMetrics-Text; Version=1.0.0; charset=utf-8", MetricsFormat::OpenMetrics),
        ("application/openmetrics-text;version=0.0.1", MetricsFormat::Prometheus),
        ("application/openmetrics-text;q=0", MetricsFormat::Prometheus),
        ("application/openmetrics-text;q=0.3, text/plain;q=0.5", MetricsFormat::Prometheus),
        ("application/openmetrics-text;q=x", MetricsFormat::Prometheus),
    ] {
        assert_eq!(MetricsFormat::accepted(header), expected, "{header}");
    }
}
