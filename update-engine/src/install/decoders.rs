//! Decompression on all cores, results in the order of the operations.
//!
//! Decompressing or patching is by far the slowest step of an update. It depends on
//! an operation's own data and on the old image alone, which nobody writes, so
//! several operations decode side by side while the writes keep their order.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

use payload::recompress::Encoders;
use payload::{Decoded, Image, Operation, PayloadError, PendingOperation, ResumePoint, Target};

/// An operation whose data is decoded.
pub(super) struct Ready {
    pub(super) target: Target,
    pub(super) operation: Arc<Operation>,
    pub(super) decoded: Decoded,
    /// What the operation reads, for what is too large to be read before it is written.
    pub(super) old: Option<Arc<dyn Image>>,
    pub(super) resume: ResumePoint,
}

type Outcome = Result<Ready, PayloadError>;

/// Bytes that all operations on their way may hold by [`payload::memory_needed`]. One
/// alone may be larger than this, and is then alone.
const MOST_BYTES: u64 = 32 << 20;

struct Job {
    pending: PendingOperation,
    old: Option<Arc<dyn Image>>,
    answer: SyncSender<Outcome>,
}

/// A few worker threads and the operations on their way through them.
pub(super) struct Decoders {
    jobs: Option<SyncSender<Job>>,
    threads: Vec<thread::JoinHandle<()>>,
    window: VecDeque<Awaited>,
    depth: usize,
    /// Of all in the window.
    bytes: u64,
}

/// An operation in the window.
struct Awaited {
    outcome: Receiver<Outcome>,
    bytes: u64,
}

impl Decoders {
    /// `workers` threads; at most twice as many operations wait in memory, and never
    /// more of them than [`MOST_BYTES`] allow.
    pub(super) fn new(workers: usize, encoders: &Arc<Encoders>) -> Self {
        let workers = workers.max(1);
        let (jobs, queue) = sync_channel::<Job>(workers);
        let queue = Arc::new(Mutex::new(queue));
        let threads = (0..workers)
            .map(|_| {
                let (queue, encoders) = (Arc::clone(&queue), Arc::clone(encoders));
                thread::spawn(move || work(&queue, &encoders))
            })
            .collect();
        Self {
            jobs: Some(jobs),
            threads,
            window: VecDeque::new(),
            depth: workers * 2,
            bytes: 0,
        }
    }

    /// Whether the operation may be pushed now. If not, the oldest one must be taken
    /// and applied first.
    pub(super) fn has_room_for(&self, operation: &Operation) -> bool {
        let bytes = self.bytes.saturating_add(payload::memory_needed(operation));
        self.window.is_empty() || (self.window.len() < self.depth && bytes <= MOST_BYTES)
    }

    /// Hands an operation in, with the old image that it may read.
    pub(super) fn push(&mut self, pending: PendingOperation, old: Option<Arc<dyn Image>>) {
        let (answer, outcome) = sync_channel(1);
        let bytes = payload::memory_needed(&pending.operation);
        self.bytes = self.bytes.saturating_add(bytes);
        self.window.push_back(Awaited { outcome, bytes });
        if let Some(jobs) = &self.jobs {
            jobs.send(Job {
                pending,
                old,
                answer,
            })
            .expect("workers end only after the queue is closed");
        }
    }

    /// The oldest operation; None when there is none left.
    pub(super) fn pop(&mut self) -> Result<Option<Ready>, PayloadError> {
        match self.window.pop_front() {
            Some(Awaited { outcome, bytes }) => {
                self.bytes = self.bytes.saturating_sub(bytes);
                outcome
                    .recv()
                    .expect("a worker answers each job that it takes")
                    .map(Some)
            }
            None => Ok(None),
        }
    }
}

impl Drop for Decoders {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // A worker that panicked has already failed the installation.
            let _ = thread.join();
        }
    }
}

fn work(queue: &Mutex<Receiver<Job>>, encoders: &Encoders) {
    loop {
        let job = match queue.lock() {
            Ok(queue) => queue.recv(),
            Err(_) => return,
        };
        let Ok(Job {
            pending,
            old,
            answer,
        }) = job
        else {
            return;
        };
        let PendingOperation {
            target,
            operation,
            data,
            resume,
            ..
        } = pending;
        let decoded = payload::decode(&operation, data, old.as_deref(), encoders);
        let outcome = decoded.map(|decoded| Ready {
            target,
            operation,
            decoded,
            old,
            resume,
        });
        // Nobody waits any more when the installation was given up.
        let _ = answer.send(outcome);
    }
}
