//! What the host's nftables rules (those that iptables-nft, ufw, firewalld write as well) do with a new connection to a port of the
//! host. Three-valued: what a rule's match depends on, and is not known here, may hold or not.

use serde_json::Value;

/// Depth of jumps between chains; deeper ones the kernel refuses.
const DEEPEST: usize = 16;

/// What becomes of a packet for a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Passage {
    Accepted,
    /// By rules on its source, its interface, a rate, or what is not understood here.
    Depends,
    Dropped {
        /// The base chain that does it, as `inet filter input`.
        chain: String,
    },
}

/// The protocol and port that a packet is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    pub udp: bool,
    pub port: u16,
}

/// Follows a new IPv4 connection from another host through the ruleset, as `nft -j list ruleset` prints it.
///
/// # Errors
/// It is not such a document.
pub fn passage(ruleset: &Value, target: Target) -> Result<Passage, String> {
    let objects = ruleset["nftables"].as_array().ok_or("no list `nftables`")?;
    let base = |object: &&Value| {
        let chain = &object["chain"];
        chain["hook"] == "input" && chain["type"] == "filter" && (chain["family"] == "ip" || chain["family"] == "inet")
    };
    let mut depends = false;
    for object in objects.iter().filter(base) {
        let chain = Chain::of(&object["chain"]);
        let mut fate = chain.follow(objects, target, 0);
        if fate.goes_on {
            if object["chain"]["policy"] == "drop" { fate.dropped = true } else { fate.accepted = true }
        }
        if !fate.accepted {
            return Ok(Passage::Dropped { chain: chain.to_string() });
        }
        depends |= fate.dropped;
    }
    Ok(if depends { Passage::Depends } else { Passage::Accepted })
}

/// What may become of the packet.
#[derive(Clone, Copy, Default)]
struct Fate {
    accepted: bool,
    dropped: bool,
    goes_on: bool,
}

/// Whether an expression holds for the packet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    Yes,
    No,
    Maybe,
}

impl Holds {
    fn of(known: bool) -> Self {
        if known { Self::Yes } else { Self::No }
    }
    fn not(self) -> Self {
        match self {
            Self::Yes => Self::No,
            Self::No => Self::Yes,
            Self::Maybe => Self::Maybe,
        }
    }
}

/// What a rule does with a packet that it matches.
enum RuleVerdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
    /// Something that may accept, drop or go on.
    Unknown,
}

#[derive(Clone, Copy)]
struct Chain<'a> {
    family: &'a str,
    table: &'a str,
    name: &'a str,
}

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.name)
    }
}

impl<'a> Chain<'a> {
    fn of(chain: &'a Value) -> Self {
        let text = |key: &str| chain[key].as_str().unwrap_or_default();
        Self { family: text("family"), table: text("table"), name: text("name") }
    }

    fn follow(self, objects: &'a [Value], target: Target, depth: usize) -> Fate {
        let mut fate = Fate { goes_on: true, ..Fate::default() };
        let mut returns = false;
        let ours = |rule: &&Value| rule["family"] == self.family && rule["table"] == self.table && rule["chain"] == self.name;
        for rule in objects.iter().map(|object| &object["rule"]).filter(ours) {
            let (holds, verdict) = read(rule, target);
            let Some(verdict) = verdict.filter(|_| holds != Holds::No) else { continue };
            let then = match verdict {
                RuleVerdict::Accept => Fate { accepted: true, ..Fate::default() },
                RuleVerdict::Drop => Fate { dropped: true, ..Fate::default() },
                RuleVerdict::Unknown => Fate { accepted: true, dropped: true, goes_on: true },
                RuleVerdict::Return => {
                    returns = true;
                    Fate::default()
                }
                RuleVerdict::Jump(_) | RuleVerdict::Goto(_) if depth >= DEEPEST => {
                    Fate { accepted: true, dropped: true, goes_on: true }
                }
                RuleVerdict::Jump(ref name) => Chain { name, ..self }.follow_owned(objects, target, depth + 1),
                RuleVerdict::Goto(ref name) => {
                    let mut then = Chain { name, ..self }.follow_owned(objects, target, depth + 1);
                    returns |= then.goes_on;
                    then.goes_on = false;
                    then
                }
            };
            fate.accepted |= then.accepted;
            fate.dropped |= then.dropped;
            fate.goes_on = then.goes_on || holds == Holds::Maybe;
            if !fate.goes_on {
                break;
            }
        }
        fate.goes_on |= returns;
        fate
    }

    /// The same for a chain whose name a rule holds.
    fn follow_owned(self, objects: &[Value], target: Target, depth: usize) -> Fate {
        Chain { family: self.family, table: self.table, name: self.name }.follow(objects, target, depth)
    }
}

/// Whether all expressions of a rule hold, and its verdict.
fn read(rule: &Value, target: Target) -> (Holds, Option<RuleVerdict>) {
    let mut holds = Holds::Yes;
    let mut verdict = None;
    // iptables' conntrack match comes without its states. Without a port it is the rule for what is established.
    let (mut by_state, mut by_port) = (false, false);
    for expression in rule["expr"].as_array().into_iter().flatten() {
        let Some((kind, body)) = expression.as_object().and_then(|object| object.iter().next()) else { continue };
        let name = || body["target"].as_str().unwrap_or_default().to_owned();
        let this = match kind.as_str() {
            "match" => {
                by_port |= body["left"]["payload"]["field"] == "dport";
                matches(body, target)
            }
            "accept" => {
                verdict = Some(RuleVerdict::Accept);
                Holds::Yes
            }
            "drop" | "reject" => {
                verdict = Some(RuleVerdict::Drop);
                Holds::Yes
            }
            "return" => {
                verdict = Some(RuleVerdict::Return);
                Holds::Yes
            }
            "jump" => {
                verdict = Some(RuleVerdict::Jump(name()));
                Holds::Yes
            }
            "goto" => {
                verdict = Some(RuleVerdict::Goto(name()));
                Holds::Yes
            }
            "vmap" | "queue" => {
                verdict = Some(RuleVerdict::Unknown);
                Holds::Yes
            }
            "counter" | "log" | "comment" | "mangle" => Holds::Yes,
            "xt" if body["name"] == "comment" || body["name"] == "LOG" => Holds::Yes,
            "xt" if body["name"] == "REJECT" => {
                verdict = Some(RuleVerdict::Drop);
                Holds::Yes
            }
            "xt" => {
                by_state |= body["name"] == "conntrack" || body["name"] == "state";
                by_port |= body["name"] == "multiport";
                Holds::Maybe
            }
            _ => Holds::Maybe,
        };
        holds = match (holds, this) {
            (Holds::No, _) | (_, Holds::No) => Holds::No,
            (Holds::Yes, Holds::Yes) => Holds::Yes,
            _ => Holds::Maybe,
        };
    }
    if by_state && !by_port && matches!(verdict, Some(RuleVerdict::Accept)) {
        holds = Holds::No;
    }
    (holds, verdict)
}

fn matches(body: &Value, target: Target) -> Holds {
    let (left, right) = (&body["left"], &body["right"]);
    let (own, other) = if target.udp { ("udp", "tcp") } else { ("tcp", "udp") };
    let payload = |key: &str| left["payload"][key].as_str().unwrap_or_default();
    let meta = left["meta"]["key"].as_str().unwrap_or_default();
    let equal = match (payload("protocol"), payload("field"), meta, left["ct"]["key"].as_str().unwrap_or_default()) {
        (protocol, ..) if protocol == other || protocol.starts_with("icmp") || protocol == "ip6" => return Holds::No,
        (protocol, "dport", ..) if protocol == own || protocol == "th" => holds_number(right, u64::from(target.port)),
        ("ip", "protocol", ..) | (_, _, "l4proto", _) => holds_name(right, own, if target.udp { 17 } else { 6 }),
        (_, _, "nfproto", _) => holds_name(right, "ipv4", 2),
        (_, _, "pkttype", _) => holds_name(right, "host", 0),
        (_, _, "iif" | "iifname", _) if right == "lo" => Holds::No,
        (.., "state") => holds_name(right, "new", 8),
        _ => Holds::Maybe,
    };
    if body["op"] == "!=" { equal.not() } else { equal }
}

/// Whether a number is equal to the right side, within its range, or in its set.
fn holds_number(right: &Value, number: u64) -> Holds {
    if let Some(set) = right["set"].as_array().or_else(|| right.as_array()) {
        return any(set.iter().map(|element| holds_number(element, number)));
    }
    if let Some([low, high]) = right["range"].as_array().map(Vec::as_slice) {
        return match (low.as_u64(), high.as_u64()) {
            (Some(low), Some(high)) => Holds::of((low..=high).contains(&number)),
            _ => Holds::Maybe,
        };
    }
    match right["elem"]["val"].as_u64().or_else(|| right.as_u64()) {
        Some(value) => Holds::of(value == number),
        None => Holds::Maybe,
    }
}

/// Whether a name, or its number, is equal to the right side or in its set.
fn holds_name(right: &Value, name: &str, number: u64) -> Holds {
    if let Some(set) = right["set"].as_array().or_else(|| right.as_array()) {
        return any(set.iter().map(|element| holds_name(element, name, number)));
    }
    match (right.as_str(), right.as_u64()) {
        (Some(text), _) if text.starts_with('@') => Holds::Maybe,
        (Some(text), _) => Holds::of(text == name),
        (_, Some(value)) => Holds::of(value == number),
        _ => Holds::Maybe,
    }
}

fn any(elements: impl Iterator<Item = Holds>) -> Holds {
    elements.fold(Holds::No, |all, one| match (all, one) {
        (Holds::Yes, _) | (_, Holds::Yes) => Holds::Yes,
        (Holds::No, Holds::No) => Holds::No,
        _ => Holds::Maybe,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TCP: Target = Target { udp: false, port: 2377 };
    const UDP: Target = Target { udp: true, port: 2377 };

    fn chain(name: &str, policy: Option<&str>) -> Value {
        let mut chain = json!({"family": "inet", "table": "filter", "name": name});
        if let Some(policy) = policy {
            for (key, value) in [("type", "filter"), ("hook", "input"), ("policy", policy)] {
                chain[key] = json!(value);
            }
        }
        json!({"chain": chain})
    }
    fn rule(chain: &str, expressions: impl Into<Value>) -> Value {
        let expressions: Value = expressions.into();
        json!({"rule": {"family": "inet", "table": "filter", "chain": chain, "expr": expressions}})
    }
    fn is(left: impl Into<Value>, right: impl Into<Value>) -> Value {
        let (left, right): (Value, Value) = (left.into(), right.into());
        json!({"match": {"op": "==", "left": left, "right": right}})
    }
    fn dport(protocol: &str, right: Value) -> Value {
        is(json!({"payload": {"protocol": protocol, "field": "dport"}}), right)
    }
    fn of(objects: &[Value]) -> [Passage; 2] {
        let ruleset = json!({"nftables": objects});
        [TCP, UDP].map(|target| passage(&ruleset, target).unwrap())
    }
    fn dropped() -> Passage {
        Passage::Dropped { chain: "inet filter input".to_owned() }
    }

    #[test]
    fn without_a_chain_or_with_an_accepting_policy_packets_pass() {
        assert_eq!(of(&[]), [Passage::Accepted, Passage::Accepted]);
        assert_eq!(of(&[chain("input", Some("accept"))]), [Passage::Accepted, Passage::Accepted]);
    }

    #[test]
    fn a_dropping_policy_lets_in_what_a_rule_accepts_for_all() {
        let accepted = |right| {
            of(&[
                chain("input", Some("drop")),
                rule("input", json!([is(json!({"ct": {"key": "state"}}), json!(["established", "related"])), {"accept": null}])),
                rule("input", json!([is(json!({"meta": {"key": "iifname"}}), json!("lo")), {"accept": null}])),
                rule("input", json!([dport("tcp", right), {"counter": {"packets": 0, "bytes": 0}}, {"accept": null}])),
            ])
        };
        for right in
            [json!(2377), json!({"set": [22, 2377]}), json!({"set": [{"range": [2000, 3000]}]}), json!({"range": [1, 9999]})]
        {
            assert_eq!(accepted(right), [Passage::Accepted, dropped()]);
        }
        assert_eq!(accepted(json!({"set": [22, 80]})), [dropped(), dropped()]);
        assert_eq!(accepted(json!("@ports")), [Passage::Depends, dropped()], "a named set is not known here");
    }

    #[test]
    fn rules_on_sources_depend_and_later_drops_do_not_hide_them() {
        let from =
            is(json!({"payload": {"protocol": "ip", "field": "saddr"}}), json!({"prefix": {"addr": "10.1.0.0", "len": 16}}));
        let objects = [
            chain("input", Some("accept")),
            rule("input", json!([from, {"accept": null}])),
            rule("input", json!([is(json!({"meta": {"key": "l4proto"}}), json!({"set": ["tcp", "udp"]})), {"reject": null}])),
        ];
        assert_eq!(of(&objects), [Passage::Depends, Passage::Depends]);
        assert_eq!(of(&[chain("input", Some("accept")), objects[2].clone()]), [dropped(), dropped()]);
    }

    #[test]
    fn jumps_return_gotos_do_not_and_circles_end() {
        let objects = |kind: &str| {
            vec![
                chain("input", Some("drop")),
                chain("allowed", None),
                rule("allowed", json!([dport("th", json!(22)), {"accept": null}])),
                rule("input", json!([{kind: {"target": "allowed"}}])),
                rule("input", json!([dport("udp", json!(2377)), {"accept": null}])),
            ]
        };
        assert_eq!(of(&objects("jump")), [dropped(), Passage::Accepted]);
        assert_eq!(of(&objects("goto")), [dropped(), dropped()]);
        let circle = [chain("input", Some("drop")), rule("input", json!([{"jump": {"target": "input"}}]))];
        assert_eq!(of(&circle), [Passage::Depends, Passage::Depends]);
    }

    /// As iptables-nft 1.8.9 writes them: `-m conntrack --ctstate …`, `-m multiport --dports …`, `-m comment …`.
    #[test]
    fn extensions_of_iptables_are_known_by_name_only() {
        let xt = |kind: &str, name: &str| json!({"xt": {"type": kind, "name": name}});
        let objects = |rules: &[Value]| {
            let mut objects = vec![chain("input", Some("drop"))];
            objects.extend(rules.iter().map(|expressions| rule("input", expressions.clone())));
            of(&objects)
        };
        let established = json!([xt("match", "conntrack"), {"accept": null}]);
        assert_eq!(objects(std::slice::from_ref(&established)), [dropped(), dropped()]);
        let commented = json!([dport("tcp", json!(2377)), xt("match", "comment"), {"accept": null}]);
        assert_eq!(objects(&[established.clone(), commented]), [Passage::Accepted, dropped()]);
        let new = json!([dport("udp", json!(2377)), xt("match", "conntrack"), {"accept": null}]);
        assert_eq!(objects(&[established, new]), [dropped(), Passage::Depends]);
        let l4 = is(json!({"meta": {"key": "l4proto"}}), json!("udp"));
        assert_eq!(objects(&[json!([l4, xt("match", "multiport"), {"accept": null}])]), [dropped(), Passage::Depends]);
        assert_eq!(objects(&[json!([xt("target", "REJECT")])]), [dropped(), dropped()]);
    }

    #[test]
    fn every_base_chain_must_accept() {
        let mut second = chain("input", Some("drop"));
        second["chain"]["table"] = json!("other");
        assert_eq!(of(&[chain("input", Some("accept")), second])[0], Passage::Dropped { chain: "inet other input".to_owned() });
    }
}
