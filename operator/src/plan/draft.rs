//! A plan while it is being made.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::{Resource, ResourceExt};
use serde::Serialize;

use super::covers::{checksum, covers};
use super::names::CHECKSUM;
use crate::action::{Action, Kind, Object, StatusOf, Target};

/// Writes so far, and when to look again.
#[derive(Debug)]
pub(crate) struct Draft {
    now: Timestamp,
    wake: Option<Timestamp>,
    actions: Vec<Action>,
}

impl Draft {
    /// Nothing yet. Status has whole seconds, so the time has, too.
    pub(crate) fn new(now: Timestamp) -> Self {
        Self {
            now: Timestamp::from_second(now.as_second()).unwrap_or(now),
            wake: None,
            actions: Vec::new(),
        }
    }

    /// The time of this look, in whole seconds.
    pub(crate) fn now(&self) -> Timestamp {
        self.now
    }

    /// Notes a write.
    pub(crate) fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// Sees to it that an object is as it is wanted.
    pub(crate) fn apply<K: Serialize>(&mut self, object: impl Into<Object>, found: Option<&K>) {
        if let Some(object) = differing(object.into(), found) {
            self.push(Action::Apply(object));
        }
    }

    /// The same, if nobody else changes it meanwhile.
    pub(crate) fn swap<K: Serialize + Resource>(
        &mut self,
        object: impl Into<Object>,
        found: Option<&K>,
    ) {
        if let Some(mut object) = differing(object.into(), found) {
            let version = found.and_then(|found| found.meta().resource_version.clone());
            object.metadata_mut().resource_version = version;
            self.push(Action::Swap(object));
        }
    }

    /// Notes a status that has changed.
    pub(crate) fn status<S: PartialEq>(&mut self, new: &S, old: Option<&S>, status: StatusOf) {
        if old != Some(new) {
            self.push(Action::ApplyStatus(status));
        }
    }

    /// Deletes an object.
    pub(crate) fn delete<K: Resource>(&mut self, kind: Kind, object: &K) {
        self.push(Action::Delete(Target {
            kind,
            namespace: object.namespace(),
            name: object.name_any(),
            uid: object.uid(),
        }));
    }

    /// Asks for another look at that time.
    pub(crate) fn wake_at(&mut self, at: Timestamp) {
        let sooner = self.wake.is_none_or(|wake| at < wake);
        if at > self.now && sooner {
            self.wake = Some(at);
        }
    }

    /// Asks for another look in so many seconds.
    pub(crate) fn wake_in(&mut self, seconds: i64) {
        self.wake_at(later(self.now, seconds));
    }

    /// The writes, and how long to wait.
    pub(crate) fn finish(self) -> (Vec<Action>, Option<Duration>) {
        let wait = self.wake.map(|wake| wake.duration_since(self.now));
        let wait = wait.and_then(|wait| Duration::try_from(wait).ok());
        (self.actions, wait)
    }
}

/// The time so many seconds later.
pub(crate) fn later(time: Timestamp, seconds: i64) -> Timestamp {
    time.checked_add(SignedDuration::from_secs(seconds))
        .unwrap_or(time)
}

/// The object of this name.
pub(crate) fn find<'a, K: Resource>(objects: &'a [Arc<K>], name: &str) -> Option<&'a K> {
    let found = objects
        .iter()
        .find(|object| object.meta().name.as_deref() == Some(name));
    found.map(Arc::as_ref)
}

/// Objects from the oldest to the youngest, without those that are being deleted.
pub(crate) fn by_age<K: Resource>(objects: &[Arc<K>]) -> Vec<&K> {
    let mut sorted: Vec<&K> = objects
        .iter()
        .map(Arc::as_ref)
        .filter(|object| object.meta().deletion_timestamp.is_none())
        .collect();
    let age = |object: &&K| {
        let created = object.meta().creation_timestamp.as_ref();
        (
            created.map_or(Timestamp::MAX, |time| time.0),
            object.name_any(),
        )
    };
    sorted.sort_by_cached_key(age);
    sorted
}

/// The object as it is written, if what there is differs.
fn differing<K: Serialize>(object: Object, found: Option<&K>) -> Option<Object> {
    let object = stamped(object);
    let found = found.and_then(|found| serde_json::to_value(found).ok());
    let is_so = found.is_some_and(|found| covers(&found, &object.to_value()));
    (!is_so).then_some(object)
}

/// The object with a checksum of itself, which shows that a field is no longer wanted.
fn stamped(mut object: Object) -> Object {
    let sum = checksum(object.to_value().to_string().as_bytes());
    let annotations = &mut object.metadata_mut().annotations;
    annotations
        .get_or_insert_with(BTreeMap::new)
        .insert(CHECKSUM.to_owned(), sum);
    object
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn map(value: Option<&str>) -> ConfigMap {
        let data = value.map(|value| BTreeMap::from([("a".to_owned(), value.to_owned())]));
        ConfigMap {
            metadata: ObjectMeta {
                name: Some("x".to_owned()),
                ..ObjectMeta::default()
            },
            data,
            ..ConfigMap::default()
        }
    }

    fn applied(wanted: ConfigMap, found: Option<&ConfigMap>) -> Option<Object> {
        let mut draft = Draft::new(Timestamp::UNIX_EPOCH);
        draft.apply(wanted, found);
        let action = draft.finish().0.pop()?;
        let Action::Apply(object) = action else {
            panic!("{action:?}");
        };
        Some(object)
    }

    #[test]
    fn what_is_as_wanted_is_left_alone() {
        let first = applied(map(Some("1")), None).expect("applied");
        let Object::ConfigMap(mut found) = first else {
            panic!("a ConfigMap");
        };
        found.metadata.uid = Some("from the API server".to_owned());
        assert!(applied(map(Some("1")), Some(&found)).is_none());
        assert!(applied(map(Some("2")), Some(&found)).is_some());
        assert!(applied(map(None), Some(&found)).is_some(), "a field goes");
    }

    #[test]
    fn a_swap_names_the_version_that_was_looked_at() {
        let swapped = |found: Option<&ConfigMap>| {
            let mut draft = Draft::new(Timestamp::UNIX_EPOCH);
            draft.swap(map(Some("1")), found);
            draft.finish().0.pop()
        };
        let Some(Action::Swap(Object::ConfigMap(mut made))) = swapped(None) else {
            panic!("a ConfigMap");
        };
        assert_eq!(made.metadata.resource_version, None, "there must be none");
        made.metadata.resource_version = Some("7".to_owned());
        assert!(swapped(Some(&made)).is_none(), "it is as wanted");
        let mut other = map(Some("2"));
        other.metadata.resource_version = Some("8".to_owned());
        let Some(Action::Swap(object)) = swapped(Some(&other)) else {
            panic!("it differs");
        };
        assert_eq!(object.metadata().resource_version.as_deref(), Some("8"));
    }

    #[test]
    fn the_soonest_look_counts_and_the_past_does_not() {
        let mut draft = Draft::new(Timestamp::UNIX_EPOCH);
        draft.wake_in(-5);
        assert_eq!(draft.wake, None);
        draft.wake_in(20);
        draft.wake_in(10);
        draft.wake_in(30);
        assert_eq!(draft.finish().1, Some(Duration::from_secs(10)));
    }
}
