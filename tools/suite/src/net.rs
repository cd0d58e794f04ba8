//! The network tests: what real clients in dom0 see of domains, over netback and a bridge.
//!
//! Each test has an address of its own, as several may run at a time. Limits on times are for
//! things that hang; how fast it was is told at the end.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::guest::{Event, Guest, Kind, Running, VIF, Xen, tail};
use crate::images::Image;
use crate::test::{Case, Shared, case};

/// Plays the clients that no ordinary program plays.
const CLIENT: &str = "tools/suite/dom0/client.py";
/// Where it goes.
const CLIENT_THERE: &str = "/tmp/segue/client.py";

/// Longest time of one command, times the slowness.
const LIMIT: Duration = Duration::from_secs(150);

/// What a link does to frames, in the words of tc-netem(8), in either direction.
const BAD_LINK: &str = "netem delay 3ms 1ms loss 2% duplicate 1% reorder 10% 50% corrupt 0.1%";

/// Clients that connect during a flood, one after the other.
const CLIENTS: usize = 8;

/// All of them, the long ones first.
pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    let mut last = 100;
    let mut add = |name: &str, body: fn(&Shared, &Test) -> Result<()>, kind: Kind, vcpus: u32| {
        last += 1;
        let test = Test {
            name: format!("net::{kind}_{vcpus}_{name}"),
            kind,
            vcpus,
            address: format!("10.0.0.{last}"),
        };
        all.push(case(test.name.clone(), move |s| body(s, &test)));
    };
    use Kind::{Hvm, Pvh};
    add("bulk", bulk, Pvh, 2);
    add("bad_link", bad_link, Pvh, 2);
    add("many_connections", many_connections, Hvm, 2);
    add("unkind_clients", unkind_clients, Pvh, 1);
    for (kind, vcpus) in [(Hvm, 1), (Pvh, 4)] {
        add("kv", kv, kind, vcpus);
    }
    add("httpd_in_24_mib", httpd_in_24_mib, Hvm, 1);
    // One vCPU, and HVM with 4, have other tests (here and in `live`).
    for (kind, vcpus) in [(Hvm, 2), (Pvh, 2), (Pvh, 4)] {
        add("httpd", httpd, kind, vcpus);
    }
    for (kind, vcpus) in [(Hvm, 1), (Pvh, 2)] {
        add("syn_flood", syn_flood, kind, vcpus);
        add("pause", pause, kind, vcpus);
        add("reattach", reattach, kind, vcpus);
    }
    for (kind, vcpus) in [(Pvh, 1), (Hvm, 2)] {
        add("ping", ping, kind, vcpus);
    }
    add("takes_an_address_over", takes_over, Pvh, 1);
    add("backend_restart", backend_restart, Pvh, 2);
    add("two_links", two_links, Hvm, 2);
    all
}

/// What a test runs.
struct Test {
    name: String,
    kind: Kind,
    vcpus: u32,
    address: String,
}

impl Test {
    fn guest(&self, image: &Image) -> Guest {
        Guest::new(image, self.kind, self.vcpus).network(&self.address)
    }

    /// Lets `body` talk to a domain that serves. What the domain printed is added to an error, and
    /// that it broke down is one.
    fn serve(
        &self,
        s: &Shared,
        guest: &Guest,
        body: impl FnOnce(&mut Server<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut domain = guest.start_serving(&s.xen)?;
        // Both say that they listen; the network is there before.
        let name = ["httpd: ", "kv: ", "echo: "];
        while !domain
            .lines()
            .iter()
            .any(|l| name.iter().any(|n| l.text.starts_with(n)))
        {
            domain.next_line()?.context("the domain ended")?;
        }
        let mut server = Server {
            xen: &s.xen,
            address: self.address.clone(),
            domain,
        };
        let result = body(&mut server);
        let lines = server.domain.stop()?;
        let broken = ["segue: panic ", "segue: fault ", "segue: vif=0 stopped"];
        let broken = lines
            .iter()
            .find(|line| broken.iter().any(|start| line.text.starts_with(start)));
        let result = result.and_then(|()| {
            ensure!(broken.is_none(), "it broke down");
            Ok(())
        });
        result.with_context(|| format!("the domain's last lines:\n{}", tail(&lines)))
    }
}

/// A domain that serves, and the clients' side.
struct Server<'a> {
    xen: &'a Xen,
    address: String,
    domain: Running<'a>,
}

impl Server<'_> {
    /// Runs a command in dom0 that has to succeed while the domain runs; gives all it printed.
    fn run(&self, command: &str) -> Result<String> {
        let limit = LIMIT.mul_f64(self.xen.slowness());
        let host = self.xen.host();
        let output = host.exec_while(command, limit, || self.domain.runs())?;
        ensure!(
            output.success(),
            "`{command}` ended with {}:\n{}{}",
            output.status,
            output.stdout,
            output.stderr
        );
        Ok(output.stdout + &output.stderr)
    }

    /// Asks the web server with curl, with these arguments before the address.
    fn curl(&self, arguments: &str, path: &str) -> Result<String> {
        let address = &self.address;
        self.run(&format!(
            "curl -sS -m 30 {arguments} http://{address}{path}"
        ))
    }

    /// The status and the length of the body.
    fn status(&self, arguments: &str, path: &str) -> Result<String> {
        self.curl(
            &format!("-o /dev/null -w '%{{http_code}} %{{size_download}}' {arguments}"),
            path,
        )
    }

    /// A number that the web server tells.
    fn metric(&self, name: &str) -> Result<f64> {
        let page = self.curl("", "/metrics")?;
        let start = format!("{name} ");
        let value = page.lines().find_map(|line| line.strip_prefix(&start));
        let value = value.with_context(|| format!("no {name} in:\n{page}"))?;
        Ok(value.parse()?)
    }

    /// Runs a check of the client script against a port; gives its line.
    fn client(&self, port: u16, check: &str) -> Result<String> {
        self.xen.host().put(Path::new(CLIENT), CLIENT_THERE)?;
        let address = &self.address;
        let line = self.run(&format!("python3 {CLIENT_THERE} {address} {port} {check}"))?;
        Ok(line.trim().into())
    }

    /// dom0's end of its network device.
    fn vif(&self) -> String {
        format!("vif{}.0", self.domain.domid())
    }
}

/// A condition on what a program printed.
fn expect(good: bool, what: &str, printed: &str) -> Result<()> {
    ensure!(good, "{what}; it printed:\n{printed}");
    Ok(())
}

fn expect_same(printed: &str, wanted: &str, what: &str) -> Result<()> {
    expect(
        printed == wanted,
        &format!("{what}: not {wanted:?}"),
        printed,
    )
}

fn httpd(s: &Shared, t: &Test) -> Result<()> {
    t.serve(s, &t.guest(&s.images.httpd), |server| {
        // Once for each kind.
        if t.vcpus == 2 {
            requests(server)?;
        }
        wrk(s, t, server)
    })
}

fn httpd_in_24_mib(s: &Shared, t: &Test) -> Result<()> {
    t.serve(s, &t.guest(&s.images.httpd).memory(24), |server| {
        requests(server)?;
        wrk(s, t, server)?;
        let free = server.metric("segue_memory_free_bytes")?;
        s.note(format!("{}: {:.1} MiB are free", t.name, free / 1048576.0));
        Ok(())
    })
}

/// 32 connections for some seconds: no error, and each answer is the page.
fn wrk(s: &Shared, t: &Test, server: &Server<'_>) -> Result<()> {
    let said = server.run(&format!(
        "wrk -t2 -c32 -d6s --timeout 10s http://{}:80/",
        server.address
    ))?;
    let rate = said.lines().find_map(|l| l.strip_prefix("Requests/sec:"));
    let rate: f64 = rate.context("no rate")?.trim().parse()?;
    expect(rate > 20.0, "hardly an answer", &said)?;
    for error in ["Socket errors", "Non-2xx"] {
        expect(!said.contains(error), error, &said)?;
    }
    s.note(format!(
        "{}: wrk, 32 connections: {rate:.0} requests/s",
        t.name
    ));
    Ok(())
}

/// What curl can ask for.
fn requests(server: &Server<'_>) -> Result<()> {
    let page = include_str!("../../../apps/httpd/files/www/index.html");
    expect_same(&server.curl("", "/")?, page, "the page")?;
    let head = server.curl("-I", "/")?;
    let length = format!("Content-Length: {}\r\n", page.len());
    let good = head.starts_with("HTTP/1.1 200 ") && head.contains(&length);
    expect(good, "HEAD", &head)?;
    let header = |name: &str| {
        let value = head.lines().find_map(|l| l.strip_prefix(name));
        value
            .map(str::trim)
            .with_context(|| format!("no {name} in:\n{head}"))
    };

    expect_same(&server.curl("-r 0-14", "/")?, &page[..15], "a range")?;
    let end = &page[page.len() - 8..];
    expect_same(&server.curl("-r -8", "/")?, end, "a range from the end")?;
    let status = server.status("-r 2-5", "/")?;
    expect_same(&status, "206 4", "a range's status")?;
    let status = server.status("-r 100000-", "/")?;
    expect(
        status.starts_with("416 "),
        "a range behind the end",
        &status,
    )?;

    let whole = format!("200 {}", page.len());
    let etag = header("ETag: ")?;
    let modified = header("Last-Modified: ")?;
    for (condition, wanted) in [
        (format!("If-None-Match: {etag}"), "304 0"),
        ("If-None-Match: \"other\"".into(), &whole),
        (format!("If-Modified-Since: {modified}"), "304 0"),
        (
            "If-Modified-Since: Thu, 01 Jan 1970 00:00:01 GMT".into(),
            &whole,
        ),
    ] {
        let status = server.status(&format!("-H '{condition}'"), "/")?;
        expect_same(&status, wanted, &condition)?;
    }

    let status = server.status("", "/nothing/there")?;
    expect(status.starts_with("404 "), "nothing there", &status)?;
    let status = server.status("-X DELETE", "/")?;
    expect(status.starts_with("405 "), "DELETE", &status)?;

    // Several requests, one connection: only the first has to connect.
    let url = format!("http://{}", server.address);
    let connects = server.run(&format!(
        "curl -sS -m 30 -o /dev/null -o /dev/null -o /dev/null -w '%{{http_code}}/%{{num_connects}} ' \
         {url}/ {url}/style.css {url}/nothing"
    ))?;
    expect_same(&connects, "200/1 200/0 404/0 ", "keep-alive")?;

    let metrics = server.curl("", "/metrics")?;
    for line in [
        "segue_generation 1",
        "httpd_requests_total{code=\"404\"} 2",
        "httpd_requests_total{code=\"405\"} 1",
    ] {
        expect(metrics.lines().any(|l| l == line), line, &metrics)?;
    }
    let received = server.metric("segue_net_receive_packets_total")?;
    let sent = server.metric("segue_net_transmit_packets_total")?;
    ensure!(
        received > 30.0 && sent > 30.0,
        "{received} and {sent} packets"
    );
    Ok(())
}

fn kv(s: &Shared, t: &Test) -> Result<()> {
    t.serve(s, &t.guest(&s.images.kv), |server| {
        redis_cli(server)?;
        let single = redis_benchmark(server, 2000, 1)?;
        let pipelined = redis_benchmark(server, 16_000, 16)?;
        // None was lost, none was done twice.
        let counter = server.run(&format!(
            "redis-cli -h {} get counter:__rand_int__",
            server.address
        ))?;
        expect_same(counter.trim(), "18000", "what INCR counted")?;
        s.note(format!(
            "{}: redis-benchmark, 50 clients: {single}; pipelining 16: {pipelined} requests/s",
            t.name
        ));
        Ok(())
    })
}

/// What is said to redis-cli, and what it prints.
const TALK: [(&str, &str); 20] = [
    ("PING", "PONG"),
    ("SET a 1", "OK"),
    ("GET a", "1"),
    ("INCR a", "2"),
    ("INCRBY a 40", "42"),
    ("GET a", "42"),
    ("SET text abc", "OK"),
    ("APPEND text def", "6"),
    ("GET text", "abcdef"),
    ("INCR text", "ERR value is not an integer or out of range"),
    ("TTL text", "-1"),
    ("TTL nothing", "-2"),
    ("EXPIRE text 5000", "1"),
    ("PERSIST text", "1"),
    ("SET short x PX 200", "OK"),
    ("EXISTS a text nothing", "2"),
    ("DEL a", "1"),
    ("GET", "ERR wrong number of arguments for 'get' command"),
    (
        "SET a 1 PX none",
        "ERR value is not an integer or out of range",
    ),
    (
        "NOSUCH x",
        "ERR unknown command 'NOSUCH', with args beginning with: 'x' ",
    ),
];

fn redis_cli(server: &Server<'_>) -> Result<()> {
    let cli = format!("redis-cli -h {}", server.address);
    let words: String = TALK.iter().map(|(say, _)| format!("{say}\n")).collect();
    let said = server.run(&format!("{cli} <<'END'\n{words}END"))?;
    // It leaves a line empty after an error.
    let lines: Vec<&str> = said.lines().filter(|line| !line.is_empty()).collect();
    let wanted = TALK.map(|(_, answer)| answer);
    expect(lines == wanted, &format!("not {wanted:#?}"), &said)?;
    let said = server.run(&format!(
        "{cli} set lasting x ex 500; {cli} ttl lasting; sleep 0.3; {cli} exists short; \
         {cli} set big $(printf '%050000d' 7); {cli} strlen big"
    ))?;
    let lines: Vec<&str> = said.lines().collect();
    let good = matches!(
        lines[..],
        [
            "OK",
            "500" | "499" | "498" | "497" | "496",
            "0",
            "OK",
            "50000"
        ]
    );
    expect(good, "time to live, a long value", &said)?;
    let info = server.run(&format!("{cli} info"))?;
    for word in [
        "redis_version:",
        "connected_clients:1",
        "db0:keys=3,expires=1,",
    ] {
        expect(info.contains(word), word, &info)?;
    }
    Ok(())
}

/// SET, GET and INCR by 50 clients; gives the rates.
fn redis_benchmark(server: &Server<'_>, requests: u32, pipeline: u32) -> Result<String> {
    let said = server.run(&format!(
        "redis-benchmark -h {} -t set,get,incr -c 50 -n {requests} -P {pipeline} --csv",
        server.address
    ))?;
    expect(!said.to_lowercase().contains("err"), "an error", &said)?;
    let mut rates = Vec::new();
    for name in ["SET", "GET", "INCR"] {
        let start = format!("\"{name}\",\"");
        let rate = said.lines().find_map(|line| line.strip_prefix(&start));
        let rate = rate.and_then(|rest| rest.split('"').next()?.parse::<f64>().ok());
        let rate = rate.filter(|rate| *rate > 20.0);
        expect(rate.is_some(), &format!("no rate of {name}"), &said)?;
        rates.push(format!("{name} {:.0}", rate.unwrap_or(0.0)));
    }
    Ok(rates.join(", "))
}

fn ping(s: &Shared, t: &Test) -> Result<()> {
    let guest = t.guest(&s.images.echo);
    t.serve(s, &guest, |server| {
        let address = server.address.clone();
        let lines = server.domain.lines();
        let line = lines.iter().find(|l| l.text.contains("fe80::"));
        let line = Event {
            text: line.map_or("", |l| &l.text),
        };
        let local = line.get("ip")?.split(',').find(|a| a.starts_with("fe80::"));
        let local = local.and_then(|a| a.split('/').next()).context("fe80::")?;
        let mut times = Vec::new();
        for (options, to) in [
            ("", address.clone()),
            // As long as fits a frame, and a byte more.
            ("-s 1472 -M do", address.clone()),
            ("-s 1473", address.clone()),
            ("-s 8000", address.clone()),
            ("-s 65000", address.clone()),
            ("", format!("{local}%xenbr0")),
            ("-s 8000", format!("{local}%xenbr0")),
        ] {
            let said = server.run(&format!("ping -c 10 -i 0.2 -w 20 {options} {to}"))?;
            expect(said.contains(" 0% packet loss"), "pings were lost", &said)?;
            expect(!said.contains("DUP!"), "answered twice", &said)?;
            let average = said.split(" = ").nth(1).and_then(|t| t.split('/').nth(1));
            times.push(
                format!("{options} {}", average.unwrap_or("?"))
                    .trim()
                    .to_owned(),
            );
        }
        // Datagrams go and come in fragments, too.
        let datagrams = server.client(7, "udp")?;
        s.note(format!("{}: average in ms: {}", t.name, times.join(", ")));
        s.note(format!("{}: UDP: {datagrams}", t.name));
        Ok(())
    })
}

/// What fits the time: 200 MB each way.
fn bulk(s: &Shared, t: &Test) -> Result<()> {
    t.serve(s, &t.guest(&s.images.echo).alone(), |server| {
        for check in ["bulk 200", "bulk 32 8"] {
            let line = server.client(7, check)?;
            s.note(format!("{}: {check}: {line}", t.name));
        }
        Ok(())
    })
}

fn many_connections(s: &Shared, t: &Test) -> Result<()> {
    t.serve(s, &t.guest(&s.images.echo), |server| {
        let line = server.client(7, "many 1000")?;
        s.note(format!("{}: {line}", t.name));
        // And again, when the first ones are gone.
        server.client(7, "many 1000").map(drop)
    })
}

/// Half-closed and reset connections, peers that do not read.
fn unkind_clients(s: &Shared, t: &Test) -> Result<()> {
    t.serve(s, &t.guest(&s.images.echo), |server| {
        for check in ["half", "reset 60", "slow 6", "half"] {
            let line = server.client(7, check)?;
            s.note(format!("{}: {check}: {line}", t.name));
        }
        Ok(())
    })?;
    // The web server tells what is left of them.
    t.serve(s, &t.guest(&s.images.httpd), |server| {
        server.client(80, "reset 60")?;
        let accepted = server.metric("httpd_connections_accepted_total")?;
        ensure!(accepted >= 60.0, "only {accepted} connections came");
        let mut open = 0.0;
        for _ in 0..10 {
            open = server.metric("httpd_connections")?;
            if open == 1.0 {
                return Ok(());
            }
        }
        anyhow::bail!("{open} connections are open, of which one is curl's")
    })
}

fn syn_flood(s: &Shared, t: &Test) -> Result<()> {
    t.serve(s, &t.guest(&s.images.httpd).alone(), |server| {
        // Answers to addresses that nobody has go to dom0, which is not to pass them on.
        let address = &server.address;
        let said = server.run(&format!(
            "ip rule add iif xenbr0 pref 99 blackhole
             timeout -s INT 8 hping3 -q -S --flood --rand-source -p 80 {address} >/tmp/segue/flood 2>&1 &
             sleep 1
             for n in $(seq {CLIENTS}); do
                 curl -sS -m 20 -o /dev/null -w '%{{http_code}} %{{time_connect}} %{{time_total}}\\n' \
                     http://{address}/
             done
             wait
             ip rule del pref 99
             cat /tmp/segue/flood"
        ))?;
        let lines: Vec<Vec<&str>> = said.lines().map(|l| l.split(' ').collect()).collect();
        let times = lines.iter().filter_map(|line| match line[..] {
            ["200", connect, total] => Some((connect.parse().ok()?, total.parse().ok()?)),
            _ => None,
        });
        let times: Vec<(f64, f64)> = times.collect();
        expect(times.len() == CLIENTS, "a client got no answer", &said)?;
        let sent = lines.iter().find_map(|line| match line[..] {
            [count, "packets", ..] => count.parse::<u64>().ok(),
            _ => None,
        });
        let sent = sent.with_context(|| format!("how many were sent? {said}"))?;
        ensure!(sent > 1000, "a flood of {sent} segments");
        // A second, times what dom0 is slower than it was; a SYN that finds dom0's queue full is
        // lost, as it would be on any host, and sent again after a second.
        let limit = s.xen.slowness();
        let soon = times.iter().filter(|(connect, _)| *connect < limit).count();
        s.note(format!("{}: {sent} SYNs; connected, answered after {times:?} s", t.name));
        let most = format!("fewer than {} of {CLIENTS} connected within {limit:.1} s", CLIENTS - 2);
        expect(soon >= CLIENTS - 2, &most, &said)?;
        // What the flood took is given back.
        server.status("", "/").map(drop)
    })
}

fn bad_link(s: &Shared, t: &Test) -> Result<()> {
    t.serve(s, &t.guest(&s.images.echo), |server| {
        let vif = server.vif();
        let ifb = format!("ifb{}", server.domain.domid());
        server.run(&format!(
            "set -e
             modprobe -a sch_netem sch_ingress ifb act_mirred cls_matchall
             tc qdisc add dev {vif} root {BAD_LINK}
             ip link add {ifb} type ifb
             ip link set {ifb} up
             tc qdisc add dev {ifb} root {BAD_LINK}
             tc qdisc add dev {vif} ingress
             tc filter add dev {vif} parent ffff: matchall action mirred egress redirect dev {ifb}"
        ))?;
        let mut notes = Vec::new();
        for check in ["bulk 8 4", "half"] {
            notes.push(server.client(7, check)?);
        }
        let said = server.run(&format!(
            "tc -s qdisc show dev {vif}; tc -s qdisc show dev {ifb}; ip link del {ifb}"
        ))?;
        // It was bad in both directions.
        let lost = said.split("(dropped ").skip(1);
        let lost: Vec<u32> = lost
            .filter_map(|rest| rest.split(',').next()?.parse().ok())
            .filter(|lost| *lost > 0)
            .collect();
        expect(
            lost.len() >= 2,
            "frames were lost in both directions",
            &said,
        )?;
        s.note(format!("{}: {} lost={lost:?}", t.name, notes.join("; ")));
        Ok(())
    })
}

fn pause(s: &Shared, t: &Test) -> Result<()> {
    t.serve(s, &t.guest(&s.images.httpd), |server| {
        let id = server.domain.domid();
        // dom0's time before and after the domain's was read, and the domain's.
        let read = || -> Result<[f64; 3]> {
            let said = server.run(&format!(
                "read up _ </proc/uptime; echo $up; \
                 curl -sS -m 30 http://{}/metrics | sed -n 's/^segue_uptime_seconds //p'; \
                 read up _ </proc/uptime; echo $up",
                server.address
            ))?;
            let times = said.lines().filter_map(|l| l.parse().ok());
            let times: Vec<f64> = times.collect();
            let times = <[f64; 3]>::try_from(times).ok();
            times.with_context(|| format!("no times in:\n{said}"))
        };
        let before = read()?;
        let curl = format!("curl -sS -m 2 -o /dev/null http://{}/", server.address);
        let said = server.run(&format!(
            "xl pause {id}; sleep 3; {curl} && echo answered; xl unpause {id}"
        ))?;
        expect(!said.contains("answered"), "a paused domain", &said)?;
        server.status("", "/")?;
        let after = read()?;
        let there = after[1] - before[1];
        let (least, most) = (after[0] - before[2], after[2] - before[0]);
        ensure!(
            least > 4.0 && (least - 0.2..most + 0.2).contains(&there),
            "{least:.2} to {most:.2} s went by in dom0, {there:.2} s in the domain"
        );
        // The time of day is right, too: dom0's, as the web server tells it.
        let said = server.run(&format!(
            "date -d \"$(curl -sSI -m 30 http://{}/ | sed -n 's/^Date: //p' | tr -d '\\r')\" +%s; \
             date +%s",
            server.address
        ))?;
        let times: Vec<i64> = said.lines().filter_map(|l| l.parse().ok()).collect();
        let good = matches!(times[..], [there, here] if (here - there).abs() <= 3);
        expect(good, "the time of day in the domain and in dom0", &said)?;
        s.note(format!(
            "{}: {least:.2} to {most:.2} s in dom0, {there:.2} s in the domain",
            t.name
        ));
        Ok(())
    })
}

fn reattach(s: &Shared, t: &Test) -> Result<()> {
    t.serve(s, &t.guest(&s.images.echo), |server| {
        let id = server.domain.domid();
        let line = server.client(
            7,
            &format!("across 'xl pause {id}; sleep 3; xl unpause {id}'"),
        )?;
        s.note(format!("{}: pause: {line}", t.name));
        let lines = server.domain.lines();
        let line = lines
            .iter()
            .rfind(|l| l.text.starts_with("segue: net interface=0 mac="));
        let line = Event {
            text: line.map_or("", |l| &l.text),
        };
        // With the same Ethernet address a connection survives.
        let again = format!("{} mac={}", VIF.replace(',', " "), line.get("mac")?);
        let check =
            format!("across 'xl network-detach {id} 0; sleep 1; xl network-attach {id} {again}'");
        let line = server.client(7, &check)?;
        s.note(format!("{}: detach and attach: {line}", t.name));
        // With another one too it is found at once.
        server.domain.wait_for("segue: net interface=0 gone")?;
        server.domain.wait_for_network()?;
        server.run(&format!("xl network-detach {id} 0"))?;
        server.domain.wait_for("segue: net interface=0 gone")?;
        let again = VIF.replace(',', " ");
        server.run(&format!("xl network-attach {id} {again}"))?;
        server.domain.wait_for_network()?;
        server.run(&format!("ping -c 3 -i 0.3 -w 5 {}", server.address))?;
        server.client(7, "half").map(drop)
    })
}

/// A domain with the address that another one had just now is found at once.
fn takes_over(s: &Shared, t: &Test) -> Result<()> {
    // A bridge without ports forgets its neighbours; one on a host's network has others.
    let host = s.xen.host();
    let port = "segue-port";
    host.exec(&format!(
        "ip link add {port} type dummy && ip link set {port} master xenbr0 up"
    ))?
    .check()?;
    let mut result = Ok(());
    for _ in 0..2 {
        result = result.and_then(|()| {
            t.serve(s, &t.guest(&s.images.echo), |server| {
                // Without its word dom0 would send to the one before for five seconds.
                let said = server.run(&format!("ping -c 4 -i 0.5 -w 4 {}", server.address))?;
                expect(said.contains(" 0% packet loss"), "pings were lost", &said)
            })
        });
    }
    host.exec(&format!("ip link del {port}"))?.check()?;
    result
}

/// dom0's driver lets go of the device and takes it again, as when it is updated: a connection goes
/// on.
fn backend_restart(s: &Shared, t: &Test) -> Result<()> {
    t.serve(s, &t.guest(&s.images.echo), |server| {
        let (id, driver) = (server.domain.domid(), "/sys/bus/xen-backend/drivers/vif");
        let vif = server.vif();
        // What its hotplug script does for the toolstack, once, nobody does here.
        let status = format!("/local/domain/0/backend/vif/{id}/0/hotplug-status");
        let restart = format!(
            "echo vif-{id}-0 > {driver}/unbind; sleep 1; echo vif-{id}-0 > {driver}/bind; \
             until ip link set {vif} master xenbr0 up; do sleep 0.2; done; \
             xenstore-write {status} connected"
        );
        for _ in 0..2 {
            let line = server.client(7, &format!("across '{restart}'"))?;
            s.note(format!("{}: {line}", t.name));
        }
        Ok(())
    })
}

/// Two devices, on two bridges: each has its address, and each is used for its link.
fn two_links(s: &Shared, t: &Test) -> Result<()> {
    let (bridge, dom0, domain) = ("segue-second", "10.0.9.1", "10.0.9.2");
    let host = s.xen.host();
    host.exec(&format!(
        "ip link add {bridge} type bridge forward_delay 0 && ip addr add {dom0}/24 dev {bridge} && \
         ip link set {bridge} up"
    ))?
    .check()?;
    let guest = t.guest(&s.images.httpd).also_on(bridge, domain);
    let result = t.serve(s, &guest, |server| {
        let page = |server: &Server<'_>| {
            let wanted = include_str!("../../../apps/httpd/files/www/index.html");
            expect_same(&server.curl("", "/")?, wanted, "the page")
        };
        page(server)?;
        let first = std::mem::replace(&mut server.address, domain.into());
        while server.run(&format!("ping -c 1 -W 2 {domain}")).is_err() {
            server.domain.next_line()?.context("the domain ended")?;
        }
        page(server)?;
        // Without the first, the second one is still there.
        let id = server.domain.domid();
        server.run(&format!("xl network-detach {id} 0"))?;
        server.domain.wait_for("segue: net interface=0 gone")?;
        page(server)?;
        let gone = server.run(&format!("ping -c 2 -i 0.3 -W 1 {first}"));
        ensure!(gone.is_err(), "the first address still answers");
        Ok(())
    });
    host.exec(&format!("ip link del {bridge}"))?.check()?;
    result
}
