//! What the toolstack asks of a domain while it runs, and what is typed on its console.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use segue_lab::{EndReason, Line, Output};

use crate::guest::{Event, Guest, Kind, Running, Xen};
use crate::images::Images;

/// What a test does.
pub type Test = fn(&Xen, &Images, Kind) -> Result<()>;

/// All tests of this file, with their names.
pub fn tests() -> Vec<(String, Test, Kind)> {
    let both: [(&str, Test); 2] = [("console_input", console_input), ("goes_on", goes_on)];
    let mut all = Vec::new();
    for kind in Kind::ALL {
        for (name, test) in both {
            all.push((format!("control::{kind}_{name}"), test, kind));
        }
    }
    // What follows takes the same way with both kinds.
    let one: [(&str, Test, Kind); 5] = [
        ("shutdown_at_once", shutdown_at_once, Kind::Hvm),
        ("notice", notice, Kind::Pvh),
        ("grace_is_over", grace_is_over, Kind::Pvh),
        ("server_ends", server_ends, Kind::Pvh),
        ("exit_status", exit_status, Kind::Pvh),
    ];
    for (name, test, kind) in one {
        all.push((format!("control::{kind}_{name}"), test, kind));
    }
    all
}

fn app(images: &Images, kind: Kind, vcpus: u32, words: &str) -> Guest {
    Guest::new(&images.stdtest, kind, vcpus).cmdline(format!("segue.grace=4 -- {words}"))
}

/// Runs `xl` with the domain's number in place of `ID`.
fn xl(xen: &Xen, domain: &Running<'_>, words: &str) -> Result<Output> {
    let words = words.replace("ID", &domain.domid().to_string());
    Ok(xen.host().exec(&format!("xl {words} 2>&1"))?)
}

fn xl_works(xen: &Xen, domain: &Running<'_>, words: &str) -> Result<()> {
    let output = xl(xen, domain, words)?;
    ensure!(output.success(), "xl {words} says:\n{}", output.stdout);
    Ok(())
}

/// Lines, the end of input, and what comes after it; poll sees input when there is some.
fn console_input(xen: &Xen, images: &Images, kind: Kind) -> Result<()> {
    let mut domain = app(images, kind, 2, "--stdin").start(xen)?;
    let silent = domain.wait_for("stdtest: stdin events=")?;
    ensure!(silent.text.ends_with("=0"), "{silent}");
    domain.type_text("hello, unikernel\r")?;
    let typed = domain.wait_for("stdtest: stdin events=")?;
    ensure!(typed.text.ends_with("=1"), "{typed}");
    says(&mut domain, "line=\"hello, unikernel\"")?;
    // A line in two pieces, an empty one, one longer than the ring.
    domain.type_text("two ")?;
    domain.type_text("pieces\n\r")?;
    let long = "x".repeat(3000);
    domain.type_text(&format!("{long}\r\u{4}"))?;
    says(&mut domain, "line=\"two pieces\"")?;
    says(&mut domain, "line=\"\"")?;
    says(&mut domain, &format!("line=\"{long}\""))?;
    says(&mut domain, "end")?;
    domain.type_text("more\r")?;
    let run = domain.finish(|_| ())?;
    run.one("stdtest: after the end line=\"more\\n\"")?;
    run.ended(EndReason::PowerOff)
}

/// The app's next line has to be this.
fn says(domain: &mut Running<'_>, wanted: &str) -> Result<()> {
    let line = domain.wait_for("stdtest: ")?;
    let said = line.text.trim_start_matches("stdtest: ");
    ensure!(said == wanted, "it did not say {wanted}: {line}");
    Ok(())
}

fn tick_of(line: &Line) -> Result<(u64, u64, u64)> {
    let event = Event { text: &line.text };
    Ok((
        event.number("tick")?,
        event.number("up_ms")?,
        event.number("wall_ms")?,
    ))
}

/// Waits for a tick that is later than all that were printed before now.
fn ticks_on(domain: &mut Running<'_>) -> Result<()> {
    domain.skip();
    domain.wait_for("stdtest: tick=").map(drop)
}

/// `xl save` is refused at once, `sysrq`, `trigger` and words that nobody knows do nothing, a pause
/// does not hold the clocks up, and a reboot is a reboot.
fn goes_on(xen: &Xen, images: &Images, kind: Kind) -> Result<()> {
    let mut domain = app(images, kind, 2, "--tick").start_until(xen, "stdtest: tick=5")?;

    let start = Instant::now();
    let save = xl(xen, &domain, "save ID /tmp/segue.save")?;
    let took = start.elapsed();
    xen.host().exec("rm -f /tmp/segue.save")?;
    ensure!(!save.success(), "xl save did not fail:\n{}", save.stdout);
    ensure!(
        took < Duration::from_secs(30),
        "xl save took {:.0} s to fail:\n{}",
        took.as_secs_f64(),
        save.stdout
    );
    ticks_on(&mut domain).context("after xl save")?;

    xl_works(xen, &domain, "sysrq ID h")?;
    domain.wait_for("segue: control ignored=\"sysrq h\"")?;
    let path = format!("/local/domain/{}/control/shutdown", domain.domid());
    xen.host()
        .exec(&format!("xenstore-write {path} nonsense"))?
        .check()?;
    domain.wait_for("segue: control ignored=\"shutdown nonsense\"")?;
    let left = xen.host().exec(&format!("xenstore-read {path}"))?.check()?;
    ensure!(left.stdout.trim().is_empty(), "left: {}", left.stdout);
    for trigger in ["nmi", "power", "sleep"] {
        // Not all are for all kinds of domain: what counts is that it goes on.
        xl(xen, &domain, &format!("trigger ID {trigger}"))?;
    }
    ticks_on(&mut domain).context("after xl trigger")?;

    // Paused for three seconds: both clocks have gone on, the ticks have not.
    xl_works(xen, &domain, "pause ID")?;
    domain.skip();
    let before = domain.last_line("stdtest: tick=")?;
    std::thread::sleep(Duration::from_secs(3));
    xl_works(xen, &domain, "unpause ID")?;
    let after = domain.wait_for("stdtest: tick=")?;
    let ((tick, up, wall), (next, up_after, wall_after)) = (tick_of(&before)?, tick_of(&after)?);
    ensure!(next == tick + 1, "{before}\n{after}");
    ensure!(
        up_after >= up + 3000,
        "the clock stood still: {before}\n{after}"
    );
    let apart = (wall_after - wall).abs_diff(up_after - up);
    ensure!(
        apart < 500,
        "the clocks differ by {apart} ms: {before}\n{after}"
    );

    xl_works(xen, &domain, "reboot ID")?;
    let run = domain.finish(|_| ())?;
    run.one("segue: control request=reboot grace_s=0")?;
    run.one("segue: shutdown reason=reboot")?;
    run.ended(EndReason::Reboot)
}

/// An app that asks for no notice is ended at once.
fn shutdown_at_once(xen: &Xen, images: &Images, kind: Kind) -> Result<()> {
    let domain = app(images, kind, 1, "--tick").start_until(xen, "stdtest: tick=2")?;
    xl_works(xen, &domain, "shutdown -w ID")?;
    let run = domain.finish(|_| ())?;
    run.one("segue: control request=poweroff grace_s=0")?;
    run.ended(EndReason::PowerOff)
}

/// An app that asks for notices ends by itself, with the reason it was asked for.
fn notice(xen: &Xen, images: &Images, kind: Kind) -> Result<()> {
    for (words, request, reason) in [
        ("reboot ID", "Reboot", EndReason::Reboot),
        ("shutdown -w ID", "Poweroff", EndReason::PowerOff),
    ] {
        let domain = app(images, kind, 1, "--heed").start_until(xen, "stdtest: heeds")?;
        xl_works(xen, &domain, words)?;
        let run = domain.finish(|_| ())?;
        run.one(&format!("stdtest: asked={request}"))?;
        run.one(&format!("stdtest: again=Some({request})"))?;
        let over = run.events("segue: control grace_over").count();
        run.check(over == 0, || "the grace time was over".into())?;
        run.ended(reason)?;
    }
    Ok(())
}

/// One that doesn't end is ended, with that reason. `halt` is a power-off.
fn grace_is_over(xen: &Xen, images: &Images, kind: Kind) -> Result<()> {
    let mut domain = app(images, kind, 1, "--heed-not").start_until(xen, "stdtest: heeds")?;
    let path = format!("/local/domain/{}/control/shutdown", domain.domid());
    xen.host()
        .exec(&format!("xenstore-write {path} halt"))?
        .check()?;
    let asked = domain.wait_for("stdtest: asked=Halt")?;
    let over = domain.wait_for("segue: control grace_over request=halt")?;
    let took = over.at.saturating_sub(asked.at);
    ensure!(
        took >= Duration::from_secs(3) && took < Duration::from_secs(30),
        "it took {:.1} s, the grace time is 4 s",
        took.as_secs_f64()
    );
    domain.finish(|_| ())?.ended(EndReason::PowerOff)
}

/// A server answers, and ends by itself when it is asked to.
fn server_ends(xen: &Xen, images: &Images, kind: Kind) -> Result<()> {
    let address = "10.0.0.31";
    let guest = Guest::new(&images.httpd, kind, 2).network(address);
    let domain = guest.start_serving(xen)?;
    // A connection that stays open, idle, must not hold it up.
    let command = format!(
        "curl -sS -m 60 http://{address}/metrics >/dev/null && \
         {{ (sleep 60 | busybox nc {address} 80) >/dev/null 2>&1 </dev/null & sleep 1; }}"
    );
    xen.host().exec(&command)?.check()?;
    xl_works(xen, &domain, "shutdown -w ID")?;
    let run = domain.finish(|_| ())?;
    run.one("segue: control request=poweroff grace_s=10")?;
    let over = run.events("segue: control grace_over").count();
    run.check(over == 0, || "it did not end by itself".into())?;
    run.ended(EndReason::PowerOff)
}

/// A status that is not 0 is on the console, and the domain ends as crashed.
fn exit_status(xen: &Xen, images: &Images, kind: Kind) -> Result<()> {
    for (words, status) in [("--exit 3", 3), ("--fail", 1)] {
        let run = app(images, kind, 1, words).run(xen)?;
        run.one(&format!("segue: exit status={status}"))?;
        run.one("segue: shutdown reason=crash")?;
        run.ended(EndReason::Crash)?;
    }
    let run = app(images, kind, 1, "--exit 0").run(xen)?;
    run.check(run.events("segue: exit").count() == 0, || {
        "a status of 0 is told".into()
    })?;
    run.ended(EndReason::PowerOff)
}
