//! Runs an [`InstallPlan`] to its end: a slot that is proven to hold the new
//! image, or a failure that left the running slot untouched.
//!
//! The order of the steps is the order of trust of `docs/failure-model.md`:
//! lock, header and manifest, room, release and encoders, target unbootable, stream, signature, sync,
//! hash tree, read-back, root hash, post-install, flip. Nothing here decides whether to install; the
//! plan leaves no choice open.

mod application;
mod checkpoint;
#[cfg(test)]
mod crash_tests;
mod decoders;
mod proof;
mod slot_image;
mod slot_opener;
mod verity;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use omaha_protocol::Event as OmahaEvent;
use payload::recompress::Encoders;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub(crate) use application::hex;
pub use proof::Proof;
pub use slot_opener::{SlotDevices, SlotOpener};

use crate::boot::BootControl;
use crate::error::{TransportError, UpdateError};
use crate::machine;
use crate::net::{Download, Patience, Transport};
use crate::omaha::moment;
use crate::plan::InstallPlan;
use crate::platform::UpdateLock;
use crate::postinst::PostInstall;
use crate::root::Root;
use application::Application;

/// Chunks of the download that may wait for the application.
const QUEUE: usize = 16;
/// Bytes between two progress reports.
const PROGRESS_STEP: u64 = 256 * 1024;

/// Where installations keep their records.
#[derive(Debug, Clone)]
pub struct StateFolders {
    /// On storage that survives a power cut.
    pub durable: PathBuf,
    /// On storage that does not survive a reboot.
    pub volatile: PathBuf,
    /// The running boot's id.
    pub boot_id: String,
}

/// Everything that an installation works with.
pub struct Surroundings {
    /// The network.
    pub transport: Arc<dyn Transport>,
    /// How slow a download may be.
    pub patience: Patience,
    /// The bytes of the slots.
    pub slots: Arc<dyn SlotOpener>,
    /// The boot attributes.
    pub boot: Arc<dyn BootControl>,
    /// The compressors at hand for payloads that compress again.
    pub encoders: Arc<Encoders>,
    /// The new image's own last word.
    pub postinst: Arc<dyn PostInstall>,
    /// Records for a resume.
    pub state: StateFolders,
    /// Where the lock file is.
    pub root: Root,
}

/// Tells the world how the installation goes.
pub trait Observer: Send + Sync {
    /// Something for the state machine.
    fn observe(&self, event: machine::Event);
    /// Something for the server. Returns when it was posted or kept for later.
    fn report<'a>(&'a self, event: OmahaEvent) -> BoxFuture<'a, ()>;
    /// The post-install program runs next. What the next boot must know of the
    /// update, with the security epoch of its release, is durable when this returns: the
    /// program may make the target active itself, as that of Flatcar does, and the power may
    /// go right after.
    ///
    /// # Errors
    ///
    /// It cannot be recorded; then the program does not run.
    fn post_installing(
        &self,
        security_epoch: Option<u64>,
    ) -> BoxFuture<'_, Result<(), UpdateError>>;
    /// The target becomes active next. What must never be forgotten of its release is
    /// durable when this returns.
    ///
    /// # Errors
    ///
    /// It cannot be recorded; then the target does not become active.
    fn activating<'a>(&'a self, proof: &'a Proof) -> BoxFuture<'a, Result<(), UpdateError>>;
}

/// How an installation ended.
pub struct Ended {
    /// The proof that the target was made active from, or the failure.
    pub result: Result<Proof, UpdateError>,
    /// Whether it went on from a checkpoint.
    pub resumed: bool,
    /// Whether payload bytes arrived at all.
    pub received: bool,
    /// Whether the payload was complete and its signature good.
    pub payload_good: bool,
}

/// Runs the plan. That the new slot boots next is the caller's to record, then to
/// report.
pub async fn run(
    plan: Arc<InstallPlan>,
    surroundings: Arc<Surroundings>,
    observer: &dyn Observer,
    cancel: CancellationToken,
) -> Ended {
    let mut ended = Ended {
        result: Err(UpdateError::Cancelled),
        resumed: false,
        received: false,
        payload_good: false,
    };
    ended.result = install(&plan, &surroundings, observer, cancel, &mut ended).await;
    ended
}

async fn install(
    plan: &Arc<InstallPlan>,
    surroundings: &Arc<Surroundings>,
    observer: &dyn Observer,
    cancel: CancellationToken,
    ended: &mut Ended,
) -> Result<Proof, UpdateError> {
    let application = {
        let (plan, surroundings) = (Arc::clone(plan), Arc::clone(surroundings));
        blocking(move || Application::open(plan, surroundings)).await??
    };
    let resumed = application.position();
    ended.resumed = resumed > 0;
    observer.report(moment::download_started()).await;

    let application = stream(plan, surroundings, application, observer, &cancel, ended).await?;
    let payload = blocking(move || application.verify()).await??;
    ended.payload_good = true;
    observer.observe(machine::Event::PayloadVerified);
    observer.report(moment::download_finished()).await;

    stop_if(&cancel)?;
    let prepared = {
        let transport = Arc::clone(&surroundings.transport);
        let written = blocking(move || payload.read_back()).await??;
        if let Some(policy) = written.pcr_policy() {
            post_pcr_policy(&*transport, policy).await?;
        }
        // The last chance to stop. What the post-install program has begun is finished: it
        // may have made the target active already.
        stop_if(&cancel)?;
        observer.post_installing(written.security_epoch()).await?;
        let postinst = Arc::clone(&surroundings.postinst);
        blocking(move || written.post_install(&*postinst)).await?
    };
    let (proof, _lock) = activate(plan, surroundings, observer, prepared).await?;
    Ok(proof)
}

/// Makes the target active. Where that fails it is made unbootable again, as the
/// post-install program may have changed its attributes, too.
async fn activate(
    plan: &Arc<InstallPlan>,
    surroundings: &Arc<Surroundings>,
    observer: &dyn Observer,
    prepared: Result<(Proof, UpdateLock), UpdateError>,
) -> Result<(Proof, UpdateLock), UpdateError> {
    let admitted = match prepared {
        Ok(prepared) => match observer.activating(&prepared.0).await {
            Ok(()) => Ok(prepared),
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    };
    let (plan, surroundings) = (Arc::clone(plan), Arc::clone(surroundings));
    blocking(move || {
        let activated = admitted.and_then(|(proof, lock)| {
            surroundings.boot.set_active(&plan.slots, &proof)?;
            Ok((proof, lock))
        });
        if activated.is_err()
            && let Err(error) = surroundings.boot.mark_unbootable(&plan.slots)
        {
            tracing::error!(%error, "cannot make {} unbootable again", plan.slots.target);
        }
        activated
    })
    .await?
}

/// What was recorded stays, so that the next attempt goes on from there.
fn stop_if(cancel: &CancellationToken) -> Result<(), UpdateError> {
    if cancel.is_cancelled() {
        return Err(UpdateError::Cancelled);
    }
    Ok(())
}

/// Downloads and applies side by side until the payload ends or one of them
/// fails. What arrived is applied and recorded in either case.
async fn stream(
    plan: &Arc<InstallPlan>,
    surroundings: &Arc<Surroundings>,
    application: Application,
    observer: &dyn Observer,
    cancel: &CancellationToken,
    ended: &mut Ended,
) -> Result<Application, UpdateError> {
    let from = application.position();
    let (chunks, queue) = mpsc::channel::<Bytes>(QUEUE);
    let applying = tokio::task::spawn_blocking(move || application.consume(queue));

    let download = async {
        let mut download = Download::new(
            &*surroundings.transport,
            &plan.url,
            from,
            plan.offer.size,
            surroundings.patience,
        );
        let mut reported = from;
        if from > 0 {
            observer.observe(machine::Event::DownloadStarted { resumed: from });
        }
        loop {
            let next = tokio::select! {
                () = cancel.cancelled() => return Err(UpdateError::Cancelled),
                next = download.next() => next,
            };
            let chunk = next.map_err(|source| transfer_error(plan, download.position(), source))?;
            let Some(chunk) = chunk else { return Ok(()) };
            if !ended.received && from == 0 {
                observer.observe(machine::Event::DownloadStarted { resumed: 0 });
            }
            ended.received = true;
            // The application gave up; its own error says why.
            if chunks.send(chunk).await.is_err() {
                return Ok(());
            }
            if download.position() - reported >= PROGRESS_STEP
                || download.position() == plan.offer.size
            {
                reported = download.position();
                observer.observe(machine::Event::Downloaded { done: reported });
            }
        }
    };
    let downloaded = download.await;
    drop(chunks);
    let (application, applied) = applying
        .await
        .map_err(|error| UpdateError::Internal(format!("the writer ended: {error}")))?;
    let failure = match (applied, downloaded) {
        (Ok(()), Ok(())) => return Ok(application),
        (Err(error), _) | (Ok(()), Err(error)) => error,
    };
    let keep = failure.keeps_checkpoint();
    blocking(move || application.give_up(keep)).await?;
    Err(failure)
}

fn transfer_error(plan: &InstallPlan, offset: u64, source: TransportError) -> UpdateError {
    match source {
        // A length that differs before the first byte is the server's file, not
        // its connection.
        TransportError::Long { expected } => UpdateError::PayloadSize {
            url: plan.url.clone(),
            expected,
            actual: offset.saturating_add(1).max(expected.saturating_add(1)),
        },
        source => UpdateError::Transfer {
            url: plan.url.clone(),
            offset,
            source,
        },
    }
}

async fn post_pcr_policy(
    transport: &dyn Transport,
    policy: application::PcrPolicy,
) -> Result<(), UpdateError> {
    const ANSWER_LIMIT: u64 = 64 * 1024;
    let error = |source| UpdateError::PcrPolicyServer {
        url: policy.server.clone(),
        source,
    };
    let reply = transport
        .post(
            &policy.server,
            "application/octet-stream",
            policy.content.into(),
            ANSWER_LIMIT,
        )
        .await
        .map_err(error)?;
    match reply.status {
        200..=299 => Ok(()),
        status => Err(error(TransportError::Status(status))),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, UpdateError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| UpdateError::Internal(format!("a worker ended: {error}")))
}
