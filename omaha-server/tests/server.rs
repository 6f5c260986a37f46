//! The server over real TCP on loopback.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use std::fs::{self, File};
use std::future::Future;
use std::io::Cursor;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use omaha_protocol::{
    AppStatus, Event, EventResult, EventType, OS_APP_ID, Ping, Request, RequestApp, Response,
    UpdateCheckRequest, UpdateCheckStatus, limits,
};
use omaha_server::catalogue::Catalogue;
use omaha_server::decide::Policy;
use omaha_server::labels::Defaults;
use omaha_server::server::{Server, Settings};
use payload::make;
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

const FULL: &[u8] = include_bytes!("../../fixtures/crau-v1/unsigned.payload");
const SIGNED: &[u8] = include_bytes!("../../fixtures/crau-v1/full.payload");
const DELTA: &[u8] = include_bytes!("../../fixtures/crau-v1/delta.payload");

/// No test may hang.
async fn bounded<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), test)
        .await
        .expect("in time")
}

struct TestServer {
    address: SocketAddr,
    folder: TempDir,
    catalogue: watch::Receiver<Arc<Catalogue>>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
    client: reqwest::Client,
}

impl TestServer {
    async fn start(files: &[(&str, &[u8])]) -> Self {
        Self::start_with(files, |_| {}).await
    }

    async fn start_with(files: &[(&str, &[u8])], change: impl FnOnce(&mut Settings)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            put(folder.path(), name, content);
        }
        let mut settings = Settings {
            folder: folder.path().to_owned(),
            listen: "127.0.0.1:0".parse().unwrap(),
            public_url: None,
            defaults: Defaults::default(),
            policy: Policy::default(),
            // Never, unless the test is about it.
            rescan: Duration::from_secs(3600),
            connections: 100,
        };
        change(&mut settings);
        let server = Server::bind(settings).await.unwrap();
        let (address, catalogue) = (server.address(), server.catalogue());
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let stopped = async {
                let _ = stopped.await;
            };
            server.run(stopped).await;
        });
        Self {
            address,
            folder,
            catalogue,
            stop: Some(stop),
            task,
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
        }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Reply {
        let mut request = self.client.request(method, self.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Reply::read(request.send().await.unwrap()).await
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        self.send(Method::GET, path, headers).await
    }

    async fn post(&self, body: impl Into<reqwest::Body>) -> Reply {
        let request = self.client.post(self.url("/v1/update/")).body(body);
        Reply::read(request.send().await.unwrap()).await
    }

    async fn ask(&self, apps: Vec<RequestApp>) -> Response {
        let request = Request {
            protocol: "3.0".into(),
            apps,
            ..Request::default()
        };
        let reply = self.post(request.to_xml()).await;
        assert_eq!(reply.status, StatusCode::OK);
        assert_eq!(reply.header("content-type"), "text/xml; charset=utf-8");
        Response::parse(&reply.body).unwrap()
    }

    /// The version that this app is offered, `None` for none.
    async fn offered(&self, app: RequestApp) -> Option<String> {
        let response = self.ask(vec![app]).await;
        let check = response.update_check().unwrap();
        match check.status {
            UpdateCheckStatus::Ok => Some(check.manifests[0].version.clone()),
            UpdateCheckStatus::NoUpdate => None,
            UpdateCheckStatus::Other(_) => panic!("{check:?}"),
        }
    }

    /// The path of the one payload on offer.
    async fn offered_path(&self) -> String {
        let response = self.ask(vec![machine("0")]).await;
        let codebase = response.urls().next().unwrap();
        let name = &response.package().unwrap().name;
        let root = self.url("");
        format!("{}{name}", codebase.strip_prefix(&root).unwrap())
    }

    /// Everything that comes back for these very bytes.
    async fn raw(&self, request: &str) -> String {
        let mut connection = TcpStream::connect(self.address).await.unwrap();
        connection.write_all(request.as_bytes()).await.unwrap();
        let mut reply = Vec::new();
        connection.read_to_end(&mut reply).await.unwrap();
        String::from_utf8_lossy(&reply).into_owned()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Reply {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Reply {
    async fn read(response: reqwest::Response) -> Self {
        Self {
            status: response.status(),
            headers: response.headers().clone(),
            body: response.bytes().await.unwrap().to_vec(),
        }
    }

    fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).map(|value| value.to_str().unwrap());
        value.unwrap_or_default()
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// A file that has rested for long.
fn put(folder: &Path, name: &str, content: &[u8]) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    let hour_ago = SystemTime::now() - Duration::from_secs(3600);
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(hour_ago)
        .unwrap();
}

fn machine(version: &str) -> RequestApp {
    RequestApp {
        id: OS_APP_ID.into(),
        version: version.into(),
        track: "stable".into(),
        board: "amd64-usr".into(),
        machine_id: "0123456789abcdef0123456789abcdef".into(),
        ping: Some(Ping { active: true }),
        update_check: Some(UpdateCheckRequest::default()),
        events: vec![Event::update_complete("")],
        ..RequestApp::default()
    }
}

#[tokio::test]
async fn an_offer_leads_to_the_payload() {
    bounded(async {
        let server = TestServer::start(&[("my update-4152.10.0.payload", SIGNED)]).await;
        let response = server.ask(vec![machine("4152.2.0")]).await;
        let package = response.package().unwrap();
        let action = response.postinstall().unwrap();
        assert_eq!(package.name, "my%20update-4152.10.0.payload");
        assert_eq!(package.size, Some(u64::try_from(SIGNED.len()).unwrap()));
        assert_eq!(action.sha256.len(), 44);
        assert!(!action.is_delta);

        let path = server.offered_path().await;
        let reply = server.get(&path, &[]).await;
        assert_eq!(reply.status, StatusCode::OK);
        assert!(reply.body == SIGNED);
        let digest = package.sha256.clone().unwrap();
        assert_eq!(path, format!("/p/{digest}/my%20update-4152.10.0.payload"));
        for (name, value) in [
            ("content-type", "application/octet-stream"),
            ("content-length", SIGNED.len().to_string().as_str()),
            ("etag", format!("\"{digest}\"").as_str()),
            ("accept-ranges", "bytes"),
            ("cache-control", "public, immutable, max-age=31536000"),
            (
                "repr-digest",
                format!("sha-256=:{}:", action.sha256).as_str(),
            ),
        ] {
            assert_eq!(reply.header(name), value, "{name}");
        }

        let head = server
            .send(Method::HEAD, &path, &[("range", "bytes=0-1")])
            .await;
        assert_eq!(head.status, StatusCode::OK, "ranges are for GET");
        assert!(head.body.is_empty());
        for name in [
            "content-type",
            "content-length",
            "etag",
            "accept-ranges",
            "repr-digest",
        ] {
            assert_eq!(head.header(name), reply.header(name), "{name}");
        }
    })
    .await;
}

#[tokio::test]
async fn ranges_and_conditions_over_http() {
    bounded(async {
        let server = TestServer::start(&[("update-1.2.3.payload", FULL)]).await;
        let path = server.offered_path().await;
        let length = FULL.len();
        let etag = server.get(&path, &[]).await.header("etag").to_owned();
        let last = format!("bytes={}-", length - 1);
        let behind = format!("bytes={length}-");
        let whole = |status| (status, String::new(), 0..length);
        let part = |range: std::ops::Range<usize>| {
            let content_range = format!("bytes {}-{}/{length}", range.start, range.end - 1);
            (StatusCode::PARTIAL_CONTENT, content_range, range)
        };
        for (headers, (status, content_range, bytes)) in [
            (vec![("range", "bytes=0-")], part(0..length)),
            (vec![("range", "bytes=100-199")], part(100..200)),
            (vec![("range", last.as_str())], part(length - 1..length)),
            (vec![("range", "bytes=-10")], part(length - 10..length)),
            (vec![("range", "bytes=10-99999999")], part(10..length)),
            (
                vec![("range", "bytes=5-6"), ("if-range", &etag)],
                part(5..7),
            ),
            (
                vec![("range", "bytes=5-6"), ("if-range", "\"other\"")],
                whole(StatusCode::OK),
            ),
            (vec![("range", "bytes=0-1,5-6")], whole(StatusCode::OK)),
            (vec![("range", "lines=1-2")], whole(StatusCode::OK)),
        ] {
            let reply = server.get(&path, &headers).await;
            assert_eq!(reply.status, status, "{headers:?}");
            assert_eq!(reply.header("content-range"), content_range, "{headers:?}");
            assert_eq!(reply.header("content-length"), bytes.len().to_string());
            assert_eq!(reply.header("etag"), etag);
            assert!(reply.body == FULL[bytes], "{headers:?}");
        }

        let reply = server.get(&path, &[("range", &behind)]).await;
        assert_eq!(reply.status, StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(reply.header("content-range"), format!("bytes */{length}"));

        let reply = server
            .get(&path, &[("if-none-match", &etag), ("range", "bytes=1-2")])
            .await;
        assert_eq!(reply.status, StatusCode::NOT_MODIFIED);
        assert_eq!(reply.header("etag"), etag);
        assert!(reply.body.is_empty());

        let reply = server.get(&path, &[("if-match", "\"other\"")]).await;
        assert_eq!(reply.status, StatusCode::PRECONDITION_FAILED);
    })
    .await;
}

#[tokio::test]
async fn what_is_not_there_is_a_real_404() {
    bounded(async {
        let server = TestServer::start(&[("update-1.2.3.payload", FULL)]).await;
        put(server.folder.path(), "secret", b"secret");
        let path = server.offered_path().await;
        let (folder, name) = path.rsplit_once('/').unwrap();
        for path in [
            "/".to_owned(),
            "/p/".to_owned(),
            format!("{folder}/"),
            format!("{folder}/other"),
            format!("{folder}/{name}/more"),
            format!("/p/{}/{name}", "0".repeat(64)),
            format!("/p/{}/{name}", folder[3..].to_uppercase()),
            format!("{folder}/../{name}"),
            format!("{folder}/..%2f..%2fsecret"),
            format!("{folder}/%2e%2e%2fsecret"),
            "/p/../../secret".to_owned(),
            "/../secret".to_owned(),
            format!("{folder}/{name}%00"),
            format!("{folder}/%ff"),
        ] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            let reply = server.raw(&request).await;
            let status = reply.split(' ').nth(1).unwrap();
            assert!(["404", "400"].contains(&status), "{path}: {reply}");
            assert!(!reply.contains("<html"), "{reply}");
            assert!(!reply.ends_with("secret"), "{path}");
        }
        let reply = server.get("/nothing", &[]).await;
        assert_eq!(reply.status, StatusCode::NOT_FOUND);
        assert_eq!(reply.text(), "there is nothing here\n");
        assert_eq!(reply.header("content-type"), "text/plain; charset=utf-8");
        assert_eq!(server.get("/healthz", &[]).await.text(), "ok\n");
    })
    .await;
}

#[tokio::test]
async fn other_methods_are_refused() {
    bounded(async {
        let server = TestServer::start(&[("update-1.2.3.payload", FULL)]).await;
        let path = server.offered_path().await;
        for (method, path) in [
            (Method::GET, "/v1/update/"),
            (Method::GET, "/v1/update"),
            (Method::PUT, "/v1/update/"),
            (Method::POST, "/healthz"),
            (Method::POST, &path),
            (Method::DELETE, &path),
        ] {
            let reply = server.send(method.clone(), path, &[]).await;
            assert_eq!(
                reply.status,
                StatusCode::METHOD_NOT_ALLOWED,
                "{method} {path}"
            );
            assert!(!reply.header("allow").is_empty(), "{method} {path}");
        }
    })
    .await;
}

#[tokio::test]
async fn requests_that_are_no_requests_are_refused_in_words() {
    bounded(async {
        let server = TestServer::start(&[]).await;
        for (body, text) in [
            ("", "document is empty\n"),
            ("hello", "content outside of the root element at byte 0\n"),
            (
                "<!DOCTYPE a><request/>",
                "a document type declaration (DOCTYPE) is refused, at byte 0\n",
            ),
            (
                "<response/>",
                "root element is `response` instead of `request` at byte 0\n",
            ),
            ("<request><app></request>", "malformed xml at byte 14: "),
            (
                &format!("<request></{}>", "x".repeat(100_000)),
                "malformed xml at byte 9: ",
            ),
        ] {
            let reply = server.post(body.to_owned()).await;
            assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{body}");
            assert!(reply.body.len() < 1000);
            assert!(reply.text().starts_with(text), "{}", reply.text());
        }
        let just_fits = server.post(vec![b' '; limits::DOCUMENT_BYTES]).await;
        assert_eq!(just_fits.status, StatusCode::BAD_REQUEST);
        let too_long = server.post(vec![b' '; limits::DOCUMENT_BYTES + 1]).await;
        assert_eq!(too_long.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(too_long.text(), "request is longer than 1048576 bytes\n");
    })
    .await;
}

#[tokio::test]
async fn machines_get_the_newest_for_their_track_and_board() {
    bounded(async {
        let server = TestServer::start(&[
            ("stable/amd64-usr/4152.2.0/update.gz", FULL),
            ("stable/amd64-usr/4152.10.0/update.gz", SIGNED),
            ("stable/arm64-usr/4152.11.0/update.gz", FULL),
            ("beta/update-4200.0.0.gz", FULL),
            ("delta-to-4300.0.0.payload", DELTA),
            (
                "delta-to-4300.0.0.payload.json",
                br#"{"from_version": "4200.0.0", "track": "beta"}"#,
            ),
        ])
        .await;
        let on = |track: &str, board: &str, version: &str, delta_okay| RequestApp {
            track: track.into(),
            board: board.into(),
            delta_okay,
            ..machine(version)
        };
        for (app, expected) in [
            (
                on("stable", "amd64-usr", "4152.2.0", false),
                Some("4152.10.0"),
            ),
            (
                on("stable", "amd64-usr", "4152.9.0", false),
                Some("4152.10.0"),
            ),
            (on("stable", "amd64-usr", "4152.10.0", false), None),
            (on("stable", "amd64-usr", "4153.0.0", false), None),
            (
                on("stable", "arm64-usr", "4152.10.0", false),
                Some("4152.11.0"),
            ),
            (on("stable", "riscv", "1.0.0", false), None),
            (on("beta", "riscv", "1.0.0", false), Some("4200.0.0")),
            (on("beta", "riscv", "4200.0.0", true), Some("4300.0.0")),
            (on("beta", "riscv", "4200.0.0", false), None),
            (on("alpha", "amd64-usr", "1.0.0", false), None),
        ] {
            assert_eq!(
                server.offered(app.clone()).await.as_deref(),
                expected,
                "{app:?}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn each_app_is_answered_on_its_own() {
    bounded(async {
        let server = TestServer::start(&[("update-2.0.0.payload", FULL)]).await;
        let unknown = RequestApp {
            id: "io.example.Unknown".into(),
            ..machine("1.0.0")
        };
        let spelled = RequestApp {
            id: "E96281A6-D1AF-4BDE-9A0A-97B76E56DC57".into(),
            ..machine("1.0.0")
        };
        let events = RequestApp {
            ping: None,
            update_check: None,
            events: vec![
                Event::new(EventType::UpdateDownloadStarted, EventResult::Success),
                Event::new(EventType::Other(777), EventResult::Other(777)),
            ],
            ..machine("1.0.0")
        };
        let pinging = RequestApp {
            update_check: None,
            events: Vec::new(),
            ..machine("1.0.0")
        };
        let response = server.ask(vec![unknown, spelled, events, pinging]).await;
        let [unknown, spelled, events, pinging] = response.apps.as_slice() else {
            panic!("{response:?}");
        };
        assert_eq!(unknown.id, "io.example.Unknown");
        assert_eq!(unknown.status, AppStatus::UnknownApplication);
        assert_eq!(unknown.update_check, None);
        assert_eq!(
            spelled.id, "E96281A6-D1AF-4BDE-9A0A-97B76E56DC57",
            "echoed as sent"
        );
        assert_eq!(spelled.status, AppStatus::Ok);
        assert_eq!(
            spelled.update_check.as_ref().unwrap().status,
            UpdateCheckStatus::Ok
        );
        assert_eq!((spelled.ping, spelled.events), (true, 1));
        assert_eq!(
            (events.status.clone(), events.ping, events.events),
            (AppStatus::Ok, false, 2)
        );
        assert_eq!(events.update_check, None);
        assert_eq!((pinging.ping, pinging.events), (true, 0));
        assert_eq!(pinging.update_check, None);
    })
    .await;
}

#[tokio::test]
async fn a_refusal_says_why_and_when_to_ask_again() {
    bounded(async {
        let server = TestServer::start_with(&[], |settings| {
            settings.policy.poll_interval = Some(7200);
        })
        .await;
        let response = server.ask(vec![machine("1.0.0")]).await;
        let check = response.update_check().unwrap();
        assert_eq!(check.status, UpdateCheckStatus::NoUpdate);
        assert_eq!(check.poll_interval, Some(7200));
        assert_eq!(
            check.info.as_deref(),
            Some("no payload for track `stable` and board `amd64-usr`")
        );
    })
    .await;
}

#[tokio::test]
async fn the_codebase_is_the_public_url_or_what_the_client_called_us() {
    bounded(async {
        let body = Request {
            apps: vec![machine("1.0.0")],
            ..Request::default()
        }
        .to_xml();
        let length = body.len();
        let ask = |host: &str| {
            format!(
                "POST /v1/update HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
                 Content-Length: {length}\r\n\r\n{body}"
            )
        };
        let files: &[(&str, &[u8])] = &[("update-2.0.0.payload", FULL)];
        let server = TestServer::start(files).await;
        let reply = server.raw(&ask("updates.example:81")).await;
        assert!(
            reply.contains("codebase=\"http://updates.example:81/p/"),
            "{reply}"
        );
        let reply = server.raw(&ask("evil/\"><x")).await;
        let fallback = format!("codebase=\"http://{}/p/", server.address);
        assert!(
            reply.contains(&fallback) || reply.starts_with("HTTP/1.1 400"),
            "{reply}"
        );

        let server = TestServer::start_with(files, |settings| {
            settings.public_url = Some("https://updates.example/omaha/".parse().unwrap());
        })
        .await;
        let reply = server.raw(&ask("10.0.0.1")).await;
        assert!(
            reply.contains("codebase=\"https://updates.example/omaha/p/"),
            "{reply}"
        );
    })
    .await;
}

#[tokio::test]
async fn a_file_that_changed_since_the_scan_is_not_served() {
    bounded(async {
        let server = TestServer::start(&[("update-1.2.3.payload", FULL)]).await;
        let path = server.offered_path().await;
        let file = server.folder.path().join("update-1.2.3.payload");
        let modified = file.metadata().unwrap().modified().unwrap();

        // Same size, same time, same name: only the content differs, far behind the start.
        let mut content = FULL.to_vec();
        content[FULL.len() / 2] ^= 1;
        fs::write(&file, &content).unwrap();
        File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_modified(modified)
            .unwrap();
        let changed = format!("bytes={}-", FULL.len() / 2);
        let reply = server.get(&path, &[("range", &changed)]).await;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(!reply.header("retry-after").is_empty());
        assert!(reply.body.len() < 100);
        // What comes before is as it was hashed; then the transfer breaks off.
        let reply = server.get(&path, &[("range", "bytes=0-99")]).await;
        assert!(reply.body == FULL[..100]);
        let mut whole = server.client.get(server.url(&path)).send().await.unwrap();
        let mut received = Vec::new();
        while let Ok(Some(chunk)) = whole.chunk().await {
            received.extend_from_slice(&chunk);
        }
        assert!(received.len() < FULL.len());
        assert!(received == FULL[..received.len()]);

        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &file).unwrap();
        let reply = server.get(&path, &[]).await;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);

        fs::remove_file(&file).unwrap();
        assert_eq!(server.get(&path, &[]).await.status, StatusCode::NOT_FOUND);
    })
    .await;
}

#[tokio::test]
async fn files_that_come_and_go_are_noticed() {
    bounded(async {
        let mut server = TestServer::start_with(&[], |settings| {
            settings.rescan = Duration::from_millis(20);
        })
        .await;
        assert_eq!(server.offered(machine("1.0.0")).await, None);
        put(server.folder.path(), "stable/update-2.0.0.payload", FULL);
        let is_offered = |catalogue: &Arc<Catalogue>| !catalogue.artifacts.is_empty();
        server.catalogue.wait_for(is_offered).await.unwrap();
        assert_eq!(
            server.offered(machine("1.0.0")).await.as_deref(),
            Some("2.0.0")
        );
        fs::remove_dir_all(server.folder.path().join("stable")).unwrap();
        server
            .catalogue
            .wait_for(|catalogue| !is_offered(catalogue))
            .await
            .unwrap();
        assert_eq!(server.offered(machine("1.0.0")).await, None);
    })
    .await;
}

#[tokio::test]
async fn a_folder_that_cannot_be_read_for_a_moment_keeps_its_releases_and_shows_in_health() {
    bounded(async {
        let server = TestServer::start_with(&[("update-2.0.0.payload", FULL)], |settings| {
            settings.rescan = Duration::from_millis(20);
        })
        .await;
        let health_becomes = async |status: StatusCode| {
            while server.get("/healthz", &[]).await.status != status {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        health_becomes(StatusCode::OK).await;
        let folder = server.folder.path();
        let aside = folder.with_extension("aside");
        fs::rename(folder, &aside).unwrap();
        std::os::unix::fs::symlink(folder.file_name().unwrap(), folder).unwrap();
        health_becomes(StatusCode::SERVICE_UNAVAILABLE).await;
        let offered = server.offered(machine("1.0.0")).await;
        fs::remove_file(folder).unwrap();
        fs::rename(&aside, folder).unwrap();
        assert_eq!(offered.as_deref(), Some("2.0.0"));
        health_becomes(StatusCode::OK).await;
    })
    .await;
}

#[tokio::test]
async fn many_downloads_at_once_are_all_right() {
    bounded(async {
        let server = TestServer::start(&[("update-1.2.3.payload", FULL)]).await;
        let path = &server.offered_path().await;
        let server = &server;
        let downloads = (0..32).map(|_| async move { server.get(path, &[]).await.body == FULL });
        let all = futures_util::future::join_all(downloads).await;
        assert_eq!(all, [true; 32]);
    })
    .await;
}

/// A payload that no socket buffers whole.
fn large_payload() -> Vec<u8> {
    let blocks = (0..16_u64 << 15).flat_map(|n| Sha256::digest(n.to_le_bytes()).to_vec());
    let image: Vec<u8> = blocks.collect();
    let source = make::Source {
        size: u64::try_from(image.len()).unwrap(),
        reader: &mut &image[..],
    };
    let scratch = Cursor::new(Vec::new());
    let (named, threads) = (Vec::new(), NonZeroUsize::MIN);
    let mut payload = Vec::new();
    make::full(source, None, named, make::Profile::V2, scratch, threads)
        .unwrap()
        .sign(&[], &mut payload)
        .unwrap();
    payload
}

#[tokio::test]
async fn downloads_leave_room_for_checks() {
    let large = large_payload();
    bounded(async {
        let files: [(&str, &[u8]); 2] = [("a-2.0.0.payload", FULL), ("b-1.0.0.payload", &large)];
        let server = TestServer::start_with(&files, |settings| settings.connections = 2).await;
        let small = server.offered_path().await;
        let catalogue = server.catalogue.borrow().clone();
        let large = &catalogue.artifacts[1];
        let large = format!("/p/{}/{}", large.sha256_hex(), large.name);

        let held = server.client.get(server.url(&large)).send().await.unwrap();
        assert_eq!(held.status(), StatusCode::OK);
        let reply = server.get(&small, &[]).await;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(!reply.header("retry-after").is_empty());
        assert_eq!(reply.header("connection"), "close");
        let head = server.send(Method::HEAD, &small, &[]).await;
        assert_eq!(head.status, StatusCode::OK, "no bytes, no download");
        assert_eq!(server.get("/healthz", &[]).await.status, StatusCode::OK);
        assert_eq!(
            server.offered(machine("1.0.0")).await.as_deref(),
            Some("2.0.0")
        );

        drop(held);
        while server.get(&small, &[]).await.status != StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // One that is over holds nothing.
        assert_eq!(server.get(&small, &[]).await.status, StatusCode::OK);
    })
    .await;
}

#[tokio::test]
async fn shutdown_lets_the_server_end() {
    bounded(async {
        let mut server = TestServer::start(&[]).await;
        // A connection that stays open without a request must not hold it up.
        let idle = TcpStream::connect(server.address).await.unwrap();
        server.stop.take().unwrap().send(()).unwrap();
        (&mut server.task).await.unwrap();
        drop(idle);
        assert!(TcpStream::connect(server.address).await.is_err());
    })
    .await;
}

#[tokio::test]
async fn an_address_in_use_is_an_error_with_its_name() {
    bounded(async {
        let server = TestServer::start(&[]).await;
        let settings = Settings {
            folder: server.folder.path().to_owned(),
            listen: server.address,
            public_url: None,
            defaults: Defaults::default(),
            policy: Policy::default(),
            rescan: Duration::from_secs(3600),
            connections: 100,
        };
        let error = Server::bind(settings).await.err().unwrap();
        assert_eq!(
            error.to_string(),
            format!("cannot listen on {}", server.address)
        );
    })
    .await;
}
