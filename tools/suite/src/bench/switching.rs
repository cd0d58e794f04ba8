//! An image switch as clients see it, beside what else there is: Linux's kexec, a reboot, a new
//! domain.
//!
//! Clients in dom0 ask all the time, by UDP (1 kHz), ping (100/s) and HTTP (50/s), and note when
//! answers came. What counts is the longest time from one answer to the next around the event. Ours
//! has an app for UDP and one for HTTP, so each event is seen once for each of them.
//!
//! All domains have the same number of vCPUs and the same memory. kexec is measured in an HVM
//! domain: in a PVH one `xl` destroys the domain, as it has no device model to reset. Reboots are
//! of PVH domains, which the toolstack loads; HVM's firmware would read the kernel through an
//! emulated port.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use segue_lab::{DomainType, XenHost};
use serde_json::Value;

use super::Bench;
use super::linux::{MEMORY_MIB, Programs, VCPUS};
use super::network::ours;
use super::row::{Row, max, quantile};
use super::staying::Staying;
use crate::guest::{Guest, Kind};
use crate::images::Image;
use crate::live::{Client, beside, late, look, pauses, read};

/// Time from switch to switch, ms: long enough to tell which switch a pause is of.
const EVERY: u64 = 1500;
/// Before and after an event.
const QUIET: Duration = Duration::from_secs(3);
/// How long anything may take to serve again.
const BACK: Duration = Duration::from_secs(600);

const ECHO: &str = "10.0.0.35";
const WEB: &str = "10.0.0.36";
const LINUX: &str = "10.0.0.37";

const UDP: &str = "UDP echo, 1000/s";
const PING: &str = "ping, 100/s";
const HTTP: &str = "HTTP, 50/s";

/// One of our apps, and how it is asked.
struct App<'a> {
    image: &'a Image,
    address: &'static str,
    service: &'static str,
    serves: String,
}

/// The times without service, in ms, that the clients of one service saw.
type Seen = Vec<(&'static str, Vec<f64>)>;

/// Measures all.
pub fn switching(bench: &Bench) -> Result<Vec<Row>> {
    let apps = [
        App {
            image: &bench.images.echo,
            address: ECHO,
            service: UDP,
            serves: format!("echo here | busybox nc -w 2 {ECHO} 7 | grep -q here"),
        },
        App {
            image: &bench.images.httpd,
            address: WEB,
            service: HTTP,
            serves: format!("curl -sf -m 2 -o /dev/null http://{WEB}/"),
        },
    ];
    let (mut quiet, mut switch, mut reboot, mut create) = (vec![], vec![], vec![], vec![]);
    bench.xen.prepare_network()?;
    for app in apps.iter().take(bench.pick(2, 1) as usize) {
        switches(bench, app, &mut switch, &mut quiet)?;
    }
    // Each takes seconds.
    let times = bench.pick(3, 0) as usize;
    let mut linux_reboot = Seen::new();
    if times > 0 {
        for app in &apps {
            restarts(bench, app, times, &mut reboot, &mut create)?;
        }
        linux_reboot = linux_reboots(bench, &Programs::build()?, times)?;
    }
    let mut rows = Vec::new();
    for service in [UDP, PING, HTTP] {
        let ours = of(&switch, service);
        if ours.is_empty() {
            continue; // A quick run has one app only.
        }
        let row = |what: &str, values: &[f64]| {
            Row::median("image switch", format!("{what}: {service}"), values, "ms")
        };
        rows.push(row(SWITCH, &ours));
        let longest = format!("the longest of them: {service}");
        rows.push(Row::new("image switch", longest, max(&ours), "ms").runs(ours.len()));
        rows.push(row("as long without a switch", &of(&quiet, service)));
        if times == 0 {
            continue;
        }
        let theirs = quantile(&of(&linux_reboot, service), 0.5);
        let ours_by_reboot = row("xl reboot, without service", &of(&reboot, service));
        rows.push(ours_by_reboot.peer("Linux xl reboot", theirs));
        rows.push(
            row(
                "xl destroy, xl create, without service",
                &of(&create, service),
            )
            .peer("Segue switch", quantile(&ours, 0.5)),
        );
    }
    Ok(rows)
}

/// What our switch is called, and Linux's, in front of the service.
const SWITCH: &str = "switch, without service";
const KEXEC: &str = "kexec, without service";

/// Measures Linux's kexec.
pub fn kexec(bench: &Bench) -> Result<Vec<Row>> {
    bench.xen.prepare_network()?;
    let (seen, parts) = kexecs(bench, &Programs::build()?, bench.pick(3, 1) as usize)?;
    let row = |name: String, values: &[f64]| {
        Row::of_peer("image switch", name, "Linux", quantile(values, 0.5), "ms").runs(values.len())
    };
    let mut rows = Vec::new();
    for service in [UDP, PING, HTTP] {
        rows.push(row(format!("{KEXEC}: {service}"), &of(&seen, service)));
    }
    for (number, name) in ["old kernel", "toolstack", "new kernel"].iter().enumerate() {
        let values: Vec<f64> = parts.iter().map(|parts| parts[number]).collect();
        rows.push(row(format!("of kexec, by ping: {name}"), &values));
    }
    Ok(rows)
}

/// Puts our switch beside kexec, if both were measured.
pub fn beside_kexec(rows: &mut [Row]) {
    for service in [UDP, PING, HTTP] {
        let name = format!("{KEXEC}: {service}");
        let kexec = rows.iter().find(|row| row.name == name);
        let Some(kexec) = kexec.and_then(|row| row.peer) else {
            continue;
        };
        let name = format!("{SWITCH}: {service}");
        for row in rows.iter_mut().filter(|row| row.name == name) {
            *row = row.clone().peer("Linux kexec", kexec);
            if service == PING {
                *row = row.clone().at_most(0.001);
            }
        }
    }
}

fn of(seen: &Seen, service: &str) -> Vec<f64> {
    let mine = seen.iter().filter(|(name, _)| *name == service);
    mine.flat_map(|(_, values)| values.iter().copied())
        .collect()
}

/// How long the HTTP client waits until it asks on another connection, s: over a switch it needs
/// none, and over a restart the old one never has an answer.
const PATIENT: u32 = 20;
const IMPATIENT: u32 = 1;

/// The clients of a service, and ping.
fn clients(service: &str, address: &str, patience: u32) -> [Client; 2] {
    let asked = match service {
        UDP => look("away", address, 7, "udp 1000"),
        // A page of our image's own; of about a kilobyte, both.
        _ if address == WEB => look("away", address, 80, &format!("http 50 / {patience}")),
        _ => look("away", address, 80, &format!("http 50 /1k {patience}")),
    };
    [asked, look("away", address, 0, "ping 100")]
}

/// Our app replaces itself again and again; then the same time passes without.
fn switches(bench: &Bench, app: &App<'_>, switch: &mut Seen, quiet: &mut Seen) -> Result<()> {
    let count = bench.pick(24, 4);
    // The first of them are over before the clients are there.
    let last = count + 9;
    let arguments = format!("-- --replace-every {EVERY} --until {last}");
    let mut domain = Guest::new(app.image, Kind::Hvm, VCPUS)
        .network(app.address)
        .memory(MEMORY_MIB)
        .module(&app.image.bundle)
        .cmdline(arguments)
        .start(&bench.xen)?;
    domain.wait_for_network()?;
    let begin = domain.started_at()?;
    let mut quiet_from = 0.0;
    let every = Duration::from_millis(EVERY);
    let said = beside(
        &bench.xen,
        app.address,
        &clients(app.service, app.address, PATIENT),
        |_| {
            let last = format!("segue: commit generation={last}");
            let there = |line: &segue_lab::Line| line.text.starts_with(&last);
            while !domain.lines().iter().any(there) {
                domain.next_line()?.context("the domain ended")?;
            }
            thread::sleep(every);
            quiet_from = begin + domain.elapsed().as_secs_f64();
            thread::sleep(every * u32::try_from(count)?);
            Ok(())
        },
    )?;
    let lines = domain.lines();
    let first = said
        .iter()
        .map(|said| read(said))
        .collect::<Result<Vec<Value>>>()?;
    if let Some(failed) = first[0].get("failed") {
        ensure!(failed == 0, "{failed} requests failed over switches");
    }
    // Switches before the clients had come do not count.
    let since = first
        .iter()
        .filter_map(|value| late(value).first().map(|(at, _)| *at))
        .fold(0.0, f64::max);
    let mut at: Vec<f64> = lines
        .iter()
        .filter(|line| line.text.starts_with("segue: switch "))
        .map(|line| begin + line.at.as_secs_f64())
        .filter(|at| *at > since)
        .collect();
    let real = at.len();
    ensure!(
        real as u64 >= count / 2,
        "only {real} of {count} switches were seen by the clients"
    );
    at.extend((0..count).map(|n| quiet_from + (n as f64 + 0.5) * every.as_secs_f64()));
    for (name, value) in [app.service, PING].into_iter().zip(&first) {
        let mut gaps = pauses(&at, &late(value));
        quiet.push((name, gaps.split_off(real)));
        switch.push((name, gaps));
    }
    Ok(())
}

/// The longest time without service of each client.
fn longest(seen: &mut Seen, service: &'static str, said: &[String]) -> Result<()> {
    for (name, said) in [service, PING].into_iter().zip(said) {
        let gap = crate::live::number(&read(said)?, "longest_gap_ms")?;
        seen.push((name, vec![gap]));
    }
    Ok(())
}

/// `xl reboot` of ours, and `xl destroy` with `xl create`.
fn restarts(
    bench: &Bench,
    app: &App<'_>,
    times: usize,
    reboot: &mut Seen,
    create: &mut Seen,
) -> Result<()> {
    let host = bench.xen.host();
    let mut config = ours(app.image, app.address, None);
    config.name = format!("restarts-{}", app.address);
    let domain = Staying::start(host, config, app.serves.clone(), BACK)?;
    for _ in 0..times {
        for (by_reboot, seen) in [(true, &mut *reboot), (false, &mut *create)] {
            let command = match by_reboot {
                true => format!("xl reboot {}", domain.name()),
                false => format!(
                    "xl destroy {} && xl create -q {}",
                    domain.name(),
                    domain.config()
                ),
            };
            let said = beside(
                &bench.xen,
                app.address,
                &clients(app.service, app.address, IMPATIENT),
                |_| {
                    thread::sleep(QUIET);
                    let before = domain.domid()?;
                    host.exec_for(&command, BACK)?.check()?;
                    domain.wait(BACK, || {
                        Ok(domain.domid()?.is_some_and(|id| Some(id) != before))
                    })?;
                    thread::sleep(QUIET);
                    Ok(())
                },
            )
            .with_context(|| command.clone())?;
            longest(seen, app.service, &said)?;
        }
    }
    Ok(())
}

/// The clients of both services of the Linux domain; ping once.
fn linux_clients() -> [Client; 3] {
    let [udp, _] = clients(UDP, LINUX, IMPATIENT);
    let [http, ping] = clients(HTTP, LINUX, IMPATIENT);
    [udp, http, ping]
}

fn linux_longest(seen: &mut Seen, said: &[String]) -> Result<()> {
    for (name, said) in [UDP, HTTP, PING].into_iter().zip(said) {
        let gap = crate::live::number(&read(said)?, "longest_gap_ms")?;
        seen.push((name, vec![gap]));
    }
    Ok(())
}

const LINUX_SERVES: &str = "echo here | busybox nc -w 2 10.0.0.37 7 | grep -q here && \
                            curl -sf -m 2 -o /dev/null http://10.0.0.37/1k";

/// Another text each time its kernel starts.
fn boot_id(bench: &Bench) -> Result<String> {
    let ask = format!("curl -sf -m 2 http://{LINUX}/boot");
    Ok(bench.xen.host().exec(&ask)?.stdout)
}

fn linux_reboots(bench: &Bench, programs: &Programs, times: usize) -> Result<Seen> {
    let mut seen = Seen::new();
    let host = bench.xen.host();
    let config = programs.domain(DomainType::Pvh, LINUX);
    let domain = Staying::start(host, config, LINUX_SERVES.into(), BACK)?;
    for _ in 0..times {
        let said = beside(&bench.xen, LINUX, &linux_clients(), |_| {
            thread::sleep(QUIET);
            let before = domain.domid()?;
            host.exec(&format!("xl reboot {}", domain.name()))?
                .check()?;
            domain.wait(BACK, || {
                Ok(domain.domid()?.is_some_and(|id| Some(id) != before))
            })?;
            thread::sleep(QUIET);
            Ok(())
        })
        .context("xl reboot of Linux")?;
        linux_longest(&mut seen, &said)?;
    }
    Ok(seen)
}

/// kexec of Linux into the same kernel with the same initrd; and its parts in ms: until the old
/// kernel is down, until the toolstack lets the new one run, until that answers ping.
fn kexecs(bench: &Bench, programs: &Programs, times: usize) -> Result<(Seen, Vec<[f64; 3]>)> {
    let host = bench.xen.host();
    let config = programs.domain(DomainType::Hvm, LINUX);
    let domain = Staying::start(host, config, LINUX_SERVES.into(), BACK)?;
    // It fetches what it is to start from dom0.
    let files = Files::serve(host, domain.config())?;
    let name = domain.name();
    let load = format!(
        "cd /tmp && wget -q {url}/{name}.kernel && wget -q {url}/{name}.ramdisk && \
         kexec -l {name}.kernel --initrd={name}.ramdisk --reuse-cmdline && touch /www/loaded",
        url = Files::URL
    );
    let loaded = format!("curl -sf -m 2 http://{LINUX}/loaded");
    let (mut seen, mut parts) = (Seen::new(), Vec::new());
    for _ in 0..times {
        domain.type_line(&load)?;
        domain
            .wait(BACK, || Ok(host.exec(&loaded)?.success()))
            .context("Linux cannot load a kernel for kexec")?;
        let before = boot_id(bench)?;
        ensure!(!before.is_empty(), "Linux does not serve /boot");
        let [udp, http, ping] = linux_clients();
        let log = Client(format!(
            "(tail -n 0 -F /var/log/xen/xl-{name}.log 2>/dev/null & echo $! >STOP.tail; wait) |
                 while read -r line; do echo \"$(date +%s.%N) $line\"; done &
             while [ ! -e STOP ]; do sleep 0.2; done; kill $(cat STOP.tail); wait"
        ));
        let said = beside(&bench.xen, LINUX, &[udp, http, ping, log], |_| {
            thread::sleep(QUIET);
            domain.type_line("kexec -e")?;
            domain.wait(BACK, || {
                let now = boot_id(bench)?;
                Ok(!now.is_empty() && now != before)
            })?;
            thread::sleep(QUIET);
            Ok(())
        })
        .context("kexec of Linux")?;
        linux_longest(&mut seen, &said)?;
        parts.push(kexec_parts(&read(&said[2])?, &said[3])?);
    }
    drop(files);
    Ok((seen, parts))
}

/// A web server in dom0 for the domains on its bridge, with the files of those that stay; ends when
/// this is dropped.
struct Files<'a> {
    host: &'a XenHost,
}

impl<'a> Files<'a> {
    const URL: &'static str = "http://10.0.0.1:8080";
    const PID: &'static str = "/tmp/segue/files.pid";

    fn serve(host: &'a XenHost, config: &str) -> Result<Files<'a>> {
        let folder = config.rsplit_once('/').map_or("/", |(folder, _)| folder);
        let pid = Self::PID;
        host.exec(&format!(
            "setsid busybox httpd -f -p 10.0.0.1:8080 -h {folder} >/dev/null 2>&1 </dev/null &
             echo $! >{pid}; sleep 1; kill -0 $(cat {pid})"
        ))?
        .check()
        .context("a web server in dom0")?;
        Ok(Files { host })
    }
}

impl Drop for Files<'_> {
    fn drop(&mut self) {
        // It ends with the lab at the latest.
        let _ = self.host.exec(&format!("kill $(cat {})", Self::PID));
    }
}

/// From ping's longest gap and what `xl`'s daemon said.
fn kexec_parts(ping: &Value, log: &str) -> Result<[f64; 3]> {
    let gaps = late(ping);
    let longest = gaps.iter().max_by(|a, b| a.1.total_cmp(&b.1));
    let (end, ms) = longest.context("ping saw no gap")?;
    let said = |what: &str| -> Result<f64> {
        let line = log.lines().find(|line| line.contains(what));
        let at = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        at.with_context(|| format!("xl did not say '{what}':\n{log}"))
    };
    let (down, up) = (
        said("has shut down, reason code 5")?,
        said("Waiting for domain")?,
    );
    let begin = end - ms / 1000.0;
    Ok([down - begin, up - down, end - up].map(|seconds| seconds * 1000.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_stands_beside_kexec() {
        let mut rows = [
            Row::new("image switch", format!("{SWITCH}: {PING}"), 30.0, "ms"),
            Row::of_peer(
                "image switch",
                format!("{KEXEC}: {PING}"),
                "Linux",
                20_000.0,
                "ms",
            ),
        ];
        beside_kexec(&mut rows);
        assert_eq!(rows[0].ratio, Some(0.0015));
        assert_eq!(rows[0].met, Some(false));
        let mut alone = [rows[0].clone()];
        beside_kexec(&mut alone);
        assert_eq!(alone[0].ratio, rows[0].ratio);
    }

    #[test]
    fn a_kexec_has_three_parts() {
        let ping = serde_json::json!({"late": [[90.0, 12.0], [130.0, 29000.0]]});
        let log = "103.5 Domain 6 has shut down, reason code 5 0x5\n\
                   104.0 Action for shutdown reason code 5 is soft-reset\n\
                   110.5 Waiting for domain x (domid 6) to die [pid 8]\n";
        assert_eq!(kexec_parts(&ping, log).unwrap(), [2500.0, 7000.0, 19500.0]);
        assert!(kexec_parts(&ping, "").is_err());
    }
}
