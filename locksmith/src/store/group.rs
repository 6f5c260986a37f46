//! One group's keys as etcd v3 keeps them: revisions, conditional transactions,
//! leases. No JSON, no clock and no threads: time is an argument.
//!
//! It stands behind the store in memory and the store in a file, and is what
//! simulations of whole fleets run on, so a load costs nothing that grows with
//! the queue. It knows nothing of what the records mean.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use super::{COMMIT, Committed, StoreError, check};
use crate::semaphore::{
    Compare, Key, LeaseId, Look, Record, Revision, Snapshot, TicketKey, Transaction, Versioned,
    Write,
};

/// What a snapshot shows of an optional entry whose record is of one kind.
macro_rules! versioned {
    ($entry:expr, $kind:ident) => {
        $entry.map_or_else(Versioned::default, |entry| Versioned {
            value: match &entry.record {
                Record::$kind(value) => Some(value.clone()),
                _ => None,
            },
            created: entry.created,
            modified: entry.modified,
        })
    };
}

/// The keys of one group and the leases on them.
#[derive(Debug, Clone)]
pub struct MemoryGroup {
    now: Duration,
    entries: HashMap<Key, Entry>,
    tickets: BTreeSet<TicketKey>,
    leases: BTreeMap<LeaseId, Lease>,
    /// The leases by a time before which they do not end. Whoever is kept alive is
    /// moved when that comes: it happens seldom, and keeping alive often.
    endings: BTreeSet<(Duration, LeaseId)>,
    last_lease: LeaseId,
    /// What a load returns, kept up to date by each write. Its `revision` is
    /// that of the group.
    view: Snapshot,
    changed: Vec<(Revision, Key)>,
    history: Option<Vec<Change>>,
}

/// One write of the past.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// That it made; writes of one transaction have the same.
    pub revision: Revision,
    /// What it wrote.
    pub key: Key,
    /// The new value; none: the key was removed.
    pub record: Option<Record>,
}

/// A key that exists.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) record: Record,
    pub(super) created: Revision,
    pub(super) modified: Revision,
    pub(super) lease: LeaseId,
}

/// A lease that has not ended.
#[derive(Debug, Clone)]
pub(super) struct Lease {
    pub(super) ttl: Duration,
    pub(super) ends: Duration,
    keys: BTreeSet<Key>,
}

/// What of a group outlives the process.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) revision: Revision,
    pub(super) last_lease: LeaseId,
    pub(super) entries: Vec<(Key, Entry)>,
    pub(super) leases: Vec<(LeaseId, Duration, Duration)>,
}

impl Default for MemoryGroup {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryGroup {
    /// Nothing but a revision: 1, as in a new etcd.
    #[must_use]
    pub fn new() -> Self {
        Self {
            now: Duration::ZERO,
            entries: HashMap::new(),
            tickets: BTreeSet::new(),
            leases: BTreeMap::new(),
            endings: BTreeSet::new(),
            last_lease: LeaseId::default(),
            view: Snapshot {
                revision: 1,
                ..Snapshot::default()
            },
            changed: Vec::new(),
            history: None,
        }
    }

    /// The same, and every write is remembered for [`MemoryGroup::history`].
    #[must_use]
    pub fn with_history() -> Self {
        Self {
            history: Some(Vec::new()),
            ..Self::new()
        }
    }

    /// Every write so far, oldest first; nothing unless it was made by
    /// [`MemoryGroup::with_history`].
    #[must_use]
    pub fn history(&self) -> &[Change] {
        self.history.as_deref().unwrap_or_default()
    }

    /// See [`super::SemaphoreStore::load`]. The large parts are shared, not
    /// copied.
    #[must_use]
    pub fn load(&self, look: &Look) -> Snapshot {
        let mut snapshot = self.view.clone();
        if let Some(ticket) = &look.ticket
            && let Some(Record::Ticket(ticket)) = self.record(&Key::Ticket(ticket.clone()))
        {
            snapshot.own_ticket = Some(Arc::new(ticket.clone()));
        }
        if let Some(id) = &look.history
            && let Some(Record::History(outcomes)) = self.record(&Key::History(id.clone()))
        {
            snapshot.history.clone_from(outcomes);
        }
        snapshot
    }

    /// See [`super::SemaphoreStore::commit`]. All writes get one new revision;
    /// a transaction that changes nothing gets none.
    ///
    /// # Errors
    ///
    /// What etcd refuses: a key twice in one list, and a write under a lease
    /// that has ended.
    pub fn commit(&mut self, transaction: &Transaction) -> Result<Committed, StoreError> {
        check(transaction)?;
        let succeeded = transaction.when.iter().all(|compare| self.holds(compare));
        let writes = if succeeded {
            &transaction.then
        } else {
            &transaction.otherwise
        };
        let lease_gone = writes.iter().any(|write| {
            matches!(write, Write::Put(_, _, lease)
                if *lease != LeaseId::default() && !self.leases.contains_key(lease))
        });
        if lease_gone {
            return Err(StoreError::LeaseGone { what: COMMIT });
        }
        let revision = self.view.revision.saturating_add(1);
        for write in writes {
            match write {
                Write::Put(key, record, lease) => self.put(key, record.clone(), *lease, revision),
                Write::Delete(key) => self.delete(key, revision),
            }
        }
        Ok(Committed {
            succeeded,
            revision: self.view.revision,
        })
    }

    /// See [`super::SemaphoreStore::grant_lease`].
    pub fn grant_lease(&mut self, ttl: Duration) -> LeaseId {
        let id = LeaseId(self.last_lease.0.saturating_add(1));
        self.last_lease = id;
        self.insert_lease(id, ttl, self.now.saturating_add(ttl));
        id
    }

    /// See [`super::SemaphoreStore::keep_alive`].
    pub fn keep_alive(&mut self, id: LeaseId) -> bool {
        let Some(lease) = self.leases.get_mut(&id) else {
            return false;
        };
        lease.ends = self.now.saturating_add(lease.ttl);
        true
    }

    /// See [`super::SemaphoreStore::revoke_lease`].
    pub fn revoke_lease(&mut self, id: LeaseId) {
        let Some(lease) = self.leases.remove(&id) else {
            return;
        };
        self.endings.remove(&(lease.ends, id));
        let revision = self.view.revision.saturating_add(1);
        for key in lease.keys {
            self.delete(&key, revision);
        }
    }

    /// Sets the time, counted from any point that stays the same, and ends the
    /// leases whose time has come. After a step back no lease lasts longer than
    /// if it had been kept alive now.
    pub fn advance(&mut self, now: Duration) {
        if now < self.now {
            self.endings.clear();
            for (id, lease) in &mut self.leases {
                lease.ends = lease.ends.min(now.saturating_add(lease.ttl));
                self.endings.insert((lease.ends, *id));
            }
        }
        self.now = now;
        while let Some((ends, id)) = self.endings.first().copied()
            && ends <= now
        {
            self.endings.pop_first();
            match self.leases.get(&id).map(|lease| lease.ends) {
                Some(later) if later > ends => {
                    self.endings.insert((later, id));
                }
                _ => self.revoke_lease(id),
            }
        }
    }

    /// No lease ends before this time.
    #[must_use]
    pub fn next_ending(&self) -> Option<Duration> {
        Some(self.endings.first()?.0)
    }

    /// The keys that were written or removed since the last call, each with the
    /// revision that did it, in order.
    pub fn take_changed(&mut self) -> Vec<(Revision, Key)> {
        std::mem::take(&mut self.changed)
    }

    /// The value of a key.
    #[must_use]
    pub fn record(&self, key: &Key) -> Option<&Record> {
        Some(&self.entries.get(key)?.record)
    }

    pub(super) fn from_parts(parts: Parts, now: Duration) -> Self {
        let mut group = Self {
            now,
            last_lease: parts.last_lease,
            ..Self::new()
        };
        for (id, ttl, ends) in parts.leases {
            group.insert_lease(id, ttl, ends);
        }
        for (key, entry) in parts.entries {
            group.insert(&key, entry);
        }
        group.view.revision = parts.revision;
        group.advance(now);
        group
    }

    pub(super) fn revision(&self) -> Revision {
        self.view.revision
    }

    pub(super) fn last_lease(&self) -> LeaseId {
        self.last_lease
    }

    /// In no order.
    pub(super) fn entries(&self) -> &HashMap<Key, Entry> {
        &self.entries
    }

    pub(super) fn leases(&self) -> &BTreeMap<LeaseId, Lease> {
        &self.leases
    }

    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::Modified(key, at) => {
                self.entries.get(key).map_or(0, |entry| entry.modified) == *at
            }
            Compare::Created(key, at) => {
                self.entries.get(key).map_or(0, |entry| entry.created) == *at
            }
        }
    }

    fn put(&mut self, key: &Key, record: Record, lease: LeaseId, revision: Revision) {
        let before = self.entries.get(key);
        let created = before.map_or(revision, |entry| entry.created);
        let before = before.map_or(LeaseId::default(), |entry| entry.lease);
        if before != lease
            && let Some(lease) = self.leases.get_mut(&before)
        {
            lease.keys.remove(key);
        }
        self.note(key, Some(&record), revision);
        let entry = Entry {
            record,
            created,
            modified: revision,
            lease,
        };
        self.insert(key, entry);
    }

    fn insert(&mut self, key: &Key, entry: Entry) {
        if let Some(lease) = self.leases.get_mut(&entry.lease) {
            lease.keys.insert(key.clone());
        }
        let is_new = !self.entries.contains_key(key);
        self.show(key, Some(&entry), is_new);
        self.entries.insert(key.clone(), entry);
    }

    fn delete(&mut self, key: &Key, revision: Revision) {
        let Some(entry) = self.entries.remove(key) else {
            return;
        };
        if let Some(lease) = self.leases.get_mut(&entry.lease) {
            lease.keys.remove(key);
        }
        self.note(key, None, revision);
        self.show(key, None, false);
    }

    fn insert_lease(&mut self, id: LeaseId, ttl: Duration, ends: Duration) {
        self.endings.insert((ends, id));
        let keys = BTreeSet::new();
        self.leases.insert(id, Lease { ttl, ends, keys });
    }

    fn note(&mut self, key: &Key, record: Option<&Record>, revision: Revision) {
        self.view.revision = revision;
        self.changed.push((revision, key.clone()));
        if let Some(history) = &mut self.history {
            history.push(Change {
                revision,
                key: key.clone(),
                record: record.cloned(),
            });
        }
    }

    /// Makes the view show `entry` under `key`; `is_new` if the key was absent.
    /// Removed keys have left `entries` already.
    fn show(&mut self, key: &Key, entry: Option<&Entry>, is_new: bool) {
        let view = &mut self.view;
        match key {
            Key::Document => view.document = shared(versioned!(entry, Document)),
            Key::Policy => view.policy = versioned!(entry, Policy),
            Key::Halt => view.halt = versioned!(entry, Halt),
            Key::Failures => view.failures = versioned!(entry, Failures),
            Key::Holder(id) => {
                let holders = Arc::make_mut(&mut view.holders);
                if entry.is_some() {
                    holders.insert(id.clone(), Arc::new(versioned!(entry, Holder)));
                } else {
                    holders.remove(id);
                }
            }
            Key::Deadline(id) => {
                let deadlines = Arc::make_mut(&mut view.deadlines);
                if entry.is_some() {
                    deadlines.insert(id.clone());
                } else {
                    deadlines.remove(id);
                }
            }
            Key::Member(_) => count(&mut view.members, entry.is_some(), is_new),
            Key::Ticket(ticket) => {
                count(&mut view.queue_length, entry.is_some(), is_new);
                self.show_ticket(ticket, entry);
            }
            Key::History(_) => {}
        }
    }

    fn show_ticket(&mut self, key: &TicketKey, entry: Option<&Entry>) {
        if entry.is_some() {
            self.tickets.insert(key.clone());
        } else {
            self.tickets.remove(key);
        }
        let is_full = self.view.queue.len() == Snapshot::QUEUE_WINDOW;
        if is_full && self.view.queue.last().is_some_and(|(last, _)| key > last) {
            return;
        }
        let place = self
            .view
            .queue
            .binary_search_by(|(other, _)| other.cmp(key));
        let queue = Arc::make_mut(&mut self.view.queue);
        match (place, entry.map(|entry| &entry.record)) {
            (Ok(place), Some(Record::Ticket(ticket))) => queue[place].1 = Arc::new(ticket.clone()),
            (Err(place), Some(Record::Ticket(ticket))) => {
                queue.insert(place, (key.clone(), Arc::new(ticket.clone())));
                queue.truncate(Snapshot::QUEUE_WINDOW);
            }
            (Ok(place), _) => {
                queue.remove(place);
                // What stood just behind a full window comes into sight.
                let last = queue.last().map_or(key, |(last, _)| last.max(key));
                let behind = (Bound::Excluded(last), Bound::Unbounded);
                if is_full
                    && let Some(next) = self.tickets.range(behind).next()
                    && let Some(entry) = self.entries.get(&Key::Ticket(next.clone()))
                    && let Record::Ticket(ticket) = &entry.record
                {
                    let next = (next.clone(), Arc::new(ticket.clone()));
                    queue.push(next);
                }
            }
            (Err(_), _) => {}
        }
    }
}

fn shared<T>(versioned: Versioned<T>) -> Versioned<Arc<T>> {
    Versioned {
        value: versioned.value.map(Arc::new),
        created: versioned.created,
        modified: versioned.modified,
    }
}

fn count(number: &mut u64, is_there: bool, is_new: bool) {
    if is_new {
        *number = number.saturating_add(1);
    } else if !is_there {
        *number = number.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::semaphore::{Document, Holder, Kind, Mode, Phase, Ticket};

    fn ticket_key(ticket: u64) -> TicketKey {
        TicketKey {
            rank: 100,
            ticket,
            id: "a".into(),
        }
    }

    fn ticket() -> Record {
        Record::Ticket(Ticket {
            holder: Holder {
                phase: Phase::Granted,
                kind: Kind::Reboot,
                since: 0,
                boot_id: "b0".into(),
                from: "1.0.0".into(),
                to: "1.0.1".into(),
                mode: Mode::Firmware,
                reason: String::new(),
                unproven: false,
                nonce: "n".into(),
                ticket: None,
            },
            confirm: true,
            since: 0,
            lease: LeaseId(0),
        })
    }

    fn put(key: Key, record: Record, lease: LeaseId) -> Transaction {
        Transaction {
            then: vec![Write::Put(key, record, lease)],
            ..Transaction::default()
        }
    }

    fn delete(key: Key) -> Transaction {
        Transaction {
            then: vec![Write::Delete(key)],
            ..Transaction::default()
        }
    }

    /// The same group, its view built anew.
    fn rebuilt(group: &MemoryGroup) -> MemoryGroup {
        let leases = group.leases.iter();
        let parts = Parts {
            revision: group.revision(),
            last_lease: group.last_lease(),
            entries: group.entries.clone().into_iter().collect(),
            leases: leases.map(|(id, l)| (*id, l.ttl, l.ends)).collect(),
        };
        MemoryGroup::from_parts(parts, group.now)
    }

    #[test]
    fn revisions_count_transactions_and_conditions_see_them() {
        let mut group = MemoryGroup::new();
        let document = |max| Record::Document(Document::new(max, []));
        let create = |max| Transaction {
            when: vec![Compare::Created(Key::Document, 0)],
            then: vec![
                Write::Put(Key::Document, document(max), LeaseId(0)),
                Write::Delete(Key::Halt),
            ],
            otherwise: vec![Write::Delete(Key::Halt)],
        };
        let committed = |succeeded| Committed {
            succeeded,
            revision: 2,
        };
        assert_eq!(group.commit(&create(1)).unwrap(), committed(true));
        assert_eq!(group.commit(&create(2)).unwrap(), committed(false));
        group
            .commit(&put(Key::Document, document(3), LeaseId(0)))
            .unwrap();
        let seen = group.load(&Look::default());
        assert_eq!((seen.revision, seen.places().max), (3, 3));
        assert_eq!((seen.document.created, seen.document.modified), (2, 3));
    }

    #[test]
    fn what_etcd_refuses_is_refused_and_changes_nothing() {
        let mut group = MemoryGroup::new();
        let mut twice = put(Key::Document, Record::Present, LeaseId(0));
        assert!(matches!(
            group.commit(&twice),
            Err(StoreError::Refused { .. })
        ));
        twice = delete(Key::Halt);
        twice.otherwise = vec![Write::Delete(Key::Halt), Write::Delete(Key::Halt)];
        assert!(matches!(
            group.commit(&twice),
            Err(StoreError::Refused { .. })
        ));
        let gone = put(Key::Member("a".into()), Record::Present, LeaseId(7));
        assert!(matches!(
            group.commit(&gone),
            Err(StoreError::LeaseGone { .. })
        ));
        assert_eq!(group.load(&Look::default()), {
            MemoryGroup::new().load(&Look::default())
        });
    }

    #[test]
    fn a_lease_takes_its_keys_along_in_one_revision() {
        let second = Duration::from_secs(1);
        let mut group = MemoryGroup::with_history();
        let lease = group.grant_lease(10 * second);
        let other = group.grant_lease(1000 * second);
        for (id, lease) in [("a", lease), ("b", lease), ("c", lease), ("c", other)] {
            group
                .commit(&put(Key::Member(id.into()), Record::Present, lease))
                .unwrap();
        }
        group.advance(9 * second);
        assert!(group.keep_alive(lease));
        group.advance(18 * second);
        assert_eq!(group.next_ending(), Some(19 * second));
        assert_eq!(group.load(&Look::default()).members, 3);
        group.take_changed();
        group.advance(19 * second);
        let changed = [(6, Key::Member("a".into())), (6, Key::Member("b".into()))];
        assert_eq!(group.take_changed(), changed);
        assert_eq!(group.load(&Look::default()).members, 1);
        assert!(!group.keep_alive(lease));
        assert_eq!(group.history().len(), 6);

        // The clock goes back by a day: the lease counts from there.
        group.keep_alive(other);
        group.advance(86_400 * second);
        let late = group.grant_lease(5 * second);
        group.advance(second);
        assert_eq!(group.next_ending(), Some(6 * second));
        group.revoke_lease(late);
        assert_eq!(group.next_ending(), None);
    }

    #[test]
    fn the_head_of_a_long_queue_is_in_sight() {
        let mut group = MemoryGroup::new();
        let mut random = fastrand::Rng::with_seed(4);
        let mut standing = BTreeSet::new();
        for round in 0..4000 {
            let number = random.u64(..900);
            // A phase in which it grows, and one in which it shrinks.
            if random.u32(..10) < if round < 2000 { 7 } else { 2 } {
                standing.insert(number);
                group
                    .commit(&put(Key::Ticket(ticket_key(number)), ticket(), LeaseId(0)))
                    .unwrap();
            } else {
                let first = standing.first().copied().filter(|_| random.bool());
                let number = first.unwrap_or(number);
                standing.remove(&number);
                group
                    .commit(&delete(Key::Ticket(ticket_key(number))))
                    .unwrap();
            }
            let look = Look {
                ticket: Some(ticket_key(number)),
                history: None,
            };
            let seen = group.load(&look);
            let queue: Vec<_> = seen.queue.iter().map(|(key, _)| key.ticket).collect();
            let head = standing.iter().copied().take(Snapshot::QUEUE_WINDOW);
            assert_eq!(queue, head.collect::<Vec<_>>());
            assert_eq!(seen.queue_length, standing.len() as u64);
            assert_eq!(seen.own_ticket.is_some(), standing.contains(&number));
            assert_eq!(seen, rebuilt(&group).load(&look));
        }
    }
}
