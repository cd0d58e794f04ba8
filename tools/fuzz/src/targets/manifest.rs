//! Manifests, and what a running image says to them.

use crate::Target;
use segue_kernel::image::testing::{self, TestImage};
use segue_kernel::image::{
    Authority, MAX_MANIFEST, Manifest, Place, Policy, PublicKey, Running, TrustedKeys, Version,
};

pub const TARGET: Target = Target {
    name: "manifest",
    what: "manifests of bundles: reader, and what may take a running image's place",
    longest: MAX_MANIFEST + 8,
    memory: 1 << 16,
    seeds,
    run,
};

fn run(input: &[u8]) {
    let Ok(manifest) = Manifest::decode(input) else {
        return;
    };
    let bytes = manifest.encode();
    assert!(
        bytes.len() <= input.len(),
        "it is written as short as can be"
    );
    assert_eq!(Manifest::decode(&bytes).as_ref(), Ok(&manifest));
    let Some(ident) = testing::ident() else {
        return;
    };
    let key = PublicKey::of(&testing::key(1));
    let running = Running {
        name: ident.name,
        version: ident.version,
        build: ident.build,
        abi: ident.abi,
        other_app: false,
        downgrade: None,
        place: Place::default(),
        now: 1,
    };
    let judge = |running, manifest: &Manifest, authority| {
        let policy = Policy {
            keys: TrustedKeys::new(&key.0),
            running: Some(running),
        };
        policy.judge(manifest, authority)
    };
    let signed = Authority::Key(key.id());
    let found = judge(running, &manifest, signed);
    if found.is_ok() {
        assert_eq!(manifest.name, ident.name);
        assert!(judge(running, &manifest, Authority::Nobody).is_ok());
    }
    // Of two versions one is not older, unless nobody can tell.
    if manifest.name == ident.name && manifest.abi == ident.abi {
        let mut back = manifest.clone();
        back.version = ident.version;
        let turned = Running {
            version: manifest.version,
            ..running
        };
        let comparable = [manifest.version, ident.version]
            .iter()
            .all(segue_kernel::image::is_semantic);
        let back = judge(turned, &back, signed);
        assert!(found.is_ok() || back.is_ok() || !comparable);
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let Ok(good) = Manifest::describe(&TestImage::default().build()) else {
        return Vec::new();
    };
    let versions = [
        "1.0.0",
        "0.9.9",
        "1.0.0-rc.1",
        "1.0.0+build",
        "nightly",
        "2",
    ];
    let versions = versions.into_iter().filter_map(Version::new);
    let mut all: Vec<_> = versions
        .map(|version| Manifest {
            version,
            ..good.clone()
        })
        .collect();
    let mut full = good;
    while full.segments.try_push(full.image).is_ok() {}
    let key = PublicKey::of(&testing::key(1)).id();
    while full.trusts.try_push(key).is_ok() {}
    full.revokes_previous = true;
    all.push(full);
    all.iter()
        .map(|manifest| manifest.encode().to_vec())
        .collect()
}
