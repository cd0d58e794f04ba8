//! A domain that stays over its own restarts, as services are run.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use segue_lab::{AfterEnd, DomainConfig, XenHost};

/// A domain that `xl` starts anew when it ends; removed when this is dropped.
pub struct Staying<'a> {
    host: &'a XenHost,
    name: String,
    config: String,
    /// A command that succeeds when it serves.
    serves: String,
}

impl<'a> Staying<'a> {
    /// Starts it and waits until it serves.
    pub fn start(
        host: &'a XenHost,
        mut domain: DomainConfig,
        serves: String,
        limit: Duration,
    ) -> Result<Staying<'a>> {
        domain.after_end = AfterEnd::Restart;
        let name = domain.name.clone();
        let deployed = host.deploy(&domain, true)?;
        let staying = Staying {
            host,
            name,
            config: deployed.config,
            serves,
        };
        staying.wait(limit, || Ok(true))?;
        Ok(staying)
    }

    /// Waits until it serves, and this is so.
    pub fn wait(&self, limit: Duration, mut and: impl FnMut() -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !(and()? && self.host.exec(&self.serves)?.success()) {
            ensure!(
                start.elapsed() < limit,
                "{} does not serve after {} s: `{}` fails; its last lines:\n{}",
                self.name,
                limit.as_secs(),
                self.serves,
                self.console()
            );
            thread::sleep(Duration::from_millis(500));
        }
        Ok(())
    }

    /// Removes it, creates it, and tells the seconds from there until it serves.
    pub fn create_anew(&self, limit: Duration) -> Result<f64> {
        let (name, config, serves) = (&self.name, &self.config, &self.serves);
        // Measured there: a round trip by ssh takes longer than some domains.
        let said = self
            .host
            .exec_for(
                &format!(
                    "xl destroy {name} && begin=$(date +%s.%N) && xl create -q {config} || exit 1
                     until {serves}; do sleep 0.02; done
                     echo $begin $(date +%s.%N)"
                ),
                limit,
            )?
            .check()?
            .stdout;
        let times: Vec<f64> = said.split_whitespace().flat_map(str::parse).collect();
        match times[..] {
            [begin, end] => Ok(end - begin),
            _ => bail!("no times: {said}"),
        }
    }

    /// Its number in Xen; none while there is no such domain.
    pub fn domid(&self) -> Result<Option<u32>> {
        let said = self.host.exec(&format!("xl domid {}", self.name))?.stdout;
        Ok(said.trim().parse().ok())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its configuration on the host.
    pub fn config(&self) -> &str {
        &self.config
    }

    /// Types a line on its console.
    pub fn type_line(&self, line: &str) -> Result<()> {
        let id = self.domid()?.context("the domain is gone")?;
        let line = line.replace('\'', r"'\''");
        self.host
            .exec(&format!(
                "tty=$(xenstore-read /local/domain/{id}/console/tty) && printf '%s\\r' '{line}' >\"$tty\""
            ))?
            .check()?;
        Ok(())
    }

    /// The last lines that it printed.
    pub fn console(&self) -> String {
        let log = format!("tail -n 30 /var/log/xen/console/guest-{}.log", self.name);
        self.host
            .exec(&log)
            .map_or(String::new(), |output| output.stdout)
    }
}

impl Drop for Staying<'_> {
    fn drop(&mut self) {
        let (name, config) = (&self.name, &self.config);
        let files = config.trim_end_matches(".cfg");
        // It is gone with the lab at the latest.
        let _ = self.host.exec(&format!(
            "xl destroy {name}; rm -f {files}.cfg {files}.kernel {files}.ramdisk"
        ));
    }
}
