#![allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests"
)]

extern crate std;

use std::collections::BTreeSet;
use std::string::{String, ToString};
use std::vec::Vec;
use std::{format, vec};

use proptest::prelude::*;

use super::testing::{self, TestImage, variant};
use super::*;

#[test]
fn good_bundle_is_accepted() {
    let bytes = TestImage::default().bundle();
    let verified = verify(&bytes, &Policy::OPEN).unwrap();
    let Verified {
        manifest, image, ..
    } = &verified;
    let ident = Ident {
        build: image.ident().build,
        ..testing::ident().unwrap()
    };
    assert_eq!(verified.authority, Authority::Nobody);
    assert_eq!(manifest.name.as_str(), "test");
    assert_eq!(manifest.version.to_string(), "1.0.0");
    assert_eq!(manifest.min_memory, testing::SPAN);
    assert_eq!(manifest.build, ident.build);
    assert_ne!(ident.build, BuildId::default());
    assert_eq!(*image.ident(), ident);
    assert_eq!(image.link_base(), testing::LINK_BASE);
    assert_eq!(image.span(), testing::SPAN);
    assert_eq!(image.entry_offset(), testing::ENTRY);
    let tls = Tls {
        offset: testing::TLS,
        file_len: 12,
        mem_len: 0x30,
        align: 16,
    };
    assert_eq!(image.tls(), Some(tls));
    let segments: Vec<_> = image.segments().collect();
    assert_eq!(segments.len(), 3);
    assert_eq!(segments[2].offset, testing::DATA);
    assert_eq!(segments[2].mem_len, 0x1800);
    let perms = segments
        .iter()
        .map(|s| (s.perms.read, s.perms.write, s.perms.execute));
    let expected = [
        (true, false, true),
        (true, false, false),
        (true, true, false),
    ];
    assert!(perms.eq(expected));
}

#[test]
fn each_mutation_has_its_error() {
    let good = TestImage::default().bundle();
    let mut names = BTreeSet::new();
    for mutation in testing::MUTATIONS {
        assert!(names.insert(mutation.name), "two called {}", mutation.name);
        let mut bytes = good.clone();
        mutation.apply(&mut bytes);
        let found = match verify(&bytes, &Policy::OPEN) {
            Ok(_) => "accepted".into(),
            Err(error) => {
                assert!(error.to_string().len() > 20, "{error:?}");
                variant(&error)
            }
        };
        assert_eq!(found, mutation.expect, "{}", mutation.name);
    }
}

/// What [`testing::MUTATIONS`] leaves out because it can't be made from any good bundle.
#[test]
fn relr_errors() {
    let good = TestImage::default().build();
    // The table's first word is the only one in the file with this value.
    let table = testing::LINK_BASE + testing::DATA + 0x18;
    let table = good
        .windows(8)
        .position(|w| w == table.to_le_bytes())
        .unwrap();
    let with = |words: [u64; 2]| {
        let mut elf = good.clone();
        elf[table..table + 8].copy_from_slice(&words[0].to_le_bytes());
        elf[table + 8..table + 16].copy_from_slice(&words[1].to_le_bytes());
        Image::parse(&elf).map(|_| ())
    };
    let data = testing::LINK_BASE + testing::DATA;
    let target = |target| Err(ImageError::RelocationTarget { target });
    assert_eq!(with([data + 0x18, 0b1011]), Ok(()));
    assert_eq!(with([3, 1]), Err(ImageError::RelrBitmap { word: 3 }));
    assert_eq!(with([0, 1]), target(0));
    assert_eq!(with([testing::LINK_BASE, 1]), target(testing::LINK_BASE));
    assert_eq!(with([u64::MAX - 1, 3]), target(u64::MAX - 1));
    // Zeroed memory holds no value to relocate.
    assert_eq!(with([data + 0x40, 1]), target(data + 0x40));
    assert_eq!(
        with([data + 0x18, 1 << 63 | 1]),
        target(data + 0x20 + 62 * 8)
    );
    let value = with([data + 0x28, 1]);
    assert!(matches!(value, Err(ImageError::RelocationValue { .. })));
}

#[test]
fn loads_anywhere() {
    for relr in [false, true] {
        let image = TestImage {
            relr,
            ..TestImage::default()
        };
        let elf = image.build();
        let image = Image::parse(&elf).unwrap();
        for base in [testing::LINK_BASE, 0x7f00_0000_1000] {
            let mut memory = vec![0xaa; image.span() as usize];
            image.load(base, &mut memory, &digests(&image)).unwrap();
            let word = |at: u64| {
                let at = at as usize;
                u64::from_le_bytes(memory[at..at + 8].try_into().unwrap())
            };
            for (target, value) in testing::RELOCATIONS {
                assert_eq!(word(target), base + value, "{target:#x}");
            }
            if relr {
                for (target, value) in testing::RELR_RELOCATIONS {
                    assert_eq!(word(target), base + value, "{target:#x}");
                }
            }
            assert_eq!(memory[..0x30], [0x90; 0x30]);
            let tls = testing::TLS as usize;
            assert_eq!(memory[tls..tls + 12], *b"tls template");
            // Gaps and .bss.
            assert!(memory[0x30..0x1000].iter().all(|&byte| byte == 0));
            assert!(memory[0x2040..].iter().all(|&byte| byte == 0));
        }
    }
}

/// What a manifest has of an image's segments.
fn digests(image: &Image<'_>) -> Vec<Digest> {
    let files = image.segment_files();
    files.map(|data| Digest::of(&[data])).collect()
}

#[test]
fn load_refuses_wrong_segments() {
    let elf = TestImage::default().build();
    let image = Image::parse(&elf).unwrap();
    let mut memory = vec![0; image.span() as usize];
    let good = digests(&image);
    let segments: Vec<_> = image.segments().collect();
    for (n, segment) in segments.iter().enumerate() {
        let mut bad = good.clone();
        bad[n].0[31] ^= 1;
        let start = testing::LINK_BASE + segment.offset;
        let error = image.load(0, &mut memory, &bad).unwrap_err();
        assert_eq!(error, LoadError::Segment { start });
    }
    for bad in [&good[..2], &[good.clone(), good.clone()].concat()] {
        let error = LoadError::Digests {
            segments: 3,
            digested: bad.len(),
        };
        assert_eq!(image.load(0, &mut memory, bad), Err(error));
    }
    assert_eq!(image.load(0, &mut memory, &good), Ok(()));
}

#[test]
fn load_refuses_wrong_memory() {
    let elf = TestImage::default().build();
    let image = Image::parse(&elf).unwrap();
    let span = image.span();
    let digests = digests(&image);
    let mut memory = vec![0xaa; span as usize];
    let base = 0x1001;
    assert_eq!(
        image.load(base, &mut memory, &digests),
        Err(LoadError::Base { base, span })
    );
    let base = u64::MAX - 0xfff;
    assert_eq!(
        image.load(base, &mut memory, &digests),
        Err(LoadError::Base { base, span })
    );
    let len = memory.len() - 1;
    let error = LoadError::Length { len, span };
    assert_eq!(image.load(0, &mut memory[..len], &digests), Err(error));
    assert!(memory.iter().all(|&byte| byte == 0xaa));
}

#[test]
fn bundles_stand_one_after_the_other() {
    let first = TestImage::default().bundle();
    let next = Name::new("next").unwrap();
    let second = TestImage::default().bundle_with(None, |manifest| manifest.name = next);

    let mut ramdisk = [first.clone(), second, vec![0; 100]].concat();
    let name = |bundle: Result<Bundle<'_>, BundleError>| {
        let authentic = bundle.unwrap().authenticate(&TrustedKeys::NONE);
        authentic.unwrap().manifest.name.to_string()
    };
    assert_eq!(
        bundles(&ramdisk).map(name).collect::<Vec<_>>(),
        ["test", "next"]
    );
    assert!(Bundle::split_first(&[0; 9]).is_none());
    assert!(Bundle::split_first(&[]).is_none());

    // The next one is found behind a damaged one, but not behind a damaged header.
    let whole = |ramdisk: &[u8]| {
        let all = bundles(ramdisk).map(|bundle| bundle?.verify(&Policy::OPEN).map(drop));
        all.collect::<Vec<_>>()
    };
    ramdisk[300] ^= 1;
    let found = whole(&ramdisk);
    assert!(matches!(
        found[0],
        Err(VerifyError::Bundle(BundleError::Altered { .. }))
    ));
    assert!(matches!(found[1], Err(VerifyError::Name { .. })));
    assert_eq!(found.len(), 2);
    ramdisk[0] ^= 1;
    let found = whole(&ramdisk);
    assert!(matches!(
        found[..],
        [Err(VerifyError::Bundle(BundleError::Magic(_)))]
    ));
}

#[test]
fn labels() {
    let full = "a".repeat(32);
    assert_eq!(Name::new(&full).unwrap().as_str(), full);
    assert_eq!(Name::new(&format!("{full}a")), None);
    for bad in ["", "A", "a b", "a\0b", "ä", "a_b"] {
        assert_eq!(Name::new(bad), None, "{bad:?}");
    }
    assert_eq!(
        Version::new("1.2.3-rc.1+b").unwrap().as_str(),
        "1.2.3-rc.1+b"
    );
    for bad in ["", "1 2", "1\n", "ü"] {
        assert_eq!(Version::new(bad), None, "{bad:?}");
    }
}

#[test]
fn abi_ranges() {
    let range = |min, max| AbiRange::new(min, max).unwrap();
    assert_eq!(AbiRange::new(0, 1), None);
    assert_eq!(AbiRange::new(2, 1), None);
    assert_eq!(range(1, 3).common(&range(2, 5)), Some(3));
    assert_eq!(range(1, 3).common(&range(4, 5)), None);
    assert_eq!(range(2, 2).to_string(), "2..2");
}

#[test]
fn errors_speak_to_people() {
    let error = verify(b"\x7fELF and more", &Policy::OPEN).unwrap_err();
    let text = "not a Segue bundle: it begins with \"\\x7fELF and\" instead of \"SEGUEBDL\"";
    assert_eq!(error.to_string(), text);
    let error = VerifyError::Image(ImageError::IdentName(
        *b"Caps\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
    ));
    let text: String = error.to_string();
    assert_eq!(
        text,
        "the image's name \"Caps\" is not 1 to 32 of a-z, 0-9 and -"
    );
}

/// Loads into the middle of a larger buffer and looks at its edges.
fn load_between_guards(image: &Image<'_>) {
    const GUARD: usize = 4096;
    // Larger ones only differ in how much is zeroed.
    if image.span() > 1 << 20 {
        return;
    }
    let span = image.span() as usize;
    let mut memory = vec![0xaa; span + 2 * GUARD];
    image
        .load(0x10_0000, &mut memory[GUARD..GUARD + span], &digests(image))
        .unwrap();
    let (before, rest) = memory.split_at(GUARD);
    assert!(before.iter().chain(&rest[span..]).all(|&byte| byte == 0xaa));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_flipped_bit_is_found(bit: prop::sample::Index) {
        let mut bytes = TestImage::default().bundle();
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(verify(&bytes, &Policy::OPEN).is_err());
    }

    #[test]
    fn any_bytes_are_survived(mut bytes: Vec<u8>, lead: bool) {
        if lead {
            let good = TestImage::default().bundle();
            let len = bytes.len().min(good.len());
            bytes[..len].iter_mut().zip(&good).take(40).for_each(|(to, from)| *to = *from);
        }
        prop_assert!(verify(&bytes, &Policy::OPEN).is_err());
        prop_assert!(Image::parse(&bytes).is_err());
        bundles(&bytes).for_each(drop);
    }

    #[test]
    fn a_changed_image_is_survived(
        // What is there changes, mostly in headers and tables, and looks like a valid number.
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8u8), 0..4),
        words in prop::collection::vec((0..0x60usize, prop_oneof![
            any::<u64>(),
            0..0x40u64,
            testing::LINK_BASE..testing::LINK_BASE + testing::SPAN,
            (0..12u32).prop_map(|n| u64::MAX - (1 << n) + 1),
        ]), 0..3),
    ) {
        let mut bytes = TestImage::default().bundle();
        let image = Bundle::parse(&bytes).unwrap().image().len();
        let start = bytes.len() - image.next_multiple_of(8);
        for (at, bit) in flips {
            bytes[start + at.index(image)] ^= 1 << bit;
        }
        for (word, value) in words {
            let at = start + 8 * word;
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        testing::reseal(&mut bytes);
        if let Ok(verified) = verify(&bytes, &Policy::OPEN) {
            prop_assert_eq!(&digests(&verified.image)[..], &verified.manifest.segments[..]);
            load_between_guards(&verified.image);
        }
    }
}

mod own_file {
    use crate::image::origin::{HEADERS_LEN, OriginError, file_len, keep, rebuild};
    use crate::image::testing::TestImage;
    use crate::image::{Image, PAGE_SIZE};
    use proptest::prelude::*;

    /// An image whose origin stands behind its data in the file, and the section.
    fn image() -> (Vec<u8>, Vec<u8>) {
        let file = TestImage {
            relr: false,
            ..TestImage::default()
        };
        let mut file = file.build();
        let at = file.len();
        let segments = crate::image::elf::headers(&file).unwrap().1;
        let data = segments
            .iter()
            .find(|p| p.p_type == 1 && p.p_flags & 2 != 0);
        let len = HEADERS_LEN + data.map_or(0, |p| p.p_filesz as usize);
        file.resize(at + len, 0);
        keep(&mut file, at..at + len).unwrap();
        let origin = file.split_off(at);
        (file, origin)
    }

    fn loaded(file: &[u8], base: u64) -> Vec<u8> {
        let image = Image::parse(file).unwrap();
        let mut memory = vec![0xee; image.span() as usize];
        image
            .load(base, &mut memory, &super::digests(&image))
            .unwrap();
        memory
    }

    proptest! {
        /// Whatever has become of what is writable.
        #[test]
        fn comes_back_from_memory(page in 1u64..1 << 36, written: u8) {
            let (file, origin) = image();
            let mut memory = loaded(&file, page * PAGE_SIZE);
            let image = Image::parse(&file).unwrap();
            for segment in image.segments().filter(|s| s.perms.write) {
                let start = segment.offset as usize;
                memory[start..start + segment.mem_len as usize].fill(written);
            }
            let mut back = vec![0; file_len(&origin).unwrap()];
            rebuild(&origin, &memory, &mut back).unwrap();
            // The test file has more behind its segments than is in memory.
            prop_assert_eq!(&back[..], &file[..back.len()]);
        }

        #[test]
        fn no_origin_makes_it_panic(at: usize, byte: u8, cut: usize) {
            let (file, mut origin) = image();
            let memory = loaded(&file, 0x40_0000);
            let at = at % origin.len();
            origin[at] = byte;
            origin.truncate(cut % (2 * origin.len()));
            if let Ok(len) = file_len(&origin) {
                let mut back = vec![0; len.min(1 << 20)];
                let _ = rebuild(&origin, &memory, &mut back);
            }
        }
    }

    #[test]
    fn a_section_of_another_size_is_refused() {
        let (file, origin) = image();
        let mut file = file;
        let at = file.len();
        file.resize(at + origin.len() + 8, 0);
        assert_eq!(
            keep(&mut file, at..at + origin.len() + 8),
            Err(OriginError::Size {
                have: origin.len() + 8,
                need: origin.len()
            })
        );
        assert!(matches!(
            rebuild(&[], &[], &mut []),
            Err(OriginError::Image(_))
        ));
    }
}
