//! What a run is about: the machines, their places, and what goes wrong. A seed
//! decides all of it.

use std::time::Duration;

/// A fleet and its troubles.
#[derive(Debug, Clone)]
pub(crate) struct Fleet {
    pub(crate) seed: u64,
    pub(crate) machines: u32,
    pub(crate) places: i64,
    /// The updates are applied at random within this time.
    pub(crate) spread: Duration,
    /// From the request to reboot to the start of the agent.
    pub(crate) down: Duration,
    /// `down` of one machine is up to this share shorter or longer.
    pub(crate) down_spread: f64,
    pub(crate) soak: Duration,
    pub(crate) deadline: Duration,
    pub(crate) budget: u32,
    /// Ranks in use.
    pub(crate) ranks: u16,
    pub(crate) warning: Duration,
    /// Machines may reboot in a part of each day only; days are short.
    pub(crate) windows: bool,
    /// The number of places is a share of the members.
    pub(crate) percent: Option<u8>,
    /// Clients of the original, that know nothing but the document.
    pub(crate) legacy: u32,
    /// The last two machines have one id.
    pub(crate) twins: bool,
    pub(crate) faults: Option<Faults>,
}

/// Chances, from 0 to 1, of what goes wrong.
#[derive(Debug, Clone)]
pub(crate) struct Faults {
    /// No more faults after this; then everything must come right.
    pub(crate) end: Duration,
    /// Time for that, beside what the reboots take.
    pub(crate) rest: Duration,
    pub(crate) request_lost: f64,
    pub(crate) reply_lost: f64,
    /// A commit that is carried out after its caller gave up.
    pub(crate) late: f64,
    /// A commit that is carried out twice.
    pub(crate) twice: f64,
    pub(crate) watch_lost: f64,
    /// Per step of an agent.
    pub(crate) daemon_crash: f64,
    /// Per machine, each once at most.
    pub(crate) machine_crash: f64,
    pub(crate) slow_boot: f64,
    pub(crate) never_back: f64,
    pub(crate) rolled_back: f64,
    pub(crate) unwell: f64,
    pub(crate) clock_step: f64,
    pub(crate) drain_fails: f64,
    pub(crate) reboot_refused: f64,
    pub(crate) reboot_hangs: f64,
    pub(crate) updater_silent: f64,
    /// Mean time between partitions, store outages, acts of operators, edits by
    /// hand; none if zero.
    pub(crate) partitions: Duration,
    pub(crate) outages: Duration,
    pub(crate) operators: Duration,
    pub(crate) edits: Duration,
}

impl Faults {
    /// None yet; `end` is when there may be no more.
    pub(crate) fn none(end: Duration) -> Self {
        Self {
            end,
            rest: minutes(10),
            request_lost: 0.0,
            reply_lost: 0.0,
            late: 0.0,
            twice: 0.0,
            watch_lost: 0.0,
            daemon_crash: 0.0,
            machine_crash: 0.0,
            slow_boot: 0.0,
            never_back: 0.0,
            rolled_back: 0.0,
            unwell: 0.0,
            clock_step: 0.0,
            drain_fails: 0.0,
            reboot_refused: 0.0,
            reboot_hangs: 0.0,
            updater_silent: 0.0,
            partitions: Duration::ZERO,
            outages: Duration::ZERO,
            operators: Duration::ZERO,
            edits: Duration::ZERO,
        }
    }
}

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

impl Fleet {
    /// Nothing goes wrong: the fleet of the published model, 90 s down and 5 s
    /// to prove.
    pub(crate) fn calm(seed: u64, machines: u32, places: i64) -> Self {
        Self {
            seed,
            machines,
            places,
            spread: minutes(10),
            down: Duration::from_secs(90),
            down_spread: 0.2,
            soak: Duration::from_secs(5),
            deadline: minutes(30),
            budget: 2,
            ranks: 1,
            warning: Duration::ZERO,
            windows: false,
            percent: None,
            legacy: 0,
            twins: false,
            faults: None,
        }
    }

    /// The fleet and the troubles of a seed.
    pub(crate) fn troubled(seed: u64, machines: u32) -> Self {
        // Not the stream of the run itself.
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x0666_1ee7);
        let share = rng.f64();
        let most = f64::from(machines);
        // Big fleets have many places, or a run would take days.
        let places = [1.0, 1.0, 2.0, 5.0, (most * 0.01).ceil()][rng.usize(..5)]
            .max((most * (0.005 + 0.02 * share)).floor());
        let mut fleet = Self::calm(seed, machines, whole(places));
        let rounds = most / places;
        let ideal = Duration::from_secs_f64(600.0 + 100.0 * rounds);
        fleet.down_spread = rng.f64() * 0.6;
        fleet.soak = Duration::from_secs(rng.u64(5..60));
        fleet.deadline = minutes(rng.u64(8..30));
        fleet.budget = [0, 0, 2, 5, 50][rng.usize(..5)];
        fleet.ranks = [1, 1, 3][rng.usize(..3)];
        fleet.warning = [Duration::ZERO, Duration::ZERO, minutes(1)][rng.usize(..3)];
        fleet.windows = rng.u8(..4) == 0;
        fleet.percent = (rng.u8(..6) == 0).then(|| rng.u8(1..=3));
        fleet.legacy = if rng.u8(..3) == 0 { rng.u32(1..10) } else { 0 };
        fleet.twins = rng.u8(..8) == 0 && machines >= 4;
        // Few dead and failed ones in a big fleet: operators look every minute.
        let few = (4.0 / most).min(0.03);
        let mut some = |chance: f64| {
            let on = rng.u8(..3) != 0;
            if on { chance * rng.f64() } else { 0.0 }
        };
        let mut faults = Faults {
            rest: minutes(8 * 60),
            request_lost: some(0.05),
            reply_lost: some(0.05),
            late: some(0.02),
            twice: some(0.05),
            watch_lost: some(0.3),
            daemon_crash: some(0.01),
            machine_crash: some(0.05),
            slow_boot: some(0.02),
            never_back: some(few * 2.0),
            rolled_back: some(few * 2.0),
            unwell: some(0.05),
            clock_step: some(0.2),
            drain_fails: some(0.03),
            reboot_refused: some(0.03),
            reboot_hangs: some(0.01),
            updater_silent: some(0.01),
            ..Faults::none(ideal)
        };
        let mut every = |most: u64| {
            let on = rng.u8(..3) != 0;
            if on {
                minutes(rng.u64(1..most))
            } else {
                minutes(0)
            }
        };
        faults.partitions = every(10);
        faults.outages = every(30);
        faults.operators = every(20);
        faults.edits = every(60);
        if rng.u8(..3) != 0 {
            faults.edits = minutes(0);
        }
        fleet.faults = Some(faults);
        fleet
    }
}

/// A small number that is known to be whole.
#[allow(clippy::cast_possible_truncation, reason = "a few hundred at most")]
fn whole(number: f64) -> i64 {
    number as i64
}
