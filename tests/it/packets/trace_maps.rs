//! Which maps a trace shares with the live programs.

use super::kernel::*;
use aya::EbpfLoader;
use aya::maps::{Array, HashMap, LpmTrie};
use aya::programs::SchedClassifier;
use skep::datapath::ebpf::{MAP_CLASSES, TraceMapClass};
use skep_ebpf::{Address, Backend, Config, Frontend, NetnsMembership, Port, SlotBlock, Source, Subnet6, Target, V4, Vip};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Flag of a map: programs cannot write it.
const BPF_F_RDONLY_PROG: u32 = 1 << 7;
/// Flag of a map: memory is allocated by entry.
const BPF_F_NO_PREALLOC: u32 = 1;
const ROOM: u32 = 64;

fn names(class: TraceMapClass) -> BTreeSet<&'static str> {
    MAP_CLASSES.iter().filter(|(_, of)| *of == class).map(|(name, _)| *name).collect()
}

#[test]
fn every_map_of_the_object_is_in_exactly_one_class() {
    in_namespaces(|kernel| {
        let of_object: BTreeSet<String> = kernel.map_names().into_iter().filter(|name| !name.starts_with('.')).collect();
        let of_classes: BTreeSet<String> = MAP_CLASSES.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(of_classes, of_object);
        assert_eq!(MAP_CLASSES.len(), of_classes.len(), "a map has two classes");
    });
}

/// The kernel's verifier refuses a program that writes a map of this kind. So a trace cannot change a live map.
#[test]
fn the_programs_only_read_the_maps_that_a_trace_shares() {
    in_namespaces(|_| {
        run("mkdir /tmp/bpf/read-only");
        let folder = PathBuf::from("/tmp/bpf/read-only");
        let flags = BPF_F_RDONLY_PROG | BPF_F_NO_PREALLOC;
        let mut made = BTreeSet::new();
        macro_rules! hash {
            ($($name:literal: $key:ty, $value:ty;)*) => {$(
                HashMap::<_, $key, $value>::create(ROOM, flags).expect($name).pin(folder.join($name)).expect($name);
                made.insert($name);
            )*};
        }
        hash! {
            "VIPS": V4, Vip;
            "MEMBERS": NetnsMembership, V4;
            "PORTS": Port, Frontend;
            "BACKENDS": V4, Backend;
            "LOCALS": Address, u32;
            "UPLINKS": u32, u32;
            "TARGETS": Target, u32;
            "SLOTS": u32, SlotBlock;
        }
        Array::<_, Config>::create(1, BPF_F_RDONLY_PROG).expect("CONFIG").pin(folder.join("CONFIG")).expect("CONFIG");
        LpmTrie::<_, Source, u32>::create(ROOM, flags).expect("SOURCES").pin(folder.join("SOURCES")).expect("SOURCES");
        Array::<_, u32>::create(1, BPF_F_RDONLY_PROG).expect("TAKEOVER").pin(folder.join("TAKEOVER")).expect("TAKEOVER");
        let marks = Array::<_, u32>::create(skep_ebpf::NAMESPACE_MARKS, BPF_F_RDONLY_PROG).expect("NAMESPACES");
        marks.pin(folder.join("NAMESPACES")).expect("NAMESPACES");
        LpmTrie::<_, Address, Subnet6>::create(ROOM, flags).expect("SUBNETS6").pin(folder.join("SUBNETS6")).expect("SUBNETS6");
        made.extend(["CONFIG", "SOURCES", "SUBNETS6", "TAKEOVER", "NAMESPACES"]);
        assert_eq!(made, names(TraceMapClass::Live));

        let mut loader = EbpfLoader::new();
        loader.override_global("IS_TEST_RUN", &1_u32, true).default_map_pin_directory(&folder);
        let mut ebpf = loader.load(OBJECT).expect("the object");
        let mut loaded = 0;
        for hook in ["from_uplink", "from_host", "from_mesh", "from_container", "to_uplink", "out_uplink"] {
            let program: &mut SchedClassifier = ebpf.program_mut(hook).expect(hook).try_into().expect(hook);
            load(program).unwrap_or_else(|error| panic!("{hook} writes a live map: {error}"));
            loaded += 1;
        }
        assert_eq!(loaded, 6);
        // The verifier does refuse a writer: the flow tables are written by these programs.
        run("mkdir /tmp/bpf/written");
        let folder = PathBuf::from("/tmp/bpf/written");
        let flows = HashMap::<_, skep_ebpf::Tuple, skep_ebpf::Flow>::create(ROOM, flags).expect("TCP_FLOWS");
        flows.pin(folder.join("TCP_FLOWS")).expect("TCP_FLOWS");
        let mut ebpf = EbpfLoader::new().default_map_pin_directory(&folder).load(OBJECT).expect("the object");
        let program: &mut SchedClassifier = ebpf.program_mut("from_uplink").expect("a program").try_into().expect("tc");
        assert!(load(program).is_err(), "a program that writes a read-only map was loaded");
    });
}
