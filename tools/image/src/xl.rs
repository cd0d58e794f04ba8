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
    let (kind, what, start) = match kind {
        // For HVM, xl takes the serial port for the console unless told otherwise.
        Kind::Hvm => (
            "hvm",
            "an HVM domain",
            format!("xl create {name}.cfg && xl console -t pv {name}"),
        ),
        Kind::Pvh => (
            "pvh",
            "a PVH domain",
            format!("xl create -c {name}.pvh.cfg"),
        ),
    };
    let (kernel, bundle) = (quote(kernel), quote(bundle));
    let mut text = format!(
        "\
# {name} {version} as {what}. Start it on a Xen host as root:
#     {start}
# Written by `segue build`, which writes it anew each time: change a copy.

name = \"{name}\"
type = \"{kind}\"

# Change this to where the file is on the Xen host.
kernel = {kernel}

memory = 64
vcpus = 1

# Options of the runtime (segue.KEY=VALUE), two dashes, the app's own arguments.
#cmdline = \"segue.log=info -- --an-argument\"

# Bundles the app can replace itself by; several one after the other in one file.
#ramdisk = {bundle}

# A network card; needs a bridge of that name.
#vif = [ 'bridge=xenbr0' ]

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
# No screen. The console is Xen's own (`xl console -t pv`); the serial port, which `xl create -c`
# shows, has only what is said before that is found.
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
