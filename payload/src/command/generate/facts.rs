//! What `payload generate` is told about the release, for machines to check.

use std::env;

use anyhow::{Context, Result};
use clap::Args;
use payload::Release;

/// Facts that machines compare before they install; signed with the rest.
#[derive(Debug, Args)]
#[command(next_help_heading = "Facts about the release (format version 2)")]
pub(super) struct Facts {
    /// The application that it updates, as in update requests.
    #[arg(long, value_name = "ID")]
    app_id: Option<String>,
    /// The board that it runs on, such as amd64-usr.
    #[arg(long, value_name = "BOARD")]
    board: Option<String>,
    /// Version of the new system.
    #[arg(long, value_name = "VERSION")]
    release_version: Option<String>,
    /// The oldest version that may be updated to it.
    #[arg(long, value_name = "VERSION")]
    min_source_version: Option<String>,
    /// Number that grows when older releases must not be installed any more.
    #[arg(long, value_name = "N")]
    security_epoch: Option<u64>,
    /// When it was made, in seconds since 1970; SOURCE_DATE_EPOCH of the environment
    /// otherwise, if that is set.
    #[arg(long, value_name = "SECONDS")]
    created: Option<u64>,
    /// Until when it may be installed, in seconds since 1970.
    #[arg(long, value_name = "SECONDS")]
    expires: Option<u64>,
}

impl Facts {
    /// The first option that was given, if any was.
    pub(super) fn first(&self) -> Option<&'static str> {
        let given = [
            ("--app-id", self.app_id.is_some()),
            ("--board", self.board.is_some()),
            ("--release-version", self.release_version.is_some()),
            ("--min-source-version", self.min_source_version.is_some()),
            ("--security-epoch", self.security_epoch.is_some()),
            ("--created", self.created.is_some()),
            ("--expires", self.expires.is_some()),
        ];
        let mut given = given.into_iter();
        given.find(|(_, given)| *given).map(|(option, _)| option)
    }

    /// As they go into the payload.
    pub(super) fn release(self) -> Result<Release> {
        let created = match (self.created, env::var("SOURCE_DATE_EPOCH")) {
            (None, Ok(seconds)) => Some(
                seconds
                    .parse()
                    .with_context(|| format!("SOURCE_DATE_EPOCH is {seconds:?}, not seconds"))?,
            ),
            (created, _) => created,
        };
        Ok(Release {
            app_id: self.app_id,
            board: self.board,
            version: self.release_version,
            min_source_version: self.min_source_version,
            security_epoch: self.security_epoch,
            created,
            expires: self.expires,
            verity_root_hash: None,
        })
    }
}
