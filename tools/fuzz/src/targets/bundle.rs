//! Bundles and the ELF images in them. The digest is made right, else nothing would get past it.

use crate::Target;
use segue_kernel::image::testing::{self, MUTATIONS, TestImage};
use segue_kernel::image::{Image, bundles, verify};

pub const TARGET: Target = Target {
    name: "bundle",
    what: "bundles and ELF images: verifier and loader",
    longest: 4096,
    memory: 4 << 20,
    seeds,
    run,
};

/// Larger images only differ in how much is zeroed.
const MOST: u64 = 1 << 20;

fn run(input: &[u8]) {
    let mut bytes = input.to_vec();
    // As it came, and with its digest right.
    let _ = verify(&bytes);
    for bundle in bundles(&bytes).flatten() {
        assert!(bundle.image.len() <= bytes.len());
    }
    let _ = Image::parse(&bytes);
    testing::reseal(&mut bytes);
    let Ok((_, image)) = verify(&bytes) else {
        return;
    };
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
        image.load(0x7f00_0000_1000, memory).expect("it loads");
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
    let good = TestImage::default().bundle();
    for mutation in MUTATIONS {
        let mut bad = good.clone();
        mutation.apply(&mut bad);
        all.push(bad);
    }
    all
}
