//! Ours and a Linux domain side by side: the same clients in dom0, the same bridge, in turn.
//!
//! Both have two vCPUs. Linux runs nginx, redis and our own `echo`, built for Linux; of ours each
//! app is a domain. All of them stand by while one is measured; rounds alternate between the two.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use segue_lab::{Domain, DomainConfig};
use serde_json::Value;

use super::Bench;
use super::linux::{ADDRESS, MEMORY_MIB, START, VCPUS, pack_files};
use super::row::{Row, quantile};
use crate::guest::{Kind, VIF, Xen};
use crate::images::Image;

/// How long one measurement may take.
const MEASURE: Duration = Duration::from_secs(120);

/// Where the servers of one side are.
struct Side {
    http: Server,
    resp: Server,
    bulk: Server,
}

/// An address, and the domain that has it.
#[derive(Clone)]
struct Server {
    address: &'static str,
    name: String,
}

/// What is measured: its name, unit, how, and the goal for the ratio.
struct Figure {
    name: &'static str,
    unit: &'static str,
    server: fn(&Side) -> &Server,
    measure: fn(&Xen, &Server, u64) -> Result<f64>,
    goal: Goal,
}

enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

const FIGURES: [Figure; 9] = [
    Figure {
        name: "bulk TCP to the domain",
        unit: "MB/s",
        server: |side| &side.bulk,
        measure: |xen, server, seconds| bulk(xen, server, "in", seconds),
        goal: Goal::AtLeast(1.2),
    },
    Figure {
        name: "bulk TCP from the domain",
        unit: "MB/s",
        server: |side| &side.bulk,
        measure: |xen, server, seconds| bulk(xen, server, "out", seconds),
        goal: Goal::AtLeast(1.2),
    },
    Figure {
        name: "HTTP, 1 KiB, 32 connections",
        unit: "req/s",
        server: |side| &side.http,
        measure: |xen, server, seconds| http(xen, server, "1k", seconds).map(|found| found.0),
        goal: Goal::AtLeast(1.5),
    },
    Figure {
        name: "HTTP, 100 KiB, 32 connections",
        unit: "req/s",
        server: |side| &side.http,
        measure: |xen, server, seconds| http(xen, server, "100k", seconds).map(|found| found.0),
        goal: Goal::AtLeast(1.5),
    },
    Figure {
        name: "RESP GET, 32 connections",
        unit: "req/s",
        server: |side| &side.resp,
        measure: |xen, server, seconds| resp(xen, server, "get", 1, seconds),
        goal: Goal::AtLeast(1.5),
    },
    Figure {
        name: "RESP SET, 32 connections",
        unit: "req/s",
        server: |side| &side.resp,
        measure: |xen, server, seconds| resp(xen, server, "set", 1, seconds),
        goal: Goal::AtLeast(1.5),
    },
    Figure {
        name: "RESP GET, 32 connections, 16 in a pipeline",
        unit: "req/s",
        server: |side| &side.resp,
        measure: |xen, server, seconds| resp(xen, server, "get", 16, seconds),
        goal: Goal::AtLeast(1.5),
    },
    Figure {
        name: "RESP SET, 32 connections, 16 in a pipeline",
        unit: "req/s",
        server: |side| &side.resp,
        measure: |xen, server, seconds| resp(xen, server, "set", 16, seconds),
        goal: Goal::AtLeast(1.5),
    },
    Figure {
        name: "ping, average",
        unit: "ms",
        server: |side| &side.http,
        measure: |xen, server, _| ping(xen, server),
        goal: Goal::AtMost(0.8),
    },
];

/// Measures all.
pub fn network(bench: &Bench) -> Result<Vec<Row>> {
    let pages = pages()?;
    for script in ["bulk.py", "exits.py"] {
        let local = Path::new("tools/suite/dom0").join(script);
        bench.xen.host().put(&local, &format!("/tmp/{script}"))?;
    }

    let linux = bench.linux()?;
    let images = &bench.images;
    let httpd = serve(bench, &images.httpd, "10.0.0.31", Some(&pages))?;
    let kv = serve(bench, &images.kv, "10.0.0.32", None)?;
    let echo = serve(bench, &images.echo, "10.0.0.33", None)?;
    let named = |domain: &Domain, address| Server {
        address,
        name: domain.name().to_owned(),
    };
    let peer = named(linux, ADDRESS);
    let sides = [
        Side {
            http: named(&httpd, "10.0.0.31"),
            resp: named(&kv, "10.0.0.32"),
            bulk: named(&echo, "10.0.0.33"),
        },
        Side {
            http: peer.clone(),
            resp: peer.clone(),
            bulk: peer,
        },
    ];

    let (rounds, seconds) = (bench.pick(5, 1) as usize, bench.pick(5, 2));
    let mut rows = Vec::new();
    for figure in &FIGURES {
        let mut values = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            for (side, values) in sides.iter().zip(&mut values) {
                let server = (figure.server)(side);
                let value = (figure.measure)(&bench.xen, server, seconds);
                values.push(value.with_context(|| format!("{}: {}", figure.name, server.address))?);
            }
        }
        let [ours, theirs] = values;
        let row = Row::median("network", figure.name, &ours, figure.unit)
            .peer("Linux", quantile(&theirs, 0.5));
        rows.push(match figure.goal {
            Goal::AtLeast(goal) => row.at_least(goal),
            Goal::AtMost(goal) => row.at_most(goal),
        });
    }
    // A trace takes its time.
    let loads = if bench.quick { &[][..] } else { &LOADS };
    for (name, server, load) in loads.iter().copied() {
        let [ours, theirs] = &sides;
        let ours = cost(&bench.xen, server(ours), load).context(name)?;
        let theirs = cost(&bench.xen, server(theirs), load).context(name)?;
        for (what, unit, of) in COSTS {
            let name = format!("{what} for a request, {name}");
            rows.push(Row::new("network", name, of(&ours), unit).peer("Linux", of(&theirs)));
        }
    }
    let size = images.httpd.img_len as f64 / 1000.0;
    rows.push(Row::new("network", "httpd.img", size, "kB").at_most(1500.0));
    Ok(rows)
}

/// The web pages of ours, as Linux has them.
pub fn pages() -> Result<PathBuf> {
    let page = |kib: usize| vec![b'x'; kib * 1024];
    pack_files("pages", &[("www/1k", &page(1)), ("www/100k", &page(100))])
}

/// A domain of ours as Linux's: without a device model.
pub fn ours(image: &Image, address: &str, files: Option<&Path>) -> DomainConfig {
    let mut config = DomainConfig::new(Kind::Pvh.domain_type(), &image.elf);
    config.ramdisk = files.map(Into::into);
    config.cmdline = format!("segue.ip={address}/24");
    config.vcpus = VCPUS;
    config.memory_mib = MEMORY_MIB;
    config.extra.push(format!("vif=['{VIF}']"));
    config
}

fn serve(bench: &Bench, image: &Image, address: &str, files: Option<&Path>) -> Result<Domain> {
    bench.xen.prepare_network()?;
    let domain = bench.xen.host().create(&ours(image, address, files))?;
    domain.wait_line(|line| line.text.starts_with("segue: net "), START)?;
    Ok(domain)
}

/// Runs a command in dom0; what it printed.
fn client(xen: &Xen, command: &str) -> Result<String> {
    let output = xen.host().exec_for(command, MEASURE)?.check()?;
    Ok(output.stdout)
}

/// The number behind `key` in a text.
fn number_after(text: &str, key: &str) -> Result<f64> {
    let missing = || format!("no '{key}' in:\n{text}");
    let (_, rest) = text.split_once(key).with_context(missing)?;
    let rest = rest.trim_start_matches([' ', '"', ',', '=', ':']);
    let end = rest
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rest.len());
    rest[..end].parse().with_context(missing)
}

fn bulk(xen: &Xen, server: &Server, direction: &str, seconds: u64) -> Result<f64> {
    let address = server.address;
    let text = client(
        xen,
        &format!("python3 /tmp/bulk.py {direction} {address} {seconds}"),
    )?;
    let bytes: f64 = text.trim().parse().with_context(|| text.clone())?;
    Ok(bytes / 1e6)
}

/// Requests in a second, and how many there were.
fn http(xen: &Xen, server: &Server, page: &str, seconds: u64) -> Result<(f64, f64)> {
    let url = format!("http://{}:80/{page}", server.address);
    let text = client(
        xen,
        &format!("wrk -t 1 -c 32 --timeout 20s -d {seconds} {url}"),
    )?;
    ensure!(
        !text.contains("Socket errors") && !text.contains("Non-2xx"),
        "{text}"
    );
    let (before, _) = text
        .split_once(" requests in")
        .with_context(|| text.clone())?;
    let word = before.split_whitespace().next_back().unwrap_or_default();
    let count = word.parse().with_context(|| text.clone())?;
    Ok((number_after(&text, "Requests/sec:")?, count))
}

fn resp(xen: &Xen, server: &Server, command: &str, pipeline: u64, seconds: u64) -> Result<f64> {
    // About that long in the lab.
    let count = 500 * seconds * pipeline.min(8);
    let text = redis_benchmark(xen, server, command, pipeline, count)?;
    number_after(&text, &format!("\"{}\"", command.to_uppercase()))
}

fn redis_benchmark(
    xen: &Xen,
    server: &Server,
    test: &str,
    pipeline: u64,
    count: u64,
) -> Result<String> {
    let address = server.address;
    let text = client(
        xen,
        &format!(
            "redis-benchmark -h {address} --threads 2 -c 32 -P {pipeline} -n {count} -t {test} --csv"
        ),
    )?;
    ensure!(!text.contains("rror"), "{text}");
    Ok(text)
}

fn ping(xen: &Xen, server: &Server) -> Result<f64> {
    let text = client(xen, &format!("ping -q -c 50 -i 0.05 {}", server.address))?;
    ensure!(text.contains(" 0% packet loss"), "{text}");
    let times = text.split_once("mdev = ").map_or("", |(_, times)| times);
    let average = times.split('/').nth(1).with_context(|| text.clone())?;
    average.parse().with_context(|| text.clone())
}

/// What costs are counted of: a name, a server, and a load that says how many requests it made.
type Load = (
    &'static str,
    fn(&Side) -> &Server,
    fn(&Xen, &Server) -> Result<f64>,
);

const LOADS: [Load; 2] = [
    (
        "HTTP",
        |side| &side.http,
        |xen, server| http(xen, server, "1k", 4).map(|found| found.1),
    ),
    (
        "RESP GET",
        |side| &side.resp,
        |xen, server| redis_benchmark(xen, server, "get", 1, 2000).map(|_| 2000.0),
    ),
];

/// What one request takes, of Xen and of the domain that serves.
struct Cost {
    /// Xen's trace of it.
    counts: Value,
    requests: f64,
    cpu_ms: f64,
}

impl Cost {
    fn of(&self, key: &str) -> f64 {
        self.counts
            .get(key)
            .and_then(Value::as_f64)
            .unwrap_or(f64::NAN)
            / self.requests
    }
}

/// What a cost is called, its unit, and which it is.
type Told = (&'static str, &'static str, fn(&Cost) -> f64);

const COSTS: [Told; 7] = [
    ("VM exits", "count", |cost| cost.of("exits")),
    ("hypercalls", "count", |cost| cost.of("hypercalls")),
    ("events to dom0", "count", |cost| cost.of("events_out")),
    ("injected interrupts", "count", |cost| cost.of("injected")),
    ("grant copies", "count", |cost| cost.of("copies")),
    ("grant maps", "count", |cost| cost.of("maps")),
    ("CPU time of the domain", "ms", |cost| cost.cpu_ms),
];

/// Counts it, while all other domains are paused: dom0 has no exits.
fn cost(xen: &Xen, server: &Server, load: fn(&Xen, &Server) -> Result<f64>) -> Result<Cost> {
    let others = format!(
        "xl list | awk 'NR > 2 && $1 != \"{}\" {{ print $1 }}'",
        server.name
    );
    client(xen, &format!("for d in $({others}); do xl pause $d; done"))?;
    let counted = traced(xen, server, load).and_then(|(counts, requests)| {
        // Once more without the trace, which takes time itself.
        let before = cpu_seconds(xen, server)?;
        let more = load(xen, server)?;
        let cpu_ms = (cpu_seconds(xen, server)? - before) * 1000.0 / more;
        Ok(Cost {
            counts,
            requests,
            cpu_ms,
        })
    });
    client(
        xen,
        &format!("for d in $({others}); do xl unpause $d; done"),
    )?;
    counted
}

/// What Xen's trace has, and of how many requests.
fn traced(
    xen: &Xen,
    server: &Server,
    load: fn(&Xen, &Server) -> Result<f64>,
) -> Result<(Value, f64)> {
    // Classes HVM and PV, of them entries, exits, handlers and hypercalls.
    client(
        xen,
        "rm -f /tmp/exits.bin; \
         setsid xentrace -D -S 1024 -e 0x283000 /tmp/exits.bin >/dev/null 2>&1 </dev/null & \
         while ! [ -f /tmp/exits.bin ]; do sleep 0.1; done",
    )?;
    let requests = load(xen, server);
    let counted = client(
        xen,
        "pkill -INT xentrace; while pgrep -x xentrace >/dev/null; do sleep 0.1; done; \
         python3 /tmp/exits.py /tmp/exits.bin; rm -f /tmp/exits.bin",
    );
    let (requests, counted) = (requests?, counted?);
    let counts: Value = serde_json::from_str(&counted).with_context(|| counted.clone())?;
    let count = |key: &str| counts.get(key).and_then(Value::as_u64);
    ensure!(
        count("lost") == Some(0),
        "Xen's trace lost records: {counts}"
    );
    ensure!(
        count("exits") > Some(0) && count("copies") > Some(0),
        "Xen's trace has no exits or no copies: {counts}"
    );
    ensure!(requests > 0.0, "no requests");
    Ok((counts, requests))
}

/// What Xen gave the domain so far.
fn cpu_seconds(xen: &Xen, server: &Server) -> Result<f64> {
    let text = client(xen, &format!("xl list {} | tail -n 1", server.name))?;
    let word = text.split_whitespace().next_back().unwrap_or_default();
    word.parse().with_context(|| text.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_behind_their_names() {
        assert_eq!(
            number_after("a\nRequests/sec:    419.04\nb", "Requests/sec:").unwrap(),
            419.04
        );
        let csv = "\"test\",\"rps\"\n\"GET\",\"401.53\",\"1\"\n";
        assert_eq!(number_after(csv, "\"GET\"").unwrap(), 401.53);
        assert!(number_after("nothing", "Requests/sec:").is_err());
    }
}
