//! `skep drops`: follows what the eBPF datapath of this node drops or refuses.

use super::print::print_line;
use super::target::DaemonTarget;
use crate::admin::{DropEvent, DropFilter, DropLine};
use anyhow::Context as _;

/// Shows live what the eBPF datapath of this node drops or refuses: time, kernel program, reason, packet and service.
///
/// Nothing is recorded while no `skep drops` runs. At most some 1,000 events a second are shown; how many were not is shown
/// too. Totals, also of the time before, are in `/metrics` (skep_ebpf_drops_total, skep_ebpf_left_total).
///
/// A packet is shown as the program had it at the end: behind `from_uplink` a client's packet has its container's address.
///
/// Reasons: unknown_flow (an answer of a connection that is over), unknown_backend (its container is gone), forged_source (a
/// container used an address that is not its own), unexpected_packet, rewrite_failed, datagram_loop (two published UDP ports
/// would answer each other), vip_without_backend (the service has no running task). With --left also: source_not_allowed
/// (skep.allow), source_on_cluster_network, no_backend (no task listens on the port), header_options (IPv4 options or an IPv6
/// extension header).
///
/// Examples:
///   skep drops                                  all of it, until Ctrl-C
///   skep drops --service web --left             why clients do not reach web
///   skep drops --port 53                        one port, of either end
///   skep drops --reason forged_source --json    one reason, as JSON lines
///   skep drops --count 1 --port 8080            wait for the first one, then end
#[derive(clap::Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct DropsArgs {
    #[command(flatten)]
    target: DaemonTarget,
    /// Show also packets to published ports that are left to the host for a reason, as from sources that may not use the port
    #[arg(long)]
    left: bool,
    /// Only packets from or to this port
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Only packets of this service
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Only this reason, as the metrics name it
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    /// End after so many
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: DropsArgs) -> anyhow::Result<()> {
    let filter = DropFilter { left: args.left, port: args.port, service: args.service, reason: args.reason };
    let mut lines = args.target.admin().lines(&format!("/drops?{}", filter.query())).await?;
    if !args.json {
        print_line(&heading())?;
    }
    let mut shown = 0;
    while args.count.is_none_or(|count| shown < count)
        && let Some(line) = lines.next().await?
    {
        if line.is_empty() {
            continue;
        }
        let parsed: DropLine = serde_json::from_str(&line).with_context(|| format!("the daemon sent {line}"))?;
        shown += u64::from(matches!(parsed, DropLine::Event(_)));
        print_line(&if args.json { line } else { text(&parsed) })?;
    }
    Ok(())
}

fn row(cells: [&str; 9]) -> String {
    let [time, action, hook, reason, protocol, source, destination, device, service] = cells;
    let row = format!(
        "{time:<15} {action:<7} {hook:<14} {reason:<25} {protocol:<5} {source:<24} {destination:<24} {device:<12} {service}"
    );
    row.trim_end().to_owned()
}

fn heading() -> String {
    row(["TIME", "ACTION", "HOOK", "REASON", "PROTO", "FROM", "TO", "DEVICE", "SERVICE"])
}

fn text(line: &DropLine) -> String {
    match line {
        DropLine::Lost(events) => format!("… {} more are not shown", events.lost),
        DropLine::Event(event) => {
            let DropEvent { action, hook, reason, protocol, source, destination, device, service, .. } = &**event;
            // Of the time of the day what is of use while one looks: to the microsecond.
            let time = event.time.split_once('T').map_or(event.time.as_str(), |(_, time)| time.trim_end_matches('Z'));
            let time = time.get(..15).unwrap_or(time);
            let service = if service.is_empty() { "-" } else { service };
            row([time, action, hook, reason, protocol, source, destination, device, service])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::LostEvents;

    #[test]
    fn a_line_has_every_column_in_its_place() {
        let event = DropEvent {
            time: "2026-11-23T20:33:18.221420123Z".to_owned(),
            action: "dropped".to_owned(),
            hook: "from_uplink".to_owned(),
            reason: "datagram_loop".to_owned(),
            protocol: "udp".to_owned(),
            source: "192.0.2.2:8080".to_owned(),
            destination: "192.0.2.1:8080".to_owned(),
            device: "eth0".to_owned(),
            service: "web".to_owned(),
            ..DropEvent::default()
        };
        let line = text(&DropLine::Event(Box::new(event)));
        let words: Vec<&str> = line.split_whitespace().collect();
        let expected = "20:33:18.221420 dropped from_uplink datagram_loop udp 192.0.2.2:8080 192.0.2.1:8080 eth0 web";
        assert_eq!(words.join(" "), expected);
        assert_eq!(heading().find("REASON"), line.find("datagram_loop"));
        assert_eq!(text(&DropLine::Lost(LostEvents { lost: 3 })), "… 3 more are not shown");
    }
}
