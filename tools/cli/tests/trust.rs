//! Keys, signatures and statements, by the command itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use segue_kernel::image::testing::{self, TestImage};
use segue_kernel::image::{Ident, Version};
use tempfile::TempDir;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn segue(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_segue"));
        command.args(arguments).current_dir(self.0.path());
        command.output().unwrap()
    }

    /// Runs it; gives what it printed.
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

    fn bundle(&self, name: &str, version: &str) {
        let ident = Ident {
            version: Version::new(version).unwrap(),
            ..testing::ident().unwrap()
        };
        let image = TestImage {
            ident: Some(ident),
            ..TestImage::default()
        };
        fs::write(self.path(name), image.bundle()).unwrap();
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap()
}

#[test]
fn a_key_is_private_and_never_overwritten() {
    let folder = Folder::new();
    let said = folder.good(&["keygen", "release"]);
    assert!(said.starts_with("key "), "{said}");
    let mode = |name| {
        fs::metadata(folder.path(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode("release"), 0o600);
    // The public one is like any file.
    fs::write(folder.path("any"), "").unwrap();
    assert_eq!(mode("release.pub"), mode("any"));
    fs::remove_file(folder.path("any")).unwrap();
    let before = read(&folder.path("release"));
    let said = folder.bad(&["keygen", "release"]);
    assert!(
        said.contains("release exists and was left as it is"),
        "{said}"
    );
    assert_eq!(read(&folder.path("release")), before);
    // The private key is not in what is printed or handed on.
    let public = String::from_utf8(read(&folder.path("release.pub"))).unwrap();
    let secret = String::from_utf8(before).unwrap();
    let secret = secret.lines().nth(1).unwrap();
    assert!(!public.contains(secret) && !said.contains(secret));
    // Nowhere to put it.
    folder.bad(&["keygen", "none/release"]);
    assert_eq!(folder.names(), ["release", "release.pub"]);
}

#[test]
fn what_is_signed_verifies_and_nothing_else() {
    let folder = Folder::new();
    folder.good(&["keygen", "a"]);
    folder.good(&["keygen", "b"]);
    folder.bundle("one.bundle", "1.0.0");
    let unsigned = read(&folder.path("one.bundle"));

    let verify = ["verify", "--trust", "a.pub", "one.bundle"];
    let said = folder.bad(&verify);
    assert!(
        said.contains("bundle 1 is refused: it is not signed"),
        "{said}"
    );

    // To another file, and the first stays.
    folder.good(&["sign", "--key", "a", "one.bundle", "-o", "signed"]);
    assert_eq!(read(&folder.path("one.bundle")), unsigned);
    // In place.
    let said = folder.good(&["sign", "--key", "a", "one.bundle"]);
    assert!(said.starts_with("test 1.0.0: signed with key "), "{said}");
    assert_eq!(
        read(&folder.path("one.bundle")),
        read(&folder.path("signed"))
    );
    assert!(
        folder
            .good(&verify)
            .starts_with("test 1.0.0: good, signed with key ")
    );
    let said = folder.bad(&["verify", "--trust", "b.pub", "one.bundle"]);
    assert!(
        said.contains("which the running image does not trust"),
        "{said}"
    );
    let both = [read(&folder.path("a.pub")), read(&folder.path("b.pub"))].concat();
    fs::write(folder.path("both.pub"), both).unwrap();
    folder.good(&["verify", "--trust", "both.pub", "one.bundle"]);

    // Several in a file: the bad one is named.
    folder.bundle("two.bundle", "2.0.0");
    let two = [
        read(&folder.path("signed")),
        read(&folder.path("two.bundle")),
    ]
    .concat();
    fs::write(folder.path("all.bundles"), &two).unwrap();
    let output = folder.segue(&["verify", "--trust", "a.pub", "all.bundles"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("bundle 2 is refused"), "{said}");
    folder.good(&["sign", "--key", "a", "--revoke-previous", "all.bundles"]);
    let said = folder.good(&["verify", "--trust", "a.pub", "all.bundles"]);
    assert_eq!(said.lines().count(), 2);
    let said = folder.good(&["inspect", "all.bundles"]);
    assert_eq!(said.matches("revokes the one before   yes").count(), 2);

    // A flipped bit.
    let mut bad = read(&folder.path("signed"));
    let at = bad.len() - 77;
    bad[at] ^= 4;
    fs::write(folder.path("bad.bundle"), &bad).unwrap();
    let said = folder.bad(&["verify", "--trust", "a.pub", "bad.bundle"]);
    assert!(said.contains("damaged or was altered"), "{said}");
    let said = folder.bad(&["sign", "--key", "a", "bad.bundle"]);
    assert!(
        said.contains("nothing was signed, bad.bundle is as it was"),
        "{said}"
    );
    assert_eq!(read(&folder.path("bad.bundle")), bad);
    // No key where one should be.
    folder.bad(&["sign", "--key", "a.pub", "one.bundle"]);
    folder.bad(&["verify", "--trust", "a", "one.bundle"]);
    folder.bad(&["verify", "--trust", "none", "one.bundle"]);
    fs::write(folder.path("zero"), [0; 64]).unwrap();
    let said = folder.bad(&["verify", "--trust", "a.pub", "zero"]);
    assert!(said.contains("there is no bundle in it"), "{said}");
    assert!(folder.names().iter().all(|name| !name.ends_with(".part")));
}

#[test]
fn openssl_keys_are_taken() {
    let folder = Folder::new();
    // RFC 8410, section 10.3.
    fs::write(
        folder.path("key"),
        "-----BEGIN PRIVATE KEY-----\n\
         MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
         -----END PRIVATE KEY-----\n",
    )
    .unwrap();
    // Its public half, from the same place.
    fs::write(
        folder.path("key.pub"),
        "Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE= the RFC's\n",
    )
    .unwrap();
    folder.bundle("one.bundle", "1.0.0");
    folder.good(&["sign", "--key", "key", "one.bundle"]);
    folder.good(&["verify", "--trust", "key.pub", "one.bundle"]);
}

#[test]
fn inspect_shows_what_is_there() {
    let folder = Folder::new();
    folder.good(&["keygen", "a"]);
    folder.bundle("one.bundle", "1.0.0");
    let json = |name| {
        let text = folder.good(&["inspect", "--json", name]);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value[0].clone()
    };
    let value = json("one.bundle");
    assert_eq!(value["kind"], "bundle");
    assert_eq!(value["name"], "test");
    assert_eq!(value["version"], "1.0.0");
    assert_eq!(value["signed_by"], serde_json::Value::Null);
    assert_eq!(value["abi"], serde_json::json!([1, 1]));
    assert_eq!(value["min_memory"], testing::SPAN);
    assert_eq!(value["segments"].as_array().unwrap().len(), 3);
    assert_eq!(value["segments"][0]["access"], "r-x");
    let human = folder.good(&["inspect", "one.bundle"]);
    assert!(human.contains("signed by      nobody"), "{human}");
    assert!(
        human.contains("trusts         nobody: it is open"),
        "{human}"
    );

    folder.good(&["sign", "--key", "a", "one.bundle"]);
    let signed = json("one.bundle");
    let id = signed["signed_by"].as_str().unwrap();
    assert_eq!(id.len(), 16);
    assert!(folder.good(&["inspect", "one.bundle"]).contains(id));
    // Signing changes nothing but who stands for it.
    for same in [
        "build",
        "image_digest",
        "segments",
        "version",
        "bundle_bytes",
    ] {
        assert_eq!(signed[same], value[same]);
    }
    assert_ne!(signed["bundle_digest"], value["bundle_digest"]);

    fs::write(folder.path("no"), "text").unwrap();
    let said = folder.bad(&["inspect", "no"]);
    assert!(said.contains("no, bundle 1: "), "{said}");
}

#[test]
fn statements_are_for_two_bundles_a_place_and_a_time() {
    let folder = Folder::new();
    folder.good(&["keygen", "a"]);
    folder.bundle("new.bundle", "2.0.0");
    folder.bundle("old.bundle", "1.0.0");
    let uuid = "00112233-4455-6677-8899-aabbccddeeff";
    let base = [
        "allow-downgrade",
        "--key",
        "a",
        "--from",
        "new.bundle",
        "--to",
        "old.bundle",
        "-o",
        "s",
    ];
    let with = |more: &[&'static str]| [&base[..], more].concat();
    let said = folder.good(&with(&["--domain", uuid, "--for", "2h"]));
    assert!(said.contains("s: good until 2"), "{said}");
    let text = folder.good(&["inspect", "--json", "s"]);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value[0]["kind"], "downgrade");
    assert_eq!(value[0]["domain"], uuid);
    let build = |name| {
        let text = folder.good(&["inspect", "--json", name]);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value[0]["build"].clone()
    };
    assert_eq!(value[0]["from"], build("new.bundle"));
    assert_eq!(value[0]["to"], build("old.bundle"));
    let before = read(&folder.path("s"));

    // What is wrong leaves the one that is there.
    for more in [
        &["--fleet", "Blue!", "--for", "2h"][..],
        &["--fleet", "blue", "--for", "0s"],
        &["--fleet", "blue", "--for", "20years"],
    ] {
        let said = folder.bad(&with(more));
        assert!(said.contains("no statement was written"), "{said}");
    }
    let usage = |more: &[&'static str]| folder.segue(&with(more)).status.code();
    assert_eq!(usage(&["--for", "2h"]), Some(2));
    assert_eq!(usage(&["--fleet", "blue"]), Some(2));
    assert_eq!(usage(&["--domain", "7", "--for", "2h"]), Some(2));
    assert_eq!(read(&folder.path("s")), before);
    folder.good(&with(&["--fleet", "blue", "--for", "1day"]));
    assert!(
        folder
            .good(&["inspect", "s"])
            .contains("in fleet       blue")
    );
}
