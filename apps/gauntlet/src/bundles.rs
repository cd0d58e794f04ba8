//! Bad bundles: each refused with an error that names the cause, and nothing is lost.

use segue::ReplaceError;
use segue::kernel::image::testing::{MUTATIONS, variant};

/// Bits that are flipped, one a run.
const FLIPS: usize = 20;

/// Tries them all.
pub fn run() {
    let good = crate::own_bundle();
    // The first failure may make the heap grow.
    let _ = segue::replace_image(&[]);
    let (mut done, mut failed) = (0, 0);
    let mut case = |name: &str, bundle: &[u8], wanted: Option<&str>| {
        let frames = segue::free_frames();
        let error = segue::replace_image(bundle).unwrap_err();
        let got = match &error {
            ReplaceError::Verify(e) => variant(e),
            other => format!("{other:?}"),
        };
        let same = segue::free_frames() == frames;
        let right = wanted.is_none_or(|w| got.starts_with(w));
        // More memory than there is may be asked for; a flipped bit has to be seen as one.
        let verified = matches!(error, ReplaceError::Verify(_))
            || wanted.is_some() && matches!(error, ReplaceError::NoMemory { .. });
        let good = same && right && verified;
        done += 1;
        failed += u32::from(!good);
        let outcome = if good { "ok" } else { "bad" };
        println!("gauntlet: bundle={name} error={got} outcome={outcome} message=\"{error}\"");
    };
    let mut copy = Vec::with_capacity(good.len() + 4096);
    for mutation in MUTATIONS {
        copy.clear();
        copy.extend_from_slice(good);
        mutation.apply(&mut copy);
        case(mutation.name, &copy, Some(mutation.expect));
    }
    for i in 0..FLIPS {
        copy.clear();
        copy.extend_from_slice(good);
        // Spread over the whole bundle, its end and its beginning included.
        let bit = i * (copy.len() * 8 - 1) / (FLIPS - 1);
        copy[bit / 8] ^= 1 << (bit % 8);
        case(&format!("flipped-bit-{bit}"), &copy, None);
    }
    println!("gauntlet: done bundles={done} failed={failed}");
}
