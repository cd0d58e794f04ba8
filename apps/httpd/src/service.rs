//! Requests on a connection, and the bytes of their answers.

use crate::answer::{Answer, decide};
use crate::metrics::{self, Gauge, Kind, Requests};
use crate::request::{self, Body, Head, Method};
use crate::site::{Found, Page, Site, Tag};
use httpdate::HttpDate;
use segue_serve::{Next, Output, Server, Service, Stats, Step};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What a peer may do.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a request's head.
    pub head: usize,
    /// Bytes of a request's body, which is read and thrown away.
    pub body: u64,
    /// How long a head or body may take between two of its packets.
    pub request: Duration,
    /// How long a connection may be kept without a request.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: 8 * 1024,
            body: 1024 * 1024,
            request: Duration::from_secs(10),
            idle: Duration::from_secs(75),
        }
    }
}

/// The server's side of HTTP.
#[derive(Debug)]
pub struct Http {
    site: Site,
    limits: Limits,
    gauges: Vec<Gauge>,
    requests: Requests,
    started: Instant,
    connections: OnceLock<Connections>,
}

/// Asks the server for the state of its connections.
struct Connections(Box<dyn Fn() -> Stats + Send + Sync>);

impl std::fmt::Debug for Connections {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connections")
    }
}

/// What is known of a connection between requests.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Session {
    /// Bytes of a body that are still to be thrown away.
    skip: u64,
}

/// What the next image goes on with, besides the connections.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Known {
    /// Requests by status.
    requests: Vec<(u16, u64)>,
    tags: Vec<Tag>,
}

/// The headers of an answer, after the status line.
struct Reply<'a> {
    status: u16,
    /// Whole header lines.
    headers: &'a str,
    /// The length to be announced; `None`: not at all (304, 204).
    length: Option<usize>,
    body: &'static [u8],
}

impl Http {
    /// Serves a site.
    #[must_use]
    pub fn new(site: Site, limits: Limits, gauges: Vec<Gauge>) -> Self {
        Self {
            site,
            limits,
            gauges,
            requests: Requests::default(),
            started: Instant::now(),
            connections: OnceLock::new(),
        }
    }

    /// What the next image goes on with.
    #[must_use]
    pub fn known(&self) -> Known {
        Known {
            requests: self.requests.by_status().collect(),
            tags: self.site.tags(),
        }
    }

    /// Goes on with what the image before knew.
    pub fn go_on(&self, known: Known) {
        self.site.tag(known.tags);
        for (status, count) in known.requests {
            self.requests.add(status, count);
        }
    }

    /// Requests answered so far.
    #[must_use]
    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    /// Lets `/metrics` tell of a server's connections, which has to be the one that runs this.
    pub fn observe(server: &Server<Self>) {
        let weak = server.downgrade();
        let ask = move || weak.stats().unwrap_or_default();
        let _ = server.service().connections.set(Connections(Box::new(ask)));
    }

    /// Answers one request.
    fn answer(&self, head: &Head<'_>, keep: bool, output: &mut Output) {
        let reply = |status, headers: &str, output: &mut Output| {
            let body = if status == 204 { "" } else { reason(status) };
            self.write_text(output, head, keep, status, headers, TEXT, body);
        };
        match head.method {
            Method::Get | Method::Head => {}
            Method::Options => return reply(204, ALLOW, output),
            Method::Refused => return reply(405, ALLOW, output),
            Method::Unknown => return reply(501, "", output),
        }
        if &*head.path == b"/metrics" {
            let text = self.metrics();
            return self.write_text(output, head, keep, 200, NO_STORE, METRICS, &text);
        }
        if &*head.path == b"/health" {
            // An image that is not healthy is for tests of what becomes of such.
            let status = if cfg!(feature = "unhealthy") {
                503
            } else {
                200
            };
            let text = reason(status);
            return self.write_text(output, head, keep, status, NO_STORE, TEXT, text);
        }
        match self.site.find(&head.path) {
            Found::Page(page) => self.write_page(output, head, keep, page),
            Found::Folder => {
                // Encoded anew: what was decoded could end the header's line.
                let to = format!("Location: {}/\r\n", encoded(&head.path));
                reply(301, &to, output);
            }
            Found::Nothing => reply(404, "", output),
        }
    }

    fn write_page(&self, output: &mut Output, head: &Head<'_>, keep: bool, page: &Page) {
        let body = page.body;
        let reply = match decide(head, page) {
            Answer::Whole => Reply {
                status: 200,
                headers: page.headers(),
                length: Some(body.len()),
                body,
            },
            Answer::Part(range) => {
                let headers = format!(
                    "{}Content-Range: bytes {}-{}/{}\r\n",
                    page.headers(),
                    range.start,
                    range.end - 1,
                    body.len()
                );
                let body = body.get(range).unwrap_or_default();
                let reply = Reply {
                    status: 206,
                    headers: &headers,
                    length: Some(body.len()),
                    body,
                };
                return self.write(output, head, keep, &reply);
            }
            Answer::NotModified => Reply {
                status: 304,
                headers: page.headers(),
                length: None,
                body: b"",
            },
            Answer::PreconditionFailed => {
                return self.write_text(output, head, keep, 412, "", TEXT, reason(412));
            }
            Answer::NotSatisfiable => {
                let headers = format!("Content-Range: bytes */{}\r\n", body.len());
                return self.write_text(output, head, keep, 416, &headers, TEXT, reason(416));
            }
        };
        self.write(output, head, keep, &reply);
    }

    /// Writes an answer whose body is made for it.
    #[allow(clippy::too_many_arguments)]
    fn write_text(
        &self,
        output: &mut Output,
        head: &Head<'_>,
        keep: bool,
        status: u16,
        headers: &str,
        kind: &str,
        text: &str,
    ) {
        let headers = match text {
            "" => headers.to_owned(),
            _ => format!("{kind}{headers}"),
        };
        let reply = Reply {
            status,
            headers: &headers,
            length: (status != 204).then_some(text.len()),
            body: b"",
        };
        self.write(output, head, keep, &reply);
        if head.method != Method::Head {
            output.bytes().extend_from_slice(text.as_bytes());
        }
    }

    fn write(&self, output: &mut Output, head: &Head<'_>, keep: bool, reply: &Reply<'_>) {
        let out = output.bytes();
        self.write_head(out, reply, keep, head.old);
        if head.method != Method::Head {
            output.push_static(reply.body);
        }
    }

    fn write_head(&self, out: &mut Vec<u8>, reply: &Reply<'_>, keep: bool, old: bool) {
        self.requests.count(reply.status);
        out.extend_from_slice(b"HTTP/1.1 ");
        let mut digits = itoa::Buffer::new();
        out.extend_from_slice(digits.format(reply.status).as_bytes());
        out.push(b' ');
        out.extend_from_slice(reason(reply.status).as_bytes());
        out.extend_from_slice(b"\r\nDate: ");
        out.extend_from_slice(&now());
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(reply.headers.as_bytes());
        if let Some(length) = reply.length {
            out.extend_from_slice(b"Content-Length: ");
            out.extend_from_slice(digits.format(length).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        match (keep, old) {
            (false, _) => out.extend_from_slice(b"Connection: close\r\n"),
            (true, true) => out.extend_from_slice(b"Connection: keep-alive\r\n"),
            (true, false) => {}
        }
        out.extend_from_slice(b"\r\n");
    }

    /// Answers what is no request, for a connection that is closed after it.
    fn refuse(&self, status: u16, output: &mut Output) {
        let text = reason(status);
        let reply = Reply {
            status,
            headers: TEXT,
            length: Some(text.len()),
            body: b"",
        };
        let out = output.bytes();
        self.write_head(out, &reply, false, false);
        out.extend_from_slice(text.as_bytes());
    }

    fn metrics(&self) -> String {
        let mut page = metrics::Page::default();
        let name = "segue_uptime_seconds";
        let up = self.started.elapsed().as_secs_f64();
        page.value(name, "Time since this image's start.", Kind::Gauge, up);
        for gauge in &self.gauges {
            page.value(gauge.name, gauge.help, gauge.kind, (gauge.read)());
        }
        let name = "httpd_requests_total";
        page.head(name, "Requests answered, by status.", Kind::Counter);
        for (status, count) in self.requests.by_status() {
            page.line(&format!("{name}{{code=\"{status}\"}}"), count as f64);
        }
        let site = [
            ("httpd_files", "Files served.", self.site.len() as u64),
            ("httpd_files_bytes", "Their size.", self.site.bytes()),
        ];
        for (name, help, value) in site {
            page.value(name, help, Kind::Gauge, value as f64);
        }
        let Some(Connections(ask)) = self.connections.get() else {
            return page.text();
        };
        let stats = ask();
        let name = "httpd_connections";
        page.value(name, "Connections open.", Kind::Gauge, stats.open as f64);
        let counters = [
            (
                "httpd_connections_accepted_total",
                "Connections accepted.",
                stats.accepted,
            ),
            (
                "httpd_connections_refused_total",
                "Connections closed at once: there were too many.",
                stats.refused,
            ),
            (
                "httpd_connections_timed_out_total",
                "Connections closed because the peer was silent or did not read.",
                stats.timeouts,
            ),
            (
                "httpd_received_bytes_total",
                "Bytes received.",
                stats.received,
            ),
            ("httpd_sent_bytes_total", "Bytes sent.", stats.sent),
        ];
        for (name, help, value) in counters {
            page.value(name, help, Kind::Counter, value as f64);
        }
        page.text()
    }
}

impl Service for Http {
    type Session = Session;

    fn input(&self, session: &mut Session, input: &[u8], output: &mut Output) -> Step {
        let mut consumed = 0;
        let step = |consumed, next| Step { consumed, next };
        loop {
            let rest = input.get(consumed..).unwrap_or_default();
            if session.skip > 0 {
                let now = rest
                    .len()
                    .min(usize::try_from(session.skip).unwrap_or(usize::MAX));
                session.skip -= now as u64;
                consumed += now;
                if session.skip > 0 {
                    return step(consumed, Next::Wait);
                }
                continue;
            }
            if rest.is_empty() {
                return step(consumed, Next::Wait);
            }
            if output.is_full() {
                return step(consumed, Next::Flush);
            }
            let limited = rest.get(..self.limits.head).unwrap_or(rest);
            let (head, len) = match request::parse(limited) {
                Ok(Some(parsed)) => parsed,
                Ok(None) if rest.len() < self.limits.head => return step(consumed, Next::Wait),
                Ok(None) => {
                    let line = limited.trim_ascii_start().contains(&b'\n');
                    self.refuse(if line { 431 } else { 414 }, output);
                    return step(input.len(), Next::Close);
                }
                Err(error) => {
                    let status = match error {
                        request::Error::Bad => 400,
                        request::Error::Fields => 431,
                        request::Error::Coding => 501,
                        request::Error::Version => 505,
                    };
                    self.refuse(status, output);
                    return step(input.len(), Next::Close);
                }
            };
            consumed += len;
            match head.body {
                Body::Length(length) if length > self.limits.body => {
                    self.refuse(413, output);
                    return step(input.len(), Next::Close);
                }
                Body::Length(length) => session.skip = length,
                Body::Coded => {}
            }
            // Where the next request starts is known only if the body is not coded and comes.
            let known = head.body == Body::Length(0)
                || (matches!(head.body, Body::Length(_)) && !head.expects_continue);
            let keep = head.keep_alive && known;
            self.answer(&head, keep, output);
            if !keep {
                return step(input.len(), Next::Close);
            }
        }
    }

    fn name_of(&self, slice: &'static [u8]) -> Option<(String, usize)> {
        self.site.name_of(slice)
    }

    fn named(&self, name: &str) -> Option<&'static [u8]> {
        self.site.named(name)
    }

    fn patience(&self, session: &Session, pending: usize) -> Duration {
        if pending > 0 || session.skip > 0 {
            self.limits.request
        } else {
            self.limits.idle
        }
    }

    fn timed_out(&self, session: &mut Session, pending: usize, output: &mut Output) {
        // A request that has begun; a kept connection without one is just closed.
        if pending > 0 && session.skip == 0 {
            self.refuse(408, output);
        }
    }
}

const ALLOW: &str = "Allow: GET, HEAD, OPTIONS\r\n";
const TEXT: &str = "Content-Type: text/plain; charset=utf-8\r\n";
const METRICS: &str = "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n";
const NO_STORE: &str = "Cache-Control: no-store\r\n";

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        304 => "Not Modified",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        416 => "Range Not Satisfiable",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        505 => "HTTP Version Not Supported",
        _ => "Unknown",
    }
}

/// A path as a URI has it (RFC 3986, section 3.3).
fn encoded(path: &[u8]) -> String {
    let mut text = String::new();
    for &byte in path {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'~' => text.push(char::from(byte)),
            _ if byte.is_ascii_alphanumeric() => text.push(char::from(byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// The date as HTTP has it; made once a second by each thread.
fn now() -> [u8; 29] {
    thread_local! {
        static LAST: Cell<(u64, [u8; 29])> = const { Cell::new((0, [b' '; 29])) };
    }
    let time = SystemTime::now();
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
    let (second, text) = LAST.get();
    if second == seconds && seconds != 0 {
        return text;
    }
    // A clock outside what HTTP can say (before 1970, after 9999) tells the start of 1970.
    let time = match seconds {
        1..253_402_300_800 => time,
        _ => UNIX_EPOCH,
    };
    let mut text = [b' '; 29];
    for (to, from) in text
        .iter_mut()
        .zip(HttpDate::from(time).to_string().bytes())
    {
        *to = from;
    }
    LAST.set((seconds, text));
    text
}
