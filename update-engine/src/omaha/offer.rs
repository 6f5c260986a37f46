//! Reads an Omaha answer the way the original client does: of each thing the
//! first in the document, everything it does not use ignored.

use std::fmt::Write as _;

use base64::Engine as _;
use omaha_protocol::{Response, UpdateCheckStatus};

use crate::error::UpdateError;
use crate::install::hex;

/// Failures that a URL may have before the next is tried, unless the server says.
const DEFAULT_MAX_FAILURES_PER_URL: u32 = 10;

/// A payload that the server wants this machine to install.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdateOffer {
    /// Version of the manifest; informational, may be empty.
    pub version: String,
    /// Where the payload lies, in the order to try. Never empty.
    pub urls: Vec<String>,
    /// Bytes of the payload file; never 0.
    pub size: u64,
    /// SHA-256 of the whole payload file.
    pub sha256: [u8; 32],
    /// The payload needs the running image as its source.
    pub is_delta: bool,
    /// The server forbids waiting after failures.
    pub disable_backoff: bool,
    /// Failures that one URL may have before the next is tried.
    pub max_failures_per_url: u32,
}

impl UpdateOffer {
    /// What this machine remembers it by: its version, or its payload when it has none.
    pub fn label(&self) -> String {
        if self.version.is_empty() {
            return format!("sha256:{}", hex(&self.sha256));
        }
        self.version.clone()
    }

    /// Text that differs whenever the offer does (the original's
    /// `current-response-signature`).
    pub fn fingerprint(&self) -> String {
        let mut text = format!("NumURLs = {}\n", self.urls.len());
        for (index, url) in self.urls.iter().enumerate() {
            let _ = writeln!(text, "Url{index} = {url}");
        }
        let hash = base64::engine::general_purpose::STANDARD.encode(self.sha256);
        let _ = write!(
            text,
            "Payload Size = {}\nPayload Sha256 Hash = {hash}\nIs Delta Payload = {}\n\
             Max Failure Count Per Url = {}\nDisable Payload Backoff = {}\n",
            self.size,
            u8::from(self.is_delta),
            self.max_failures_per_url,
            u8::from(self.disable_backoff),
        );
        text
    }
}

/// What an answer to an update check says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nothing now. `reason` is empty for a plain `noupdate`.
    NoUpdate {
        /// The server's words or its `error-…` status.
        reason: String,
    },
    /// Install this.
    Offer(UpdateOffer),
}

/// Reads the answer; also the seconds of its `PollInterval`, 0 for none.
///
/// An `error-…` status is how servers of the field refuse for now (rate limits,
/// updates switched off). It counts as "no update", not as a failure of this
/// machine: the original reported one, and servers then showed the machine as
/// broken.
///
/// # Errors
/// [`UpdateError::AnswerInvalid`] names what is missing or wrong.
pub fn read_answer(response: &Response) -> Result<(Answer, u64), UpdateError> {
    let invalid = |what: &str| UpdateError::AnswerInvalid(what.to_owned());
    let check = response
        .update_check()
        .ok_or_else(|| invalid("no updatecheck element"))?;
    let poll = check
        .poll_interval
        .and_then(|seconds| u64::try_from(seconds).ok())
        .unwrap_or(0);
    match &check.status {
        UpdateCheckStatus::Ok => {}
        UpdateCheckStatus::NoUpdate => {
            return Ok((
                Answer::NoUpdate {
                    reason: check.info.clone().unwrap_or_default(),
                },
                poll,
            ));
        }
        UpdateCheckStatus::Other(status) if status.starts_with("error-") => {
            let reason = format!("the server refuses for now: {status}");
            return Ok((Answer::NoUpdate { reason }, poll));
        }
        UpdateCheckStatus::Other(status) if status.is_empty() => {
            return Err(invalid("updatecheck without a status"));
        }
        UpdateCheckStatus::Other(status) => {
            return Err(UpdateError::AnswerInvalid(format!(
                "unknown updatecheck status {status:?}"
            )));
        }
    }

    let manifest = response
        .manifest()
        .ok_or_else(|| invalid("no manifest element"))?;
    // It ends up in files of lines and in the output of the client.
    if manifest.version.contains(char::is_control) {
        return Err(UpdateError::AnswerInvalid(format!(
            "the version {:?} has control characters",
            manifest.version
        )));
    }
    let package = response
        .package()
        .ok_or_else(|| invalid("no package element"))?;
    if package.name.is_empty() {
        return Err(invalid("package without a name"));
    }
    let size = package
        .size
        .ok_or_else(|| invalid("package without a size above 0"))?;
    let codebases: Vec<&str> = response.urls().collect();
    if codebases.is_empty() || codebases.contains(&"") {
        return Err(invalid("no url element with a codebase"));
    }
    let urls = codebases
        .into_iter()
        .map(|codebase| join(codebase, &package.name))
        .collect();

    let action = response
        .postinstall()
        .ok_or_else(|| invalid("no action element with event=\"postinstall\""))?;
    let sha256 = base64::engine::general_purpose::STANDARD
        .decode(&action.sha256)
        .ok()
        .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
        .ok_or_else(|| invalid("the postinstall action has no base64 SHA-256 of the payload"))?;

    let offer = UpdateOffer {
        version: manifest.version.clone(),
        urls,
        size,
        sha256,
        is_delta: action.is_delta,
        disable_backoff: action.disable_payload_backoff,
        max_failures_per_url: action
            .max_failure_count_per_url
            .unwrap_or(DEFAULT_MAX_FAILURES_PER_URL),
    };
    Ok((Answer::Offer(offer), poll))
}

fn join(codebase: &str, name: &str) -> String {
    let separator = if codebase.ends_with('/') { "" } else { "/" };
    format!("{codebase}{separator}{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";

    fn answer(check: &str) -> String {
        format!("<response protocol=\"3.0\"><app appid=\"x\">{check}</app></response>")
    }

    fn read(document: &str) -> Result<(Answer, u64), UpdateError> {
        read_answer(&Response::parse(document.as_bytes()).unwrap())
    }

    fn good() -> String {
        answer(&format!(
            "<updatecheck status=\"ok\" PollInterval=\"3600\"><urls><url codebase=\"http://a/x\"/>\
             <url codebase=\"http://b/\"/></urls><manifest version=\"2.0.0\"><packages>\
             <package name=\"update.gz\" size=\"1000\"/><package name=\"oem.gz\" size=\"1\"/>\
             </packages><actions><action event=\"postinstall\" sha256=\"{HASH}\" \
             DisablePayloadBackoff=\"true\"/></actions></manifest></updatecheck>"
        ))
    }

    #[test]
    fn an_offer_is_the_first_package_with_all_urls() {
        let (answer, poll) = read(&good()).unwrap();
        let expected = UpdateOffer {
            version: "2.0.0".to_owned(),
            urls: vec![
                "http://a/x/update.gz".to_owned(),
                "http://b/update.gz".to_owned(),
            ],
            size: 1000,
            sha256: [7; 32],
            is_delta: false,
            disable_backoff: true,
            max_failures_per_url: 10,
        };
        assert_eq!((answer, poll), (Answer::Offer(expected), 3600));
    }

    #[test]
    fn a_refusal_in_any_form_is_no_update_now() {
        for (status, expected) in [
            ("noupdate", ""),
            (
                "error-internal",
                "the server refuses for now: error-internal",
            ),
            (
                "error-updateInProgressOnInstance",
                "the server refuses for now: error-updateInProgressOnInstance",
            ),
        ] {
            let document = answer(&format!("<updatecheck status=\"{status}\"/>"));
            let reason = expected.to_owned();
            assert_eq!(read(&document).unwrap(), (Answer::NoUpdate { reason }, 0));
        }
    }

    #[test]
    fn whatever_an_offer_lacks_is_named() {
        let without = |from: &str, to: &str| {
            let document = good();
            assert!(document.contains(from), "{from}");
            document.replace(from, to)
        };
        for (document, what) in [
            (answer(""), "no updatecheck"),
            (answer("<updatecheck/>"), "without a status"),
            (
                answer("<updatecheck status=\"maybe\"/>"),
                "unknown updatecheck status \"maybe\"",
            ),
            (answer("<updatecheck status=\"ok\"/>"), "no manifest"),
            (without("size=\"1000\"", "size=\"0\""), "size above 0"),
            (without("size=\"1000\"", "size=\"-5\""), "size above 0"),
            (
                without("name=\"update.gz\"", "name=\"\""),
                "package without a name",
            ),
            (
                without("codebase=\"http://b/\"", "codebase=\"\""),
                "no url element",
            ),
            (
                without("event=\"postinstall\"", "event=\"update\""),
                "postinstall",
            ),
            (without(HASH, "too short"), "base64 SHA-256"),
            (without(HASH, ""), "base64 SHA-256"),
            (without("2.0.0", "2.0.0&#10;3.0.0"), "control characters"),
        ] {
            let error = read(&document).unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
            assert_eq!(error.code(), 34);
        }
    }

    #[test]
    fn the_fingerprint_is_the_text_of_the_original() {
        let Answer::Offer(offer) = read(&good()).unwrap().0 else {
            panic!("an offer")
        };
        assert_eq!(
            offer.fingerprint(),
            format!(
                "NumURLs = 2\nUrl0 = http://a/x/update.gz\nUrl1 = http://b/update.gz\n\
                 Payload Size = 1000\nPayload Sha256 Hash = {HASH}\nIs Delta Payload = 0\n\
                 Max Failure Count Per Url = 10\nDisable Payload Backoff = 1\n"
            )
        );
    }
}
