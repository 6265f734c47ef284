//! The filters and the bounds in time of `GET /events`, for events of the swarm; the engine applies them to its own.

use super::change::SwarmEvent;
use crate::api::query::{Filters, RequestQuery};
use crate::model::Timestamp;

/// Filters that name objects of one kind, by id or name or a beginning of one.
const KINDS: [&str; 10] = ["config", "container", "daemon", "image", "network", "node", "plugin", "secret", "service", "volume"];

/// What a client wants to see.
#[derive(Debug)]
pub struct EventFilter {
    filters: Filters,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
}

impl EventFilter {
    /// Of a request. Filters that cannot be read select all, because the engine refuses them before.
    pub fn of(query: &RequestQuery) -> Self {
        let filters = query.any_filters().unwrap_or_default();
        Self { filters, since: Timestamp::of_seconds(query.get("since")), until: Timestamp::of_seconds(query.get("until")) }
    }

    /// Whether an event that was kept is to be replayed: only on request.
    pub fn replays(&self, event: &SwarmEvent) -> bool {
        let is_requested = self.since.is_some_and(|since| event.at >= since) || (self.since.is_none() && self.until.is_some());
        is_requested && self.passes(event)
    }

    /// Whether a new event is to be sent.
    pub fn passes(&self, event: &SwarmEvent) -> bool {
        let name = event.attributes.get("name").map_or("", String::as_str);
        let names = |value: &str| event.id.starts_with(value) || name.starts_with(value);
        self.until.is_none_or(|until| event.at <= until)
            && self.filters.any("scope", |v| v == "swarm")
            && self.filters.any("type", |v| v == event.kind)
            && self.filters.any("event", |v| v == event.action)
            && self.filters.labels("label", &event.attributes)
            && KINDS.iter().all(|kind| self.filters.any(kind, |v| *kind == event.kind && names(v)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &'static str, action: &'static str, id: &str, name: &str, seconds: i64) -> SwarmEvent {
        let attributes = [("name".to_owned(), name.to_owned())].into();
        SwarmEvent { kind, action, id: id.to_owned(), attributes, at: Timestamp(seconds * 1_000_000_000) }
    }

    #[test]
    fn filters_are_applied_as_the_real_server_does() {
        let web = event("service", "update", "ms35vw9e", "web", 100);
        for (filters, expected) in [
            ("{}", true),
            (r#"{"scope":{"swarm":true}}"#, true),
            (r#"{"scope":{"local":true}}"#, false),
            (r#"{"type":["node","service"],"event":["update"]}"#, true),
            (r#"{"event":["create"]}"#, false),
            (r#"{"service":["we"]}"#, true),
            (r#"{"service":["ms35"]}"#, true),
            (r#"{"service":["other"]}"#, false),
            (r#"{"node":["web"]}"#, false),
            (r#"{"container":["web"]}"#, false),
            (r#"{"nosuch":["1"]}"#, true),
            (r#"{"label":["a=b"]}"#, false),
        ] {
            let query = RequestQuery::parse(&format!("filters={filters}"));
            assert_eq!(EventFilter::of(&query).passes(&web), expected, "{filters}");
        }
    }

    #[test]
    fn an_object_is_named_by_its_id_its_name_or_a_beginning_of_one_and_an_unknown_scope_has_no_events() {
        let secret = event("secret", "create", "k6bl1qyhw7yzjwqx", "password", 100);
        let passes = |filters: &str, event: &SwarmEvent| {
            EventFilter::of(&RequestQuery::parse(&format!("filters={filters}"))).passes(event)
        };
        for named in ["k6bl1qyhw7yzjwqx", "k6bl1", "password", "pass"] {
            assert!(passes(&format!(r#"{{"secret":["{named}"]}}"#), &secret), "{named}");
            assert!(!passes(&format!(r#"{{"config":["{named}"]}}"#), &secret), "{named}");
        }
        assert!(!passes(r#"{"secret":["password2"]}"#, &secret) && !passes(r#"{"scope":["nosuch"]}"#, &secret));
        let node = event("node", "update", "q3id", "q3", 100);
        let service = event("service", "update", "xyz", "q3web", 100);
        assert!(passes(r#"{"node":["q3"]}"#, &node) && !passes(r#"{"node":["q3"]}"#, &service), "only the node's own");
    }

    #[test]
    fn a_replay_is_bounded_in_time() {
        let at = |seconds| event("service", "update", "x", "web", seconds);
        for (query, seconds, expected) in [
            ("", 100, false),
            ("since=100", 100, true),
            ("since=100.000000001", 100, false),
            ("since=99.9", 100, true),
            ("since=50&until=99", 100, false),
            ("until=100.0", 100, true),
            ("since=nonsense", 100, false),
        ] {
            assert_eq!(EventFilter::of(&RequestQuery::parse(query)).replays(&at(seconds)), expected, "{query}");
        }
    }
}
