//! Addresses of dual-stack networks: the property that no address is given twice in either family, and which subnets networks get.

use super::fixture;
use proptest::prelude::*;
use rand::{SeedableRng as _, rngs::StdRng};
use skep::manager::ManagerSettings;
use skep::manager::allocator::{QuarantinedAddresses, plan};
use skep::manager::orchestrator::Orchestrator;
use skep::manager::round_scope::RoundScope;
use skep::model::{Network, NetworkSpec};
use skep::store::{Action, Kind, Store};
use std::collections::BTreeSet;
use std::net::IpAddr;

fn dual(id: &str, v4: Option<&str>, v6: Option<&str>) -> Network {
    let network = fixture::network(id, v4);
    let spec = NetworkSpec { enable_ipv6: true, subnet6: v6.map(|net| net.parse().unwrap()), ..network.spec };
    Network { spec, ..network }
}

/// Carries rounds out until nothing is left to assign.
fn settle(store: &mut Store) {
    for _ in 0..20 {
        let actions = plan(store, fixture::START, &mut QuarantinedAddresses::default(), &RoundScope::full());
        if actions.is_empty() {
            return;
        }
        fixture::apply(store, fixture::START, actions);
    }
    panic!("the allocator does not come to an end");
}

/// Every address that something has on a network, and its gateways.
fn addresses(store: &Store, network: &Network) -> Vec<IpAddr> {
    let pairs = network.pairs();
    let to_v6 = |address: &std::net::Ipv4Addr| pairs.iter().find_map(|pair| pair.to_v6(*address));
    let tasks = store.tasks().filter_map(|task| task.address_on(&network.id));
    let vips = store.services().flat_map(|s| &s.endpoint.vips).filter(|vip| vip.network_id == network.id);
    let four: Vec<_> = tasks.chain(vips.map(|vip| vip.addr.addr())).collect();
    let six: Vec<_> = four.iter().map(|address| to_v6(address).expect("a host of both subnets")).collect();
    let gateways = network.subnets().into_iter().map(|subnet| IpAddr::V4(network.spec.gateway_in(subnet)));
    let gateway6 = network.spec.v6_in(network.subnet6.expect("both families")).gateway;
    let gateways = gateways.chain([IpAddr::V6(gateway6)]);
    let reserved = network.spec.auxiliary_addresses6.values().copied().map(IpAddr::V6);
    four.into_iter().map(IpAddr::V4).chain(six.into_iter().map(IpAddr::V6)).chain(gateways).chain(reserved).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_address_is_given_twice_in_either_family(
        length in 26_u8..=29,
        longer in 0_u8..=40,
        gateway in proptest::option::of(2_u32..6),
        gateway6 in proptest::option::of(1_u128..7),
        auxiliary in proptest::collection::vec(1_u128..7, 0..3),
        replicas in 0_u64..70,
    ) {
        let (v4, v6) = (format!("172.16.8.0/{length}"), format!("fd00:9::/{}", 96 + length - longer));
        let mut network = dual("back", Some(&v4), Some(&v6));
        let first = network.spec.subnet6.unwrap().addr().to_bits();
        network.spec.gateway = gateway.map(|number| (network.spec.subnets[0].addr().to_bits() + number).into());
        network.spec.gateway6 = gateway6.map(|number| (first + number).into());
        let own = network.spec.gateway6.unwrap_or((first + 1).into());
        let named = |number: u128| (number.to_string(), (first + number).into());
        network.spec.auxiliary_addresses6 = auxiliary.into_iter().map(named).filter(|(_, address)| *address != own).collect();
        let mut store = fixture::store(3);
        let service = fixture::service("web", replicas, &[], &["back"]);
        fixture::apply(&mut store, fixture::START, vec![Action::create(network), Action::create(service)]);
        let (mut rng, settings) = (StdRng::seed_from_u64(1), ManagerSettings::default());
        let tasks = Orchestrator::default().plan(&store, fixture::START, &mut rng, &settings, &RoundScope::full()).actions;
        fixture::apply(&mut store, fixture::START, tasks);
        settle(&mut store);
        let network = store.network(&"back".into()).unwrap();
        let all = addresses(&store, network);
        let different: BTreeSet<_> = all.iter().collect();
        prop_assert_eq!(different.len(), all.len(), "{:?}", all);
        let given = store.tasks().filter(|task| task.address_on(&network.id).is_some()).count() as u64;
        // The subnet's own and its broadcast address, two gateways, at most two auxiliary ones, the virtual address.
        let room = (1_u64 << (32 - length)) - 7;
        prop_assert!(given >= replicas.min(room), "{given} of {replicas} tasks");
    }
}

#[test]
fn subnets_of_both_families_are_drawn_and_do_not_overlap() {
    let mut store = fixture::store(1);
    let mesh = store.cluster().unwrap().mesh;
    let third = format!("{}", skep::model::dual_stack::drawn_subnets(mesh).next().unwrap());
    let networks = [
        dual("a", None, None),
        dual("b", None, None),
        dual("asked", Some("192.168.7.0/24"), Some("fd00:7::/64")),
        // What a user asks for is not drawn for another network.
        dual("first", None, Some(&third)),
        fixture::network("four", None),
    ];
    fixture::apply(&mut store, fixture::START, networks.map(Action::create).into());
    settle(&mut store);
    let pairs: Vec<_> =
        store.networks().flat_map(|network| network.pairs().into_iter().map(|pair| (network.id.to_string(), pair))).collect();
    assert_eq!(pairs.len(), 4, "{pairs:?}");
    for (i, (name, one)) in pairs.iter().enumerate() {
        assert!(!mesh.nodes().contains(&one.v6) && !one.v6.contains(&mesh.container(std::net::Ipv4Addr::BROADCAST)), "{name}");
        for (other, two) in &pairs[i + 1..] {
            assert!(!one.v6.contains(&two.v6) && !two.v6.contains(&one.v6), "{name} {one:?}, {other} {two:?}");
        }
    }
    assert!(store.network(&"four".into()).is_some_and(|four| four.subnet.is_some() && four.subnet6.is_none()));

    // One whose IPv6 subnet is taken waits for both, and gets them when the other one is gone.
    fixture::apply(&mut store, fixture::START, vec![Action::create(dual("late", None, Some("fd00:7::/48")))]);
    settle(&mut store);
    assert_eq!(store.network(&"late".into()).unwrap().subnet, None);
    fixture::apply(&mut store, fixture::START, vec![Action::Remove(Kind::Network, "asked".into())]);
    settle(&mut store);
    assert_eq!(store.network(&"late".into()).unwrap().pairs().len(), 1);
}

/// A network takes addresses of its next subnet when one is full, within the ranges of both families, and says so when all are.
#[test]
fn addresses_come_from_several_subnets() {
    let mut network = dual("wide", Some("172.16.8.0/29"), Some("fd00:9::/64"));
    network.spec.subnets.push("192.168.40.0/28".parse().unwrap());
    network.spec.gateway = Some("172.16.8.6".parse().unwrap());
    network.spec.further_gateways = vec!["192.168.40.9".parse().unwrap()];
    network.spec.further_ranges = vec!["192.168.40.8/29".parse().unwrap()];
    network.spec.auxiliary_addresses.insert("router".to_owned(), "192.168.40.10".parse().unwrap());
    let mut store = fixture::store(3);
    let service = fixture::service("web", 20, &[], &["wide"]);
    fixture::apply(&mut store, fixture::START, vec![Action::create(network), Action::create(service)]);
    let (mut rng, settings) = (StdRng::seed_from_u64(1), ManagerSettings::default());
    let tasks = Orchestrator::default().plan(&store, fixture::START, &mut rng, &settings, &RoundScope::full()).actions;
    fixture::apply(&mut store, fixture::START, tasks);
    settle(&mut store);
    let network = store.network(&"wide".into()).unwrap();
    assert_eq!(network.further, network.spec.subnets[1..]);
    let all = addresses(&store, network);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "{all:?}");
    let given: Vec<_> = store.tasks().flat_map(|task| &task.attachments).map(|a| a.address).collect();
    let in_net = |length: u8| given.iter().filter(|address| address.prefix_len() == length).count();
    // Of six hosts the gateway and the virtual address; of the seven in the range, without broadcast, the gateway and the router.
    assert_eq!((in_net(29), in_net(28)), (4, 5), "{given:?}");
    let outside = |address: &&ipnet::Ipv4Net| address.prefix_len() == 28 && [9, 10].contains(&address.addr().octets()[3]);
    assert_eq!(given.iter().find(outside), None, "neither gateway nor router");
    let why = store.tasks().find(|task| task.attachments.is_empty()).expect("one is left").status.err.clone();
    assert_eq!(why, "could not find an available IP on network wide (172.16.8.0/29 and 192.168.40.0/28 are full)");
    assert_eq!(skep::manager::invariants::check(&store), Vec::<String>::new());
}
