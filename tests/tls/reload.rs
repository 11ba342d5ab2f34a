//! Certificates that change while everything runs.

use std::os::unix::fs::symlink;

use janus_wire::Security;
use janus_wire::v1::IdentifyRequest;
use janus_wire::v1::node_client::NodeClient;
use tempfile::tempdir;

use super::*;
use papers::{Authority, LONG_LIFE, security};

async fn answers(address: &str, security: &Security) -> bool {
    match janus_wire::connect(address, security).await {
        Ok(channel) => NodeClient::new(channel).identify(IdentifyRequest {}).await.is_ok(),
        Err(_) => false,
    }
}

/// The folder that an orchestrator mounts: `..data` is a link to what holds now, and is put in place at once.
struct Mount<'a>(&'a Path);

impl Mount<'_> {
    fn show(&self, version: &Path) {
        let next = self.0.join("..next");
        symlink(version, &next).unwrap();
        std::fs::rename(next, self.0.join("..data")).unwrap();
    }

    fn files(&self) -> Files {
        for name in ["ca.pem", "stage.pem", "stage.key"] {
            symlink(Path::new("..data").join(name), self.0.join(name)).unwrap();
        }
        let own = Some((self.0.join("stage.pem"), self.0.join("stage.key")));
        Files { authority: self.0.join("ca.pem"), own }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_to_other_certificates_is_followed_without_a_restart_and_what_runs_goes_on() {
    let dir = tempdir().unwrap();
    let [old, new] = ["old", "new"].map(|name| Authority::new(&dir.path().join(name)));
    old.role("stage");
    new.role("stage");
    let mount = dir.path().join("mount");
    std::fs::create_dir(&mount).unwrap();
    let mount = Mount(&mount);
    mount.show(&dir.path().join("old"));
    let (worker, address) = worker(dir.path(), &mount.files());
    let (before, after) = (security(old.role("coordinator")), security(new.role("coordinator")));
    assert!(answers(&address, &before).await && !answers(&address, &after).await);
    let kept = janus_wire::connect(&address, &before).await.unwrap();

    mount.show(&dir.path().join("new"));
    until("the new certificates hold", async || answers(&address, &after).await).await;
    worker.says("certificates changed; new connections use them").await;
    assert!(!answers(&address, &before).await, "the old authority is still believed");
    let mut kept = NodeClient::new(kept);
    kept.identify(IdentifyRequest {}).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_cannot_be_used_leave_the_old_ones_in_place() {
    let dir = tempdir().unwrap();
    let ours = Authority::new(dir.path());
    let files = ours.role("stage");
    let (cert, key) = files.own.clone().unwrap();
    let (worker, address) = worker(dir.path(), &files);
    let coordinator = security(ours.role("coordinator"));
    for (file, text, said) in [(&cert, "nonsense", "holds no certificate"), (&key, "nonsense", "holds no private key")] {
        let right = std::fs::read(file).unwrap();
        std::fs::write(file, text).unwrap();
        worker.says(said).await;
        assert!(answers(&address, &coordinator).await, "{said}");
        std::fs::write(file, right).unwrap();
    }
    // A key without its certificate, as between two writes.
    let other = ours.issue("other", &["janus://janus/stage/other"], LONG_LIFE).own.unwrap();
    std::fs::copy(&other.1, &key).unwrap();
    worker.says("is not the key of").await;
    assert!(answers(&address, &coordinator).await);
    std::fs::copy(&other.0, &cert).unwrap();
    worker.says("certificates changed; new connections use them").await;
    assert!(answers(&address, &coordinator).await);
    std::fs::remove_file(&cert).unwrap();
    worker.says("No such file").await;
    assert!(answers(&address, &coordinator).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_takes_its_renewed_certificate_for_the_next_connection() {
    let dir = tempdir().unwrap();
    let ours = Authority::new(dir.path());
    let (_worker, address) = worker(dir.path(), &ours.role("stage"));
    let files = ours.issue("mine", &["janus://janus/client/c"], LONG_LIFE);
    let mine = security(files);
    assert!(!answers(&address, &mine).await);
    ours.issue("mine", &["janus://janus/coordinator/c"], LONG_LIFE);
    until("the client shows its new certificate", async || answers(&address, &mine).await).await;
}
