//! What an error of the etcd client means for a call: whether it may have been
//! carried out, and who has to do something about it.

use std::error::Error as _;
use std::io;

use etcd_client::Error;

use crate::store::etcd::handshake_hint;
use crate::store::failover::Verdict;

/// Texts of etcd's own errors, which the codes alone do not tell apart. An old
/// token is replaced with the connection.
const BY_TEXT: [(&str, Verdict); 13] = [
    ("requested lease not found", Verdict::LeaseGone),
    ("lease not found", Verdict::LeaseGone),
    ("invalid auth token", Verdict::Again),
    ("revision of auth store is old", Verdict::Again),
    (
        "invalid user ID or password",
        Verdict::Refused("check etcd-username and etcd-password"),
    ),
    (
        "user name is empty",
        Verdict::Refused("this etcd wants etcd-username and etcd-password"),
    ),
    (
        "permission denied",
        Verdict::Refused("grant the user read and write on the prefix of the group's keys"),
    ),
    (
        "database space exceeded",
        Verdict::Refused("compact and defragment etcd, then clear its alarm"),
    ),
    (
        "etcdserver: request is too large",
        Verdict::Refused("the document or a record is larger than etcd's --max-request-bytes"),
    ),
    (
        "too many operations",
        Verdict::Refused("raise etcd's --max-txn-ops to at least 128"),
    ),
    (
        "unknown service",
        Verdict::Refused("this server does not speak the etcd v3 API"),
    ),
    ("etcdserver: no leader", Verdict::NotCarriedOut),
    ("etcdserver: too many requests", Verdict::NotCarriedOut),
];

/// What `error` means.
pub(super) fn verdict(error: &Error) -> Verdict {
    let text = text(error);
    if let Some((_, verdict)) = BY_TEXT.iter().find(|(part, _)| text.contains(part)) {
        return verdict.clone();
    }
    if let Some(hint) = handshake_hint(&text) {
        return Verdict::RefusedHere(hint);
    }
    match error {
        Error::GRpcStatus(status) => {
            let mut cause = status.source();
            while let Some(error) = cause {
                match error.downcast_ref::<io::Error>().map(io::Error::kind) {
                    Some(io::ErrorKind::ConnectionRefused) => return Verdict::NobodyListens,
                    Some(
                        io::ErrorKind::HostUnreachable
                        | io::ErrorKind::NetworkUnreachable
                        | io::ErrorKind::NetworkDown
                        | io::ErrorKind::AddrNotAvailable,
                    ) => return Verdict::NotCarriedOut,
                    _ => cause = error.source(),
                }
            }
            if text.contains("dns error") {
                return Verdict::NotCarriedOut;
            }
            Verdict::Open
        }
        _ => Verdict::Open,
    }
}

/// Whether the server does not know users at all.
pub(super) fn takes_no_users(error: &Error) -> bool {
    text(error).contains("authentication is not enabled")
}

/// The error and its causes in one line, each thing once.
pub(super) fn text(error: &Error) -> String {
    let Error::GRpcStatus(status) = error else {
        return error.to_string();
    };
    let mut parts = vec![status.message().to_owned()];
    let mut cause = status.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if part != "transport error" && !parts.iter().any(|said| said.contains(&part)) {
            parts.push(part);
        }
        cause = error.source();
    }
    parts.retain(|part| !part.is_empty());
    if parts.is_empty() {
        parts.push(status.code().description().to_owned());
    }
    parts.join(": ")
}
