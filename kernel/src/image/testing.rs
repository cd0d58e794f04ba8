//! For tests, on the host and in a guest: a small image, and what can be wrong with a bundle.
//!
//! [`MUTATIONS`] work on any good bundle of an image that has RELA relocations and thread-local
//! storage, not only on those made here.
#![allow(
    clippy::arithmetic_side_effects,
    reason = "test code: works on good bundles, and is not part of an image"
)]

extern crate alloc;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use elf::abi;

use super::{
    AbiRange, BuildId, BundleError, Ident, Manifest, Name, SigningKey, VerifyError, Version,
    assemble, bundle, ident_range, padding,
};

/// What the test image is linked at.
pub const LINK_BASE: u64 = 0x20_0000;
/// Bytes of memory the test image takes up.
pub const SPAN: u64 = 0x4000;
/// Offset of its entry from its base.
pub const ENTRY: u64 = 0x20;
/// Offset of its data segment from its base.
pub const DATA: u64 = 0x2000;
/// Offset of its template for thread-local storage from its base.
pub const TLS: u64 = RODATA + 0xc0;

const RODATA: u64 = 0x1000;
const DATA_LEN: usize = 0x40;
/// A word in the read-only segment that is relocated.
const RELRO: u64 = RODATA + 0xd0;
const RELA: u64 = RODATA + 0x1a0;
const RELR: u64 = RODATA + 0x200;
const DYNAMIC: u64 = RODATA + 0x110;
const RODATA_LEN: usize = 0x210;

/// Words that are relocated, and to what: offsets from the base.
pub const RELOCATIONS: [(u64, u64); 3] = [(DATA, 0x10), (DATA + 9, DATA), (RELRO, SPAN)];
/// The same for what is in the RELR table; the words are in the data segment.
pub const RELR_RELOCATIONS: [(u64, u64); 3] = [
    (DATA + 0x18, 0),
    (DATA + 0x20, 0x18),
    (DATA + 0x30, SPAN - 1),
];

/// A small image: code, read-only data, data with a zeroed part, thread-local storage.
#[derive(Clone, Debug)]
pub struct TestImage {
    /// What it says of itself, with its build id unless there is one; `None` leaves name, version
    /// and build id empty, as the linker does.
    pub ident: Option<Ident>,
    /// Has a RELR table too.
    pub relr: bool,
    /// Has sections, as the linker makes them: debug information, and this one as `.setup`.
    pub setup: Option<Vec<u8>>,
    /// What section `.segue.trust` holds then.
    pub trust: Vec<u8>,
}

/// Name `test`, version 1.0.0, ABI 1.
pub fn ident() -> Option<Ident> {
    Some(Ident {
        abi: AbiRange::new(1, 1)?,
        trial: true,
        name: Name::new("test")?,
        version: Version::new("1.0.0")?,
        build: BuildId::default(),
    })
}

/// A key that everybody has: number `n` of them.
#[must_use]
pub fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

impl Default for TestImage {
    fn default() -> Self {
        Self {
            ident: ident(),
            relr: true,
            setup: None,
            trust: Vec::new(),
        }
    }
}

impl TestImage {
    /// The ELF file.
    pub fn build(&self) -> Vec<u8> {
        // File offsets are not page-aligned: nothing demands it.
        const TEXT_AT: usize = 0x200;
        const TEXT_LEN: usize = 0x30;
        const RODATA_AT: usize = TEXT_AT + TEXT_LEN;
        const DATA_AT: usize = RODATA_AT + RODATA_LEN;

        let mut rodata = Vec::new();
        rodata.extend(note(
            b"Xen\0",
            18,
            &((LINK_BASE + 0x10) as u32).to_le_bytes(),
        ));
        let mut desc = [0; Ident::DESC_LEN];
        match self.ident {
            Some(ident) => desc = ident.encode(),
            None => put(&mut desc, 0, &[1, 0, 0, 0, 1, 0, 0, 0]),
        }
        rodata.extend(note(Ident::NOTE_OWNER, Ident::NOTE_TYPE, &desc));
        let notes_len = rodata.len() as u64;
        rodata.resize(RODATA_LEN, 0xcc);
        put(&mut rodata, (TLS - RODATA) as usize, b"tls template");
        put(&mut rodata, (RELRO - RODATA) as usize, &[0; 8]);

        let mut data = [0x55; DATA_LEN];
        let mut rela = Vec::new();
        for (target, value) in RELOCATIONS {
            words(&mut rela, &[LINK_BASE + target, 8, LINK_BASE + value]);
        }
        put(&mut rodata, (RELA - RODATA) as usize, &rela);
        let mut relr = Vec::new();
        // The word after the first is bit 1, the third after it bit 3.
        words(&mut relr, &[LINK_BASE + DATA + 0x18, 0b1011]);
        put(&mut rodata, (RELR - RODATA) as usize, &relr);
        let mut dynamic = Vec::new();
        words(&mut dynamic, &[7, LINK_BASE + RELA, 8, rela.len() as u64]);
        words(&mut dynamic, &[9, 24]);
        if self.relr {
            words(&mut dynamic, &[36, LINK_BASE + RELR, 35, 16, 37, 8]);
            for (target, value) in RELR_RELOCATIONS {
                let word = (LINK_BASE + value).to_le_bytes();
                put(&mut data, (target - DATA) as usize, &word);
            }
        }
        words(&mut dynamic, &[0, 0]);
        put(&mut rodata, (DYNAMIC - RODATA) as usize, &dynamic);

        let in_rodata = |kind, offset: u64, len: u64, mem_len, align| {
            let at = RODATA_AT as u64 + offset - RODATA;
            program_header(kind, 4, at, LINK_BASE + offset, [len, mem_len], align)
        };
        let load = |flags, at: usize, offset, len: usize, mem_len| {
            let (at, len) = (at as u64, len as u64);
            program_header(1, flags, at, LINK_BASE + offset, [len, mem_len], 0x1000)
        };
        let dynamic_len = dynamic.len() as u64;
        let headers = [
            load(5, TEXT_AT, 0, TEXT_LEN, TEXT_LEN as u64),
            load(4, RODATA_AT, RODATA, RODATA_LEN, RODATA_LEN as u64),
            load(6, DATA_AT, DATA, DATA_LEN, 0x1800),
            in_rodata(abi::PT_TLS, TLS, 12, 0x30, 16),
            in_rodata(abi::PT_DYNAMIC, DYNAMIC, dynamic_len, dynamic_len, 8),
            in_rodata(abi::PT_NOTE, RODATA, notes_len, notes_len, 4),
            program_header(abi::PT_GNU_STACK, 6, 0, 0, [0, 0], 16),
        ];

        let mut file = Vec::new();
        file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        file.extend_from_slice(&[3, 0, 62, 0, 1, 0, 0, 0]);
        words(&mut file, &[LINK_BASE + ENTRY, 64, 0]);
        file.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, headers.len() as u8, 0, 64, 0]);
        file.extend_from_slice(&[0, 0, 0, 0]);
        headers.iter().for_each(|header| file.extend(header));
        file.resize(TEXT_AT, 0);
        file.resize(TEXT_AT + TEXT_LEN, 0x90);
        file.extend(rodata);
        file.extend(data);
        if let Some(setup) = &self.setup {
            add_sections(&mut file, setup, &self.trust);
        }
        if self.ident.is_some_and(|i| i.build == BuildId::default()) {
            // It has the note.
            let _ = Ident::stamp_build(&mut file);
        }
        file
    }

    /// A bundle of it; empty if it is no image.
    pub fn bundle(&self) -> Vec<u8> {
        self.bundle_with(None, |_| ())
    }

    /// A bundle of it, signed, after a change of the manifest.
    pub fn bundle_with(
        &self,
        key: Option<&SigningKey>,
        change: impl FnOnce(&mut Manifest),
    ) -> Vec<u8> {
        let elf = self.build();
        let Ok(mut manifest) = Manifest::describe(&elf) else {
            return Vec::new();
        };
        change(&mut manifest);
        assemble(&manifest, &elf, key).unwrap_or_default()
    }
}

/// Makes the digests in a changed bundle right.
pub fn reseal(bundle: &mut [u8]) {
    bundle::reseal(bundle);
}

/// Signs a changed bundle; one that is none is left as it is.
pub fn sign(bundle: &mut [u8], key: &SigningKey) {
    bundle::resign(bundle, key);
}

/// Name of the innermost variant of an error, such as `Bundle::Altered`, `Manifest::Name`,
/// `Image::Entry`, `Name`.
pub fn variant(error: &VerifyError) -> String {
    fn first_word(text: &str) -> &str {
        let end = text.find(|c: char| !c.is_alphanumeric());
        text.get(..end.unwrap_or(text.len())).unwrap_or_default()
    }
    match error {
        VerifyError::Bundle(BundleError::Manifest(error)) => {
            format!("Manifest::{}", first_word(&format!("{error:?}")))
        }
        VerifyError::Bundle(error) => format!("Bundle::{}", first_word(&format!("{error:?}"))),
        VerifyError::Refused(error) => format!("Refused::{}", first_word(&format!("{error:?}"))),
        VerifyError::Load(error) => format!("Load::{}", first_word(&format!("{error:?}"))),
        VerifyError::Image(error) => format!("Image::{}", first_word(&format!("{error:?}"))),
        error => first_word(&format!("{error:?}")).into(),
    }
}

/// A way to make a good bundle bad.
#[derive(Clone, Copy, Debug)]
pub struct Mutation {
    /// What is wrong with it.
    pub name: &'static str,
    /// The error that says so, as [`variant`] names it.
    pub expect: &'static str,
    /// Whether the digest is made right again, to get past it.
    reseal: bool,
    edit: fn(&mut Edit<'_>) -> Option<()>,
}

impl Mutation {
    /// Changes a good bundle. One that lacks what is to be changed is left as it is.
    pub fn apply(&self, bundle: &mut Vec<u8>) {
        let changed = (self.edit)(&mut Edit(bundle));
        if self.reseal && changed.is_some() {
            reseal(bundle);
        }
    }
}

/// Changes that are found before the digest is looked at, or by it.
const fn plain(
    name: &'static str,
    expect: &'static str,
    edit: fn(&mut Edit<'_>) -> Option<()>,
) -> Mutation {
    Mutation {
        name,
        expect,
        reseal: false,
        edit,
    }
}

/// Changes with the digest made right again.
const fn sealed(
    name: &'static str,
    expect: &'static str,
    edit: fn(&mut Edit<'_>) -> Option<()>,
) -> Mutation {
    Mutation {
        reseal: true,
        ..plain(name, expect, edit)
    }
}

// Offsets of fields: bundle header, ELF header, program header.
const TOTAL_LEN: usize = 16;
const IMAGE_OFFSET: usize = 24;
const IMAGE_LEN: usize = 32;
const MANIFEST_LEN: usize = 40;
const KEY_ID: usize = 48;
const DIGEST: usize = 56;
const SIGNATURE: usize = 128;
const MANIFEST: usize = 192;
/// Where the name is in it, behind its length.
const NAME: usize = MANIFEST + 1;
const E_ENTRY: usize = 24;
const E_PHOFF: usize = 32;
const E_PHENTSIZE: usize = 54;
const E_PHNUM: usize = 56;
const PROGRAM_HEADER_LEN: usize = 56;
const P_FLAGS: usize = 4;
const P_OFFSET: usize = 8;
const P_VADDR: usize = 16;
const P_FILESZ: usize = 32;
const P_MEMSZ: usize = 40;
const P_ALIGN: usize = 48;

/// All that can be wrong with a bundle that can be made from any good one.
pub static MUTATIONS: &[Mutation] = &[
    plain("empty", "Bundle::Truncated", |b| b.cut(0)),
    plain("cut in the magic", "Bundle::Truncated", |b| b.cut(7)),
    plain("cut before format version", "Bundle::Truncated", |b| {
        b.cut(8)
    }),
    plain("cut before header length", "Bundle::Truncated", |b| {
        b.cut(12)
    }),
    plain("cut before total length", "Bundle::Truncated", |b| {
        b.cut(16)
    }),
    plain("cut before image offset", "Bundle::Truncated", |b| {
        b.cut(24)
    }),
    plain("cut before image length", "Bundle::Truncated", |b| {
        b.cut(32)
    }),
    plain("cut before manifest length", "Bundle::Truncated", |b| {
        b.cut(40)
    }),
    plain("cut before key id", "Bundle::Truncated", |b| b.cut(48)),
    plain("cut before digest", "Bundle::Truncated", |b| b.cut(56)),
    plain("cut before reserved bytes", "Bundle::Truncated", |b| {
        b.cut(88)
    }),
    plain("cut before signature", "Bundle::Truncated", |b| b.cut(128)),
    plain("cut in the signature", "Bundle::Truncated", |b| b.cut(191)),
    plain("cut after the header", "Bundle::Truncated", |b| b.cut(192)),
    plain("cut in the manifest", "Bundle::Truncated", |b| b.cut(200)),
    plain("cut in the image", "Bundle::Truncated", |b| {
        b.cut(b.0.len() / 2)
    }),
    plain("cut by a byte", "Bundle::Truncated", |b| {
        b.cut(b.0.len() - 1)
    }),
    plain("bytes after it", "Bundle::TrailingBytes", |b| {
        b.0.extend([1; 8]);
        Some(())
    }),
    plain("wrong magic", "Bundle::Magic", |b| b.flip(0)),
    plain("a bare image", "Bundle::Magic", |b| {
        b.0.drain(..b.image()?.start);
        Some(())
    }),
    plain("a digest bit flipped", "Bundle::Altered", |b| {
        b.flip(DIGEST)
    }),
    plain("a manifest bit flipped", "Bundle::Altered", |b| {
        b.flip(MANIFEST)
    }),
    plain("an image bit flipped", "Bundle::Altered", |b| {
        b.flip(b.image()?.end - 1)
    }),
    plain("key id and signature added", "Bundle::Altered", |b| {
        b.put(KEY_ID, &[1; 8])?;
        b.put(SIGNATURE, &[1; 64])
    }),
    sealed("unknown format", "Bundle::FormatVersion", |b| {
        b.put(8, &[3])
    }),
    sealed("longer header", "Bundle::HeaderLength", |b| b.put(12, &[8])),
    sealed("odd total length", "Bundle::TotalLength", |b| {
        b.flip(TOTAL_LEN)
    }),
    sealed("no total length", "Bundle::TotalLength", |b| {
        b.put_u64(TOTAL_LEN, 0)
    }),
    sealed("huge total length", "Bundle::Truncated", |b| {
        b.put_u64(TOTAL_LEN, u64::MAX - 7)
    }),
    sealed("no manifest", "Bundle::ManifestLength", |b| {
        b.put(MANIFEST_LEN, &[0; 4])
    }),
    sealed("huge manifest", "Bundle::ManifestLength", |b| {
        b.put(MANIFEST_LEN, &[0xff; 4])
    }),
    sealed("manifest longer than it is", "Bundle::ImageRange", |b| {
        b.put(MANIFEST_LEN, &1000_u32.to_le_bytes())
    }),
    sealed("image inside the header", "Bundle::ImageRange", |b| {
        b.put_u64(IMAGE_OFFSET, 184)
    }),
    sealed("image at an odd offset", "Bundle::ImageRange", |b| {
        b.put_u64(IMAGE_OFFSET, b.u64(IMAGE_OFFSET)? + 1)
    }),
    sealed("image after the end", "Bundle::ImageRange", |b| {
        b.put_u64(IMAGE_OFFSET, b.0.len() as u64 + 8)
    }),
    sealed("image longer than the bundle", "Bundle::ImageRange", |b| {
        b.put_u64(IMAGE_LEN, b.0.len() as u64 - 191)
    }),
    sealed("image length wraps", "Bundle::ImageRange", |b| {
        b.put_u64(IMAGE_LEN, u64::MAX - 8)
    }),
    sealed("reserved byte used", "Bundle::Reserved", |b| {
        b.put(SIGNATURE - 1, &[1])
    }),
    sealed("gap in the header used", "Bundle::Reserved", |b| {
        b.put(44, &[1])
    }),
    sealed("key id without a signature", "Bundle::HalfSigned", |b| {
        b.put(KEY_ID, &[1])
    }),
    sealed("signature without a key id", "Bundle::HalfSigned", |b| {
        b.put(SIGNATURE, &[1])
    }),
    sealed("bytes before the image", "Bundle::Padding", |b| {
        // One more byte that is skipped, if that is what it takes to have any.
        b.edit_manifest(|manifest| {
            if manifest.len().is_multiple_of(8) {
                manifest.push(0);
            }
        })?;
        b.put(b.image()?.start - 1, &[1])
    }),
    sealed("bytes behind the image", "Bundle::Padding", |b| {
        b.edit_image(|image| {
            if image.len().is_multiple_of(8) {
                image.push(0);
            }
        })?;
        b.put(b.0.len() - 1, &[1])
    }),
    sealed("manifest cut", "Manifest::Malformed", |b| {
        b.edit_manifest(|manifest| manifest.truncate(manifest.len() - 1))
    }),
    sealed("manifest of ones", "Manifest::Malformed", |b| {
        b.edit_manifest(|manifest| manifest.fill(0xff))
    }),
    sealed("no ABI version", "Manifest::Abi", |b| b.put(b.abi()?, &[0])),
    sealed("ABI range upside down", "Manifest::Abi", |b| {
        b.put(b.abi()?, &[0x7f])
    }),
    sealed("no name", "Manifest::Name", |b| {
        b.edit_manifest(|manifest| {
            let len = usize::from(manifest.remove(0));
            manifest.drain(..len);
            manifest.insert(0, 0);
        })
    }),
    sealed("name in capitals", "Manifest::Name", |b| b.put(NAME, b"X")),
    sealed("name too long", "Manifest::Name", |b| {
        b.edit_manifest(|manifest| {
            let len = usize::from(manifest.remove(0));
            manifest.splice(..len, [b'a'; 33]);
            manifest.insert(0, 33);
        })
    }),
    sealed("version with a blank", "Manifest::Version", |b| {
        b.put(b.version()?, b" ")
    }),
    sealed("version not UTF-8", "Manifest::Malformed", |b| {
        b.put(b.version()?, &[0xff])
    }),
    sealed("name of another image", "Name", |b| b.put(NAME, b"0")),
    sealed("version of another image", "Version", |b| {
        b.put(b.version()?, b"!")
    }),
    sealed("ABI of another image", "Abi", |b| {
        b.put(b.abi()? + 1, &[0x7f])
    }),
    sealed("build id of another image", "Build", |b| {
        let desc = b.desc()?;
        b.flip(desc + Ident::DESC_LEN - 1)
    }),
    sealed("a segment's digest missing", "Load::Digests", |b| {
        b.change_manifest(|manifest| {
            manifest.segments.pop();
        })
    }),
    sealed("a digest too many", "Load::Digests", |b| {
        b.change_manifest(|manifest| {
            let _ = manifest.segments.try_push(manifest.image);
        })
    }),
    sealed("no image", "Image::Truncated", |b| b.cut_image(0)),
    sealed("image cut in the ELF header", "Image::Truncated", |b| {
        b.cut_image(63)
    }),
    sealed(
        "image cut in program headers",
        "Image::ProgramHeaders",
        |b| b.cut_image(65),
    ),
    sealed("image cut in its segments", "Image::SegmentFile", |b| {
        let last = b.last_load()?;
        b.cut_image((b.u64(last + P_OFFSET)? + b.u64(last + P_FILESZ)? - 1) as usize)
    }),
    sealed("not an ELF file", "Image::NotElf", |b| b.elf(0, b"MZ")),
    sealed("32-bit", "Image::Class", |b| b.elf(4, &[1])),
    sealed("neither 32- nor 64-bit", "Image::Class", |b| b.elf(4, &[3])),
    sealed("big-endian", "Image::ByteOrder", |b| b.elf(5, &[2])),
    sealed("unknown ELF version", "Image::ElfVersion", |b| {
        b.elf(20, &[2])
    }),
    sealed("not position-independent", "Image::Type", |b| {
        b.elf(16, &[2])
    }),
    sealed("for AArch64", "Image::Machine", |b| b.elf(18, &[183])),
    sealed(
        "program headers of 32 bytes",
        "Image::ProgramHeaderSize",
        |b| b.elf(E_PHENTSIZE, &[32]),
    ),
    sealed("program headers outside", "Image::ProgramHeaders", |b| {
        b.elf(E_PHOFF, &(u64::MAX - 55).to_le_bytes())
    }),
    sealed("no program headers", "Image::NoSegments", |b| {
        b.elf(E_PHNUM, &[0, 0])
    }),
    sealed("nine segments", "Image::TooManySegments", |b| {
        let end = b.u64(b.last_load()? + P_VADDR)? + (256 << 20);
        let new = (0..8).map(|n| load_header(end + n * 0x1000));
        b.add_headers(new.collect())
    }),
    sealed(
        "more in the file than in memory",
        "Image::SegmentSizes",
        |b| {
            let last = b.last_load()?;
            b.put_u64(last + P_MEMSZ, b.u64(last + P_FILESZ)? - 1)
        },
    ),
    sealed("segment not page-aligned", "Image::SegmentAlignment", |b| {
        let last = b.last_load()?;
        b.put_u64(last + P_VADDR, b.u64(last + P_VADDR)? + 8)
    }),
    sealed("segment wraps", "Image::SegmentWraps", |b| {
        b.put_u64(b.last_load()? + P_MEMSZ, u64::MAX)
    }),
    sealed("segment's last page wraps", "Image::SegmentWraps", |b| {
        let last = b.last_load()?;
        b.put_u64(last + P_MEMSZ, u64::MAX - b.u64(last + P_VADDR)?)
    }),
    sealed("segments overlap", "Image::SegmentOrder", |b| {
        let first = b.u64(b.load(0)? + P_VADDR)?;
        b.put_u64(b.load(1)? + P_VADDR, first)
    }),
    sealed("segments descend", "Image::SegmentOrder", |b| {
        b.put_u64(b.last_load()? + P_VADDR, 0)
    }),
    sealed("segment after the file", "Image::SegmentFile", |b| {
        b.put_u64(b.last_load()? + P_OFFSET, 1 << 40)
    }),
    sealed("segment's file range wraps", "Image::SegmentFile", |b| {
        b.put_u64(b.last_load()? + P_OFFSET, u64::MAX)
    }),
    sealed("too large", "Image::Span", |b| {
        b.put_u64(b.last_load()? + P_MEMSZ, 1 << 30)
    }),
    sealed("segment far away", "Image::Span", |b| {
        b.put_u64(b.last_load()? + P_VADDR, 1 << 46)
    }),
    sealed("code writable", "Image::WritableCode", |b| {
        b.put(b.load(0)? + P_FLAGS, &[7])
    }),
    sealed("data executable", "Image::WritableCode", |b| {
        b.put(b.last_load()? + P_FLAGS, &[7])
    }),
    sealed("nothing executable", "Image::NoExecutable", |b| {
        let loads = (0..8).map_while(|n| b.load(n)).collect::<Vec<_>>();
        loads
            .iter()
            .try_for_each(|load| b.put(load + P_FLAGS, &[4]))
    }),
    sealed("no entry", "Image::Entry", |b| b.elf(E_ENTRY, &[0; 8])),
    sealed("entry in the data", "Image::Entry", |b| {
        let address = b.u64(b.last_load()? + P_VADDR)?;
        b.elf(E_ENTRY, &address.to_le_bytes())
    }),
    sealed("entry just after the code", "Image::Entry", |b| {
        let code = b.load(0)?;
        let end = b.u64(code + P_VADDR)? + b.u64(code + P_FILESZ)?;
        b.elf(E_ENTRY, &end.to_le_bytes())
    }),
    sealed("dynamic linker wanted", "Image::Interpreter", |b| {
        b.put(b.header(abi::PT_DYNAMIC)?, &[3])
    }),
    sealed("two dynamic sections", "Image::Duplicate", |b| {
        let header = b.header(abi::PT_DYNAMIC)?;
        b.add_headers([b.bytes(header)?].into())
    }),
    sealed("dynamic section elsewhere", "Image::Unplaced", |b| {
        let header = b.header(abi::PT_DYNAMIC)?;
        b.put_u64(header + P_OFFSET, b.u64(header + P_OFFSET)? - 8)
    }),
    sealed("dynamic section outside", "Image::Unplaced", |b| {
        b.put_u64(b.header(abi::PT_DYNAMIC)? + P_VADDR, u64::MAX - 7)
    }),
    sealed("notes elsewhere", "Image::Unplaced", |b| {
        let header = b.header(abi::PT_NOTE)?;
        b.put_u64(header + P_VADDR, b.u64(header + P_VADDR)? + 4)
    }),
    sealed("odd TLS alignment", "Image::Tls", |b| {
        b.put_u64(b.header(abi::PT_TLS)? + P_ALIGN, 3)
    }),
    sealed("huge TLS", "Image::Tls", |b| {
        b.put_u64(b.header(abi::PT_TLS)? + P_MEMSZ, 1 << 40)
    }),
    sealed("TLS outside", "Image::Tls", |b| {
        b.put_u64(b.header(abi::PT_TLS)? + P_VADDR, 0)
    }),
    sealed("library wanted", "Image::DynamicTag", |b| {
        b.put_u64(b.dynamic(abi::DT_RELA)?, abi::DT_NEEDED as u64)
    }),
    sealed("REL relocations", "Image::DynamicTag", |b| {
        b.put_u64(b.dynamic(abi::DT_RELA)?, abi::DT_REL as u64)
    }),
    sealed("PLT relocations", "Image::DynamicTag", |b| {
        b.put_u64(b.dynamic(abi::DT_RELA)?, abi::DT_JMPREL as u64)
    }),
    sealed("text relocations", "Image::DynamicTag", |b| {
        b.put_u64(b.dynamic(abi::DT_RELA)?, abi::DT_TEXTREL as u64)
    }),
    sealed("two RELA tables", "Image::DynamicTag", |b| {
        b.put_u64(b.dynamic(abi::DT_RELAENT)?, abi::DT_RELA as u64)
    }),
    sealed("RELA table outside", "Image::RelocationTable", |b| {
        b.put_u64(b.dynamic(abi::DT_RELA)? + 8, u64::MAX - 23)
    }),
    sealed("RELA table too long", "Image::RelocationTable", |b| {
        b.put_u64(b.dynamic(abi::DT_RELASZ)? + 8, 24 << 40)
    }),
    sealed(
        "RELA table of a broken length",
        "Image::RelocationTable",
        |b| b.put_u64(b.dynamic(abi::DT_RELASZ)? + 8, 23),
    ),
    sealed("RELA entries of 16 bytes", "Image::RelocationTable", |b| {
        b.put_u64(b.dynamic(abi::DT_RELAENT)? + 8, 16)
    }),
    sealed("relocation of unknown kind", "Image::RelocationKind", |b| {
        b.put(b.rela()? + 8, &[1])
    }),
    sealed("relocation with a symbol", "Image::RelocationKind", |b| {
        b.put(b.rela()? + 12, &[1])
    }),
    sealed(
        "relocation before the image",
        "Image::RelocationTarget",
        |b| b.put_u64(b.rela()?, b.u64(b.load(0)? + P_VADDR)? - 4),
    ),
    sealed(
        "relocation after the image",
        "Image::RelocationTarget",
        |b| b.put_u64(b.rela()?, b.end()? - 7),
    ),
    sealed("relocation wraps", "Image::RelocationTarget", |b| {
        b.put_u64(b.rela()?, u64::MAX - 3)
    }),
    sealed("relocation of code", "Image::RelocationTarget", |b| {
        b.put_u64(b.rela()?, b.u64(b.load(0)? + P_VADDR)?)
    }),
    sealed(
        "relocated to before the image",
        "Image::RelocationValue",
        |b| b.put_u64(b.rela()? + 16, b.u64(b.load(0)? + P_VADDR)? - 1),
    ),
    sealed(
        "relocated to after the image",
        "Image::RelocationValue",
        |b| b.put_u64(b.rela()? + 16, b.end()? + 0x1000),
    ),
    sealed(
        "relocated to a negative address",
        "Image::RelocationValue",
        |b| b.put_u64(b.rela()? + 16, u64::MAX),
    ),
    sealed("no identity", "Image::NoIdent", |b| {
        b.put(b.desc()? - 8, b"X")
    }),
    sealed("no notes", "Image::NoIdent", |b| {
        b.put(b.header(abi::PT_NOTE)?, &[0])
    }),
    sealed("notes outside", "Image::Unplaced", |b| {
        b.put_u64(b.header(abi::PT_NOTE)? + P_OFFSET, u64::MAX - 3)
    }),
    sealed("two identities", "Image::IdentTwice", |b| {
        let header = b.header(abi::PT_NOTE)?;
        b.add_headers([b.bytes(header)?].into())
    }),
    sealed("short identity", "Image::IdentLength", |b| {
        b.put(b.desc()? - 16, &[72])
    }),
    sealed("unknown flag", "Image::IdentFlags", |b| {
        b.put(b.desc()? + 9, &[1])
    }),
    sealed("image's ABI range is empty", "Image::IdentAbi", |b| {
        b.put_u64(b.desc()?, 2)
    }),
    sealed("image has no name", "Image::IdentName", |b| {
        b.put(b.desc()? + 12, &[0; 32])
    }),
    sealed("image's name has a slash", "Image::IdentName", |b| {
        b.put(b.desc()? + 12, b"/")
    }),
    sealed("image has no version", "Image::IdentVersion", |b| {
        b.put(b.desc()? + 44, &[0; 32])
    }),
];

/// Access to the fields of a good bundle. All offsets are from the bundle's start.
#[derive(Debug)]
struct Edit<'a>(&'a mut Vec<u8>);

impl Edit<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..)?.first_chunk().copied()
    }

    fn u64(&self, at: usize) -> Option<u64> {
        self.bytes(at).map(u64::from_le_bytes)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> Option<()> {
        self.0.get_mut(at..at + bytes.len())?.copy_from_slice(bytes);
        Some(())
    }

    fn put_u64(&mut self, at: usize, value: u64) -> Option<()> {
        self.put(at, &value.to_le_bytes())
    }

    fn flip(&mut self, at: usize) -> Option<()> {
        *self.0.get_mut(at)? ^= 1;
        Some(())
    }

    fn cut(&mut self, len: usize) -> Option<()> {
        self.0.truncate(len);
        Some(())
    }

    fn image(&self) -> Option<Range<usize>> {
        let start = self.u64(IMAGE_OFFSET)? as usize;
        Some(start..start + self.u64(IMAGE_LEN)? as usize)
    }

    /// Puts the bundle together anew, with its header's lengths right.
    fn lay_out(&mut self, manifest: &[u8], image: &[u8]) -> Option<()> {
        let header = self.0.get(..MANIFEST)?.to_vec();
        let mut all = [&header, manifest, padding(manifest.len() as u64)].concat();
        let offset = all.len() as u64;
        all.extend_from_slice(image);
        all.extend_from_slice(padding(image.len() as u64));
        *self.0 = all;
        self.put_u64(TOTAL_LEN, self.0.len() as u64)?;
        self.put_u64(IMAGE_OFFSET, offset)?;
        self.put_u64(IMAGE_LEN, image.len() as u64)?;
        self.put(MANIFEST_LEN, &(manifest.len() as u32).to_le_bytes())
    }

    fn manifest(&self) -> Option<&[u8]> {
        let len = u32::from_le_bytes(self.bytes(MANIFEST_LEN)?) as usize;
        self.0.get(MANIFEST..MANIFEST + len)
    }

    fn edit_manifest(&mut self, edit: impl FnOnce(&mut Vec<u8>)) -> Option<()> {
        let mut manifest = self.manifest()?.to_vec();
        let image = self.0.get(self.image()?)?.to_vec();
        edit(&mut manifest);
        self.lay_out(&manifest, &image)
    }

    fn change_manifest(&mut self, change: impl FnOnce(&mut Manifest)) -> Option<()> {
        let mut manifest = Manifest::decode(self.manifest()?).ok()?;
        change(&mut manifest);
        self.edit_manifest(|bytes| *bytes = manifest.encode().to_vec())
    }

    fn edit_image(&mut self, edit: impl FnOnce(&mut Vec<u8>)) -> Option<()> {
        let manifest = self.manifest()?.to_vec();
        let mut image = self.0.get(self.image()?)?.to_vec();
        edit(&mut image);
        self.lay_out(&manifest, &image)
    }

    fn cut_image(&mut self, len: usize) -> Option<()> {
        self.edit_image(|image| image.truncate(len))
    }

    /// Where the version is, behind its length.
    fn version(&self) -> Option<usize> {
        let [name_len] = self.bytes(MANIFEST)?;
        Some(NAME + usize::from(name_len) + 1)
    }

    /// Where the ABI range is: a byte for each end, as they are small.
    fn abi(&self) -> Option<usize> {
        let version = self.version()?;
        let [len] = self.bytes(version - 1)?;
        Some(version + usize::from(len))
    }

    /// Writes a field of the ELF header.
    fn elf(&mut self, field: usize, bytes: &[u8]) -> Option<()> {
        self.put(self.image()?.start + field, bytes)
    }

    /// Where the program headers are.
    fn headers(&self) -> Option<impl Iterator<Item = usize>> {
        let elf = self.image()?.start;
        let count = u16::from_le_bytes(self.bytes(elf + E_PHNUM)?);
        let first = elf + self.u64(elf + E_PHOFF)? as usize;
        Some((0..usize::from(count)).map(move |n| first + n * PROGRAM_HEADER_LEN))
    }

    fn of_kind(&self, kind: u32) -> Option<impl DoubleEndedIterator<Item = usize>> {
        let all = self.headers()?;
        let found = all.filter(|&at| self.bytes(at) == Some(kind.to_le_bytes()));
        Some(found.collect::<Vec<_>>().into_iter())
    }

    fn header(&self, kind: u32) -> Option<usize> {
        self.of_kind(kind)?.next()
    }

    fn load(&self, n: usize) -> Option<usize> {
        self.of_kind(abi::PT_LOAD)?.nth(n)
    }

    fn last_load(&self) -> Option<usize> {
        self.of_kind(abi::PT_LOAD)?.next_back()
    }

    /// End of the last segment.
    fn end(&self) -> Option<u64> {
        let last = self.last_load()?;
        Some(self.u64(last + P_VADDR)? + self.u64(last + P_MEMSZ)?)
    }

    /// Moves the program headers to the image's end and adds some.
    fn add_headers(&mut self, new: Vec<[u8; PROGRAM_HEADER_LEN]>) -> Option<()> {
        let mut all = Vec::new();
        for at in self.headers()? {
            all.push(self.bytes(at)?);
        }
        all.extend(new);
        let mut table = 0;
        self.edit_image(|image| {
            table = image.len();
            all.iter().for_each(|header| image.extend(header));
        })?;
        self.elf(E_PHOFF, &(table as u64).to_le_bytes())?;
        self.elf(E_PHNUM, &(all.len() as u16).to_le_bytes())
    }

    fn at_address(&self, address: u64) -> Option<usize> {
        self.of_kind(abi::PT_LOAD)?.find_map(|load| {
            let offset = address.checked_sub(self.u64(load + P_VADDR)?)?;
            let inside = offset < self.u64(load + P_FILESZ)?;
            let at = self.image()?.start + (self.u64(load + P_OFFSET)? + offset) as usize;
            inside.then_some(at)
        })
    }

    /// Where the entry of the dynamic section with this tag is.
    fn dynamic(&self, tag: i64) -> Option<usize> {
        let header = self.header(abi::PT_DYNAMIC)?;
        let first = self.image()?.start + self.u64(header + P_OFFSET)? as usize;
        let len = self.u64(header + P_FILESZ)? as usize;
        let mut entries = (first..first + len).step_by(16);
        entries.find(|&at| self.u64(at) == Some(tag as u64))
    }

    /// Where the first RELA entry is.
    fn rela(&self) -> Option<usize> {
        self.at_address(self.u64(self.dynamic(abi::DT_RELA)? + 8)?)
    }

    /// Where the descriptor of the identity note is.
    fn desc(&self) -> Option<usize> {
        let image = self.image()?;
        let range = ident_range(self.0.get(image.clone())?).ok()?;
        Some(image.start + range.start)
    }
}

fn words(to: &mut Vec<u8>, words: &[u64]) {
    to.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}

fn put(to: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(to) = to.get_mut(at..at + bytes.len()) {
        to.copy_from_slice(bytes);
    }
}

fn note(owner: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for field in [owner.len() as u32, desc.len() as u32, kind] {
        note.extend(field.to_le_bytes());
    }
    for part in [owner, desc] {
        note.extend(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

fn program_header(
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    [file_len, mem_len]: [u64; 2],
    align: u64,
) -> [u8; PROGRAM_HEADER_LEN] {
    let mut header = [0; PROGRAM_HEADER_LEN];
    let mut bytes = Vec::new();
    bytes.extend(kind.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    words(
        &mut bytes,
        &[offset, address, address, file_len, mem_len, align],
    );
    put(&mut header, 0, &bytes);
    header
}

/// A segment of one page, zeroed.
fn load_header(address: u64) -> [u8; PROGRAM_HEADER_LEN] {
    program_header(abi::PT_LOAD, 4, 0, address, [0, 0x1000], 0x1000)
}

/// Adds sections: `.setup` and `.debug_info`, which are not part of the image in memory, and
/// `.segue.trust`, which is not here.
fn add_sections(file: &mut Vec<u8>, setup: &[u8], trust: &[u8]) {
    const NAMES: &[u8] = b"\0.setup\0.debug_info\0.shstrtab\0.segue.trust\0";
    let mut headers = Vec::from([0; 64]);
    let sections = [
        (1, 1, setup),
        (8, 1, b"debug".as_slice()),
        (20, 3, NAMES),
        (30, 1, trust),
    ];
    for (name, kind, bytes) in sections {
        let name_and_kind = name | kind << 32;
        let (at, len) = (file.len() as u64, bytes.len() as u64);
        words(&mut headers, &[name_and_kind, 0, 0, at, len, 0, 1, 0]);
        file.extend(bytes);
    }
    let table = (file.len() as u64).to_le_bytes();
    file.extend(headers);
    put(file, 40, &table);
    put(file, 60, &[5, 0, 3, 0]);
}
