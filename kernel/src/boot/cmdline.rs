//! The command line: `segue.KEY=VALUE` words for the runtime, then `--` and the app's arguments.

use arrayvec::ArrayString;

/// Longest command line, in bytes.
pub const MAX: usize = 2048;

/// A command line, kept as it came (less what is past [`MAX`] or not UTF-8).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    text: ArrayString<MAX>,
}

impl CommandLine {
    /// From bytes up to the first NUL.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let bytes = bytes.split(|b| *b == 0).next().unwrap_or_default();
        let mut text = ArrayString::new();
        for chunk in bytes.utf8_chunks() {
            // In one piece: this is done in the blackout, too.
            let room = text.remaining_capacity();
            let valid = chunk.valid();
            text.push_str(&valid[..valid.floor_char_boundary(room)]);
            if room < valid.len() {
                break;
            }
        }
        Self { text }
    }

    /// All of it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn words(&self) -> impl Iterator<Item = &str> {
        self.text.split_ascii_whitespace()
    }

    /// All values of `segue.KEY`, in order.
    pub fn options<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> {
        self.words()
            .take_while(|w| *w != "--")
            .filter_map(move |w| {
                w.strip_prefix("segue.")?
                    .strip_prefix(key)?
                    .strip_prefix('=')
            })
    }

    /// The value of `segue.KEY`; the last one said counts.
    #[must_use]
    pub fn option(&self, key: &str) -> Option<&str> {
        self.options(key).last()
    }

    /// The app's environment: `NAME=VALUE` of each `segue.env.NAME=VALUE`.
    pub fn environment(&self) -> impl Iterator<Item = &str> {
        self.words()
            .take_while(|w| *w != "--")
            .filter_map(|w| w.strip_prefix("segue.env."))
            .filter(|w| w.find('=').is_some_and(|at| at > 0))
    }

    /// The app's arguments: what stands after `--`.
    pub fn args(&self) -> impl Iterator<Item = &str> {
        self.words().skip_while(|w| *w != "--").skip(1)
    }

    /// The same options with other arguments for the app; `None` if that is too long.
    #[must_use]
    pub fn with_args<'a>(&'a self, args: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut text = ArrayString::new();
        let options = self.words().take_while(|w| *w != "--");
        for word in options.chain(["--"]).chain(args) {
            if !text.is_empty() {
                text.try_push(' ').ok()?;
            }
            text.try_push_str(word).ok()?;
        }
        Some(Self { text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn options_end_where_arguments_begin() {
        let c = CommandLine::from_bytes(
            b"console=x segue.log=info  segue.shared_info=ram segue.log=warn -- clock a --b segue.log=no\0junk",
        );
        assert_eq!(c.option("log"), Some("warn"));
        assert_eq!(c.option("shared_info"), Some("ram"));
        assert_eq!(c.option("shared"), None);
        assert_eq!(
            c.args().collect::<Vec<_>>(),
            ["clock", "a", "--b", "segue.log=no"]
        );
        let e = CommandLine::from_bytes(
            b"segue.env.A=1 segue.env.=x segue.env.B segue.env.C=a=b x=y -- segue.env.D=2",
        );
        assert_eq!(e.environment().collect::<Vec<_>>(), ["A=1", "C=a=b"]);
        let d = c.with_args(["x", "y"].into_iter()).unwrap();
        assert_eq!(
            d.as_str(),
            "console=x segue.log=info segue.shared_info=ram segue.log=warn -- x y"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_command_line(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let c = CommandLine::from_bytes(&bytes);
            let _ = (c.option("log"), c.args().count(), c.environment().count(), c.with_args(["a"].into_iter()));
            prop_assert!(c.as_str().len() <= MAX);
        }

        /// Whole characters, as many as there is room for; what is not UTF-8 is left out.
        #[test]
        fn a_long_one_is_cut_between_characters(
            pieces in proptest::collection::vec(("[a-zäβ東🦀]{0,400}", any::<bool>()), 0..8)
        ) {
            let (mut bytes, mut wanted, mut full) = (Vec::new(), String::new(), false);
            for (text, broken) in &pieces {
                bytes.extend(text.bytes());
                bytes.extend(broken.then_some(0xff));
                for c in text.chars() {
                    full |= wanted.len() + c.len_utf8() > MAX;
                    if !full {
                        wanted.push(c);
                    }
                }
            }
            let line = CommandLine::from_bytes(&bytes);
            prop_assert_eq!(line.as_str(), wanted);
        }
    }
}
