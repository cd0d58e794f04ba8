//! Domains that stay: their files are on the host, and they outlive who started them.

use std::io::Write;
use std::time::Duration;

use crate::domain::DomainConfig;
use crate::error::{LabError, Result};
use crate::xen_host::{COMMAND_TIMEOUT, XenHost};

/// Where the files of domains that stay are on a host: `NAME.cfg`, which `xl create` takes, and
/// `NAME.kernel` and `NAME.ramdisk`, which it names.
pub const DEPLOYED_DIR: &str = "/var/lib/segue";

/// A domain that was started to stay.
#[derive(Debug, Clone)]
pub struct Deployed {
    /// Its number in Xen.
    pub domid: u32,
    /// Its xl configuration on the host.
    pub config: String,
    /// Its image on the host.
    pub kernel: String,
}

/// Where xenconsoled keeps its logs.
const CONSOLE_LOGS: &str = "/var/log/xen/console";

/// What the script below ends with when it has changed nothing.
const IS_THERE: i32 = 3;
const HAS_FILES: i32 = 4;

impl XenHost {
    /// Writes a domain's files to the host and starts it. `replace` lets the files of an earlier
    /// deployment of that name be overwritten; a domain that is there is never touched.
    ///
    /// # Errors
    /// [`LabError::DomainIsThere`] and [`LabError::Deployed`] with nothing changed; when a file
    /// cannot be copied; when `xl` refuses.
    pub fn deploy(&self, domain: &DomainConfig, replace: bool) -> Result<Deployed> {
        let name = &domain.name;
        let place = |what: &str| format!("{DEPLOYED_DIR}/{name}.{what}");
        let (kernel, ramdisk, config) = (place("kernel"), place("ramdisk"), place("cfg"));
        let has_ramdisk = domain.ramdisk.is_some();
        let text = domain.render(&kernel, has_ramdisk.then_some(&*ramdisk))?;
        // First of all: nothing is copied in vain.
        self.nothing_in_the_way(name, &config, replace)?;
        let part = |path: &str| format!("{path}.new");
        self.put(&domain.kernel, &part(&kernel))?;
        if let Some(local) = &domain.ramdisk {
            self.put(local, &part(&ramdisk))?;
        }
        let ramdisk = match has_ramdisk {
            true => format!("mv {} {ramdisk}", part(&ramdisk)),
            false => format!("rm -f {ramdisk}"),
        };
        // A lock, as two may deploy at once (xl's daemon must not inherit it); each file gets its
        // name when it is whole.
        let script = format!(
            "{checks}\
             cat >{config}.new <<'SEGUE_END'\n{text}SEGUE_END\n\
             mv {config}.new {config} && mv {kernel}.new {kernel} && {ramdisk} || exit 1\n\
             xl create -q {config} 2>&1 9>&- || {{ rm -f {config}; \
             tail -n 20 /var/log/xen/qemu-dm-{name}.log 2>/dev/null; exit 1; }}\n\
             xl domid {name}\n",
            checks = checks(name, &config, replace)
        );
        let output = self.locked(&script)?;
        self.explain(output.status, &output.stdout, name, &config)?;
        let failed = |output: &crate::Output| LabError::Remote {
            command: format!("xl create {config}"),
            status: output.status,
            output: format!("{}{}\nconfiguration:\n{text}", output.stdout, output.stderr),
        };
        if !output.success() {
            return Err(failed(&output));
        }
        let number = output.stdout.lines().last().and_then(|l| l.parse().ok());
        let domid = number.ok_or_else(|| failed(&output))?;
        Ok(Deployed {
            domid,
            config,
            kernel,
        })
    }

    /// The xl configuration that [`deploy`](Self::deploy) would write.
    ///
    /// # Errors
    /// When a value cannot be written into one.
    pub fn deployment(domain: &DomainConfig) -> Result<String> {
        let place = |what: &str| format!("{DEPLOYED_DIR}/{}.{what}", domain.name);
        let ramdisk = domain.ramdisk.as_ref().map(|_| place("ramdisk"));
        domain.render(&place("kernel"), ramdisk.as_deref())
    }

    /// Writes what the domain of that name has printed, from the log that xenconsoled keeps; with
    /// `follow` also what it prints from now on, until `out` or the host fails. Where xenconsoled
    /// keeps no log, a domain that runs is followed on its console.
    ///
    /// # Errors
    /// [`LabError::NoConsoleLog`], and when the connection or `out` fails.
    pub fn show_console_log(&self, name: &str, follow: bool, out: &mut dyn Write) -> Result<()> {
        let log = format!("{CONSOLE_LOGS}/guest-{name}.log");
        let quoted = shell_words::quote(&log);
        let script = match follow {
            false => format!("test -r {quoted} || exit {HAS_FILES}; exec cat {quoted}"),
            // What runs there ends when our end of its input does.
            true => format!(
                "if test -r {quoted}; then tail -n +1 -F {quoted} 2>/dev/null & \
                 elif xl domid {name} >/dev/null 2>&1; then xl console -t pv {name} </dev/null & \
                 else exit {HAS_FILES}; fi; \
                 shown=$!; cat >/dev/null; kill $shown",
                name = shell_words::quote(name)
            ),
        };
        let failed = LabError::file("standard output");
        let channel = self.stream(&script)?;
        let Some(mut stdout) = channel.child().take_stdout() else {
            return Ok(());
        };
        // Held until all is read.
        let _stdin = channel.child().take_stdin();
        std::io::copy(&mut stdout, out)
            .and_then(|_| out.flush())
            .map_err(failed)?;
        let status = channel.child().wait().map_err(LabError::file("ssh"))?;
        match status.code() {
            Some(HAS_FILES) => Err(LabError::NoConsoleLog {
                name: name.to_owned(),
                log,
                host: self.connection().target.clone(),
            }),
            Some(0) => Ok(()),
            status => Err(LabError::Connection {
                host: self.connection().target.clone(),
                detail: format!("ssh ended with {}", status.unwrap_or(255)),
            }),
        }
    }

    fn nothing_in_the_way(&self, name: &str, config: &str, replace: bool) -> Result<()> {
        let script = format!(
            "mkdir -p {DEPLOYED_DIR} || exit 1\n{}",
            checks(name, config, replace)
        );
        let output = self.script(&script, COMMAND_TIMEOUT)?;
        self.explain(output.status, &output.stdout, name, config)?;
        output.check().map(drop)
    }

    /// Runs a script while no other deployment goes on.
    fn locked(&self, script: &str) -> Result<crate::Output> {
        let script = format!("exec 9>{DEPLOYED_DIR}/lock; flock 9\n{script}");
        self.script(&script, COMMAND_TIMEOUT + Duration::from_secs(60))
    }

    fn explain(&self, status: i32, said: &str, name: &str, config: &str) -> Result<()> {
        let host = self.connection().target.clone();
        match status {
            IS_THERE => Err(LabError::DomainIsThere {
                name: name.to_owned(),
                domid: said.trim().parse().unwrap_or(0),
                host,
            }),
            HAS_FILES => Err(LabError::Deployed {
                config: config.to_owned(),
                host,
            }),
            _ => Ok(()),
        }
    }
}

/// Shell lines that end a script when something is in the way.
fn checks(name: &str, config: &str, replace: bool) -> String {
    let files = match replace {
        true => String::new(),
        false => format!("test ! -e {config} || exit {HAS_FILES}\n"),
    };
    // Its own shell is the only one to be ended by the failure of `xl domid`.
    format!("if xl domid {name} 2>/dev/null; then exit {IS_THERE}; fi\n{files}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{AfterEnd, DomainType};

    #[test]
    fn a_deployment_names_its_own_files() {
        let mut domain = DomainConfig::new(DomainType::Hvm, "target/images/httpd.img");
        domain.name = "web".into();
        domain.after_end = AfterEnd::Restart;
        domain.ramdisk = Some("more.cpio".into());
        let text = XenHost::deployment(&domain).unwrap();
        for line in [
            "kernel=\"/var/lib/segue/web.kernel\"",
            "ramdisk=\"/var/lib/segue/web.ramdisk\"",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} in {text}");
        }
        domain.name = "$(reboot)".into();
        assert!(XenHost::deployment(&domain).is_err());
    }

    #[test]
    fn only_files_may_be_replaced() {
        let never = checks("web", "/c", false);
        assert!(never.contains("exit 3") && never.contains("exit 4"));
        let files = checks("web", "/c", true);
        assert!(files.contains("exit 3") && !files.contains("exit 4"));
    }
}
