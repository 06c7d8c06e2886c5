//! Which keys are connected, and on which connections.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use derp::{Message, NodeKey, PeerGoneReason};

use crate::admit::Grant;
use crate::queue::{Budget, Queue};
use crate::waiting::Waiting;

/// Connections that one key may have; the oldest is closed for one more.
const MAX_PER_KEY: usize = 8;
/// Receivers that are told when a sender goes: some 80 KiB for each connection at the most.
const MAX_REACHED: usize = 1024;

const DUPLICATE: &str = "another connection uses the same key and is now the active one; two machines with one key \
                         cannot both be reached";

/// All connections by key.
#[derive(Debug)]
pub(crate) struct Registry {
    inner: RwLock<Inner>,
    budget: Arc<Budget>,
}

/// A connection on which the handshake is done.
#[derive(Debug)]
pub(crate) struct Member {
    id: u64,
    key: NodeKey,
    grant: Grant,
    /// What waits to be written to it.
    pub(crate) queue: Queue,
    /// The key has other connections too.
    shares_key: AtomicBool,
    /// It was told of another connection.
    told: AtomicBool,
}

/// The connections that a sender's packets have gone to.
#[derive(Debug, Default)]
pub(crate) struct Reached(HashMap<NodeKey, u64>);

#[derive(Debug, Default)]
struct Inner {
    nodes: HashMap<NodeKey, Node>,
    waiting: Waiting,
    next_id: u64,
}

#[derive(Debug)]
struct Node {
    active: Arc<Member>,
    /// Older first.
    others: Vec<Arc<Member>>,
    /// What connections of this key that are gone have reached.
    reached: Reached,
}

impl Registry {
    /// Nobody yet; so many bytes may wait for all receivers together.
    pub(crate) fn new(queued_bytes: usize) -> Self {
        Self {
            inner: RwLock::default(),
            budget: Arc::new(Budget::new(queued_bytes)),
        }
    }

    /// Adds a connection whose first frames are given, and makes it the active one of its key.
    pub(crate) fn register(
        &self,
        now: Instant,
        key: NodeKey,
        grant: Grant,
        first: Vec<u8>,
    ) -> Arc<Member> {
        let mut inner = self.write();
        inner.next_id += 1;
        let member = Arc::new(Member {
            id: inner.next_id,
            key,
            grant,
            queue: Queue::new(first, Arc::clone(&self.budget)),
            shares_key: AtomicBool::new(false),
            told: AtomicBool::new(false),
        });
        match inner.nodes.get_mut(&key) {
            Some(node) => node.add(Arc::clone(&member)),
            None => {
                inner.nodes.insert(key, Node::new(Arc::clone(&member)));
            }
        }
        for waiter in inner.waiting.take(now, &key) {
            inner.tell_of(&waiter, &member);
        }
        member
    }

    /// Removes a connection. Whoever had packets from its key is told if it was the last one.
    pub(crate) fn unregister(&self, member: &Member, reached: Reached) {
        let mut inner = self.write();
        let Some(node) = inner.nodes.get_mut(&member.key) else {
            return;
        };
        node.reached.merge(reached);
        if node.remove(member.id) {
            return;
        }
        let Some(node) = inner.nodes.remove(&member.key) else {
            return;
        };
        let gone = Message::PeerGone {
            key: member.key,
            reason: PeerGoneReason::Disconnected,
        };
        for (key, id) in &node.reached.0 {
            if let Some(receiver) = inner.nodes.get(key).and_then(|node| node.member(*id)) {
                receiver.queue.push_control(gone);
            }
        }
    }

    /// The active connection of a key, for a sender that it may meet; others find it as absent as if it were.
    pub(crate) fn find(&self, key: &NodeKey, sender: &NodeKey) -> Option<Arc<Member>> {
        self.read().present(key, sender).map(Arc::clone)
    }

    /// Something arrived on this connection: it becomes the active one of its key.
    pub(crate) fn heard(&self, member: &Member) {
        if !member.shares_key.load(Ordering::Relaxed) {
            return;
        }
        if let Some(node) = self.write().nodes.get_mut(&member.key) {
            node.activate(member.id);
        }
    }

    /// `sender` looked for `absent`; it is told when that key comes. Says whether it is absent still.
    pub(crate) fn wait_for(&self, now: Instant, absent: NodeKey, sender: NodeKey) -> bool {
        let mut inner = self.write();
        if inner.present(&absent, &sender).is_some() {
            return false;
        }
        inner.waiting.add(now, absent, sender);
        true
    }

    /// Looks at every connection, and says for how many of them the answer was yes.
    pub(crate) fn count(&self, what: impl Fn(&Member) -> bool) -> usize {
        let inner = self.read();
        let members = inner.nodes.values().flat_map(Node::members);
        members.filter(|member| what(member)).count()
    }

    /// Number of connections, and bytes of packets that wait for them.
    pub(crate) fn load(&self) -> (usize, usize) {
        let inner = self.read();
        let members = inner.nodes.values().flat_map(Node::members);
        members.fold((0, 0), |(count, bytes), member| {
            (count + 1, bytes + member.queue.bytes())
        })
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Member {
    /// The key that the handshake proved.
    pub(crate) fn key(&self) -> &NodeKey {
        &self.key
    }

    /// How it was let in.
    pub(crate) fn grant(&self) -> &Grant {
        &self.grant
    }

    /// Whether it may exchange packets with a key, as far as it is concerned.
    pub(crate) fn may_meet(&self, other: &NodeKey) -> bool {
        self.grant.only.is_none_or(|only| only == *other)
    }
}

impl Reached {
    /// A packet went to this connection.
    pub(crate) fn note(&mut self, receiver: &Member) {
        if self.0.len() < MAX_REACHED || self.0.contains_key(&receiver.key) {
            self.0.insert(receiver.key, receiver.id);
        }
    }

    fn merge(&mut self, other: Self) {
        self.0.extend(
            other
                .0
                .into_iter()
                .take(MAX_REACHED.saturating_sub(self.0.len())),
        );
    }
}

impl Inner {
    fn present(&self, key: &NodeKey, sender: &NodeKey) -> Option<&Arc<Member>> {
        let active = self.nodes.get(key).map(|node| &node.active);
        active.filter(|active| active.may_meet(sender))
    }

    /// Who waited is told of the arrival, unless the two may not meet.
    fn tell_of(&self, waiter: &NodeKey, arrived: &Member) {
        let present = Message::PeerPresent {
            key: arrived.key,
            address: None,
            flags: 0,
        };
        if let Some(node) = self.nodes.get(waiter)
            && arrived.may_meet(waiter)
            && node.active.may_meet(&arrived.key)
        {
            node.active.queue.push_control(present);
        }
    }
}

impl Node {
    fn new(active: Arc<Member>) -> Self {
        Self {
            active,
            others: Vec::new(),
            reached: Reached::default(),
        }
    }

    fn add(&mut self, newest: Arc<Member>) {
        let older = std::mem::replace(&mut self.active, newest);
        older.queue.push_control(Message::Health(DUPLICATE));
        older.told.store(true, Ordering::Relaxed);
        self.others.push(older);
        if self.others.len() >= MAX_PER_KEY {
            self.others
                .remove(0)
                .queue
                .close(Message::Health(DUPLICATE));
        }
        self.members()
            .for_each(|member| member.shares_key.store(true, Ordering::Relaxed));
    }

    /// Whether any connection is left.
    fn remove(&mut self, id: u64) -> bool {
        self.others.retain(|member| member.id != id);
        if self.active.id == id {
            let Some(next) = self.others.pop() else {
                return false;
            };
            self.active = next;
        }
        if self.others.is_empty() {
            self.active.shares_key.store(false, Ordering::Relaxed);
            if self.active.told.swap(false, Ordering::Relaxed) {
                self.active.queue.push_control(Message::Health(""));
            }
        }
        true
    }

    fn activate(&mut self, id: u64) {
        if self.active.id == id {
            return;
        }
        let Some(index) = self.others.iter().position(|member| member.id == id) else {
            return;
        };
        let member = self.others.remove(index);
        self.others
            .push(std::mem::replace(&mut self.active, member));
    }

    fn member(&self, id: u64) -> Option<&Arc<Member>> {
        self.members().find(|member| member.id == id)
    }

    fn members(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.others.iter().chain([&self.active])
    }
}

#[cfg(test)]
mod tests {
    use derp::{FrameBuffer, NodeSecret};

    use super::*;

    fn key(seed: u8) -> NodeKey {
        NodeSecret::from_bytes([seed; 32]).public()
    }

    fn join(registry: &Registry, seed: u8) -> Arc<Member> {
        registry.register(Instant::now(), key(seed), Grant::default(), Vec::new())
    }

    fn told(member: &Member) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        member.queue.drain(&mut out);
        let mut buffer = FrameBuffer::with(out);
        buffer
            .frames()
            .map(|frame| Message::decode(frame.unwrap()).unwrap().to_vec())
            .collect()
    }

    #[test]
    fn the_newest_connection_is_active_until_another_speaks() {
        let registry = Registry::new(usize::MAX);
        let (older, newer) = (join(&registry, 1), join(&registry, 1));
        assert_eq!(registry.find(&key(1), &key(2)).unwrap().id, newer.id);
        assert_eq!(told(&older), [Message::Health(DUPLICATE).to_vec()]);
        registry.heard(&older);
        assert_eq!(registry.find(&key(1), &key(2)).unwrap().id, older.id);
        registry.unregister(&newer, Reached::default());
        assert_eq!(told(&older), [Message::Health("").to_vec()]);
        assert_eq!(registry.load().0, 1);
    }

    #[test]
    fn receivers_hear_when_the_last_connection_of_a_sender_goes() {
        let registry = Registry::new(usize::MAX);
        let (one, two) = (join(&registry, 1), join(&registry, 1));
        let receiver = join(&registry, 2);
        let mut reached = Reached::default();
        reached.note(&receiver);
        registry.unregister(&one, reached);
        assert!(told(&receiver).is_empty());
        registry.unregister(&two, Reached::default());
        let gone = Message::PeerGone {
            key: key(1),
            reason: PeerGoneReason::Disconnected,
        };
        assert_eq!(told(&receiver), [gone.to_vec()]);
        assert!(registry.find(&key(1), &key(2)).is_none());
    }

    #[test]
    fn who_is_told_of_the_end_is_bounded() {
        let registry = Registry::new(usize::MAX);
        let mut reached = Reached::default();
        let receiver = join(&registry, 2);
        reached.note(&receiver);
        for seed in 0..MAX_REACHED {
            let mut bytes = [9; 32];
            bytes[8..16].copy_from_slice(&seed.to_be_bytes());
            let receiver = registry.register(
                Instant::now(),
                NodeKey::from_bytes(bytes).unwrap(),
                Grant::default(),
                Vec::new(),
            );
            reached.note(&receiver);
        }
        assert_eq!(reached.0.len(), MAX_REACHED);
        reached.note(&receiver);
        reached.merge(Reached(HashMap::from([(key(3), 1)])));
        assert_eq!(reached.0.len(), MAX_REACHED);
        assert!(reached.0.contains_key(&key(2)));
    }

    #[test]
    fn a_new_connection_of_a_receiver_hears_nothing_of_the_old() {
        let registry = Registry::new(usize::MAX);
        let (sender, receiver) = (join(&registry, 1), join(&registry, 2));
        let mut reached = Reached::default();
        reached.note(&receiver);
        registry.unregister(&receiver, Reached::default());
        let again = join(&registry, 2);
        registry.unregister(&sender, reached);
        assert!(told(&again).is_empty());
    }

    #[test]
    fn who_waits_is_told_of_the_arrival() {
        let registry = Registry::new(usize::MAX);
        let sender = join(&registry, 1);
        assert!(registry.wait_for(Instant::now(), key(2), key(1)));
        let arrived = join(&registry, 2);
        let present = Message::PeerPresent {
            key: key(2),
            address: None,
            flags: 0,
        };
        assert_eq!(told(&sender), [present.to_vec()]);
        assert!(told(&arrived).is_empty());
        assert!(!registry.wait_for(Instant::now(), key(2), key(1)));
    }

    #[test]
    fn one_key_has_a_bounded_number_of_connections() {
        let registry = Registry::new(usize::MAX);
        let members: Vec<_> = (0..20).map(|_| join(&registry, 1)).collect();
        assert_eq!(registry.load().0, MAX_PER_KEY);
        members
            .iter()
            .for_each(|member| registry.unregister(member, Reached::default()));
        assert_eq!(registry.load().0, 0);
    }

    fn join_lobby(registry: &Registry, seed: u8, only: u8) -> Arc<Member> {
        registry.register(
            Instant::now(),
            key(seed),
            Grant::lobby(key(only)),
            Vec::new(),
        )
    }

    #[test]
    fn a_lobby_hears_of_no_arrival_and_its_own_is_heard_of_by_nobody_else() {
        let registry = Registry::new(usize::MAX);
        let now = Instant::now();
        let (owner, other) = (join(&registry, 1), join(&registry, 2));
        for waiter in [1, 2] {
            assert!(registry.wait_for(now, key(3), key(waiter)));
        }
        let lobby = join_lobby(&registry, 3, 1);
        assert_eq!(told(&owner).len(), 1);
        assert!(told(&other).is_empty());
        assert!(registry.wait_for(now, key(4), key(3)));
        let _fourth = join(&registry, 4);
        assert!(told(&lobby).is_empty());
        assert!(lobby.may_meet(&key(1)) && !lobby.may_meet(&key(2)));
    }

    #[test]
    fn who_is_in_the_lobby_is_absent_for_all_but_the_owner() {
        let registry = Registry::new(usize::MAX);
        let now = Instant::now();
        let (_owner, other) = (join(&registry, 1), join(&registry, 2));
        let _lobby = join_lobby(&registry, 3, 1);
        assert!(registry.find(&key(3), &key(1)).is_some());
        assert!(registry.find(&key(3), &key(2)).is_none());
        assert!(!registry.wait_for(now, key(3), key(1)));
        assert!(registry.wait_for(now, key(3), key(2)));
        let _admitted = join(&registry, 3);
        assert_eq!(told(&other).len(), 1, "it is here for all now");
    }

    #[test]
    fn all_connections_are_looked_at() {
        let registry = Registry::new(usize::MAX);
        let _members = (join(&registry, 1), join(&registry, 1), join(&registry, 2));
        assert_eq!(registry.count(|member| member.key == key(1)), 2);
        assert_eq!(registry.count(|_| true), 3);
    }
}
