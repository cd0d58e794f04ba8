//! What can go into a preserved region, and what can't: each file of `refused/` does not compile,
//! for the reason that stands beside it; each of `taken/` does.

#[test]
fn plain_types() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/refused/*.rs");
    cases.pass("tests/taken/*.rs");
}
