use elf::ElfBytes;
use elf::abi::{PT_DYNAMIC, PT_LOAD, PT_NOTE, PT_TLS};
use elf::endian::LittleEndian;
use elf::note::Note;
use segue_kernel::image::testing::{self, TestImage};
use segue_kernel::image::{Bundle, Digest, Ident, ImageError, VerifyError};

use super::*;

/// What the kernel's `.setup` looks like, as far as this crate looks at it.
fn setup(len: usize) -> Vec<u8> {
    let mut setup = vec![0x11; len];
    setup[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    setup[0x202..0x206].copy_from_slice(b"HdrS");
    setup
}

/// An image as the linker leaves it.
fn linked(setup: Vec<u8>) -> Vec<u8> {
    let image = TestImage {
        ident: None,
        relr: true,
        setup: Some(setup),
        trust: Vec::new(),
    };
    image.build()
}

fn labels() -> (Name, Version) {
    (Name::new("hello").unwrap(), Version::new("0.2.0").unwrap())
}

fn convert_linked(linked: Vec<u8>) -> Result<Files, Error> {
    let (name, version) = labels();
    convert(linked, &name, &version)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

#[test]
fn builds_three_files() {
    let dir = tempfile::tempdir().unwrap();
    let elf = dir.path().join("linked");
    fs::write(&elf, linked(setup(0x300))).unwrap();
    let (name, version) = labels();
    let options = Options {
        elf,
        name,
        version,
        out_dir: dir.path().join("deep/images"),
        trust: None,
    };
    let report = build(&options).unwrap();
    let outputs = [&report.img, &report.elf, &report.bundle];
    for (output, extension) in outputs.into_iter().zip(["img", "elf", "bundle"]) {
        let path = options.out_dir.join(format!("hello.{extension}"));
        assert_eq!(output.path, path);
        assert_eq!(fs::metadata(&path).unwrap().len(), output.len);
    }
    assert_eq!(fs::read_dir(&options.out_dir).unwrap().count(), 3);
    assert_eq!(report.manifest.name, name);
    assert_eq!(report.manifest.version, version);
    assert_eq!(report.manifest.min_memory, testing::SPAN);
    // Keys that did not get into the image are missed.
    let key = PublicKey::of(&testing::key(1));
    let trust = Some(vec![key]);
    let error = build(&Options { trust, ..options }).unwrap_err();
    assert!(matches!(
        error,
        Error::Untrusting {
            found: 0,
            wanted: 1
        }
    ));
}

#[test]
fn stripped_elf_has_only_what_is_loaded() {
    let linked = linked(setup(0x300));
    let elf = convert_linked(linked.clone()).unwrap().elf;
    for gone in [b".setup".as_slice(), b".debug_info"] {
        assert!(linked.windows(gone.len()).any(|w| w == gone));
        assert!(!elf.windows(gone.len()).any(|w| w == gone));
    }
    let file = ElfBytes::<LittleEndian>::minimal_parse(&elf).unwrap();
    assert!(file.section_headers().is_none());
    assert_eq!((file.ehdr.e_shnum, file.ehdr.e_shoff), (0, 0));

    let headers: Vec<_> = file.segments().unwrap().iter().collect();
    for header in &headers {
        assert_eq!(header.p_paddr, header.p_vaddr);
        if header.p_filesz != 0 {
            assert_eq!(header.p_offset % 0x1000, header.p_vaddr % 0x1000);
        }
    }
    let of_kind = |kind| headers.iter().filter(move |header| header.p_type == kind);
    assert_eq!(of_kind(PT_LOAD).count(), 3);
    assert_eq!(of_kind(PT_DYNAMIC).count(), 1);
    let tls = of_kind(PT_TLS).next().unwrap();
    assert_eq!(file.segment_data(tls).unwrap(), b"tls template");

    let notes = of_kind(PT_NOTE).next().unwrap();
    assert_eq!(notes.p_offset % 4, 0);
    let notes: Vec<_> = file.segment_data_as_notes(notes).unwrap().collect();
    let [Note::Unknown(pvh), Note::Unknown(ident)] = &notes[..] else {
        panic!("{notes:?}");
    };
    assert_eq!((pvh.name, pvh.n_type), (b"Xen\0".as_slice(), 18));
    assert_eq!(u32_at(pvh.desc, 0), testing::LINK_BASE as u32 + 0x10);
    assert_eq!((ident.name, ident.n_type), (Ident::NOTE_OWNER, 1));
}

#[test]
fn bundle_is_accepted_and_loads_like_the_linked_image() {
    let files = convert_linked(linked(setup(0x300))).unwrap();
    let found = verify(&files.bundle, &Policy::OPEN).unwrap();
    let image = &found.image;
    assert_eq!(Bundle::parse(&files.bundle).unwrap().image(), files.elf);
    assert_eq!(found.manifest.min_memory, testing::SPAN);
    assert!(found.manifest.trusts.is_empty() && !found.manifest.revokes_previous);
    assert_eq!(files.bundle.len() % 8, 0);
    // It is the file's digest but for itself.
    let build = found.manifest.build;
    let at = files.elf.windows(32).position(|w| *w == build.0).unwrap();
    let mut without = files.elf.clone();
    without[at..at + 32].fill(0);
    assert_eq!(Digest::of(&[&without]).0, build.0);
    assert_eq!(Digest::of(&[&files.elf]), found.manifest.image);

    let (name, version) = labels();
    let ident = Ident {
        name,
        version,
        trial: false,
        build,
        ..testing::ident().unwrap()
    };
    let original = TestImage {
        ident: Some(ident),
        ..TestImage::default()
    };
    let original = original.build();
    let load = |image: &Image<'_>| {
        let mut memory = vec![0xaa; image.span() as usize];
        let digests: Vec<_> = image
            .segment_files()
            .map(|data| Digest::of(&[data]))
            .collect();
        image.load(0x123_4000, &mut memory, &digests).unwrap();
        memory
    };
    assert!(load(image) == load(&Image::parse(&original).unwrap()));
}

#[test]
fn manifests_say_whom_the_linked_image_trusts() {
    let public = [1, 2].map(|n| PublicKey::of(&testing::key(n)));
    let with = |trust: Vec<u8>| {
        let image = TestImage {
            ident: None,
            relr: true,
            setup: Some(setup(0x300)),
            trust,
        };
        convert_linked(image.build())
    };
    let bytes = public.map(|key| key.0).concat();
    let bundle = with(bytes.clone()).unwrap().bundle;
    let found = verify(&bundle, &Policy::OPEN).unwrap();
    assert_eq!(found.manifest.trusts[..], public.map(|key| key.id()));
    let cut = with(bytes[..63].to_vec());
    assert!(matches!(cut, Err(Error::BadTrust { len: 63 })));
    let many = with(bytes.repeat(9));
    assert!(matches!(many, Err(Error::BadTrust { .. })));
}

#[test]
fn bzimage_header_is_filled_in() {
    // 0x401 bytes take three sectors, the boot sector among them.
    let setup_code = setup(0x401);
    let img = convert_linked(linked(setup_code.clone())).unwrap().img;
    let setup_len = 3 * 512;
    let flat = &img[setup_len..];
    assert_eq!(img[0x1f1], 2);
    assert_eq!(u32_at(&img, 0x1f4) as usize, flat.len() / 16);
    assert_eq!(u32_at(&img, 0x258), 0x10_0000);
    assert_eq!(u32_at(&img, 0x25c), 0);
    assert_eq!(u64::from(u32_at(&img, 0x260)), testing::SPAN);
    // All else is as it was, then zero to the sector's end.
    let filled_in = [0x1f1..0x1f2, 0x1f4..0x1f8, 0x258..0x264];
    for (at, byte) in setup_code.iter().enumerate() {
        assert!(img[at] == *byte || filled_in.iter().any(|range| range.contains(&at)));
    }
    assert!(img[0x401..setup_len].iter().all(|&byte| byte == 0));

    // Code, gap, data; not .bss.
    assert_eq!(flat.len(), testing::DATA as usize + 0x40);
    assert_eq!(flat[..0x30], [0x90; 0x30]);
    assert!(flat[0x30..0x1000].iter().all(|&byte| byte == 0));
    assert!(flat.windows(5).any(|w| w == b"hello"));
}

#[test]
fn refuses_what_is_no_linked_image() {
    let unset = TestImage {
        ident: None,
        ..TestImage::default()
    };
    let error = convert_linked(unset.build()).unwrap_err();
    assert!(matches!(error, Error::NoSetup));
    assert!(error.to_string().contains("linker/image.ld"));

    let mut other = setup(0x300);
    other[0x202] = b'X';
    for bad in [vec![], setup(0x263), setup(0x8001), other] {
        let len = bad.len();
        let error = convert_linked(linked(bad)).unwrap_err();
        assert!(matches!(error, Error::BadSetup { len: found } if found == len));
    }

    let error = convert_linked(b"#!/bin/sh".to_vec()).unwrap_err();
    let expected = VerifyError::Image(ImageError::Truncated { need: 64, have: 9 });
    assert!(matches!(error, Error::Image(found) if found == expected));
}

#[test]
fn a_broken_link_is_refused_with_its_reason() {
    let mut writable_code = linked(setup(0x300));
    // p_flags of the first program header.
    writable_code[64 + 4] = 7;
    let error = convert_linked(writable_code).unwrap_err();
    let start = testing::LINK_BASE;
    let expected = VerifyError::Image(ImageError::WritableCode { start });
    assert!(matches!(error, Error::Image(found) if found == expected));

    let mut cut = linked(setup(0x300));
    // p_offset of the third.
    cut[64 + 2 * 56 + 8..][..4].copy_from_slice(&[0xff; 4]);
    assert!(matches!(convert_linked(cut), Err(Error::Segment { .. })));
}

#[test]
fn missing_input_is_named() {
    let (name, version) = labels();
    let options = Options {
        elf: "/nonexistent/linked".into(),
        name,
        version,
        out_dir: "/nonexistent".into(),
        trust: None,
    };
    let error = build(&options).unwrap_err();
    assert!(error.to_string().starts_with("/nonexistent/linked: "));
}

#[test]
fn mutations_work_on_built_bundles_too() {
    let good = convert_linked(linked(setup(0x300))).unwrap().bundle;
    for mutation in testing::MUTATIONS {
        let mut bytes = good.clone();
        mutation.apply(&mut bytes);
        let error = verify(&bytes, &Policy::OPEN).unwrap_err();
        assert_eq!(
            testing::variant(&error),
            mutation.expect,
            "{}",
            mutation.name
        );
    }
}
