//! States that differ only in names become the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::{BEFORE, LONG, NOW, Request, THIS, World};
use crate::coordinator::agent::canonical::Names;
use crate::machine_id::MachineId;
use crate::semaphore::{
    Compare, FailureKind, Failures, Halt, Holder, Key, Record, TicketKey, Versioned, Write,
};

/// Stands for the present revision of any key.
pub(super) const PRESENT: i64 = 1_000_000;
/// Stands for all revisions that are no more.
const PAST: i64 = -2;

impl World {
    /// What was asked for in the boot that is over belongs to an earlier one.
    pub(super) fn boot_is_over(&mut self, id: &MachineId) {
        // An agent knows its own nonces by the boot that they begin with.
        let age_nonce = |nonce: &mut String| {
            if let Some(rest) = nonce.strip_prefix(THIS) {
                *nonce = format!("{BEFORE}{rest}");
            }
        };
        let age = |holder: &mut Holder| {
            if holder.boot_id == THIS {
                BEFORE.clone_into(&mut holder.boot_id);
            }
            age_nonce(&mut holder.nonce);
        };
        let age_failures = |failures: &mut Failures| {
            let own = failures.failures.iter_mut().filter(|one| one.id == *id);
            own.for_each(|failure| age_nonce(&mut failure.nonce));
        };
        self.store
            .now
            .failures
            .value
            .iter_mut()
            .for_each(age_failures);
        if let Some(record) = Arc::make_mut(&mut self.store.now.holders).get_mut(id) {
            Arc::make_mut(record).value.iter_mut().for_each(age);
        }
        for (key, ticket) in Arc::make_mut(&mut self.store.now.queue) {
            if key.id == *id {
                age(&mut Arc::make_mut(ticket).holder);
            }
        }
        for transaction in self.transactions() {
            for write in transaction
                .then
                .iter_mut()
                .chain(&mut transaction.otherwise)
            {
                match write {
                    Write::Put(Key::Holder(other), Record::Holder(holder), _) if other == id => {
                        age(holder);
                    }
                    Write::Put(Key::Ticket(key), Record::Ticket(ticket), _) if key.id == *id => {
                        age(&mut ticket.holder);
                    }
                    Write::Put(_, Record::Failures(failures), _) => age_failures(failures),
                    _ => {}
                }
            }
        }
    }

    /// Times of `who` are counted from `now`.
    pub(super) fn forget(&mut self, who: usize, now: Duration) {
        struct Times(Duration);
        impl Names for Times {
            fn token(&self, token: i64) -> i64 {
                token
            }
            fn ticket(&self, ticket: &TicketKey) -> TicketKey {
                ticket.clone()
            }
            fn nonce(&self, nonce: &str) -> String {
                nonce.to_owned()
            }
            fn time(&self, time: Duration) -> Duration {
                if self.0.saturating_sub(time) >= LONG {
                    NOW - LONG
                } else {
                    NOW
                }
            }
        }
        self.machines[who].agent.canonical(&Times(now));
    }

    /// Gives revisions, tickets and nonces the names that they have in all states
    /// that are like this one.
    pub(super) fn canonical(&mut self) {
        let before = self.store.clone();
        let ranks = self.ticket_ranks();
        let ticket = |key: &TicketKey| TicketKey {
            ticket: ranks[&key.ticket],
            ..key.clone()
        };
        let nonces = self.nonces();
        let named = |id: &MachineId, nonce: &str| {
            let known = nonces.get(&(id.clone(), nonce.to_owned()));
            known.cloned().unwrap_or_default()
        };
        let holder = |id: &MachineId, holder: &mut Holder| {
            holder.reason.clear();
            holder.nonce = named(id, &holder.nonce);
            if let Some(Key::Ticket(key)) = holder.ticket.as_deref().and_then(Key::parse) {
                holder.ticket = Some(Key::Ticket(ticket(&key)).name());
            }
        };
        let record = |key: &Key, record: &mut Record| match (key, record) {
            (Key::Holder(id), Record::Holder(record)) => holder(id, record),
            (Key::Ticket(key), Record::Ticket(record)) => holder(&key.id, &mut record.holder),
            (_, Record::Halt(halt)) => *halt = plain_halt(),
            (_, Record::Failures(failures)) => {
                for failure in &mut failures.failures {
                    failure.nonce = named(&failure.id, &failure.nonce);
                    failure.reason.clear();
                    failure.version.clear();
                    failure.kind = FailureKind::Failed;
                }
                failures
                    .failures
                    .sort_by(|a, b| (&a.id, &a.nonce).cmp(&(&b.id, &b.nonce)));
            }
            _ => {}
        };
        let revision = |present: i64, revision: i64| match revision {
            0 => 0,
            _ if revision == present => PRESENT,
            _ => PAST,
        };
        for transaction in self.transactions() {
            for compare in &mut transaction.when {
                match compare {
                    Compare::Modified(key, at) => *at = revision(before.revisions(key).1, *at),
                    Compare::Created(key, at) => *at = revision(before.revisions(key).0, *at),
                }
            }
            for write in transaction
                .then
                .iter_mut()
                .chain(&mut transaction.otherwise)
            {
                if let Write::Put(key, value, _) = write {
                    record(key, value);
                }
                if let Write::Put(key, ..) | Write::Delete(key) = write
                    && let Key::Ticket(inner) = key
                {
                    *inner = ticket(inner);
                }
            }
        }
        for machine in &mut self.machines {
            machine.agent.canonical(&Renamed {
                token: before.revisions(&Key::Holder(machine.id.clone())).0,
                ticket: &ticket,
                nonce: &|nonce| named(&machine.id, nonce),
            });
            if let Some(Request::Load(look)) = &mut machine.request {
                look.ticket = look.ticket.as_ref().map(ticket);
            }
        }
        let now = &mut self.store.now;
        now.revision = i64::try_from(ranks[&u64::try_from(now.revision).unwrap()]).unwrap();
        for (key, value) in Arc::make_mut(&mut now.queue) {
            holder(&key.id, &mut Arc::make_mut(value).holder);
            *key = ticket(key);
        }
        for (id, value) in Arc::make_mut(&mut now.holders) {
            let value = Arc::make_mut(value);
            value.value.iter_mut().for_each(|value| holder(id, value));
            settle(value);
        }
        settle(&mut now.document);
        settle(&mut now.halt);
        settle(&mut now.failures);
        if let Some(halt) = &mut now.halt.value {
            *halt = plain_halt();
        }
        if let Some(failures) = now.failures.value.take() {
            let mut wrapped = Record::Failures(failures);
            record(&Key::Failures, &mut wrapped);
            if let Record::Failures(failures) = wrapped {
                now.failures.value = Some(failures);
            }
        }
    }

    /// Numbers of tickets by their order, the present revision among them: the
    /// next ticket gets that.
    fn ticket_ranks(&mut self) -> BTreeMap<u64, u64> {
        let mut numbers = vec![u64::try_from(self.store.now.revision).unwrap()];
        let of_holder = |holder: &Holder| match holder.ticket.as_deref().and_then(Key::parse) {
            Some(Key::Ticket(key)) => Some(key.ticket),
            _ => None,
        };
        numbers.extend(self.store.now.queue.iter().map(|(key, _)| key.ticket));
        let records = self.store.now.holders.values();
        numbers.extend(records.filter_map(|record| of_holder(record.value.as_ref()?)));
        for machine in &self.machines {
            numbers.extend(machine.agent.ticket().map(|key| key.ticket));
            if let Some(Request::Load(look)) = &machine.request {
                numbers.extend(look.ticket.as_ref().map(|key| key.ticket));
            }
        }
        for transaction in self.transactions() {
            for write in transaction.then.iter().chain(&transaction.otherwise) {
                if let Write::Put(_, Record::Holder(holder), _) = write {
                    numbers.extend(of_holder(holder));
                }
                if let Write::Put(Key::Ticket(key), ..) | Write::Delete(Key::Ticket(key)) = write {
                    numbers.push(key.ticket);
                }
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        numbers.into_iter().zip(1..).collect()
    }

    /// Short names for the nonces of each machine; the boot stays in them.
    fn nonces(&mut self) -> BTreeMap<(MachineId, String), String> {
        let mut all = Vec::new();
        let now = &self.store.now;
        for failure in now.failures.value.iter().flat_map(|value| &value.failures) {
            all.push((failure.id.clone(), failure.nonce.clone()));
        }
        for (id, record) in now.holders.iter() {
            all.extend(
                record
                    .value
                    .iter()
                    .map(|holder| (id.clone(), holder.nonce.clone())),
            );
        }
        for machine in &self.machines {
            let nonce = machine.agent.nonce();
            all.extend(nonce.map(|nonce| (machine.id.clone(), nonce.to_owned())));
        }
        for (key, ticket) in now.queue.iter() {
            all.push((key.id.clone(), ticket.holder.nonce.clone()));
        }
        for transaction in self.transactions() {
            for write in transaction.then.iter().chain(&transaction.otherwise) {
                match write {
                    Write::Put(Key::Holder(id), Record::Holder(holder), _) => {
                        all.push((id.clone(), holder.nonce.clone()));
                    }
                    Write::Put(Key::Ticket(key), Record::Ticket(ticket), _) => {
                        all.push((key.id.clone(), ticket.holder.nonce.clone()));
                    }
                    Write::Put(_, Record::Failures(failures), _) => {
                        for failure in &failures.failures {
                            all.push((failure.id.clone(), failure.nonce.clone()));
                        }
                    }
                    _ => {}
                }
            }
        }
        let mut names = BTreeMap::new();
        for (id, nonce) in all {
            let number = names.keys().filter(|(other, _)| *other == id).count();
            let boot = nonce.split('-').next().unwrap_or_default();
            let name = format!("{boot}-n{number}");
            names.entry((id, nonce)).or_insert(name);
        }
        names
    }
}

struct Renamed<'a> {
    token: i64,
    ticket: &'a dyn Fn(&TicketKey) -> TicketKey,
    nonce: &'a dyn Fn(&str) -> String,
}

impl Names for Renamed<'_> {
    fn token(&self, token: i64) -> i64 {
        if token == self.token { PRESENT } else { PAST }
    }
    fn ticket(&self, ticket: &TicketKey) -> TicketKey {
        (self.ticket)(ticket)
    }
    fn nonce(&self, nonce: &str) -> String {
        (self.nonce)(nonce)
    }
    fn time(&self, time: Duration) -> Duration {
        time
    }
}

fn settle<T>(value: &mut Versioned<T>) {
    if value.value.is_some() {
        value.created = PRESENT;
        value.modified = PRESENT;
    }
}

fn plain_halt() -> Halt {
    Halt {
        by: String::new(),
        why: String::new(),
        at: 0,
    }
}
