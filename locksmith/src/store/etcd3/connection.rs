//! The connection to one member of an etcd, made anew when it fails or when the
//! TLS files have changed.

use std::fmt;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use tokio::time::{Instant, timeout, timeout_at};

use super::said;
use crate::store::StoreError;
use crate::store::etcd::{EtcdOptions, Stamp};
use crate::store::failover::{ATTEMPT_LIMIT, Endpoints, Failed, Repeat, Verdict, no_answer};

/// Time between two questions whether a quiet connection still lives. etcd
/// closes connections that ask more often than each 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Time for the answer.
const PING_LIMIT: Duration = Duration::from_secs(3);

/// The members, and a connection to one of them.
#[derive(Debug)]
pub(super) struct Connections {
    options: EtcdOptions,
    endpoints: Endpoints,
    open: Mutex<Option<Open>>,
}

#[derive(Clone)]
struct Open {
    endpoint: usize,
    stamp: Stamp,
    client: Client,
}

impl Connections {
    /// Connects to nothing yet.
    pub(super) fn new(options: EtcdOptions) -> Result<Self, StoreError> {
        options.check()?;
        options.read_tls()?;
        Ok(Self {
            endpoints: Endpoints::new(options.endpoints.clone()),
            open: Mutex::new(None),
            options,
        })
    }

    /// Carries out `call` on the first endpoint that lets it.
    pub(super) async fn call<T, F>(
        &self,
        what: &'static str,
        repeat: Repeat,
        call: impl Fn(Client) -> F + Sync,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, etcd_client::Error>> + Send,
    {
        let call = &call;
        let attempt = |endpoint, limit| async move {
            let mut answer = self.attempt(endpoint, limit, call).await;
            if let Err(failed) = &mut answer {
                failed.text.push_str(self.options.perhaps(&failed.text));
            }
            if answer
                .as_ref()
                .is_err_and(|failed| failed.verdict != Verdict::LeaseGone)
            {
                self.close();
            }
            answer
        };
        self.endpoints.call(what, repeat, attempt).await
    }

    /// A connection for a stream, and the endpoint that it leads to.
    pub(super) async fn open(&self) -> Result<(usize, Client), String> {
        let endpoint = self.endpoints.current();
        match timeout(ATTEMPT_LIMIT, self.client(endpoint)).await {
            Ok(Ok(client)) => Ok((endpoint, client)),
            Ok(Err(failed)) => {
                self.leave(endpoint);
                Err(failed.text)
            }
            Err(_) => {
                self.leave(endpoint);
                Err(no_answer(ATTEMPT_LIMIT))
            }
        }
    }

    /// Gives up the connection to `endpoint`.
    pub(super) fn leave(&self, endpoint: usize) {
        self.endpoints.leave(endpoint);
        self.close();
    }

    fn close(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn attempt<T, F>(
        &self,
        endpoint: usize,
        limit: Duration,
        call: &(impl Fn(Client) -> F + Sync),
    ) -> Result<T, Failed>
    where
        F: Future<Output = Result<T, etcd_client::Error>> + Send,
    {
        let end = Instant::now() + limit;
        let client = timeout_at(end, self.client(endpoint))
            .await
            .unwrap_or_else(|_| {
                Err(Failed {
                    sent: false,
                    verdict: Verdict::NotCarriedOut,
                    text: no_answer(limit),
                })
            })?;
        match timeout_at(end, call(client)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Failed {
                sent: true,
                ..Failed::new(&error)
            }),
            Err(_) => Err(Failed {
                sent: true,
                verdict: Verdict::Open,
                text: no_answer(limit),
            }),
        }
    }

    /// The open connection to `endpoint`, or a new one, for which the TLS files
    /// are read again.
    async fn client(&self, endpoint: usize) -> Result<Client, Failed> {
        let stamp = self.options.stamp();
        let open = self
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(open) = open
            && open.endpoint == endpoint
            && open.stamp == stamp
        {
            return Ok(open.client);
        }
        let client = self.connect(endpoint).await?;
        let open = Open {
            endpoint,
            stamp,
            client: client.clone(),
        };
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = Some(open);
        Ok(client)
    }

    async fn connect(&self, endpoint: usize) -> Result<Client, Failed> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(ATTEMPT_LIMIT)
            .with_keep_alive(PING_INTERVAL, PING_LIMIT)
            .with_keep_alive_while_idle(false)
            .with_require_leader(true);
        let files = self.options.read_tls().map_err(|error| Failed {
            sent: false,
            verdict: Verdict::Refused("the file must be readable"),
            text: error.to_string(),
        })?;
        if let Some(files) = files {
            let mut tls = TlsOptions::new();
            tls = match files.authorities {
                Some(pem) => tls.ca_certificate(Certificate::from_pem(pem)),
                None => tls.with_native_roots(),
            };
            if let Some((certificate, key)) = files.identity {
                tls = tls.identity(Identity::from_pem(certificate, key));
            }
            options = options.with_tls(tls);
        }
        let url = [self.endpoints.url(endpoint)];
        let Some((user, password)) = self.options.credentials() else {
            return Client::connect(url, Some(options))
                .await
                .map_err(|error| Failed::new(&error));
        };
        let with_user = options.clone().with_user(user, password);
        match Client::connect(url, Some(with_user)).await {
            Err(error) if said::takes_no_users(&error) => {
                tracing::warn!("this etcd takes no users; etcd-username is not used");
                Client::connect(url, Some(options))
                    .await
                    .map_err(|error| Failed::new(&error))
            }
            answer => answer.map_err(|error| Failed::new(&error)),
        }
    }
}

impl Failed {
    /// Before the call itself was sent.
    fn new(error: &etcd_client::Error) -> Self {
        Self {
            sent: false,
            verdict: said::verdict(error),
            text: said::text(error),
        }
    }
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}
