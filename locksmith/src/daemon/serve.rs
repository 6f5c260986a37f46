//! `locksmithd serve-fleetlock`: the semaphore for machines that speak FleetLock.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::net::TcpListener;
use tracing::{info, warn};

use super::start::{self, Arguments};
use crate::config::{Etcd, Settings};
use crate::fleetlock::server::{self, FleetGroup, Options};
use crate::metrics::{Measured, Metrics};
use crate::semaphore::Look;
use crate::store::SemaphoreStore;
use crate::words::words;

/// What the command line says beside the settings.
#[derive(Debug)]
pub struct ServeArguments {
    /// `host:port`.
    pub listen: String,
    /// Names of the groups that are served; `default` is the group without one.
    pub groups: Vec<String>,
    /// From a yes until the machine is overdue; as in Go.
    pub deadline: Option<Duration>,
}

/// Serves to the end.
#[must_use]
pub fn serve_fleetlock(arguments: Arguments, serve: ServeArguments) -> ExitCode {
    start::run(async move {
        let settings = start::load_for_server(&arguments)?;
        serve_until_asked(&settings, serve).await
    })
}

async fn serve_until_asked(settings: &Settings, serve: ServeArguments) -> Result<()> {
    let groups: Vec<FleetGroup> = serve
        .groups
        .iter()
        .map(|name| name.parse())
        .collect::<Result<_, _>>()?;
    if groups.is_empty() {
        bail!("no group to serve: name some with -groups");
    }
    let metrics = Arc::new(Metrics::new());
    let mut stores = std::collections::BTreeMap::new();
    for group in &groups {
        let settings = Settings {
            group: group.group().clone(),
            ..settings.clone()
        };
        let store = settings.open_store()?;
        let store: Arc<dyn SemaphoreStore> = Arc::new(Measured::new(store, Arc::clone(&metrics)));
        if let Err(error) = store.load(&Look::default()).await {
            // Clients are told so until it is there.
            warn!(
                group = group.group().as_str(),
                error = words(&error),
                "the semaphore cannot be reached"
            );
        }
        stores.insert(group.group().clone(), store);
    }
    let listener = TcpListener::bind(&serve.listen)
        .await
        .with_context(|| format!("cannot listen on {}", serve.listen))?;
    warn_of_strangers(&settings.etcd, &listener);
    let mut options = Options::default();
    if let Some(deadline) = serve.deadline {
        options.deadline = deadline;
    }
    let shutdown = start::on_signals()?;
    info!(address = %listener.local_addr()?, groups = ?serve.groups, "serving FleetLock");
    start::ready();
    server::serve(
        listener,
        &groups,
        |group| {
            Arc::clone(
                stores
                    .get(group)
                    .expect("a store was opened for each group"),
            )
        },
        options,
        metrics,
        shutdown,
    )
    .await;
    Ok(())
}

/// The protocol knows no authentication: whoever reaches the port may take all
/// places.
fn warn_of_strangers(etcd: &Etcd, listener: &TcpListener) {
    let open = listener
        .local_addr()
        .is_ok_and(|address| !address.ip().is_loopback());
    if open && (etcd.login.is_some() || etcd.client.is_some()) {
        warn!("etcd asks who its clients are, and this server does not: guard its port");
    }
}
