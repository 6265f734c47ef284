//! Drift repair: whatever another process does to a map, a program or a device, the next reconciliation repairs it and counts
//! the repair.

use super::*;
use std::collections::{BTreeMap, BTreeSet};
use std::mem::offset_of;

type Bytes = Vec<u8>;
type Tables = BTreeMap<String, BTreeMap<Bytes, Bytes>>;

/// Maps that are sets of keys: their values mean nothing.
const SETS: [&str; 4] = ["LOCALS", "SOURCES", "TARGETS", "UPLINKS"];

/// Settings with a reconciliation so often that a test does not wait long.
const OFTEN: &str = "ebpf_datapath = \"auto\"\n[timeouts]\nreconcile_ms = 200\n";

/// Entries of the maps that the daemon writes. Those that programs write change at any time.
fn tables(host: &Host) -> Tables {
    let mut all = Tables::new();
    let slots = bpf::Map::open(host, "SLOTS");
    for entry in std::fs::read_dir(bpf::maps(host)).expect("maps") {
        let name = entry.expect("entry").file_name().into_string().expect("text");
        let map = bpf::Map::open(host, &name);
        // A program sets the flag in GATE, watchers write WATCH (a wrong value of it makes events, which are bounded), an
        // upgrade writes TAKEOVER (a wrong value of it means nothing after seconds), programs write the tables of connections
        // and their counts, which the daemon counts again from time to time.
        if ["SLOTS", "GATE", "WATCH", "TAKEOVER", "TCP_FLOWS", "TCP_REPLIES", "SOURCE_COUNTS"].contains(&name.as_str())
            || ![bpf::HASH, bpf::ARRAY, bpf::TRIE].contains(&map.kind)
        {
            continue;
        }
        let mut entries = map.entries();
        // No program reads their values.
        if SETS.contains(&name.as_str()) {
            entries.values_mut().for_each(Vec::clear);
        }
        // A range of slots is compared by its content, not by its position.
        if let Some((base, size)) = range_of(&name) {
            for value in entries.values_mut() {
                let (first, length) = (word(value, base), word(value, size));
                value[base..base + 4].fill(0);
                let mut blocks = BTreeMap::new();
                for slot in first..first.saturating_add(length.min(65_537)) {
                    let (key, at) = block_of(slot);
                    let block = blocks.entry(key).or_insert_with(|| slots.get(&key).unwrap_or_default());
                    value.extend(block.get(at..at + 4).unwrap_or_default());
                }
            }
        }
        all.insert(name, entries);
    }
    all
}

/// Offsets of the first slot and of the number of slots in the values of a map.
fn range_of(map: &str) -> Option<(usize, usize)> {
    match map {
        "VIPS" => Some((offset_of!(skep_ebpf::Vip, base), offset_of!(skep_ebpf::Vip, size))),
        "PORTS" => Some((offset_of!(skep_ebpf::Frontend, base), offset_of!(skep_ebpf::Frontend, size))),
        _ => None,
    }
}

/// The block that a slot is in, and the position of its four bytes there.
fn block_of(slot: u32) -> ([u8; 4], usize) {
    let size = skep_ebpf::SLOTS_PER_BLOCK;
    ((slot / size).to_ne_bytes(), (slot % size) as usize * 4)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

/// Tables and links before any damage.
struct Baseline {
    tables: Tables,
    links: BTreeSet<String>,
}

impl Baseline {
    fn of(host: &Host) -> Self {
        Self { tables: tables(host), links: bpf::links(host) }
    }

    /// Waits until the host has the same tables and links.
    async fn wait_for(&self, host: &Host, damage: &str) {
        within(20, &format!("{damage}: to be repaired"), || async {
            let links = bpf::links(host);
            anyhow::ensure!(links == self.links, "{:?}", links.symmetric_difference(&self.links).collect::<Vec<_>>());
            let tables = tables(host);
            for (name, entries) in &self.tables {
                anyhow::ensure!(tables.get(name) == Some(entries), "{name}: {entries:?} became {:?}", tables.get(name));
            }
            let detached: Vec<&String> = links.iter().filter(|pin| !bpf::attached(host, pin)).collect();
            anyhow::ensure!(detached.is_empty(), "not attached: {detached:?}");
            Ok(())
        })
        .await;
    }
}

/// Two nodes with a published port and a virtual address, and a client of each.
struct RepairFixture {
    swarm: Swarm,
    client: Host,
    caller: std::fs::File,
    vip: Ipv4Addr,
}

impl RepairFixture {
    async fn set_up(name: &str) -> Self {
        let swarm = swarm(name, 2, OFTEN).await;
        let client = client(&swarm).await;
        ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": "back", "Driver": "overlay" })).await);
        let on = json!({ "Networks": [{ "Target": "back" }] });
        swarm.service("web", 2, Some(8080), on.clone()).await;
        swarm.service("caller", 2, None, on).await;
        swarm.running("web", 2).await;
        let here = swarm.node_id(&swarm.hosts[0]).await;
        let callers = swarm.running("caller", 2).await;
        let caller = callers.iter().find(|task| task["NodeID"] == json!(here)).expect("one on each node");
        let caller = of_task(&swarm, caller).await;
        serves(&swarm.hosts, &["8080/tcp"]).await;
        let vip = vip(&swarm, "web").await;
        let fixture = Self { swarm, client, caller, vip };
        fixture.expect_answers().await;
        fixture
    }

    /// Waits until port and virtual address are answered by both backends.
    async fn expect_answers(&self) {
        let host = &self.swarm.hosts[0];
        let targets = [
            Target::new(&of_host(&self.client), (host.address(), 8080).into(), "port"),
            Target::new(&self.caller, (self.vip, 80).into(), "virtual address"),
        ];
        for Target { from, to, label } in targets {
            within(20, &format!("{label} to be answered by both"), || async {
                let requests = move || (0..16).map(|_| request(to)).collect::<anyhow::Result<BTreeSet<String>>>();
                let servers = inside(from.try_clone()?, requests).await?;
                anyhow::ensure!(servers.len() == 2, "{servers:?}");
                Ok(())
            })
            .await;
        }
    }

    async fn stop(self) {
        self.client.stop().await;
        self.swarm.stop().await;
    }
}

/// Damages, waits until it is repaired, checks that it was counted.
async fn expect_repair(fixture: &RepairFixture, baseline: &Baseline, what: &str, damage: impl FnOnce()) {
    let host = &fixture.swarm.hosts[0];
    let before = repaired(host).await;
    damage();
    baseline.wait_for(host, what).await;
    within(10, &format!("{what} to be counted"), || async {
        let now = repaired(host).await;
        anyhow::ensure!(now > before, "{before} before, {now} now");
        Ok(())
    })
    .await;
    eprintln!("repaired: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_damaged_entry_of_every_map_is_repaired_and_counted() {
    let fixture = RepairFixture::set_up("km").await;
    let host = &fixture.swarm.hosts[0];
    let baseline = Baseline::of(host);
    for name in ["VIPS", "MEMBERS", "PORTS", "BACKENDS", "TARGETS", "LOCALS", "UPLINKS", "SOURCES", "CONFIG"] {
        assert!(baseline.tables.get(name).is_some_and(|entries| !entries.is_empty()), "{name} has something to damage");
    }
    for (name, entries) in &baseline.tables {
        let map = bpf::Map::open(host, name);
        let Some((key, _)) = entries.first_key_value() else { continue };
        let value = map.get(key).expect("an entry");
        if !SETS.contains(&name.as_str()) {
            let flipped: Bytes = value.iter().map(|byte| !byte).collect();
            expect_repair(&fixture, &baseline, &format!("a value of {name} changed"), || map.set(key, &flipped)).await;
        }
        if let Some((_, size)) = range_of(name) {
            let mut endless = map.get(key).expect("an entry");
            endless[size..size + 4].fill(0xff);
            expect_repair(&fixture, &baseline, &format!("an entry of {name} with endless slots"), || map.set(key, &endless))
                .await;
        }
        if map.kind != bpf::ARRAY {
            expect_repair(&fixture, &baseline, &format!("an entry of {name} deleted"), || map.delete(key)).await;
            let (key, value) = map.garbage();
            expect_repair(&fixture, &baseline, &format!("garbage in {name}"), || map.set(&key, &value)).await;
        }
        if let Some((base, size)) = range_of(name) {
            let position = || {
                let entries = map.entries();
                block_of(word(entries.values().find(|value| word(value, size) > 0).expect("one with backends"), base))
            };
            let slots = bpf::Map::open(host, "SLOTS");
            let (key, at) = position();
            let mut flipped = slots.get(&key).expect("a block");
            flipped[at..at + 4].iter_mut().for_each(|byte| *byte = !*byte);
            expect_repair(&fixture, &baseline, &format!("a slot of {name} changed"), || slots.set(&key, &flipped)).await;
            // The repair has written the table elsewhere.
            let (key, _) = position();
            expect_repair(&fixture, &baseline, &format!("the block of a slot of {name} deleted"), || slots.delete(&key)).await;
        }
        fixture.expect_answers().await;
    }
    let metrics = skep::http::UnixClient::new(host.run_dir().join("admin.sock")).get("/metrics").await.expect("answers");
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    let line = metrics.lines().find(|line| line.starts_with("skep_ebpf_repairs_total ")).expect("shown");
    assert_eq!(line, format!("skep_ebpf_repairs_total {}", repaired(host).await));
    assert_eq!(
        repaired(&fixture.swarm.hosts[1]).await,
        0,
        "the other node was not damaged\n{}",
        fixture.swarm.hosts[1].log_tail()
    );
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_removed_program_is_attached_again_and_counted() {
    let fixture = RepairFixture::set_up("kl").await;
    let host = &fixture.swarm.hosts[0];
    let baseline = Baseline::of(host);
    let hooks: BTreeSet<&str> = baseline.links.iter().filter_map(|pin| pin.split('@').next()).collect();
    assert_eq!(hooks.len(), skep::datapath::ebpf::Hook::ALL.len(), "every hook is attached: {hooks:?}");
    for pin in &baseline.links {
        let path = bpf::pins(host).join("links").join(pin);
        expect_repair(&fixture, &baseline, &format!("pin {pin} removed"), || std::fs::remove_file(path).expect("removed")).await;
        expect_repair(&fixture, &baseline, &format!("{pin} detached"), || bpf::detach(host, pin)).await;
    }
    fixture.expect_answers().await;
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replaced_devices_get_programs_again() {
    let fixture = RepairFixture::set_up("kw").await;
    let host = &fixture.swarm.hosts[0];
    let attached = async |device: &str| {
        within(30, &format!("programs on a new {device}"), || async {
            let shown = host.run(&format!("ip -o link show {device}")).await?;
            let index = shown.split(':').next().unwrap_or_default();
            let (links, end) = (bpf::links(host), format!("@{device}@{index}"));
            let pin = links.iter().find(|pin| pin.ends_with(&end));
            let pin = pin.ok_or_else(|| anyhow::anyhow!("none at {end}: {links:?}"))?;
            anyhow::ensure!(bpf::attached(host, pin), "{pin} is not attached");
            let old: Vec<&String> =
                links.iter().filter(|pin| pin.contains(&format!("@{device}@")) && !pin.ends_with(&end)).collect();
            anyhow::ensure!(old.is_empty(), "pins of the old device stay: {old:?}");
            Ok(())
        })
        .await;
    };
    let before = repaired(host).await;
    host.run("ip link del skeph").await.expect("deleted");
    attached("skeph").await;
    fixture.expect_answers().await;
    assert!(repaired(host).await > before, "the repair was counted");

    fixture.swarm.lab.rewire(host).await.expect("another veth pair");
    attached("eth0").await;
    // The new device has another MAC address, which a network card would announce.
    fixture.client.run("ip neigh flush all").await.expect("flushed");
    fixture.expect_answers().await;
    fixture.stop().await;
}
