//! What typed bytes mean to a program that reads standard input.
//!
//! The console's other end is a raw terminal (`xl console`) or a program that writes to one, so
//! two things that a terminal would do are done here, and no more: no echo, no editing.
//!
//! - The key Enter sends a carriage return; lines end with a newline (termios: `ICRNL`).
//! - Ctrl-D (EOT, `VEOF`) at the start of a line is the end of the input: the read before it gives
//!   what came before, the next one nothing, and those after it go on. Elsewhere it is a byte.

/// Where in the input the next byte is.
#[derive(Debug)]
pub(crate) struct Typed {
    line_start: bool,
    /// An end that no read has told of.
    end: bool,
}

const EOT: u8 = 4;

impl Typed {
    /// At the start of a line.
    pub(crate) const fn new() -> Self {
        Self {
            line_start: true,
            end: false,
        }
    }

    /// Whether the next read tells of the end.
    pub(crate) fn is_end(&self) -> bool {
        self.end
    }

    /// Fills `buf` from `next`; 0 is the end, `None` that there is nothing yet. Takes no byte that
    /// it does not give, but for the end's.
    pub(crate) fn read(
        &mut self,
        buf: &mut [u8],
        mut next: impl FnMut() -> Option<u8>,
    ) -> Option<usize> {
        if core::mem::take(&mut self.end) {
            return Some(0);
        }
        let mut count = 0;
        for place in buf {
            let byte = match next() {
                None => break,
                Some(EOT) if self.line_start && count == 0 => return Some(0),
                Some(EOT) if self.line_start => {
                    self.end = true;
                    break;
                }
                Some(b'\r') => b'\n',
                Some(byte) => byte,
            };
            self.line_start = byte == b'\n';
            *place = byte;
            count += 1;
        }
        (count != 0).then_some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All reads of an input that comes in pieces: the text of each stretch up to an end.
    fn stretches(input: &[u8], sizes: &[usize]) -> Vec<Vec<u8>> {
        let mut typed = Typed::new();
        let mut bytes = input.iter().copied();
        let mut all = vec![Vec::new()];
        for size in sizes.iter().copied().cycle() {
            let mut buf = vec![0; size];
            match typed.read(&mut buf, || bytes.next()) {
                None => return all,
                Some(0) => all.push(Vec::new()),
                Some(n) => all.last_mut().unwrap().extend(&buf[..n]),
            }
        }
        all
    }

    #[test]
    fn enter_ends_a_line_and_ctrl_d_the_input() {
        let texts = stretches(b"one\rt\x04wo\n\x04three\r\x04", &[100]);
        let wanted: [&[u8]; 3] = [b"one\nt\x04wo\n", b"three\n", b""];
        assert_eq!(texts, wanted);
        assert_eq!(stretches(b"\x04\x04a", &[3]), [&b""[..], b"", b"a"]);
    }

    proptest! {
        /// How large the reads are makes no difference, and no byte is lost or made up.
        #[test]
        fn the_same_in_any_pieces(
            input in proptest::collection::vec(prop_oneof![Just(4u8), Just(b'\r'), Just(b'\n'), any::<u8>()], 0..60),
            sizes in proptest::collection::vec(1usize..9, 1..9),
        ) {
            let texts = stretches(&input, &sizes);
            prop_assert_eq!(&texts, &stretches(&input, &[1000]));
            let given: usize = texts.iter().map(Vec::len).sum();
            prop_assert_eq!(given + texts.len() - 1, input.len());
            prop_assert!(texts.iter().flatten().all(|b| *b != b'\r'));
        }
    }
}
