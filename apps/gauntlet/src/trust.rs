//! An image that trusts a key everybody has, number 1 of [`testing::key`]: what it refuses, what it
//! takes, and that it serves on after each. What is taken refuses in its trial.

use segue::kernel::boot;
use segue::kernel::image::testing::{self, key, variant};
use segue::kernel::image::{
    AbiRange, BuildId, Bundle, Digest, Ident, Manifest, Name, PublicKey, Refusal, Scope,
    SigningKey, Statement, VerifyError, Version, assemble, ident_range,
};
use segue::kernel::xen::{Committed, shared_info};
use segue::{Replace, ReplaceError};

/// Bits that are flipped all over a bundle, one a run.
const FLIPS: usize = 20;
/// What is taken.
const TAKEN: &str = "taken";

/// Tries them all.
pub fn run() {
    if boot::trusted_keys().iter().next() != Some(PublicKey::of(&key(1))) {
        return println!("gauntlet: trust outcome=bad why=\"built without the test's key\"");
    }
    let own = Bundle::split_first(crate::own_bundle());
    let own = own.and_then(Result::ok).expect("own bundle").0.image();
    let ident = boot::identity();
    let trusted = key(1);
    let mut cases = Cases::default();
    let good = bundle(own, Some(&trusted), |_| ());
    // The first refusal and the first trial may make the heap grow.
    let _ = Replace::new(&[]).start();
    let _ = Replace::new(&good).args("--as refuse").start();
    let unsigned = bundle(own, None, |_| ());
    cases.run("same-again", &good, TAKEN, |r| r);
    cases.run("unsigned", &unsigned, "Refused::Unsigned", |r| r);
    let stranger = bundle(own, Some(&key(2)), |_| ());
    cases.run("unknown-key", &stranger, "Refused::UnknownKey", |r| r);
    let mut forged = stranger;
    forged[48..56].copy_from_slice(&PublicKey::of(&trusted).id().0);
    testing::reseal(&mut forged);
    cases.run("bad-signature", &forged, "Refused::BadSignature", |r| r);
    let mut altered = good.clone();
    let middle = altered.len() / 2;
    altered[middle] ^= 1;
    cases.run("altered", &altered, "Bundle::Altered", |r| r);
    // All over it, and in each part of what stands before the image.
    let last = good.len() * 8 - 1;
    let spread = (0..FLIPS).map(|i| i * last / (FLIPS - 1));
    let head = [8, 12, 16, 24, 32, 40, 44, 48, 56, 88, 128, 160, 192, 256].map(|at| at * 8 + 3);
    for bit in spread.chain(head) {
        let mut flipped = good.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        cases.run(&format!("flipped-bit-{bit}"), &flipped, "", |r| r);
    }
    // The digest of the whole is right, that of the last segment is not.
    let segment = bundle(own, Some(&trusted), |manifest| {
        if let Some(last) = manifest.segments.last_mut() {
            *last = Digest::default();
        }
    });
    cases.run("altered-segment", &segment, "Load::Segment", |r| r);

    let other = relabelled(own, |i| i.name = Name::new("other").expect("a name"));
    let other = bundle(&other, Some(&trusted), |_| ());
    cases.run("other-app", &other, "Refused::OtherApp", |r| r);
    cases.run("other-app-allowed", &other, TAKEN, Replace::allow_other_app);
    let abi = relabelled(own, |i| i.abi = AbiRange::new(1000, 1001).expect("a range"));
    let abi = bundle(&abi, Some(&trusted), |_| ());
    cases.run("other-abi", &abi, "Refused::Abi", |r| r);
    let version = |version: &str| {
        let version = Version::new(version).expect("a version");
        bundle(
            &relabelled(own, |i| i.version = version),
            Some(&trusted),
            |_| (),
        )
    };
    cases.run("newer", &version("999.0.0"), TAKEN, |r| r);
    cases.run(
        "no-version",
        &version("nightly"),
        "Refused::Unordered",
        |r| r,
    );
    let old = version("0.0.1-rc.1");
    cases.run("older", &old, "Refused::Older", |r| r);

    let Some(token) = Committed::get() else {
        return println!("gauntlet: trust outcome=bad why=\"on trial\"");
    };
    let place = boot::place(token);
    let now = shared_info::wall_clock().0;
    let to = Manifest::describe(Bundle::parse(&old).expect("a bundle").image());
    let statement = Statement {
        from: ident.build,
        to: to.expect("an image").build,
        scope: Scope::Domain(place.domain.unwrap_or_default()),
        expires: now + 3600,
    };
    let fleet = |name: &str| Scope::Fleet(Name::new(name).expect("a name"));
    let mut domain = place.domain.unwrap_or_default();
    domain[0] ^= 1;
    for (name, signer, statement, wanted) in [
        ("for-domain", 1, statement, TAKEN),
        (
            "for-fleet",
            1,
            Statement {
                scope: fleet("blue"),
                ..statement
            },
            TAKEN,
        ),
        ("by-a-stranger", 2, statement, "Statement::UnknownKey"),
        (
            "from-another",
            1,
            Statement {
                from: BuildId([1; 32]),
                ..statement
            },
            "Statement::From",
        ),
        (
            "to-another",
            1,
            Statement {
                to: BuildId([1; 32]),
                ..statement
            },
            "Statement::To",
        ),
        (
            "elsewhere",
            1,
            Statement {
                scope: Scope::Domain(domain),
                ..statement
            },
            "Statement::Domain",
        ),
        (
            "other-fleet",
            1,
            Statement {
                scope: fleet("green"),
                ..statement
            },
            "Statement::Fleet",
        ),
        (
            "expired",
            1,
            Statement {
                expires: now,
                ..statement
            },
            "Statement::Expired",
        ),
    ] {
        let bytes = statement.sign(&key(signer));
        let name = format!("statement-{name}");
        cases.run(&name, &old, wanted, |r| r.downgrade(&bytes));
    }
    let mut forged = statement.sign(&trusted);
    if let Some(byte) = forged.last_mut() {
        *byte ^= 1;
    }
    let wanted = "Statement::BadSignature";
    cases.run("statement-altered", &old, wanted, |r| r.downgrade(&forged));
    let bytes = statement.sign(&trusted);
    let wanted = "Refused::Unsigned";
    cases.run("statement-unsigned", &unsigned, wanted, |r| {
        r.downgrade(&bytes)
    });

    let Cases { done, failed } = cases;
    println!("gauntlet: done trust={done} failed={failed}");
}

#[derive(Default)]
struct Cases {
    done: u32,
    failed: u32,
}

impl Cases {
    /// One attempt, and what is to come of it: a refusal, a trial, or any error if that is empty.
    fn run<'a>(
        &mut self,
        name: &str,
        bundle: &'a [u8],
        wanted: &str,
        with: impl FnOnce(Replace<'a>) -> Replace<'a>,
    ) {
        let replace = with(Replace::new(bundle).args("--as refuse"));
        let frames = segue::free_frames();
        let error = replace.start().unwrap_err();
        let (before, after) = (frames, segue::free_frames());
        let got = match &error {
            ReplaceError::Verify(VerifyError::Refused(
                Refusal::Older {
                    statement: Some(error),
                    ..
                }
                | Refusal::Unordered {
                    statement: Some(error),
                    ..
                },
            )) => {
                let text = format!("{error:?}");
                let word = text.split(|c: char| !c.is_alphanumeric()).next();
                format!("Statement::{}", word.unwrap_or_default())
            }
            ReplaceError::Verify(error) => variant(error),
            ReplaceError::Resumed { reason, .. } if reason.contains("refused: not today") => {
                TAKEN.into()
            }
            other => format!("{other:?}"),
        };
        let right = got == wanted || wanted.is_empty() && matches!(error, ReplaceError::Verify(_));
        let good = before == after && right;
        self.done += 1;
        self.failed += u32::from(!good);
        let outcome = if good { "ok" } else { "bad" };
        println!("gauntlet: trust={name} got={got} outcome={outcome} message=\"{error}\"");
        if before != after {
            println!("gauntlet: frames trust={name} free_before={before} free_after={after}");
        }
    }
}

/// A bundle of an image, signed if there is a key, after a change of its manifest.
fn bundle(elf: &[u8], key: Option<&SigningKey>, change: impl FnOnce(&mut Manifest)) -> Vec<u8> {
    let mut manifest = Manifest::describe(elf).expect("a good image");
    change(&mut manifest);
    assemble(&manifest, elf, key).expect("a bundle")
}

/// The same image under another label.
fn relabelled(elf: &[u8], change: impl FnOnce(&mut Ident)) -> Vec<u8> {
    let mut elf = elf.to_vec();
    let desc = ident_range(&elf).expect("an identity");
    let mut ident = Ident::parse(&elf[desc.clone()]).expect("a good one");
    change(&mut ident);
    elf[desc].copy_from_slice(&ident.encode());
    Ident::stamp_build(&mut elf).expect("an identity");
    elf
}
