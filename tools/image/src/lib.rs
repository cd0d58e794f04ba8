//! Turns a linked image into the files that are started or sent to a running domain.
//!
//! | file | for | what it is |
//! |---|---|---|
//! | `NAME.elf` | `xl` with `type="pvh"`, QEMU | the image with nothing but what is loaded |
//! | `NAME.bundle` | a running image | that, after a bundle header |
//! | `NAME.img` | `xl` with `type="hvm"`, GRUB, kexec | a Linux bzImage: setup code, then memory |
//!
//! The linker leaves name and version in the identity note empty; [`build`] fills them in. What
//! it makes was accepted by the kernel's own [`verify`], or it makes nothing.
//!
//! An app's folder `files` becomes a cpio archive in the image ([`pack`]), the tree that it reads
//! files from.
//!
//! [`build_app`] does it all, from an app's package on: it runs cargo for the image target first.

mod app;
mod bzimage;
mod error;
mod files;
mod stripped;
#[cfg(test)]
mod tests;
pub mod xl;

use std::fs;
use std::path::{Path, PathBuf};

pub use app::{App, AppError, AppReport, CARGO_ARGUMENTS, TARGET, build_app};
pub use error::Error;
pub use files::{FilesError, pack};
use segue_kernel::image::{BundleHeader, Ident, Image, Name, Version, ident_range, verify};

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
    /// What the image says of itself.
    pub ident: Ident,
    /// Memory it takes up, bytes.
    pub span: u64,
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
    let (_, image) = verify(&files.bundle)?;

    let dir = &options.out_dir;
    fs::create_dir_all(dir).map_err(|error| Error::io(dir, error))?;
    let output = |extension: &str, bytes: &[u8]| {
        write(&dir.join(format!("{}.{extension}", options.name)), bytes)
    };
    Ok(Report {
        ident: *image.ident(),
        span: image.span(),
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
    let elf = stripped::strip(&linked)?;
    let image = Image::parse(&elf)?;
    let img = bzimage::bzimage(setup, &elf, &image)?;

    let header = BundleHeader {
        name: *name,
        version: *version,
        abi: image.ident().abi,
        min_memory: image.span(),
    };
    let mut bundle = header.encode(&elf).to_vec();
    bundle.extend_from_slice(&elf);
    bundle.extend_from_slice(BundleHeader::padding(&elf));
    verify(&bundle)?;
    drop(image);
    Ok(Files { img, elf, bundle })
}

/// Writes beside the file and renames: whoever reads it sees the old one or the new one.
fn write(path: &Path, bytes: &[u8]) -> Result<Output, Error> {
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
