mod story;

use std::time::{Duration, UNIX_EPOCH};

use sync::{ClusterSecret, TokenRelay};
use tempfile::TempDir;

use super::*;
use crate::args::{StateArgs, TokenText};

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

fn token(audience: Audience, expires: SystemTime) -> Token {
    Token {
        inviter: ClusterSecret::from_seed([1; 32])
            .expect("a seed")
            .identity(),
        secret: ClusterSecret::from_seed([2; 32]).expect("a seed"),
        pass: "pass".to_owned(),
        relays: vec![TokenRelay {
            url: "https://r.example".parse().expect("a URL"),
            stun_port: None,
            ca_bundle: None,
        }],
        expires,
        audience,
        cluster_name: "berlin".parse().expect("a name"),
        cidrs: Vec::new(),
    }
}

fn welcome(cidrs: &[&str], accepted: &[&str]) -> Welcome {
    Welcome {
        cluster_name: "berlin".parse().expect("a name"),
        cidrs: cidrs.iter().map(|text| net(text)).collect(),
        accepted: accepted.iter().map(|text| net(text)).collect(),
        membership: Some("membership".to_owned()),
    }
}

fn args(folder: &Path, name: Option<&str>, addresses: &[&str]) -> JoinArgs {
    JoinArgs {
        token: None,
        token_file: None,
        state: StateArgs {
            folder: folder.to_owned(),
        },
        name: name.map(str::to_owned),
        addresses: addresses.iter().map(|text| net(text)).collect(),
    }
}

fn at() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_790_000_000)
}

#[test]
fn a_token_of_another_kind_or_time_is_told_apart() {
    let later = at() + Duration::from_secs(900);
    assert!(check_token(&token(Audience::Host, later), at()).is_ok());
    let of = |token| check_token(&token, at()).expect_err("refused").to_string();
    assert!(of(token(Audience::Cluster, later)).contains("--host"));
    assert!(of(token(Audience::Host, at())).contains("expired"));
}

#[test]
fn a_token_comes_from_a_file_or_the_command_line() {
    let folder = TempDir::new().expect("a folder");
    let text = token(Audience::Host, at()).to_text().expect("a token");
    let file = folder.path().join("token");
    std::fs::write(&file, format!("  {}\n", text.as_str())).expect("written");
    let mut args = args(folder.path(), None, &[]);
    assert!(read_token(&args).is_err());
    args.token_file = Some(file);
    assert_eq!(read_token(&args).expect("reads").expires, at());
    args.token_file = None;
    args.token = Some(TokenText(text.clone()));
    assert_eq!(read_token(&args).expect("reads").expires, at());
    assert!(!format!("{args:?}").contains(text.as_str()));
}

#[test]
fn who_we_are_is_asked_for_once() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path();
    let refused = Ourselves::of(&args(path, Some("db1"), &[]), None).expect_err("no address");
    assert!(refused.to_string().contains("--address"));
    let refused = Ourselves::of(&args(path, Some("Db 1"), &["10.99.0.7/32"]), None);
    assert!(
        refused
            .expect_err("no label")
            .to_string()
            .contains("--name")
    );
    let us = Ourselves::of(&args(path, Some("db1"), &["10.99.0.7/32"]), None).expect("fine");
    let mesh = || Some(mesh_spec(&us, us.addresses.clone()));
    assert_eq!(
        Ourselves::of(&args(path, None, &[]), mesh()).expect("fine"),
        us
    );
    let other = Ourselves::of(&args(path, Some("db2"), &[]), mesh()).expect_err("another");
    let other = other.to_string();
    assert!(other.contains("has joined as db1"), "{other}");
    let way_out = format!("cleanup --state {} --purge", path.display());
    assert!(other.contains(&way_out), "{other}");
}

#[test]
fn what_was_agreed_is_kept_and_comes_into_force() {
    let folder = TempDir::new().expect("a folder");
    let state = StateFolder::open(&folder.path().join("state")).expect("opens");
    let key = state.key().expect("a key").public();
    let us = Ourselves::of(
        &args(
            folder.path(),
            Some("db1"),
            &["10.99.0.7/32", "10.99.0.8/32"],
        ),
        None,
    )
    .expect("fine");
    let token = token(Audience::Host, at());
    let welcome = welcome(&["10.1.0.0/16"], &["10.99.0.7/32"]);
    let agreed = Agreed::new(&us, &token, &welcome).expect("agreed");
    agreed.check(&state, key).expect("usable");
    agreed
        .keep(&state, token.inviter, welcome.membership)
        .expect("kept");
    let summary = agreed.summary(state.path(), token.inviter);
    for part in [
        "joined berlin as db1",
        "10.1.0.0/16",
        "not accepted  10.99.0.8/32",
        "culvert-agent run --state",
    ] {
        assert!(summary.contains(part), "{part}: {summary}");
    }
    let mut store = Store::new(key, None);
    let read = crate::Watcher::new(&state.joined()).look().expect("there");
    let accepted = store.update(&read, &Surroundings::default());
    let mesh = accepted.mesh.as_ref().expect("in force");
    assert_eq!(
        (mesh.addresses.clone(), mesh.relays.len()),
        (vec![net("10.99.0.7/32")], 1)
    );
    assert_eq!(mesh.relays[0].owner, Some(token.inviter));
    assert_eq!(accepted.peers[0].identity, Some(token.inviter));
    assert_eq!(state.memberships().expect("reads").by_owner.len(), 1);
    assert_eq!(
        mesh_before(&state)
            .expect("reads")
            .expect("there")
            .cluster_name,
        "db1"
    );
    state.make_identity().expect("made");
    state.clear(true).expect("cleared");
    assert!(!state.path().exists());
}

#[test]
fn what_cannot_be_used_is_not_kept() {
    let folder = TempDir::new().expect("a folder");
    let state = StateFolder::open(&folder.path().join("state")).expect("opens");
    let key = state.key().expect("a key").public();
    let us =
        Ourselves::of(&args(folder.path(), Some("db1"), &["10.99.0.7/32"]), None).expect("fine");
    let token = token(Audience::Host, at());
    for cidrs in [&["169.254.0.0/16"][..], &["10.1.0.0/16", "127.0.0.0/8"]] {
        let agreed = Agreed::new(&us, &token, &welcome(cidrs, &["10.99.0.7/32"])).expect("agreed");
        let refused = agreed.check(&state, key).expect_err("refused").to_string();
        assert!(
            refused.contains("nothing was kept: spec.allowedCIDRs["),
            "{refused}"
        );
    }
    let inside = welcome(&["10.1.0.0/16", "10.99.0.0/16"], &["10.99.0.7/32"]);
    let refused = Agreed::new(&us, &token, &inside).expect_err("inside");
    assert_eq!(
        refused.to_string(),
        "--address 10.99.0.7/32 lies in 10.99.0.0/16 of berlin; choose one outside all clusters' ranges"
    );
    assert!(Agreed::new(&us, &token, &welcome(&["10.1.0.0/16"], &[])).is_err());
    assert!(Agreed::new(&us, &token, &welcome(&[], &["10.99.0.7/32"])).is_err());
}

#[test]
fn whoever_cannot_have_the_inviter_as_a_peer_does_not_use_the_token() {
    let folder = TempDir::new().expect("a folder");
    let state = StateFolder::open(&folder.path().join("state")).expect("opens");
    let key = state.key().expect("a key").public();
    let us = args(folder.path(), Some("db1"), &["10.99.0.7/32"]);
    let us = Ourselves::of(&us, None).expect("fine");
    let foreseen = |cidrs: &[&str]| {
        let token = Token {
            cidrs: cidrs.iter().map(|text| net(text)).collect(),
            ..token(Audience::Host, at())
        };
        foresee(&us, &token, &state, key)
    };
    let refused = foreseen(&["10.1.0.0/16", "169.254.0.0/16"]);
    let refused = refused.expect_err("link-local").to_string();
    assert!(refused.contains("nothing was kept"), "{refused}");
    assert!(foreseen(&["10.1.0.0/16"]).is_ok());
    let refused = foreseen(&["10.99.0.0/16"]).expect_err("inside").to_string();
    assert!(
        refused.contains("lies in 10.99.0.0/16 of berlin"),
        "{refused}"
    );
    assert!(foreseen(&[]).is_ok(), "the token does not say");
}

#[test]
fn every_refusal_has_a_way_out() {
    for (code, way) in [
        (RefusedCode::Expired, "new one"),
        (RefusedCode::Used, "new one"),
        (RefusedCode::NameTaken, "--name"),
        (RefusedCode::Overlap, "--address"),
        (RefusedCode::NotAllowed, "--cidrs"),
        (RefusedCode::WrongAudience, "--host"),
        (RefusedCode::Busy, "again"),
    ] {
        assert!(hint(code).contains(way), "{code:?}");
    }
    let unreachable = JoinError::RelayUnreachable {
        url: "https://r.example".parse().expect("a URL"),
        problem: "connection refused".to_owned(),
        refusal: None,
    };
    let text = explain(&unreachable).to_string();
    assert!(
        text.contains("r.example") && text.contains("outbound TCP"),
        "{text}"
    );
}
