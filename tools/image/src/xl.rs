//! xl configurations for an image, to be used as they are on a Xen host.

use std::path::Path;

/// How the domain is virtualised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// With a device model.
    Hvm,
    /// Without.
    Pvh,
}

/// The text of a configuration, see xl.cfg(5).
#[must_use]
pub fn config(kind: Kind, name: &str, version: &str, kernel: &Path, bundle: &Path) -> String {
    let (file, kind, what) = match kind {
        Kind::Hvm => (format!("{name}.cfg"), "hvm", "an HVM domain"),
        Kind::Pvh => (format!("{name}.pvh.cfg"), "pvh", "a PVH domain"),
    };
    let (kernel, bundle) = (quote(kernel), quote(bundle));
    let mut text = format!(
        "\
# {name} {version} as {what}. Start it on a Xen host as root:
#     xl create -c {file}
# Written by `segue build`, which writes it anew each time: change a copy.

name = \"{name}\"
type = \"{kind}\"

# Change this to where the file is on the Xen host.
kernel = {kernel}

memory = 64
vcpus = 1

# Options of the runtime, then the app's own arguments.
#cmdline = \"segue.log=info -- --an-argument\"

# Bundles the app can replace itself by; several one after the other in one file.
#ramdisk = {bundle}

# A network card; needs a bridge of that name.
#vif = [ 'bridge=xenbr0' ]
#disk = [ 'format=raw, vdev=xvda, access=rw, target=/path/to/a/disk.img' ]

# What Xen does when the domain ends, and why it may. xl destroys a domain that restarts
# again and again within seconds; with \"preserve\" a crashed one stays to be looked at.
on_poweroff = \"destroy\"
on_reboot = \"restart\"
on_crash = \"restart\"
on_watchdog = \"restart\"
"
    );
    if kind == "hvm" {
        text.push_str(
            "
# No screen. The serial port shows the first lines and a panic; the console is Xen's own.
vga = \"none\"
nographic = 1
serial = \"pty\"
",
        );
    }
    text
}

/// Quotes a path as xl reads it: a backslash escapes.
fn quote(path: &Path) -> String {
    let text = path.display().to_string();
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_says_what_xl_needs() {
        let (kernel, bundle) = (Path::new("/x/a \"b\".img"), Path::new("/x/a.bundle"));
        let hvm = config(Kind::Hvm, "a", "1", kernel, bundle);
        for line in [
            "name = \"a\"",
            "type = \"hvm\"",
            "kernel = \"/x/a \\\"b\\\".img\"",
            "#ramdisk = \"/x/a.bundle\"",
            "on_poweroff = \"destroy\"",
            "on_reboot = \"restart\"",
            "on_crash = \"restart\"",
            "on_watchdog = \"restart\"",
            "vga = \"none\"",
        ] {
            assert!(hvm.lines().any(|l| l == line), "{line} is not in\n{hvm}");
        }
        let pvh = config(Kind::Pvh, "a", "1", kernel, bundle);
        assert!(pvh.contains("type = \"pvh\"") && !pvh.contains("vga"));
    }
}
