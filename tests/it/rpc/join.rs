//! A node joins, or reports why it could not.

use super::fixture::{FakeTunnel, Manager, OffBy, ReplyChange, Setup, Trust, eventually, join, options, side};
use skep::model::Role;
use skep::protocol::JoinRefused;
use skep::rpc::{JoinError, ListenerKind};
use skep::trust::CertificateFiles;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt as _;

const LONG: Duration = Duration::from_secs(15);
/// Long enough for a busy machine to reach the proof.
const SHORT: Duration = Duration::from_millis(1500);

fn manager(trust: &Arc<Trust>) -> Manager {
    Setup::new(trust, ListenerKind::Outer).start()
}

#[tokio::test]
async fn a_node_joins_in_the_role_of_its_token() {
    let trust = Trust::new();
    for role in [Role::Worker, Role::Manager] {
        let token = trust.tokens.of(role);
        let manager = manager(&trust);
        let joined = join(manager.address, token, &side(&manager), &options(LONG)).await.unwrap();
        assert_eq!((joined.identity.role(), joined.reply.role), (role, role));
        assert_eq!(joined.identity.cluster_id(), &trust.cluster);
        assert_eq!(joined.identity.node_id(), &joined.reply.node_id);
        assert_eq!(joined.reply.view.revision.index, 7);
        assert_eq!(manager.journal.all(), ["admit", "up", "confirm"]);
        let dir = std::env::temp_dir().join(format!("rpc-join-{}-{}", std::process::id(), role.as_str()));
        let files = CertificateFiles::new(dir.join("certificates"));
        files.store(&joined.identity).unwrap();
        assert_eq!(files.load(Some(&trust.cluster)).unwrap(), Some(joined.identity));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

#[tokio::test]
async fn a_blocked_direction_is_named_with_its_port() {
    let trust = Trust::new();
    // Neither the side that sends first nor the one that times out first may matter.
    let mut cases = tokio::task::JoinSet::new();
    for sends_probes in [false, true] {
        for timeouts in [(SHORT, LONG), (LONG, SHORT)] {
            for out in [true, false] {
                cases.spawn(blocked(trust.clone(), sends_probes, timeouts, out));
            }
        }
    }
    cases.join_all().await;
}

async fn blocked(trust: Arc<Trust>, sends_probes: bool, (mine, theirs): (Duration, Duration), out: bool) {
    let mut setup = Setup::new(&trust, ListenerKind::Outer);
    setup.limits.join = theirs;
    setup.sends_probes = sends_probes;
    let manager = setup.start();
    let cut = if out { &manager.wire.out_cut } else { &manager.wire.in_cut };
    cut.store(true, SeqCst);
    let begin = Instant::now();
    let error = join(manager.address, trust.tokens.of(Role::Worker), &side(&manager), &options(mine)).await.unwrap_err();
    assert!(begin.elapsed() < LONG, "the shorter timeout counts");
    let here = IpAddr::from([127, 0, 0, 1]);
    assert!(matches!(&error, JoinError::Blocked { port: 2377, from, to, .. } if (*from, *to) == (here, here)), "{error:?}");
    let expected = if out { "the manager received nothing" } else { "this node received nothing" };
    assert!(error.to_string().contains(expected), "{error}");
    eventually("revoked", || manager.journal.has("revoke")).await;
    assert!(manager.journal.has("down") && !manager.journal.has("confirm"), "{:?}", manager.journal.all());
}

#[tokio::test]
async fn counters_from_an_earlier_membership_prove_nothing() {
    let trust = Trust::new();
    let manager = manager(&trust);
    manager.wire.at_manager.store(5000, SeqCst);
    manager.wire.out_cut.store(true, SeqCst);
    let error = join(manager.address, trust.tokens.of(Role::Worker), &side(&manager), &options(SHORT)).await.unwrap_err();
    assert!(error.to_string().contains("the manager received nothing"), "{error}");
}

#[tokio::test]
async fn a_wrong_token_is_refused_with_swarms_errors() {
    let (trust, other) = (Trust::new(), Trust::new());
    let manager = manager(&trust);
    let (ours, theirs) = (trust.tokens.of(Role::Worker), other.tokens.of(Role::Worker));
    let wrong_secret = format!("{}{}", &ours[..ours.len() - 5], "aaaaa");
    for (token, expected) in [
        ("hello", "invalid join token".to_owned()),
        (&ours[..40], "invalid join token".to_owned()),
        ("", "A valid join token is necessary to join this cluster".to_owned()),
        (&wrong_secret, "A valid join token is necessary to join this cluster".to_owned()),
        (theirs, format!("remote CA does not match fingerprint. Expected: {}", other.ca.digest().unwrap())),
    ] {
        let error = join(manager.address, token, &side(&manager), &options(LONG)).await.unwrap_err();
        assert_eq!(error.to_string(), expected, "{token}: {error:?}");
    }
    assert_eq!(manager.journal.all(), Vec::<String>::new(), "no node was admitted");
}

#[tokio::test]
async fn an_unreachable_manager_is_named() {
    let trust = Trust::new();
    let manager = manager(&trust);
    let side = side(&manager);
    let token = trust.tokens.of(Role::Worker);

    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = join(free, token, &side, &options(LONG)).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&free.to_string()) && text.contains("connection refused"), "{text}");

    // A full accept queue: the kernel drops further SYNs, as a firewall does.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    full.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let _queued = std::net::TcpStream::connect(address).unwrap();
    let error = join(address, token, &side, &options(SHORT)).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&address.to_string()) && text.contains("no answer within 1.5 s"), "{text}");

    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let error = join(silent.local_addr().unwrap(), token, &side, &options(SHORT)).await.unwrap_err();
    assert!(matches!(error, JoinError::TimedOut { .. }) && error.to_string().contains("did not speak TLS"), "{error}");

    let web = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = web.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = web.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        tokio::time::sleep(LONG).await;
    });
    let error = join(address, token, &side, &options(LONG)).await.unwrap_err();
    assert!(error.to_string().contains("does not speak TLS: another program"), "{error}");
    assert_eq!(manager.journal.all(), Vec::<String>::new());
}

#[tokio::test]
async fn a_failed_join_leaves_nothing_behind() {
    let trust = Trust::new();
    let manager = manager(&trust);
    let token = trust.tokens.of(Role::Worker);

    let broken = FakeTunnel { broken: true, ..side(&manager) };
    let error = join(manager.address, token, &broken, &options(LONG)).await.unwrap_err();
    assert!(error.to_string().contains("no TUN device"), "{error}");
    eventually("revoked", || manager.journal.has("revoke")).await;
    assert_eq!(manager.journal.all(), ["admit", "up", "down", "revoke"]);

    let hung = FakeTunnel { hangs: true, ..side(&manager) };
    let error = join(manager.address, token, &hung, &options(SHORT)).await.unwrap_err();
    assert!(error.to_string().contains("it did not answer within 1.5 s"), "{error}");
    eventually("revoked", || manager.journal.count("revoke") == 2).await;

    manager.wire.out_cut.store(true, SeqCst);
    let (side, options) = (side(&manager), options(LONG));
    let gone = tokio::time::timeout(SHORT, join(manager.address, token, &side, &options)).await;
    assert!(gone.is_err(), "the joiner was killed");
    eventually("revoked", || manager.journal.count("revoke") == 3).await;

    let joining = join(manager.address, token, &side, &options);
    let stopping = async {
        eventually("admitted", || manager.journal.count("admit") == 4).await;
        manager.shutdown.cancel();
    };
    let (outcome, ()) = tokio::join!(joining, stopping);
    let error = outcome.unwrap_err();
    assert!(error.to_string().contains("the manager shuts down"), "{error}");
    eventually("revoked", || manager.journal.count("revoke") == 4).await;
    assert!(!manager.journal.has("confirm"));
}

#[tokio::test]
async fn only_a_manager_of_the_right_time_is_trusted() {
    let trust = Trust::new();
    let mut setup = Setup::new(&trust, ListenerKind::Outer);
    setup.identity = trust.identity(Role::Worker);
    let worker = setup.start();
    let error = join(worker.address, trust.tokens.of(Role::Worker), &side(&worker), &options(LONG)).await.unwrap_err();
    assert!(error.to_string().contains("is not a manager"), "{error}");

    let manager = manager(&trust);
    let mut skewed = options(LONG);
    skewed.clock = Arc::new(OffBy(-30 * 60));
    join(manager.address, trust.tokens.of(Role::Worker), &side(&manager), &skewed).await.expect("half an hour is tolerated");
    for off in [-2 * 3600, 91 * 24 * 3600] {
        skewed.clock = Arc::new(OffBy(off));
        let error = join(manager.address, trust.tokens.of(Role::Worker), &side(&manager), &skewed).await.unwrap_err();
        assert!(matches!(error, JoinError::Untrusted { .. }) && error.to_string().contains("clocks"), "{error}");
    }
}

#[tokio::test]
async fn the_mesh_listener_refuses_joins() {
    let trust = Trust::new();
    let manager = Setup::new(&trust, ListenerKind::Mesh).start();
    let error = join(manager.address, trust.tokens.of(Role::Worker), &side(&manager), &options(LONG)).await.unwrap_err();
    assert!(matches!(&error, JoinError::Refused(JoinRefused::Other(why)) if why.contains("outer address")), "{error}");
}

#[tokio::test]
async fn an_inconsistent_reply_is_not_acted_upon() {
    let (trust, other) = (Trust::new(), Trust::new());
    let changes: [(ReplyChange, &str); 4] = [
        (|r| r.certificate.clear(), "not readable"),
        (|r| r.role = Role::Manager, "names another node"),
        (|r| r.node_id = "self".into(), "names another node"),
        (|r| r.ca_certificate.clone_from(&r.certificate), "not issued by this cluster's CA"),
    ];
    for (change, expected) in changes {
        let mut setup = Setup::new(&trust, ListenerKind::Outer);
        setup.change_reply = change;
        let manager = setup.start();
        let error = join(manager.address, trust.tokens.of(Role::Worker), &side(&manager), &options(LONG)).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        eventually("revoked", || manager.journal.all() == ["admit", "revoke"]).await;
    }
    // A manager of the right cluster with the store of another cluster.
    let mut setup = Setup::new(&other, ListenerKind::Outer);
    setup.identity = trust.identity(Role::Manager);
    let manager = setup.start();
    let error = join(manager.address, trust.tokens.of(Role::Worker), &side(&manager), &options(LONG)).await.unwrap_err();
    assert_eq!(error.to_string(), "A valid join token is necessary to join this cluster");
}

#[tokio::test]
async fn a_join_works_over_ipv6() {
    let trust = Trust::new();
    let mut setup = Setup::new(&trust, ListenerKind::Outer);
    setup.address = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
    let manager = setup.start();
    manager.wire.out_cut.store(true, SeqCst);
    let error = join(manager.address, trust.tokens.of(Role::Worker), &side(&manager), &options(SHORT)).await.unwrap_err();
    assert!(error.to_string().contains("UDP 2377 from ::1 to ::1 is blocked"), "{error}");
    manager.wire.out_cut.store(false, SeqCst);
    join(manager.address, trust.tokens.of(Role::Worker), &side(&manager), &options(LONG)).await.unwrap();
}
