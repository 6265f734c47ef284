//! The built object in namespaces of its own: maps that a test fills and reads, programs that it runs on one packet.
#![expect(unsafe_code, reason = "unshare has no safe form")]

use super::super::bpf::Attr;
use super::build::Frame;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData, PerCpuArray, PerCpuHashMap, RingBuf};
use aya::programs::links::CgroupAttachMode;
use aya::programs::{CgroupSockAddr, ProgramError, SchedClassifier, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader, Pod};
use rustix::thread::{UnshareFlags, gettid, unshare_unsafe};
use skep_ebpf::packet::mapped;
use skep_ebpf::{
    Address, Backend, Config, Counter, Flow, FragmentKey, FragmentState, Frontend, INGRESS, NODE, NetnsMembership, Port, Prefix,
    RefusalEvent, RefusalKey, Reply, SlotBlock, Source, Subnet6, Target, Tuple, V4, Watch, WatchedSecond, convert,
    namespace_mark,
};
use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

pub static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf/skep.o");
/// Offsets of fields of `struct __sk_buff`, and its size.
const MARK: usize = 8;
const INGRESS_IFINDEX: usize = 36;
const IFINDEX: usize = 40;
const SK_BUFF: usize = 192;

const BPF_PROG_TEST_RUN: i64 = 10;
/// Flag of a test run: the packet has a sum as that of a card, and the kernel checks it afterwards.
const BPF_F_TEST_SKB_CHECKSUM_COMPLETE: u32 = 1 << 2;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
/// UDP port of the tunnel in these tests.
pub const TUNNEL_PORT: u16 = 2377;

/// Seconds without a datagram of the client after which its flow is over, in these tests.
pub const UDP_IDLE: u32 = 60;

/// Owner of every published port in these tests.
pub const PORT_OWNER: u32 = 99;

/// Tables of flows and reply entries.
const FLOW_MAPS: [&str; 6] = ["TCP_FLOWS", "TCP_REPLIES", "SYN_FLOWS", "SYN_REPLIES", "UDP_FLOWS", "UDP_REPLIES"];
/// Room of each of them in these tests.
pub const FLOWS: u32 = 4096;
/// Established connections of one client that are protected, in these tests.
pub const FLOWS_PER_SOURCE: u32 = 100;

/// What a program decided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// The packet is not skep's: the host handles it.
    Pass,
    Redirect,
    Drop,
}

/// Devices of a packet, by index.
#[derive(Clone, Copy)]
pub struct Context {
    pub device: u32,
    /// Of a forwarded packet the device that it arrived by; else 0.
    pub arrived_by: u32,
    /// Of the socket that sent it.
    pub mark: u32,
}

impl Context {
    pub fn at(device: u32) -> Self {
        Self { device, arrived_by: 0, mark: 0 }
    }
}

/// A run of a program.
#[derive(Debug)]
pub struct Run {
    pub decision: Decision,
    /// The frame after the program.
    pub bytes: Vec<u8>,
}

/// The programs and their maps.
pub struct Kernel {
    ebpf: Ebpf,
    pub uplink: u32,
    pub other_uplink: u32,
    /// /64 of this node.
    pub prefix: Prefix,
    next_slot: u32,
    /// Before `cgroups`, through which it is removed.
    cgroup: Option<ThreadCgroup>,
    /// The machine's cgroup2 tree, which the test's own mounts hide.
    cgroups: File,
}

/// A cgroup of one thread, below that of the process.
struct ThreadCgroup {
    path: PathBuf,
    parent: PathBuf,
}

impl ThreadCgroup {
    fn enter(root: &File) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let own = std::fs::read_to_string("/proc/thread-self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).expect("a cgroup of the thread");
        let parent = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd())).join(own);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("skep-calls-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).expect("a cgroup (root needed)");
        std::fs::write(path.join("cgroup.type"), "threaded").expect("a cgroup of threads");
        std::fs::write(path.join("cgroup.threads"), gettid().as_raw_nonzero().to_string()).expect("enters");
        Self { path, parent }
    }
}

impl Drop for ThreadCgroup {
    fn drop(&mut self) {
        let _ = std::fs::write(self.parent.join("cgroup.threads"), gettid().as_raw_nonzero().to_string());
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// Constants of the programs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Constants {
    Usual,
    /// The network namespace is the host's.
    Host,
    /// Packets of the tunnel have a link header.
    Trace,
}

/// Runs a test in network and mount namespaces of its own, which end with it.
pub fn in_namespaces(test: impl FnOnce(&mut Kernel) + Send) {
    run_in_namespaces(Constants::Usual, test);
}

/// The same, with programs to which the network namespace is the host's.
pub fn in_host_namespace(test: impl FnOnce(&mut Kernel) + Send) {
    run_in_namespaces(Constants::Host, test);
}

/// The same, with programs as `skep trace` runs them: packets of the tunnel have an Ethernet header, as the kernel's test runs make
/// them, so that encapsulated ones can be unpacked.
pub fn in_trace(test: impl FnOnce(&mut Kernel) + Send) {
    run_in_namespaces(Constants::Trace, test);
}

fn run_in_namespaces(constants: Constants, test: impl FnOnce(&mut Kernel) + Send) {
    let outcome = std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let cgroups = super::super::bpf::cgroup();
            // SAFETY: file descriptors stay shared; only this thread's namespaces change.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS | UnshareFlags::FS) }.expect("root");
            test(&mut Kernel::load(cgroups, constants));
        });
        inside.join()
    });
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn decision(hook: &str, returned: u32) -> Decision {
    match returned.cast_signed() {
        -1 => Decision::Pass,
        2 => Decision::Drop,
        7 => Decision::Redirect,
        other => panic!("{hook} returned {other}"),
    }
}

/// Runs a command, words split at blanks.
pub fn run(line: &str) {
    let mut words = line.split(' ');
    let done = Command::new(words.next().unwrap()).args(words).status().expect(line);
    assert!(done.success(), "{line}");
}

pub fn ifindex(name: &str) -> u32 {
    std::fs::read_to_string(format!("/sys/class/net/{name}/ifindex")).expect("a device").trim().parse().unwrap()
}

pub fn v4(address: &str) -> V4 {
    u32::from_ne_bytes(address.parse::<Ipv4Addr>().unwrap().octets())
}

pub fn address(text: &str) -> Address {
    if text.contains(':') {
        let octets = text.parse::<Ipv6Addr>().unwrap().octets();
        return std::array::from_fn(|i| u32::from_ne_bytes(octets[4 * i..4 * i + 4].try_into().unwrap()));
    }
    mapped(v4(text))
}

/// Loads a program. The kernel gives up with EAGAIN where a signal arrives meanwhile.
pub fn load(program: &mut SchedClassifier) -> Result<(), ProgramError> {
    loop {
        match program.load() {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == std::io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}

/// The tuple of a packet.
pub fn tuple(from: &str, to: &str, protocol: u8) -> Tuple {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    Tuple {
        source: address(&from.ip().to_string()),
        destination: address(&to.ip().to_string()),
        source_port: from.port().to_be(),
        destination_port: to.port().to_be(),
        protocol,
        ..Tuple::default()
    }
}

/// The cookie of this thread's network namespace.
pub fn netns_cookie() -> u64 {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (mut cookie, mut size) = (0_u64, 8_u32);
    // SAFETY: the option (`SO_NETNS_COOKIE`) writes eight bytes.
    let done = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, 71, (&raw mut cookie).cast(), &raw mut size) };
    assert_eq!(done, 0);
    cookie
}

impl Kernel {
    fn load(cgroups: File, constants: Constants) -> Self {
        for line in [
            "mount --make-rprivate /",
            "mount -t sysfs sysfs /sys",
            "mount -t tmpfs tmpfs /tmp",
            "mkdir /tmp/bpf",
            "mount -t bpf bpf /tmp/bpf",
            "ip link set lo up",
            "ip link add uplink address 02:00:00:00:00:01 type veth peer name wire",
            "ip link add uplink2 address 02:00:00:00:00:02 type veth peer name wire2",
            "ip address add 192.0.2.1/24 dev uplink",
            "ip -6 address add 2001:db8::1/64 dev uplink nodad",
            "ip address add 198.51.100.1/24 dev uplink2",
            "ip link set uplink up",
            "ip link set wire up",
            "ip link set uplink2 up",
            "ip link set wire2 up",
            "ip route add default via 192.0.2.254",
            "ip -6 route add default via 2001:db8::fe",
        ] {
            run(line);
        }
        let mut loader = EbpfLoader::new();
        loader.override_global("HAS_SET_RETVAL", &1_u32, true);
        loader.override_global("FLOWS_PER_SOURCE", &FLOWS_PER_SOURCE, true);
        let host = if constants == Constants::Host { netns_cookie() } else { 0 };
        loader.override_global("HOST_NAMESPACE", &host, true);
        let is_test_run = u32::from(constants == Constants::Trace);
        loader.override_global("IS_TEST_RUN", &is_test_run, true);
        for map in FLOW_MAPS {
            loader.map_max_entries(map, FLOWS);
        }
        let mut ebpf = loader.default_map_pin_directory(PathBuf::from("/tmp/bpf")).load(OBJECT).expect("the object loads");
        for hook in ["from_uplink", "from_host", "from_mesh", "from_container", "to_uplink", "out_uplink"] {
            let program: &mut SchedClassifier = ebpf.program_mut(hook).unwrap().try_into().unwrap();
            load(program).expect("the kernel takes the program");
        }
        let prefix = [0xfd01, 7];
        let (uplink, other_uplink) = (ifindex("uplink"), ifindex("uplink2"));
        let mut kernel = Self { ebpf, uplink, other_uplink, prefix, next_slot: 0, cgroup: None, cgroups };
        let config = Config {
            host_end: uplink,
            mesh_end: uplink,
            tunnel: uplink,
            prefix,
            containers: [0xfd02, 9],
            udp_idle: UDP_IDLE,
            tunnel_port: TUNNEL_PORT.to_be(),
            ..Config::default()
        };
        aya::maps::Array::<_, Config>::try_from(kernel.ebpf.map_mut("CONFIG").unwrap()).unwrap().set(0, config, 0).unwrap();
        for own in ["192.0.2.1", "2001:db8::1", "198.51.100.1"] {
            kernel.set("LOCALS", address(own), 0_u32);
        }
        kernel
    }

    fn map<K: Pod, V: Pod>(&mut self, name: &str) -> HashMap<&mut MapData, K, V> {
        self.ebpf.map_mut(name).unwrap().try_into().unwrap()
    }

    /// Names of the object's maps.
    pub fn map_names(&self) -> Vec<String> {
        self.ebpf.maps().map(|(name, _)| name.to_owned()).collect()
    }

    pub fn set<K: Pod, V: Pod>(&mut self, map: &str, key: K, value: V) {
        self.map(map).insert(key, value, 0).unwrap();
    }

    pub fn get<K: Pod, V: Pod>(&mut self, map: &str, key: K) -> Option<V> {
        self.map(map).get(&key, 0).ok()
    }

    pub fn remove<K: Pod, V: Pod>(&mut self, map: &str, key: K) {
        self.map::<K, V>(map).remove(&key).unwrap();
    }

    /// The flow entry of a client's packets and the table that it is in.
    pub fn flow(&mut self, from: &str, to: &str, protocol: u8) -> Option<(&'static str, Flow)> {
        let tuple = tuple(from, to, protocol);
        let tables: &[&str] = if protocol == TCP { &["TCP_FLOWS", "SYN_FLOWS"] } else { &["UDP_FLOWS"] };
        tables.iter().find_map(|table| Some((*table, self.get(table, tuple)?)))
    }

    /// The same, changed by `change`: lets time pass for it.
    pub fn change_flow(&mut self, from: &str, to: &str, protocol: u8, change: impl FnOnce(&mut Flow)) {
        let (table, mut flow) = self.flow(from, to, protocol).expect("a flow");
        change(&mut flow);
        self.set(table, tuple(from, to, protocol), flow);
    }

    /// The reply entry of a container's packets and the table that it is in.
    pub fn reply(&mut self, from: &str, to: &str, protocol: u8) -> Option<(&'static str, Reply)> {
        let tuple = tuple(from, to, protocol);
        let tables: &[&str] = if protocol == TCP { &["TCP_REPLIES", "SYN_REPLIES"] } else { &["UDP_REPLIES"] };
        tables.iter().find_map(|table| Some((*table, self.get(table, tuple)?)))
    }

    /// The same, changed by `change`.
    pub fn change_reply(&mut self, from: &str, to: &str, protocol: u8, change: impl FnOnce(&mut Reply)) {
        let (table, mut reply) = self.reply(from, to, protocol).expect("a reply entry");
        change(&mut reply);
        self.set(table, tuple(from, to, protocol), reply);
    }

    /// Lets seconds pass for every fragmented datagram.
    pub fn age_fragments(&mut self, seconds: u32) {
        let mut map = self.map::<FragmentKey, FragmentState>("FRAGMENTS");
        let known: Vec<_> = map.iter().flatten().collect();
        assert!(!known.is_empty(), "no state of a first fragment");
        for (key, mut state) in known {
            state.seen = state.seen.wrapping_sub(seconds);
            map.insert(key, state, 0).unwrap();
        }
    }

    /// Number of entries.
    pub fn entries<K: Pod, V: Pod>(&mut self, map: &str) -> usize {
        self.map::<K, V>(map).keys().flatten().count()
    }

    /// Makes a network namespace that of a container, in no network so far.
    pub fn member(&mut self, cookie: u64) {
        self.set("MEMBERS", NetnsMembership::any(cookie), 0_u32);
        let mut marks: Array<_, u32> = self.ebpf.map_mut("NAMESPACES").unwrap().try_into().unwrap();
        marks.set(namespace_mark(cookie), 1, 0).unwrap();
    }

    /// An array of the object.
    pub fn array(&mut self, map: &str) -> &mut aya::maps::Map {
        self.ebpf.map_mut(map).unwrap()
    }

    /// Changes what the programs know of this node.
    pub fn change_config(&mut self, change: impl FnOnce(&mut Config)) {
        let mut map: Array<_, Config> = self.ebpf.map_mut("CONFIG").unwrap().try_into().unwrap();
        let mut config = map.get(&0, 0).unwrap();
        change(&mut config);
        map.set(0, config, 0).unwrap();
    }

    /// A backend of this node that belongs to the service `owner`, which publishes the container's port 80.
    pub fn backend(&mut self, task: &str, owner: u32) {
        let backend = Backend { ifindex: self.uplink, serving: 1, prefix: [0; 2], owner, flags: INGRESS };
        self.set("BACKENDS", v4(task), backend);
        for protocol in [TCP, UDP] {
            self.set("TARGETS", Target { owner, port: 80_u16.to_be(), protocol, zero: 0 }, 1_u32);
        }
    }

    /// Publishes a port for both families, with a table of these backends; publishing it again replaces the table.
    pub fn publish(&mut self, protocol: u8, port: u16, backends: &[&str], flags: u16) {
        let size = u32::try_from(backends.len()).unwrap();
        let base = self.add_slots(backends);
        let frontend = Frontend { base, size, target: 80_u16.to_be(), flags, owner: PORT_OWNER };
        for family in [4, 6] {
            self.set("PORTS", Port { protocol, family, port: port.to_be() }, frontend);
        }
    }

    /// Adds a table of one slot for each backend; its first slot.
    pub fn add_slots(&mut self, backends: &[&str]) -> u32 {
        let base = self.next_slot;
        let mut block: SlotBlock = self.get("SLOTS", 0_u32).unwrap_or([0; _]);
        for backend in backends {
            block[self.next_slot as usize] = v4(backend);
            self.next_slot += 1;
        }
        self.set("SLOTS", 0_u32, block);
        base
    }

    /// Lets a prefix of sources use a guarded port.
    pub fn allow(&mut self, protocol: u8, port: u16, family: u8, prefix: &str, length: u32) {
        let scope = Port { protocol, family, port: port.to_be() }.scope();
        self.set_source(Source { scope, address: address(prefix) }, length);
    }

    /// Puts a prefix into a scope; its length is that of the prefix in its own family.
    pub fn set_source(&mut self, source: Source, length: u32) {
        let mapped = if source.address[..2] == [0, 0] { 96 } else { 0 };
        self.add_source(32 + mapped + length, source);
    }

    /// Puts a prefix into a scope; the length is that of the key.
    pub fn add_source(&mut self, length: u32, source: Source) {
        let mut sources: LpmTrie<_, Source, u32> = self.ebpf.map_mut("SOURCES").unwrap().try_into().unwrap();
        sources.insert(&Key::new(length, source), 0, 0).unwrap();
    }

    /// A dual-stack network, by the prefixes of its subnets.
    pub fn add_subnet6(&mut self, first: &str, length: u8, network: &str, mask: &str) {
        let [network, mask] = [network, mask].map(|text| text.parse().unwrap());
        let (length, first, subnet) = convert::subnet6(first.parse().unwrap(), length, network, mask);
        let mut subnets: LpmTrie<_, Address, Subnet6> = self.ebpf.map_mut("SUBNETS6").unwrap().try_into().unwrap();
        subnets.insert(&Key::new(length, first), subnet, 0).unwrap();
    }

    /// Removes it.
    pub fn remove_source(&mut self, length: u32, source: Source) {
        let mut sources: LpmTrie<_, Source, u32> = self.ebpf.map_mut("SOURCES").unwrap().try_into().unwrap();
        sources.remove(&Key::new(length, source)).unwrap();
    }

    /// An endpoint address of another node.
    pub fn node(&mut self, endpoint: &str) {
        self.set_source(Source { scope: NODE, address: address(endpoint) }, 32);
    }

    /// Counter at its position in `COUNTS`, of all CPUs.
    pub fn counted(&mut self, counter: Counter) -> u64 {
        let counts: PerCpuArray<_, u64> = self.ebpf.map("COUNTS").unwrap().try_into().unwrap();
        counts.get(&(counter as u32), 0).unwrap().iter().sum()
    }

    /// Attaches the programs at socket calls to a cgroup of this thread. Returns the cookie of its network namespace.
    pub fn attach_calls(&mut self) -> u64 {
        let cgroup = ThreadCgroup::enter(&self.cgroups);
        for hook in
            ["connect", "sendmsg", "recvmsg", "getpeername"].iter().flat_map(|call| ["4", "6"].map(|f| format!("{call}{f}")))
        {
            let program: &mut CgroupSockAddr = self.ebpf.program_mut(&hook).unwrap().try_into().unwrap();
            program.load().unwrap_or_else(|error| panic!("{hook}: {error:?}"));
            program.attach(std::fs::File::open(&cgroup.path).unwrap(), CgroupAttachMode::Single).expect(&hook);
        }
        self.cgroup = Some(cgroup);
        netns_cookie()
    }

    /// Attaches a program to the ingress of a device.
    pub fn attach(&mut self, hook: &str, device: &str) {
        let program: &mut SchedClassifier = self.ebpf.program_mut(hook).unwrap().try_into().unwrap();
        program.attach(device, aya::programs::TcAttachType::Ingress).unwrap();
    }

    /// Counters of drops and refusals, of all CPUs.
    pub fn refusals(&mut self) -> Vec<(RefusalKey, u64)> {
        let counts: PerCpuHashMap<_, RefusalKey, u64> = self.ebpf.map("REFUSALS").unwrap().try_into().unwrap();
        counts.iter().map(|entry| entry.map(|(key, values)| (key, values.iter().sum())).unwrap()).collect()
    }

    /// Lets the programs write events until a second of the monotonic clock.
    pub fn watch(&mut self, until: u32, most: u32, left: bool) {
        let mut watch: Array<_, Watch> = self.ebpf.map_mut("WATCH").unwrap().try_into().unwrap();
        watch.set(0, Watch { until, most, left: left.into() }, 0).unwrap();
    }

    /// Takes the events that were written.
    pub fn events(&mut self) -> Vec<RefusalEvent> {
        let mut ring = RingBuf::try_from(self.ebpf.map_mut("EVENTS").unwrap()).unwrap();
        let mut events = Vec::new();
        while let Some(bytes) = ring.next() {
            assert_eq!(bytes.len(), size_of::<RefusalEvent>());
            // SAFETY: plain numbers, and as many bytes as they have.
            events.push(unsafe { bytes.as_ptr().cast::<RefusalEvent>().read_unaligned() });
        }
        events
    }

    /// Events that were not written.
    pub fn lost(&mut self) -> u64 {
        let lost: PerCpuArray<_, WatchedSecond> = self.ebpf.map("WATCHED").unwrap().try_into().unwrap();
        lost.get(&0, 0).unwrap().iter().map(|cpu| cpu.lost).sum()
    }

    /// Runs a program on a frame that arrives at, or leaves by, a device.
    pub fn run(&mut self, hook: &str, frame: &Frame, device: u32) -> Run {
        self.run_with(hook, frame, Context::at(device))
    }

    /// Runs a program on a frame in a context.
    pub fn run_with(&mut self, hook: &str, frame: &Frame, at: Context) -> Run {
        self.run_in(hook, &frame.bytes(), at)
    }

    /// Runs a program on a packet as its device has it, with or without a link header.
    pub fn run_bytes(&mut self, hook: &str, packet: &[u8], device: u32) -> Run {
        self.run_in(hook, packet, Context::at(device))
    }

    /// Runs a program on a frame that a card has summed whole, and lets the kernel check that the sum is that of the packet
    /// afterwards. `None`: this kernel has no such test runs (before 6.17).
    pub fn run_summed(&mut self, hook: &str, frame: &Frame, device: u32) -> Option<Run> {
        let program: &SchedClassifier = self.ebpf.program(hook).unwrap().try_into().unwrap();
        let program = program.fd().unwrap().as_fd();
        let input = frame.bytes();
        let (mut output, mut context) = (vec![0_u8; input.len() + 256], [0_u8; SK_BUFF]);
        context[IFINDEX..IFINDEX + 4].copy_from_slice(&device.to_ne_bytes());
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
        let mut attr = Attr::new()
            .fd(0, program.as_raw_fd())
            .word(8, length(&input))
            .word(12, length(&output))
            .pointer(16, input.as_ptr())
            .pointer(24, output.as_mut_ptr())
            .word(40, length(&context))
            .pointer(48, context.as_ptr())
            .word(64, BPF_F_TEST_SKB_CHECKSUM_COMPLETE);
        // SAFETY: the lengths are those of the buffers.
        match unsafe { attr.call(BPF_PROG_TEST_RUN) } {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return None,
            done => done.unwrap_or_else(|error| panic!("{hook}, {frame:?}: {error}")),
        };
        output.truncate(attr.0[3] as usize);
        Some(Run { decision: decision(hook, attr.0[1]), bytes: output })
    }

    fn run_in(&mut self, hook: &str, input: &[u8], at: Context) -> Run {
        let program: &SchedClassifier = self.ebpf.program(hook).unwrap().try_into().unwrap();
        let (mut output, mut context) = (vec![0; input.len() + 256], [0; SK_BUFF]);
        context[MARK..MARK + 4].copy_from_slice(&at.mark.to_ne_bytes());
        context[INGRESS_IFINDEX..INGRESS_IFINDEX + 4].copy_from_slice(&at.arrived_by.to_ne_bytes());
        context[IFINDEX..IFINDEX + 4].copy_from_slice(&at.device.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(input),
            data_out: Some(&mut output),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        };
        let result = program.test_run(options).expect(hook);
        let decision = decision(hook, result.return_value);
        output.truncate(result.data_size_out as usize);
        Run { decision, bytes: output }
    }
}
