//! A gate before an etcd: it lets connections through, but for those that a test
//! wants answered otherwise.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

/// The start of a connection, and what is said to it; nothing: it is closed.
type Rule = (&'static str, Option<&'static str>);

/// How a connection for the v3 interface starts.
pub(crate) const V3: &str = "PRI ";

/// Ends with the runtime of the test.
pub(crate) struct Gate {
    /// To ask.
    pub(crate) endpoint: String,
    rules: Arc<Mutex<Vec<Rule>>>,
}

impl Gate {
    pub(crate) async fn before(endpoint: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let behind = endpoint.trim_start_matches("http://").to_owned();
        let gate = Self {
            endpoint: format!("http://{}", listener.local_addr().unwrap()),
            rules: Arc::default(),
        };
        let rules = Arc::clone(&gate.rules);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(pass(stream, behind.clone(), Arc::clone(&rules)));
            }
        });
        gate
    }

    /// For connections from now on.
    pub(crate) fn answers(&self, rules: &[Rule]) {
        *self.rules.lock().unwrap() = rules.to_vec();
    }
}

async fn pass(mut stream: TcpStream, behind: String, rules: Arc<Mutex<Vec<Rule>>>) {
    let mut head = Vec::new();
    // Requests end with an empty line, as the preface of HTTP/2 begins.
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let rule = (rules.lock().unwrap().iter())
        .find(|(start, _)| head.starts_with(start.as_bytes()))
        .copied();
    if let Some((_, answer)) = rule {
        let answer = answer.unwrap_or_default().as_bytes();
        let _ = stream.write_all(answer).await;
        return;
    }
    if !head.starts_with(V3.as_bytes()) {
        // So that the next request is a connection, too.
        head.truncate(head.len() - 2);
        head.extend(b"Connection: close\r\n\r\n");
    }
    let mut etcd = TcpStream::connect(&behind).await.unwrap();
    if etcd.write_all(&head).await.is_ok() {
        let _ = copy_bidirectional(&mut stream, &mut etcd).await;
    }
}
