//! How to reach etcd, whichever API it speaks: endpoints, TLS files, a user.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::StoreError;

const WHAT: &str = "set up the etcd client";

/// What the options `-endpoint` and `-etcd-…` say.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct EtcdOptions {
    /// URLs; one is enough. They are tried in turn.
    pub endpoints: Vec<String>,
    /// Authorities to trust instead of the system's, PEM.
    pub cafile: Option<PathBuf>,
    /// Certificate of this client, PEM.
    pub certfile: Option<PathBuf>,
    /// Its key, PEM.
    pub keyfile: Option<PathBuf>,
    /// User of etcd; none: no authentication.
    pub username: Option<String>,
    /// The user's password.
    pub password: Option<String>,
}

/// What went wrong while a connection was made, and whose fault it is.
const HANDSHAKE: [(&str, &str); 6] = [
    ("InvalidContentType", NO_TLS),
    ("invalid peer certificate", DISTRUST),
    ("CertificateRequired", DISTRUSTED),
    ("BadCertificate", DISTRUSTED),
    ("UnknownCA", DISTRUSTED),
    ("CertificateExpired", DISTRUSTED),
];
const NO_TLS: &str = "the endpoint does not speak TLS; write http://";
const DISTRUST: &str = "its certificate is not signed by a trusted authority, or is for \
                        another name; check etcd-cafile";
const DISTRUSTED: &str = "the server wants a client certificate that it trusts; check \
                          etcd-certfile";

/// Contents of the TLS files.
#[derive(Debug, Clone)]
pub(super) struct TlsFiles {
    pub(super) authorities: Option<Vec<u8>>,
    /// Certificate and key.
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// Tells whether the TLS files are still those that were read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stamp(Vec<Option<(SystemTime, u64)>>);

impl EtcdOptions {
    /// Finds what can be found without the network.
    ///
    /// # Errors
    ///
    /// No endpoint, one that is no http or https URL, both kinds at once, or a
    /// certificate without its key.
    pub fn check(&self) -> Result<(), StoreError> {
        if self.endpoints.is_empty() {
            return Err(refused("no etcd endpoint is given".into()));
        }
        for endpoint in &self.endpoints {
            let host = endpoint
                .strip_prefix("http://")
                .or_else(|| endpoint.strip_prefix("https://"));
            if host.is_none_or(|host| host.trim_matches('/').is_empty()) {
                return Err(refused(format!(
                    "the endpoint {endpoint:?} is no URL; write http://HOST:PORT or https://HOST:PORT"
                )));
            }
        }
        if self.endpoints.iter().any(|url| is_https(url)) != self.is_https() {
            return Err(refused(
                "the endpoints mix http and https; name members of one kind".into(),
            ));
        }
        if self.certfile.is_some() != self.keyfile.is_some() {
            return Err(refused(
                "a client certificate needs its key: give both or none of \
                 etcd-certfile and etcd-keyfile"
                    .into(),
            ));
        }
        Ok(())
    }

    /// Whether all endpoints are https.
    pub(super) fn is_https(&self) -> bool {
        self.endpoints.iter().all(|url| is_https(url))
    }

    /// Reads the TLS files; `None` if the endpoints are http.
    pub(super) fn read_tls(&self) -> Result<Option<TlsFiles>, StoreError> {
        if !self.is_https() {
            return Ok(None);
        }
        let authorities = self.cafile.as_deref().map(|path| {
            let pem = read(path)?;
            if !contains(&pem, b"-----BEGIN CERTIFICATE-----") {
                return Err(refused(format!(
                    "{} holds no certificate in PEM",
                    path.display()
                )));
            }
            Ok(pem)
        });
        let identity = match (&self.certfile, &self.keyfile) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            _ => None,
        };
        Ok(Some(TlsFiles {
            authorities: authorities.transpose()?,
            identity,
        }))
    }

    /// The present state of the TLS files.
    pub(super) fn stamp(&self) -> Stamp {
        let files = [&self.cafile, &self.certfile, &self.keyfile];
        let stamps = files.into_iter().flatten().map(|path| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        });
        Stamp(stamps.collect())
    }

    /// What a server may mean that says `text` or hangs up without a word.
    pub(super) fn perhaps(&self, text: &str) -> &'static str {
        let hung_up = [
            "connection closed",
            "channel closed",
            "connection reset",
            "broken pipe",
            "handshake eof",
        ];
        if !hung_up
            .iter()
            .any(|part| text.to_lowercase().contains(part))
        {
            ""
        } else if !self.is_https() {
            " (perhaps the server wants https://)"
        } else {
            " (perhaps the server speaks http://, or wants a client certificate that it trusts: \
             etcd-certfile)"
        }
    }

    /// User and password, if a user is set.
    pub(super) fn credentials(&self) -> Option<(String, String)> {
        let user = self.username.clone().filter(|user| !user.is_empty())?;
        Some((user, self.password.clone().unwrap_or_default()))
    }
}

impl fmt::Debug for EtcdOptions {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdOptions")
            .field("endpoints", &self.endpoints)
            .field("cafile", &self.cafile)
            .field("certfile", &self.certfile)
            .field("keyfile", &self.keyfile)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// What to do about the failed connection that `text` tells of.
pub(super) fn handshake_hint(text: &str) -> Option<&'static str> {
    let (_, hint) = HANDSHAKE.iter().find(|(part, _)| text.contains(part))?;
    Some(hint)
}

pub(super) fn refused(reason: String) -> StoreError {
    StoreError::Refused { what: WHAT, reason }
}

fn is_https(url: &str) -> bool {
    url.starts_with("https://")
}

fn read(path: &Path) -> Result<Vec<u8>, StoreError> {
    fs::read(path).map_err(|error| refused(format!("cannot read {}: {error}", path.display())))
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_told_before_anything_is_sent() {
        let with = |endpoints: &[&str]| EtcdOptions {
            endpoints: endpoints.iter().map(|&url| url.into()).collect(),
            ..EtcdOptions::default()
        };
        for (endpoints, told) in [
            (&[][..], "no etcd endpoint"),
            (&["127.0.0.1:2379"], "is no URL"),
            (&["http://"], "is no URL"),
            (&["ftp://a"], "is no URL"),
            (&["http://a", "https://b"], "mix http and https"),
            (&["https://b", "http://a"], "mix http and https"),
        ] {
            let error = with(endpoints).check().unwrap_err().to_string();
            assert!(error.contains(told), "{endpoints:?}: {error}");
        }
        let mut options = with(&["https://a:2379", "https://b:2379/"]);
        options.check().unwrap();
        options.certfile = Some("client.pem".into());
        let error = options.check().unwrap_err().to_string();
        assert!(error.contains("etcd-keyfile"), "{error}");
    }

    #[test]
    fn files_are_told_apart_and_the_password_is_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let cafile = folder.path().join("ca.pem");
        fs::write(&cafile, "no certificate").unwrap();
        let options = EtcdOptions {
            endpoints: vec!["https://a".into()],
            cafile: Some(cafile.clone()),
            password: Some("hush".into()),
            ..EtcdOptions::default()
        };
        let error = options.read_tls().unwrap_err().to_string();
        assert!(error.contains("ca.pem holds no certificate"), "{error}");
        let before = options.stamp();
        assert_eq!(before, options.stamp());
        fs::write(&cafile, "-----BEGIN CERTIFICATE-----\n").unwrap();
        assert_ne!(before, options.stamp());
        assert!(options.read_tls().unwrap().unwrap().identity.is_none());
        assert!(!format!("{options:?}").contains("hush"));
    }
}
