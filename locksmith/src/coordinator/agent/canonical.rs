//! Agents that differ only in what decides nothing become equal, so that a search
//! over all states ends.

use std::time::Duration;

use super::{Agent, Pace, Stage};
use crate::semaphore::{Phase, TicketKey};

/// New names for what an agent remembers.
pub(in crate::coordinator) trait Names {
    /// A fencing token.
    fn token(&self, token: i64) -> i64;
    /// Key of a ticket.
    fn ticket(&self, ticket: &TicketKey) -> TicketKey;
    /// Nonce of a place.
    fn nonce(&self, nonce: &str) -> String;
    /// A point in time.
    fn time(&self, time: Duration) -> Duration;
}

impl Agent {
    /// Tokens, tickets, nonces and times get new names; how often something was
    /// tried and what was said last are forgotten, and so is a wait before the
    /// next try, as if it had just ended.
    pub(in crate::coordinator) fn canonical(&mut self, names: &dyn Names) {
        self.nonces = 0;
        // Decides nothing where places have records.
        self.may_hold = true;
        self.announced = None;
        self.store_pace = Pace::STORE;
        self.refused_pace = Pace::REFUSED;
        self.reboot_pace = Pace::REBOOT;
        self.not_before = Duration::ZERO;
        self.said = String::new();
        let token = |token: &mut Option<i64>| *token = token.map(|token| names.token(token));
        match &mut self.stage {
            Stage::New | Stage::Recover | Stage::Idle | Stage::Due => {}
            Stage::Warned { until } => *until = names.time(*until),
            Stage::Verify(verify) => {
                if let Some(place) = &mut verify.place {
                    place.token = names.token(place.token);
                    // What is read of it later: its versions and its boot.
                    place.holder.phase = Phase::Rebooting;
                    place.holder.reason.clear();
                    place.holder.nonce.clear();
                    place.holder.ticket = None;
                    place.holder.since = 0;
                }
                verify.begun = names.time(verify.begun);
                verify.healthy_since = verify.healthy_since.map(|at| names.time(at));
                if let Some(reason) = &mut verify.reason {
                    reason.clear();
                }
            }
            Stage::Release { token: place, .. } | Stage::Drain { token: place } => token(place),
            Stage::Resume { token, deadline } => {
                *token = names.token(*token);
                if let Some((_, at)) = deadline {
                    *at = names.time(*at);
                }
            }
            Stage::Queue(queue) => {
                queue.nonce = names.nonce(&queue.nonce);
                if let Some((_, at)) = &mut queue.deadline {
                    *at = names.time(*at);
                }
                queue.ticket = queue.ticket.as_ref().map(|key| names.ticket(key));
            }
            Stage::Fence(fence) => {
                token(&mut fence.token);
                if let Some((_, at)) = &mut fence.deadline {
                    *at = names.time(*at);
                }
                fence.looked = names.time(fence.looked);
            }
            Stage::Reboot {
                token: place,
                asked,
                ..
            } => {
                token(place);
                *asked = names.time(*asked);
            }
        }
    }

    /// Whether it is ready for its end: it listens, and for nothing else.
    pub(in crate::coordinator) fn is_idle(&self) -> bool {
        self.stage == Stage::Idle && self.pending.is_none()
    }

    /// The nonce of the place that it asks for.
    pub(in crate::coordinator) fn nonce(&self) -> Option<&str> {
        match &self.stage {
            Stage::Queue(queue) => Some(&queue.nonce),
            _ => None,
        }
    }

    /// The ticket that it waits with.
    pub(in crate::coordinator) fn ticket(&self) -> Option<&TicketKey> {
        match &self.stage {
            Stage::Queue(queue) => queue.ticket.as_ref(),
            _ => None,
        }
    }
}
