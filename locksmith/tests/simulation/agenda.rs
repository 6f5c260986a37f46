//! What happens when, in virtual time. Of two things at one time the one that was
//! planned first comes first, so a run is the same each time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

pub(crate) struct Agenda<T> {
    /// Time, number and slot: what is sorted is small.
    times: BinaryHeap<Reverse<(u64, u64, usize)>>,
    slots: Vec<Option<T>>,
    free: Vec<usize>,
    planned: u64,
}

impl<T> Agenda<T> {
    pub(crate) fn new() -> Self {
        Self {
            times: BinaryHeap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            planned: 0,
        }
    }

    pub(crate) fn plan(&mut self, at: Duration, what: T) {
        let nanos = u64::try_from(at.as_nanos()).expect("a run lasts less than centuries");
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(what);
        self.planned += 1;
        self.times.push(Reverse((nanos, self.planned, slot)));
    }

    pub(crate) fn next(&mut self) -> Option<(Duration, T)> {
        let Reverse((nanos, _, slot)) = self.times.pop()?;
        self.free.push(slot);
        let what = self.slots[slot].take().expect("a slot is planned once");
        Some((Duration::from_nanos(nanos), what))
    }
}
