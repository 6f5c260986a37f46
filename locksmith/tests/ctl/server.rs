//! etcd for tests, one server at a time: a command gives up after some seconds,
//! so it must not be the machine that is too busy.

use std::ops::Deref;
use std::sync::{Mutex, MutexGuard, PoisonError};

use system_tests::etcd::{Cluster, Setup};

static TURN: Mutex<()> = Mutex::new(());

/// A server of one member; it ends with the value.
pub(crate) struct Server {
    // Ends before the next one's turn: fields are dropped in this order.
    cluster: Cluster,
    _turn: MutexGuard<'static, ()>,
}

impl Server {
    /// With both interfaces and without TLS.
    pub(crate) fn start() -> Self {
        Self::start_with(&Setup {
            v2: true,
            ..Setup::default()
        })
    }

    pub(crate) fn start_with(setup: &Setup) -> Self {
        // A test that failed has told so; the others go on.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        Self {
            cluster: Cluster::start_with(setup).unwrap(),
            _turn: turn,
        }
    }
}

impl Deref for Server {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}
