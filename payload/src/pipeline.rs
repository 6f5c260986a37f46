//! Costly work on a stream of items, on all cores, with results in order.
//!
//! Compressing and decompressing bzip2 is what a full payload spends its time
//! on, while reading, hashing and writing must happen in the order of the file.
//! [`in_order`] keeps that order and a bound on what is in memory. It knows
//! nothing of what the items are.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;

/// Items in flight for each thread: one being worked on, one waiting, so that no
/// thread is idle while the oldest result is being consumed.
const IN_FLIGHT_PER_THREAD: usize = 2;

/// How many threads [`in_order`] should have to use the whole machine.
pub fn all_cores() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Takes items from `produce` until it yields `None`, runs `work` on each of them
/// on one of `threads` threads, and gives the results to `consume` in the order
/// of the items.
///
/// `produce` and `consume` run on the calling thread, so they may borrow what
/// they like. Never more than twice `threads` items exist at a time, which bounds
/// the memory.
///
/// # Errors
/// The first error of `produce` or `consume`; items already started are finished
/// and dropped.
pub fn in_order<T, U, E>(
    threads: NonZeroUsize,
    mut produce: impl FnMut() -> Result<Option<T>, E>,
    work: impl Fn(T) -> U + Sync,
    mut consume: impl FnMut(U) -> Result<(), E>,
) -> Result<(), E>
where
    T: Send,
    U: Send,
{
    let limit = threads.get().saturating_mul(IN_FLIGHT_PER_THREAD);
    let (queue, jobs) = mpsc::channel();
    let jobs = Mutex::new(jobs);
    thread::scope(|scope| {
        for _ in 0..threads.get() {
            scope.spawn(|| work_off(&jobs, &work));
        }
        // Moved in, so that every way out of this closure ends the threads.
        let queue = queue;
        let mut in_flight: VecDeque<Receiver<U>> = VecDeque::with_capacity(limit);
        let mut exhausted = false;
        loop {
            while !exhausted && in_flight.len() < limit {
                match produce()? {
                    Some(item) => {
                        let (reply, result) = mpsc::sync_channel(1);
                        queue
                            .send((item, reply))
                            .expect("the receiver outlives this scope");
                        in_flight.push_back(result);
                    }
                    None => exhausted = true,
                }
            }
            let Some(oldest) = in_flight.pop_front() else {
                return Ok(());
            };
            let result = oldest
                .recv()
                .expect("only a panic keeps a thread from answering, and the scope passes it on");
            consume(result)?;
        }
    })
}

/// One job: an item, and where its result goes.
type Job<T, U> = (T, SyncSender<U>);

fn work_off<T, U>(jobs: &Mutex<Receiver<Job<T, U>>>, work: impl Fn(T) -> U) {
    loop {
        let job = match jobs.lock() {
            Ok(jobs) => jobs.recv(),
            Err(_) => return,
        };
        let Ok((item, reply)) = job else { return };
        // Nobody waits for this result any more once an error ended the run.
        let _ = reply.send(work(item));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn threads(n: usize) -> NonZeroUsize {
        NonZeroUsize::new(n).unwrap()
    }

    #[test]
    fn results_come_in_order_however_long_each_takes() {
        for n in [1, 2, 7] {
            let mut items = 0..500_u64;
            let mut seen = Vec::new();
            in_order(
                threads(n),
                || Ok::<_, ()>(items.next()),
                |item| {
                    // Unequal work: early items are the slow ones.
                    let rounds = (500 - item) * 20;
                    (0..rounds).fold(item, |a, b| a ^ std::hint::black_box(b ^ b));
                    item
                },
                |item| {
                    seen.push(item);
                    Ok(())
                },
            )
            .unwrap();
            assert_eq!(seen, (0..500).collect::<Vec<_>>(), "{n} threads");
        }
    }

    #[test]
    fn items_in_flight_never_exceed_two_per_thread() {
        let alive = AtomicUsize::new(0);
        let peak = AtomicUsize::new(0);
        let mut left = 300;
        in_order(
            threads(3),
            || {
                if left == 0 {
                    return Ok::<_, ()>(None);
                }
                left -= 1;
                peak.fetch_max(alive.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                Ok(Some(()))
            },
            |()| (),
            |()| {
                alive.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(peak.load(Ordering::SeqCst), 6);
    }

    #[test]
    fn errors_of_either_end_stop_the_run() {
        let mut n = 0;
        let produced = in_order(
            threads(2),
            || {
                n += 1;
                if n > 5 { Err("produce") } else { Ok(Some(n)) }
            },
            |item| item,
            |_| Ok(()),
        );
        assert_eq!(produced, Err("produce"));

        let consumed = in_order(threads(2), || Ok(Some(1)), |item| item, |_| Err("consume"));
        assert_eq!(consumed, Err("consume"));
    }

    #[test]
    fn no_items_is_no_work() {
        in_order(
            threads(2),
            || Ok::<Option<u8>, ()>(None),
            |_| unreachable!(),
            |()| unreachable!(),
        )
        .unwrap();
    }
}
