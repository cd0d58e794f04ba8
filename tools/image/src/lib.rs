//! Turns a linked image into the files that are started or sent to a running domain.
//!
//! | file | for | what it is |
//! |---|---|---|
//! | `NAME.elf` | `xl` with `type="pvh"`, QEMU | the image with nothing but what is loaded |
//! | `NAME.bundle` | a running image | that, after a bundle header |
//! | `NAME.img` | `xl` with `type="hvm"`, GRUB, kexec | a Linux bzImage: setup code, then memory |
//!
//! The linker leaves name, version and build id in the identity note empty; [`build`] fills them
//! in. What it makes was accepted by the kernel's own [`verify`], or it makes nothing.
//!
//! An app's folder `files` becomes a cpio archive in the image ([`pack`]), the tree that it reads
//! files from.
//!
//! [`build_app`] does it all, from an app's package on: it runs cargo for the image target first.

mod app;
mod bzimage;
mod error;
mod files;
pub mod keys;
mod stripped;
#[cfg(test)]
mod tests;
pub mod xl;

use std::fs;
use std::path::{Path, PathBuf};

pub use app::{App, AppError, AppReport, CARGO_ARGUMENTS, TARGET, build_app};
pub use error::Error;
pub use files::{FilesError, pack};
use segue_kernel::image::{
    Ident, Image, Manifest, Name, Policy, PublicKey, Version, assemble, ident_range, origin, verify,
};

/// What to build, and from what.
#[derive(Clone, Debug)]
pub struct Options {
    /// The linked image, with sections.
    pub elf: PathBuf,
    /// Its name: names the files too.
    pub name: Name,
    /// Its version.
    pub version: Version,
    /// Where the files go; made if it is not there.
    pub out_dir: PathBuf,
    /// Keys that the image was linked with, to be trusted; `None` if that is not known.
    pub trust: Option<Vec<PublicKey>>,
}

/// A file that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Where it is.
    pub path: PathBuf,
    /// Its length, bytes.
    pub len: u64,
}

/// What was built.
#[derive(Clone, Debug)]
pub struct Report {
    /// What the bundle's manifest says.
    pub manifest: Manifest,
    /// The Linux bzImage.
    pub img: Output,
    /// The stripped ELF file.
    pub elf: Output,
    /// The bundle.
    pub bundle: Output,
}

/// The three files, in memory.
#[derive(Clone, Debug)]
pub struct Files {
    /// The Linux bzImage.
    pub img: Vec<u8>,
    /// The stripped ELF file.
    pub elf: Vec<u8>,
    /// The bundle.
    pub bundle: Vec<u8>,
}

/// Reads the linked image, makes the three files and writes them.
pub fn build(options: &Options) -> Result<Report, Error> {
    let linked = fs::read(&options.elf).map_err(|error| Error::io(&options.elf, error))?;
    let files = convert(linked, &options.name, &options.version)?;
    let manifest = verify(&files.bundle, &Policy::OPEN)?.manifest;
    if let Some(trust) = &options.trust {
        let wanted: Vec<_> = trust.iter().map(PublicKey::id).collect();
        if *wanted != *manifest.trusts {
            return Err(Error::Untrusting {
                found: manifest.trusts.len(),
                wanted: wanted.len(),
            });
        }
    }

    let dir = &options.out_dir;
    fs::create_dir_all(dir).map_err(|error| Error::io(dir, error))?;
    let output = |extension: &str, bytes: &[u8]| {
        write(&dir.join(format!("{}.{extension}", options.name)), bytes)
    };
    Ok(Report {
        manifest,
        img: output("img", &files.img)?,
        elf: output("elf", &files.elf)?,
        bundle: output("bundle", &files.bundle)?,
    })
}

/// Makes the three files from the bytes of a linked image.
pub fn convert(mut linked: Vec<u8>, name: &Name, version: &Version) -> Result<Files, Error> {
    let desc = ident_range(&linked)?;
    Ident::stamp(&mut linked[desc], name, version);
    let setup = bzimage::setup_code(&linked)?;
    let mut elf = stripped::strip(&linked)?;
    if let Some(section) = stripped::origin(&linked, &elf)? {
        origin::keep(&mut elf, section)?;
    }
    // The file is complete but for its build id.
    Ident::stamp_build(&mut elf)?;
    let image = Image::parse(&elf)?;
    let img = bzimage::bzimage(setup, &elf, &image)?;

    let mut manifest = Manifest::describe(&elf)?;
    let trusts = keys::of_linked(&linked)?;
    manifest.trusts = trusts.iter().map(PublicKey::id).collect();
    let bundle = assemble(&manifest, &elf, None)?;
    verify(&bundle, &Policy::OPEN)?;
    drop(image);
    Ok(Files { img, elf, bundle })
}

/// Writes beside the file and renames: whoever reads it sees the old one or the new one.
///
/// # Errors
/// It can't be written; what was there is as it was.
pub fn write(path: &Path, bytes: &[u8]) -> Result<Output, Error> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    fs::write(&part, bytes).map_err(|error| Error::io(&part, error))?;
    fs::rename(&part, path).map_err(|error| Error::io(path, error))?;
    Ok(Output {
        path: path.to_owned(),
        len: bytes.len() as u64,
    })
}
