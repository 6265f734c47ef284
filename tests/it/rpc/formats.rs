//! Builds of neighbouring releases: each speaks the newest format that both have.

use super::fixture::{Setup, Trust, eventually, options, side, tls, view};
use super::session::node;
use skep::model::mesh::MeshPrefix;
use skep::model::node::NodeDescription;
use skep::model::{Availability, FormatRange, Revision, Role, Secret};
use skep::protocol::{FORMATS, FromJoiner, JoinRequest, KeyAnswer, ToJoiner, ToManager, ToNode};
use skep::rpc::ListenerKind;
use skep::trust::{NodeKey, TunnelKey};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

pub async fn write(stream: &mut (impl AsyncWrite + Unpin), message: &impl serde::Serialize) {
    let document = serde_json::to_vec(message).unwrap();
    stream.write_all(&u32::try_from(document.len()).unwrap().to_be_bytes()).await.unwrap();
    stream.write_all(&document).await.unwrap();
    stream.flush().await.unwrap();
}

pub async fn read<T: serde::de::DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> T {
    let frame = async {
        let length = stream.read_u32().await.unwrap();
        let mut document = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut document).await.unwrap();
        serde_json::from_slice(&document).unwrap()
    };
    tokio::time::timeout(Duration::from_secs(10), frame).await.expect("in time")
}

fn hello(format: u32, formats: Option<FormatRange>) -> ToManager {
    ToManager::Hello { format, formats, description: NodeDescription::default(), endpoints: vec![], have: Revision::default() }
}

fn whole_view() -> ToNode {
    let view = view(MeshPrefix("fd00:1:2::/48".parse().unwrap()), 7);
    let (tasks, networks, cluster) = (Some(view.tasks), Some(view.networks), Some(view.cluster));
    ToNode::View { revision: view.revision, tasks, networks, cluster }
}

#[tokio::test]
async fn a_node_of_the_release_before_gets_its_own_format() {
    let trust = Trust::new();
    let manager = Setup::new(&trust, ListenerKind::Mesh).start();
    for (named, range, agreed) in
        [(2, None, 2), (3, None, 3), (2, Some(FormatRange::new(2, 9)), FORMATS.newest), (1, Some(FormatRange::new(1, 2)), 2)]
    {
        let mut stream = tls(manager.address, "skep-session/1", Some(&trust.identity(Role::Worker))).await.unwrap();
        write(&mut stream, &hello(named, range)).await;
        let welcome = read(&mut stream).await;
        assert!(matches!(welcome, ToNode::Welcome { format, .. } if format == agreed), "{named} {range:?}: {welcome:?}");
        manager.dispatcher.send(whole_view()).await;
        let view: ToNode = read(&mut stream).await;
        // Format 2 has no pieces.
        assert_eq!(matches!(view, ToNode::View { .. }), agreed == 2, "{view:?}");
        assert_eq!(matches!(view, ToNode::Piece(_)), agreed >= 3, "{view:?}");
    }
}

#[tokio::test]
async fn a_node_without_a_common_format_learns_both_ranges_and_what_to_upgrade() {
    let trust = Trust::new();
    let manager = Setup::new(&trust, ListenerKind::Mesh).start();
    for (range, upgrade) in [(FormatRange::only(1), "this node"), (FormatRange::new(40, 99), "the manager")] {
        let mut stream = tls(manager.address, "skep-session/1", Some(&trust.identity(Role::Worker))).await.unwrap();
        write(&mut stream, &hello(range.oldest, Some(range))).await;
        let ToNode::Refused(why) = read(&mut stream).await else { panic!("not refused") };
        assert_eq!(why, format!("the manager speaks protocol {FORMATS}, this node {range}: upgrade skep on {upgrade}"));
    }
    assert!(manager.dispatcher.journal.all().is_empty(), "none of them reached the dispatcher");
}

#[tokio::test]
async fn a_manager_of_the_release_before_gets_only_what_it_understands() {
    let trust = Trust::new();
    let manager = Setup::new(&trust, ListenerKind::Mesh).start();
    *manager.dispatcher.speaks.lock().unwrap() = FormatRange::only(2);
    let mut node = node(trust.identity(Role::Worker), vec![manager.address]);
    node.welcome().await;
    assert!(manager.dispatcher.journal.has("hello 2"), "the number that it compares with its own");
    node.send(ToManager::Troubles(BTreeMap::new())).await;
    node.send(ToManager::Status(vec![])).await;
    eventually("received", || manager.dispatcher.journal.has("Status([])")).await;
    assert!(!manager.dispatcher.journal.has("Troubles({})"), "format 2 does not have this message");
}

#[tokio::test]
async fn a_manager_that_names_another_single_format_is_asked_in_that_one() {
    let trust = Trust::new();
    let manager = Setup::new(&trust, ListenerKind::Mesh).start();
    let text = "the manager speaks protocol 3, this node 2: install the same version of skep on both";
    *manager.dispatcher.refuses.lock().unwrap() = Some(text.to_owned());
    let node = node(trust.identity(Role::Worker), vec![manager.address]);
    eventually("a hello in its format", || manager.dispatcher.journal.has("hello 3")).await;
    node.error("it refuses: the manager speaks protocol 3").await;
}

#[tokio::test]
async fn a_joiner_of_the_release_before_is_admitted_and_one_without_a_common_format_is_not() {
    let trust = Trust::new();
    let manager = Setup::new(&trust, ListenerKind::Outer).start();
    let key = TunnelKey::new(Secret::new([2; 32]));
    let request = |format, formats| {
        FromJoiner::Request(Box::new(JoinRequest {
            format,
            formats,
            token: trust.tokens.of(Role::Worker).into(),
            csr: NodeKey::generate().unwrap().request().unwrap(),
            key: key.public(),
            endpoints: vec![([0, 0, 0, 0], 2377).into()],
            description: NodeDescription::default(),
            availability: Availability::Active,
        }))
    };
    for (format, formats, admitted) in
        [(2, None, true), (3, None, true), (7, Some(FormatRange::new(2, 7)), true), (7, None, false)]
    {
        let mut stream = tls(manager.address, "skep-join/1", None).await.unwrap();
        let request = request(format, formats);
        write(&mut stream, &request).await;
        let mut answer = read(&mut stream).await;
        if let ToJoiner::Key(challenge) = answer {
            assert!(formats.is_some(), "only the newest format has a proof of the key");
            let proof = key.answer(&challenge, &serde_json::to_vec(&request).unwrap()).unwrap();
            write(&mut stream, &FromJoiner::Key(KeyAnswer(proof))).await;
            answer = read(&mut stream).await;
        }
        match answer {
            ToJoiner::Reply(_) if admitted => {}
            ToJoiner::Refused(why) if !admitted => {
                let text =
                    format!("the manager speaks protocol {FORMATS}, this node 7: upgrade skep on the manager, then join again");
                assert_eq!(why.to_string(), text);
                let answer = serde_json::to_value(&why).unwrap();
                assert_eq!(
                    (&answer["Format"]["manager"], &answer["Format"]["joiner"]),
                    (&FORMATS.newest.into(), &7.into()),
                    "for old joiners"
                );
            }
            other => panic!("{format} {formats:?}: {other:?}"),
        }
    }
    let (side, options) = (side(&manager), options(Duration::from_secs(15)));
    super::fixture::join(manager.address, trust.tokens.of(Role::Worker), &side, &options).await.expect("this build");
}
