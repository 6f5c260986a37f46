//! Values of keys from their text. An error is the reason in words; who reads the source adds key
//! and place.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;

use super::{EtcdApi, Inhibitors, Listen, RebootMethod, Store};
use crate::window::duration;

/// `None` for the empty text.
pub(super) fn optional<T>(
    parse: impl Fn(&str) -> Result<T, String>,
) -> impl Fn(&str) -> Result<Option<T>, String> {
    move |text| {
        if text.is_empty() {
            Ok(None)
        } else {
            parse(text).map(Some)
        }
    }
}

/// What a type's own parser says.
pub(super) fn parsed<T: std::str::FromStr>(text: &str) -> Result<T, String>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| error.to_string())
}

/// Go's words for truth and the usual ones.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" | "yes" | "on" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" | "no" | "off" => Ok(false),
        _ => Err(format!("'{text}' is neither true nor false")),
    }
}

pub(super) fn integer(text: &str, range: RangeInclusive<u16>) -> Result<u16, String> {
    let value = text
        .parse()
        .map_err(|_| format!("'{text}' is not a whole number from 0 on"))?;
    if range.contains(&value) {
        Ok(value)
    } else {
        Err(format!(
            "{value} is not between {} and {}",
            range.start(),
            range.end()
        ))
    }
}

/// A Go duration within a range of seconds.
pub(super) fn span(text: &str, seconds: RangeInclusive<u64>) -> Result<Duration, String> {
    let value = duration::parse(text).map_err(|error| error.to_string())?;
    let allowed = [seconds.start(), seconds.end()].map(|&seconds| Duration::from_secs(seconds));
    match Duration::try_from(value) {
        Ok(value) if (allowed[0]..=allowed[1]).contains(&value) => Ok(value),
        _ => {
            let [least, most] = allowed.map(|length| {
                duration::print(jiff::SignedDuration::try_from(length).unwrap_or_default())
            });
            Err(format!("{text} is not between {least} and {most}"))
        }
    }
}

/// An absolute path without `..`.
pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    if text.starts_with('/') && !text.split('/').any(|name| name == "..") && !text.contains('\0') {
        Ok(PathBuf::from(text))
    } else {
        Err(format!("'{text}' is not an absolute path without '..'"))
    }
}

/// Any path: on the command line it may be relative to where one is, as for the original.
pub(super) fn any_path(text: &str) -> Result<PathBuf, String> {
    if text.contains('\0') {
        Err("a path has no NUL in it".to_owned())
    } else {
        Ok(PathBuf::from(text))
    }
}

pub(super) fn store(text: &str) -> Result<Store, String> {
    match text.strip_prefix("file:") {
        Some(file) => path(file).map(Store::File),
        None if text == "etcd" => Ok(Store::Etcd),
        None => Err(format!("'{text}' is neither etcd nor file: and a path")),
    }
}

pub(super) fn inhibitors(text: &str) -> Result<Inhibitors, String> {
    match text {
        "respect" => Ok(Inhibitors::Respect),
        "ignore" => Ok(Inhibitors::Ignore),
        _ => Err(format!("'{text}' is neither respect nor ignore")),
    }
}

pub(super) fn reboot_method(text: &str) -> Result<RebootMethod, String> {
    match text {
        "firmware" => Ok(RebootMethod::Firmware),
        "kexec" => Ok(RebootMethod::Kexec),
        _ => Err(format!("'{text}' is neither firmware nor kexec")),
    }
}

pub(super) fn api(text: &str) -> Result<EtcdApi, String> {
    match text {
        "auto" => Ok(EtcdApi::Auto),
        "v2" => Ok(EtcdApi::V2),
        "v3" => Ok(EtcdApi::V3),
        _ => Err(format!("'{text}' is none of auto, v2 and v3")),
    }
}

pub(super) fn listen(text: &str) -> Result<Option<Listen>, String> {
    if text == "none" {
        return Ok(None);
    }
    if text.starts_with('/') {
        return path(text).map(|path| Some(Listen::Unix(path)));
    }
    let is_address = text.rsplit_once(':').is_some_and(|(host, port)| {
        let is_bare_v6 = host.contains(':') && !host.starts_with('[');
        !host.is_empty() && !is_bare_v6 && port.parse::<u16>().is_ok()
    });
    if is_address {
        Ok(Some(Listen::Tcp(text.to_owned())))
    } else {
        Err(format!(
            "'{text}' is none of none, an absolute path and host:port"
        ))
    }
}

/// One member of an etcd cluster, as `http://host:port`. The original wants the scheme written; a
/// bare `host:port` is taken as http, for it can mean nothing else.
pub(super) fn endpoint(text: &str) -> Result<String, String> {
    let with_scheme = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let url = url(&with_scheme)?;
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(format!("'{text}' has more than a host and a port"));
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// A URL for http or https without credentials. The reason never repeats them.
pub(super) fn url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("no URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("unsupported protocol scheme {:?}", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("a URL must not have a user name or password in it".to_owned());
    }
    Ok(url)
}

/// A group as the FleetLock protocol allows it.
pub(super) fn fleetlock_group(text: &str) -> Result<String, String> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    if text.bytes().all(is_allowed) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "'{text}' has more than letters, digits, '.' and '-'"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a parser makes of a text: the value's debug form or the reason.
    fn read<T: std::fmt::Debug>(parsed: Result<T, String>) -> String {
        parsed.map_or_else(|reason| reason, |value| format!("{value:?}"))
    }

    #[test]
    fn values_are_read_or_refused_never_guessed() {
        let day = 86_400;
        for (found, expected) in [
            (read(boolean("T")), "true"),
            (read(boolean("off")), "false"),
            (
                read(boolean("notabool")),
                "'notabool' is neither true nor false",
            ),
            (read(integer("999", 0..=999)), "999"),
            (
                read(integer("1000", 0..=999)),
                "1000 is not between 0 and 999",
            ),
            (
                read(integer("-1", 0..=999)),
                "'-1' is not a whole number from 0 on",
            ),
            (read(span("5m", 0..=day)), "300s"),
            (read(span("0", 0..=day)), "0ns"),
            (read(span("1.5s", 0..=day)), "1.5s"),
            (
                read(span("24h1ns", 0..=day)),
                "24h1ns is not between 0s and 24h0m0s",
            ),
            (
                read(span("-1s", 0..=day)),
                "-1s is not between 0s and 24h0m0s",
            ),
            (
                read(span("5", 0..=day)),
                r#"time: missing unit in duration "5""#,
            ),
            (read(path("/a/b")), "\"/a/b\""),
            (
                read(path("/a/../b")),
                "'/a/../b' is not an absolute path without '..'",
            ),
            (read(path("a")), "'a' is not an absolute path without '..'"),
            (read(store("etcd")), "Etcd"),
            (read(store("file:/a")), "File(\"/a\")"),
            (
                read(store("file:a")),
                "'a' is not an absolute path without '..'",
            ),
            (
                read(store("consul")),
                "'consul' is neither etcd nor file: and a path",
            ),
            (read(listen("none")), "None"),
            (read(listen("/run/x.sock")), "Some(Unix(\"/run/x.sock\"))"),
            (
                read(listen("localhost:9100")),
                "Some(Tcp(\"localhost:9100\"))",
            ),
            (read(listen("[::1]:9100")), "Some(Tcp(\"[::1]:9100\"))"),
            (
                read(listen("::1:9100")),
                "'::1:9100' is none of none, an absolute path and host:port",
            ),
            (
                read(listen(":9100")),
                "':9100' is none of none, an absolute path and host:port",
            ),
            (
                read(listen("host")),
                "'host' is none of none, an absolute path and host:port",
            ),
            (read(endpoint("http://a:2379/")), "\"http://a:2379\""),
            (
                read(endpoint("https://[::1]:2379")),
                "\"https://[::1]:2379\"",
            ),
            (
                read(endpoint("127.0.0.1:2379")),
                "\"http://127.0.0.1:2379\"",
            ),
            (
                read(endpoint("etcd.example:4001")),
                "\"http://etcd.example:4001\"",
            ),
            (
                read(endpoint("unix:///run/etcd")),
                "unsupported protocol scheme \"unix\"",
            ),
            (read(endpoint("http://")), "no URL: empty host"),
            (
                read(endpoint("http://a:99999")),
                "no URL: invalid port number",
            ),
            (
                read(endpoint("http://a/v2")),
                "'http://a/v2' has more than a host and a port",
            ),
            (
                read(endpoint("http://u:hush@a")),
                "a URL must not have a user name or password in it",
            ),
            (read(fleetlock_group("default")), "\"default\""),
            (
                read(fleetlock_group("a/b")),
                "'a/b' has more than letters, digits, '.' and '-'",
            ),
        ] {
            assert_eq!(found, expected);
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_one_panic(text in r"\PC{0,60}", url in "(http|://|[@:/.?#0-9a]){0,20}") {
            for text in [text, url] {
                let _ = (span(&text, 0..=9), path(&text), store(&text), listen(&text), endpoint(&text));
                let _ = (integer(&text, 0..=9), boolean(&text), fleetlock_group(&text));
            }
        }
    }
}
