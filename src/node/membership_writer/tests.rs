use super::*;
use crate::model::Role;
use crate::model::fixture;
use crate::node::address::for_join;
use crate::node::state_dir::{NodeAssignment, StateDir};
use std::net::Ipv4Addr;

fn membership() -> MembershipFile {
    let assignment = NodeAssignment {
        node_id: "node2".into(),
        role: Role::Worker,
        cluster_id: "cluster1".into(),
        mesh: fixture::mesh(),
        subnet: fixture::peer(2).subnet,
        ingress_addr: Ipv4Addr::new(10, 0, 0, 3),
        raft_id: None,
    };
    MembershipFile::new(assignment, &for_join("0.0.0.0:2377", "", &[]).unwrap())
}

fn manager(number: u8, endpoint: &str) -> Peer {
    let containers = vec![Ipv4Addr::new(10, 0, 1, 7)];
    let endpoints = vec![endpoint.parse().unwrap()];
    Peer { manager: true, endpoints, containers, attached_tasks: Some(1), ..fixture::peer(number) }
}

fn view(index: u64, nodes: Vec<Peer>) -> NodeView {
    fixture::node_view(index, Vec::new(), fixture::cluster_part(nodes))
}

#[test]
fn the_managers_of_the_last_view_are_reached_without_a_ledger() {
    for (first, second) in
        [("10.1.2.3:2377", "10.9.8.7:2377"), ("172.16.0.1:2377", "172.31.0.1:2377"), ("192.168.1.1:9", "[2001:db8::1]:2377")]
    {
        let worker = fixture::peer(2);
        let before = next(&membership(), Some(&view(5, vec![manager(1, first), worker.clone()])), None);
        assert_eq!(before.managers.len(), 1, "workers are not kept");
        let kept = &before.managers[0];
        assert!(kept.containers.is_empty() && kept.attached_tasks.is_none(), "what changes often is not written");
        // It moves: the file follows, and a view that names no manager changes nothing.
        let moved = next(&before, Some(&view(6, vec![manager(1, second), worker])), None);
        assert_eq!(next(&moved, Some(&view(7, Vec::new())), None), moved);
        let start = view_of_managers(&moved, fixture::peer(2).key).expect("a manager is known");
        assert_eq!(start.cluster.nodes[0].endpoints, [second.parse().unwrap()]);
        assert_eq!(start.cluster.node(&"node2".into()).map(|me| me.subnet), Some(moved.subnet), "and this node itself");
        assert_eq!((start.cluster.nodes[0].key, start.cluster.mesh), (fixture::peer(1).key, fixture::mesh()));
        assert_eq!((start.revision, start.tasks.by_id.len()), (Revision::default(), 0), "older than every view");
    }
    assert!(view_of_managers(&membership(), fixture::peer(2).key).is_none());
}

#[test]
fn a_description_outlives_a_daemon() {
    let described = NodeDescription { engine_version: "28.5.0".to_owned(), ..NodeDescription::default() };
    let kept = next(&membership(), None, Some(&described));
    assert_eq!(next(&kept, None, None).description, Some(described));
}

#[tokio::test]
async fn what_was_not_written_is_a_blocker_and_is_not_taken_for_written() {
    let path = std::env::temp_dir().join(format!("skep-membership-failed-{}", std::process::id()));
    let dir = StateDir::new(&path);
    let (view, views) = watch::channel(Some(Arc::new(view(5, vec![manager(1, "192.168.7.1:2377")]))));
    let (description, descriptions) = watch::channel(None);
    let (blockers, stop) = (Blockers::default(), CancellationToken::new());
    let writing = tokio::spawn(run(
        Arc::new(CurrentMembership::new(dir.clone(), membership())),
        views,
        descriptions,
        blockers.clone(),
        Duration::from_millis(20),
        stop.clone(),
    ));
    // There is no directory: the disk takes nothing.
    while blockers.now().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let reason = blockers.now()["node.json"].clone();
    assert!(reason.contains("cannot write the membership") && reason.contains("does not find the managers"), "{reason}");
    std::fs::create_dir(&path).unwrap();
    while !blockers.now().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let written = MembershipFile::load(&dir).unwrap().expect("written although nothing changed");
    assert_eq!(written.managers.len(), 1);
    stop.cancel();
    writing.await.unwrap();
    drop((view, description));
    std::fs::remove_dir_all(&path).unwrap();
}
