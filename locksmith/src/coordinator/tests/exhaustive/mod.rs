//! Every order of events of a few machines that share a semaphore, up to a
//! number of things that go wrong: lost answers, late arrivals, killed
//! processes, power cuts, rollbacks, failing hooks, closing windows, operators.
//!
//! The agents and the decisions are the real ones; the store is the smallest that
//! keeps its promises. States are searched breadth first. In each of them the
//! rules of the semaphore hold, and from each of them, if nothing more goes
//! wrong, a way leads to where everybody has rebooted.
//!
//! What it does not know: time has two lengths, none and an hour, and any timer
//! may fire at any moment. Watches are told of whenever there is something to
//! tell. A load is one step; what makes it stale comes between it and the
//! commit. A request does not outlive its process by more than the moment of its
//! end. Leases of deadlines end, but not before they are used. The max, the
//! policy and the ranks stay as they are.

mod store;
mod world;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::time::Instant;

use store::Flaw;
use world::{Broken, What, World};

/// What a search found.
struct Found {
    states: usize,
    transitions: usize,
    /// What broke first, and the numbers of the events that lead to it.
    broken: Option<(Broken, Vec<usize>)>,
}

/// All states that were reached, in the order in which they were.
#[derive(Default)]
struct Graph {
    /// From which state and by which of its events each was reached first.
    origins: Vec<(usize, usize)>,
    /// Ways on which nothing goes wrong, backwards.
    harmless: Vec<(usize, usize)>,
    /// Ways on which nobody waits for a timer or for anything outside.
    eager: Vec<(usize, usize)>,
    /// Where everybody has rebooted.
    done: Vec<usize>,
}

/// Searches all states; at most `most`, as a guard against a model that has no
/// end.
fn search(start: World, most: usize) -> Found {
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    let mut graph = Graph {
        origins: vec![(0, 0)],
        ..Graph::default()
    };
    let mut transitions = 0;
    // 64 bits stand for a state: among ten million the chance that two share
    // them is one in 400 000.
    let mut numbers = HashMap::from([(hasher.hash_one(&start), 0)]);
    let mut queue = VecDeque::from([(0, start)]);
    while let Some((number, world)) = queue.pop_front() {
        if world.is_done() {
            graph.done.push(number);
        }
        for (index, next) in world.next().into_iter().enumerate() {
            transitions += 1;
            let world = match next.world {
                Ok(world) => world,
                Err(broken) => {
                    let mut way = graph.way(number);
                    way.push(index);
                    return Found {
                        states: graph.origins.len(),
                        transitions,
                        broken: Some((broken, way)),
                    };
                }
            };
            let fresh = graph.origins.len();
            let reached = *numbers.entry(hasher.hash_one(&world)).or_insert(fresh);
            if reached == fresh {
                assert!(fresh < most, "more than {most} states");
                graph.origins.push((number, index));
                queue.push_back((fresh, world));
            }
            if !next.fault {
                graph.harmless.push((reached, number));
                if matches!(next.what, What::Load | What::Commit) {
                    graph.eager.push((number, reached));
                }
            }
        }
    }
    let states = graph.origins.len();
    let trapped = graph.trapped().map(|number| (Broken::Trapped, number));
    let broken = trapped.or_else(|| Some((Broken::Restless, graph.restless()?)));
    Found {
        states,
        transitions,
        broken: broken.map(|(broken, number)| (broken, graph.way(number))),
    }
}

impl Graph {
    /// A state from which no harmless way leads to the end.
    fn trapped(&mut self) -> Option<usize> {
        self.harmless.sort_unstable();
        let mut saved = vec![false; self.origins.len()];
        let mut border = self.done.clone();
        while let Some(number) = border.pop() {
            if !std::mem::replace(&mut saved[number], true) {
                border.extend(ways(&self.harmless, number));
            }
        }
        saved.iter().position(|saved| !saved)
    }

    /// A state that is on, or behind, a circle of requests that nobody paces.
    fn restless(&mut self) -> Option<usize> {
        self.eager.sort_unstable();
        let mut before = vec![0_usize; self.origins.len()];
        for (_, to) in &self.eager {
            before[*to] += 1;
        }
        let mut free: Vec<_> = (0..before.len())
            .filter(|number| before[*number] == 0)
            .collect();
        while let Some(number) = free.pop() {
            for to in ways(&self.eager, number) {
                before[to] -= 1;
                if before[to] == 0 {
                    free.push(to);
                }
            }
        }
        before.iter().position(|count| *count > 0)
    }

    /// How a state is reached.
    fn way(&self, mut number: usize) -> Vec<usize> {
        let mut way = Vec::new();
        while number != 0 {
            let (origin, index) = self.origins[number];
            way.push(index);
            number = origin;
        }
        way.reverse();
        way
    }
}

/// Where the sorted `edges` lead from `number`.
fn ways(edges: &[(usize, usize)], number: usize) -> impl Iterator<Item = usize> {
    let from = edges.partition_point(|edge| edge.0 < number);
    let these = edges[from..]
        .iter()
        .take_while(move |edge| edge.0 == number);
    these.map(|edge| edge.1)
}

/// Searches, and tells the way to what is broken.
fn check(machines: usize, max: i64, faults: u8) {
    let start = World::new(machines, max, faults, Flaw::None);
    let begun = Instant::now();
    let found = search(start.clone(), 30_000_000);
    println!(
        "{machines} machines, max {max}, {faults} faults: {} states, {} transitions, {:?}",
        found.states,
        found.transitions,
        begun.elapsed()
    );
    if let Some((broken, way)) = &found.broken {
        println!("{broken:?} after");
        world::replay(start, way);
        panic!("{broken:?}");
    }
}

#[test]
fn three_machines_reboot_in_any_order_of_events() {
    check(3, 1, 0);
    check(3, 2, 0);
}

#[test]
fn one_thing_may_go_wrong_at_any_point() {
    check(2, 1, 1);
    check(2, 2, 1);
}

/// Hours without optimisation; minutes with it.
#[test]
#[ignore = "long: make exhaustive"]
fn more_may_go_wrong() {
    let given = |name: &str| Some(std::env::var(name).ok()?.parse::<u8>().unwrap());
    let one = given("MACHINES").zip(given("MAX")).zip(given("FAULTS"));
    if let Some(((machines, max), faults)) = one {
        check(machines.into(), max.into(), faults);
        return;
    }
    for (machines, max, faults) in [(2, 1, 2), (2, 2, 2), (3, 1, 1), (3, 2, 1)] {
        check(machines, max, faults);
    }
}

#[test]
fn a_store_that_breaks_a_promise_is_noticed() {
    for (flaw, max, faults, broken) in [
        (Flaw::IgnoresDocument, 1, 0, Broken::PlaceTaken),
        (Flaw::IgnoresHalt, 1, 1, Broken::PlaceWhileHalted),
        (Flaw::FenceIgnoresHalt, 1, 1, Broken::RebootWithoutPermit),
        (Flaw::IgnoresPlace, 1, 1, Broken::RebootWithoutPermit),
        (Flaw::InventsAnswers, 1, 1, Broken::RebootWithoutPermit),
        (Flaw::FreesTheLate, 1, 1, Broken::PlaceTaken),
    ] {
        let found = search(World::new(2, max, faults, flaw), 100_000);
        let first = found.broken.map(|(broken, _)| broken);
        println!("{flaw:?}: {first:?} after {} states", found.states);
        assert_eq!(first, Some(broken), "{flaw:?}");
    }
}
