//! Rules of Traefik's routers: `Host(…)`, `PathPrefix(…)`, `&&`, `||` and parentheses, as alternatives of hosts and prefixes.

use super::host_and_path::{characters, host};
use super::route::PrefixEnd;

/// One alternative. Empty lists: every host, every path.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Alternative {
    pub hosts: Vec<String>,
    pub prefixes: Vec<(String, PrefixEnd)>,
}

/// Alternatives that one rule may have.
const MOST_ALTERNATIVES: usize = 64;
/// Parentheses in each other.
const DEEPEST: usize = 16;

/// Parses a rule.
///
/// # Errors
/// What of it is not understood, for users.
pub(super) fn parse(rule: &str) -> Result<Vec<Alternative>, String> {
    let mut parser = RuleParser { rest: rule.trim(), depth: 0 };
    let all = parser.any()?;
    if parser.rest.is_empty() { Ok(all) } else { Err(format!("{:?} is not understood", parser.rest)) }
}

struct RuleParser<'a> {
    rest: &'a str,
    depth: usize,
}

impl RuleParser<'_> {
    fn take(&mut self, token: &str) -> bool {
        let rest = self.rest.trim_start().strip_prefix(token);
        self.rest = rest.unwrap_or(self.rest).trim_start();
        rest.is_some()
    }

    /// Alternatives separated by `||`.
    fn any(&mut self) -> Result<Vec<Alternative>, String> {
        let mut all = self.every()?;
        while self.take("||") {
            all.extend(self.every()?);
            if all.len() > MOST_ALTERNATIVES {
                return Err(format!("it has more than {MOST_ALTERNATIVES} alternatives"));
            }
        }
        Ok(all)
    }

    /// Conditions separated by `&&`.
    fn every(&mut self) -> Result<Vec<Alternative>, String> {
        let mut all = self.one()?;
        while self.take("&&") {
            let more = self.one()?;
            let pairs = all.iter().flat_map(|a| more.iter().map(move |b| both(a, b)));
            all = pairs.collect::<Result<_, _>>()?;
            if all.len() > MOST_ALTERNATIVES {
                return Err(format!("it has more than {MOST_ALTERNATIVES} alternatives"));
            }
        }
        Ok(all)
    }

    fn one(&mut self) -> Result<Vec<Alternative>, String> {
        if self.take("(") {
            self.depth += 1;
            if self.depth > DEEPEST {
                return Err("its parentheses are too deep".to_owned());
            }
            let inner = self.any()?;
            self.depth -= 1;
            return if self.take(")") { Ok(inner) } else { Err("a parenthesis is not closed".to_owned()) };
        }
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        if name.is_empty() {
            return Err(format!("{:?} is not understood", self.rest));
        }
        self.rest = rest;
        let values = self.values().ok_or_else(|| format!("{name} has no list of values, as {name}(`value`)"))?;
        if name.eq_ignore_ascii_case("Host") {
            let is_plain = |value: &String| host(value).filter(|host| !host.contains('*'));
            let hosts = values.iter().map(is_plain).collect::<Option<Vec<_>>>();
            let hosts = hosts.ok_or_else(|| format!("Host({}) is no host", values.join(", ")))?;
            return Ok(vec![Alternative { hosts, prefixes: Vec::new() }]);
        }
        if name.eq_ignore_ascii_case("PathPrefix") {
            let prefixes = values.iter().map(|value| characters(value)).collect::<Option<Vec<_>>>();
            let prefixes = prefixes.ok_or_else(|| format!("PathPrefix({}) is no path", values.join(", ")))?;
            return Ok(vec![Alternative { hosts: Vec::new(), prefixes }]);
        }
        Err(format!("{name} is not carried out: there are Host and PathPrefix, with && and ||"))
    }

    /// ``(`a`, `b`)``, with either kind of quotes.
    fn values(&mut self) -> Option<Vec<String>> {
        if !self.take("(") {
            return None;
        }
        let mut values = Vec::new();
        loop {
            let quote = self.rest.chars().next().filter(|c| matches!(c, '`' | '"' | '\''))?;
            let (value, rest) = self.rest[1..].split_once(quote)?;
            values.push(value.trim().to_owned());
            self.rest = rest;
            if self.take(")") {
                return Some(values);
            }
            if !self.take(",") {
                return None;
            }
        }
    }
}

/// Both conditions.
fn both(a: &Alternative, b: &Alternative) -> Result<Alternative, String> {
    fn one_of<T: Clone>(a: &[T], b: &[T], what: &str) -> Result<Vec<T>, String> {
        match (a, b) {
            ([], other) | (other, []) => Ok(other.to_vec()),
            _ => Err(format!("it asks for {what} twice in one alternative")),
        }
    }
    Ok(Alternative { hosts: one_of(&a.hosts, &b.hosts, "a host")?, prefixes: one_of(&a.prefixes, &b.prefixes, "a path")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(rule: &str) -> Result<Vec<String>, String> {
        let prefix = |(prefix, end): &(String, PrefixEnd)| match end {
            PrefixEnd::Segment => prefix.clone(),
            PrefixEnd::Anything => format!("{prefix}…"),
            PrefixEnd::Slash => format!("{prefix}/…"),
        };
        let prefixes = |one: &Alternative| one.prefixes.iter().map(prefix).collect::<Vec<_>>().join(",");
        let line = |one: Alternative| format!("{}|{}", one.hosts.join(","), prefixes(&one));
        parse(rule).map(|all| all.into_iter().map(line).collect())
    }

    #[test]
    fn rules_become_alternatives() {
        for (rule, expected) in [
            ("Host(`Shop.example.com`)", &["shop.example.com|"][..]),
            ("host(`a.b`, \"c.d\")", &["a.b,c.d|"]),
            ("PathPrefix(`/api/`)", &["|/api/…"]),
            ("PathPrefix(`/`)", &["|/"]),
            ("Host(`a.b`) && PathPrefix(`/x`,`/y`)", &["a.b|/x…,/y…"]),
            ("Host(`a.b`)||Host(`c.d`)&&PathPrefix(`/x`)", &["a.b|", "c.d|/x…"]),
            (
                "(Host(`a.b`) || Host(`c.d`)) && (PathPrefix(`/x`) || PathPrefix(`/y`))",
                &["a.b|/x…", "a.b|/y…", "c.d|/x…", "c.d|/y…"],
            ),
        ] {
            assert_eq!(
                shown(rule).as_deref(),
                Ok(&expected.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>()[..]),
                "{rule}"
            );
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (rule, expected) in [
            ("", "not understood"),
            ("Host(`a.b`", "list of values"),
            ("Host(a.b)", "list of values"),
            ("Host(`a b`)", "no host"),
            ("Host(`*.a.b`)", "no host"),
            ("HostRegexp(`.+`)", "HostRegexp is not carried out"),
            ("Path(`/x`)", "Path is not carried out"),
            ("!Host(`a.b`)", "not understood"),
            ("Host(`a.b`) Host(`c.d`)", "not understood"),
            ("Host(`a.b`) && Host(`c.d`)", "a host twice"),
            ("(Host(`a.b`)", "not closed"),
            ("PathPrefix(`x`)", "no path"),
            ("PathPrefix(`/a%20b`)", "no path"),
            ("Headers(`a`, `b`)", "Headers is not carried out"),
        ] {
            let why = shown(rule).unwrap_err();
            assert!(why.contains(expected), "{rule}: {why}");
        }
        assert!(shown(&"(".repeat(100_000)).is_err());
        let many = (0..100).map(|n| format!("Host(`h{n}`)")).collect::<Vec<_>>().join("||");
        assert!(shown(&many).unwrap_err().contains("64 alternatives"));
        let product = vec!["(Host(`a`)||PathPrefix(`/x`))"; 30].join("&&");
        assert!(shown(&product).is_err());
    }
}
