//! Families of samples with typed labels, as text. Knows nothing of what is measured.

use super::format::MetricsFormat;
use crate::model::Timestamp;
use std::collections::BTreeMap;
use std::fmt::Write as _;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum MetricKind {
    Counter,
    Gauge,
}

/// The samples of one name, each with a value for each of `L` labels. Two samples never have equal labels.
#[derive(Debug)]
pub struct MetricFamily<const L: usize> {
    name: &'static str,
    help: &'static str,
    kind: MetricKind,
    labels: [&'static str; L],
    samples: BTreeMap<[String; L], u64>,
}

impl<const L: usize> MetricFamily<L> {
    /// A value that only grows, from 0 at the start of the daemon or of what it counts. The name must end in `_total`.
    pub fn counter(name: &'static str, help: &'static str, labels: [&'static str; L]) -> Self {
        debug_assert!(name.ends_with("_total"), "{name}: a counter's name ends in _total");
        Self { name, help, kind: MetricKind::Counter, labels, samples: BTreeMap::new() }
    }

    /// A value that rises and falls.
    pub fn gauge(name: &'static str, help: &'static str, labels: [&'static str; L]) -> Self {
        debug_assert!(!name.ends_with("_total"), "{name}: only a counter's name ends in _total");
        Self { name, help, kind: MetricKind::Gauge, labels, samples: BTreeMap::new() }
    }

    /// Adds a sample, its label values in the order of the family's labels. If there is one with equal labels (Prometheus
    /// rejects a whole scrape with such a pair), counts are added up, and of a gauge the later value stays.
    #[must_use]
    pub fn sample(mut self, values: [impl Into<String>; L], value: u64) -> Self {
        self.add(values, value);
        self
    }

    /// As [`MetricFamily::sample`].
    pub fn add(&mut self, values: [impl Into<String>; L], value: u64) {
        let present = self.samples.entry(values.map(Into::into)).or_default();
        *present = match self.kind {
            MetricKind::Counter => present.saturating_add(value),
            MetricKind::Gauge => value,
        };
    }

    fn render(&self, format: MetricsFormat) -> String {
        let (kind, without) = match self.kind {
            MetricKind::Counter => ("counter", "_total"),
            MetricKind::Gauge => ("gauge", ""),
        };
        // There the end of a counter's name belongs to the sample.
        let family = match format {
            MetricsFormat::Prometheus => self.name,
            MetricsFormat::OpenMetrics => self.name.strip_suffix(without).unwrap_or(self.name),
        };
        let mut out = format!("# HELP {family} {}\n# TYPE {family} {kind}\n", help_text(self.help, format));
        for (values, value) in &self.samples {
            let pairs: Vec<String> =
                self.labels.iter().zip(values).map(|(label, value)| format!("{label}=\"{}\"", escape(value))).collect();
            let labels = if pairs.is_empty() { String::new() } else { format!("{{{}}}", pairs.join(",")) };
            let _ = writeln!(out, "{}{labels} {value}", self.name);
        }
        out
    }
}

impl MetricFamily<0> {
    /// The only sample of a family without labels.
    #[must_use]
    pub fn value(self, value: u64) -> Self {
        self.sample([""; 0], value)
    }
}

/// Durations by class, with labels. Two samples never have equal labels.
#[derive(Debug)]
pub struct HistogramFamily<const L: usize> {
    name: &'static str,
    help: &'static str,
    labels: [&'static str; L],
    /// Upper bounds of the classes, in milliseconds; one more class has the rest.
    bounds: &'static [u64],
    samples: BTreeMap<[String; L], Durations>,
}

#[derive(Default, Debug)]
struct Durations {
    counts: Vec<u64>,
    micros: u64,
    exemplars: BTreeMap<usize, MetricExemplar>,
}

/// A request in a class of durations.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MetricExemplar {
    pub trace: String,
    pub micros: u64,
    pub at: Timestamp,
}

impl<const L: usize> HistogramFamily<L> {
    /// The name ends in `_seconds`.
    pub fn new(name: &'static str, help: &'static str, labels: [&'static str; L], bounds: &'static [u64]) -> Self {
        debug_assert!(name.ends_with("_seconds"), "{name}: a duration is in seconds");
        Self { name, help, labels, bounds, samples: BTreeMap::new() }
    }

    /// Adds the number of durations in each class and their sum in microseconds to the sample with these labels.
    pub fn add(&mut self, values: [impl Into<String>; L], counts: &[u64], micros: u64) {
        let present = self.samples.entry(values.map(Into::into)).or_default();
        present.counts.resize(self.bounds.len() + 1, 0);
        for (present, count) in present.counts.iter_mut().zip(counts) {
            *present += count;
        }
        present.micros += micros;
    }

    /// Adds an example to a class of the sample with these labels.
    pub fn add_exemplar(&mut self, values: [impl Into<String>; L], class: usize, exemplar: MetricExemplar) {
        self.samples.entry(values.map(Into::into)).or_default().exemplars.insert(class, exemplar);
    }

    fn render(&self, format: MetricsFormat) -> String {
        let Self { name, help, .. } = self;
        let mut out = format!("# HELP {name} {}\n# TYPE {name} histogram\n", help_text(help, format));
        for (values, Durations { counts, micros, exemplars }) in &self.samples {
            let pairs = self.labels.iter().zip(values).map(|(label, value)| format!("{label}=\"{}\"", escape(value)));
            let labels = pairs.collect::<Vec<_>>().join(",");
            let mut all = 0;
            for (class, count) in counts.iter().enumerate() {
                all += count;
                let bound = self.bounds.get(class).map_or_else(|| "+Inf".to_owned(), |ms| format.bound(seconds(*ms, 1000)));
                let exemplar = exemplars.get(&class).filter(|_| format == MetricsFormat::OpenMetrics);
                let exemplar = exemplar.map_or_else(String::new, MetricExemplar::render);
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {all}{exemplar}");
            }
            let _ = writeln!(out, "{name}_sum{{{labels}}} {}", seconds(*micros, 1_000_000));
            let _ = writeln!(out, "{name}_count{{{labels}}} {all}");
        }
        out
    }
}

impl MetricExemplar {
    fn render(&self) -> String {
        let millis = u64::try_from(self.at.0 / 1_000_000).unwrap_or(0);
        let (took, at) = (seconds(self.micros, 1_000_000), seconds(millis, 1000));
        format!(" # {{trace_id=\"{}\"}} {took} {at}", escape(&self.trace))
    }
}

/// In OpenMetrics a quote is escaped too.
fn help_text(help: &str, format: MetricsFormat) -> String {
    match format {
        MetricsFormat::Prometheus => help.replace('\\', r"\\").replace('\n', r"\n"),
        MetricsFormat::OpenMetrics => escape(help),
    }
}

/// A decimal number of seconds.
fn seconds(value: u64, per_second: u64) -> String {
    let digits = per_second.ilog10() as usize;
    let text = format!("{}.{:0digits$}", value / per_second, value % per_second);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Escapes a label value: backslash, quote and line feed are the characters that would end it or change its meaning.
fn escape(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

/// Families sorted by name; those without a sample are left out.
#[derive(Default, Debug)]
pub struct Exposition {
    format: MetricsFormat,
    families: BTreeMap<&'static str, String>,
}

impl Exposition {
    pub fn new(format: MetricsFormat) -> Self {
        Self { format, families: BTreeMap::new() }
    }

    /// Adds a family. Its name must be new: a family that is split in two is invalid.
    pub fn add<const L: usize>(&mut self, family: &MetricFamily<L>) {
        if !family.samples.is_empty() {
            let other = self.families.insert(family.name, family.render(self.format));
            debug_assert!(other.is_none(), "two families are named {}", family.name);
        }
    }

    /// As [`Exposition::add`].
    pub fn add_histogram<const L: usize>(&mut self, family: &HistogramFamily<L>) {
        if !family.samples.is_empty() {
            let other = self.families.insert(family.name, family.render(self.format));
            debug_assert!(other.is_none(), "two families are named {}", family.name);
        }
    }

    pub fn render(&self) -> String {
        let end = match self.format {
            MetricsFormat::Prometheus => "",
            MetricsFormat::OpenMetrics => "# EOF\n",
        };
        self.families.values().map(String::as_str).chain([end]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_and_families_are_sorted_and_values_are_escaped() {
        let mut out = Exposition::default();
        out.add(&MetricFamily::gauge("b", "Back\\slash\nand line.", []).value(7));
        out.add(&MetricFamily::counter("a_total", "A.", ["x", "y"]).sample(["2", "a\"b\\c\nd"], 1).sample(["1", ""], 2));
        out.add(&MetricFamily::gauge("empty", "Left out.", ["x"]));
        let expected = concat!(
            "# HELP a_total A.\n# TYPE a_total counter\n",
            "a_total{x=\"1\",y=\"\"} 2\n",
            "a_total{x=\"2\",y=\"a\\\"b\\\\c\\nd\"} 1\n",
            "# HELP b Back\\\\slash\\nand line.\n# TYPE b gauge\nb 7\n",
        );
        assert_eq!(out.render(), expected);
    }

    #[test]
    fn a_histogram_has_cumulative_classes_a_sum_and_a_count() {
        let mut family = HistogramFamily::new("a_seconds", "A.", ["x"], &[5, 1000]);
        family.add(["1"], &[2, 1, 0], 1_500_000);
        family.add(["1"], &[0, 0, 1], 0);
        let mut out = Exposition::default();
        out.add_histogram(&family);
        let expected = concat!(
            "# HELP a_seconds A.\n# TYPE a_seconds histogram\n",
            "a_seconds_bucket{x=\"1\",le=\"0.005\"} 2\na_seconds_bucket{x=\"1\",le=\"1\"} 3\n",
            "a_seconds_bucket{x=\"1\",le=\"+Inf\"} 4\na_seconds_sum{x=\"1\"} 1.5\na_seconds_count{x=\"1\"} 4\n",
        );
        assert_eq!(out.render(), expected);
    }

    #[test]
    fn in_open_metrics_a_class_has_an_example_and_the_text_an_end() {
        let mut family = HistogramFamily::new("a_seconds", "A \"b\".", ["x"], &[5, 1000]);
        family.add(["1"], &[0, 1, 0], 700_000);
        let exemplar = MetricExemplar { trace: "abc".to_owned(), micros: 700_000, at: Timestamp(1_795_000_000_120_000_000) };
        family.add_exemplar(["1"], 1, exemplar);
        let mut out = Exposition::new(MetricsFormat::OpenMetrics);
        out.add_histogram(&family);
        out.add(&MetricFamily::counter("b_total", "B.", []).value(2));
        let expected = concat!(
            "# HELP a_seconds A \\\"b\\\".\n# TYPE a_seconds histogram\n",
            "a_seconds_bucket{x=\"1\",le=\"0.005\"} 0\n",
            "a_seconds_bucket{x=\"1\",le=\"1.0\"} 1 # {trace_id=\"abc\"} 0.7 1795000000.12\n",
            "a_seconds_bucket{x=\"1\",le=\"+Inf\"} 1\na_seconds_sum{x=\"1\"} 0.7\na_seconds_count{x=\"1\"} 1\n",
            "# HELP b B.\n# TYPE b counter\nb_total 2\n# EOF\n",
        );
        assert_eq!(out.render(), expected);
        let mut out = Exposition::default();
        out.add_histogram(&family);
        assert!(!out.render().contains("abc"));
    }

    #[test]
    fn equal_labels_are_one_sample() {
        let counter = MetricFamily::counter("a_total", "A.", ["x"]).sample(["1"], 2).sample(["1"], 3);
        assert_eq!(counter.render(MetricsFormat::default()).lines().skip(2).collect::<Vec<_>>(), ["a_total{x=\"1\"} 5"]);
        let gauge = MetricFamily::gauge("a", "A.", ["x"]).sample(["1"], 2).sample(["1"], 3);
        assert_eq!(gauge.render(MetricsFormat::default()).lines().skip(2).collect::<Vec<_>>(), ["a{x=\"1\"} 3"]);
    }
}
