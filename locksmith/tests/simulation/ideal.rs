//! The queue that cannot be beaten: who comes first gets the first free place at
//! once, and no message takes any time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// When the last one is done, for those who come at `jobs.0` and need a place
/// for `jobs.1`.
pub(crate) fn last_done(mut jobs: Vec<(Duration, Duration)>, places: usize) -> Duration {
    jobs.sort_unstable();
    let mut free: BinaryHeap<Reverse<Duration>> =
        (0..places).map(|_| Reverse(Duration::ZERO)).collect();
    let mut last = Duration::ZERO;
    for (comes, takes) in jobs {
        let Reverse(place) = free.pop().expect("there is a place");
        let done = place.max(comes) + takes;
        free.push(Reverse(done));
        last = last.max(done);
    }
    last
}

#[test]
fn the_ideal_queue_serves_in_order_and_wastes_nothing() {
    let seconds = Duration::from_secs;
    let jobs = vec![
        (seconds(5), seconds(10)),
        (seconds(0), seconds(10)),
        (seconds(6), seconds(1)),
    ];
    assert_eq!(last_done(jobs.clone(), 1), seconds(21));
    assert_eq!(last_done(jobs, 2), seconds(15));
}
