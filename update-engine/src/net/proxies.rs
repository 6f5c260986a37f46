//! Which proxy stands before which servers. Names of variables and their order are those of
//! libcurl, which the original used; nothing here connects.

use reqwest::{ClientBuilder, NoProxy, Proxy, Url};

use crate::error::TransportError;

const SCHEMES: [&str; 6] = ["http", "https", "socks4", "socks4a", "socks5", "socks5h"];

/// The proxies for servers of http, of https, and for those that have none of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    http: Option<Named>,
    https: Option<Named>,
    all: Option<Named>,
    /// Hosts that are reached without, separated by commas.
    direct: Option<String>,
}

type Make = fn(Url) -> reqwest::Result<Proxy>;

/// A proxy with the name of what sets it, which an error tells in place of a password.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    name: &'static str,
    url: String,
}

impl Proxies {
    /// One for all servers but those of `direct`, as the setting `PROXY` has it.
    pub fn for_everything(url: &str, direct: Option<String>) -> Self {
        let (name, url) = ("PROXY", url.to_owned());
        Self {
            all: Some(Named { name, url }),
            direct,
            ..Self::default()
        }
    }

    /// Those of this process's environment.
    pub fn of_environment() -> Self {
        Self::select(|name| std::env::var(name).ok())
    }

    fn select(get: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| get(name).filter(|value| !value.is_empty());
        let first = |names: &[&'static str]| {
            let mut named = names.iter();
            named.find_map(|name| set(name).map(|url| Named { name, url }))
        };
        Self {
            // Not HTTP_PROXY: in a CGI program a client sets it with a header `Proxy`.
            http: first(&["http_proxy"]),
            https: first(&["https_proxy", "HTTPS_PROXY"]),
            all: first(&["all_proxy", "ALL_PROXY"]),
            direct: first(&["no_proxy", "NO_PROXY"]).map(|named| named.url),
        }
    }

    /// Has a client use these and no others.
    pub(super) fn apply(&self, client: ClientBuilder) -> Result<ClientBuilder, TransportError> {
        let direct = self.direct.as_deref().and_then(NoProxy::from_string);
        let proxies: [(&Option<Named>, Make); 3] = [
            (&self.http, Proxy::http),
            (&self.https, Proxy::https),
            (&self.all, Proxy::all),
        ];
        let mut client = client.no_proxy();
        for (named, make) in proxies {
            if let Some(Named { name, url }) = named {
                let proxy = parse(url)
                    .and_then(|url| make(url).map_err(|error| error.without_url().to_string()))
                    .map_err(|why| {
                        TransportError::Http(format!("cannot use the proxy of {name}: {why}"))
                    })?;
                client = client.proxy(proxy.no_proxy(direct.clone()));
            }
        }
        Ok(client)
    }
}

/// Without a scheme it is an HTTP proxy.
fn parse(text: &str) -> Result<Url, String> {
    let url = match text.contains("://") {
        true => Url::parse(text),
        false => Url::parse(&format!("http://{text}")),
    };
    let mut url = url.map_err(|error| error.to_string())?;
    let scheme = url.scheme();
    if !SCHEMES.contains(&scheme) {
        let known = SCHEMES.join(", ");
        return Err(format!("{scheme} is none of {known}"));
    }
    if scheme.starts_with("socks") && url.port().is_none() {
        url.set_port(Some(1080))
            .map_err(|()| "it has no host".to_owned())?;
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::net::{HttpOptions, HttpTransport, Transport as _};

    fn of(variables: &[(&str, &str)]) -> Proxies {
        Proxies::select(|name| {
            let mut variables = variables.iter();
            variables.find_map(|(other, value)| (*other == name).then(|| (*value).to_owned()))
        })
    }

    #[test]
    fn variables_count_as_for_libcurl() {
        let named = |name, url: &str| {
            let url = url.to_owned();
            Some(Named { name, url })
        };
        assert_eq!(of(&[("HTTP_PROXY", "http://p")]), Proxies::default());
        assert_eq!(of(&[("http_proxy", "")]), Proxies::default());
        let all = of(&[
            ("http_proxy", "http://a"),
            ("HTTPS_PROXY", "http://b"),
            ("https_proxy", "http://c"),
            ("ALL_PROXY", "socks5h://d"),
            ("NO_PROXY", "e"),
        ]);
        let expected = Proxies {
            http: named("http_proxy", "http://a"),
            https: named("https_proxy", "http://c"),
            all: named("ALL_PROXY", "socks5h://d"),
            direct: Some("e".to_owned()),
        };
        assert_eq!(all, expected);
    }

    #[test]
    fn a_proxy_that_nobody_can_speak_to_is_named_without_its_password() {
        for url in [
            "ftp://user:hush@host",
            "http://user:hush@",
            "http://a b:hush",
        ] {
            let options = HttpOptions {
                proxies: of(&[("ALL_PROXY", url)]),
                ..HttpOptions::default()
            };
            let words = HttpTransport::new(options).unwrap_err().to_string();
            assert!(
                words.starts_with("cannot use the proxy of ALL_PROXY: ") && !words.contains("hush"),
                "{words}"
            );
        }
    }

    /// The kind of proxy that hides names from the network of the machine.
    #[tokio::test]
    async fn a_socks_proxy_is_spoken_to_as_one_and_finds_the_server_itself() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = format!("socks5h://{}", listener.local_addr().unwrap());
        let options = HttpOptions {
            proxies: of(&[("ALL_PROXY", &proxy), ("HTTP_PROXY", "http://127.0.0.1:9")]),
            ..HttpOptions::default()
        };
        let transport = HttpTransport::new(options).unwrap();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut greeting = [0; 3];
            stream.read_exact(&mut greeting).await.unwrap();
            assert_eq!(greeting, [5, 1, 0]);
            stream.write_all(&[5, 0]).await.unwrap();
            let name = b"update.invalid";
            let mut request = vec![0; 5 + name.len() + 2];
            stream.read_exact(&mut request).await.unwrap();
            assert_eq!(request[..4], [5, 1, 0, 3]);
            assert_eq!(&request[5..5 + name.len()], name);
            stream
                .write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])
                .await
                .unwrap();
            let mut head = [0; 1024];
            let length = stream.read(&mut head).await.unwrap();
            assert!(head[..length].starts_with(b"POST / HTTP/1.1\r\n"));
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            stream.write_all(answer).await.unwrap();
        });
        let body = bytes::Bytes::from_static(b"hello");
        let posting = transport.post("http://update.invalid/", "text/xml", body, 1024);
        let reply = tokio::time::timeout(Duration::from_secs(10), posting).await;
        assert_eq!(reply.unwrap().unwrap().body, "ok");
        served.await.unwrap();
    }
}
