//! The runs, and what they print.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::checker::{Property, Violation};
use super::controls::Broken;
use super::fleet::{Faults, Fleet};
use super::world::{Kind, Tally, World};

/// Lines of a trace that are printed.
const LINES: usize = 120;

/// One explanation is enough to begin with.
static EXPLAINED: AtomicBool = AtomicBool::new(false);

/// Runs a fleet. If a property is broken the run is repeated, and what the
/// machines involved did last is printed.
fn run(fleet: &Fleet) -> Result<Tally, Violation> {
    let (tally, result, _) = World::new(fleet.clone(), None).run();
    let Err(violation) = result else {
        return Ok(tally);
    };
    if !EXPLAINED.swap(true, Ordering::Relaxed) {
        explain(fleet);
    }
    Err(violation)
}

fn explain(fleet: &Fleet) {
    let mut world = World::new(fleet.clone(), None);
    world.trace = Some(Vec::new());
    let (_, result, trace) = world.run();
    let violation = result.expect_err("a run is the same each time");
    let involved: Vec<_> = trace
        .iter()
        .filter(|(_, id, _)| violation.ids.contains(id) || id.as_str() == "people")
        .collect();
    println!("{fleet:#?}");
    for (at, id, words) in involved.iter().rev().take(LINES).rev() {
        println!("{:12.6} {id} {words}", at.as_secs_f64());
    }
    println!(
        "LOCKSMITH_SIM_SEED={} LOCKSMITH_SIM_MACHINES={}: {:?} at {:.6} s, {:?}: {}",
        fleet.seed,
        fleet.machines,
        violation.property,
        violation.at.as_secs_f64(),
        violation.ids,
        violation.words,
    );
}

/// Runs seeds in no order, on all processors or as many as
/// `LOCKSMITH_SIM_THREADS` says.
fn run_seeds(seeds: std::ops::Range<u64>, machines: impl Fn(u64) -> u32 + Sync) -> Sum {
    let next = AtomicU64::new(seeds.start);
    let sum = Mutex::new(Sum::default());
    let all = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads =
        from_env("LOCKSMITH_SIM_THREADS").map_or_else(all, |some| some.try_into().unwrap());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let fleet = Fleet::troubled(seed, machines(seed));
                    let begun = Instant::now();
                    let result = run(&fleet);
                    let mut sum = sum.lock().unwrap();
                    if let (Ok(tally), 10_000..) = (&result, fleet.machines) {
                        tell(&fleet, tally, begun.elapsed());
                    }
                    sum.add(&fleet, result);
                }
            });
        }
    });
    sum.into_inner().unwrap()
}

/// One line of a run that takes seconds.
fn tell(fleet: &Fleet, tally: &Tally, took: Duration) {
    println!(
        "seed {:>4}: {:>3} places, {:>8} events, {:>6} commits, {:>6} faults, \
         {:>5.2} of the ideal time, {:>5.1} s",
        fleet.seed,
        fleet.places,
        tally.events,
        all(&tally.commits),
        all(&tally.faults),
        ratio(tally),
        took.as_secs_f64(),
    );
}

fn all<T>(counts: &BTreeMap<T, u64>) -> u64 {
    counts.values().sum()
}

/// How much longer a run took than the queue that cannot be beaten.
fn ratio(tally: &Tally) -> f64 {
    tally.finished.as_secs_f64() / tally.ideal.as_secs_f64()
}

#[derive(Default)]
struct Sum {
    seeds: u64,
    machines: u64,
    tally: Tally,
    broken: BTreeMap<Property, Vec<(u64, u32)>>,
    virtual_time: Duration,
    /// Of the ratios to the ideal time.
    worst: f64,
    ratios: f64,
}

impl Sum {
    fn add(&mut self, fleet: &Fleet, result: Result<Tally, Violation>) {
        self.seeds += 1;
        self.machines += u64::from(fleet.machines);
        let run = match result {
            Ok(run) => run,
            Err(violation) => {
                let seeds = self.broken.entry(violation.property).or_default();
                seeds.push((fleet.seed, fleet.machines));
                println!(
                    "seed {} with {} machines: {:?} {}",
                    fleet.seed,
                    fleet.machines,
                    violation.property,
                    violation.words.lines().next().unwrap_or_default()
                );
                return;
            }
        };
        let tally = &mut self.tally;
        tally.events += run.events;
        tally.loads += run.loads;
        tally.reboots += run.reboots;
        tally.halts += run.halts;
        tally.most_overtaken = tally.most_overtaken.max(run.most_overtaken);
        for (kind, count) in &run.commits {
            *tally.commits.entry(*kind).or_default() += count;
        }
        for (fault, count) in &run.faults {
            *tally.faults.entry(fault).or_default() += count;
        }
        self.virtual_time += run.finished;
        let ratio = ratio(&run);
        self.worst = self.worst.max(ratio);
        self.ratios += ratio;
    }

    fn print(&self, title: &str, took: Duration) {
        println!("{title}");
        println!("  seeds               {:>12}", self.seeds);
        println!("  machines            {:>12}", self.machines);
        println!("  events              {:>12}", self.tally.events);
        println!("  reboots             {:>12}", self.tally.reboots);
        println!("  loads               {:>12}", self.tally.loads);
        println!("  commits             {:>12}", all(&self.tally.commits));
        for (kind, count) in &self.tally.commits {
            println!("    {:<18}{count:>12}", format!("{kind:?}").to_lowercase());
        }
        println!("  faults              {:>12}", all(&self.tally.faults));
        for (fault, count) in &self.tally.faults {
            println!("    {fault:<30}{count:>12}");
        }
        println!("  halts               {:>12}", self.tally.halts);
        println!("  most overtaken      {:>12}", self.tally.most_overtaken);
        println!("  worst / ideal       {:>12.2}", self.worst);
        println!("  mean / ideal        {:>12.2}", self.mean());
        let days = self.virtual_time.as_secs_f64() / 86_400.0;
        println!("  virtual days        {days:>12.1}");
        println!("  real seconds        {:>12.1}", took.as_secs_f64());
        for (property, seeds) in &self.broken {
            println!(
                "  {property:?} is broken by seeds {:?}",
                &seeds[..seeds.len().min(10)]
            );
        }
    }

    fn mean(&self) -> f64 {
        let broken: usize = self.broken.values().map(Vec::len).sum();
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        let whole = (self.seeds - broken as u64).max(1) as f64;
        self.ratios / whole
    }

    /// All of it in one line.
    fn conclude(&self) {
        let properties = if self.broken.is_empty() {
            "P1 to P8 held".to_owned()
        } else {
            format!("broken: {:?}", self.broken.keys())
        };
        println!(
            "{} seeds, {} machines, {} events, {} faults, {} commits, \
             {:.2} of the ideal time at worst, {:.2} on average; {properties}",
            self.seeds,
            self.machines,
            self.tally.events,
            all(&self.tally.faults),
            all(&self.tally.commits),
            self.worst,
            self.mean(),
        );
    }
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// One published size of fleet, without faults, beside the queue that cannot be
/// beaten.
fn calm(machines: u32, places: i64) -> (f64, f64) {
    let fleet = Fleet::calm(1, machines, places);
    let begun = Instant::now();
    let tally = run(&fleet).unwrap_or_else(|violation| panic!("{violation:?}"));
    let time = tally.finished.as_secs_f64() / tally.ideal.as_secs_f64();
    let lock: u64 = Kind::LOCK
        .iter()
        .filter_map(|kind| tally.commits.get(kind))
        .sum();
    let queue = i64::from(machines) * 2 - places;
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    let tries = lock as f64 / queue as f64;
    println!(
        "{machines:>6} machines, max {places:>3}: {:>8.0} s, ideal {:>8.0} s, {time:.3}; \
         {lock:>6} commits before a place, queue {queue:>6}, {tries:.3}; \
         {} events, {} loads, {:.1} s; {:?}",
        tally.finished.as_secs_f64(),
        tally.ideal.as_secs_f64(),
        tally.events,
        tally.loads,
        begun.elapsed().as_secs_f64(),
        tally.commits,
    );
    assert_eq!(tally.reboots, u64::from(machines));
    (time, tries)
}

#[test]
fn a_calm_fleet_is_as_fast_as_the_ideal_queue_and_asks_no_more() {
    for (machines, places) in [(10, 1), (100, 1), (1000, 10), (10_000, 100)] {
        let (time, tries) = calm(machines, places);
        assert!(
            time <= 1.10,
            "{machines}/{places}: {time} of the ideal time"
        );
        assert!(tries <= 1.10, "{machines}/{places}: {tries} of the commits");
    }
}

#[test]
fn fleets_in_trouble_keep_every_property() {
    let begun = Instant::now();
    let sum = run_seeds(0..300, |seed| match seed % 150 {
        0 => 1000,
        1..20 => 200,
        20..60 => 40,
        _ => 10,
    });
    sum.print("fleets of 10 to 1000 machines with faults", begun.elapsed());
    assert!(sum.broken.is_empty(), "see above");
}

#[test]
#[ignore = "takes hours; LOCKSMITH_SIM_SEEDS and LOCKSMITH_SIM_MACHINES set how many"]
fn a_thousand_fleets_of_ten_thousand_machines_keep_every_property() {
    let begun = Instant::now();
    let first = from_env("LOCKSMITH_SIM_SEED").unwrap_or(0);
    let seeds = from_env("LOCKSMITH_SIM_SEEDS").unwrap_or(1000);
    let machines = from_env("LOCKSMITH_SIM_MACHINES").unwrap_or(10_000);
    let machines = u32::try_from(machines).unwrap();
    let sum = run_seeds(first..first + seeds, |_| machines);
    sum.print("big fleets with faults", begun.elapsed());
    sum.conclude();
    assert!(sum.broken.is_empty(), "see above");
}

#[test]
fn replay() {
    let Some(seed) = from_env("LOCKSMITH_SIM_SEED") else {
        return;
    };
    let machines = from_env("LOCKSMITH_SIM_MACHINES").unwrap_or(10_000);
    let fleet = Fleet::troubled(seed, u32::try_from(machines).unwrap());
    let tally = run(&fleet).unwrap_or_else(|violation| panic!("{violation:?}"));
    println!("{fleet:#?}\n{tally:#?}");
}

#[test]
fn broken_variants_are_caught_by_the_property_that_they_break() {
    let end = Duration::from_secs(1500);
    let fleet = |change: fn(&mut Fleet, &mut Faults)| {
        let mut fleet = Fleet::calm(0, 40, 3);
        fleet.spread = Duration::from_secs(5);
        fleet.budget = 0;
        let mut faults = Faults::none(end);
        change(&mut fleet, &mut faults);
        fleet.faults = Some(faults);
        fleet
    };
    let plain = fleet(|_, _| {});
    let small = fleet(|fleet, _| fleet.machines = 10);
    let repeating = fleet(|_, faults| faults.twice = 0.5);
    let dying = fleet(|fleet, faults| {
        faults.never_back = 0.2;
        fleet.deadline = Duration::from_secs(300);
    });
    let halting = fleet(|fleet, faults| {
        fleet.budget = 1;
        faults.rolled_back = 0.2;
    });
    let old = fleet(|fleet, _| {
        fleet.legacy = 20;
        fleet.places = 8;
        fleet.spread = Duration::from_secs(600);
    });
    let windows = fleet(|fleet, _| fleet.windows = true);
    let table = [
        (Broken::BlindPlaces, &plain, Property::P1),
        (Broken::NoFence, &plain, Property::P2),
        (Broken::ReapsTheLate, &dying, Property::P3),
        (Broken::RepeatsBlindly, &repeating, Property::P4),
        (Broken::LastComeFirstServed, &plain, Property::P5),
        (Broken::ServesNobody, &small, Property::P5),
        (Broken::NoHalt, &halting, Property::P6),
        (Broken::OnlyOwnPlaces, &old, Property::P7),
        (Broken::BlindLegacy, &old, Property::P7),
        (Broken::NoWindow, &windows, Property::P8),
    ];
    for (broken, fleet, property) in table {
        let mut caught = 0;
        let mut seeds = 0;
        while caught < 3 {
            let mut fleet = fleet.clone();
            fleet.seed = seeds;
            seeds += 1;
            assert!(seeds < 300, "{broken:?} is hardly ever caught");
            let (_, whole, _) = World::new(fleet.clone(), None).run();
            assert!(whole.is_ok(), "seed {seeds} without {broken:?}: {whole:?}");
            let (_, result, _) = World::new(fleet, Some(broken)).run();
            if let Err(violation) = result {
                assert_eq!(
                    violation.property, property,
                    "seed {seeds}: {broken:?}: {violation:?}"
                );
                caught += 1;
            }
        }
        println!("{broken:?} breaks {property:?} in 3 of {seeds} seeds");
    }
}
