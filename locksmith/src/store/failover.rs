//! Members of one etcd: one is asked at a time, the next when it fails, and
//! there is a limit on everything. How a member is asked, by which API, is not
//! known here.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::StoreError;

/// The longest time that a call takes, all its attempts together.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// The longest time that one attempt takes if another one may follow.
pub(super) const ATTEMPT_LIMIT: Duration = Duration::from_secs(2);
/// How often all endpoints are tried.
const ROUNDS: usize = 2;
/// The longest pause between two rounds.
const MOST_PAUSE: Duration = Duration::from_millis(300);

/// How often a call may be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Repeating it does no harm.
    Safe,
    /// Once at most.
    Never,
}

/// How one attempt failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failed {
    /// Whether the call itself was sent, not only what prepares it.
    pub(super) sent: bool,
    /// What it means.
    pub(super) verdict: Verdict,
    /// In words.
    pub(super) text: String,
}

/// What a failure means: whether the call may have been carried out, and who has
/// to do something about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nobody listens there.
    NobodyListens,
    /// Nothing was carried out; another endpoint may do better.
    NotCarriedOut,
    /// Nothing was carried out, and the same endpoint may do better, once.
    Again,
    /// The lease does not exist.
    LeaseGone,
    /// Nothing was carried out, and an operator has to act; with what to do.
    Refused(&'static str),
    /// The endpoint cannot be used, and an operator has to act, unless another one
    /// does better; with what to do.
    RefusedHere(&'static str),
    /// Nobody knows.
    Open,
}

/// The endpoints, and which of them is asked.
#[derive(Debug)]
pub(super) struct Endpoints {
    urls: Vec<String>,
    current: AtomicUsize,
}

impl Endpoints {
    /// At least one. Many clients that are given one list begin at different
    /// places of it.
    pub(super) fn new(urls: Vec<String>) -> Self {
        Self {
            current: AtomicUsize::new(fastrand::usize(..urls.len().max(1))),
            urls,
        }
    }

    pub(super) fn url(&self, endpoint: usize) -> &str {
        &self.urls[endpoint]
    }

    /// The one to ask.
    pub(super) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// The next one is asked from now on, unless somebody else saw to that.
    pub(super) fn leave(&self, endpoint: usize) {
        let next = (endpoint + 1) % self.urls.len();
        let relaxed = Ordering::Relaxed;
        let _ = self
            .current
            .compare_exchange(endpoint, next, relaxed, relaxed);
    }

    /// Lets `attempt` ask one endpoint after another, each for the time that it
    /// is given, until one gives an answer or refuses for good.
    pub(super) async fn call<T, F>(
        &self,
        what: &'static str,
        repeat: Repeat,
        attempt: impl Fn(usize, Duration) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        let count = self.urls.len();
        // What is not repeated and cannot go elsewhere gets all the time.
        let most = if count == 1 && repeat == Repeat::Never {
            CALL_LIMIT
        } else {
            ATTEMPT_LIMIT
        };
        let end = Instant::now() + CALL_LIMIT;
        let mut silent = 0;
        let mut refusal = None;
        let mut said = String::new();
        for number in 0..ROUNDS * count {
            if number == count {
                // The answers of a whole round that another one will not change.
                if silent == count {
                    let tried = self.urls.join(",");
                    return Err(StoreError::NoEndpoints { tried });
                }
                if let Some(reason) = refusal {
                    return Err(StoreError::Refused { what, reason });
                }
                sleep(MOST_PAUSE.mul_f64(fastrand::f64())).await;
            }
            let in_round = u32::try_from(count - number % count).unwrap_or(u32::MAX);
            let fair = end.saturating_duration_since(Instant::now()) / in_round;
            let endpoint = self.current();
            let failed = match attempt(endpoint, fair.min(most)).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            let reason = format!("{}: {}", self.urls[endpoint], failed.text);
            tracing::debug!(what, reason, "etcd did not do it");
            match failed.verdict {
                Verdict::LeaseGone => return Err(StoreError::LeaseGone { what }),
                Verdict::Refused(hint) => {
                    let reason = format!("{reason} ({hint})");
                    return Err(StoreError::Refused { what, reason });
                }
                Verdict::Again => {
                    said = reason;
                    continue;
                }
                Verdict::Open if failed.sent && repeat == Repeat::Never => {
                    self.leave(endpoint);
                    return Err(StoreError::Unknown { what, reason });
                }
                Verdict::NobodyListens => silent += 1,
                Verdict::RefusedHere(hint) => refusal = Some(format!("{reason} ({hint})")),
                Verdict::NotCarriedOut | Verdict::Open => {}
            }
            said = reason;
            self.leave(endpoint);
        }
        // A connection that the server ends while the alert is on its way is
        // only understood the second time.
        Err(match refusal {
            Some(reason) => StoreError::Refused { what, reason },
            None => StoreError::Unavailable { what, reason: said },
        })
    }
}

/// In words: nothing was heard for so long.
pub(super) fn no_answer(limit: Duration) -> String {
    format!("no answer within {:.1} s", limit.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    async fn call(
        repeat: Repeat,
        answers: Vec<Result<u8, (bool, Verdict)>>,
    ) -> (Result<u8, String>, usize) {
        let urls = vec!["http://a".to_owned(), "http://b".to_owned()];
        let endpoints = Endpoints {
            urls,
            current: AtomicUsize::new(0),
        };
        let mut answers = answers.into_iter();
        let answers = Mutex::new(move || answers.next().expect("more attempts than answers"));
        let asked = AtomicUsize::new(0);
        let attempt = |_, _| {
            asked.fetch_add(1, Ordering::Relaxed);
            let answer = answers.lock().unwrap()().map_err(|(sent, verdict)| Failed {
                sent,
                verdict,
                text: "text".into(),
            });
            async { answer }
        };
        let result = endpoints.call("try", repeat, attempt).await;
        let count = asked.load(Ordering::Relaxed);
        (result.map_err(|error| error.to_string()), count)
    }

    #[tokio::test(start_paused = true)]
    async fn each_failure_leads_to_the_next_endpoint_or_to_the_right_end() {
        use Repeat::{Never, Safe};
        use Verdict::{Again, LeaseGone, NobodyListens, NotCarriedOut, Open, Refused, RefusedHere};
        let fails = |verdicts: &[Verdict]| -> Vec<_> {
            let failed = |verdict: &Verdict| Err((true, verdict.clone()));
            verdicts.iter().map(failed).collect()
        };
        for (repeat, verdicts, end) in [
            (Safe, &[LeaseGone][..], "try: the lease has ended"),
            (Safe, &[Refused("do it")], "try: http://a: text (do it)"),
            (
                Safe,
                &[NobodyListens, NobodyListens],
                "no etcd endpoints available, tried: http://a,http://b",
            ),
            (
                Safe,
                &[RefusedHere("do it"), NobodyListens],
                "try: http://a: text (do it)",
            ),
            (
                Safe,
                &[Open, NotCarriedOut, NobodyListens, Open],
                "try: http://b: text",
            ),
            (
                Safe,
                &[Open, NotCarriedOut, RefusedHere("do it"), Open],
                "try: http://a: text (do it)",
            ),
            (
                Never,
                &[NotCarriedOut, Open],
                "try: no answer, the outcome is not known: http://b: text",
            ),
            (Never, &[Again, Again, Again, Again], "try: http://a: text"),
        ] {
            let (result, asked) = call(repeat, fails(verdicts)).await;
            assert_eq!(result, Err(end.to_owned()));
            assert_eq!(asked, verdicts.len(), "{end}");
        }
        // What was not sent may be sent again.
        let answers = vec![Err((false, Open)), Ok(7)];
        assert_eq!(call(Never, answers).await, (Ok(7), 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_though_nobody_answers_and_asks_all() {
        for count in [1, 3, 8] {
            let urls: Vec<_> = (0..count).map(|i| format!("http://{i}")).collect();
            let endpoints = Endpoints::new(urls);
            let asked = Mutex::new(std::collections::BTreeSet::new());
            let start = Instant::now();
            let result = endpoints.call::<(), _>("try", Repeat::Safe, |endpoint, limit| {
                asked.lock().unwrap().insert(endpoint);
                async move {
                    sleep(limit).await;
                    Err(Failed {
                        sent: true,
                        verdict: Verdict::Open,
                        text: no_answer(limit),
                    })
                }
            });
            result.await.unwrap_err();
            assert!(start.elapsed() <= CALL_LIMIT + MOST_PAUSE, "{count}");
            assert_eq!(asked.lock().unwrap().len(), count);
        }
    }
}
