//! Patterns of modules.alias: `*`, `?` and `[...]`, as fnmatch(3) without flags has them.

/// Whether `text` matches `pattern`.
///
/// Takes time in proportion to the product of both lengths at most: after a mismatch only the last `*` takes more.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let (mut pattern, mut text) = (pattern.as_bytes(), text.as_bytes());
    // Where to go on after the last `*` when what follows it does not match here.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        if let [b'*', rest @ ..] = pattern {
            pattern = rest;
            retry = Some((rest, text));
            continue;
        }
        match (step(pattern, text), text) {
            (Some((next_pattern, next_text)), _) => (pattern, text) = (next_pattern, next_text),
            (None, []) if pattern.is_empty() => return true,
            (None, _) => match retry {
                Some((after, [_, rest @ ..])) => {
                    retry = Some((after, rest));
                    (pattern, text) = (after, rest);
                }
                _ => return false,
            },
        }
    }
}

/// Matches the pattern's first element, no `*`, with the text's first byte; returns what is left of both.
fn step<'a>(pattern: &'a [u8], text: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (byte, text) = text.split_first()?;
    let (first, rest) = pattern.split_first()?;
    match first {
        b'?' => Some((rest, text)),
        b'[' => match class(rest) {
            Some((members, rest)) => is_member(members, *byte).then_some((rest, text)),
            // Without an end the bracket stands for itself.
            None => (*byte == b'[').then_some((rest, text)),
        },
        _ => (first == byte).then_some((rest, text)),
    }
}

/// The members between brackets, and what follows them. A `]` that comes first is a member.
fn class(pattern: &[u8]) -> Option<(&[u8], &[u8])> {
    let negated = usize::from(matches!(pattern.first(), Some(b'!' | b'^')));
    let end = pattern.iter().skip(negated + 1).position(|byte| *byte == b']')? + negated + 1;
    Some((pattern.get(..end)?, pattern.get(end + 1..)?))
}

fn is_member(members: &[u8], byte: u8) -> bool {
    let (negated, mut rest) = match members {
        [b'!' | b'^', rest @ ..] => (true, rest),
        _ => (false, members),
    };
    let mut found = false;
    loop {
        match rest {
            [low, b'-', high, tail @ ..] => {
                found |= (*low..=*high).contains(&byte);
                rest = tail;
            }
            [one, tail @ ..] => {
                found |= *one == byte;
                rest = tail;
            }
            [] => return found != negated,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, want) in [
            ("virtio:d00000002v*", "virtio:d00000002v00001AF4", true),
            ("virtio:d00000002v*", "virtio:d00000001v00001AF4", false),
            ("pci:v*d*sv*sd*bc01sc08i02*", "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02", true),
            (
                "usb:v0BDAp0138d*dc*dsc*dp*ic08isc06ip50in*",
                "usb:v0BDAp0138d3882dc00dsc00dp00ic08isc06ip50in00",
                true,
            ),
            ("a[0-9b]c", "a5c", true),
            ("a[0-9b]c", "abc", true),
            ("a[0-9b]c", "axc", false),
            ("a[!0-9]c", "axc", true),
            ("a[!0-9]c", "a1c", false),
            ("a[]]c", "a]c", true),
            ("a[bc", "a[bc", true),
            ("a?c", "ac", false),
            ("*", "", true),
            ("", "x", false),
            ("*ab*ab", "abxabxab", true),
            ("crypto-crc32c", "crypto-crc32c", true),
        ] {
            assert_eq!(matches(pattern, text), want, "{pattern} on {text}");
        }
    }

    proptest! {
        #[test]
        fn a_text_matches_itself_with_stars_anywhere(text in "[a-z:0-9]{0,20}", stars in proptest::collection::vec(any::<bool>(), 21)) {
            let mut pattern = String::new();
            for (at, letter) in text.chars().enumerate() {
                pattern.push_str(if stars[at] { "*" } else { "" });
                pattern.push(letter);
            }
            prop_assert!(matches(&pattern, &text));
            let star_matches = matches(&format!("*{pattern}"), &format!("x{text}"));
            prop_assert!(star_matches);
            let one_more = format!("{text}#");
            prop_assert!(!matches(&pattern, &one_more));
        }

        #[test]
        fn any_pattern_ends(pattern in "[\\[\\]*?!a-c-]{0,30}", text in "[\\[\\]a-c-]{0,30}") {
            matches(&pattern, &text);
        }
    }
}
