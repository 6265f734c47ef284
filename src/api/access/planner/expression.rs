//! Expressions of constraints and affinities: `KEY==VALUE`, `KEY!=VALUE`, with `~` after the operator for a wish, a `*` for any text,
//! or a regular expression between slashes.

use regex::{Regex, RegexBuilder};
use std::fmt;

/// Largest compiled expression, in bytes.
const MAX_COMPILED: usize = 1 << 20;

/// A condition on a node.
#[derive(Clone, Debug)]
pub struct PlacementExpression {
    pub key: String,
    pub equals: bool,
    /// A wish: it is given up if no node fits.
    pub soft: bool,
    value: String,
    pattern: Regex,
}

impl PartialEq for PlacementExpression {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl fmt::Display for PlacementExpression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (operator, soft) = (if self.equals { "==" } else { "!=" }, if self.soft { "~" } else { "" });
        write!(f, "{}{operator}{soft}{}", self.key, self.value)
    }
}

impl PlacementExpression {
    /// # Errors
    /// The reason, with what is expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let operators = [("==", true), ("!=", false)];
        let found = operators.into_iter().filter_map(|(sign, equals)| Some((text.find(sign)?, equals))).min_by_key(|(at, _)| *at);
        let Some((at, equals)) = found else {
            return Err(format!("{text}: one operator of == and != is expected, as KEY==VALUE"));
        };
        let (key, value) = (text[..at].trim(), text[at + 2..].trim());
        let is_key = key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if !is_key {
            return Err(format!("{text}: {key:?} is no key: letters, digits, dash, dot and underscore are"));
        }
        let (soft, value) = value.strip_prefix('~').map_or((false, value), |rest| (true, rest));
        if value.is_empty() {
            return Err(format!("{text}: a value is expected after the operator"));
        }
        let expression = match value.strip_prefix('/').and_then(|rest| rest.strip_suffix('/')) {
            Some(expression) => expression.to_owned(),
            None => format!("^{}$", value.split('*').map(regex::escape).collect::<Vec<_>>().join(".*")),
        };
        let pattern = RegexBuilder::new(&expression).size_limit(MAX_COMPILED).build();
        let pattern = pattern.map_err(|_| format!("{text}: {value} is not a regular expression that is understood"))?;
        Ok(Self { key: key.to_owned(), equals, soft, value: value.to_owned(), pattern })
    }

    /// An equality with one text.
    ///
    /// # Errors
    /// As [`Self::parse`]: the text is too long.
    pub fn exactly(key: &str, value: &str) -> Result<Self, String> {
        Self::parse(&format!("{key}==/^{}$/", regex::escape(value)))
    }

    /// Whether any of the values is (with `!=`: none is) what the expression says.
    pub fn fits<'a>(&self, values: impl IntoIterator<Item = &'a str>) -> bool {
        values.into_iter().any(|value| self.pattern.is_match(value)) == self.equals
    }
}
