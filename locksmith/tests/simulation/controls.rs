//! Deliberately broken variants: what the properties are for. Each is caught by
//! the property that it breaks, or the checker is worth nothing.

use locksmith::semaphore::{
    Compare, Document, Key, LeaseId, Phase, Record, Snapshot, Transaction, Write,
};
use locksmith::store::MemoryGroup;

/// One way to be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    /// Places are taken whether or not the document has changed meanwhile.
    BlindPlaces,
    /// The fence is taken for granted.
    NoFence,
    /// Whoever finds a holder late frees its place.
    ReapsTheLate,
    /// A request that is sent once more has no conditions.
    RepeatsBlindly,
    /// The last who came is served first.
    LastComeFirstServed,
    /// The queue is never served.
    ServesNobody,
    /// The halt is seen by nobody.
    NoHalt,
    /// Places without a record do not count.
    OnlyOwnPlaces,
    /// A client of the original that writes whatever the document says by then.
    BlindLegacy,
    /// The window is always open.
    NoWindow,
}

impl Broken {
    /// Whether the agent is told of success without asking the store.
    pub(crate) fn answers_itself(self, transaction: &Transaction) -> bool {
        self == Self::NoFence
            && transaction.then.iter().any(|write| {
                matches!(write, Write::Put(_, Record::Holder(holder), _)
                    if holder.phase == Phase::Rebooting)
            })
    }

    /// Changes what an agent writes, when it reaches the store.
    pub(crate) fn alter_transaction(self, transaction: &mut Transaction, group: &MemoryGroup) {
        match self {
            Self::BlindPlaces => take_blindly(transaction, group),
            Self::ReapsTheLate => reap(transaction, group),
            Self::ServesNobody => {
                let whose = |ticketed: bool| {
                    move |write: &Write| {
                        matches!(write, Write::Put(Key::Holder(_), Record::Holder(holder), _)
                            if ticketed == (holder.phase == Phase::Granted))
                    }
                };
                let granted: Vec<_> = transaction
                    .then
                    .iter()
                    .filter(|write| whose(true)(write))
                    .filter_map(|write| match write {
                        Write::Put(Key::Holder(id), ..) => Some(id.clone()),
                        _ => None,
                    })
                    .collect();
                transaction.then.retain(|write| !whose(true)(write));
                edit_document(transaction, |document| {
                    for id in &granted {
                        let _ = document.unlock(id);
                    }
                });
            }
            Self::NoHalt => transaction
                .when
                .retain(|compare| !matches!(compare, Compare::Modified(Key::Halt, _))),
            Self::OnlyOwnPlaces => {
                // The counterpart of the snapshot's change.
                let max = match group.record(&Key::Document) {
                    Some(Record::Document(document)) => document.max,
                    _ => 1,
                };
                edit_document(transaction, |document| document.set_max(max));
            }
            _ => {}
        }
    }

    /// Changes what an agent sees.
    pub(crate) fn alter_snapshot(self, snapshot: &mut Snapshot) {
        match self {
            Self::LastComeFirstServed => {
                std::sync::Arc::make_mut(&mut snapshot.queue).reverse();
            }
            Self::NoHalt => snapshot.halt = locksmith::semaphore::Versioned::default(),
            Self::OnlyOwnPlaces => {
                let holders = &snapshot.holders;
                if let Some(document) = &mut snapshot.document.value {
                    let strangers = document
                        .holders
                        .iter()
                        .filter(|id| !holders.contains_key(*id))
                        .count();
                    let strangers = i64::try_from(strangers).expect("a small number");
                    let document = std::sync::Arc::make_mut(document);
                    document.set_max(document.max + strangers);
                }
            }
            _ => {}
        }
    }
}

/// The places that a commit gives and takes are entered into the document as it
/// is by then, whether or not there is room.
fn take_blindly(transaction: &mut Transaction, group: &MemoryGroup) {
    let Some(Record::Document(now)) = group.record(&Key::Document) else {
        return;
    };
    let mut now = now.clone();
    for write in &transaction.then {
        match write {
            Write::Put(Key::Holder(id), ..) if !now.holds(id) => {
                now.holders.push(id.clone());
                now.holders.sort_unstable();
                now.semaphore -= 1;
            }
            Write::Delete(Key::Holder(id)) => {
                let _ = now.unlock(id);
            }
            _ => {}
        }
    }
    transaction
        .when
        .retain(|compare| !matches!(compare, Compare::Modified(Key::Document, _)));
    edit_document(transaction, |document| *document = now);
}

/// Whoever marks a holder as late frees its place as well.
fn reap(transaction: &mut Transaction, group: &MemoryGroup) {
    let late = transaction.then.iter_mut().find_map(|write| match write {
        Write::Put(Key::Holder(id), Record::Holder(holder), _)
            if holder.phase == Phase::Overdue =>
        {
            let id = id.clone();
            *write = Write::Delete(Key::Holder(id.clone()));
            Some(id)
        }
        _ => None,
    });
    if let (Some(late), Some(Record::Document(document))) = (late, group.record(&Key::Document)) {
        let mut document = document.clone();
        let _ = document.unlock(&late);
        transaction.then.push(Write::Put(
            Key::Document,
            Record::Document(document),
            LeaseId::default(),
        ));
    }
}

fn edit_document(transaction: &mut Transaction, edit: impl FnOnce(&mut Document)) {
    for write in &mut transaction.then {
        if let Write::Put(Key::Document, Record::Document(document), _) = write {
            edit(document);
            return;
        }
    }
}
