use derp::pass::{Membership, Pass};
use derp::{ClusterSecret, NodeSecret};

use super::*;

fn secret(seed: u8) -> ClusterSecret {
    ClusterSecret::from_seed([seed; 32]).unwrap()
}

fn identity(seed: u8) -> ClusterIdentity {
    secret(seed).identity()
}

fn key(seed: u8) -> NodeKey {
    NodeSecret::from_bytes([seed; 32]).public()
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

const SKEW: Duration = Duration::from_secs(600);

/// Node 1, and owners 10 and 11.
struct Listed {
    _folder: tempfile::TempDir,
    path: PathBuf,
    admission: Admission,
}

impl Listed {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admit");
        std::fs::write(&path, text).unwrap();
        Self {
            _folder: folder,
            admission: Admission::new(&AdmitRule::File(path.clone()), SKEW).unwrap(),
            path,
        }
    }

    fn usual() -> Self {
        Self::new(&format!("{}\n{}\n{}\n", key(1), identity(10), identity(11)))
    }

    fn change(&self, text: &str) {
        std::fs::write(&self.path, text).unwrap();
        assert!(!self.admission.reload().unwrap());
        assert!(self.admission.reload().unwrap());
    }

    fn judge(&self, seed: u8, pass: Option<&Pass>) -> Result<Grant, Refusal> {
        let text = pass.map(Pass::to_string);
        self.admission.judge(&key(seed), text.as_deref(), at(1000))
    }

    fn deny(&self, list: DenyList) {
        self.admission.deny(list).unwrap();
    }
}

fn denying(owner: u8, serial: u64, nodes: &[u8], clusters: &[u8]) -> DenyList {
    let nodes = nodes.iter().map(|seed| key(*seed)).collect();
    let clusters = clusters.iter().map(|seed| identity(*seed)).collect();
    DenyList::issue(&secret(owner), serial, nodes, clusters).unwrap()
}

/// Of node `node`, by owner `owner`, until 2000.
fn own_pass(owner: u8, node: u8) -> Pass {
    Pass::issue(&secret(owner), key(node), at(2000), None).unwrap()
}

/// Of node `node` in cluster 20.
fn pass_by(owner: u8, node: u8, scope: Scope) -> Pass {
    pass_for(owner, key(node), scope)
}

fn pass_for(owner: u8, node: NodeKey, scope: Scope) -> Pass {
    let membership = Membership::issue(&secret(owner), identity(20), scope, at(2000));
    Pass::issue(&secret(20), node, at(2000), Some(membership)).unwrap()
}

/// The key with which cluster 20 may be in a lobby.
fn lobby_key() -> NodeKey {
    identity(20).relay_key()
}

#[test]
fn lines_owners_and_passes_let_in() {
    let listed = Listed::usual();
    assert_eq!(listed.judge(1, None), Ok(Grant::default()));
    assert_eq!(listed.judge(2, None), Err(Refusal::NotAdmitted));
    for owner in [10, 11] {
        let own_key = identity(owner).relay_key();
        assert_eq!(
            listed.admission.judge(&own_key, None, at(0)),
            Ok(Grant::default())
        );
        for pass in [own_pass(owner, 2), pass_by(owner, 2, Scope::Mesh)] {
            let grant = listed.judge(2, Some(&pass)).unwrap();
            assert_eq!((grant.only, grant.ends), (None, Some(at(2600))));
        }
        let lobby = pass_for(owner, lobby_key(), Scope::Lobby).to_string();
        let grant = listed.admission.judge(&lobby_key(), Some(&lobby), at(1000));
        assert_eq!(grant.unwrap().only, Some(own_key));
    }
}

#[test]
fn each_bad_pass_has_its_reason() {
    let listed = Listed::usual();
    let cases = [
        (own_pass(10, 3), 2, Refusal::BadPass),
        (own_pass(12, 2), 2, Refusal::NotAdmitted),
        (pass_by(12, 2, Scope::Mesh), 2, Refusal::NotAdmitted),
        (pass_by(10, 2, Scope::Lobby), 2, Refusal::BadPass),
    ];
    for (pass, seed, refusal) in cases {
        assert_eq!(listed.judge(seed, Some(&pass)), Err(refusal));
    }
    let judge = |text: &str, now| listed.admission.judge(&key(2), Some(text), at(now));
    assert_eq!(judge("nonsense", 0), Err(Refusal::BadPass));
    let text = own_pass(10, 2).to_string();
    assert!(judge(&text, 2599).is_ok(), "the clock may be wrong");
    assert_eq!(judge(&text, 2600), Err(Refusal::PassExpired));
}

#[test]
fn a_line_asks_for_no_pass() {
    let listed = Listed::usual();
    for pass in [
        own_pass(10, 3),
        own_pass(12, 1),
        pass_by(10, 1, Scope::Lobby),
    ] {
        let grant = listed.judge(1, Some(&pass)).unwrap();
        assert_eq!((grant.only, grant.ends), (None, None));
    }
}

#[test]
fn without_its_line_a_client_is_judged_by_its_pass() {
    let listed = Listed::new(&format!("{}\n{}\n", lobby_key(), identity(10)));
    let lobby = pass_for(10, lobby_key(), Scope::Lobby).to_string();
    let judge = |text| listed.admission.judge(&lobby_key(), text, at(1000));
    let (with, without) = (judge(Some(&lobby)).unwrap(), judge(None).unwrap());
    assert_eq!((with.only, without.only), (None, None));
    listed.change(&identity(10).to_string());
    let again = |grant| listed.admission.judge_again(&lobby_key(), grant, at(1000));
    assert_eq!(again(&with).unwrap().only, Some(identity(10).relay_key()));
    assert_eq!(again(&without), Err(Refusal::NotAdmitted));
}

#[test]
fn who_was_let_in_stays_until_the_pass_ends_or_the_owner_goes() {
    let listed = Listed::usual();
    let grant = listed.judge(2, Some(&own_pass(10, 2))).unwrap();
    let again = |now| listed.admission.judge_again(&key(2), &grant, at(now));
    assert_eq!(again(2599), Ok(grant));
    assert_eq!(again(2600), Err(Refusal::PassExpired));
    listed.change(&identity(11).to_string());
    assert_eq!(again(1000), Err(Refusal::NotAdmitted));
}

#[test]
fn a_denied_node_is_out_whatever_let_it_in() {
    let listed = Listed::usual();
    listed.deny(denying(10, 1, &[1, 2], &[]));
    assert_eq!(listed.judge(1, None), Err(Refusal::Denied));
    for pass in [own_pass(10, 2), pass_by(10, 2, Scope::Mesh)] {
        assert_eq!(listed.judge(2, Some(&pass)), Err(Refusal::Denied));
    }
    assert!(listed.judge(3, Some(&own_pass(10, 3))).is_ok());
}

#[test]
fn who_is_an_owner_no_more_denies_nobody() {
    let listed = Listed::usual();
    listed.deny(denying(10, 1, &[1], &[]));
    listed.change(&format!("{}\n{}\n", key(1), identity(11)));
    assert!(listed.judge(1, None).is_ok());
}

#[test]
fn a_denied_cluster_takes_its_nodes_with_it() {
    let listed = Listed::usual();
    let grant = listed.judge(2, Some(&pass_by(10, 2, Scope::Mesh))).unwrap();
    listed.deny(denying(10, 1, &[], &[20]));
    let again = listed.admission.judge_again(&key(2), &grant, at(1000));
    assert_eq!(again, Err(Refusal::Denied));
    assert!(listed.judge(2, Some(&own_pass(10, 2))).is_ok());
}

#[test]
fn who_was_away_for_too_long_comes_back_to_the_lobby_unless_denied() {
    let listed = Listed::usual();
    let returner = identity(20).relay_key();
    let expired = Membership::issue(&secret(10), identity(20), Scope::Mesh, at(100));
    let pass = Pass::issue(&secret(20), returner, at(90_000), Some(expired)).unwrap();
    let judge = || {
        let text = pass.to_string();
        listed.admission.judge(&returner, Some(&text), at(1000))
    };
    let grant = judge().unwrap();
    assert_eq!(grant.only, Some(identity(10).relay_key()));
    let again = |now| listed.admission.judge_again(&returner, &grant, at(now));
    assert_eq!(again(90_599), Ok(grant));
    assert_eq!(again(90_600), Err(Refusal::PassExpired));
    listed.deny(denying(10, 1, &[], &[20]));
    assert_eq!(judge(), Err(Refusal::Denied));
    assert_eq!(again(1000), Err(Refusal::Denied));
}

#[test]
fn that_time_runs_out_while_connected_is_no_return() {
    let listed = Listed::usual();
    let returner = identity(20).relay_key();
    let ends = Membership::issue(&secret(10), identity(20), Scope::Mesh, at(2000));
    let pass = Pass::issue(&secret(20), returner, at(90_000), Some(ends)).unwrap();
    let text = pass.to_string();
    let grant = listed.admission.judge(&returner, Some(&text), at(1000));
    let grant = grant.unwrap();
    assert_eq!(grant.only, None);
    let again = listed.admission.judge_again(&returner, &grant, at(2600));
    assert_eq!(again, Err(Refusal::PassExpired), "it has to come again");
}

#[test]
fn the_same_list_once_more_is_no_conflict() {
    let listed = Listed::usual();
    let deny = |list| listed.admission.deny(list);
    for _ in 0..2 {
        assert_eq!(deny(denying(10, 5, &[2], &[])), Ok(()));
    }
    let other = deny(denying(10, 5, &[3], &[]));
    assert_eq!(other, Err(DenyRefused::Stale { in_force: 5 }));
}

#[test]
fn an_owner_denies_neither_another_nor_whom_that_one_admits() {
    let listed = Listed::usual();
    listed.deny(denying(10, 1, &[1, 2], &[11, 20]));
    assert!(listed.judge(2, Some(&own_pass(11, 2))).is_ok());
    assert!(listed.judge(2, Some(&pass_by(11, 2, Scope::Mesh))).is_ok());
    assert!(listed.judge(1, Some(&own_pass(11, 1))).is_ok());
    let other = identity(11).relay_key();
    assert!(listed.admission.judge(&other, None, at(0)).is_ok());
}

#[test]
fn only_a_higher_serial_of_an_owner_counts() {
    let listed = Listed::usual();
    let deny = |list| listed.admission.deny(list);
    let unknown = deny(denying(12, 9, &[], &[]));
    assert_eq!(unknown, Err(DenyRefused::UnknownOwner));
    assert_eq!(deny(denying(10, 5, &[2], &[])), Ok(()));
    for serial in [4, 5] {
        let stale = Err(DenyRefused::Stale { in_force: 5 });
        assert_eq!(deny(denying(10, serial, &[], &[])), stale);
    }
    assert_eq!(deny(denying(11, 1, &[], &[])), Ok(()), "each owner alone");
    let pass = own_pass(10, 2);
    assert_eq!(listed.judge(2, Some(&pass)), Err(Refusal::Denied));
    assert_eq!(deny(denying(10, 6, &[], &[])), Ok(()));
    assert!(listed.judge(2, Some(&pass)).is_ok());
}

#[test]
fn a_file_that_is_too_large_is_refused_and_not_cut() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admit");
    let comments = "#".repeat(MAX_FILE);
    std::fs::write(&path, format!("{comments}\n{}", key(1))).unwrap();
    let refused = Admission::new(&AdmitRule::File(path), SKEW);
    assert!(matches!(refused, Err(AdmitError::TooLarge { .. })));
}

#[test]
fn a_file_that_is_being_written_disconnects_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admit");
    std::fs::write(&path, key(1).to_string()).unwrap();
    let admission = Admission::new(&AdmitRule::File(path.clone()), SKEW).unwrap();
    std::fs::write(&path, "").unwrap();
    assert!(!admission.reload().unwrap());
    std::fs::write(&path, format!("{}\n{}", key(1), key(2))).unwrap();
    assert!(!admission.reload().unwrap());
    assert!(admits(&admission, 1) && !admits(&admission, 2));
    assert!(admission.reload().unwrap());
    assert!(admits(&admission, 1) && admits(&admission, 2));
}

#[test]
fn a_bad_change_leaves_the_list_in_force() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admit");
    std::fs::write(&path, key(1).to_string()).unwrap();
    let admission = Admission::new(&AdmitRule::File(path.clone()), SKEW).unwrap();
    assert!(!admission.reload().unwrap());
    std::fs::write(&path, "nonsense").unwrap();
    assert!(!admission.reload().unwrap());
    assert!(admission.reload().is_err());
    assert!(admits(&admission, 1));
    std::fs::write(&path, key(2).to_string()).unwrap();
    assert!(!admission.reload().unwrap());
    assert!(admission.reload().unwrap());
    assert!(admits(&admission, 2) && !admits(&admission, 1));
    std::fs::remove_file(&path).unwrap();
    assert!(admission.reload().is_err());
    assert!(admits(&admission, 2));
}

#[test]
fn any_admits_all() {
    let admission = Admission::new(&AdmitRule::Any, SKEW).unwrap();
    assert!(admits(&admission, 1) && !admission.can_change());
    let expired = own_pass(10, 1).to_string();
    for pass in [expired.as_str(), "nonsense"] {
        let judged = admission.judge(&key(1), Some(pass), at(9999));
        assert_eq!(judged, Ok(Grant::default()));
    }
    let refused = admission.deny(denying(10, 1, &[1], &[]));
    assert_eq!(refused, Err(DenyRefused::UnknownOwner));
}

fn admits(admission: &Admission, seed: u8) -> bool {
    admission.judge(&key(seed), None, at(0)).is_ok()
}
