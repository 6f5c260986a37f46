//! A disk that loses power, for tests of everything that writes to disks.
//!
//! A test lays out a [`FakeDisk`], records what the code under test writes, and then has
//! [`CrashStates`] play every way in which a power cut could have left the medium:
//!
//! ```
//! use gptprio::testing::{CrashStates, FakeDisk, Layout};
//! use gptprio::{Gpt, USR_TYPE, mark_successful, select};
//!
//! let disk = FakeDisk::new(512, 1 << 20);
//! Layout::two_slots().write_to(&disk);
//!
//! disk.start_log();
//! let mut gpt = Gpt::read(&disk)?;
//! let changes = mark_successful(&gpt.slots(USR_TYPE), 3)?;
//! gpt.apply(&changes)?;
//! gpt.write(&disk)?;
//! let log = disk.take_log();
//!
//! let report = CrashStates::of(&log).check(|crash| {
//!     let gpt = Gpt::read(crash.disk()).map_err(|error| error.to_string())?;
//!     match select(&gpt.slots(USR_TYPE)).slot() {
//!         Some(slot) if slot.number == 3 => Ok(()),
//!         other => Err(format!("would boot {other:?}")),
//!     }
//! });
//! report.expect_all_good("mark_successful");
//! # Ok::<(), gptprio::GptError>(())
//! ```

mod crash;
mod fake_disk;
mod layout;

pub use crash::{Crash, CrashStates, Report, WriteLog};
pub use fake_disk::{FakeDisk, Fault};
pub use layout::Layout;
