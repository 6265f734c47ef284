//! The target of a request: version prefix, flags, object versions and filters, with the real server's messages for what
//! cannot be parsed.

use super::error::{ApiError, Result};
use crate::model::docker::ApiVersion;
use regex::RegexBuilder;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Largest compiled regular expression of a filter, in bytes.
const MAX_EXPRESSION: usize = 1 << 20;

/// Splits `/v1.51` off a path. A prefix that is not a version stays part of the path.
pub fn split_version(path: &str) -> (Option<ApiVersion>, &str) {
    let version = path.strip_prefix("/v").and_then(|rest| {
        let (version, _) = rest.split_once('/')?;
        Some((ApiVersion::parse(version)?, &rest[version.len()..]))
    });
    version.map_or((None, path), |(version, rest)| (Some(version), rest))
}

/// The query of a request, decoded. Of repeated names the first counts.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct RequestQuery(BTreeMap<String, String>);

impl RequestQuery {
    /// Parses the text after the `?`.
    pub fn parse(text: &str) -> Self {
        let mut all = BTreeMap::new();
        for pair in text.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            all.entry(decode(name)).or_insert_with(|| decode(value));
        }
        Self(all)
    }

    /// Empty if the query has no such name.
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// A flag that the server reads with Go's `ParseBool`.
    ///
    /// # Errors
    /// 400 for what `ParseBool` does not accept.
    pub fn strict_bool(&self, name: &str) -> Result<bool> {
        match self.get(name) {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            other => Err(ApiError::bad(format!(
                "invalid value for {name}: {other}: strconv.ParseBool: parsing {}: invalid syntax",
                quote(other)
            ))),
        }
    }

    /// A flag that is true unless it is missing, empty, `0`, `no`, `false` or `none`.
    pub fn loose_bool(&self, name: &str) -> bool {
        !matches!(self.get(name).trim().to_ascii_lowercase().as_str(), "" | "0" | "no" | "false" | "none")
    }

    /// The parameter `version` of an update: the version of the object that the client has read.
    ///
    /// # Errors
    /// 400 if it is missing or not a number; the message names `kind`.
    pub fn version(&self, kind: &str) -> Result<u64> {
        let text = self.get("version");
        text.parse().map_err(|_| {
            let reason = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
                "value out of range"
            } else {
                "invalid syntax"
            };
            ApiError::bad(format!("invalid {kind} version '{text}': strconv.ParseUint: parsing {}: {reason}", quote(text)))
        })
    }

    /// All names and values.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The parameter `filters`, with whatever names it has.
    ///
    /// # Errors
    /// 400 if it cannot be parsed.
    pub fn any_filters(&self) -> Result<Filters> {
        Filters::parse(self.get("filters"))
    }

    /// The parameter `filters`.
    ///
    /// # Errors
    /// 400 if it cannot be parsed or has a name that is not among `known`.
    pub fn filters(&self, known: &[&str]) -> Result<Filters> {
        let filters = Filters::parse(self.get("filters"))?;
        match filters.0.keys().find(|name| !known.contains(&name.as_str())) {
            Some(name) => Err(ApiError::bad(format!("invalid filter '{name}'"))),
            None => Ok(filters),
        }
    }
}

/// A text in quotation marks, as Go's `%q` prints it.
pub fn quote(text: &str) -> String {
    format!("{text:?}")
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16));
        match bytes[i] {
            b'+' => out.push(b' '),
            b'%' => match (hex(i + 1), hex(i + 2)) {
                (Some(high), Some(low)) => {
                    out.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                    i += 2;
                }
                _ => out.push(b'%'),
            },
            other => out.push(other),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Percent-decodes a segment of a path (where `+` is a plus).
pub fn decode_segment(text: &str) -> String {
    decode(&text.replace('+', "%2B"))
}

/// Percent-encodes a text for a path or a query.
pub fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

/// Filters by name; of the values of one filter any must match.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Filters(BTreeMap<String, BTreeSet<String>>);

impl Filters {
    fn parse(text: &str) -> Result<Self> {
        let invalid = || ApiError::bad("invalid filter");
        if text.is_empty() {
            return Ok(Self::default());
        }
        let Ok(Value::Object(names)) = serde_json::from_str(text) else { return Err(invalid()) };
        let mut all = BTreeMap::new();
        for (name, values) in names {
            let values: BTreeSet<String> = match values {
                Value::Object(map) => map.into_iter().map(|(value, _)| value).collect(),
                Value::Array(list) => {
                    list.iter().map(|v| v.as_str().map(str::to_owned)).collect::<Option<_>>().ok_or_else(invalid)?
                }
                Value::Null => BTreeSet::new(),
                _ => return Err(invalid()),
            };
            if !values.is_empty() {
                all.insert(name, values);
            }
        }
        Ok(Self(all))
    }

    /// As a client sends them: `{"name":{"value":true}}`.
    pub fn to_json(&self) -> Value {
        let values = |values: &BTreeSet<String>| values.iter().map(|v| (v.clone(), Value::Bool(true))).collect::<Value>();
        self.0.iter().map(|(name, all)| (name.clone(), values(all))).collect()
    }
    /// The values of a filter; none if the request does not have it.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.get(name).into_iter().flatten().map(String::as_str)
    }
    /// Whether the request has a filter.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
    /// True if the request does not have the filter or any value of it passes.
    pub fn any(&self, name: &str, passes: impl Fn(&str) -> bool) -> bool {
        self.0.get(name).is_none_or(|values| values.iter().any(|v| passes(v)))
    }
    /// As [`Self::any`], of a filter that the engine applies to networks: a value is the whole text, or a regular expression of a part of
    /// it. One that is none matches nothing more.
    pub fn matches(&self, name: &str, text: &str) -> bool {
        let expression = |value: &str| RegexBuilder::new(value).size_limit(MAX_EXPRESSION).build();
        self.any(name, |value| value == text || expression(value).is_ok_and(|pattern| pattern.is_match(text)))
    }
    /// As [`Self::labels`], of the swarm's objects but networks: there a `key=` without a value asks for the key alone.
    pub fn swarm_labels(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.values(name).all(|wanted| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|v| value.is_empty() || v == value),
            None => labels.contains_key(wanted),
        })
    }
    /// True if the labels have every value of the filter, as `key` or `key=value`.
    pub fn labels(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.values(name).all(|wanted| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|v| v == value),
            None => labels.contains_key(wanted),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_prefixes_are_split_off() {
        assert_eq!(split_version("/v1.51/services"), (Some(ApiVersion::v1(51)), "/services"));
        assert_eq!(split_version("/services/x"), (None, "/services/x"));
        assert_eq!(split_version("/vx/services"), (None, "/vx/services"));
        assert_eq!(split_version("/volumes"), (None, "/volumes"));
        assert_eq!(split_version("/v1.51"), (None, "/v1.51"));
    }

    #[test]
    fn filters_are_maps_or_lists() {
        let filters = |text: &str| RequestQuery::parse(&format!("filters={text}")).filters(&["name"]);
        assert!(filters("%7B%22name%22%3A%7B%22rep%22%3Atrue%7D%7D").unwrap().any("name", |v| v == "rep"));
        assert!(filters("{\"name\":[\"rep\"]}").unwrap().any("name", |v| v == "rep"));
        assert_eq!(filters("").unwrap(), Filters::default());
        assert_eq!(filters("{\"name\":\"rep\"}").unwrap_err().message, "invalid filter");
        assert_eq!(filters("[1]").unwrap_err().message, "invalid filter");
        assert_eq!(filters("{\"bogus\":[\"1\"]}").unwrap_err().message, "invalid filter 'bogus'");
    }

    #[test]
    fn some_values_are_regular_expressions() {
        let filters = |value: &str| Filters([("name".to_owned(), [value.to_owned()].into())].into());
        for value in ["back", "^back$", "ack", "^b", "front|back", "b.*k", "back$", ""] {
            assert!(filters(value).matches("name", "back"), "{value}");
        }
        for value in ["^ack", "bac$", "back2", "b*", "[", "(a{1000}){1000}{1000}"] {
            assert_eq!(filters(value).matches("name", "xyz"), value == "b*", "{value}");
        }
        assert!(filters("a[").matches("name", "a["), "a text is itself");
    }

    #[test]
    fn a_label_without_a_value_is_any_value_in_the_swarm_alone() {
        let filters = Filters([("label".to_owned(), ["a=".to_owned()].into())].into());
        let labels = [("a".to_owned(), "1".to_owned())].into();
        assert!(filters.swarm_labels("label", &labels) && !filters.labels("label", &labels));
        assert!(!filters.swarm_labels("label", &BTreeMap::new()));
    }

    #[test]
    fn flags_are_strict_or_loose() {
        let query = RequestQuery::parse("force=maybe&status=maybe&off=None");
        assert!(query.loose_bool("force") && !query.loose_bool("off") && !query.loose_bool("missing"));
        assert!(query.strict_bool("status").unwrap_err().message.ends_with("parsing \"maybe\": invalid syntax"));
    }
}
