//! Waiting for what another process does: poll, with a limit and a reason.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Time between two looks. Short against anything that tests wait for.
const INTERVAL: Duration = Duration::from_millis(10);

/// Asks `probe` until it gives a value, at most for `limit`.
///
/// # Errors
///
/// The first error of `probe`, or "`what` did not happen within …".
pub fn poll_until<T>(
    what: &str,
    limit: Duration,
    probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    poll_every(INTERVAL, what, limit, probe)
}

/// As [`poll_until`], with `interval` between two looks: for a `probe` that costs
/// something, such as a program or a long file.
///
/// # Errors
///
/// As [`poll_until`].
pub fn poll_every<T>(
    interval: Duration,
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("{what} did not happen within {limit:?}");
        }
        std::thread::sleep(interval);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_returned_and_a_limit_is_kept() {
        let mut looks = 0;
        let third = poll_until("third look", Duration::from_secs(10), || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert_eq!(third.unwrap(), 3);

        let never = poll_until::<()>("a miracle", Duration::ZERO, || Ok(None));
        let text = never.unwrap_err().to_string();
        assert!(text.starts_with("a miracle did not happen"), "{text}");
    }
}
