//! What `payload generate` is told about the release, for machines to check.

use std::env;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use payload::Release;

use crate::talk::say;

/// Facts that machines compare before they install; signed with the rest.
#[derive(Debug, Args)]
#[command(next_help_heading = "Facts about the release (format version 2)")]
pub(super) struct Facts {
    /// The application that it updates, as in update requests.
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    app_id: Option<String>,
    /// The board that it runs on, such as amd64-usr.
    #[arg(long, value_name = "BOARD", value_parser = NonEmptyStringValueParser::new())]
    board: Option<String>,
    /// Version of the new system: numbers with dots, and +BUILD behind them if wanted.
    #[arg(long, value_name = "VERSION", value_parser = version)]
    release_version: Option<String>,
    /// The oldest version that may be updated to it.
    #[arg(long, value_name = "VERSION", value_parser = version)]
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

    /// As they go into a payload of format version 2.
    pub(super) fn release(&self) -> Result<Release> {
        let created = match self.created {
            Some(created) => Some(created),
            None => source_date_epoch()?,
        };
        if let Some(expires) = self.expires {
            if created.is_some_and(|created| expires <= created) {
                bail!(
                    "--expires {expires} is not after the release was made; it is a moment, in \
                     seconds since 1970, such as $(date -d '+90 days' +%s)"
                );
            }
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
            if expires <= now.as_secs() {
                say(format_args!(
                    "warning: --expires {expires} is past; no machine will install this"
                ));
            }
        }
        Ok(Release {
            app_id: self.app_id.clone(),
            board: self.board.clone(),
            version: self.release_version.clone(),
            min_source_version: self.min_source_version.clone(),
            security_epoch: self.security_epoch,
            created,
            expires: self.expires,
            verity_root_hash: None,
        })
    }
}

fn source_date_epoch() -> Result<Option<u64>> {
    match env::var("SOURCE_DATE_EPOCH") {
        Ok(seconds) if !seconds.is_empty() => seconds
            .parse()
            .map(Some)
            .with_context(|| format!("SOURCE_DATE_EPOCH is {seconds:?}, not seconds")),
        _ => Ok(None),
    }
}

/// Machines compare versions by their numbers, and refuse what they cannot compare.
fn version(text: &str) -> Result<String> {
    let numbers = text.split_once('+').map_or(text, |(numbers, _)| numbers);
    if numbers
        .split('.')
        .all(|number| number.parse::<u64>().is_ok())
    {
        return Ok(text.to_owned());
    }
    bail!("machines compare versions by their numbers, as in 4230.1.0 or 4230.1.0+build-7")
}
