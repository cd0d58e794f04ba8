//! Bundles and the ELF images in them. Digests are made right and a signature is put on, else nothing
//! would get past them.

use crate::Target;
use segue_kernel::image::testing::{self, MUTATIONS, TestImage};
use segue_kernel::image::{
    Bundle, Image, Policy, PublicKey, TrustedKeys, VerifyError, bundles, verify,
};

pub const TARGET: Target = Target {
    name: "bundle",
    what: "bundles and ELF images: signatures, verifier and loader",
    longest: 4096,
    memory: 4 << 20,
    seeds,
    run,
};

/// Larger images only differ in how much is zeroed.
const MOST: u64 = 1 << 20;

fn run(input: &[u8]) {
    let mut bytes = input.to_vec();
    // As it came, with its digests right, and signed.
    let _ = verify(&bytes, &Policy::OPEN);
    let mut total = 0;
    for bundle in bundles(&bytes).flatten() {
        total += bundle.total_len();
        assert!(total <= bytes.len() as u64);
    }
    let _ = Image::parse(&bytes);
    testing::reseal(&mut bytes);
    let open = verify(&bytes, &Policy::OPEN).map(|verified| verified.manifest);
    let mut signed = bytes.clone();
    signed_by_somebody(&mut signed);
    let trusted = PublicKey::of(&testing::key(1)).0;
    let policy = Policy {
        keys: TrustedKeys::new(&trusted),
        ..Policy::OPEN
    };
    let closed = verify(&signed, &policy).map(|verified| verified.manifest);
    // A signature makes what is not in order no better, and what is no worse.
    if Bundle::parse(&bytes).is_ok_and(|bundle| bundle.key().is_none()) {
        assert_eq!(open, closed);
    }
    let Ok(verified) = verify(&bytes, &Policy::OPEN) else {
        return;
    };
    let image = &verified.image;
    let span = image.span();
    let mut end = 0;
    let mut entry = false;
    for segment in image.segments() {
        assert!(segment.offset >= end, "segments are sorted and apart");
        assert!(
            !(segment.perms.write && segment.perms.execute),
            "nothing is both writable and executable"
        );
        end = segment.offset + segment.mem_len;
        entry |= segment.perms.execute && (segment.offset..end).contains(&image.entry_offset());
    }
    assert!(end <= span && entry);
    if let Some(tls) = image.tls() {
        assert!(tls.offset + tls.file_len <= span && tls.file_len <= tls.mem_len);
        assert!(tls.align.is_power_of_two());
    }
    if span > MOST {
        return;
    }
    // What is accepted loads anywhere, and writes all of its memory.
    let mut loads = [0xaau8, 0x55].map(|fill| vec![fill; span as usize]);
    for memory in &mut loads {
        verified.place(0x7f00_0000_1000, memory).expect("it loads");
    }
    assert!(loads[0] == loads[1], "bytes were left as they were");
    // Nothing lies between segments.
    let [memory, _] = &mut loads;
    for segment in image.segments() {
        let start = segment.offset as usize;
        memory[start..start + segment.mem_len as usize].fill(0);
    }
    assert!(memory.iter().all(|byte| *byte == 0));
}

/// Signs it. Before that, whoever trusts others has looked at no more than its header.
fn signed_by_somebody(bytes: &mut [u8]) {
    let others = PublicKey::of(&testing::key(2)).0;
    let policy = Policy {
        keys: TrustedKeys::new(&others),
        ..Policy::OPEN
    };
    let header = |bytes: &[u8]| Bundle::parse(bytes).err().map(VerifyError::Bundle);
    for sign in [false, true] {
        if sign {
            testing::sign(bytes, &testing::key(1));
        }
        let error = verify(bytes, &policy)
            .map(drop)
            .expect_err("nobody trusted");
        assert!(
            matches!(error, VerifyError::Refused(_)) || header(bytes) == Some(error),
            "{error:?}"
        );
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for relr in [false, true] {
        all.push(
            TestImage {
                relr,
                ..TestImage::default()
            }
            .bundle(),
        );
    }
    all.push(TestImage::default().bundle_with(Some(&testing::key(1)), |_| ()));
    let good = TestImage::default().bundle();
    for mutation in MUTATIONS {
        let mut bad = good.clone();
        mutation.apply(&mut bad);
        all.push(bad);
    }
    all
}
