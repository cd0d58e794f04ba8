//! The server as a peer sees it, over real sockets, and properties of its parsers.

use crate::answer::{Answer, decide};
use crate::request::{self, Body, Error};
use crate::site::{Found, Site};
use crate::{Gauge, Http, Limits, metrics};
use proptest::prelude::*;
use segue::handover::{Incoming, Outgoing, Socket};
use segue::preserved::play;
use segue_serve::{Config, Server};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

static LONG: [u8; 200_000] = {
    let mut bytes = [0; 200_000];
    let mut i = 0;
    while i < bytes.len() {
        bytes[i] = (i % 253) as u8;
        i += 1;
    }
    bytes
};
/// Sun, 06 Nov 1994 08:49:37 GMT, of RFC 9110.
const CHANGED: u64 = 784_111_777;

fn site() -> Site {
    let changed = Some(UNIX_EPOCH + Duration::from_secs(CHANGED));
    let mut site = Site::default();
    site.add(b"/index.html".to_vec(), b"<p>home\n", changed);
    site.add(b"/a/b/page.txt".to_vec(), b"0123456789", changed);
    site.add(b"/a/index.html".to_vec(), b"<p>a\n", None);
    site.add(b"/long.bin".to_vec(), &LONG, changed);
    site.add(b"/empty".to_vec(), b"", None);
    site.add(b"/s p\xc3\xa4ce.svg".to_vec(), b"<svg/>", None);
    site
}

#[derive(Debug)]
struct Response {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Response {
    fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(n, _)| n == name);
        let value = found.next().map(|(_, value)| &value[..]);
        assert!(found.next().is_none(), "two {name}");
        value
    }
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        let limit = Some(Duration::from_secs(20));
        stream.set_read_timeout(limit).unwrap();
        Self(BufReader::new(stream))
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    /// Sends a request with a Host and no body.
    fn ask(&mut self, line: &str, headers: &[&str]) -> Response {
        let mut text = format!("{line} HTTP/1.1\r\nHost: x\r\n");
        for header in headers {
            text += &format!("{header}\r\n");
        }
        self.send(text + "\r\n");
        self.read(line.starts_with("HEAD"))
    }

    fn read(&mut self, is_head: bool) -> Response {
        let mut line = String::new();
        let mut next = |reader: &mut BufReader<TcpStream>| {
            line.clear();
            reader.read_line(&mut line).unwrap();
            line.strip_suffix("\r\n").expect("a line").to_owned()
        };
        let first = next(&mut self.0);
        let status = first.strip_prefix("HTTP/1.1 ").unwrap()[..3]
            .parse()
            .unwrap();
        let mut headers = Vec::new();
        loop {
            let line = next(&mut self.0);
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ").unwrap();
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let mut response = Response {
            status,
            headers,
            body: Vec::new(),
        };
        assert_eq!(response.header("date").unwrap().len(), 29);
        if !is_head && !matches!(status, 204 | 304) {
            let length = response.header("content-length").unwrap().parse().unwrap();
            response.body.resize(length, 0);
            self.0.read_exact(&mut response.body).unwrap();
        }
        response
    }

    fn is_closed(&mut self) -> bool {
        self.0.read(&mut [0]).unwrap() == 0
    }
}

fn with_server(limits: Limits, test: impl FnOnce(SocketAddr, &Server<Http>)) {
    let gauge = Gauge {
        name: "segue_generation",
        help: "Generation.",
        kind: metrics::Kind::Gauge,
        read: || 3.0,
    };
    let config = Config {
        threads: 2,
        ..Config::default()
    };
    let server = Server::new(Http::new(site(), limits, vec![gauge]), config).unwrap();
    Http::observe(&server);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        let running = scope.spawn(|| server.run(&listener));
        let stop = Stop(&server);
        test(address, &server);
        drop(stop);
        running.join().unwrap().unwrap();
    });
}

/// Stops the server also when a test fails: else its threads would be waited for for ever.
struct Stop<'a>(&'a Server<Http>);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// The status of the answer to these bytes, after which the connection is closed.
fn last_status(address: SocketAddr, bytes: impl AsRef<[u8]>) -> u16 {
    let mut client = Client::new(address);
    client.send(bytes);
    let response = client.read(false);
    assert_eq!(response.header("connection"), Some("close"));
    assert!(client.is_closed());
    response.status
}

#[test]
fn files_are_found_by_their_paths_and_nothing_else_is() {
    with_server(Limits::default(), |address, _| {
        let mut client = Client::new(address);
        let mut get = |path: &str| {
            let r = client.ask(&format!("GET {path}"), &[]);
            let kind = r.header("content-type").unwrap_or_default().to_owned();
            (r.status, r.body, kind)
        };
        let html = "text/html; charset=utf-8".to_owned();
        let text = "text/plain; charset=utf-8".to_owned();
        for path in ["/", "/index.html", "/?q=/a", "http://x/", "http://x?q"] {
            assert_eq!(
                get(path),
                (200, b"<p>home\n".to_vec(), html.clone()),
                "{path}"
            );
        }
        assert_eq!(get("/a/b/page.txt?x").2, text);
        assert_eq!(get("/a/"), (200, b"<p>a\n".to_vec(), html));
        assert_eq!(get("/s%20p%C3%a4ce.svg").2, "image/svg+xml");
        assert_eq!(get("/empty").1, b"");
        assert!(get("/long.bin").1 == LONG);
        for path in [
            "/x",
            "/a/b/",
            "/../index.html",
            "/a/../index.html",
            "/%2e%2e/index.html",
            "//index.html",
            "/index.html/",
            "/index.html%00",
            "*",
        ] {
            assert_eq!(get(path).0, 404, "{path}");
        }
        let moved = client.ask("GET /a/b", &[]);
        assert_eq!(moved.status, 301);
        assert_eq!(moved.header("location"), Some("/a/b/"));
    });
}

#[test]
fn head_tells_what_get_would() {
    with_server(Limits::default(), |address, _| {
        let mut client = Client::new(address);
        for path in ["/", "/long.bin", "/nothing", "/a"] {
            let get = client.ask(&format!("GET {path}"), &[]);
            let head = client.ask(&format!("HEAD {path}"), &[]);
            let told = |r: &Response| {
                let mut headers = r.headers.clone();
                headers.retain(|(name, _)| name != "date");
                (r.status, headers)
            };
            assert_eq!(told(&get), told(&head));
        }
        let options = client.ask("OPTIONS *", &[]);
        assert_eq!(options.status, 204);
        assert_eq!(options.header("allow"), Some("GET, HEAD, OPTIONS"));
        assert_eq!(options.header("content-length"), None);
    });
}

#[test]
fn connections_are_kept_as_the_version_and_the_peer_say() {
    with_server(Limits::default(), |address, server| {
        let mut client = Client::new(address);
        client.send("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");
        let response = client.read(false);
        assert_eq!(response.header("connection"), Some("keep-alive"));
        client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(client.read(false).header("connection"), None);
        client.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: x, Close\r\n\r\n");
        assert_eq!(client.read(false).header("connection"), Some("close"));
        assert!(client.is_closed());
        assert_eq!(last_status(address, "GET / HTTP/1.0\r\n\r\n"), 200);
        assert_eq!(server.stats().accepted, 2);
        // A peer that says all it has to say and closes its half gets its answer.
        let mut client = Client::new(address);
        client.send("\r\nGET /long.bin HTTP/1.1\r\nHost: x\r\n\r\n");
        client.0.get_ref().shutdown(Shutdown::Write).unwrap();
        assert!(client.read(false).body == LONG);
        assert!(client.is_closed());
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    with_server(Limits::default(), |address, _| {
        let mut client = Client::new(address);
        let paths = ["/", "/long.bin", "/x", "/a/b/page.txt", "/long.bin", "/a/"];
        let requests: String = paths
            .iter()
            .cycle()
            .take(600)
            .map(|path| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
            .collect();
        let mut writer = client.0.get_ref().try_clone().unwrap();
        let writing = thread::spawn(move || writer.write_all(requests.as_bytes()).unwrap());
        for path in paths.iter().cycle().take(600) {
            let response = client.read(false);
            match *path {
                "/" => assert_eq!(response.body, b"<p>home\n"),
                "/x" => assert_eq!(response.status, 404),
                "/a/" => assert_eq!(response.body, b"<p>a\n"),
                "/a/b/page.txt" => assert_eq!(response.body, b"0123456789"),
                _ => assert!(response.body == LONG),
            }
        }
        writing.join().unwrap();
    });
}

#[test]
fn conditions() {
    with_server(Limits::default(), |address, _| {
        let mut client = Client::new(address);
        let first = client.ask("GET /", &[]);
        let etag = first.header("etag").unwrap().to_owned();
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(first.header("last-modified"), Some(date));
        assert_eq!(client.ask("GET /a/", &[]).header("last-modified"), None);
        let mut status = |headers: &[&str]| {
            let headers: Vec<String> = headers.iter().map(|h| h.replace("TAG", &etag)).collect();
            let headers: Vec<&str> = headers.iter().map(|h| &h[..]).collect();
            let get = client.ask("GET /", &headers);
            assert_eq!(client.ask("HEAD /", &headers).status, get.status);
            if get.status == 304 {
                assert_eq!(get.header("etag"), Some(&etag[..]));
            }
            get.status
        };
        let modified = format!("If-Modified-Since: {date}");
        let earlier = "If-Modified-Since: Sun, 06 Nov 1994 08:49:36 GMT";
        assert_eq!(status(&["If-None-Match: TAG"]), 304);
        assert_eq!(status(&["If-None-Match: \"x\", W/TAG"]), 304);
        assert_eq!(status(&["If-None-Match: \"x\"", "If-None-Match: TAG"]), 304);
        assert_eq!(status(&["If-None-Match: *"]), 304);
        assert_eq!(status(&["If-None-Match: \"x\""]), 200);
        assert_eq!(status(&[&modified]), 304);
        assert_eq!(
            status(&["If-Modified-Since: Sunday, 06-Nov-94 08:49:37 GMT"]),
            304
        );
        assert_eq!(status(&[earlier]), 200);
        assert_eq!(status(&["If-Modified-Since: yesterday"]), 200);
        // The tag is what counts where both are there.
        assert_eq!(status(&["If-None-Match: \"x\"", &modified]), 200);
        assert_eq!(status(&["If-None-Match: TAG", earlier]), 304);
        assert_eq!(status(&["If-Match: \"x\", TAG"]), 200);
        assert_eq!(status(&["If-Match: W/TAG"]), 412);
        assert_eq!(status(&["If-Match: \"x\""]), 412);
        let unmodified = "If-Unmodified-Since: Sun, 06 Nov 1994 08:49:36 GMT";
        assert_eq!(status(&[unmodified]), 412);
        assert_eq!(status(&[unmodified, "If-Match: *"]), 200);
    });
}

#[test]
fn ranges() {
    with_server(Limits::default(), |address, _| {
        let mut client = Client::new(address);
        let etag = client
            .ask("GET /a/b/page.txt", &[])
            .header("etag")
            .unwrap()
            .to_owned();
        let mut get = |range: &str, more: &str| {
            let r = client.ask("GET /a/b/page.txt", &[&format!("Range: {range}"), more]);
            let range = r.header("content-range").map(str::to_owned);
            (r.status, String::from_utf8(r.body).unwrap(), range)
        };
        let part = |text: &str, range: &str| (206, text.into(), Some(format!("bytes {range}/10")));
        assert_eq!(get("bytes=2-4", "X: y"), part("234", "2-4"));
        assert_eq!(get("bytes=7-", "X: y"), part("789", "7-9"));
        assert_eq!(
            get("Bytes= 0-99999999999999999999 ", "X: y"),
            part("0123456789", "0-9")
        );
        assert_eq!(get("bytes=-3", "X: y"), part("789", "7-9"));
        assert_eq!(get("bytes=-30", "X: y"), part("0123456789", "0-9"));
        for range in ["bytes=10-", "bytes=99999999999999999999-", "bytes=-0"] {
            let (status, _, range) = get(range, "X: y");
            assert_eq!((status, range.as_deref()), (416, Some("bytes */10")));
        }
        let whole = (200, "0123456789".into(), None);
        for range in [
            "bytes=0-1,3-4",
            "bytes=4-2",
            "bytes=a-b",
            "bytes=",
            "bytes=-",
            "lines=1-2",
            "x",
        ] {
            assert_eq!(get(range, "X: y"), whole, "{range}");
        }
        let same = format!("If-Range: {etag}");
        assert_eq!(get("bytes=2-4", &same).0, 206);
        assert_eq!(
            get("bytes=2-4", "If-Range: Sun, 06 Nov 1994 08:49:37 GMT").0,
            206
        );
        assert_eq!(get("bytes=2-4", "If-Range: \"x\""), whole);
        assert_eq!(get("bytes=2-4", &format!("If-Range: W/{etag}")), whole);
        let head = client.ask("HEAD /a/b/page.txt", &["Range: bytes=2-4"]);
        assert_eq!(head.status, 200);
        let empty = client.ask("GET /empty", &["Range: bytes=0-"]);
        assert_eq!(empty.status, 416);
        let long = client.ask("GET /long.bin", &["Range: bytes=1000-150000"]);
        assert!(long.body == LONG[1000..=150_000]);
    });
}

#[test]
fn what_is_no_request_is_told_so() {
    with_server(Limits::default(), |address, server| {
        let with = |headers: &str| format!("GET / HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        let bad = [
            "GET / HTTP/1.1\r\n\r\n".into(),
            with("Host: y\r\n"),
            with("Content-Length: 1\r\nContent-Length: 2\r\n"),
            with("Content-Length: -1\r\n"),
            with("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"),
            with(" folded: no\r\n"),
            with("no colon\r\n"),
            "GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n".into(),
            "GET index.html HTTP/1.1\r\nHost: x\r\n\r\n".into(),
            "GET / HTTX/1.1\r\nHost: x\r\n\r\n".into(),
            "\x16\x03\x01\x02\x00\x01".into(),
        ];
        for request in &bad {
            assert_eq!(last_status(address, request), 400, "{request:?}");
        }
        assert_eq!(
            last_status(address, "GET / HTTP/2.0\r\nHost: x\r\n\r\n"),
            505
        );
        assert_eq!(
            last_status(address, with("Transfer-Encoding: gzip, chunked\r\n")),
            501
        );
        assert_eq!(
            last_status(address, with("Content-Length: 9999999999\r\n")),
            413
        );
        let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(9000));
        assert_eq!(last_status(address, long), 414);
        assert_eq!(
            last_status(address, with(&format!("X: {}\r\n", "x".repeat(9000)))),
            431
        );
        assert_eq!(last_status(address, with(&"X: y\r\n".repeat(80))), 431);
        let counted: Vec<(u16, u64)> = server.service().requests().by_status().collect();
        assert!(counted.contains(&(400, bad.len() as u64)));
    });
}

#[test]
fn bodies_are_passed_over() {
    with_server(Limits::default(), |address, _| {
        let mut client = Client::new(address);
        let body = "GET / HTTP/1.1\r\n".repeat(10_000);
        let head = format!(
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        client.send(head + &body + "BREW / HTTP/1.1\r\nHost: x\r\n\r\n");
        let response = client.read(false);
        assert_eq!(
            (response.status, response.header("allow")),
            (405, Some("GET, HEAD, OPTIONS"))
        );
        assert_eq!(client.read(false).status, 501);
        assert_eq!(client.ask("GET /", &[]).status, 200);
        let chunked =
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
        assert_eq!(last_status(address, chunked), 405);
        let expects =
            "PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n";
        assert_eq!(last_status(address, expects), 405);
    });
}

#[test]
fn slow_peers_are_told_and_silent_ones_are_closed() {
    let limits = Limits {
        request: Duration::from_millis(200),
        idle: Duration::from_millis(500),
        ..Limits::default()
    };
    with_server(limits, |address, _| {
        let start = Instant::now();
        assert_eq!(last_status(address, "GET / HT"), 408);
        assert!(start.elapsed() >= Duration::from_millis(190));
        let mut idle = Client::new(address);
        assert_eq!(idle.ask("GET /", &[]).status, 200);
        let start = Instant::now();
        assert!(idle.is_closed());
        assert!(start.elapsed() >= Duration::from_millis(490));
    });
}

#[test]
fn it_says_that_it_is_healthy() {
    with_server(Limits::default(), |address, _| {
        let mut client = Client::new(address);
        let response = client.ask("GET /health", &[]);
        let wanted = if cfg!(feature = "unhealthy") {
            503
        } else {
            200
        };
        assert_eq!(response.status, wanted);
        assert_eq!(response.header("cache-control").unwrap(), "no-store");
    });
}

#[test]
fn metrics_are_as_prometheus_reads_them() {
    with_server(Limits::default(), |address, _| {
        let mut client = Client::new(address);
        client.ask("GET /", &[]);
        client.ask("GET /x", &[]);
        let response = client.ask("GET /metrics", &[]);
        let kind = response.header("content-type").unwrap();
        assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
        let text = String::from_utf8(response.body).unwrap();
        let mut typed = Vec::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                typed.push(rest.split(' ').next().unwrap());
            } else if !line.starts_with("# HELP ") {
                let (name, value) = line.rsplit_once(' ').unwrap();
                assert_eq!(name.split('{').next(), typed.last().copied(), "{line}");
                assert!(value.parse::<f64>().is_ok(), "{line}");
            }
        }
        for line in [
            "segue_generation 3",
            "httpd_requests_total{code=\"200\"} 1",
            "httpd_requests_total{code=\"404\"} 1",
            "httpd_connections 1",
            "httpd_files 6",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    });
}

#[test]
fn a_folder_becomes_a_site() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    std::fs::create_dir_all(root.join("a/b")).unwrap();
    std::fs::write(root.join("index.html"), "home").unwrap();
    std::fs::write(root.join("a/b/c.txt"), "c").unwrap();
    let content = |path: &Path| std::fs::read(path).map(|bytes| &*bytes.leak());
    let site = Site::load(root, content).unwrap();
    assert_eq!((site.len(), site.bytes()), (2, 5));
    assert!(matches!(site.find(b"/"), Found::Page(page) if page.body == b"home"));
    assert!(matches!(site.find(b"/a/b/c.txt"), Found::Page(page) if page.modified.is_some()));
    assert!(matches!(site.find(b"/a/b"), Found::Folder));
    assert!(matches!(site.find(b"/c.txt"), Found::Nothing));
    let error = Site::load(&root.join("none"), content).unwrap_err();
    assert!(error.to_string().contains("none"));
}

proptest! {
    /// Whatever comes in, the parser says something and claims no more than there is.
    #[test]
    fn any_bytes_parse_to_something(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(Some((_, len))) = request::parse(&bytes) {
            prop_assert!(len <= bytes.len());
        }
    }

    /// A whole head cut anywhere is incomplete, not wrong.
    #[test]
    fn a_cut_head_is_incomplete(
        path in "/[a-z0-9/%]{0,20}", name in "[A-Za-z-]{1,20}", value in "[ -~]{0,30}", cut in 0.0..1.0,
    ) {
        let text = format!("GET {path} HTTP/1.1\r\nHost: x\r\nX-{name}: {value}\r\n\r\n");
        if let Ok(Some((_, len))) = request::parse(text.as_bytes()) {
            prop_assert_eq!(len, text.len());
            let cut = (text.len() as f64 * cut) as usize;
            prop_assert!(matches!(request::parse(&text.as_bytes()[..cut]), Ok(None)));
        } else {
            // A percent sign without two digits after it.
            prop_assert!(path.contains('%'));
        }
    }

    /// A range is answered by a part within the page, by a refusal, or by the whole.
    #[test]
    fn a_range_stays_within(
        range in prop_oneof!["bytes=[0-9]{0,21}-[0-9]{0,21}", "[ -~]{0,30}"], len in 0_usize..2000,
    ) {
        let mut site = Site::default();
        site.add(b"/x".to_vec(), &LONG[..len], None);
        let text = format!("GET /x HTTP/1.1\r\nHost: x\r\nRange: {range}\r\n\r\n");
        let Ok(Some((head, _))) = request::parse(text.as_bytes()) else { return Ok(()) };
        let Found::Page(page) = site.find(b"/x") else { unreachable!() };
        if let Answer::Part(part) = decide(&head, page) {
            prop_assert!(part.start < part.end && part.end <= len);
        }
    }
}

#[test]
fn a_length_is_digits() {
    assert_eq!(request::decimal(b"0018446744073709551615"), Some(u64::MAX));
    for not in ["", "+1", "1 ", "0x1", "18446744073709551616"] {
        assert_eq!(request::decimal(not.as_bytes()), None, "{not}");
    }
    let (head, _) = request::parse(b"GET / HTTP/1.0\r\nContent-Length: 7\r\n\r\n")
        .unwrap()
        .unwrap();
    assert_eq!(head.body, Body::Length(7));
    let coded = request::parse(b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(coded.unwrap_err(), Error::Bad);
}

/// What an image hands over, as the next one gets it.
fn hand_over(server: &Server<Http>, listener: &TcpListener) -> Option<Incoming> {
    let mut out = Outgoing::default();
    out.put("clients", &(Socket::new(listener), server.pause()))
        .unwrap();
    out.put("known", &server.service().known()).unwrap();
    play::values(&out);
    segue::handover()
}

/// A switch in the middle of long files: the next server goes on at their offsets, and counts on.
#[test]
fn responses_go_on_in_the_next_image() {
    const HUGE: usize = 40 << 20;
    let huge: &'static [u8] = vec![9; HUGE].leak();
    let ramdisk: &'static [u8] = vec![8; HUGE].leak();
    let site = |huge| {
        let mut site = site();
        site.add(b"/huge".to_vec(), huge, None);
        site.add(b"/disk".to_vec(), &ramdisk[5..], None);
        site.keep(vec![ramdisk]);
        site
    };
    let server = |site| {
        let http = Http::new(site, Limits::default(), vec![]);
        Server::new(http, Config::default()).unwrap()
    };
    let first = server(site(huge));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut start = [0; 100_000];
    thread::scope(|scope| {
        let running = scope.spawn(|| first.run(&listener));
        let stop = Stop(&first);
        let mut clients = ["/huge", "/disk"].map(|path| {
            let mut client = TcpStream::connect(address).unwrap();
            let get = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\nGET /empty HTTP/1.0\r\n\r\n");
            client.write_all(get.as_bytes()).unwrap();
            client.read_exact(&mut start).unwrap();
            client
        });

        // An image with other content there can't go on.
        let other = server(site(&huge[1..]));
        let error = other.take(&mut hand_over(&first, &listener), "clients");
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("/huge \""), "{error}");

        let next = server(site(huge.to_vec().leak()));
        let mut before = hand_over(&first, &listener);
        let listener = next.take(&mut before, "clients").unwrap().unwrap();
        let known = before.unwrap().take("known").unwrap();
        next.service().go_on(known);
        drop(stop);
        running.join().unwrap().unwrap();
        thread::scope(|scope| {
            let running = scope.spawn(|| next.run(&listener));
            let stop = Stop(&next);
            for (client, byte) in clients.iter_mut().zip([9, 8]) {
                let mut rest = Vec::new();
                client.read_to_end(&mut rest).unwrap();
                let body = rest.iter().take_while(|b| **b == byte).count();
                assert!(rest[body..].starts_with(b"HTTP/1.1 200 OK\r\n"));
                assert!((HUGE - start.len() - 5..HUGE).contains(&body));
            }
            let count: u64 = next.service().requests().by_status().map(|s| s.1).sum();
            assert_eq!(count, 4);
            drop(stop);
            running.join().unwrap().unwrap();
        });
    });
}

#[test]
fn tags_of_what_stays_are_made_once() {
    let ramdisk: &'static [u8] = b"some bytes that stay";
    let site = || {
        let mut site = Site::default();
        site.add(b"/stays".to_vec(), &ramdisk[5..10], None);
        site.add(b"/goes".to_vec(), b"others", None);
        site.keep(vec![b"another", ramdisk]);
        site
    };
    let tags = |site: &Site| site.tags().len();
    let (first, next) = (site(), site());
    assert_eq!(tags(&first), 0);
    for path in [&b"/stays"[..], b"/goes"] {
        let Found::Page(page) = first.find(path) else {
            unreachable!()
        };
        assert!(page.headers().contains(page.etag()));
    }
    next.tag(first.tags());
    assert_eq!((tags(&first), tags(&next)), (1, 1));
    assert_eq!(first.tags(), next.tags());
}
