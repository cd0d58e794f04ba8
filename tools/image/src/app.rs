//! Builds an app for the image target with cargo, then its files.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use cargo_metadata::{Message, MetadataCommand};
use segue_kernel::image::{Name, PublicKey, Version};

use crate::files::{self, FilesError};
use crate::keys;
use crate::{Options, Output, Report, build, write, xl};

/// The target of everything in an image.
pub const TARGET: &str = "x86_64-unknown-hermit";

/// Arguments of cargo for everything that is built for the image target: std is built along, as
/// small as it gets. They are unstable, so cargo and rustc run with `RUSTC_BOOTSTRAP=1`.
pub const CARGO_ARGUMENTS: &[&str] = &[
    "--profile=image",
    "--target=x86_64-unknown-hermit",
    "-Zbuild-std=std,panic_abort",
    "-Zbuild-std-features=optimize_for_size,compiler-builtins-mem",
];

/// An app to build.
#[derive(Clone, Debug)]
pub struct App {
    /// Its package.
    pub name: String,
    /// The image's version; the package's if `None`.
    pub version: Option<String>,
    /// Features of the package.
    pub features: Vec<String>,
    /// How app, runtime and kernel are optimised, as rustc's `-C opt-level`; `None` as the profile says.
    pub opt_level: Option<String>,
    /// Keys that the image is to trust. Without any it is open: it takes any bundle.
    pub trust: Vec<PublicKey>,
    /// Where the files go; made if it is not there.
    pub out_dir: PathBuf,
    /// Folder of the workspace, or one below it.
    pub folder: PathBuf,
}

/// What was built of an app.
#[derive(Clone, Debug)]
pub struct AppReport {
    /// The linked image, with sections and debug information.
    pub linked: PathBuf,
    /// The image's files.
    pub files: Report,
    /// xl configuration for an HVM domain.
    pub hvm_config: Output,
    /// xl configuration for a PVH domain.
    pub pvh_config: Output,
}

/// Why an app was not built.
#[derive(Debug)]
#[non_exhaustive]
pub enum AppError {
    /// cargo could not be asked about the workspace.
    Metadata(cargo_metadata::Error),
    /// The workspace has no such package.
    NoPackage {
        /// The name.
        name: String,
        /// The packages below `apps/`.
        apps: Vec<String>,
    },
    /// The package's name is no image name.
    Name(String),
    /// The version is none that an image can have.
    Version(String),
    /// cargo could not be started.
    Spawn(io::Error),
    /// cargo failed; it has said why.
    Cargo(ExitStatus),
    /// The package has no program of its own name.
    NoProgram(String),
    /// The image's files could not be made.
    Image(crate::Error),
    /// The app's files could not be packed.
    Files(FilesError),
}

impl fmt::Display for AppError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Metadata(error) => write!(f, "cargo metadata: {error}"),
            Self::NoPackage { name, apps } => {
                write!(f, "there is no app '{name}'; apps: {}", apps.join(", "))
            }
            Self::Name(name) => write!(
                f,
                "'{name}' is no image name: a-z, 0-9 and '-', at most 31 characters"
            ),
            Self::Version(version) => write!(
                f,
                "'{version}' is no version: at most 31 visible ASCII characters"
            ),
            Self::Spawn(error) => write!(f, "cannot start cargo: {error}"),
            Self::Cargo(status) => write!(f, "cargo build ended with {status}"),
            Self::NoProgram(name) => write!(f, "package '{name}' has no program '{name}'"),
            Self::Image(error) => write!(f, "{error}"),
            Self::Files(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for AppError {}

impl From<crate::Error> for AppError {
    fn from(error: crate::Error) -> Self {
        Self::Image(error)
    }
}

impl From<FilesError> for AppError {
    fn from(error: FilesError) -> Self {
        Self::Files(error)
    }
}

/// Builds an app and writes its files and xl configurations.
///
/// cargo's progress and messages go to stderr.
pub fn build_app(app: &App) -> Result<AppReport, AppError> {
    let metadata = MetadataCommand::new()
        .cargo_path(cargo())
        .current_dir(&app.folder)
        .no_deps()
        .exec()
        .map_err(AppError::Metadata)?;
    let package = metadata
        .packages
        .iter()
        .find(|package| package.name.as_str() == app.name);
    let Some(package) = package else {
        let apps = metadata.workspace_root.join("apps");
        let below = |path: &cargo_metadata::camino::Utf8Path| path.starts_with(&apps);
        return Err(AppError::NoPackage {
            name: app.name.clone(),
            apps: metadata
                .packages
                .iter()
                .filter(|package| below(&package.manifest_path))
                .map(|package| package.name.to_string())
                .collect(),
        });
    };
    let name = Name::new(&app.name).ok_or_else(|| AppError::Name(app.name.clone()))?;
    let version = app
        .version
        .clone()
        .unwrap_or_else(|| package.version.to_string());
    let version = Version::new(&version).ok_or(AppError::Version(version))?;

    let root = metadata.workspace_root.as_std_path();
    let folder = package.manifest_path.with_file_name("files");
    let target = metadata.target_directory.as_std_path();
    let mut sections = Vec::new();
    if folder.is_dir() {
        let archive = files::pack(folder.as_std_path(), files::time_of_sources()?)?;
        let folder = target.join("files");
        sections.push(files::place(
            &archive,
            &folder,
            &app.name,
            files::EXTENSION,
        )?);
    }
    if !app.trust.is_empty() {
        let bytes: Vec<u8> = app.trust.iter().flat_map(|key| key.0).collect();
        let folder = target.join("trust");
        sections.push(files::place(&bytes, &folder, &app.name, keys::EXTENSION)?);
    }
    let linked = link(app, root, &sections)?;
    let files = build(&Options {
        elf: linked.clone(),
        name,
        version,
        out_dir: app.out_dir.clone(),
        trust: Some(app.trust.clone()),
    })?;
    let config = |kind: xl::Kind, kernel: &Output, file: String| -> Result<Output, AppError> {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let text = xl::config(
            kind,
            name.as_str(),
            version.as_str(),
            &absolute(&kernel.path),
            &absolute(&files.bundle.path),
        );
        Ok(write(&app.out_dir.join(file), text.as_bytes())?)
    };
    let hvm_config = config(xl::Kind::Hvm, &files.img, format!("{name}.cfg"))?;
    let pvh_config = config(xl::Kind::Pvh, &files.elf, format!("{name}.pvh.cfg"))?;
    Ok(AppReport {
        linked,
        files,
        hvm_config,
        pvh_config,
    })
}

/// Runs cargo and returns the path of what it linked, with files that become sections as they are.
fn link(app: &App, root: &Path, sections: &[PathBuf]) -> Result<PathBuf, AppError> {
    let mut command = Command::new(cargo());
    command
        // The flags for the target and the linker script are found from there.
        .current_dir(root)
        // For this child alone: set for host builds, it would make cargo build them anew.
        .env("RUSTC_BOOTSTRAP", "1")
        // `cargo rustc` is `cargo build`, with arguments for the last step.
        .args(["rustc", "--message-format=json-render-diagnostics"])
        .args(["--package", &app.name, "--bin", &app.name])
        .args(CARGO_ARGUMENTS)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    if let Some(level) = &app.opt_level {
        for package in [app.name.as_str(), "segue", "segue-kernel"] {
            let key = format!("profile.image.package.{package}.opt-level");
            // A number stands without quotes there, a letter with.
            let value = match level.parse::<u8>() {
                Ok(number) => number.to_string(),
                Err(_) => format!("{level:?}"),
            };
            command.args(["--config", &format!("{key}={value}")]);
        }
    }
    if !app.features.is_empty() {
        command.args(["--features", &app.features.join(",")]);
    }
    if !sections.is_empty() {
        // The linker takes each file as it is for a section, which linker/image.ld places.
        command.args(["--", "-Clink-arg=--format=binary"]);
        for file in sections {
            let mut argument = OsString::from("-Clink-arg=");
            argument.push(file);
            command.arg(argument);
        }
        command.arg("-Clink-arg=--format=default");
    }
    let mut child = command.spawn().map_err(AppError::Spawn)?;
    let mut linked = None;
    if let Some(stdout) = child.stdout.take() {
        for message in Message::parse_stream(BufReader::new(stdout)).map_while(Result::ok) {
            if let Message::CompilerArtifact(artifact) = message
                && artifact.target.name == app.name
                && let Some(executable) = artifact.executable
            {
                linked = Some(executable.into_std_path_buf());
            }
        }
    }
    let status = child.wait().map_err(AppError::Spawn)?;
    if !status.success() {
        return Err(AppError::Cargo(status));
    }
    linked.ok_or_else(|| AppError::NoProgram(app.name.clone()))
}

/// The cargo that runs us, if one does.
fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
