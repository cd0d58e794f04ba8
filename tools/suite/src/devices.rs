//! Tests of devices over a switch: a server replaces itself, and a client in dom0 asks it.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use segue_lab::{EndReason, Line};

use crate::guest::{Event, Guest, Kind, Run, events, tail};
use crate::test::{Case, Shared, case, parts_add_up, powered_off};

/// How long a client in dom0 may take; it is stopped when its domain has ended.
const CLIENT_LIMIT: Duration = Duration::from_secs(1500);

/// What has to be the same after any number of switches.
const AUDITED: [&str; 5] = ["free_frames", "ports", "carved", "reservation", "grants"];

/// All tests of this file; if `brief`, with fewer switches.
pub fn cases(brief: bool) -> Vec<Case> {
    // What is left behind by a switch does not depend on the kind: once a hundred are enough.
    let (few, many_of_them) = if brief { (11, 31) } else { (16, 101) };
    vec![
        case("devices::hvm_2_switches", move |s| {
            many(s, Kind::Hvm, "10.0.0.41", few)
        }),
        case("devices::pvh_2_many_switches", move |s| {
            many(s, Kind::Pvh, "10.0.0.42", many_of_them)
        }),
        case("devices::hvm_2_stay_when_it_fails", |s| {
            fails(s, Kind::Hvm, "10.0.0.43")
        }),
        case("devices::pvh_2_stay_when_it_fails", |s| {
            fails(s, Kind::Pvh, "10.0.0.44")
        }),
        case("devices::pvh_2_asked_while_it_switches", |s| {
            asked(s, "commit", "10.0.0.46")
        }),
        case("devices::pvh_2_asked_while_it_fails", |s| {
            asked(s, "fail", "10.0.0.47")
        }),
        case("devices::the_blackout_does_not_count_them", blackout),
    ]
}

/// Runs a client in dom0 beside `with`, which ends it: there is a file then by the name that it is
/// given.
fn beside<T>(
    s: &Shared,
    address: &str,
    client: impl Fn(&str) -> String,
    with: impl FnOnce() -> Result<T>,
) -> Result<(T, String)> {
    let stop = format!("/tmp/stop-{address}");
    s.xen.host().exec(&format!("rm -f {stop}"))?.check()?;
    let script = client(&stop);
    thread::scope(|scope| {
        let client = scope.spawn(|| s.xen.host().script(&script, CLIENT_LIMIT));
        let result = with();
        let stopped = s.xen.host().exec(&format!("touch {stop}"));
        let output = client.join().map_err(|_| anyhow::anyhow!("no client"))?;
        stopped?.check()?;
        Ok((result?, output?.stdout))
    })
}

/// A client with one connection that asks line by line, until it is stopped.
fn lines(address: &str, stop: &str) -> String {
    format!(
        "python3 - <<'END'\n\
         import os, socket, time\n\
         while not os.path.exists('{stop}'):\n\
         \x20try:\n\
         \x20 s = socket.create_connection(('{address}', 80), timeout=2)\n\
         \x20 break\n\
         \x20except OSError:\n\
         \x20 time.sleep(0.2)\n\
         s.settimeout(30)\n\
         f = s.makefile('r')\n\
         count, longest = 0, 0\n\
         while not os.path.exists('{stop}'):\n\
         \x20start = time.time()\n\
         \x20try:\n\
         \x20 s.sendall(b'line %d\\n' % count)\n\
         \x20 line = f.readline()\n\
         \x20except OSError as e:\n\
         \x20 line = ''\n\
         \x20if not line: break\n\
         \x20assert line == 'line %d\\n' % count, line\n\
         \x20longest = max(longest, time.time() - start)\n\
         \x20count += 1\n\
         \x20time.sleep(0.005)\n\
         print('lines=%d longest_ms=%d end' % (count, longest * 1000))\n\
         END\n"
    )
}

/// Many generations, each of which somebody in dom0 has asked which one it is.
fn many(s: &Shared, kind: Kind, address: &str, until: u64) -> Result<()> {
    let images = [&s.images.stdtest, &s.images.stdtest_next];
    let guest = Guest::new(images[0], kind, 2)
        .module(&s.images.stdtest_bundles)
        .network(address)
        .cmdline(format!("-- --switch-every 0 --until {until}"));
    let client = |stop: &str| {
        format!(
            "(while [ ! -e {stop} ] && ! ping -c 1 -W 1 {address} > /dev/null; do :; done\n\
             exec ping -n -i 0.05 -W 30 {address}) > /tmp/ping-{address} & ping=$!\n\
             ({lines}) > /tmp/lines-{address} 2>&1 & lines=$!\n\
             last=\nwhile [ ! -e {stop} ]; do\n\
             new=$(curl -s --connect-timeout 3 -m 20 http://{address}/)\n\
             if [ \"$new\" ] && [ \"$new\" != \"$last\" ]; then echo $new; last=$new; fi\n\
             sleep 0.1\ndone\n\
             kill -INT $ping; wait $lines; cat /tmp/lines-{address}\nsed -n 's/.*icmp_seq=\\([0-9]*\\) ttl=.*/seq=\\1/p' /tmp/ping-{address}\n",
            lines = lines(address, stop)
        )
    };
    let (run, said) = beside(s, address, client, || guest.run(&s.xen))?;
    powered_off(&run)?;
    switched(&run, until, |from| &images[from as usize % 2].ident)?;
    let mut up = Vec::new();
    for generation in 1..=until {
        let line = run.one(&format!("stdtest: devices generation={generation} "))?;
        run.explain(line.is("outcome", "ok"))?;
        up.push(line.number("up_ms")?);
    }
    let seen: BTreeSet<&str> = said.lines().collect();
    for generation in 1..=until {
        let it = format!("generation={generation}");
        run.check(seen.contains(&*it), || {
            format!("curl in dom0 got no answer from {it}, only: {said}")
        })?;
    }
    let second = run.one("stdtest: audit=devices generation=2 ")?;
    let last = run.one(&format!("stdtest: audit=devices generation={until} "))?;
    run.explain(same(&second, &last))?;
    run.explain(adopted(&run, until))?;
    let line = said.lines().find(|l| l.starts_with("lines="));
    let all = run.events("stdtest: devices connections=");
    let kept = all
        .skip(1)
        .all(|e| e.number("connections").is_ok_and(|n| n >= 1));
    run.check(kept, || "the connection did not last".into())?;
    s.note(format!(
        "{kind}: a connection that lasted: {}",
        line.unwrap_or(&said)
    ));
    let (answers, longest) = answered(&said).map_err(|e| e.context(tail(run.lines())))?;
    s.note(format!(
        "{kind}: {answers} pings, 20 a second, over {} switches: at most {longest} lost in a row",
        until - 1
    ));
    s.note(format!(
        "{kind}: {} switches with a network device; it is up again after {} ms (median); blackout {} us (median); {}",
        until - 1,
        median(up),
        median(blackouts(&run)?),
        last.text
    ));
    Ok(())
}

/// The device was connected once, and each later image has gone on with its rings, grants and ports.
fn adopted(run: &Run, until: u64) -> Result<()> {
    let count = |start| run.events(start).count() as u64;
    ensure!(
        count("segue: vif=0 connected") == 1 && count("segue: vif=0 disconnected") == 0,
        "the device was connected more than once"
    );
    let adopted = count("segue: vif=0 adopted");
    ensure!(adopted == until - 1, "{adopted} times adopted");
    let mut nodes = run.events("stdtest: vif=0 nodes=");
    let first = nodes.next().context("no nodes")?;
    for other in nodes {
        other.is("nodes", first.get("nodes")?)?;
    }
    Ok(())
}

/// How many pings were answered, and how many were not in a row, between the first and the last.
fn answered(said: &str) -> Result<(usize, u64)> {
    let seqs = said
        .lines()
        .filter_map(|l| l.strip_prefix("seq=")?.parse().ok());
    let seqs: Vec<u64> = seqs.collect();
    let gaps = seqs.windows(2).map(|w| w[1].saturating_sub(w[0] + 1));
    let longest = gaps.max().context("no ping was answered")?;
    ensure!(longest == 0, "{longest} pings in a row were not answered");
    Ok((seqs.len(), longest))
}

/// An audit is what another was.
pub fn same(first: &Event, last: &Event) -> Result<()> {
    for key in AUDITED {
        last.is(key, first.get(key)?)?;
    }
    Ok(())
}

/// Each switch was a whole one, to the right image.
pub fn switched<'a>(run: &Run, until: u64, image: impl Fn(u64) -> &'a str) -> Result<()> {
    let mut from = 1;
    for switch in run.events("segue: switch ") {
        let check = || {
            switch.is("from", from)?;
            switch.is("image", image(from))?;
            parts_add_up(&switch)
        };
        run.explain(check())?;
        from += 1;
    }
    run.check(from == until, || {
        format!("{} switches instead of {}", from - 1, until - 1)
    })
}

fn blackouts(run: &Run) -> Result<Vec<u64>> {
    let switches = run.events("segue: switch ");
    switches.map(|s| s.number("blackout_us")).collect()
}

fn median(mut numbers: Vec<u64>) -> u64 {
    numbers.sort_unstable();
    numbers.get(numbers.len() / 2).copied().unwrap_or_default()
}

/// Rounds of trials that fail.
const ROUNDS: usize = 3;
/// Trials in a round.
const TRIALS: usize = 8;

/// Images that give up on trial, and a bundle that is refused: one connection lives through it all,
/// and afterwards devices still come and go.
fn fails(s: &Shared, kind: Kind, address: &str) -> Result<()> {
    let guest = Guest::new(&s.images.stdtest, kind, 2)
        .module(&s.images.stdtest_bundles)
        .network(address)
        .cmdline(format!("-- --fail {ROUNDS}"));
    let client = |stop: &str| lines(address, stop);
    let (lines, said) = beside(s, address, client, || {
        let mut domain = guest.start(&s.xen)?;
        domain.wait_for("stdtest: devices trials are over")?;
        // The client has its last answer, and ends.
        let wait = format!("touch /tmp/stop-{address}; sleep 2");
        s.xen.host().exec(&wait)?.check()?;
        let name = domain.name().to_owned();
        let xl = |what: String| s.xen.host().exec(&what)?.check();
        xl(format!("xl network-detach {name} 0"))?;
        domain.wait_for("segue: vif=0 disconnected")?;
        xl(format!("xl network-attach {name} type=vif bridge=xenbr0"))?;
        domain.wait_for("segue: vif=0 connected")?;
        xl(format!("curl -sS --retry 5 -m 30 http://{address}/"))?;
        domain.stop()
    })?;
    let check = || -> Result<()> {
        let mut count = 0;
        for trial in events(&lines, "stdtest: stays trial=") {
            trial.is("outcome", "ok")?;
            count += 1;
        }
        ensure!(count == TRIALS * ROUNDS, "only {count} trials");
        let one = |start| {
            let mut found = events(&lines, start);
            found.next().ok_or(anyhow::anyhow!("no line '{start}…'"))
        };
        let before = one("stdtest: audit=devices ")?;
        same(&before, &one("stdtest: audit=devices-after ")?)?;
        ensure!(
            said.starts_with("lines=") && said.ends_with(" end\n"),
            "the connection did not last: {said}"
        );
        Ok(())
    };
    check().map_err(|e| e.context(tail(&lines)))?;
    s.note(format!(
        "{kind}: {} switches that failed, with one connection: {}",
        TRIALS * ROUNDS,
        said.trim()
    ));
    Ok(())
}

/// What the toolstack does in the middle of a switch is honoured by the winner, once: the domain is
/// paused, its device detached, and it is asked to end.
fn asked(s: &Shared, outcome: &str, address: &str) -> Result<()> {
    let begin = || {
        Guest::new(&s.images.stdtest, Kind::Pvh, 2)
            .module(&s.images.stdtest_bundles)
            .network(address)
            .cmdline(format!("-- --step {outcome}"))
            .start_until(&s.xen, "stdtest: step=prepare")
    };
    let over = match outcome {
        "commit" => "segue: commit generation=2",
        _ => "segue: resume generation=1",
    };
    let once = |lines: &[Line], start: &str| -> Result<()> {
        let count = events(lines, start).count();
        ensure!(count == 1, "{count} times '{start}'\n{:#}", tail(lines));
        Ok(())
    };
    // The app takes 10 s to say what it hands over.
    let mut domain = begin()?;
    let id = domain.domid();
    let xl = |what: String| s.xen.host().exec(&what)?.check().map(drop);
    xl(format!("xl pause {id} && sleep 2 && xl unpause {id}"))?;
    xl(format!("xl network-detach {id} 0 > /dev/null 2>&1 &"))?;
    domain.wait_for("segue: vif=0 disconnected")?;
    xl(format!(
        "while xl network-list {id} | grep -q '^0 '; do sleep 0.5; done; \
         xl network-attach {id} type=vif bridge=xenbr0"
    ))?;
    domain.wait_for("segue: vif=0 connected")?;
    xl(format!("curl -sS --retry 5 -m 30 http://{address}/"))?;
    let lines = domain.stop()?;
    once(&lines, "segue: vif=0 disconnected")?;
    once(&lines, over)?;

    let (word, reason) = match outcome {
        "commit" => ("shutdown", EndReason::PowerOff),
        _ => ("reboot", EndReason::Reboot),
    };
    let domain = begin()?;
    xl(format!("xl {word} {}", domain.domid()))?;
    let run = domain.finish(|_| ())?;
    run.ended(reason)?;
    run.explain(once(run.lines(), "segue: control request="))?;
    run.explain(once(run.lines(), over))
}

/// With no device, one and three the switch is the same.
fn blackout(s: &Shared) -> Result<()> {
    let until = 6;
    let images = [&s.images.stdtest, &s.images.stdtest_next];
    let mut all = Vec::new();
    for count in [0, 1, 3] {
        let arguments = format!("-- --switch-every 0 --until {until} --unasked");
        let run = Guest::new(images[0], Kind::Pvh, 2)
            .module(&s.images.stdtest_bundles)
            .networks("10.0.0.45", count)
            .cmdline(arguments)
            .run(&s.xen)?;
        powered_off(&run)?;
        switched(&run, until, |from| &images[from as usize % 2].ident)?;
        let done = format!("stdtest: devices generation={until} ");
        run.explain(run.one(&done)?.is("outcome", "ok"))?;
        let second = run.one("stdtest: audit=devices generation=2 ")?;
        let last = run.one(&format!("stdtest: audit=devices generation={until} "))?;
        run.explain(same(&second, &last))?;
        let numbers = |key| -> Result<Vec<u64>> {
            let switches = run.events("segue: switch ");
            switches.map(|s| s.number(key)).collect()
        };
        let us = median(numbers("blackout_us")?);
        s.note(format!(
            "blackout with {count} network devices: {us} us (median)"
        ));
        all.push((numbers("hypercalls")?, numbers("exits")?));
    }
    ensure!(
        all.windows(2).all(|w| w[0] == w[1]),
        "hypercalls and exits of each switch with 0, 1 and 3 devices: {all:?}"
    );
    Ok(())
}
