//! What an update server says, as text written here by hand, and what it hears.
//!
//! Answers are not made with our own protocol crate: a mistake on its writing
//! side would be undone by the same mistake on its reading side.

use anyhow::{Context, Result};
use omaha_protocol::{Event, Request};

use crate::fault_server::Exchange;

/// One package on offer.
#[derive(Debug, Clone)]
pub struct Offer {
    /// Version that it brings.
    pub version: String,
    /// Folder of the package, with or without a slash at the end.
    pub codebase: String,
    /// File name below the codebase.
    pub name: String,
    /// Bytes of the file.
    pub size: u64,
    /// SHA-256 of the file in base64.
    pub sha256: String,
}

impl Offer {
    /// The smallest reply that starts an update.
    #[must_use]
    pub fn to_xml(&self) -> String {
        format!(
            r#"<?xml version="1.0" encoding="UTF-8"?>
<response protocol="3.0" server="test">
 <daystart elapsed_seconds="0"></daystart>
 <app appid="{{e96281a6-d1af-4bde-9a0a-97b76e56dc57}}" status="ok">
  <ping status="ok"></ping>
  <updatecheck status="ok">
   <urls><url codebase="{}"></url></urls>
   <manifest version="{}">
    <packages><package name="{}" size="{}" required="true"></package></packages>
    <actions><action event="postinstall" sha256="{}" DisablePayloadBackoff="true"></action></actions>
   </manifest>
  </updatecheck>
 </app>
</response>
"#,
            self.codebase, self.version, self.name, self.size, self.sha256
        )
    }
}

/// The reply when there is nothing to install.
#[must_use]
pub fn no_update() -> String {
    r#"<?xml version="1.0" encoding="UTF-8"?>
<response protocol="3.0" server="test"><app appid="{e96281a6-d1af-4bde-9a0a-97b76e56dc57}" status="ok"><updatecheck status="noupdate"></updatecheck></app></response>
"#
    .to_owned()
}

/// The Omaha requests among `exchanges`.
///
/// # Errors
///
/// A `POST` that is no Omaha request.
pub fn requests(exchanges: &[Exchange]) -> Result<Vec<Request>> {
    exchanges
        .iter()
        .filter(|exchange| exchange.request.method == "POST")
        .map(|exchange| {
            Request::parse(&exchange.request.body)
                .with_context(|| String::from_utf8_lossy(&exchange.request.body).into_owned())
        })
        .collect()
}

/// Every event in `exchanges`, in order.
///
/// # Errors
///
/// As [`requests`].
pub fn events(exchanges: &[Exchange]) -> Result<Vec<Event>> {
    Ok(requests(exchanges)?
        .into_iter()
        .flat_map(|request| request.apps)
        .flat_map(|app| app.events)
        .collect())
}
