//! Redis's patterns: `*`, `?`, `[a-z]`, `[^a]`, `\`.

/// Whether a pattern matches all of `text`. Each `*` is tried once at each place: the work is at
/// most the product of the lengths.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on when something after the last star does not fit.
    let mut star = None;
    loop {
        if let Some(rest) = pattern.get(p..)
            && !rest.is_empty()
        {
            if rest.first() == Some(&b'*') {
                p += 1;
                star = Some((p, t));
                continue;
            }
            if let Some(byte) = text.get(t)
                && let Some(len) = one(rest, *byte)
            {
                p += len;
                t += 1;
                continue;
            }
        } else if t == text.len() {
            return true;
        }
        match &mut star {
            Some((after, from)) if *from < text.len() => {
                *from += 1;
                (p, t) = (*after, *from);
            }
            _ => return false,
        }
    }
}

/// If the first item of a pattern, no star, fits a byte: the item's length.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [b'[', class @ ..] => {
            let negated = class.first() == Some(&b'^');
            let mut at = usize::from(negated);
            let mut fits = false;
            loop {
                match class.get(at..).unwrap_or_default() {
                    // Without its end, a class ends with the pattern.
                    [] => break,
                    [b']', ..] => {
                        at += 1;
                        break;
                    }
                    [b'\\', escaped, ..] => {
                        fits |= *escaped == byte;
                        at += 2;
                    }
                    [a, b'-', b, ..] => {
                        fits |= (*a.min(b)..=*a.max(b)).contains(&byte);
                        at += 3;
                    }
                    [a, ..] => {
                        fits |= *a == byte;
                        at += 1;
                    }
                }
            }
            (fits != negated).then_some(at + 1)
        }
        [literal, ..] => (*literal == byte).then_some(1),
        [] => None,
    }
}
