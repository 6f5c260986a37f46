//! A real etcd of the test's own on loopback, of one node or of three, whose
//! nodes can die, hang and come back.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::deadline::poll_until;
use crate::process::{Running, run};
use crate::programs::system_tool;

const START_LIMIT: Duration = Duration::from_secs(20);
const TOOL_LIMIT: Duration = Duration::from_secs(20);
/// Free ports may be taken before etcd binds them.
const START_ATTEMPTS: usize = 3;

/// How a cluster is set up.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// 1 unless set.
    pub nodes: usize,
    /// Whether it speaks the v2 API too.
    pub v2: bool,
    /// Whether clients need https, and a certificate of their own.
    pub tls: Option<Tls>,
    /// More words for the command line, such as `--auth-token=…`.
    pub arguments: Vec<String>,
}

/// Who must show a certificate to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// The server to its clients.
    Server,
    /// Each to the other.
    Both,
}

/// A running cluster. It ends when this value is dropped.
#[derive(Debug)]
pub struct Cluster {
    setup: Setup,
    nodes: Vec<Node>,
    folder: TempDir,
}

#[derive(Debug)]
struct Node {
    client: u16,
    peer: u16,
    process: Option<Running>,
}

impl Cluster {
    /// One node with the v3 API and nothing else.
    ///
    /// # Errors
    ///
    /// etcd is missing or does not start.
    pub fn start() -> Result<Self> {
        Self::start_with(&Setup::default())
    }

    /// A healthy cluster.
    ///
    /// # Errors
    ///
    /// etcd or openssl is missing, or the cluster does not become healthy.
    pub fn start_with(setup: &Setup) -> Result<Self> {
        let mut last = None;
        for _ in 0..START_ATTEMPTS {
            match Self::try_start(setup) {
                Ok(cluster) => return Ok(cluster),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("no attempt was made")?)
    }

    /// Where clients find node `index`: `http://127.0.0.1:…` or https.
    #[must_use]
    pub fn endpoint(&self, index: usize) -> String {
        format!("{}://127.0.0.1:{}", self.scheme(), self.nodes[index].client)
    }

    /// Where clients find the nodes.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        (0..self.nodes.len()).map(|i| self.endpoint(i)).collect()
    }

    /// `ca.pem`, `client.pem`, `client-key.pem` of a cluster with TLS, and a
    /// `server.pem` with its key.
    #[must_use]
    pub fn certificate(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Ends node `index` at once, as a power cut would.
    ///
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn kill(&mut self, index: usize) -> Result<()> {
        match self.nodes[index].process.take() {
            Some(mut process) => process.kill(),
            None => Ok(()),
        }
    }

    /// Lets node `index` hang: it keeps its connections and answers nothing.
    ///
    /// # Errors
    ///
    /// It does not run.
    pub fn stop(&self, index: usize) -> Result<()> {
        self.signal(index, Signal::SIGSTOP)
    }

    /// Lets a hanging node go on.
    ///
    /// # Errors
    ///
    /// It does not run.
    pub fn resume(&self, index: usize) -> Result<()> {
        self.signal(index, Signal::SIGCONT)
    }

    /// Starts a killed node again on its old data and waits until it is healthy.
    ///
    /// # Errors
    ///
    /// It does not become healthy.
    pub fn restart(&mut self, index: usize) -> Result<()> {
        self.launch(index, "existing")?;
        self.wait_for_health(index)
    }

    /// The node that leads the cluster.
    ///
    /// # Errors
    ///
    /// None does, as far as the running nodes say.
    pub fn leader(&self) -> Result<usize> {
        poll_until("election of a leader", START_LIMIT, || {
            for index in 0..self.nodes.len() {
                if self.nodes[index].process.is_none() {
                    continue;
                }
                let asked = self.etcdctl(
                    index,
                    &["endpoint", "status", "-w", "json", "--command-timeout=1s"],
                );
                let Ok(text) = asked else { continue };
                let answer: Value = serde_json::from_str(&text)?;
                let status = &answer[0]["Status"];
                let leads = status["leader"] == status["header"]["member_id"];
                if leads && status["leader"].as_u64() != Some(0) {
                    return Ok(Some(index));
                }
            }
            Ok(None)
        })
    }

    /// Runs `etcdctl` against node `index` and returns its data.
    ///
    /// # Errors
    ///
    /// It fails.
    pub fn etcdctl(&self, index: usize, arguments: &[&str]) -> Result<String> {
        let mut command = system_tool("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.endpoint(index)));
        if self.setup.tls.is_some() {
            for (option, file) in [
                ("cacert", "ca.pem"),
                ("cert", "client.pem"),
                ("key", "client-key.pem"),
            ] {
                command.arg(format!("--{option}={}", self.certificate(file).display()));
            }
        }
        run(command.args(arguments), TOOL_LIMIT)?.success()
    }

    /// Starts all nodes again, the killed ones and the others, and waits until
    /// they are healthy.
    ///
    /// # Errors
    ///
    /// They do not become healthy.
    pub fn restart_all(&mut self) -> Result<()> {
        for index in 0..self.nodes.len() {
            self.kill(index)?;
            self.launch(index, "existing")?;
        }
        (0..self.nodes.len()).try_for_each(|index| self.wait_for_health(index))
    }

    /// What node `index`, which must speak http, says of itself: the sum of the
    /// metric `name` over the lines that contain `part`.
    ///
    /// # Errors
    ///
    /// It does not answer.
    pub fn metric(&self, index: usize, name: &str, part: &str) -> Result<f64> {
        let mut command = system_tool("curl");
        command
            .args(["--silent", "--fail", "--noproxy", "*"])
            .arg(format!("{}/metrics", self.endpoint(index)));
        let text = run(&mut command, TOOL_LIMIT)?.success()?;
        let lines = text
            .lines()
            .filter(|line| line.starts_with(name) && line.contains(part));
        let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(values.sum())
    }

    fn try_start(setup: &Setup) -> Result<Self> {
        let setup = Setup {
            nodes: setup.nodes.max(1),
            ..setup.clone()
        };
        // etcd syncs each write; in memory no other program's disk holds it up.
        let folder = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new())?;
        if setup.tls.is_some() {
            make_certificates(folder.path())?;
        }
        let ports = free_ports(2 * setup.nodes)?;
        let nodes = ports.chunks_exact(2).map(|pair| Node {
            client: pair[0],
            peer: pair[1],
            process: None,
        });
        let mut cluster = Self {
            nodes: nodes.collect(),
            setup,
            folder,
        };
        for index in 0..cluster.nodes.len() {
            cluster.launch(index, "new")?;
        }
        for index in 0..cluster.nodes.len() {
            cluster.wait_for_health(index)?;
        }
        Ok(cluster)
    }

    fn launch(&mut self, index: usize, state: &str) -> Result<()> {
        let peers: Vec<_> = (0..).zip(&self.nodes).map(peer).collect();
        let node = &self.nodes[index];
        let mut command = system_tool("etcd");
        command
            .args(["--heartbeat-interval=50", "--election-timeout=500"])
            .args(["--logger=zap", "--log-level=error", "--bcrypt-cost=4"])
            .arg(format!("--name=n{index}"))
            .arg("--data-dir")
            .arg(self.folder.path().join(format!("n{index}")))
            .arg(format!("--listen-client-urls={}", self.endpoint(index)))
            .arg(format!("--advertise-client-urls={}", self.endpoint(index)))
            .arg(format!("--listen-peer-urls=http://127.0.0.1:{}", node.peer))
            .arg(format!(
                "--initial-advertise-peer-urls=http://127.0.0.1:{}",
                node.peer
            ))
            .arg(format!("--initial-cluster={}", peers.join(",")))
            .arg(format!("--initial-cluster-state={state}"))
            .arg(format!("--enable-v2={}", self.setup.v2))
            .args(&self.setup.arguments);
        if self.setup.tls.is_some() {
            command
                .arg("--cert-file")
                .arg(self.certificate("server.pem"))
                .arg("--key-file")
                .arg(self.certificate("server-key.pem"));
        }
        if self.setup.tls == Some(Tls::Both) {
            command
                .arg("--client-cert-auth")
                .arg("--trusted-ca-file")
                .arg(self.certificate("ca.pem"));
        }
        self.nodes[index].process = Some(Running::start(&mut command)?);
        Ok(())
    }

    fn wait_for_health(&mut self, index: usize) -> Result<()> {
        let mut last = None;
        let healthy = poll_until("a healthy etcd", START_LIMIT, || {
            let node = &mut self.nodes[index];
            let process = node.process.as_mut().context("the node was killed")?;
            ensure!(
                process.is_running()?,
                "etcd ended: {}{}",
                process.stdout()?,
                process.stderr()?
            );
            let health = self.etcdctl(index, &["endpoint", "health", "--command-timeout=1s"]);
            last = health.err();
            Ok(last.is_none().then_some(()))
        });
        // Why it is not is worth more than that it is not.
        healthy.map_err(|error| match last {
            Some(last) => last.context(error),
            None => error,
        })
    }

    fn signal(&self, index: usize, signal: Signal) -> Result<()> {
        let process = self.nodes[index].process.as_ref();
        process.context("the node was killed")?.signal(signal)
    }

    fn scheme(&self) -> &'static str {
        match self.setup.tls {
            Some(_) => "https",
            None => "http",
        }
    }
}

fn peer((index, node): (usize, &Node)) -> String {
    format!("n{index}=http://127.0.0.1:{}", node.peer)
}

/// Ports that were free a moment ago, each another.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let listeners = (0..count)
        .map(|_| TcpListener::bind(("127.0.0.1", 0)))
        .collect::<Result<Vec<_>, _>>()?;
    listeners
        .iter()
        .map(|listener| Ok(listener.local_addr()?.port()))
        .collect()
}

/// A certificate authority in `folder`, with certificates for the loopback
/// address and for a client.
fn make_certificates(folder: &Path) -> Result<()> {
    let openssl = |arguments: &str| -> Result<()> {
        let mut command = Command::new("openssl");
        command.current_dir(folder).args(arguments.split(' '));
        run(&mut command, TOOL_LIMIT)?.success()?;
        Ok(())
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!(
        "req -x509 {key} -keyout ca-key.pem -out ca.pem -days 2 -subj /CN=test-ca"
    ))?;
    fs::write(
        folder.join("extensions"),
        "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n",
    )?;
    for name in ["server", "client"] {
        openssl(&format!(
            "req {key} -keyout {name}-key.pem -out {name}.csr -subj /CN={name}"
        ))?;
        openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial \
             -days 2 -extfile extensions -out {name}.pem"
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_elects_another_leader_and_takes_the_old_one_back() {
        let mut cluster = Cluster::start_with(&Setup {
            nodes: 3,
            ..Setup::default()
        })
        .unwrap();
        let first = cluster.leader().unwrap();
        cluster.kill(first).unwrap();
        let second = cluster.leader().unwrap();
        assert_ne!(first, second);
        cluster.etcdctl(second, &["put", "key", "value"]).unwrap();
        cluster.restart(first).unwrap();
        let value = cluster.etcdctl(first, &["get", "key"]).unwrap();
        assert_eq!(value, "key\nvalue\n");
    }
}
