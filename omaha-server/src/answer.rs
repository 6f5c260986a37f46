//! From a request to its response. Pure.

use std::fmt;
use std::str::FromStr;

use omaha_protocol::{
    Action, AppStatus, DayStart, Manifest, Package, Request, RequestApp, Response, ResponseApp,
    UpdateCheck, UpdateCheckStatus,
};

use crate::ServerError;
use crate::catalogue::{Artifact, Catalogue};
use crate::decide::{Decision, Policy, Verdict, decide};

/// A response with what led to it.
#[derive(Debug)]
pub struct Answer<'a> {
    /// What goes back.
    pub response: Response,
    /// One entry per app of the request; `None` where no update check was asked.
    pub decisions: Vec<Option<Decision<'a>>>,
}

/// Under which URL this server is reached, without a closing `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl(String);

/// Answers each app of a request on its own, in the order of the request: a ping
/// with a ping, each event with an event, an update check with a decision. `now` is
/// in seconds since 1970.
pub fn answer<'a>(
    request: &Request,
    catalogue: &'a Catalogue,
    policy: &Policy,
    base_url: &BaseUrl,
    now: u64,
) -> Answer<'a> {
    let decisions: Vec<_> = request
        .apps
        .iter()
        .map(|app| {
            app.update_check
                .is_some()
                .then(|| decide(app, catalogue, policy, now))
        })
        .collect();
    let apps = request
        .apps
        .iter()
        .zip(&decisions)
        .map(|(app, decision)| app_response(app, decision.as_ref(), base_url))
        .collect();
    Answer {
        response: Response {
            protocol: "3.0".to_owned(),
            server: concat!("omaha-server-", env!("CARGO_PKG_VERSION")).to_owned(),
            day_start: Some(DayStart {
                elapsed_seconds: Some(0),
                elapsed_days: None,
            }),
            apps,
        },
        decisions,
    }
}

fn app_response(
    app: &RequestApp,
    decision: Option<&Decision<'_>>,
    base_url: &BaseUrl,
) -> ResponseApp {
    let status = match decision {
        Some(decision) if decision.verdict == Verdict::UnknownApp => AppStatus::UnknownApplication,
        _ => AppStatus::Ok,
    };
    ResponseApp {
        id: app.id.clone(),
        status,
        ping: app.ping.is_some(),
        update_check: decision.and_then(|decision| update_check(decision, base_url)),
        events: app.events.len(),
    }
}

/// `None` for an unknown app: its status has said all.
fn update_check(decision: &Decision<'_>, base_url: &BaseUrl) -> Option<UpdateCheck> {
    let check = match &decision.verdict {
        Verdict::UnknownApp => return None,
        Verdict::Hold(reason) => UpdateCheck {
            info: Some(reason.to_string()),
            ..UpdateCheck::no_update()
        },
        Verdict::Offer(artifact) => offer(artifact, base_url),
    };
    Some(UpdateCheck {
        poll_interval: decision.poll_interval.map(i64::from),
        ..check
    })
}

fn offer(artifact: &Artifact, base_url: &BaseUrl) -> UpdateCheck {
    let package = Package::new(
        percent_encoded(&artifact.name),
        artifact.size,
        &artifact.sha1,
        &artifact.sha256,
    );
    UpdateCheck {
        status: UpdateCheckStatus::Ok,
        poll_interval: None,
        info: None,
        urls: vec![format!("{base_url}/p/{}/", artifact.sha256_hex())],
        manifests: vec![Manifest {
            version: artifact.labels.version.to_string(),
            packages: vec![package],
            actions: vec![Action::postinstall(&artifact.sha256, artifact.is_delta)],
        }],
    }
}

/// A file name as the last segment of a URL. Clients join and glob names in
/// different ways, so everything but RFC 3986 `unreserved` and `+` is encoded.
fn percent_encoded(name: &str) -> String {
    name.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~+".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
        text
    })
}

impl BaseUrl {
    /// From the `Host` header of a request over plain HTTP; `None` unless it has
    /// the form of one.
    pub fn from_host(host: &str) -> Option<Self> {
        let is_host_byte = |b: u8| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b);
        let valid = !host.is_empty() && host.len() <= 255 && host.bytes().all(is_host_byte);
        valid.then(|| Self(format!("http://{host}")))
    }
}

impl FromStr for BaseUrl {
    type Err = ServerError;

    fn from_str(url: &str) -> Result<Self, ServerError> {
        let refused = |reason| {
            Err(ServerError::PublicUrl {
                url: url.to_owned(),
                reason,
            })
        };
        let Some(rest) = url
            .strip_prefix("http://")
            .or_else(|| url.strip_prefix("https://"))
        else {
            return refused("it must begin with http:// or https://");
        };
        if rest.is_empty() || rest.starts_with('/') {
            return refused("it names no host");
        }
        if rest.contains(['?', '#']) {
            return refused("it must not have a query or fragment");
        }
        if !rest.bytes().all(|b| b.is_ascii_graphic()) {
            return refused("it has characters that must be percent-encoded");
        }
        Ok(Self(url.trim_end_matches('/').to_owned()))
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_one_plain_url_segment() {
        for (name, encoded) in [
            (
                "flatcar-amd64-4152.2.0+nightly.gz",
                "flatcar-amd64-4152.2.0+nightly.gz",
            ),
            ("my update.gz", "my%20update.gz"),
            ("a/b?c#d%e&f\"g", "a%2Fb%3Fc%23d%25e%26f%22g"),
            ("http:x", "http%3Ax"),
            ("é", "%C3%A9"),
        ] {
            assert_eq!(percent_encoded(name), encoded);
        }
    }

    #[test]
    fn only_plausible_base_urls_are_taken() {
        for (url, expected) in [
            ("https://updates.example", Some("https://updates.example")),
            ("https://updates.example/", Some("https://updates.example")),
            ("http://[::1]:80/a/b//", Some("http://[::1]:80/a/b")),
            ("updates.example", None),
            ("ftp://updates.example", None),
            ("https://", None),
            ("https:///path", None),
            ("https://a/?b", None),
            ("https://a/#b", None),
            ("https://a b/", None),
        ] {
            let parsed = url.parse::<BaseUrl>().ok().map(|url| url.to_string());
            assert_eq!(parsed.as_deref(), expected, "{url}");
        }
        assert_eq!(
            BaseUrl::from_host("10.0.0.1:8000").map(|url| url.to_string()),
            Some("http://10.0.0.1:8000".to_owned())
        );
        for host in ["", "a/b", "a b", "user@host", "a\"b", &"x".repeat(300)] {
            assert_eq!(BaseUrl::from_host(host), None, "{host}");
        }
    }
}
