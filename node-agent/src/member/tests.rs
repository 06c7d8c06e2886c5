use std::time::UNIX_EPOCH;

use derp::NodeSecret;
use derp::pass::{LIFETIME, Membership, Scope};

use super::*;

fn secret(seed: u8) -> ClusterSecret {
    ClusterSecret::from_seed([seed; 32]).expect("a seed")
}

fn view(membership: Option<String>, node: Option<&str>) -> PeerView {
    let records = node.map(|name| {
        let key = NodeSecret::generate().public();
        let prefixes = vec!["10.2.0.0/24".parse().expect("prefix")];
        let record = NodeRecord::new(key, None, prefixes, 1).expect("a record");
        let mut records = Records::default();
        let name = name.parse().expect("a name");
        records.insert(name, Arc::new(record)).expect("room");
        Arc::new(records)
    });
    PeerView {
        membership,
        records,
        ..PeerView::default()
    }
}

#[test]
fn only_a_membership_that_lets_us_in_counts() {
    let now = UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    let (owner, us) = (secret(1), secret(2).identity());
    let issue = |owner: &ClusterSecret, cluster, scope, expires| {
        Membership::issue(owner, cluster, scope, expires).to_string()
    };
    let later = now + LIFETIME;
    let good = issue(&owner, us, Scope::Mesh, later);
    for (text, counts) in [
        (good, true),
        (issue(&owner, us, Scope::Lobby, later), false),
        (issue(&owner, us, Scope::Mesh, now - LIFETIME), false),
        (
            issue(&owner, secret(3).identity(), Scope::Mesh, later),
            false,
        ),
        (issue(&secret(3), us, Scope::Mesh, later), false),
        ("nonsense".to_owned(), false),
    ] {
        let views = BTreeMap::from([(owner.identity(), view(Some(text.clone()), None))]);
        let found = memberships(&views, us, now);
        let expected: Vec<_> = counts
            .then_some((owner.identity(), text))
            .into_iter()
            .collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn what_is_told_goes_by_the_names_of_peers() {
    let (a, b) = (secret(1).identity(), secret(2).identity());
    let views = BTreeMap::from([(a, view(None, Some("n1"))), (b, view(None, None))]);
    let names = BTreeMap::from([(a, "berlin".to_owned()), (b, "tokyo".to_owned())]);
    let told = told(&views, &names);
    assert_eq!(
        told.len(),
        1,
        "who has said nothing yet is not asked to have no nodes"
    );
    assert_eq!(
        (told[0].peer.as_str(), told[0].nodes[0].name.as_str()),
        ("berlin", "n1")
    );
    assert_eq!(told[0].nodes[0].prefixes, ["10.2.0.0/24"]);
}

#[test]
fn the_own_record_says_where_we_listen() {
    let mine = Mine {
        name: "db1".to_owned(),
        key: NodeSecret::generate().public(),
        prefixes: vec!["10.99.0.7/32".parse().expect("prefix")],
    };
    let records = own_records(&mine, Some("https://r.example"), 3).expect("fits");
    let record = records.find("db1").expect("there");
    assert_eq!((record.public_key(), record.generation()), (mine.key, 3));
    assert!(record.home_relay().is_some());
}
