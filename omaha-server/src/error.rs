use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error as ThisError;

/// Why the server cannot start or go on. Trouble with one payload file is no
/// such error: the file is left out of the catalogue, with its reason.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum ServerError {
    /// The payload folder is missing, unreadable or no folder.
    #[error("cannot read the payload folder {}", folder.display())]
    ReadFolder {
        /// The folder as given.
        folder: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The address is taken, foreign or forbidden.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address as given.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// A public URL under which nothing could be downloaded.
    #[error("public url `{url}` refused: {reason}")]
    PublicUrl {
        /// The URL as given.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// An error with all its causes.
pub(crate) fn in_one_line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
