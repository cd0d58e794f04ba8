//! The image that a domain boots, on its Xen host: found by the domain's UUID, replaced at once or
//! not at all.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use segue_kernel::image::{BuildId, Bundle};
use segue_lab::Lab;

use crate::host::HostOption;
use crate::upgrade::beside;

/// The image to be replaced, and by what.
pub struct BootImage {
    lab: Lab,
    path: String,
    /// `None`: what is in the bundle.
    local: Option<PathBuf>,
}

/// Finds the file that a domain boots, and what is to take its place.
pub fn find(
    xen_host: &str,
    domain: [u8; 16],
    bundle: &Path,
    given: Option<&Path>,
    build: &BuildId,
) -> anyhow::Result<BootImage> {
    let lab = HostOption::named(xen_host).lasting()?;
    let host = lab.host();
    let listed = host.exec("xl list -l")?.check()?;
    let uuid = uuid::Uuid::from_bytes(domain).to_string();
    let (kind, kernel) = boots(&listed.stdout, &uuid)
        .with_context(|| format!("{xen_host}: no domain {uuid} runs there that boots a kernel"))?;
    let local = match (kind.as_str(), given) {
        (_, Some(given)) => Some(given.to_owned()),
        ("pvh", None) => None,
        _ => Some(beside(bundle)),
    };
    if let Some(local) = &local {
        let name = || {
            format!(
                "the image for --xen-host (--boot-image): {}",
                local.display()
            )
        };
        let bytes = std::fs::read(local).with_context(name)?;
        if !bytes.windows(build.0.len()).any(|bytes| *bytes == build.0) {
            bail!(
                "{} is not the image in {}: give the right one with --boot-image",
                local.display(),
                bundle.display()
            );
        }
    }
    // What a link leads to is replaced, not the link.
    let command = format!("readlink -e {}", quoted(&kernel));
    let path = host.exec(&command)?.check();
    let path = path.with_context(|| format!("{xen_host}: {kernel}, which the domain boots"))?;
    Ok(BootImage {
        lab,
        path: path.stdout.trim_end_matches('\n').to_owned(),
        local,
    })
}

impl BootImage {
    /// Puts the image there: written beside it, on the disk, then in its place. Gives its path.
    pub fn replace(&self, bundle: &[u8]) -> anyhow::Result<String> {
        let mut file = None;
        let local = match &self.local {
            Some(local) => local.as_path(),
            None => {
                let temporary = file.insert(tempfile::NamedTempFile::new()?);
                temporary.write_all(Bundle::parse(bundle)?.image())?;
                temporary.path()
            }
        };
        let new = format!("{}.segue-new", self.path);
        self.lab.host().put(local, &new)?;
        let (new, path) = (quoted(&new), quoted(&self.path));
        self.lab
            .host()
            .exec(&format!(
                "chmod --reference={path} {new} && sync {new} && mv -f {new} {path} && \
                 sync \"$(dirname {path})\""
            ))?
            .check()?;
        Ok(self.path.clone())
    }
}

/// For the shell on the Xen host.
fn quoted(path: &str) -> String {
    format!("'{}'", path.replace('\'', r"'\''"))
}

/// Type and kernel of the domain with this UUID, by what `xl list -l` says.
fn boots(list: &str, uuid: &str) -> Option<(String, String)> {
    let list: Vec<serde_json::Value> = serde_json::from_str(list).ok()?;
    let config = list.iter().find_map(|domain| {
        let config = domain.get("config")?;
        let found = config.pointer("/c_info/uuid")?.as_str()?;
        found.eq_ignore_ascii_case(uuid).then_some(config)
    })?;
    let text = |at| Some(config.pointer(at)?.as_str()?.to_owned());
    let kind = text("/c_info/type")?;
    Some((kind, text("/b_info/kernel")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_domain_is_found_among_others() {
        let list = r#"[
          {"domid": 0, "config": {"c_info": {"type": "pv", "uuid": "00"}, "b_info": {}}},
          {"domid": 3, "config": {
            "c_info": {"type": "pvh", "name": "kv", "uuid": "0B4CD9B1-7a9e-4a6c-9d0e-3a4f6f6f6f01"},
            "b_info": {"kernel": "/srv/kv.elf"}}}]"#;
        let uuid = "0b4cd9b1-7a9e-4a6c-9d0e-3a4f6f6f6f01";
        assert_eq!(
            boots(list, uuid),
            Some(("pvh".into(), "/srv/kv.elf".into()))
        );
        assert_eq!(boots(list, "00"), None);
        assert_eq!(boots("[]", uuid), None);
        assert_eq!(boots("none", uuid), None);
    }
}
