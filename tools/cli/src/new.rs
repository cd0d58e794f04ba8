//! `segue new`: an app to start from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::output::outln;

/// Make a new app that builds at once.
///
/// Writes apps/NAME with Cargo.toml and src/main.rs, in the workspace that the current folder is
/// in.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  segue new ticker\n  segue new site --files\n  make image APP=site"
)]
pub struct Arguments {
    /// The app's name: a-z, 0-9 and '-', a letter first, at most 31 characters.
    name: String,
    /// Give it a folder of files, which the image then has.
    #[arg(long)]
    files: bool,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let here = std::env::current_dir().context("the current folder")?;
    let root = workspace(&here)?;
    let folder = create(&root, &arguments.name, arguments.files)?;
    let shown = folder.strip_prefix(&here).unwrap_or(&folder);
    outln!("{}: a new app", shown.display())?;
    outln!("build it:  make image APP={}", arguments.name)?;
    outln!("run it:    make run APP={}", arguments.name)?;
    Ok(ExitCode::SUCCESS)
}

/// The workspace that a folder is in: the one that has the runtime.
fn workspace(folder: &Path) -> Result<PathBuf> {
    let is_ours = |folder: &&Path| {
        folder.join("runtime/Cargo.toml").is_file() && folder.join("apps").is_dir()
    };
    match folder.ancestors().find(is_ours) {
        Some(root) => Ok(root.to_owned()),
        None => bail!(
            "{} is not in Segue's source tree: go there first",
            folder.display()
        ),
    }
}

/// Names that cargo refuses for a package or its program, or that stand for others.
const TAKEN: &[&str] = &[
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "build",
    "const",
    "continue",
    "core",
    "crate",
    "deps",
    "do",
    "dyn",
    "else",
    "enum",
    "examples",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "incremental",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "proc-macro",
    "pub",
    "ref",
    "return",
    "segue",
    "self",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "yield",
];

fn check(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > 31 {
        bail!("'{name}' is no name for an app: it should have 1 to 31 characters");
    }
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if let Some(wrong) = name.chars().find(|c| !fits(*c)) {
        bail!("'{name}' is no name for an app: {wrong:?} is not a-z, 0-9 or '-'");
    }
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) || name.ends_with('-') {
        bail!("'{name}' is no name for an app: it should start with a letter and not end with '-'");
    }
    if TAKEN.contains(&name) || name.starts_with("segue-") {
        bail!("'{name}' is no name for an app: it is taken");
    }
    Ok(())
}

/// Makes the app's folder; whole, or not at all.
fn create(root: &Path, name: &str, files: bool) -> Result<PathBuf> {
    check(name)?;
    let apps = root.join("apps");
    let folder = apps.join(name);
    if folder.symlink_metadata().is_ok() {
        bail!("{} is there already", folder.display());
    }
    // Beside the apps and not among them: cargo takes each folder there for a package.
    let part = root
        .join("target")
        .join(format!("new-{name}-{}", std::process::id()));
    let write = |path: &str, text: &str| -> Result<()> {
        let path = part.join(path);
        let parent = path.parent().unwrap_or(&part);
        fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        fs::write(&path, text).with_context(|| path.display().to_string())
    };
    let result = write("Cargo.toml", &manifest(name))
        .and_then(|()| write("src/main.rs", if files { MAIN_WITH_FILES } else { MAIN }))
        .and_then(|()| match files {
            true => write("files/greeting.txt", "hello from a file of the image\n"),
            false => Ok(()),
        })
        .and_then(|()| fs::rename(&part, &folder).with_context(|| folder.display().to_string()));
    if result.is_err() {
        let _ = fs::remove_dir_all(&part);
    }
    result.map(|()| folder)
}

fn manifest(name: &str) -> String {
    format!(
        "\
[package]
name = \"{name}\"
version = \"0.1.0\"
edition.workspace = true
rust-version.workspace = true

[lints]
workspace = true

[dependencies]
segue.workspace = true
"
    )
}

const MAIN: &str = "\
//! An app of Segue.
use segue as _;

fn main() {
    println!(\"hello from a unikernel\");
}
";

const MAIN_WITH_FILES: &str = "\
//! An app of Segue. What is in its folder `files` is at `/` in its image.
use segue as _;

fn main() -> std::io::Result<()> {
    print!(\"{}\", std::fs::read_to_string(\"/greeting.txt\")?);
    Ok(())
}
";

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// A workspace with a runtime that has nothing, so that what is made of it compiles on a host.
    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "Cargo.toml",
            "[workspace]\nresolver = \"3\"\nmembers = [\"runtime\", \"apps/*\"]\n\
             [workspace.package]\nedition = \"2024\"\nrust-version = \"1.95\"\n\
             [workspace.lints.rust]\nmissing_docs = \"deny\"\n\
             [workspace.dependencies]\nsegue = { path = \"runtime\" }\n",
        );
        write(
            "runtime/Cargo.toml",
            "[package]\nname = \"segue\"\nversion = \"0.1.0\"\nedition = \"2024\"\n",
        );
        write("runtime/src/lib.rs", "");
        fs::create_dir(root.path().join("apps")).unwrap();
        root
    }

    #[test]
    fn a_new_app_builds() {
        let root = tree();
        let plain = create(root.path(), "plain", false).unwrap();
        let with_files = create(root.path(), "with-files2", true).unwrap();
        assert!(!plain.join("files").exists());
        assert!(with_files.join("files/greeting.txt").is_file());
        let inside = workspace(&with_files.join("src")).unwrap();
        assert_eq!(inside, root.path());
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["check", "--quiet", "--offline", "--workspace"])
            .current_dir(root.path())
            .env("RUSTFLAGS", "-Dwarnings")
            .env("CARGO_TARGET_DIR", root.path().join("target"))
            .status()
            .unwrap();
        assert!(status.success());
    }

    #[test]
    fn what_is_there_stays() {
        let root = tree();
        create(root.path(), "app", false).unwrap();
        let main = root.path().join("apps/app/src/main.rs");
        fs::write(&main, "mine").unwrap();
        let error = create(root.path(), "app", true).unwrap_err().to_string();
        assert!(error.ends_with("apps/app is there already"), "{error}");
        assert_eq!(fs::read_to_string(main).unwrap(), "mine");
        let elsewhere = tempfile::tempdir().unwrap();
        let error = workspace(elsewhere.path()).unwrap_err().to_string();
        assert!(error.contains("not in Segue's source tree"), "{error}");
    }

    #[test]
    fn bad_names_are_refused_with_a_reason() {
        let root = tree();
        for (name, reason) in [
            ("", "1 to 31"),
            (&"x".repeat(32), "1 to 31"),
            ("Upper", "'U' is not"),
            ("under_score", "'_' is not"),
            ("../up", "'.' is not"),
            ("a/b", "'/' is not"),
            ("ünder", "'ü' is not"),
            ("9lives", "start with a letter"),
            ("-x", "start with a letter"),
            ("x-", "not end with"),
            ("test", "taken"),
            ("segue", "taken"),
            ("segue-kernel", "taken"),
            ("fn", "taken"),
        ] {
            let error = create(root.path(), name, false).unwrap_err().to_string();
            assert!(error.contains(reason), "{name}: {error}");
        }
        assert_eq!(fs::read_dir(root.path().join("apps")).unwrap().count(), 0);
        assert!(check(&"x".repeat(31)).is_ok());
    }
}
