//! Downgrade statements. A signature is put on, else nothing would get past it.

use crate::Target;
use segue_kernel::image::testing;
use segue_kernel::image::{
    BuildId, MAX_STATEMENT, Name, Place, PublicKey, Scope, Statement, StatementError, TrustedKeys,
};

pub const TARGET: Target = Target {
    name: "statement",
    what: "signed statements that allow a downgrade",
    longest: MAX_STATEMENT + 8,
    memory: 1 << 16,
    seeds,
    run,
};

const DOMAIN: [u8; 16] = [7; 16];

fn run(input: &[u8]) {
    let key = testing::key(1);
    let trusted = PublicKey::of(&key).0;
    let keys = TrustedKeys::new(&trusted);
    let seen = Statement::peek(input).map(|(statement, _)| statement);
    if let Ok(found) = Statement::open(input, &keys) {
        assert_eq!(seen, Ok(found), "who reads it sees what was signed");
    }
    let Ok(statement) = seen else {
        return;
    };
    let bytes = statement.sign(&key);
    assert_eq!(Statement::open(&bytes, &keys), Ok(statement));
    assert!(matches!(
        Statement::open(&bytes, &TrustedKeys::NONE),
        Err(StatementError::UnknownKey { .. })
    ));
    let Statement { from, to, .. } = statement;
    let place = match statement.scope {
        Scope::Domain(domain) => Place {
            domain: Some(domain),
            fleet: None,
        },
        Scope::Fleet(name) => Place {
            domain: None,
            fleet: Some(name),
        },
    };
    let last = statement.expires.saturating_sub(1);
    let allowed = statement.allows(from, to, &place, last);
    assert_eq!(allowed.is_ok(), last > 0);
    let late = statement.expires;
    assert!(statement.allows(from, to, &place, late).is_err());
    assert!(statement.allows(from, to, &Place::default(), last).is_err());
}

fn seeds() -> Vec<Vec<u8>> {
    let scopes = [
        Some(Scope::Domain(DOMAIN)),
        Name::new("fleet").map(Scope::Fleet),
    ];
    let statements = scopes.into_iter().flatten().map(|scope| Statement {
        from: BuildId([1; 32]),
        to: BuildId([2; 32]),
        scope,
        expires: 2_000_000_000,
    });
    statements.map(|s| s.sign(&testing::key(1))).collect()
}
