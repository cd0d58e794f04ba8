//! Mixed load and switches for as long as is wanted: what the domains hold has to stay the same.
//!
//! Three servers run at once, replace themselves every few seconds, and each round puts all kinds of
//! load on them. After each round, with nobody connected, they are asked for their free memory and
//! their connections, and Xen for the event channels that they have bound and the grants that are
//! mapped.

use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::guest::{Guest, Kind, Running, Xen, events};
use crate::images::{Image, Images};

const HTTPD: &str = "10.0.0.91";
const KV: &str = "10.0.0.92";
const ECHO: &str = "10.0.0.93";
/// Longest time of one command.
const LIMIT: Duration = Duration::from_secs(300);
/// After a round, until what was connected is gone: TIME_WAIT, and what threads keep.
const REST: Duration = Duration::from_secs(75);
/// Free memory may be less by this than after the first rounds: what a heap keeps.
const SLACK: u64 = 1 << 20;
/// Between two switches of a domain, ms: more than a thousand in an hour.
const EVERY: u64 = 3000;
/// How often free memory is read: while an image is being loaded, there is less.
const READINGS: usize = 5;
/// Rounds that count as the start.
const START: usize = 3;

/// A round's load, in dom0. Each has to succeed.
const LOAD: [(&str, &str); 8] = [
    (
        "httpd",
        "wrk -t1 -c32 -d20s --timeout 10s http://10.0.0.91:80/",
    ),
    (
        "httpd",
        "for i in $(seq 30); do curl -sSf -m 20 -o /dev/null http://10.0.0.91/; done",
    ),
    (
        "kv",
        "redis-benchmark -h 10.0.0.92 -t set,get,incr -c 50 -n 3000 -r 500 --csv",
    ),
    (
        "kv",
        "redis-benchmark -h 10.0.0.92 -t set,get -P 16 -c 20 -n 20000 -r 500 --csv",
    ),
    ("kv", "redis-cli -h 10.0.0.92 flushall"),
    ("echo", "CLIENT 10.0.0.93 7 bulk 16"),
    ("echo", "CLIENT 10.0.0.93 7 reset"),
    (
        "echo",
        "CLIENT 10.0.0.93 7 many 300 && ping -c 20 -i 0.1 -s 20000 -w 20 10.0.0.93",
    ),
];

/// What the domains hold.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    /// Free memory of httpd and kv, bytes.
    free: [u64; 2],
    /// Connections of httpd and kv, but for the one that asks.
    connections: [u64; 2],
    /// Bound event channels and mapped grants, by domain.
    xen: Vec<(usize, usize)>,
}

pub fn run(minutes: u64) -> Result<ExitCode> {
    let images = Images::build()?;
    let xen = crate::xen(3 * 96 + 128)?;
    let guest = |image: &Image, kind, vcpus, address: &str| {
        let guest = Guest::new(image, kind, vcpus).network(address).beside();
        guest
            .memory(96)
            .module(&image.bundle)
            .cmdline(format!("-- --replace-every {EVERY}"))
            .start_serving(&xen)
    };
    let domains = [
        guest(&images.httpd, Kind::Hvm, 2, HTTPD)?,
        guest(&images.kv, Kind::Pvh, 2, KV)?,
        guest(&images.echo, Kind::Pvh, 1, ECHO)?,
    ];
    let client = "/tmp/segue/client.py";
    xen.host()
        .put(Path::new("tools/suite/dom0/client.py"), client)?;

    let start = Instant::now();
    let length = Duration::from_secs(minutes * 60);
    let mut rounds = Vec::new();
    while start.elapsed() < length || rounds.len() <= START {
        for result in thread::scope(|scope| {
            let servers = ["httpd", "kv", "echo"].map(|server| {
                let mut load = LOAD.iter().filter(move |(of, _)| *of == server);
                let xen = &xen;
                scope.spawn(move || load.try_for_each(|(_, command)| put(xen, command, client)))
            });
            servers.map(|server| {
                server
                    .join()
                    .unwrap_or_else(|_| Err(anyhow::anyhow!("panic")))
            })
        }) {
            let result: Result<()> = result;
            result?;
        }
        thread::sleep(REST);
        let held = held(&xen, &domains)?;
        println!(
            "soak: {:.0} of {minutes} min, round {}, {} switches: free {} and {} KiB, {:?} \
             connections, ports and grants {:?}",
            start.elapsed().as_secs_f64() / 60.0,
            rounds.len() + 1,
            domains.iter().map(switches).sum::<usize>(),
            held.free[0] / 1024,
            held.free[1] / 1024,
            held.connections,
            held.xen,
        );
        rounds.push(held);
    }
    flat(&rounds)?;
    let each: Vec<usize> = domains.iter().map(switches).collect();
    for domain in domains {
        let lines = domain.stop()?;
        let broken = [
            "segue: panic ",
            "segue: fault ",
            "segue: resume ",
            "segue: fallback ",
            "segue: vif=0 stopped",
        ];
        let broken = lines
            .iter()
            .find(|l| broken.iter().any(|start| l.text.starts_with(start)));
        ensure!(broken.is_none(), "a domain broke down: {broken:?}");
    }
    println!(
        "\nmake soak: {} rounds in {:.0} minutes, {each:?} switches; memory, connections, event \
         channels and grants stayed flat.",
        rounds.len(),
        start.elapsed().as_secs_f64() / 60.0
    );
    Ok(ExitCode::SUCCESS)
}

/// How often a domain has replaced itself.
fn switches(domain: &Running<'_>) -> usize {
    events(&domain.lines(), "segue: switch ").count()
}

fn put(xen: &Xen, command: &str, client: &str) -> Result<()> {
    let command = command.replace("CLIENT", &format!("python3 {client}"));
    let output = xen.host().exec_for(&command, LIMIT)?;
    let said = output.stdout.clone() + &output.stderr;
    ensure!(
        output.success(),
        "`{command}` ended with {}:\n{said}",
        output.status
    );
    for error in ["Socket errors", "Non-2xx", "ERR"] {
        ensure!(!said.contains(error), "`{command}`:\n{said}");
    }
    Ok(())
}

/// Asks the servers, then Xen.
fn held(xen: &Xen, domains: &[Running<'_>]) -> Result<Held> {
    let run = |command: &str| -> Result<String> {
        let output = xen.host().exec_for(command, LIMIT)?;
        ensure!(output.success(), "`{command}`: {}", output.stderr);
        Ok(output.stdout)
    };
    let number = |text: &str, start: &str| {
        let value = text.lines().find_map(|l| l.strip_prefix(start));
        let value = value.with_context(|| format!("no {start} in:\n{text}"))?;
        value.trim().parse::<f64>().context("no number")
    };
    let mut free = [0, 0];
    let mut connections = [0, 0];
    for _ in 0..READINGS {
        let metrics = run(&format!("curl -sSf -m 30 http://{HTTPD}/metrics"))?;
        let info = run(&format!("redis-cli -h {KV} info"))?;
        let now = [
            number(&metrics, "segue_memory_free_bytes ")? as u64,
            number(&info, "memory_free:")? as u64,
        ];
        free = [free[0].max(now[0]), free[1].max(now[1])];
        connections = [
            (number(&metrics, "httpd_connections ")? as u64).saturating_sub(1),
            (number(&info, "connected_clients:")? as u64).saturating_sub(1),
        ];
        thread::sleep(Duration::from_millis(700));
    }
    // Xen's log is short: a dump at a time.
    let dump = |key| {
        run(&format!(
            "xl dmesg -c >/dev/null; xl debug-keys {key}; sleep 1; xl dmesg"
        ))
    };
    let (events, grants) = (dump("e")?, dump("g")?);
    let xen = domains
        .iter()
        .map(|domain| {
            let id = domain.domid();
            let ports = entries(&events, &format!("information for domain {id}:"), "]: s=")?.len();
            let grants = entries(&grants, &format!("grant-table for remote d{id} "), "[0x")?.len();
            Ok((ports, grants))
        })
        .collect::<Result<_>>()?;
    Ok(Held {
        free,
        connections,
        xen,
    })
}

/// Lines with `entry`, in the part of a dump that begins with `head`.
pub fn entries<'a>(dump: &'a str, head: &str, entry: &str) -> Result<Vec<&'a str>> {
    let mut lines = dump.lines().skip_while(|line| !line.contains(head));
    lines
        .next()
        .with_context(|| format!("no '{head}' in:\n{dump}"))?;
    let part = lines.take_while(|l| !l.contains("information for") && !l.contains("grant-table"));
    Ok(part.filter(|line| line.contains(entry)).collect())
}

fn flat(rounds: &[Held]) -> Result<()> {
    let (first, rest) = rounds.split_at(START.min(rounds.len()));
    let least = |server: usize| first.iter().map(|held| held.free[server]).min();
    for held in rest {
        for server in 0..2 {
            let least = least(server).unwrap_or(0);
            ensure!(
                held.free[server] + SLACK >= least,
                "memory went: {} bytes are free, {least} were",
                held.free[server]
            );
        }
        ensure!(
            held.connections == [0, 0],
            "{:?} connections are open, and nobody is there",
            held.connections
        );
        ensure!(
            first.iter().any(|early| early.xen == held.xen),
            "event channels and grants were {:?} and are {:?}",
            first.iter().map(|early| &early.xen).collect::<Vec<_>>(),
            held.xen
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(free: u64, ports: usize) -> Held {
        Held {
            free: [free, free],
            connections: [0, 0],
            xen: vec![(ports, 5)],
        }
    }

    #[test]
    fn what_goes_is_found() {
        let even = vec![held(9 << 20, 7); 10];
        flat(&even).unwrap();
        let mut less = even.clone();
        less.push(held(7 << 20, 7));
        assert!(flat(&less).unwrap_err().to_string().contains("memory"));
        let mut open = even.clone();
        open[9].connections = [0, 3];
        assert!(flat(&open).unwrap_err().to_string().contains("open"));
        let mut more = even;
        more.push(held(9 << 20, 8));
        assert!(flat(&more).unwrap_err().to_string().contains("channels"));
    }

    #[test]
    fn entries_are_of_one_domain() {
        let dump = "(XEN) Event channel information for domain 4:\n(XEN) 1 [0/0/ - ]: s=3\n\
                    (XEN) Event channel information for domain 5:\n(XEN) Polling vCPUs: {}\n\
                    (XEN) 1 [0/0/ - ]: s=3\n(XEN) 2 [0/0/ - ]: s=5\n";
        let count = |id| entries(dump, &format!("information for domain {id}:"), "]: s=");
        assert_eq!(count(5).unwrap().len(), 2);
        assert!(count(6).is_err());
    }
}
