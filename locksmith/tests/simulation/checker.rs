//! The properties that a fleet must have whatever goes wrong, checked at each
//! revision of the store and at each reboot. It keeps its own account, from the
//! writes alone.
//!
//! | | |
//! |---|---|
//! | P1 | never more holders than places, but for a lowered maximum; `semaphore` = `max` − holders |
//! | P2 | no reboot without a fence commit, seconds before, on a place that this machine asked for |
//! | P3 | a place goes by its own proven release or by an operator's hand, never by time |
//! | P4 | a request that is carried out twice changes nothing more |
//! | P5 | every waiter reboots in the end, and only few come before it that came later |
//! | P6 | under a halt no place is given and no reboot is permitted |
//! | P7 | P1 and P3 hold with clients of the original in between |
//! | P8 | no reboot outside the window |

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use locksmith::machine_id::MachineId;
use locksmith::semaphore::{Document, Holder, Key, Phase, Record, Revision, TicketKey, Write};

/// A permission to reboot is void after this; a little more than the agent's
/// own limit, for the time between its decision and the call.
const PERMISSION: Duration = Duration::from_secs(11);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Property {
    P1,
    P2,
    P3,
    P4,
    P5,
    P6,
    P7,
    P8,
}

#[derive(Debug, Clone)]
pub(crate) struct Violation {
    pub(crate) property: Property,
    pub(crate) at: Duration,
    /// Who is involved.
    pub(crate) ids: Vec<MachineId>,
    pub(crate) words: String,
}

/// Who made a commit.
#[derive(Debug, Clone)]
pub(crate) enum Author {
    Agent(Signature),
    /// With the tools of this project.
    Operator,
    /// With a tool of the original, in the name of this holder.
    Legacy(MachineId),
    /// With a text editor.
    Hand,
}

/// What is known of an agent at the time at which it sent a commit.
#[derive(Debug, Clone)]
pub(crate) struct Signature {
    pub(crate) machine: u32,
    pub(crate) process: u32,
    pub(crate) id: MachineId,
    pub(crate) boot_id: String,
    /// It has been healthy on the right version for long enough.
    pub(crate) proven: bool,
    /// Another machine has the same id.
    pub(crate) twin: bool,
}

pub(crate) struct Checker {
    /// Distinct holders in the document.
    places: BTreeSet<MachineId>,
    /// A hand left numbers that do not agree.
    crooked: bool,
    holders: HashMap<MachineId, Held>,
    queue: BTreeMap<TicketKey, u32>,
    halt: Option<Revision>,
    given_back: HashSet<String>,
    fences: HashMap<u32, Fence>,
    /// How many may overtake one waiter.
    patience: u32,
    pub(crate) most_overtaken: u32,
    pub(crate) halts: u32,
    pub(crate) violation: Option<Violation>,
}

struct Held {
    phase: Phase,
    nonce: String,
    boot_id: String,
    /// The machine has been down with it, by its owner's own writes.
    rebooted: bool,
    ticket: Option<TicketKey>,
}

impl Held {
    /// Whether the machine has been down with this place, as its owner's next
    /// write shows.
    fn rebooted_by(&self, author: &Author, id: &MachineId) -> bool {
        let other_boot = matches!(author, Author::Agent(agent)
            if agent.id == *id && agent.boot_id != self.boot_id);
        self.rebooted || (other_boot && self.phase != Phase::Granted)
    }
}

struct Fence {
    process: u32,
    at: Duration,
}

impl Checker {
    pub(crate) fn new(patience: u32) -> Self {
        Self {
            places: BTreeSet::new(),
            crooked: false,
            holders: HashMap::new(),
            queue: BTreeMap::new(),
            halt: None,
            given_back: HashSet::new(),
            fences: HashMap::new(),
            patience,
            most_overtaken: 0,
            halts: 0,
            violation: None,
        }
    }

    pub(crate) fn places(&self) -> &BTreeSet<MachineId> {
        &self.places
    }

    pub(crate) fn fail(
        &mut self,
        property: Property,
        at: Duration,
        ids: &[&MachineId],
        words: String,
    ) {
        self.violation.get_or_insert(Violation {
            property,
            at,
            ids: ids.iter().map(|id| (*id).clone()).collect(),
            words,
        });
    }

    /// A commit wrote `writes`.
    pub(crate) fn committed(
        &mut self,
        at: Duration,
        revision: Revision,
        author: &Author,
        writes: &[Write],
    ) {
        let mut change = Change::default();
        for write in writes {
            match write {
                Write::Put(Key::Document, Record::Document(document), _) => {
                    change = self.document(at, author, document);
                }
                Write::Delete(Key::Document) => {
                    change = self.document(at, author, &Document::default());
                }
                _ => {}
            }
        }
        for write in writes {
            match write {
                Write::Put(Key::Ticket(key), ..) => {
                    self.queue.entry(key.clone()).or_insert(0);
                }
                Write::Delete(Key::Ticket(key)) => {
                    self.queue.remove(key);
                }
                Write::Put(Key::Halt, ..) => {
                    self.halts += 1;
                    self.halt = Some(revision);
                }
                Write::Delete(Key::Halt) => self.halt = None,
                Write::Put(Key::Holder(id), Record::Holder(holder), _) => {
                    let ticket = holder.ticket.as_deref().and_then(Key::parse);
                    let ticket = match ticket {
                        Some(Key::Ticket(key)) => Some(key),
                        _ => None,
                    };
                    let was = self.holders.get(id);
                    let before = was.map(|held| held.phase);
                    let held = Held {
                        phase: holder.phase,
                        nonce: holder.nonce.clone(),
                        boot_id: holder.boot_id.clone(),
                        rebooted: was.is_some_and(|held| held.rebooted_by(author, id)),
                        ticket,
                    };
                    if before.is_none() {
                        self.new_place(at, author, id, &held, &change);
                    }
                    if let Author::Agent(agent) = author
                        && agent.id == *id
                        && holder.phase == Phase::Rebooting
                    {
                        self.fence(at, agent, before, holder);
                    }
                    self.holders.insert(id.clone(), held);
                }
                Write::Delete(Key::Holder(id)) => {
                    let held = self.holders.remove(id);
                    let own = matches!(author, Author::Agent(agent)
                        if agent.id == *id && !agent.twin);
                    if let Some(held) = held
                        && own
                        && change.removed.contains(id)
                        && held.phase != Phase::Granted
                    {
                        self.given_back.insert(held.nonce);
                    }
                    if self.places.contains(id) && matches!(author, Author::Agent(_)) {
                        let words = "its record is gone and its place is not".to_owned();
                        self.fail(Property::P3, at, &[id], words);
                    }
                }
                _ => {}
            }
        }
    }

    /// A commit was carried out once more and changed these.
    pub(crate) fn repeated(&mut self, at: Duration, id: &MachineId, changed: &[Key]) {
        for key in changed {
            let ticket = matches!(key, Key::Ticket(ticket) if ticket.id == *id);
            if !ticket {
                let words = format!("a repeated request changed {}", key.name());
                self.fail(Property::P4, at, &[id], words);
            }
        }
    }

    /// A lease ended and took a key along.
    pub(crate) fn ended(&mut self, at: Duration, key: &Key) {
        match key {
            Key::Ticket(key) => {
                self.queue.remove(key);
            }
            Key::Deadline(_) | Key::Member(_) => {}
            Key::Holder(id) => {
                self.fail(
                    Property::P3,
                    at,
                    &[id],
                    "its record ended with a lease".into(),
                );
            }
            other => {
                let words = format!("{} ended with a lease", other.name());
                self.fail(Property::P3, at, &[], words);
            }
        }
    }

    /// An agent asks the system to reboot.
    pub(crate) fn reboots(&mut self, at: Duration, agent: &Signature, in_window: bool) {
        let permitted = self.fences.remove(&agent.machine).is_some_and(|fence| {
            fence.process == agent.process && at.saturating_sub(fence.at) <= PERMISSION
        });
        if !permitted {
            let words = "it reboots without a permission".to_owned();
            self.fail(Property::P2, at, &[&agent.id], words);
        }
        if !in_window {
            let words = "it reboots outside its window".to_owned();
            self.fail(Property::P8, at, &[&agent.id], words);
        }
    }

    fn document(&mut self, at: Duration, author: &Author, after: &Document) -> Change {
        let added: Vec<_> = after
            .holders
            .iter()
            .filter(|id| !self.places.contains(*id))
            .cloned()
            .collect();
        let mut removed = Vec::new();
        // In most commits the holders stay, or there are more.
        if self.places.len() + added.len() != after.holders.len() {
            let now: BTreeSet<_> = after.holders.iter().collect();
            removed.extend(self.places.iter().filter(|id| !now.contains(id)).cloned());
        }
        for id in &removed {
            self.may_go(at, author, id);
            self.places.remove(id);
        }
        self.places.extend(added.iter().cloned());
        let count = i64::try_from(self.places.len()).expect("a list in memory is short");
        let by_hand = matches!(author, Author::Hand);
        let led_astray = self.crooked && matches!(author, Author::Legacy(_));
        if !added.is_empty() && count > after.max && !by_hand && !led_astray {
            self.too_many(at, &added, after.max);
        }
        let agrees = after.semaphore == after.max.saturating_sub(count)
            && after.holders.len() == self.places.len();
        if agrees {
            self.crooked = false;
        } else if by_hand {
            self.crooked = true;
        } else if !self.crooked {
            let words = format!(
                "semaphore is {} with max {} and {count} holders",
                after.semaphore, after.max
            );
            self.fail(Property::P1, at, &[], words);
        }
        Change { added, removed }
    }

    fn too_many(&mut self, at: Duration, added: &[MachineId], max: i64) {
        let count = self.places.len();
        let unexplained = self
            .places
            .iter()
            .filter(|id| !self.holders.contains_key(*id) && !added.contains(id))
            .count();
        let explained = i64::try_from(count - unexplained).unwrap_or(i64::MAX);
        // Right by the records, wrong by the document: an older client's place
        // was not counted.
        let property = if explained <= max {
            Property::P7
        } else {
            Property::P1
        };
        let ids: Vec<_> = added.iter().collect();
        self.fail(property, at, &ids, format!("{count} holders, max {max}"));
    }

    fn may_go(&mut self, at: Duration, author: &Author, id: &MachineId) {
        let held = self.holders.get(id);
        match author {
            Author::Operator | Author::Hand => {}
            Author::Legacy(named) if named == id => {}
            Author::Legacy(named) => {
                let words = format!("its place was overwritten by {named}");
                self.fail(Property::P7, at, &[id, named], words);
            }
            Author::Agent(agent) if agent.id == *id => {
                let unused = held.is_some_and(|held| {
                    held.phase == Phase::Granted || !held.rebooted_by(author, id)
                });
                if !agent.proven && !unused && !agent.twin {
                    let words = "it gives its place back unproven".to_owned();
                    self.fail(Property::P3, at, &[id], words);
                }
            }
            Author::Agent(agent) => {
                let dead_grant = held.is_some_and(|held| {
                    held.phase == Phase::Granted
                        && held
                            .ticket
                            .as_ref()
                            .is_none_or(|key| !self.queue.contains_key(key))
                });
                if !dead_grant {
                    let words = format!("its place was taken away by {}", agent.id);
                    self.fail(Property::P3, at, &[id, &agent.id.clone()], words);
                }
            }
        }
    }

    fn new_place(
        &mut self,
        at: Duration,
        author: &Author,
        id: &MachineId,
        held: &Held,
        change: &Change,
    ) {
        if self.halt.is_some() {
            let words = "a place was given under a halt".to_owned();
            self.fail(Property::P6, at, &[id], words);
        }
        // A repeated request may leave a ticket behind, and that be served: a
        // grant is none until it is confirmed.
        if self.given_back.contains(&held.nonce) && held.phase != Phase::Granted {
            let words = format!("request {} got a second place", held.nonce);
            self.fail(Property::P4, at, &[id], words);
        }
        if matches!(author, Author::Agent(_)) && change.added.contains(id) {
            self.overtake(at, id, held);
        }
    }

    fn overtake(&mut self, at: Duration, id: &MachineId, held: &Held) {
        let mut passed = None;
        let (places, holders) = (&self.places, &self.holders);
        let count = |(key, overtaken): (&TicketKey, &mut u32)| {
            // Whoever has a record is on its way, or left its ticket behind.
            let waits = !places.contains(&key.id) && !holders.contains_key(&key.id);
            if key.id != *id && waits {
                *overtaken += 1;
                self.most_overtaken = self.most_overtaken.max(*overtaken);
                if *overtaken > self.patience {
                    passed = Some(key.id.clone());
                }
            }
        };
        match &held.ticket {
            Some(key) => self.queue.range_mut(..key.clone()).for_each(count),
            None => self.queue.iter_mut().for_each(count),
        }
        if let Some(passed) = passed {
            let words = format!("more than {} came before it", self.patience);
            self.fail(Property::P5, at, &[&passed, id], words);
        }
    }

    fn fence(&mut self, at: Duration, agent: &Signature, before: Option<Phase>, now: &Holder) {
        let id = &agent.id;
        if self.halt.is_some() {
            let words = "it got the permission to reboot under a halt".to_owned();
            self.fail(Property::P6, at, &[id], words);
        }
        let confirmed = before.is_some_and(|phase| phase != Phase::Granted);
        // A place that is kept after a failure may be from an earlier boot.
        let machine = format!("{}.", agent.machine);
        let own = now.boot_id == agent.boot_id && now.nonce.starts_with(&machine);
        let own = own || agent.twin;
        if !confirmed || !own || !self.places.contains(id) {
            let words = "it got the permission to reboot without a place of its own".to_owned();
            self.fail(Property::P2, at, &[id], words);
        }
        let fence = Fence {
            process: agent.process,
            at,
        };
        self.fences.insert(agent.machine, fence);
    }
}

/// What a commit did to the document.
#[derive(Default)]
struct Change {
    added: Vec<MachineId>,
    removed: Vec<MachineId>,
}
