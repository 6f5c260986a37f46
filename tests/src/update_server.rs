//! An update server that offers one release, well or badly.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;

use crate::fault_server::{Answer, FaultServer};
use crate::omaha::{Offer, no_update};
use crate::release::Release;

/// What the update server has to say to an update check, given its offer.
pub type Check = fn(Offer) -> Vec<u8>;

/// The offer as it should be.
#[must_use]
#[expect(
    clippy::needless_pass_by_value,
    reason = "other answers change the offer"
)]
pub fn honest(offer: Offer) -> Vec<u8> {
    offer.to_xml().into_bytes()
}

/// Starts a server that answers update checks with `check`, unless the machine
/// runs this release already, and the n-th request for the payload, counted from
/// 0, with `payload`.
///
/// # Errors
///
/// No port is free.
pub fn offer(
    release: &Release,
    check: Check,
    payload: impl Fn(&Arc<Vec<u8>>, usize) -> Answer + Send + Sync + 'static,
) -> Result<FaultServer> {
    let offer = release.offer("", "update.payload");
    let up_to_date = format!(" version=\"{}\"", release.version);
    let content = Arc::clone(&release.payload);
    let asked = AtomicUsize::new(0);
    FaultServer::start(move |request| {
        if request.method == "GET" {
            return payload(&content, asked.fetch_add(1, Ordering::Relaxed));
        }
        let question = String::from_utf8_lossy(&request.body);
        if !question.contains("<updatecheck") || question.contains(&up_to_date) {
            return Answer::Document(no_update().into_bytes());
        }
        Answer::Document(check(Offer {
            codebase: format!("http://{}/files", request.host),
            ..offer.clone()
        }))
    })
}
