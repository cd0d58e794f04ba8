//! A target under libFuzzer, whose `main` this is linked with; `SEGUE_FUZZ_TARGET` says which.
#![no_main]

use libfuzzer_sys::fuzz_target;
use segue_fuzz::Target;
use std::sync::OnceLock;

static TARGET: OnceLock<&Target> = OnceLock::new();

fuzz_target!(
    init: {
        let name = std::env::var("SEGUE_FUZZ_TARGET").unwrap_or_default();
        let target = Target::named(&name).expect("SEGUE_FUZZ_TARGET names a target");
        let _ = TARGET.set(target);
    },
    |data: &[u8]| {
        if let Some(target) = TARGET.get() {
            target.check(data);
        }
    }
);
