//! Commands about domains, by the command itself. The Xen host is a folder: an `ssh` that runs
//! what it is told here, and an `xl` that remembers what was created.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use tempfile::TempDir;

/// Holds a connection, or runs a command with the host's paths in the folder.
const SSH: &str = r#"#!/bin/sh
for word; do
    case $word in
        ControlPath=*) control=${word#ControlPath=} ;;
        -N) hold=1 ;;
    esac
    command=$word
done
here=$(dirname "$0")
if [ "$hold" ]; then
    : >"$control"
    exec sleep 1000
fi
change="s#/var/l[io][bg]/#$here/&#g"
command=$(printf '%s\n' "$command" | sed "$change")
export PATH="$here:$PATH" here
if [ "$command" = "sh -s" ]; then
    sed "$change" | sh -s
else
    sh -c "$command"
fi
"#;

/// Domains are files `NAME.domain`.
const XL: &str = r#"#!/bin/sh
case $1 in
    info) ;;
    domid) cat "$here/$2.domain" 2>/dev/null ;;
    create)
        name=$(sed -n 's/^name="\(.*\)"$/\1/p' "$3")
        if [ "$name" = broken ]; then
            echo "libxl: no such bridge"
            exit 1
        fi
        kernel=$(sed -n 's/^kernel="\(.*\)"$/\1/p' "$3")
        test -s "$kernel" && echo 7 >"$here/$name.domain"
        ;;
esac
"#;

struct Host(TempDir);

impl Host {
    fn new() -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        for (name, text) in [("ssh", SSH), ("xl", XL)] {
            let path = host.path(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(host.path("web.elf"), b"\x7fELF, the first").unwrap();
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn segue(&self, arguments: &[&str]) -> Output {
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_segue"));
        command
            .args(arguments)
            .current_dir(self.0.path())
            .env("PATH", format!("{}:{path}", self.0.path().display()))
            .env("SEGUE_XEN_HOST", "root@xen.invalid")
            .env_remove("NO_COLOR");
        command.output().unwrap()
    }

    fn good(&self, arguments: &[&str]) -> String {
        let output = self.segue(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs it; gives what it complained of, with status 1.
    fn bad(&self, arguments: &[&str]) -> String {
        let output = self.segue(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn there(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.path("var/lib/segue").join(file)).ok()
    }
}

#[test]
fn a_domain_is_deployed_and_nothing_replaced_silently() {
    let host = Host::new();
    fs::create_dir_all(host.path("var/lib")).unwrap();
    let deploy = [
        "deploy",
        "web.elf",
        "--vcpus",
        "2",
        "--vif",
        "bridge=xenbr0",
        "--ip",
        "10.0.0.2/24",
    ];
    let said = host.good(&[&deploy[..], &["--json", "--", "--threads", "4"]].concat());
    let data: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&data["name"], &data["domid"]), (&"web".into(), &7.into()));
    assert_eq!(data["host"], "root@xen.invalid");
    assert_eq!(host.there("web.kernel").unwrap(), "\x7fELF, the first");
    let config = host.there("web.cfg").unwrap();
    for line in [
        "type=\"pvh\"",
        "vcpus=2",
        "cmdline=\"segue.ip=10.0.0.2/24 -- --threads 4\"",
        "vif=['type=vif,bridge=xenbr0']",
        "on_crash=\"restart\"",
    ] {
        assert!(config.lines().any(|l| l == line), "{line} in {config}");
    }

    // While it runs, it stays as it is; --replace is for files only.
    fs::write(host.path("web.elf"), b"\x7fELF, the second").unwrap();
    for more in [&[][..], &["--replace"]] {
        let error = host.bad(&[&deploy[..], more].concat());
        assert!(
            error.contains("domain called web") && error.contains("segue upgrade"),
            "{error}"
        );
        assert_eq!(host.there("web.kernel").unwrap(), "\x7fELF, the first");
    }
    fs::remove_file(host.path("web.domain")).unwrap();
    let error = host.bad(&deploy);
    assert!(error.contains("--replace"), "{error}");
    assert_eq!(host.there("web.kernel").unwrap(), "\x7fELF, the first");
    let said = host.good(&[&deploy[..], &["--replace"]].concat());
    assert!(
        said.contains("web runs on root@xen.invalid, domain 7"),
        "{said}"
    );
    assert_eq!(host.there("web.kernel").unwrap(), "\x7fELF, the second");
    // Nothing half-made is left.
    let names = fs::read_dir(host.path("var/lib/segue")).unwrap();
    let names: Vec<_> = names.map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

#[test]
fn what_xl_says_is_told_and_can_be_tried_again() {
    let host = Host::new();
    fs::create_dir_all(host.path("var/lib")).unwrap();
    for _ in 0..2 {
        let error = host.bad(&["deploy", "web.elf", "--name", "broken"]);
        assert!(error.contains("no such bridge"), "{error}");
    }
    let error = host.bad(&["deploy", "web.elf", "--ip", "10.0.0.2/24"]);
    assert!(error.contains("--vif"), "{error}");
    let error = host.bad(&["deploy", "nothing"]);
    assert!(error.contains("segue build nothing"), "{error}");
    let config = host.good(&["deploy", "web.elf", "--name", "x", "--dry-run"]);
    assert!(
        config.contains("kernel=\"/var/lib/segue/x.kernel\""),
        "{config}"
    );
}

#[test]
fn logs_are_shown() {
    let host = Host::new();
    let logs = host.path("var/log/xen/console");
    fs::create_dir_all(&logs).unwrap();
    fs::write(logs.join("guest-web.log"), "segue: boot\nsegue: commit\n").unwrap();
    assert_eq!(host.good(&["logs", "web"]), "segue: boot\nsegue: commit\n");
    let error = host.bad(&["logs", "other"]);
    assert!(error.contains("XENCONSOLED_TRACE"), "{error}");
}

#[test]
fn without_a_host_it_is_said_what_to_do() {
    let host = Host::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_segue"));
    command
        .args(["logs", "web"])
        .env_remove("SEGUE_XEN_HOST")
        .env("SEGUE_LAB_DIR", host.path("no-lab"));
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("segue lab up") && error.contains("--xen-host"),
        "{error}"
    );
}

#[test]
fn shells_and_man_are_served() {
    let host = Host::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            host.good(&["completion", shell]).contains("deploy"),
            "{shell}"
        );
    }
    assert!(host.good(&["man"]).contains(".TH segue 1"));
    host.good(&["man", "--out", "pages"]);
    for page in ["segue.1", "segue-deploy.1", "segue-lab-run.1"] {
        let text = fs::read_to_string(host.path("pages").join(page)).unwrap();
        assert!(text.contains("Examples"), "{page}");
    }
}

#[test]
fn there_are_no_colours_in_a_pipe() {
    let host = Host::new();
    let help = host.good(&["deploy", "--help"]);
    assert!(
        help.contains("Examples:") && !help.contains('\u{1b}'),
        "{help}"
    );
    let output = host.segue(&["deploy"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(!output.stderr.contains(&0x1b));
}

#[test]
fn results_are_data() {
    let host = Host::new();
    let said = host.good(&["--json", "keygen", "key"]);
    let data: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(data["public"], "key.pub");
    let said = host.good(&["lab", "status", "--json"]);
    let data: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(data["host"], "root@xen.invalid");
}
