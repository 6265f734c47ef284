//! Kernel state is proved, not hoped: whatever somebody does to a map, a program, a device, the next look mends it, and
//! says how often it had to.

use super::*;
use std::collections::{BTreeMap, BTreeSet};
use std::mem::offset_of;

type Bytes = Vec<u8>;
type Tables = BTreeMap<String, BTreeMap<Bytes, Bytes>>;

/// Maps that are sets of keys.
const SETS: [&str; 3] = ["LOCALS", "MEMBERS", "SOURCES"];

/// Looks so often that the test does not wait long.
const OFTEN: &str = "ebpf_datapath = \"auto\"\n[timeouts]\nreconcile_ms = 200\n";

/// What the daemon keeps, table by table. (What the programs themselves write comes and goes.)
fn tables(host: &Host) -> Tables {
    let mut all = Tables::new();
    let slots = bpf::Map::open(host, "SLOTS");
    for entry in std::fs::read_dir(bpf::maps(host)).expect("maps") {
        let name = entry.expect("entry").file_name().into_string().expect("text");
        let map = bpf::Map::open(host, &name);
        if ["SLOTS", "GATE"].contains(&name.as_str()) || ![bpf::HASH, bpf::ARRAY, bpf::TRIE].contains(&map.kind) {
            continue;
        }
        let mut entries = map.entries();
        // Nobody reads these: a key is there or it is not.
        if SETS.contains(&name.as_str()) {
            entries.values_mut().for_each(Vec::clear);
        }
        // A range of slots counts by what is in it, not by where it lies.
        if let Some((base, size)) = range_of(&name) {
            for value in entries.values_mut() {
                let (first, length) = (word(value, base), word(value, size));
                value[base..base + 4].fill(0);
                for slot in first..first.saturating_add(length.min(65_537)) {
                    value.extend(slots.get(&slot.to_ne_bytes()).unwrap_or_default());
                }
            }
        }
        all.insert(name, entries);
    }
    all
}

/// Where values of a map name a range of slots.
fn range_of(map: &str) -> Option<(usize, usize)> {
    match map {
        "VIPS" => Some((offset_of!(skep_ebpf::Vip, base), offset_of!(skep_ebpf::Vip, size))),
        "PORTS" => Some((offset_of!(skep_ebpf::Frontend, base), offset_of!(skep_ebpf::Frontend, size))),
        _ => None,
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

/// What is there when all is well.
struct Sound {
    tables: Tables,
    links: BTreeSet<String>,
}

impl Sound {
    fn of(host: &Host) -> Self {
        Self { tables: tables(host), links: bpf::links(host) }
    }

    /// Waits until all is as it was.
    async fn again(&self, host: &Host, damage: &str) {
        within(20, &format!("{damage}: all to be as it was"), || async {
            let links = bpf::links(host);
            anyhow::ensure!(links == self.links, "{:?}", links.symmetric_difference(&self.links).collect::<Vec<_>>());
            let tables = tables(host);
            for (name, entries) in &self.tables {
                anyhow::ensure!(tables.get(name) == Some(entries), "{name}: {entries:?} became {:?}", tables.get(name));
            }
            let loose: Vec<&String> = links.iter().filter(|pin| !bpf::attached(host, pin)).collect();
            anyhow::ensure!(loose.is_empty(), "not at their places: {loose:?}");
            Ok(())
        })
        .await;
    }
}

/// Two nodes with a port, a network, and who asks by each.
struct Scene {
    swarm: Swarm,
    client: Host,
    asker: std::fs::File,
    vip: Ipv4Addr,
}

impl Scene {
    async fn set(name: &str) -> Self {
        let swarm = swarm(name, 2, OFTEN).await;
        let client = client(&swarm).await;
        ok(&post(&swarm.hosts[0], "/networks/create", &json!({ "Name": "back", "Driver": "overlay" })).await);
        let on = json!({ "Networks": [{ "Target": "back" }] });
        swarm.service("web", 2, Some(8080), on.clone()).await;
        swarm.service("ask", 2, None, on).await;
        swarm.running("web", 2).await;
        let here = swarm.node_id(&swarm.hosts[0]).await;
        let asking = swarm.running("ask", 2).await;
        let asker = asking.iter().find(|task| task["NodeID"] == json!(here)).expect("one on each node");
        let asker = of_task(&swarm, asker).await;
        serves(&swarm.hosts, &["8080/tcp"]).await;
        let vip = vip(&swarm, "web").await;
        let scene = Self { swarm, client, asker, vip };
        scene.works().await;
        scene
    }

    /// Port and virtual address are served by the kernel, by both backends.
    async fn works(&self) {
        let host = &self.swarm.hosts[0];
        let targets = [
            Target::new(&of_host(&self.client), (host.address(), 8080).into(), "port"),
            Target::new(&self.asker, (self.vip, 80).into(), "virtual address"),
        ];
        for Target { from, to, label } in targets {
            within(20, &format!("{label} to be answered by both"), || async {
                let ask = move || (0..16).map(|_| request(to)).collect::<anyhow::Result<BTreeSet<String>>>();
                let who = inside(from.try_clone()?, ask).await?;
                anyhow::ensure!(who.len() == 2, "{who:?}");
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

/// Damages, waits until all is well, checks that it was counted.
async fn mends(scene: &Scene, sound: &Sound, what: &str, damage: impl FnOnce()) {
    let host = &scene.swarm.hosts[0];
    let before = repaired(host).await;
    damage();
    sound.again(host, what).await;
    within(10, &format!("{what} to be counted"), || async {
        let now = repaired(host).await;
        anyhow::ensure!(now > before, "{before} before, {now} now");
        Ok(())
    })
    .await;
    eprintln!("repaired: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_damaged_entry_of_every_map_is_mended_and_counted() {
    let scene = Scene::set("km").await;
    let host = &scene.swarm.hosts[0];
    let sound = Sound::of(host);
    for name in ["VIPS", "MEMBERS", "PORTS", "BACKENDS", "LOCALS", "SOURCES", "CONFIG"] {
        assert!(sound.tables.get(name).is_some_and(|entries| !entries.is_empty()), "{name} has something to damage");
    }
    for (name, entries) in &sound.tables {
        let map = bpf::Map::open(host, name);
        let Some((key, _)) = entries.first_key_value() else { continue };
        let value = map.get(key).expect("there");
        if !SETS.contains(&name.as_str()) {
            let flipped: Bytes = value.iter().map(|byte| !byte).collect();
            mends(&scene, &sound, &format!("a value of {name} changed"), || map.set(key, &flipped)).await;
        }
        if let Some((_, size)) = range_of(name) {
            let mut endless = map.get(key).expect("there");
            endless[size..size + 4].fill(0xff);
            mends(&scene, &sound, &format!("an entry of {name} with endless slots"), || map.set(key, &endless)).await;
        }
        if map.kind != bpf::ARRAY {
            mends(&scene, &sound, &format!("an entry of {name} deleted"), || map.delete(key)).await;
            let (key, value) = map.garbage();
            mends(&scene, &sound, &format!("garbage in {name}"), || map.set(&key, &value)).await;
        }
        if let Some((base, size)) = range_of(name) {
            let map = map.entries();
            let full = map.values().find(|value| word(value, size) > 0).expect("one with backends");
            let slots = bpf::Map::open(host, "SLOTS");
            let at = word(full, base).to_ne_bytes();
            let flipped: Bytes = slots.get(&at).expect("there").iter().map(|byte| !byte).collect();
            mends(&scene, &sound, &format!("a slot of {name} changed"), || slots.set(&at, &flipped)).await;
        }
        scene.works().await;
    }
    let metrics = skep::http::UnixClient::new(host.run_dir().join("admin.sock")).get("/metrics").await.expect("answers");
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    let line = metrics.lines().find(|line| line.starts_with("skep_ebpf_repairs_total ")).expect("shown");
    assert_eq!(line, format!("skep_ebpf_repairs_total {}", repaired(host).await));
    assert_eq!(repaired(&scene.swarm.hosts[1]).await, 0, "nobody touched the other node");
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_program_that_was_taken_away_is_put_back_and_counted() {
    let scene = Scene::set("kl").await;
    let host = &scene.swarm.hosts[0];
    let sound = Sound::of(host);
    let hooks: BTreeSet<&str> = sound.links.iter().filter_map(|pin| pin.split('@').next()).collect();
    assert_eq!(hooks.len(), skep::datapath::ebpf::Hook::ALL.len(), "every hook is somewhere: {hooks:?}");
    for pin in &sound.links {
        let path = bpf::pins(host).join("links").join(pin);
        mends(&scene, &sound, &format!("pin {pin} removed"), || std::fs::remove_file(path).expect("removed")).await;
        mends(&scene, &sound, &format!("{pin} detached"), || bpf::detach(host, pin)).await;
    }
    scene.works().await;
    scene.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_that_were_taken_away_and_made_anew_are_found() {
    let scene = Scene::set("kd").await;
    let host = &scene.swarm.hosts[0];
    let attached = async |device: &str| {
        within(30, &format!("programs on a new {device}"), || async {
            let shown = host.run(&format!("ip -o link show {device}")).await?;
            let index = shown.split(':').next().unwrap_or_default();
            let (links, end) = (bpf::links(host), format!("@{device}@{index}"));
            let pin = links.iter().find(|pin| pin.ends_with(&end));
            let pin = pin.ok_or_else(|| anyhow::anyhow!("none at {end}: {links:?}"))?;
            anyhow::ensure!(bpf::attached(host, pin), "{pin} is not at its place");
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
    scene.works().await;
    assert!(repaired(host).await > before, "and it was counted");

    scene.swarm.lab.rewire(host).await.expect("another wire");
    attached("eth0").await;
    scene.works().await;
    scene.stop().await;
}
