//! How the machine goes down and comes up again: through the firmware, straight
//! into the next kernel, or with a new user space alone.
//!
//! | file | job |
//! |---|---|
//! | [`slots`] | which slot runs and which boots next |
//! | [`kexec`] | what the boot loader would do, done here |
//! | [`wall`] | words on the terminals of the people who are logged in |
//!
//! It does what it is told; the time and the permission are decided elsewhere.

pub mod kexec;
pub mod slots;
pub mod wall;

use std::sync::Arc;

use gptprio::machine::Root;
use gptprio::{Guid, Selection};
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::bus::{Inhibition, Login, RefusedReboot};
use crate::config::{Inhibitors, RebootMethod};
use crate::semaphore::Mode;
use crate::words::words;
use kexec::{KexecError, KexecPlan, Loader, RunningKernel, SpentTry};
use slots::SystemSlots;

/// The word for a mode in the configuration, in the semaphore and in messages.
#[must_use]
pub const fn word(mode: Mode) -> &'static str {
    match mode {
        Mode::Firmware => "firmware",
        Mode::Kexec => "kexec",
        Mode::Soft => "soft",
    }
}

impl From<RebootMethod> for Mode {
    fn from(method: RebootMethod) -> Self {
        match method {
            RebootMethod::Firmware => Self::Firmware,
            RebootMethod::Kexec => Self::Kexec,
        }
    }
}

impl From<Inhibitors> for Inhibition {
    fn from(inhibitors: Inhibitors) -> Self {
        match inhibitors {
            Inhibitors::Respect => Self::Respect,
            Inhibitors::Ignore => Self::Override,
        }
    }
}

/// Why the machine does not reboot.
#[derive(Debug, thiserror::Error)]
pub enum RebootError {
    /// logind, or who stands behind it, refuses.
    #[error(transparent)]
    Refused(#[from] RefusedReboot),
}

/// What performs reboots.
#[derive(Clone)]
pub struct Rebooter {
    root: Root,
    login: Login,
    slot_type: Guid,
    loader: Arc<dyn Loader>,
}

/// A reboot that logind has accepted.
#[derive(Debug)]
#[must_use = "a reboot that does not happen is to be given up"]
pub struct Begun {
    mode: Mode,
    spent: Option<SpentTry>,
}

impl Begun {
    /// How the machine reboots: not always as was asked, since what keeps it
    /// from the next kernel sends it through the firmware.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }
}

/// The next kernel is staged and its slot's try is spent. Dropping it undoes both: a
/// daemon that is stopped before logind has accepted the reboot leaves neither.
struct Prepared {
    root: Root,
    loader: Arc<dyn Loader>,
    spent: Option<SpentTry>,
}

impl Prepared {
    /// The reboot goes on, or is undone by [`Rebooter::give_up`].
    fn keep(mut self) -> Option<SpentTry> {
        self.spent.take()
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if let Some(spent) = self.spent.take() {
            tell_lost_try(undo(&self.root, &*self.loader, spent));
        }
    }
}

impl Rebooter {
    /// For the machine at `root`, whose slots are partitions of `slot_type`.
    #[must_use]
    pub fn new(root: Root, login: Login, slot_type: Guid) -> Self {
        Self::with_loader(root, login, slot_type, Arc::new(RunningKernel))
    }

    /// The same with something else in the place of the running kernel.
    #[must_use]
    pub fn with_loader(root: Root, login: Login, slot_type: Guid, loader: Arc<dyn Loader>) -> Self {
        Self {
            root,
            login,
            slot_type,
            loader,
        }
    }

    /// Type of the partitions that are slots.
    #[must_use]
    pub fn slot_type(&self) -> Guid {
        self.slot_type
    }

    /// Reboots. `why` is told to those who are logged in. After [`Mode::Kexec`]
    /// and until the shutdown is seen to go on, the caller holds what
    /// [`Rebooter::give_up`] needs.
    ///
    /// # Errors
    ///
    /// Nothing has begun, and nothing is left staged or spent.
    pub async fn reboot(
        &self,
        mode: Mode,
        inhibition: Inhibition,
        why: &str,
    ) -> Result<Begun, RebootError> {
        let prepared = match mode {
            Mode::Firmware | Mode::Soft => None,
            Mode::Kexec => self.prepare_kexec().await,
        };
        let mode = match (mode, &prepared) {
            (Mode::Kexec, None) => Mode::Firmware,
            (Mode::Soft, _) => self.soft_or_firmware().await,
            _ => mode,
        };
        match self.login.reboot(mode, inhibition, why).await {
            Err(RefusedReboot::NotOffered(Mode::Soft)) => {
                warn!(
                    "this system cannot restart user space alone, the reboot goes through the firmware"
                );
                self.login.reboot(Mode::Firmware, inhibition, why).await?;
                Ok(Begun {
                    mode: Mode::Firmware,
                    spent: None,
                })
            }
            Ok(()) => Ok(Begun {
                mode,
                spent: prepared.and_then(Prepared::keep),
            }),
            Err(refused) => {
                self.give_up(Begun {
                    mode,
                    spent: prepared.and_then(Prepared::keep),
                })
                .await;
                Err(refused.into())
            }
        }
    }

    /// Undoes what a reboot has prepared, when it was accepted and did not
    /// happen. If it happens after all, it goes through the firmware.
    pub async fn give_up(&self, begun: Begun) {
        let Some(spent) = begun.spent else { return };
        let this = self.clone();
        tell_lost_try(blocking(move || undo(&this.root, &*this.loader, spent)).await);
    }

    /// Whether a daemon that was killed has left something for [`Rebooter::recover`].
    #[must_use]
    pub fn was_interrupted(&self) -> bool {
        SpentTry::left_behind(&self.root).is_some()
    }

    /// Undoes what a daemon that was killed has prepared in this boot. If its reboot
    /// happens after all, it goes through the firmware.
    pub async fn recover(&self) {
        let this = self.clone();
        let undone = blocking(move || match SpentTry::left_behind(&this.root) {
            Some(spent) => {
                warn!(
                    "an interrupted reboot is undone: the next kernel is dropped, its try given back"
                );
                undo(&this.root, &*this.loader, spent)
            }
            None => Ok(()),
        });
        tell_lost_try(undone.await);
    }

    /// Stages and spends; `None` when the machine has to go through the firmware.
    async fn prepare_kexec(&self) -> Option<Prepared> {
        let this = self.clone();
        let prepared = blocking(move || {
            let plan = KexecPlan::make(&this.root, this.slot_type)?;
            plan.stage(&this.root, &*this.loader)?;
            info!(
                partition = plan.number,
                kernel = %plan.kernel.display(),
                command_line = plan.command_line,
                "the next kernel is staged"
            );
            let spent = plan
                .spend_try(&this.root)
                .inspect_err(|_| drop_staged(&*this.loader))?;
            Ok(Prepared {
                root: this.root,
                loader: this.loader,
                spent: Some(spent),
            })
        });
        match prepared.await {
            Ok(prepared) => Some(prepared),
            Err(error) => {
                warn!(
                    reason = words(&error),
                    "no kexec, the reboot goes through the firmware"
                );
                None
            }
        }
    }

    /// A restart of user space must not leave a part of the update behind.
    async fn soft_or_firmware(&self) -> Mode {
        let (root, slot_type) = (self.root.clone(), self.slot_type);
        let reason = match blocking(move || kernel_stays(&root, slot_type)).await {
            Ok(None) => return Mode::Soft,
            Ok(Some(reason)) => reason,
            Err(error) => words(&error),
        };
        warn!(
            reason,
            "a restart of user space alone is not enough, the reboot goes through the firmware"
        );
        Mode::Firmware
    }
}

/// Why the next boot would have another kernel than the one that runs; `None`
/// when it would not.
fn kernel_stays(root: &Root, slot_type: Guid) -> Result<Option<String>, KexecError> {
    let Some(system) = SystemSlots::read(root, slot_type)? else {
        return Ok(None);
    };
    let next = match system.next() {
        Selection::Slot(slot) | Selection::LastResort(slot) => slot,
        Selection::Nothing => return Ok(None),
    };
    if next.number == system.running {
        return Ok(None);
    }
    let running = kexec::find_kernel(root, system.letter(system.running())?)?;
    let letter = system.letter(next)?;
    let same = running.is_same_as(&kexec::find_kernel(root, letter)?)?;
    Ok((!same).then(|| format!("slot {letter} has another kernel")))
}

fn undo(root: &Root, loader: &dyn Loader, spent: SpentTry) -> Result<(), KexecError> {
    // First: what is staged may not start without its try spent.
    drop_staged(loader);
    spent.give_back(root)
}

fn tell_lost_try(undone: Result<(), KexecError>) {
    if let Err(error) = undone {
        warn!(
            error = words(&error),
            "the next slot's try is lost: unless it is given back by hand, the boot loader \
             starts the old slot"
        );
    }
}

fn drop_staged(loader: &dyn Loader) {
    if let Err(error) = loader.unload() {
        warn!(%error, "cannot drop the staged kernel");
    }
}

/// Disks and files are read where waiting is allowed.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, KexecError> + Send + 'static,
) -> Result<T, KexecError> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}
