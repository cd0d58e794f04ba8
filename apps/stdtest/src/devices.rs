//! Switches with a network device, xenstore requests, a watch and a transaction open.
//!
//! The server answers each line with itself; a line that begins with `GET ` with HTTP, so that curl
//! can ask which generation it is.

use segue::handover::Socket;
use segue::kernel::xen::grant;
use segue::kernel::xen::xenstore::{self, Transaction};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// Where the server listens.
const PORT: u16 = 80;
/// How long a generation may take to get its device, and to be asked something.
const PATIENCE: Duration = Duration::from_secs(60);
/// A node of the domain's own.
const NODE: &str = "data/stdtest";

/// Who asked which generation this is.
static ASKED: AtomicU64 = AtomicU64::new(0);
/// Lines that were answered.
static ANSWERED: AtomicU64 = AtomicU64::new(0);
/// Requests that xenstore answered.
static READS: AtomicU64 = AtomicU64::new(0);
/// Those it did not answer as it should.
static BAD_READS: AtomicU64 = AtomicU64::new(0);

/// Replaces itself by the bundle of another version, `every` after it was asked something over the
/// network (or, with `unasked`, without), up to generation `until`.
pub fn switch(every: Duration, until: u64, unasked: bool) {
    let generation = segue::generation();
    let start = Instant::now();
    // Starts the network, and takes no memory when somebody asks: that is for after the audit.
    let Ok(_socket) = UdpSocket::bind("0.0.0.0:0") else {
        return println!("stdtest: devices outcome=bad why=\"no socket\"");
    };
    if !wait(connected) {
        return println!("stdtest: devices outcome=bad why=\"not all devices connected\"");
    }
    let up = start.elapsed().as_millis();
    audit("devices", generation);
    nodes();
    serve();
    keep_xenstore_busy();
    let asked = wait(|| unasked || ASKED.load(Ordering::Relaxed) > 0)
        && wait(|| READS.load(Ordering::Relaxed) + BAD_READS.load(Ordering::Relaxed) > 0);
    thread::sleep(every);
    let (reads, bad) = (
        READS.load(Ordering::Relaxed),
        BAD_READS.load(Ordering::Relaxed),
    );
    let good = asked && bad == 0;
    println!(
        "stdtest: devices generation={generation} outcome={} up_ms={up} asked_ms={} reads={reads} bad_reads={bad}",
        if good { "ok" } else { "bad" },
        start.elapsed().as_millis(),
    );
    if !good || generation >= until {
        return;
    }
    let (_, version) = segue::image();
    let other = |b: &&[u8]| {
        segue::bundle_ident(b).is_some_and(|(name, v)| name == "stdtest" && v != version)
    };
    let Some(bundle) = segue::bundles().find(other) else {
        return println!("stdtest: devices outcome=bad why=\"no other version\"");
    };
    let error = segue::replace_image(bundle).unwrap_err();
    println!("stdtest: devices outcome=bad why=\"{error}\"");
}

/// What the image on trial is told to do (the app `gauntlet`), and what the reason says then.
const TRIALS: [(&str, &str); 7] = [
    ("panic", "panic at="),
    ("refuse", "refused: not today"),
    ("null", "page-fault"),
    ("spin", "hang"),
    ("exit", "exit without commit"),
    ("device", "refused: all devices can go on"),
    ("device damaged", "refused: a network device can't go on"),
];

/// Switches that fail, `rounds` times all of them, while the server has connections.
pub fn fail(rounds: u32) {
    let generation = segue::generation();
    serve();
    if !wait(|| ANSWERED.load(Ordering::Relaxed) > 0) {
        return println!("stdtest: devices outcome=bad why=\"nobody asked\"");
    }
    keep_xenstore_busy();
    let is_gauntlet =
        |b: &&[u8]| segue::bundle_ident(b).is_some_and(|(name, _)| name == "gauntlet");
    let Some(bundle) = segue::bundles().find(is_gauntlet) else {
        return println!("stdtest: devices outcome=bad why=\"no bundle\"");
    };
    let mut damaged = bundle.to_vec();
    if let Some(byte) = damaged.last_mut() {
        *byte ^= 1;
    }
    let answered = || ANSWERED.load(Ordering::Relaxed);
    let asked = || (answered(), READS.load(Ordering::Relaxed));
    thread::sleep(Duration::from_millis(500));
    audit("devices", generation);
    let bad_bundle = [("bundle", "the bundle was refused")];
    for _ in 0..rounds {
        for (what, wanted) in TRIALS.into_iter().chain(bad_bundle) {
            let before = asked();
            let switch = segue::Replace::new(if what == "bundle" { &damaged } else { bundle });
            let error = switch
                .args(&format!("--as {what}"))
                .trial_limit(Duration::from_millis(200))
                .options(|o| o.faults.damage_device = what.contains("damaged"))
                .start()
                .unwrap_err()
                .to_string();
            // The same connections and the same ring go on.
            let goes_on = wait(|| {
                let now = asked();
                now.0 > before.0 + 1 && now.1 > before.1 + 1
            });
            let good = goes_on && error.contains(wanted) && BAD_READS.load(Ordering::Relaxed) == 0;
            println!(
                "stdtest: stays trial={what} outcome={} answered={} reason=\"{}\"",
                if good { "ok" } else { "bad" },
                answered() - before.0,
                error.escape_debug(),
            );
        }
    }
    thread::sleep(Duration::from_millis(500));
    audit("devices-after", generation);
    println!("stdtest: devices trials are over");
    // Ended by who started it.
    thread::sleep(Duration::from_secs(600));
}

/// A switch in which the app takes its time to say what it hands over, so that the toolstack can ask
/// for something meanwhile. With `fail` the new image gives up.
pub fn step(outcome: &str) {
    serve();
    if segue::generation() > 1 || !wait(connected) {
        return thread::sleep(Duration::from_secs(600));
    }
    let (_, version) = segue::image();
    let wanted = |b: &&[u8]| {
        let gauntlet = outcome == "fail";
        segue::bundle_ident(b)
            .is_some_and(|(name, v)| (name == "gauntlet") == gauntlet && (gauntlet || v != version))
    };
    let Some(bundle) = segue::bundles().find(wanted) else {
        return println!("stdtest: step outcome=bad why=\"no bundle\"");
    };
    segue::on_replace(|_| {
        println!("stdtest: step=prepare");
        thread::sleep(Duration::from_secs(10));
        Ok(())
    });
    let mut switch = segue::Replace::new(bundle).ready_limit(Duration::from_secs(30));
    if outcome == "fail" {
        switch = switch.args("--as panic");
    }
    let error = switch.start().unwrap_err();
    println!(
        "stdtest: step error=\"{}\"",
        error.to_string().escape_debug()
    );
    thread::sleep(Duration::from_secs(600));
}

/// Each device is connected, with its block of frames, and the image before has none any more.
fn connected() -> bool {
    let Ok(client) = xenstore::client() else {
        return false;
    };
    let read = |path: &str| client.read_text(Transaction::NONE, path);
    let up = |vif: &String| {
        let backend = read(&format!("device/vif/{vif}/backend"));
        backend.and_then(|b| read(&format!("{b}/state"))) == Ok("4".into())
    };
    let all = client.directory(Transaction::NONE, "device/vif");
    let all = all.unwrap_or_default();
    let granted = grant::audit();
    granted.blocks == all.len() && granted.orphans == 0 && all.iter().all(up)
}

/// Says what the first device's nodes say of its rings and ports.
fn nodes() {
    let Ok(client) = xenstore::client() else {
        return;
    };
    let read = |name: &&str| {
        let node = client.read_text(Transaction::NONE, &format!("device/vif/0/{name}"));
        node.unwrap_or_else(|_| "-".into())
    };
    let names = [
        "state",
        "tx-ring-ref",
        "rx-ring-ref",
        "event-channel",
        "event-channel-tx",
        "event-channel-rx",
    ];
    let values: Vec<String> = names.iter().map(read).collect();
    println!("stdtest: vif=0 nodes={}", values.join(","));
}

fn audit(name: &str, generation: u64) {
    if let Some(audit) = segue::audit() {
        println!("stdtest: audit={name} generation={generation} {audit}");
    }
}

/// Until it is so, or not in time: false.
fn wait(ready: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while !ready() {
        if start.elapsed() > PATIENCE {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}

/// A connection.
struct Conn {
    stream: TcpStream,
    /// What has come of a line, and whether it is not answered any more.
    state: Mutex<(Vec<u8>, bool)>,
}

/// As it goes over a switch.
#[derive(Serialize, Deserialize)]
struct Handed<S> {
    stream: S,
    pending: Vec<u8>,
    closing: bool,
}

static LISTENER: OnceLock<TcpListener> = OnceLock::new();
static CONNS: Mutex<Vec<Arc<Conn>>> = Mutex::new(Vec::new());
/// Who works at a connection has it to read; the switch to write, from the handover on.
static SERVING: Mutex<(usize, bool)> = Mutex::new((0, false));
static SERVED: Condvar = Condvar::new();

/// Hands over the server: connections live on.
fn hand_over() {
    segue::on_replace(|next| {
        let mut serving = SERVING.lock().unwrap();
        serving.1 = true;
        drop(SERVED.wait_while(serving, |s| s.0 > 0).unwrap());
        let conns = CONNS.lock().unwrap();
        let states: Vec<_> = conns.iter().map(|c| c.state.lock().unwrap()).collect();
        let handed: Vec<_> = conns
            .iter()
            .zip(&states)
            .map(|(c, state)| Handed {
                stream: Socket::new(&c.stream),
                pending: state.0.clone(),
                closing: state.1,
            })
            .collect();
        next.put("connections", &handed)?;
        if let Some(listener) = LISTENER.get() {
            next.put_socket("listener", listener)?;
        }
        Ok(())
    });
    segue::on_resume(|| {
        SERVING.lock().unwrap().1 = false;
        SERVED.notify_all();
    });
}

fn serve() {
    let mut came = Vec::new();
    let mut listener = None;
    if let Some(mut before) = segue::handover() {
        match before.take::<Socket<TcpListener>>("listener") {
            Ok(socket) => listener = Some(socket.into_inner()),
            Err(e) => println!("stdtest: devices outcome=bad why=\"{e}\""),
        }
        match before.take::<Vec<Handed<Socket<TcpStream>>>>("connections") {
            Ok(handed) => came = handed,
            Err(e) => println!("stdtest: devices outcome=bad why=\"{e}\""),
        }
    }
    let listener = match listener.map_or_else(|| TcpListener::bind(("0.0.0.0", PORT)), Ok) {
        Ok(listener) => listener,
        Err(e) => return println!("stdtest: devices outcome=bad why=\"{e}\""),
    };
    println!("stdtest: devices connections={}", came.len());
    hand_over();
    for handed in came {
        start(handed.stream.into_inner(), (handed.pending, handed.closing));
    }
    let listener = LISTENER.get_or_init(|| listener);
    thread::spawn(|| {
        for stream in listener.incoming().flatten() {
            start(stream, (Vec::new(), false));
        }
    });
}

fn start(stream: TcpStream, state: (Vec<u8>, bool)) {
    let conn = Arc::new(Conn {
        stream,
        state: Mutex::new(state),
    });
    CONNS.lock().unwrap().push(Arc::clone(&conn));
    thread::spawn(move || {
        let _ = answer_all(&conn);
        CONNS.lock().unwrap().retain(|c| !Arc::ptr_eq(c, &conn));
    });
}

fn answer_all(conn: &Conn) -> std::io::Result<()> {
    loop {
        // Waits outside, so that the switch need not.
        let there = conn.stream.peek(&mut [0])?;
        let serving = SERVING.lock().unwrap();
        let mut serving = SERVED.wait_while(serving, |s| s.1).unwrap();
        serving.0 += 1;
        drop(serving);
        let done = answer(conn);
        SERVING.lock().unwrap().0 -= 1;
        SERVED.notify_all();
        done?;
        if there == 0 {
            return Ok(());
        }
    }
}

/// Answers what is there.
fn answer(conn: &Conn) -> std::io::Result<()> {
    let mut state = conn.state.lock().unwrap();
    let (pending, closing) = &mut *state;
    let mut bytes = [0; 4096];
    let count = (&conn.stream).read(&mut bytes)?;
    if count == 0 && *closing {
        // It has its answer.
        ASKED.fetch_add(1, Ordering::Relaxed);
    }
    pending.extend_from_slice(&bytes[..count]);
    while let Some(end) = pending.iter().position(|b| *b == b'\n') {
        let line: Vec<u8> = pending.drain(..=end).collect();
        if *closing {
            // Curl hangs up when it has it all.
            continue;
        }
        if line.starts_with(b"GET ") {
            let body = format!("generation={}\n", segue::generation());
            let length = body.len();
            write!(
                &conn.stream,
                "HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n{body}"
            )?;
            *closing = true;
        } else {
            (&conn.stream).write_all(&line)?;
        }
        ANSWERED.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Requests, so that one is always under way; a watch; and a transaction that does not end. More
/// than a few of those at a time xenstored refuses, and the same watch twice.
fn keep_xenstore_busy() {
    thread::spawn(|| {
        let Ok(client) = xenstore::client() else {
            return println!("stdtest: devices outcome=bad why=\"no xenstore\"");
        };
        let watched = client.watch("domid", "stdtest");
        let _ = client.transaction(|t| {
            client.write(t, NODE, b"never")?;
            let mut good = watched.is_ok();
            loop {
                // In the transaction and beside it in turn.
                good &= client.read(t, NODE).is_ok_and(|v| v == b"never");
                good &= client.read(Transaction::NONE, "domid").is_ok();
                let count = if good { &READS } else { &BAD_READS };
                count.fetch_add(1, Ordering::Relaxed);
            }
            #[expect(unreachable_code, reason = "it gives the closure its type")]
            Ok(())
        });
        // The transaction did not begin.
        BAD_READS.fetch_add(1, Ordering::Relaxed);
    });
}
