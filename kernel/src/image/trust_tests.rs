//! Whom an image believes: signatures, refusals, statements.
#![allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests"
)]

extern crate std;

use std::string::ToString;
use std::vec::Vec;

use proptest::prelude::*;

use super::testing::{self, TestImage, key};
use super::*;

const NOW: u64 = 1_700_000_000;
const DOMAIN: [u8; 16] = [0xd0; 16];

fn trusted(keys: &[SigningKey]) -> Vec<u8> {
    keys.iter().flat_map(|key| PublicKey::of(key).0).collect()
}

fn image(version: &str) -> TestImage {
    let ident = Ident {
        version: Version::new(version).unwrap(),
        ..testing::ident().unwrap()
    };
    TestImage {
        ident: Some(ident),
        ..TestImage::default()
    }
}

fn build_of(version: &str) -> BuildId {
    Manifest::describe(&image(version).build()).unwrap().build
}

/// Version 2.0.0 of `test` runs.
fn running<'a>() -> Running<'a> {
    Running {
        name: Name::new("test").unwrap(),
        version: Version::new("2.0.0").unwrap(),
        build: build_of("2.0.0"),
        abi: AbiRange::new(1, 1).unwrap(),
        other_app: false,
        downgrade: None,
        place: Place {
            domain: Some(DOMAIN),
            fleet: Name::new("blue"),
        },
        now: NOW,
    }
}

fn judge(bytes: &[u8], keys: &[u8], running: Running<'_>) -> Result<Authority, VerifyError> {
    let policy = Policy {
        keys: TrustedKeys::new(keys),
        running: Some(running),
    };
    verify(bytes, &policy).map(|verified| verified.authority)
}

fn refusal(result: Result<Authority, VerifyError>) -> Refusal {
    match result {
        Err(VerifyError::Refused(refusal)) => {
            assert!(refusal.to_string().len() > 20);
            refusal
        }
        other => panic!("{other:?}"),
    }
}

fn hex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap() as u8;
    let (pairs, _) = text.as_bytes().as_chunks::<2>();
    pairs
        .iter()
        .map(|[a, b]| digit(*a) << 4 | digit(*b))
        .collect()
}

/// RFC 8032, section 7.1: secret key, public key, message, signature.
const VECTORS: [[&str; 4]; 5] = [
    [
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ],
    [
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ],
    [
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ],
    [
        "f5e5767cf153319517630f226876b86c8160cc583bc013744c6bf255f5cc0ee5",
        "278117fc144c72340f67d0f2316e8386ceffbf2b2428c9c51fef7c597f1d426e",
        LONG,
        "0aab4c900501b3e24d7cdf4663326a3a87df5e4843b2cbdb67cbf6e460fec350aa5371b1508f9f4528ecea23c436d94b5e8fcd4f681e30a6ac00a9704a188a03",
    ],
    [
        "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ],
];

/// The message of TEST 1024.
const LONG: &str = "08b8b2b733424243760fe426a4b54908632110a66c2f6591eabd3345e3e4eb98fa6e264bf09efe12ee50f8f54e9f77b1e355f6c50544e23fb1433ddf73be84d879de7c0046dc4996d9e773f4bc9efe5738829adb26c81b37c93a1b270b20329d658675fc6ea534e0810a4432826bf58c941efb65d57a338bbd2e26640f89ffbc1a858efcb8550ee3a5e1998bd177e93a7363c344fe6b199ee5d02e82d522c4feba15452f80288a821a579116ec6dad2b3b310da903401aa62100ab5d1a36553e06203b33890cc9b832f79ef80560ccb9a39ce767967ed628c6ad573cb116dbefefd75499da96bd68a8a97b928a8bbc103b6621fcde2beca1231d206be6cd9ec7aff6f6c94fcd7204ed3455c68c83f4a41da4af2b74ef5c53f1d8ac70bdcb7ed185ce81bd84359d44254d95629e9855a94a7c1958d1f8ada5d0532ed8a5aa3fb2d17ba70eb6248e594e1a2297acbbb39d502f1a8c6eb6f1ce22b3de1a1f40cc24554119a831a9aad6079cad88425de6bde1a9187ebb6092cf67bf2b13fd65f27088d78b7e883c8759d2c4f5c65adb7553878ad575f9fad878e80a0c9ba63bcbcc2732e69485bbc9c90bfbd62481d9089beccf80cfe2df16a2cf65bd92dd597b0707e0917af48bbb75fed413d238f5555a7a569d80c3414a8d0859dc65a46128bab27af87a71314f318c782b23ebfe808b82b0ce26401d2e22f04d83d1255dc51addd3b75a2b1ae0784504df543af8969be3ea7082ff7fc9888c144da2af58429ec96031dbcad3dad9af0dcbaaaf268cb8fcffead94f3c7ca495e056a9b47acdb751fb73e666c6c655ade8297297d07ad1ba5e43f1bca32301651339e22904cc8c42f58c30c04aafdb038dda0847dd988dcda6f3bfd15c4b4c4525004aa06eeff8ca61783aacec57fb3d1f92b0fe2fd1a85f6724517b65e614ad6808d6f6ee34dff7310fdc82aebfd904b01e1dc54b2927094b2db68d6f903b68401adebf5a7e08d78ff4ef5d63653a65040cf9bfd4aca7984a74d37145986780fc0b16ac451649de6188a7dbdf191f64b5fc5e2ab47b57f7f7276cd419c17a3ca8e1b939ae49e488acba6b965610b5480109c8b17b80e1b7b750dfc7598d5d5011fd2dcc5600a32ef5b52a1ecc820e308aa342721aac0943bf6686b64b2579376504ccc493d97e6aed3fb0f9cd71a43dd497f01f17c0e2cb3797aa2a2f256656168e6c496afc5fb93246f6b1116398a346f1a641f3b041e989f7914f90cc2c7fff357876e506b50d334ba77c225bc307ba537152f3f1610e4eafe595f6d9d90d11faa933a15ef1369546868a7f3a45a96768d40fd9d03412c091c6315cf4fde7cb68606937380db2eaaa707b4c4185c32eddcdd306705e4dc1ffc872eeee475a64dfac86aba41c0618983f8741c5ef68d3a101e8a3b8cac60c905c15fc910840b94c00a0b9d0";

#[test]
fn signatures_are_those_of_rfc_8032() {
    use ed25519_dalek::Signer;
    for [secret, public, message, good] in VECTORS {
        let key = SigningKey::from_bytes(&hex(secret).try_into().unwrap());
        let public = PublicKey(hex(public).try_into().unwrap());
        let message = hex(message);
        let good: [u8; 64] = hex(good).try_into().unwrap();
        assert_eq!(PublicKey::of(&key), public);
        assert_eq!(key.sign(&message).to_bytes(), good);
        // As the kernel takes it, from the section's bytes on.
        let trusted = [[0x17; 32], public.0].concat();
        let keys = TrustedKeys::new(&trusted);
        let check =
            |message: &[u8], signature: &[u8; 64]| keys.check(public.id(), message, signature);
        assert_eq!(check(&message, &good), Ok(()));
        let bad = Err(Refusal::BadSignature { id: public.id() });
        assert_eq!(check(&[&message[..], b"x"].concat(), &good), bad);
        for bit in [0, 255, 256, 511] {
            let mut signature = good;
            signature[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(check(&message, &signature), bad);
        }
        let unknown = Refusal::UnknownKey { id: KeyId([9; 8]) };
        let found = keys.check(KeyId([9; 8]), &message, &good);
        assert_eq!(found, Err(unknown));
    }
}

/// What RFC 8032 leaves to the verifier, and what makes signatures ambiguous.
#[test]
fn verification_is_strict() {
    use ed25519_dalek::Signer;
    // The point of order 1, with R the same and S 0, verifies for any message by the plain equation.
    let mut neutral = [0; 32];
    neutral[0] = 1;
    let mut signature = [0; 64];
    signature[0] = 1;
    assert!(!PublicKey(neutral).verify(b"any", &signature));
    assert!(!PublicKey(neutral).is_sound() && !PublicKey([2; 32]).is_sound());
    assert!(PublicKey::of(&key(1)).is_sound());

    // S plus the group's order.
    const ORDER: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde,
        0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let good = key(1).sign(b"message").to_bytes();
    assert!(PublicKey::of(&key(1)).verify(b"message", &good));
    let mut malleable = good;
    let mut carry = 0;
    for (byte, add) in malleable[32..].iter_mut().zip(ORDER) {
        let sum = u16::from(*byte) + u16::from(add) + carry;
        *byte = sum as u8;
        carry = sum >> 8;
    }
    assert_eq!(carry, 0);
    assert!(!PublicKey::of(&key(1)).verify(b"message", &malleable));
}

#[test]
fn who_has_signed_is_believed_if_trusted() {
    let signed = image("2.0.0").bundle_with(Some(&key(1)), |_| ());
    let unsigned = image("2.0.0").bundle();
    let id = PublicKey::of(&key(1)).id();
    let both = trusted(&[key(2), key(1)]);
    assert_eq!(judge(&signed, &both, running()), Ok(Authority::Key(id)));
    assert_eq!(judge(&signed, &[], running()), Ok(Authority::Nobody));
    assert_eq!(judge(&unsigned, &[], running()), Ok(Authority::Nobody));
    assert_eq!(Bundle::parse(&signed).unwrap().key(), Some(id));
    assert_eq!(Bundle::parse(&unsigned).unwrap().key(), None);

    let found = refusal(judge(&unsigned, &both, running()));
    assert_eq!(found, Refusal::Unsigned);
    let found = refusal(judge(&signed, &trusted(&[key(2)]), running()));
    assert_eq!(found, Refusal::UnknownKey { id });
    // Something that is no key does not make an image open.
    for junk in [&[1][..], &[0xff; 33]] {
        let found = refusal(judge(&signed, junk, running()));
        assert_eq!(found, Refusal::UnknownKey { id });
    }
    // The id of one key, the signature of another.
    let mut forged = image("2.0.0").bundle_with(Some(&key(3)), |_| ());
    forged[48..56].copy_from_slice(&id.0);
    testing::reseal(&mut forged);
    let found = refusal(judge(&forged, &both, running()));
    assert_eq!(found, Refusal::BadSignature { id });
    // A signature for another purpose: of the same bytes without the context.
    use ed25519_dalek::Signer;
    let mut other = signed.clone();
    let manifest = Manifest::describe(&image("2.0.0").build()).unwrap();
    let message = [&signed[..128], &manifest.encode()].concat();
    other[128..192].copy_from_slice(&key(1).sign(&message).to_bytes());
    let found = refusal(judge(&other, &both, running()));
    assert_eq!(found, Refusal::BadSignature { id });
}

/// What is behind the header is not looked at, whatever it is, until a trusted key stands for it.
#[test]
fn nothing_unsigned_is_read() {
    let keys = trusted(&[key(1)]);
    let good = image("2.0.0").bundle_with(Some(&key(3)), |_| ());
    let id = PublicKey::of(&key(3)).id();
    for fill in [0, 0xff] {
        let mut bytes = good.clone();
        bytes[192..].fill(fill);
        let found = refusal(judge(&bytes, &keys, running()));
        assert_eq!(found, Refusal::UnknownKey { id });
    }
    // All that a bundle can be refused for later comes after the signature.
    for mutation in testing::MUTATIONS {
        let mut bytes = image("2.0.0").bundle();
        mutation.apply(&mut bytes);
        let error = judge(&bytes, &keys, running()).unwrap_err();
        let header = matches!(
            error,
            VerifyError::Bundle(
                BundleError::Truncated { .. }
                    | BundleError::Magic(_)
                    | BundleError::FormatVersion { .. }
                    | BundleError::HeaderLength { .. }
                    | BundleError::TotalLength { .. }
                    | BundleError::ManifestLength { .. }
                    | BundleError::ImageRange { .. }
                    | BundleError::Reserved
                    | BundleError::HalfSigned
                    | BundleError::TrailingBytes { .. }
            )
        );
        let unbelieved = matches!(
            error,
            VerifyError::Refused(
                Refusal::Unsigned | Refusal::UnknownKey { .. } | Refusal::BadSignature { .. }
            )
        );
        assert!(header || unbelieved, "{}: {error:?}", mutation.name);
    }
}

/// A key that signs nonsense does not make it sound.
#[test]
fn signed_nonsense_is_refused_for_what_it_is() {
    let keys = trusted(&[key(1)]);
    for mutation in testing::MUTATIONS {
        let mut bytes = TestImage::default().bundle();
        mutation.apply(&mut bytes);
        testing::sign(&mut bytes, &key(1));
        let policy = Policy {
            keys: TrustedKeys::new(&keys),
            ..Policy::OPEN
        };
        let found = match verify(&bytes, &policy) {
            Ok(_) => "taken".to_string(),
            Err(error) => testing::variant(&error),
        };
        // Signing makes the header's digest and key id right, and no other.
        let wanted = match mutation.name {
            "a digest bit flipped" | "key id and signature added" => "taken",
            "a manifest bit flipped" => "Manifest::Malformed",
            _ => mutation.expect,
        };
        assert_eq!(found, wanted, "{}", mutation.name);
    }
}

#[test]
fn another_app_only_where_it_is_allowed() {
    let keys = trusted(&[key(1)]);
    let other = Running {
        name: Name::new("other").unwrap(),
        ..running()
    };
    let bundle = image("1.0.0").bundle_with(Some(&key(1)), |_| ());
    let expected = Refusal::OtherApp {
        bundle: Name::new("test").unwrap(),
        running: Name::new("other").unwrap(),
    };
    assert_eq!(refusal(judge(&bundle, &keys, other)), expected);
    // Versions of two apps are not compared.
    let allowed = Running {
        other_app: true,
        ..other
    };
    assert!(judge(&bundle, &keys, allowed).is_ok());
    // Of the same app they are, still.
    let allowed = Running {
        other_app: true,
        ..running()
    };
    let found = refusal(judge(&bundle, &keys, allowed));
    assert!(matches!(found, Refusal::Older { .. }));
    // Open is open.
    assert!(judge(&bundle, &[], other).is_ok());
}

#[test]
fn no_abi_in_common_is_refused_by_everybody() {
    let newer = Running {
        abi: AbiRange::new(2, 3).unwrap(),
        ..running()
    };
    let bundle = image("2.0.0").bundle_with(Some(&key(1)), |_| ());
    for keys in [trusted(&[key(1)]), Vec::new()] {
        let found = refusal(judge(&bundle, &keys, newer));
        assert!(matches!(found, Refusal::Abi { .. }));
    }
}

#[test]
fn versions_in_order() {
    let keys = trusted(&[key(1)]);
    let found = |bundle: &str, running_version: &str| {
        let bytes = image(bundle).bundle_with(Some(&key(1)), |_| ());
        let running = Running {
            version: Version::new(running_version).unwrap(),
            ..running()
        };
        match judge(&bytes, &keys, running) {
            Ok(_) => "taken",
            result => match refusal(result) {
                Refusal::Older { .. } => "older",
                Refusal::Unordered { .. } => "unordered",
                other => panic!("{other:?}"),
            },
        }
    };
    for (bundle, running, wanted) in [
        ("2.0.0", "2.0.0", "taken"),
        ("2.0.1", "2.0.0", "taken"),
        ("2.10.0", "2.9.0", "taken"),
        ("1.9.9", "2.0.0", "older"),
        ("2.0.0-rc.1", "2.0.0", "older"),
        ("2.0.0-rc.2", "2.0.0-rc.11", "older"),
        ("2.0.0", "2.0.0-rc.1", "taken"),
        ("2.0.0+a", "2.0.0+b", "taken"),
        ("2.0.0+b", "2.0.0+a", "taken"),
        ("nightly", "nightly", "taken"),
        ("nightly", "2.0.0", "unordered"),
        ("2.0.0", "nightly", "unordered"),
        ("2.0", "2.0.0", "unordered"),
        ("02.0.0", "2.0.0", "unordered"),
    ] {
        assert_eq!(found(bundle, running), wanted, "{bundle} after {running}");
    }
}

/// An old bundle that was good once, exactly as it was.
#[test]
fn replay_is_refused_and_a_rebuild_is_not() {
    let keys = trusted(&[key(1)]);
    let old = image("1.0.0").bundle_with(Some(&key(1)), |_| ());
    let then = Running {
        version: Version::new("1.0.0").unwrap(),
        ..running()
    };
    assert!(judge(&old, &keys, then).is_ok());
    let found = refusal(judge(&old, &keys, running()));
    assert!(matches!(
        found,
        Refusal::Older {
            statement: None,
            ..
        }
    ));
    let mut rebuilt = image("2.0.0");
    rebuilt.relr = false;
    let rebuilt = rebuilt.bundle_with(Some(&key(1)), |_| ());
    assert!(judge(&rebuilt, &keys, running()).is_ok());
}

fn statement() -> Statement {
    Statement {
        from: build_of("2.0.0"),
        to: build_of("1.0.0"),
        scope: Scope::Domain(DOMAIN),
        expires: NOW + 60,
    }
}

#[test]
fn a_statement_allows_one_downgrade() {
    let keys = trusted(&[key(1)]);
    let old = image("1.0.0").bundle_with(Some(&key(1)), |_| ());
    let with = |statement: &[u8], running: Running<'_>| {
        let running = Running {
            downgrade: Some(statement),
            ..running
        };
        judge(&old, &keys, running)
    };
    let why = |result| match refusal(result) {
        Refusal::Older { statement, .. } => {
            assert!(statement.unwrap().to_string().len() > 10);
            statement.unwrap()
        }
        other => panic!("{other:?}"),
    };
    let good = statement().sign(&key(1));
    assert!(good.len() <= MAX_STATEMENT);
    assert!(with(&good, running()).is_ok());
    let fleet = Statement {
        scope: Scope::Fleet(Name::new("blue").unwrap()),
        ..statement()
    };
    assert!(with(&fleet.sign(&key(1)), running()).is_ok());

    // Each thing it says has to be so.
    let from = Running {
        build: build_of("2.0.1"),
        ..running()
    };
    assert!(matches!(
        why(with(&good, from)),
        StatementError::From { .. }
    ));
    let to = Statement {
        to: build_of("1.0.1"),
        ..statement()
    };
    let found = why(with(&to.sign(&key(1)), running()));
    assert!(matches!(found, StatementError::To { .. }));
    for domain in [None, Some([0xd1; 16])] {
        let elsewhere = Running {
            place: Place {
                domain,
                ..running().place
            },
            ..running()
        };
        let found = why(with(&good, elsewhere));
        assert!(matches!(found, StatementError::Domain { here, .. } if here == domain));
    }
    for here in [None, Name::new("green")] {
        let elsewhere = Running {
            place: Place {
                fleet: here,
                ..running().place
            },
            ..running()
        };
        let found = why(with(&fleet.sign(&key(1)), elsewhere));
        assert!(matches!(found, StatementError::Fleet { .. }));
    }
    let last = Running {
        now: NOW + 59,
        ..running()
    };
    assert!(with(&good, last).is_ok());
    let late = Running {
        now: NOW + 60,
        ..running()
    };
    assert!(matches!(
        why(with(&good, late)),
        StatementError::Expired { .. }
    ));
    let timeless = Running {
        now: 0,
        ..running()
    };
    assert_eq!(why(with(&good, timeless)), StatementError::NoClock);

    // Who says it has to be trusted, and to have said it.
    let found = why(with(&statement().sign(&key(2)), running()));
    assert!(matches!(found, StatementError::UnknownKey { .. }));
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    let found = why(with(&forged, running()));
    assert!(matches!(found, StatementError::BadSignature { .. }));

    // It stands for a version only.
    let unsigned = image("1.0.0").bundle();
    let allowed = Running {
        downgrade: Some(&good),
        ..running()
    };
    let found = refusal(judge(&unsigned, &keys, allowed));
    assert_eq!(found, Refusal::Unsigned);
    let found = refusal(judge(
        &old,
        &keys,
        Running {
            name: Name::new("other").unwrap(),
            ..allowed
        },
    ));
    assert!(matches!(found, Refusal::OtherApp { .. }));
    // Nor is it a bundle, or the other way round.
    assert!(matches!(
        why(with(&old, running())),
        StatementError::Length { .. } | StatementError::Magic
    ));
    assert!(matches!(Bundle::parse(&good), Err(BundleError::Magic(_))));
}

#[test]
fn statements_are_read_as_they_were_written() {
    let good = statement().sign(&key(1));
    let id = PublicKey::of(&key(1)).id();
    assert_eq!(Statement::peek(&good), Ok((statement(), id)));
    for len in 0..good.len() {
        assert!(Statement::peek(&good[..len]).is_err(), "cut to {len}");
    }
    let mut longer = good.clone();
    longer.push(0);
    assert!(Statement::peek(&longer).is_err());
    // One byte more, and a header that says so: a limit that nobody knows of.
    longer[12] += 1;
    assert_eq!(Statement::peek(&longer), Err(StatementError::Malformed));
    let mut other = good.clone();
    other[0] ^= 1;
    assert_eq!(Statement::peek(&other), Err(StatementError::Magic));
    let mut other = good;
    other[8] = 2;
    assert_eq!(
        Statement::peek(&other),
        Err(StatementError::FormatVersion { version: 2 })
    );
}

#[test]
fn a_digest_that_is_not_its_own_is_found_out() {
    let kept = image("1.0.0").bundle();
    let digest = Bundle::parse(&kept).unwrap().digest();
    let open = Policy::OPEN;
    assert_eq!(verify(&kept, &open).unwrap().digest, digest);
    // Another manifest under the same digest,
    let mut forged = image("1.0.1").bundle();
    forged[56..88].copy_from_slice(&digest.0);
    let error = verify(&forged, &open).unwrap_err();
    assert_eq!(testing::variant(&error), "Bundle::Altered");
    // another image too.
    let mut forged = kept.clone();
    let at = forged.len() - 100;
    forged[at] ^= 1;
    let error = verify(&forged, &open).unwrap_err();
    assert_eq!(testing::variant(&error), "Bundle::Altered");
}

#[test]
fn manifests_are_read_as_they_were_written() {
    let mut manifest = Manifest::describe(&TestImage::default().build()).unwrap();
    manifest.trusts.push(PublicKey::of(&key(1)).id());
    manifest.revokes_previous = true;
    let bytes = manifest.encode();
    assert_eq!(Manifest::decode(&bytes), Ok(manifest.clone()));
    // Fields that are added later are skipped.
    let longer = [&bytes[..], b"more"].concat();
    assert_eq!(Manifest::decode(&longer), Ok(manifest.clone()));
    for len in 0..bytes.len() {
        assert!(Manifest::decode(&bytes[..len]).is_err(), "cut to {len}");
    }
    // The longest there is has room.
    manifest.name = Name::new(&"n".repeat(32)).unwrap();
    manifest.version = Version::new(&"9".repeat(32)).unwrap();
    manifest.abi = AbiRange::new(u32::MAX, u32::MAX).unwrap();
    manifest.min_memory = u64::MAX;
    while manifest.segments.try_push(manifest.image).is_ok() {}
    while manifest.trusts.try_push(KeyId([0xff; 8])).is_ok() {}
    assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_flipped_bit_in_a_signed_bundle_is_refused(bit: prop::sample::Index) {
        let keys = trusted(&[key(1)]);
        let mut bytes = image("2.0.0").bundle_with(Some(&key(1)), |_| ());
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(judge(&bytes, &keys, running()).is_err());
    }

    #[test]
    fn a_flipped_bit_in_a_statement_is_refused(bit: prop::sample::Index) {
        let mut bytes = statement().sign(&key(1));
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let keys = trusted(&[key(1)]);
        prop_assert!(Statement::open(&bytes, &TrustedKeys::new(&keys)).is_err());
    }

    #[test]
    fn statements_come_back(from: [u8; 32], to: [u8; 32], uuid: [u8; 16], name in "[a-z0-9-]{1,32}", in_fleet: bool, expires: u64) {
        let scope = if in_fleet { Scope::Fleet(Name::new(&name).unwrap()) } else { Scope::Domain(uuid) };
        let made = Statement { from: BuildId(from), to: BuildId(to), scope, expires };
        let keys = trusted(&[key(1)]);
        let found = Statement::open(&made.sign(&key(1)), &TrustedKeys::new(&keys));
        prop_assert_eq!(found, Ok(made));
    }

    #[test]
    fn no_manifest_makes_it_panic(bytes: Vec<u8>) {
        let _ = Manifest::decode(&bytes);
        let _ = Statement::peek(&bytes);
    }
}

/// Each bit of what a signature covers, and of the signature: more than chance would find.
#[test]
fn each_bit_up_to_the_image_counts() {
    let keys = trusted(&[key(1)]);
    let good = image("2.0.0").bundle_with(Some(&key(1)), |_| ());
    let head = good.len() - Bundle::parse(&good).unwrap().image().len();
    // A prime step: all bits would take minutes without optimisation.
    for bit in (0..head * 8).step_by(5) {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(judge(&bytes, &keys, running()).is_err(), "bit {bit}");
    }
}
