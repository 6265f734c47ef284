//! `skep trace`: what the eBPF hooks of this node would do with a packet.

use super::target::DaemonTarget;
use crate::admin::{TraceQuery, TraceReport, TracedBackend, TracedHook};
use std::fmt::Write as _;

/// Shows what each eBPF hook of this node would do with a packet, and why. Nothing is sent.
///
/// The daemon runs the programs themselves (BPF_PROG_TEST_RUN), in a copy that reads the live tables and writes its own, so
/// flows, counters and metrics stay as they are. The packet is followed from hook to hook until it leaves this node, reaches a
/// container or is dropped; with --reply the answer too. Hooks at socket calls cannot be run: for a container that calls a
/// virtual address the table is shown, and what happens to a packet that no socket call has translated.
///
/// NODE is `self` or the name of this node: run the command on the node that is to be traced. PROTO is tcp, udp or icmp. SRC
/// decides where the packet comes in: a container of this node by its veth, this host's own address at the uplink, all others
/// by the uplink. The ports of SRC are 40000 if not given.
///
/// Each step shows: hook, device, what came in, the verdict and where it leads; then, where there is one, the packet as the
/// program left it, the counters that it raised, the map entries that it would make.
///
/// Exit code: 0 if the packet is delivered, sent or passed on; 1 if it is dropped or refused.
///
/// Examples:
///   skep trace --reply tcp 203.0.113.9 192.0.2.1:8080           does this client reach port 8080, and the answer the client?
///   skep trace udp 10.0.1.5 10.0.1.2:53 --in web.1.abc --json   what a container's datagram to a virtual address becomes
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment, override_usage = "skep trace [OPTIONS] [NODE] PROTO SRC[:PORT] DST[:PORT]")]
pub(super) struct TraceArgs {
    #[command(flatten)]
    target: DaemonTarget,
    /// Protocol, source and destination of the packet, with the node in front if it is named
    #[arg(required = true, num_args = 3..=4, value_name = "PACKET")]
    packet: Vec<String>,
    /// TCP flags: syn (if none is given), ack, fin or rst, several with commas
    #[arg(long, value_name = "FLAGS", default_value = "", hide_default_value = true)]
    flags: String,
    /// Device that the packet arrives by: an uplink, the mesh end of a container's veth, or the container's name
    #[arg(long = "in", value_name = "DEVICE", default_value = "", hide_default_value = true)]
    device: String,
    /// The packet comes through the tunnel from this node: a client's, whose entry node it is, or a container's
    #[arg(long, value_name = "NODE", default_value = "", hide_default_value = true)]
    from_node: String,
    /// Bytes of the packet, with its IP header; as many as its headers take if not given
    #[arg(long, value_name = "BYTES", default_value_t = 0, hide_default_value = true)]
    length: u16,
    /// Follow the answer too
    #[arg(long)]
    reply: bool,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: TraceArgs) -> anyhow::Result<()> {
    let reply = args.target.admin().get(&format!("/trace?{}", args.query().query())).await?;
    let report: TraceReport = reply.json()?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", render(&report));
    }
    anyhow::ensure!(!report.outcome.result.is_end(), "{}", report.outcome.text);
    Ok(())
}

impl TraceArgs {
    fn query(&self) -> TraceQuery {
        let (node, packet) = match &self.packet[..] {
            [node, packet @ ..] if packet.len() == 3 => (node.clone(), packet),
            packet => (String::new(), packet),
        };
        let word = |at: usize| packet.get(at).cloned().unwrap_or_default();
        TraceQuery {
            node,
            protocol: word(0),
            source: word(1),
            destination: word(2),
            flags: self.flags.clone(),
            device: self.device.clone(),
            from_node: self.from_node.clone(),
            length: self.length,
            reply: self.reply,
        }
    }
}

/// A trace as text.
fn render(report: &TraceReport) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{} on node {}\n", report.packet, report.node);
    if let Some(table) = &report.table {
        let service = if table.service.is_empty() { "a service that is gone" } else { &table.service };
        let _ = writeln!(out, "{}: {} is the virtual address of {service}", table.hook, table.address);
        let _ = writeln!(out, "   ({})", table.note);
        for backend in &table.backends {
            let _ = writeln!(out, "   {}", backend_text(backend));
        }
        let _ = writeln!(out);
    }
    let width = |of: fn(&TracedHook) -> &str| report.steps.iter().map(|step| of(step).len()).max().unwrap_or_default();
    let (hooks, devices) = (width(|step| &step.hook), width(|step| &step.device));
    for (number, step) in (1..).zip(&report.steps) {
        if step.reply && report.steps.get(number - 2).is_some_and(|before| !before.reply) {
            let _ = writeln!(out, "the answer:");
        }
        let _ = writeln!(out, "{number}  {:<hooks$}  {:<devices$}  {}", step.hook, step.device, step.packet);
        let mut line = |name: &str, text: &str| {
            let _ = writeln!(out, "   {:<hooks$}  {name:<devices$}  {text}", "");
        };
        let why = step.reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"));
        line("→", &format!("{}{why}: {}", step.verdict, step.next));
        if let Some(rewritten) = &step.rewritten {
            line("as", rewritten);
        }
        for counter in &step.counters {
            line("+1", &format!("{}: {}", counter.name, counter.meaning));
        }
        for entry in &step.entries {
            line("new", &format!("{} {}", entry.map, entry.entry));
        }
    }
    if let Some(why) = &report.no_reply {
        let _ = writeln!(out, "the answer: {why}");
    }
    let _ = writeln!(out, "\n{}", report.outcome.text);
    out
}

fn backend_text(backend: &TracedBackend) -> String {
    let place = if backend.container.is_empty() { String::new() } else { format!(" {} on {}", backend.container, backend.node) };
    format!("{}{place}, {} slots", backend.address, backend.slots)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{TraceOutcome, TraceResult, TracedCounter, TracedEntry};
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct TraceCommand {
        #[command(flatten)]
        args: TraceArgs,
    }

    fn parse(words: &str) -> Result<TraceQuery, clap::Error> {
        TraceCommand::try_parse_from(format!("trace {words}").split_whitespace()).map(|command| command.args.query())
    }

    #[test]
    fn the_node_may_be_left_out() {
        let with = parse("n1 tcp 192.0.2.9 192.0.2.1:80 --reply --in eth0").unwrap();
        assert_eq!((with.node.as_str(), with.protocol.as_str(), with.source.as_str()), ("n1", "tcp", "192.0.2.9"));
        assert_eq!((with.destination.as_str(), with.reply, with.device.as_str()), ("192.0.2.1:80", true, "eth0"));
        let without = parse("--flags syn,ack udp 192.0.2.9 192.0.2.1:80").unwrap();
        assert_eq!((without.node.as_str(), without.protocol.as_str(), without.flags.as_str()), ("", "udp", "syn,ack"));
        assert!(parse("tcp 192.0.2.9").is_err());
        assert!(parse("a b c d e").is_err());
    }

    #[test]
    fn a_trace_is_shown_step_by_step() {
        let step = |reply, hook: &str| TracedHook {
            reply,
            hook: hook.to_owned(),
            device: "eth0".to_owned(),
            packet: "tcp 1 > 2".to_owned(),
            verdict: "redirect_peer".to_owned(),
            next: "to from_host at skepm".to_owned(),
            reason: None,
            counters: vec![TracedCounter { name: "port_in".to_owned(), meaning: "Packets.".to_owned() }],
            rewritten: Some("tcp 1 > 3".to_owned()),
            entries: vec![TracedEntry { map: "SYN_FLOWS".to_owned(), entry: "tcp 1 to 2: 3".to_owned() }],
        };
        let report = TraceReport {
            node: "n1".to_owned(),
            packet: "tcp 1 > 2".to_owned(),
            table: None,
            steps: vec![step(false, "from_uplink"), step(true, "from_container")],
            no_reply: None,
            outcome: TraceOutcome { result: TraceResult::Sent, text: "the answer is sent".to_owned() },
        };
        let expected = "\
tcp 1 > 2 on node n1

1  from_uplink     eth0  tcp 1 > 2
                   →     redirect_peer: to from_host at skepm
                   as    tcp 1 > 3
                   +1    port_in: Packets.
                   new   SYN_FLOWS tcp 1 to 2: 3
the answer:
2  from_container  eth0  tcp 1 > 2
                   →     redirect_peer: to from_host at skepm
                   as    tcp 1 > 3
                   +1    port_in: Packets.
                   new   SYN_FLOWS tcp 1 to 2: 3

the answer is sent
";
        assert_eq!(render(&report), expected);
    }
}
