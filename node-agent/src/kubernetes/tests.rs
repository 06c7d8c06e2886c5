mod fake;
mod story;

use api::StoredObject;
use serde_json::json;
use tokio::sync::watch;

use super::*;

#[tokio::test]
async fn a_change_wakes_the_agent_and_is_told_once() {
    let (sender, receiver) = watch::channel(None);
    let mut source = Kubernetes::new(receiver);
    assert!(matches!(
        source.look().expect("first").folder,
        FolderRead::Waiting { .. }
    ));
    assert!(source.look().is_none());
    let objects = ClusterObjects {
        peers: vec![StoredObject {
            name: "p".to_owned(),
            uid: String::new(),
            spec: json!({"allowedCIDRs": []}),
        }],
        ..ClusterObjects::default()
    };
    sender.send_replace(Some(objects.clone()));
    source.changed().await;
    assert_eq!(
        source.look().expect("changed").folder,
        FolderRead::Objects(objects.clone())
    );
    sender.send_replace(Some(objects));
    source.changed().await;
    assert!(source.look().is_none(), "the same again");
}
