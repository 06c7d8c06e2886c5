//! The objects of one kind.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};

/// The objects of one kind in one namespace, or without any, by name. Clones are the same shelf.
#[derive(Debug)]
pub(crate) struct Shelf<K> {
    contents: Arc<Mutex<Contents<K>>>,
}

#[derive(Debug)]
struct Contents<K> {
    objects: BTreeMap<String, Arc<K>>,
    /// Of a list that has not ended.
    incoming: BTreeMap<String, Arc<K>>,
    /// Whether all there is has been seen once.
    complete: bool,
}

/// Versions of objects, whatever their kind.
pub(crate) trait Versions: Debug + Send + Sync {
    /// Whether all there is has been seen once.
    fn is_complete(&self) -> bool;
    /// Whether the object is here in this version or a later one.
    fn has_reached(&self, name: &str, version: &str) -> bool;
}

impl<K> Clone for Shelf<K> {
    fn clone(&self) -> Self {
        Self {
            contents: Arc::clone(&self.contents),
        }
    }
}

impl<K> Default for Shelf<K> {
    fn default() -> Self {
        let contents = Contents {
            objects: BTreeMap::new(),
            incoming: BTreeMap::new(),
            complete: false,
        };
        Self {
            contents: Arc::new(Mutex::new(contents)),
        }
    }
}

impl<K> Shelf<K> {
    /// All objects, by name.
    pub(crate) fn objects(&self) -> Vec<Arc<K>> {
        self.lock().objects.values().cloned().collect()
    }

    /// The object of this name.
    pub(crate) fn object(&self, name: &str) -> Option<Arc<K>> {
        self.lock().objects.get(name).cloned()
    }

    /// Whether all there is has been seen once.
    pub(crate) fn is_complete(&self) -> bool {
        self.lock().complete
    }

    /// Takes what is here for all there is. Says whether that is news.
    pub(crate) fn complete(&self) -> bool {
        !std::mem::replace(&mut self.lock().complete, true)
    }

    /// There is nothing (any more). Says whether that is news.
    pub(crate) fn clear(&self) -> bool {
        let mut contents = self.lock();
        contents.incoming.clear();
        let had = !std::mem::take(&mut contents.objects).is_empty();
        !std::mem::replace(&mut contents.complete, true) || had
    }

    fn lock(&self) -> MutexGuard<'_, Contents<K>> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Resource> Shelf<K> {
    /// Takes what has happened. Says whether that makes a difference.
    pub(crate) fn apply(&self, event: Event<K>, same: fn(&K, &K) -> bool) -> bool {
        let mut contents = self.lock();
        match event {
            Event::Init => {
                contents.incoming.clear();
                false
            }
            Event::InitApply(object) => {
                contents
                    .incoming
                    .insert(object.name_any(), Arc::new(object));
                false
            }
            Event::InitDone => {
                let now = std::mem::take(&mut contents.incoming);
                let before = std::mem::replace(&mut contents.objects, now);
                let equal = before.len() == contents.objects.len()
                    && before
                        .iter()
                        .zip(&contents.objects)
                        .all(|(old, new)| old.0 == new.0 && same(old.1, new.1));
                !std::mem::replace(&mut contents.complete, true) || !equal
            }
            Event::Apply(object) => {
                let object = Arc::new(object);
                let before = contents
                    .objects
                    .insert(object.name_any(), Arc::clone(&object));
                before.is_none_or(|before| !same(&before, &object))
            }
            Event::Delete(object) => contents.objects.remove(&object.name_any()).is_some(),
        }
    }
}

impl<K: Resource + Debug + Send + Sync> Versions for Shelf<K> {
    fn is_complete(&self) -> bool {
        Self::is_complete(self)
    }

    fn has_reached(&self, name: &str, version: &str) -> bool {
        let number = |version: &str| version.parse::<u64>().ok();
        let here = self
            .object(name)
            .and_then(|object| object.resource_version());
        match (here.as_deref().map(number), number(version)) {
            (Some(Some(here)), Some(wanted)) => here >= wanted,
            (None, _) => false,
            // Not the numbers that these have always been: nothing can be said.
            (Some(None), _) | (_, None) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn object(name: &str, version: u64) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.name = Some(name.to_owned());
        object.metadata.resource_version = Some(version.to_string());
        object
    }

    fn same(before: &ConfigMap, now: &ConfigMap) -> bool {
        before.metadata.resource_version == now.metadata.resource_version
    }

    fn names(shelf: &Shelf<ConfigMap>) -> Vec<String> {
        shelf
            .objects()
            .iter()
            .map(|object| object.name_any())
            .collect()
    }

    fn list(shelf: &Shelf<ConfigMap>, objects: Vec<ConfigMap>) -> bool {
        let mut events = vec![Event::Init];
        events.extend(objects.into_iter().map(Event::InitApply));
        let told = events.into_iter().any(|event| shelf.apply(event, same));
        assert!(!told, "a list that has not ended is no news");
        shelf.apply(Event::InitDone, same)
    }

    #[test]
    fn a_list_counts_when_it_is_complete() {
        let shelf = Shelf::default();
        shelf.apply(Event::Init, same);
        shelf.apply(Event::InitApply(object("b", 1)), same);
        assert!(names(&shelf).is_empty() && !shelf.is_complete());
        shelf.apply(Event::InitApply(object("a", 1)), same);
        assert!(shelf.apply(Event::InitDone, same));
        assert_eq!(names(&shelf), ["a", "b"]);
    }

    #[test]
    fn a_list_that_brings_nothing_new_is_no_news() {
        let shelf = Shelf::default();
        assert!(list(&shelf, vec![]), "that there is nothing is news once");
        assert!(!list(&shelf, vec![]));
        assert!(list(&shelf, vec![object("a", 1)]));
        assert!(!list(&shelf, vec![object("a", 1)]));
        assert!(list(&shelf, vec![object("a", 2)]));
        assert!(list(&shelf, vec![object("b", 2)]), "a is gone");
        assert_eq!(names(&shelf), ["b"]);
    }

    #[test]
    fn single_changes() {
        let shelf = Shelf::default();
        list(&shelf, vec![]);
        assert!(shelf.apply(Event::Apply(object("a", 1)), same));
        assert!(!shelf.apply(Event::Apply(object("a", 1)), same));
        assert!(shelf.apply(Event::Delete(object("a", 2)), same));
        assert!(!shelf.apply(Event::Delete(object("a", 2)), same));
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        let shelf = Shelf::default();
        list(&shelf, vec![object("a", 99)]);
        assert!(shelf.has_reached("a", "99") && shelf.has_reached("a", "9"));
        assert!(!shelf.has_reached("a", "100"));
        assert!(!shelf.has_reached("b", "1"));
        assert!(shelf.has_reached("a", "opaque"));
    }

    #[test]
    fn a_kind_that_goes_takes_its_objects_along() {
        let shelf = Shelf::default();
        list(&shelf, vec![object("a", 1)]);
        assert!(shelf.clear() && !shelf.clear());
        assert!(names(&shelf).is_empty());
    }
}
