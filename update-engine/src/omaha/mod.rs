//! What this machine says to an update server and what it makes of the answer:
//! pure functions between the machine's own types and [`omaha_protocol`].

mod event;
mod offer;
mod request;

pub use event::{Flags, failure, moment, rolled_back, running};
pub use offer::{Answer, UpdateOffer, read_answer};
pub use request::{Abilities, check, event_only, ping_only};
