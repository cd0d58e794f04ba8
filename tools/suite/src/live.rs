//! Servers that replace themselves under load: real clients in dom0 must not notice.
//!
//! Each server switches again and again (`--replace-every`), to the bundles of its ramdisk in turn,
//! while clients in dom0 (`dom0/live.py`, wrk, redis-benchmark, ping) look on; a test ends when so
//! many switches were seen under load. What clients may not see is theirs to find: a connection
//! that ends, an answer that is missing, wrong or comes twice. tcpdump on the bridge counts resets,
//! and is itself tried with one that is asked for. How long the longest pause was is told, not
//! judged: this is an emulated machine with other work.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use segue_lab::{EndReason, XenHost};
use serde_json::Value;

use crate::guest::{Guest, Kind, Running, VIF, Xen, events, tail};
use crate::images::Image;
use crate::test::{Case, Shared, case};

/// Plays most of the clients.
const SCRIPT: &str = "tools/suite/dom0/live.py";
/// Where it goes.
const SCRIPT_THERE: &str = "/tmp/segue/live.py";
/// As in [`crate::net`]: what no ordinary client does.
const CLIENT: (&str, &str) = ("tools/suite/dom0/client.py", "/tmp/segue/client.py");

/// Longest time of a test's clients, times the slowness.
const LIMIT: Duration = Duration::from_secs(400);

/// A port that nobody listens on: who asks there gets a reset.
const CLOSED: u16 = 1;

/// Frames are lost and change places, in either direction, in the words of tc-netem(8).
const BAD_LINK: &str = "netem delay 2ms 1ms loss 1% reorder 10% 50%";

/// All of them, the long ones first; if `brief`, with fewer switches and less load.
pub fn cases(brief: bool) -> Vec<Case> {
    /// Of what is the same but for the domain, what is run each time.
    const USUAL: [&str; 10] = [
        "hvm_2_under_load",
        "pvh_2_resumed_under_load",
        "pvh_2_idle_connections",
        "pvh_2_bulk",
        "hvm_2_bulk_over_a_bad_link",
        "hvm_2_datagrams",
        "hvm_1_connections",
        "pvh_4_connections",
        "pvh_2_asked_at_random",
        "hvm_2_is_not_seen_by_xen",
    ];
    use Kind::{Hvm, Pvh};
    let mut all = Vec::new();
    let mut last = 150;
    let mut add = |name: &str, body: fn(&Shared, &Test) -> Result<()>, kind: Kind, vcpus: u32| {
        last += 2;
        let name = format!("{kind}_{vcpus}_{name}");
        let usual = USUAL.contains(&&*name);
        let test = Test {
            name: format!("live::{name}"),
            kind,
            vcpus,
            brief,
            address: format!("10.0.0.{last}"),
            second: format!("10.0.0.{}", last + 1),
        };
        let case = case(test.name.clone(), move |s| body(s, &test)).with_memory(128);
        all.push(if usual { case } else { case.on_request() });
    };
    add("under_load", under_load, Hvm, 2);
    add("resumed_under_load", resumed_under_load, Pvh, 2);
    add("idle_connections", idle, Pvh, 2);
    add("bulk", bulk, Pvh, 2);
    add("bulk_over_a_bad_link", bad_link, Hvm, 2);
    add("datagrams", datagrams, Hvm, 2);
    for (kind, vcpus) in [(Hvm, 1), (Pvh, 1), (Pvh, 2), (Hvm, 4), (Pvh, 4)] {
        add("connections", connections, kind, vcpus);
    }
    for kind in Kind::ALL {
        add("asked_at_random", asked_at_random, kind, 2);
        add("is_not_seen_by_xen", not_seen, kind, 2);
    }
    all
}

/// What a test runs.
struct Test {
    name: String,
    kind: Kind,
    vcpus: u32,
    address: String,
    /// For a second domain.
    second: String,
    brief: bool,
}

/// What a server is replaced by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// Its own image, and its next version if there is one.
    Good,
    /// An image that panics on trial.
    Bad,
}

impl By {
    /// The line that says that it was tried, once each time.
    fn line(self) -> &'static str {
        match self {
            By::Good => "segue: switch ",
            By::Bad => "segue: resume ",
        }
    }
}

/// A server that replaces itself.
struct Server<'a> {
    domain: Running<'a>,
    address: String,
    by: By,
}

impl Test {
    /// How much of it.
    fn much(&self, full: u64, brief: u64) -> u64 {
        if self.brief { brief } else { full }
    }

    /// Starts a server that replaces itself so often, in milliseconds.
    fn start<'a>(&self, s: &'a Shared, image: &Image, by: By, every: u64) -> Result<Server<'a>> {
        let guest = self.guest(s, image, by, &self.address, every)?;
        Server::start(&s.xen, &guest, &self.address, by)
    }

    fn guest(&self, s: &Shared, image: &Image, by: By, address: &str, every: u64) -> Result<Guest> {
        let bundles = match by {
            By::Good => &image.bundle,
            // Of another app, for some: who trusts no key takes any.
            By::Bad => &s.images.served()?.httpd_panics.bundle,
        };
        let guest = Guest::new(image, self.kind, self.vcpus)
            .network(address)
            .memory(96)
            .module(bundles)
            .cmdline(format!("-- --replace-every {every}"));
        Ok(guest)
    }
}

impl<'a> Server<'a> {
    fn start(xen: &'a Xen, guest: &Guest, address: &str, by: By) -> Result<Self> {
        let mut domain = guest.start_serving(xen)?;
        domain.wait_until_said(&["httpd: ", "kv: ", "echo: "])?;
        Ok(Server {
            domain,
            address: address.into(),
            by,
        })
    }

    /// Waits for so many switches more, or until a client has failed.
    fn wait_for_switches(&mut self, count: u64, failed: &AtomicBool) -> Result<()> {
        self.domain.skip();
        let before = self.switches();
        while self.switches() < before + count {
            ensure!(!failed.load(Ordering::Acquire), "a client failed");
            self.domain.wait_for(self.by.line())?;
        }
        Ok(())
    }

    /// How many there were. By the generation, where that counts: when a console is slow, lines are
    /// left out.
    fn switches(&self) -> u64 {
        let lines = self.domain.lines();
        let all = events(&lines, self.by.line());
        match self.by {
            By::Good => all
                .last()
                .and_then(|last| last.number("from").ok())
                .unwrap_or(0),
            By::Bad => all.count() as u64,
        }
    }

    /// The end of a test: what the domain printed is added to an error, and that it broke down is
    /// one, or that there was another outcome than was to be.
    fn end(self, result: Result<()>) -> Result<()> {
        let lines = self.domain.stop()?;
        let mut broken = vec![
            "segue: fault ",
            "segue: fallback ",
            // Devices and network go on; they are not begun anew.
            "segue: vif=0 disconnected",
            "segue: vif=0 not connected",
            "segue: vif=0 stopped",
            "segue: device at=",
            "segue: net adopted=no",
            "segue: net frozen=no",
        ];
        match self.by {
            By::Good => broken.extend(["segue: panic ", "segue: resume "]),
            By::Bad => broken.extend(["segue: switch "]),
        }
        let found = lines
            .iter()
            .find(|l| broken.iter().any(|start| l.text.starts_with(start)));
        let result = result.and_then(|()| match found {
            Some(line) => bail!("this was not to be: {line}"),
            None => Ok(()),
        });
        result.with_context(|| format!("{}: its last lines:\n{}", self.address, tail(&lines)))
    }
}

/// A client in dom0: a shell command, which goes on until there is a file `STOP`.
pub struct Client(pub String);

/// One of the checks of `live.py`.
pub fn look(check: &str, address: &str, port: u16, arguments: &str) -> Client {
    Client(format!(
        "python3 {SCRIPT_THERE} {check} {address}:{port} STOP {arguments}"
    ))
}

/// wrk, which says what it saw when it is interrupted.
pub fn wrk(address: &str) -> Client {
    Client(format!(
        "wrk -t1 -c32 -d3600s --timeout 20s http://{address}:80/ & wrk=$!
         while [ ! -e STOP ] && kill -0 $wrk; do sleep 0.2; done
         kill -INT $wrk; wait $wrk"
    ))
}

/// Requests of one run of redis-benchmark.
pub const REQUESTS: u64 = 1000;

/// redis-benchmark, run after run; says how many there were.
pub fn redis_benchmark(address: &str) -> Client {
    Client(format!(
        "runs=0
         while [ ! -e STOP ]; do
             redis-benchmark -h {address} -t incr -c 32 -n {REQUESTS} --csv >STOP.said 2>&1 ||
                 {{ cat STOP.said >&2; exit 1; }}
             ! grep -i err STOP.said >&2 || exit 1
             runs=$((runs + 1))
         done
         echo $runs"
    ))
}

/// Runs clients beside `with`, which is called once they have had their first answers, and is told
/// when one of them has failed; stops them after it. Gives what each printed, in their order. `key`
/// is for names of files: an address, say.
pub fn beside(
    xen: &Xen,
    key: &str,
    clients: &[Client],
    with: impl FnOnce(&AtomicBool) -> Result<()>,
) -> Result<Vec<String>> {
    let host = xen.host();
    let stop = format!("/tmp/segue/stop-{key}");
    host.exec("mkdir -p /tmp/segue")?.check()?;
    host.put(Path::new(SCRIPT), SCRIPT_THERE)?;
    host.put(Path::new(CLIENT.0), CLIENT.1)?;
    host.exec(&format!("rm -f {stop}*"))?.check()?;
    let (failed, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let limit = LIMIT.mul_f64(xen.slowness());
    thread::scope(|scope| {
        let run = |(number, Client(command)): (usize, &Client)| {
            let command = command.replace("STOP.", &format!("{stop}.{number}."));
            let command = command.replace("STOP", &stop);
            let (failed, over) = (&failed, &over);
            scope.spawn(move || {
                let output = host.exec_while(&command, limit, || !over.load(Ordering::Acquire));
                let output = output.map_err(anyhow::Error::from).and_then(|output| {
                    ensure!(
                        output.success(),
                        "`{command}` ended with {}:\n{}{}",
                        output.status,
                        output.stdout,
                        output.stderr
                    );
                    Ok(output.stdout)
                });
                failed.fetch_or(output.is_err(), Ordering::AcqRel);
                output
            })
        };
        let running: Vec<_> = clients.iter().enumerate().map(run).collect();
        let looking = clients
            .iter()
            .filter(|client| client.0.contains(SCRIPT_THERE));
        let result = ready(host, &stop, looking.count(), &failed).and_then(|()| with(&failed));
        let by_client = failed.load(Ordering::Acquire);
        let stopped = host.exec(&format!("touch {stop}"));
        // Without a server they might wait for long.
        over.store(result.is_err(), Ordering::Release);
        let mut said = Vec::new();
        let mut why = None;
        for client in running {
            match client.join() {
                Ok(Ok(text)) => said.push(text),
                Ok(Err(error)) => why = why.or(Some(error)),
                Err(_) => bail!("a client's thread panicked"),
            }
        }
        // What a client saw says more than that the rest was given up; but without a server, that
        // they were given up says nothing.
        match (why, result) {
            (Some(error), Ok(())) => return Err(error),
            (Some(error), Err(_)) if by_client => return Err(error),
            (_, result) => result?,
        }
        stopped?.check()?;
        Ok(said)
    })
}

/// Waits until so many checks of `live.py` have had their first answers.
fn ready(host: &XenHost, stop: &str, count: usize, failed: &AtomicBool) -> Result<()> {
    let start = Instant::now();
    let there = format!("ls {stop}.ready.* 2>/dev/null | wc -l");
    while host.exec(&there)?.check()?.stdout.trim() != count.to_string() {
        ensure!(!failed.load(Ordering::Acquire), "a client failed");
        ensure!(
            start.elapsed() < LIMIT,
            "the clients were not ready in time"
        );
        thread::sleep(Duration::from_millis(300));
    }
    Ok(())
}

/// What a check of `live.py` printed.
pub fn read(said: &str) -> Result<Value> {
    let line = said.lines().last().context("a client printed nothing")?;
    serde_json::from_str(line).with_context(|| line.to_owned())
}

/// A number in it.
pub fn number(value: &Value, key: &str) -> Result<f64> {
    let number = value.get(key).and_then(Value::as_f64);
    number.with_context(|| format!("no {key} in {value}"))
}

/// What is told of what a check printed: all but lists.
pub fn told(value: &Value) -> String {
    let mut text = String::new();
    for (key, value) in value.as_object().into_iter().flatten() {
        if !value.is_array() {
            // Writing to a String can't fail.
            let _ = write!(text, " {key}={value}");
        }
    }
    text
}

/// Numbers that have to be 0.
fn zeros(value: &Value, keys: &[&str]) -> Result<()> {
    for key in keys {
        ensure!(
            number(value, key)? == 0.0,
            "{key} is not 0: {}",
            told(value)
        );
    }
    Ok(())
}

/// wrk saw nothing but answers; gives their number.
pub fn wrk_is_content(said: &str) -> Result<u64> {
    for error in ["Socket errors", "Non-2xx"] {
        ensure!(!said.contains(error), "{error}; wrk printed:\n{said}");
    }
    let (before, _) = said.split_once(" requests in ").context("no requests")?;
    let word = before.split_whitespace().next_back().unwrap_or_default();
    let requests = word.parse().with_context(|| said.to_owned())?;
    ensure!(requests > 100, "hardly an answer; wrk printed:\n{said}");
    Ok(requests)
}

/// Counts the resets that come from addresses, by tcpdump on the bridge.
pub struct Resets<'a> {
    host: &'a XenHost,
    file: String,
    addresses: Vec<String>,
}

impl<'a> Resets<'a> {
    pub fn watch(host: &'a XenHost, addresses: &[&str]) -> Result<Resets<'a>> {
        let address = (*addresses.first().context("no address")?).to_owned();
        let file = format!("/tmp/segue/resets-{address}");
        let hosts = addresses.join(" or host ");
        // Ends of connections too: they say what was reset.
        host.exec(&format!(
            "rm -f {file}; setsid tcpdump -B 16384 -lnn -i xenbr0 'tcp[tcpflags] & (tcp-rst|tcp-fin) != 0 \
             and (host {hosts})' >{file} 2>{file}.said </dev/null & echo $! >{file}.pid
             for n in $(seq 100); do grep -q listening {file}.said && exit; sleep 0.1; done
             cat {file}.said >&2; exit 1"
        ))?
        .check()?;
        Ok(Resets {
            host,
            file,
            addresses: addresses.iter().map(|a| (*a).to_owned()).collect(),
        })
    }

    /// There was none. Ends the count.
    pub fn none(self) -> Result<()> {
        let resets = self.found()?;
        ensure!(
            resets.is_empty(),
            "{} resets:\n{}",
            resets.len(),
            resets.join("\n")
        );
        Ok(())
    }

    /// How many there were. Ends the count.
    pub fn count(self) -> Result<u64> {
        Ok(self.found()?.len() as u64)
    }

    /// The resets, each with the ends that tcpdump saw of the same connection; after seeing to it
    /// that a reset is seen.
    fn found(self) -> Result<Vec<String>> {
        let Resets {
            host,
            file,
            addresses,
        } = self;
        let address = addresses.first().context("no address")?;
        let output = host.exec(&format!(
            "python3 -c 'import socket; socket.create_connection((\"{address}\", {CLOSED}), 10)' \
             2>/dev/null
             for n in $(seq 50); do grep -q '{address}.{CLOSED} >' {file} && break; sleep 0.1; done
             kill -INT $(cat {file}.pid)
             while kill -0 $(cat {file}.pid) 2>/dev/null; do sleep 0.1; done
             cat {file}; cat {file}.said >&2"
        ))?;
        let output = output.check()?;
        ensure!(
            output.stderr.contains("\n0 packets dropped by kernel"),
            "tcpdump missed packets: {}",
            output.stderr
        );
        let all = resets(&output.stdout, &addresses);
        let wanted = format!("{address}.{CLOSED} >");
        let (asked, others): (Vec<String>, Vec<String>) =
            all.into_iter().partition(|reset| reset.contains(&wanted));
        ensure!(
            !asked.is_empty(),
            "tcpdump does not see a reset: {}",
            output.stderr
        );
        Ok(others)
    }
}

/// The resets from these addresses in what tcpdump printed, each with the other lines of the same
/// connection. None of them is what a connection gets that both sides have ended: who sends its end
/// twice, because the first was long on its way, is answered twice, and knows nothing of it by then
/// (RFC 9293 section 3.10.7.1).
fn resets(printed: &str, addresses: &[String]) -> Vec<String> {
    // TIME IP A.PORT > B.PORT: Flags [R], …
    let ends = |line: &str| -> Option<(String, String, String)> {
        let mut words = line.split(' ').skip(2);
        let (from, _, to) = (words.next()?, words.next()?, words.next()?);
        let flags = line.split_once("Flags [")?.1.split_once(']')?.0;
        Some((
            from.to_owned(),
            to.trim_end_matches(':').to_owned(),
            flags.to_owned(),
        ))
    };
    let ours = |from: &str| {
        let host = from.rsplit_once('.').map_or(from, |(host, _)| host);
        addresses.iter().any(|address| address == host)
    };
    let lines: Vec<(&str, (String, String, String))> = printed
        .lines()
        .filter_map(|line| Some((line, ends(line)?)))
        .collect();
    let ended = |at: usize, from: &str, to: &str| {
        let mut before = lines.iter().take(at).map(|(_, ends)| ends);
        before.any(|(a, b, flags)| a == from && b == to && flags.contains('F'))
    };
    let resets = lines
        .iter()
        .enumerate()
        .filter(|(at, (_, (from, to, flags)))| {
            flags.contains('R') && ours(from) && !(ended(*at, from, to) && ended(*at, to, from))
        });
    resets
        .map(|(_, (line, (from, to, _)))| {
            let same = lines.iter().filter(|(other, (a, b, _))| {
                other != line && ((a == from && b == to) || (a == to && b == from))
            });
            let others: Vec<&str> = same.map(|(line, _)| *line).collect();
            [&[*line], &others[..]].concat().join("\n    ")
        })
        .collect()
}

/// A web server and a key-value store replace themselves side by side, while wrk and
/// redis-benchmark ask and a writer knows what has to be in the table.
fn under_load(s: &Shared, t: &Test) -> Result<()> {
    loaded(s, t, By::Good, t.much(50, 6))
}

/// The same with images that fail on trial: no client sees anything of that, either.
fn resumed_under_load(s: &Shared, t: &Test) -> Result<()> {
    loaded(s, t, By::Bad, t.much(10, 4))
}

/// `each` of both, under the load of both.
fn loaded(s: &Shared, t: &Test, by: By, each: u64) -> Result<()> {
    let every = 300;
    let kv = t.guest(s, &s.images.kv, by, &t.second, every)?.beside();
    let mut web = t.start(s, &s.images.httpd, by, every)?;
    let mut store = Server::start(&s.xen, &kv, &t.second, by)?;
    let clients = [
        wrk(&t.address),
        redis_benchmark(&t.second),
        look("table", &t.second, 6379, ""),
        look("probe", &t.address, 80, "http 20"),
        look("ping", &t.second, 0, "0.05"),
    ];
    let check = |web: &mut Server<'_>, store: &mut Server<'_>| -> Result<()> {
        let resets = Resets::watch(s.xen.host(), &[&t.address, &t.second])?;
        let said = beside(&s.xen, &t.address, &clients, |failed| {
            let before = store.switches();
            web.wait_for_switches(each, failed)?;
            // What it has done meanwhile counts, too.
            let seen = store.switches() - before;
            store.wait_for_switches(each.saturating_sub(seen), failed)
        })?;
        let [load, runs, table, probe, ping] = &said[..] else {
            bail!("{} clients", said.len());
        };
        let requests = wrk_is_content(load)?;
        let runs: u64 = runs.trim().parse().context("redis-benchmark's runs")?;
        let command = format!("redis-cli -h {} get counter:__rand_int__", t.second);
        let counter = s.xen.host().exec(&command)?.check()?.stdout;
        ensure!(
            counter.trim() == (runs * REQUESTS).to_string(),
            "INCR counted {}, not {}: answers were lost, or requests done twice",
            counter.trim(),
            runs * REQUESTS
        );
        let (table, probe, ping) = (read(table)?, read(probe)?, read(ping)?);
        zeros(&ping, &["lost", "twice"])?;
        resets.none()?;
        s.note(format!(
            "{}: {} times under load: {requests} answers to wrk, {} to \
             redis-benchmark, none failed, no reset; table:{}; one more client:{}; ping:{}",
            t.name,
            2 * each,
            runs * REQUESTS,
            told(&table),
            told(&probe),
            told(&ping)
        ));
        Ok(())
    };
    let result = check(&mut web, &mut store);
    // Both are asked, whatever the first says.
    let store = store.end(Ok(()));
    web.end(result).and(store)
}

/// Mostly idle connections live through many switches.
fn idle(s: &Shared, t: &Test) -> Result<()> {
    let mut server = t.start(s, &s.images.echo, By::Good, 1500)?;
    let (switches, connections) = (t.much(20, 8), t.much(1000, 250));
    let check = |server: &mut Server<'_>| -> Result<()> {
        let clients = [look("lines", &t.address, 7, &format!("{connections} 4"))];
        let resets = Resets::watch(s.xen.host(), &[&t.address])?;
        let said = beside(&s.xen, &t.address, &clients, |failed| {
            server.wait_for_switches(switches, failed)
        })?;
        resets.none()?;
        let lines = read(said.first().context("no client")?)?;
        s.note(format!("{}: {switches} switches:{}", t.name, told(&lines)));
        Ok(())
    };
    let result = check(&mut server);
    server.end(result)
}

/// What is under way in both directions arrives, byte for byte; a peer that reads nothing meanwhile
/// gets all it has coming afterwards.
fn bulk(s: &Shared, t: &Test) -> Result<()> {
    let mut server = t.start(s, &s.images.echo, By::Good, 700)?;
    let (mib, spans) = (t.much(200, 64), t.much(5, 2));
    let check = |server: &mut Server<'_>| -> Result<()> {
        // What comes back is what was sent: an upload and a download at once.
        let clients = [
            Client(format!("python3 {} {} 7 bulk {mib}", CLIENT.1, t.address)),
            look("zero", &t.address, 7, ""),
        ];
        let mut seen = 0;
        let resets = Resets::watch(s.xen.host(), &[&t.address])?;
        let host = s.xen.host();
        // It begins at once; who waits for the other's answer sees its end only.
        let before = server.switches();
        let said = beside(&s.xen, &t.address, &clients, |failed| {
            server.domain.skip();
            // Until the first is done.
            let done = format!("pgrep -f '[c]lient.py {} 7 bulk'", t.address);
            while host.exec(&done)?.success() {
                ensure!(!failed.load(Ordering::Acquire), "a client failed");
                ensure!(server.domain.runs(), "the domain ended");
                thread::sleep(Duration::from_millis(300));
            }
            seen = server.switches() - before;
            Ok(())
        })?;
        resets.none()?;
        // The first may have been before it.
        ensure!(seen > spans, "it spanned {seen} switches only");
        s.note(format!(
            "{}: over {seen} switches: {}; a reader that waited, again and again:{}",
            t.name,
            said.first().map_or("", |said| said.trim()),
            told(&read(said.get(1).context("no client")?)?)
        ));
        Ok(())
    };
    let result = check(&mut server);
    server.end(result)
}

/// The same with a link that loses frames and changes their order: less of it, as it takes longer.
fn bad_link(s: &Shared, t: &Test) -> Result<()> {
    let mut server = t.start(s, &s.images.echo, By::Good, 700)?;
    let check = |server: &mut Server<'_>| -> Result<()> {
        let host = s.xen.host();
        let (vif, ifb) = (
            format!("vif{}.0", server.domain.domid()),
            format!("ifb{}", server.domain.domid()),
        );
        host.exec(&format!(
            "set -e
             modprobe -a sch_netem sch_ingress ifb act_mirred cls_matchall
             tc qdisc add dev {vif} root {BAD_LINK}
             ip link add {ifb} type ifb
             ip link set {ifb} up
             tc qdisc add dev {ifb} root {BAD_LINK}
             tc qdisc add dev {vif} ingress
             tc filter add dev {vif} parent ffff: matchall action mirred egress redirect dev {ifb}"
        ))?
        .check()?;
        let before = server.switches();
        let resets = Resets::watch(host, &[&t.address])?;
        let bulk = Client(format!("python3 {} {} 7 bulk 12 2", CLIENT.1, t.address));
        let said = beside(&s.xen, &t.address, &[bulk], |failed| {
            let done = format!("pgrep -f '[c]lient.py {} 7 bulk'", t.address);
            // It may not have begun.
            thread::sleep(Duration::from_secs(2));
            while host.exec(&done)?.success() {
                ensure!(!failed.load(Ordering::Acquire), "a client failed");
                ensure!(server.domain.runs(), "the domain ended");
                thread::sleep(Duration::from_millis(300));
            }
            Ok(())
        })?;
        let seen = server.switches() - before;
        let shown = host
            .exec(&format!(
                "tc -s qdisc show dev {vif}; tc -s qdisc show dev {ifb}; ip link del {ifb}"
            ))?
            .check()?
            .stdout;
        let lost = shown.split("(dropped ").skip(1);
        let lost: Vec<u32> = lost
            .filter_map(|rest| rest.split(',').next()?.parse().ok())
            .filter(|lost| *lost > 0)
            .collect();
        ensure!(
            lost.len() >= 2,
            "frames were not lost in both directions:\n{shown}"
        );
        // The one that is asked for must come through, too.
        host.exec(&format!(
            "tc qdisc del dev {vif} root; tc qdisc del dev {vif} ingress"
        ))?
        .check()?;
        resets.none()?;
        ensure!(seen >= 5, "it spanned {seen} switches only");
        s.note(format!(
            "{}: over {seen} switches, lost={lost:?}: {}",
            t.name,
            said.first().map_or("", |said| said.trim())
        ));
        Ok(())
    };
    let result = check(&mut server);
    server.end(result)
}

/// A datagram each millisecond, and pings: all are answered.
fn datagrams(s: &Shared, t: &Test) -> Result<()> {
    let mut server = t.start(s, &s.images.echo, By::Good, 300)?;
    let switches = t.much(100, 25);
    let check = |server: &mut Server<'_>| -> Result<()> {
        let clients = [
            look("udp", &t.address, 7, "1000"),
            look("ping", &t.address, 0, "0.01"),
        ];
        let said = beside(&s.xen, &t.address, &clients, |failed| {
            server.wait_for_switches(switches, failed)
        })?;
        let [udp, ping] = &said[..] else {
            bail!("{} clients", said.len());
        };
        let (udp, ping) = (read(udp)?, read(ping)?);
        s.note(format!(
            "{}: {switches} switches: UDP:{}; ping:{}",
            t.name,
            told(&udp),
            told(&ping)
        ));
        let lost = zeros(&udp, &["lost", "twice"]).and(zeros(&ping, &["lost", "twice"]));
        if lost.is_err() {
            // Whether dom0 has dropped them; what echo drops is on the console.
            let vif = format!("vif{}.0", server.domain.domid());
            let counters =
                format!("cd /sys/class/net/{vif}/statistics && grep . *_dropped *_errors");
            if let Ok(said) = s.xen.host().exec(&counters) {
                s.note(format!("{vif}: {}{}", said.stdout, said.stderr));
            }
        }
        lost
    };
    let result = check(&mut server);
    server.end(result)
}

/// Some connections and some of everything, with any number of vCPUs.
fn connections(s: &Shared, t: &Test) -> Result<()> {
    let mut server = t.start(s, &s.images.echo, By::Good, 400)?;
    let switches = t.much(15, 6);
    let check = |server: &mut Server<'_>| -> Result<()> {
        let clients = [
            look("lines", &t.address, 7, "50 0.5"),
            look("probe", &t.address, 7, "echo 50"),
            look("udp", &t.address, 7, "100"),
        ];
        let resets = Resets::watch(s.xen.host(), &[&t.address])?;
        let said = beside(&s.xen, &t.address, &clients, |failed| {
            server.wait_for_switches(switches, failed)
        })?;
        resets.none()?;
        let mut note = format!("{}: {switches} switches", t.name);
        for said in &said {
            note += ";";
            note += &told(&read(said)?);
        }
        s.note(note);
        zeros(
            &read(said.get(2).context("no client")?)?,
            &["lost", "twice"],
        )
    };
    let result = check(&mut server);
    server.end(result)
}

/// Xen's dumps are made one at a time.
static DUMP: Mutex<()> = Mutex::new(());

/// What xenstore, Xen and the backend know of a domain's devices: nodes, ports, grants.
fn view(host: &XenHost, domain: &Running<'_>) -> Result<String> {
    let id = domain.domid();
    let mut view = host
        .exec(&format!(
            "xenstore-ls /local/domain/{id}/device; xenstore-ls /local/domain/0/backend/vif/{id}; \
             ls /sys/bus/xen-backend/devices | grep -e '-{id}-'; cat /sys/class/net/vif{id}.0/ifindex"
        ))?
        .check()?
        .stdout;
    for (key, head, entry) in [
        ("e", format!("information for domain {id}:"), "]: s="),
        ("g", format!("grant-table for remote d{id} "), "[0x"),
    ] {
        // One at a time, as all are in one log; it is not emptied, as others look into it.
        let one = DUMP.lock().unwrap_or_else(PoisonError::into_inner);
        let command = format!("xl debug-keys {key}; sleep 1; xl dmesg");
        let log = host.exec(&command)?.check()?.stdout;
        drop(one);
        let start = format!("'{key}' pressed");
        let (_, dump) = log.rsplit_once(&start).context("no dump in Xen's log")?;
        for line in crate::soak::entries(dump, &head, entry)? {
            view += &without_flags(line);
            view.push('\n');
        }
    }
    Ok(view)
}

/// A port's line, without whether it is pending or masked just now.
fn without_flags(line: &str) -> String {
    match (line.split_once('['), line.split_once("]: s=")) {
        (Some((port, _)), Some((_, rest))) => format!("{port} s={rest}"),
        _ => line.to_owned(),
    }
}

/// Neither xenstore's nor netback's nor Xen's view of the devices changes over a switch; watches
/// that were set before still fire.
fn not_seen(s: &Shared, t: &Test) -> Result<()> {
    let host = s.xen.host();
    let mut server = t.start(s, &s.images.httpd, By::Good, 1000)?;
    let check = |server: &mut Server<'_>| -> Result<()> {
        let failed = AtomicBool::new(false);
        // Of the first image, or one soon after it.
        let before = view(host, &server.domain)?;
        server.wait_for_switches(t.much(5, 3), &failed)?;
        let after = view(host, &server.domain)?;
        ensure!(before == after, "before:\n{before}\nafter:\n{after}");
        ensure!(
            before.contains("s=3") && before.contains("ring-ref"),
            "{before}"
        );
        // Whatever image runs when it comes.
        let id = server.domain.domid();
        let xl = |words: &str| host.exec(&format!("xl {words} 2>&1"))?.check();
        server.domain.skip();
        xl(&format!("network-detach {id} 0"))?;
        server.domain.wait_for("segue: net interface=0 gone")?;
        xl(&format!("network-attach {id} {}", VIF.replace(',', " ")))?;
        server.domain.wait_for_network()?;
        server.wait_for_switches(2, &failed)?;
        host.exec(&format!("curl -sSf -m 30 http://{}/", t.address))?
            .check()?;
        xl(&format!("shutdown -w {id}"))?;
        Ok(())
    };
    check(&mut server).with_context(|| tail(&server.domain.lines()))?;
    let run = server.domain.finish(|_| ())?;
    run.one("segue: control request=poweroff ")?;
    run.ended(EndReason::PowerOff)
}

/// What the toolstack asks for at any moment of a switch is done, once, by whoever is there then.
fn asked_at_random(s: &Shared, t: &Test) -> Result<()> {
    let host = s.xen.host();
    // Moments differ by what the machine does; these spread over the time of a switch and more.
    let moments = |number: u32| f64::from(number * 37 % 100) / 250.0;
    // Pauses, and devices that go and come.
    let mut server = t.start(s, &s.images.httpd, By::Good, 50)?;
    let check = |server: &mut Server<'_>| -> Result<()> {
        let id = server.domain.domid();
        let failed = AtomicBool::new(false);
        for number in 0..t.much(8, 4) as u32 {
            let wait = moments(number);
            host.exec(&format!(
                "sleep {wait}; xl pause {id}; sleep 0.3; xl unpause {id}"
            ))?
            .check()?;
        }
        server.wait_for_switches(2, &failed)?;
        for number in 0..t.much(3, 1) as u32 {
            let wait = moments(number);
            server.domain.skip();
            host.exec(&format!("sleep {wait}; xl network-detach {id} 0 2>&1"))?
                .check()?;
            server.domain.wait_for("segue: net interface=0 gone")?;
            let vif = VIF.replace(',', " ");
            host.exec(&format!("sleep {wait}; xl network-attach {id} {vif} 2>&1"))?
                .check()?;
            server.domain.wait_for_network()?;
        }
        server.wait_for_switches(2, &failed)?;
        host.exec(&format!("curl -sSf -m 30 http://{}/", t.address))?
            .check()?;
        Ok(())
    };
    check(&mut server).with_context(|| tail(&server.domain.lines()))?;
    drop(server);
    for number in 0..t.much(6, 2) as u32 {
        let (word, request, end) = match number % 2 {
            0 => ("shutdown", "poweroff", EndReason::PowerOff),
            _ => ("reboot", "reboot", EndReason::Reboot),
        };
        let mut server = t.start(s, &s.images.httpd, By::Good, 50)?;
        server.wait_for_switches(2, &AtomicBool::new(false))?;
        let id = server.domain.domid();
        let wait = moments(number + 3);
        host.exec(&format!("sleep {wait}; xl {word} {id} 2>&1"))?
            .check()?;
        let run = server.domain.finish(|_| ())?;
        // Told once, and done: by one image, not by each that came.
        run.one(&format!("segue: control request={request} "))?;
        run.one(&format!("segue: shutdown reason={request}"))?;
        run.ended(end)?;
    }
    Ok(())
}

/// Longest pause that a client saw around each switch, ms: the longest of the answers that lay
/// nearer to it than to any other. `switches` are times of day, in dom0's clock.
pub fn pauses(switches: &[f64], late: &[(f64, f64)]) -> Vec<f64> {
    let mut longest = vec![0.0f64; switches.len()];
    for (at, ms) in late {
        // The answer came at that time; it was due at its start.
        let after = switches.partition_point(|switch| switch < at);
        let near = [after.checked_sub(1), Some(after)].into_iter().flatten();
        let near = near.filter_map(|n| Some((n, (switches.get(n)? - at).abs())));
        if let Some((n, _)) = near.min_by(|a, b| a.1.total_cmp(&b.1)) {
            longest[n] = longest[n].max(*ms);
        }
    }
    longest
}

/// The late answers of a check of `live.py`.
pub fn late(value: &Value) -> Vec<(f64, f64)> {
    let late = value.get("late").and_then(Value::as_array);
    let pairs = late.into_iter().flatten();
    pairs
        .filter_map(|pair| Some((pair.get(0)?.as_f64()?, pair.get(1)?.as_f64()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_belongs_to_the_nearest_switch() {
        let late = [(9.9, 12.0), (10.2, 30.0), (14.0, 11.0), (19.0, 50.0)];
        assert_eq!(pauses(&[10.0, 20.0], &late), [30.0, 50.0]);
        assert_eq!(pauses(&[], &late), [] as [f64; 0]);
    }

    #[test]
    fn resets_of_domains_are_found() {
        let printed = "1 IP 10.0.0.1.3 > 10.0.0.9.80: Flags [F.], seq 1, length 0\n\
                       2 IP 10.0.0.9.80 > 10.0.0.1.3: Flags [R], seq 1, length 0\n\
                       3 IP 10.0.0.1.4 > 10.0.0.9.80: Flags [R.], seq 1, length 0\n\
                       4 IP 10.0.0.9.80 > 10.0.0.1.5: Flags [F.], seq 1, length 0\n\
                       5 IP 10.0.0.1.5 > 10.0.0.9.80: Flags [F.], seq 1, length 0\n\
                       6 IP 10.0.0.9.80 > 10.0.0.1.5: Flags [R], seq 1, length 0\n\n";
        let found = resets(printed, &["10.0.0.9".into()]);
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("2 IP") && found[0].contains("\n    1 IP"));
        assert!(resets(printed, &["10.0.0.8".into()]).is_empty());
    }

    #[test]
    fn wrk_is_read() {
        let good = "Running 1h test\n  4181 requests in 9.98s, 3.1MB read\nRequests/sec: 419\n";
        assert_eq!(wrk_is_content(good).unwrap(), 4181);
        let bad = format!("{good}  Socket errors: connect 0, read 1, write 0, timeout 0\n");
        assert!(wrk_is_content(&bad).is_err());
        assert!(wrk_is_content("  3 requests in 1s").is_err());
    }

    #[test]
    fn ports_are_told_apart_by_what_they_are() {
        let line = "(XEN)     3 [1/0/  -   ]: s=3 n=0 x=0(d=0 p=22)";
        let again = "(XEN)     3 [0/1/  -   ]: s=3 n=0 x=0(d=0 p=22)";
        assert_eq!(without_flags(line), without_flags(again));
        let other = line.replace("    3 [", "    4 [");
        assert_ne!(without_flags(line), without_flags(&other));
        assert_eq!(without_flags("(XEN) [0x008] 0"), "(XEN) [0x008] 0");
    }

    #[test]
    fn zeros_are_demanded() {
        let value = read("noise\n{\"lost\": 0, \"twice\": 1, \"late\": [[1.5, 20.0]]}\n").unwrap();
        assert!(zeros(&value, &["lost"]).is_ok());
        assert!(zeros(&value, &["lost", "twice"]).is_err());
        assert!(zeros(&value, &["missing"]).is_err());
        assert_eq!(told(&value), " lost=0 twice=1");
        assert_eq!(late(&value), [(1.5, 20.0)]);
    }
}
