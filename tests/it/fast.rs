//! The fast plane with the kernel's own word (root needed).

use skep::datapath::fast::{Fast, object_is_current};
use std::path::Path;

/// Needs no tool: a forgotten `make ebpf` shows on every machine.
#[test]
fn the_built_object_is_what_its_sources_give() {
    object_is_current(&Path::new(env!("CARGO_MANIFEST_DIR")).join("ebpf")).unwrap_or_else(|why| panic!("{why}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_program_passes_the_kernels_check() {
    let dir = std::env::temp_dir().join(format!("skep-fast-{}-load", std::process::id()));
    let mesh = skep::datapath::mesh::Mesh::open(&dir.join("mesh")).await.expect("a mesh namespace (root needed)");
    let fast = Fast::open(&dir, mesh.clone()).await.expect("loads");
    assert!(fast.lacking().is_empty(), "{:#?}", fast.lacking());
    let state = fast.observe().await.expect("observes");
    assert!(state.links.is_empty() && state.stale.is_empty(), "{state:?}");
    fast.remove().await.expect("removes");
    drop(fast);
    mesh.remove().expect("removes the mesh");
    std::fs::remove_dir_all(&dir).expect("nothing else is left");
}
