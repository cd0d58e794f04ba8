//! The TCP header (RFC 9293, section 3.1) and its options (RFC 9293, 7323, 2018).
//!
//! Our own rather than smoltcp's: that one folds flags into one of five kinds (SYN with FIN or RST
//! with data can't be told any more), keeps three SACK blocks where a header has room for four, and
//! wants header and payload in one piece. Tests hold it against smoltcp's.

use super::seq::Seq;

/// Bytes of a header without options.
pub const MIN_HEADER: usize = 20;
/// Bytes of the longest header.
pub const MAX_HEADER: usize = 60;
/// Bytes the timestamps option takes, padded.
pub const TIMESTAMPS_LEN: u32 = 12;
/// The most SACK blocks a header has room for.
pub const MAX_SACK: usize = 4;

/// No more data.
pub const FIN: u8 = 0x01;
/// Synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Reset.
pub const RST: u8 = 0x04;
/// Push.
pub const PSH: u8 = 0x08;
/// The acknowledgement number counts.
pub const ACK: u8 = 0x10;

/// What a segment says, but for its ports and its bytes. Urgent data counts as ordinary data
/// (RFC 6093): the pointer is not looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Sequence number of the first byte, or of SYN.
    pub seq: Seq,
    /// Acknowledgement number.
    pub ack: Seq,
    /// [`FIN`] … [`ACK`] and the bits above them.
    pub flags: u8,
    /// The window as it stands there, not scaled.
    pub window: u16,
    /// Maximum segment size.
    pub mss: Option<u16>,
    /// Window scale, at most 14 (RFC 7323, section 2.3).
    pub scale: Option<u8>,
    /// Whether SACK is permitted.
    pub sack_permitted: bool,
    /// TSval and TSecr.
    pub timestamps: Option<(u32, u32)>,
    /// SACK blocks; the first `sack_count` count.
    pub sack: [(Seq, Seq); MAX_SACK],
    /// How many.
    pub sack_count: u8,
}

impl Header {
    /// Whether any of these flags is set.
    pub const fn has(&self, flags: u8) -> bool {
        self.flags & flags != 0
    }

    /// The SACK blocks.
    pub fn sack_blocks(&self) -> &[(Seq, Seq)] {
        self.sack
            .get(..self.sack_count as usize)
            .unwrap_or(&self.sack)
    }

    /// Reads a header. `None` if its length is wrong; options that are wrong are passed over.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let fixed = bytes.first_chunk::<MIN_HEADER>()?;
        let [
            _,
            _,
            _,
            _,
            s0,
            s1,
            s2,
            s3,
            a0,
            a1,
            a2,
            a3,
            offset,
            flags,
            w0,
            w1,
            ..,
        ] = *fixed;
        let options = bytes.get(MIN_HEADER..usize::from(offset >> 4) * 4)?;
        let mut header = Self {
            seq: Seq(u32::from_be_bytes([s0, s1, s2, s3])),
            ack: Seq(u32::from_be_bytes([a0, a1, a2, a3])),
            flags,
            window: u16::from_be_bytes([w0, w1]),
            ..Self::default()
        };
        match *options {
            [] => {}
            // What nearly all segments of a connection carry: two NOPs and timestamps.
            [1, 1, 8, 10, v0, v1, v2, v3, e0, e1, e2, e3] => {
                header.timestamps = Some((
                    u32::from_be_bytes([v0, v1, v2, v3]),
                    u32::from_be_bytes([e0, e1, e2, e3]),
                ));
            }
            _ => header.parse_options(options),
        }
        Some(header)
    }

    fn parse_options(&mut self, mut rest: &[u8]) {
        loop {
            let (kind, after) = match *rest {
                [] | [0, ..] => return,
                [1, ref after @ ..] => {
                    rest = after;
                    continue;
                }
                [kind, len, ..] if len >= 2 => match rest.split_at_checked(len.into()) {
                    Some((option, after)) => ((kind, option.get(2..).unwrap_or_default()), after),
                    None => return,
                },
                _ => return,
            };
            rest = after;
            match kind {
                (2, &[a, b]) => self.mss = Some(u16::from_be_bytes([a, b])),
                (3, &[scale]) => self.scale = Some(scale.min(14)),
                (4, &[]) => self.sack_permitted = true,
                (5, blocks) if blocks.len().is_multiple_of(8) => {
                    self.sack_count = 0;
                    for (place, block) in self.sack.iter_mut().zip(blocks.chunks_exact(8)) {
                        if let [a, b, c, d, e, f, g, h] = *block {
                            let start = Seq(u32::from_be_bytes([a, b, c, d]));
                            *place = (start, Seq(u32::from_be_bytes([e, f, g, h])));
                            self.sack_count += 1;
                        }
                    }
                }
                (8, &[a, b, c, d, e, f, g, h]) => {
                    self.timestamps = Some((
                        u32::from_be_bytes([a, b, c, d]),
                        u32::from_be_bytes([e, f, g, h]),
                    ));
                }
                _ => {}
            }
        }
    }

    /// Writes it, with checksum 0, for these ports.
    pub fn emit(&self, src_port: u16, dst_port: u16) -> Emitted {
        let mut out = Emitted {
            bytes: [0; MAX_HEADER],
            len: 0,
        };
        out.put(&src_port.to_be_bytes());
        out.put(&dst_port.to_be_bytes());
        out.put(&self.seq.0.to_be_bytes());
        out.put(&self.ack.0.to_be_bytes());
        out.put(&[0, self.flags]);
        out.put(&self.window.to_be_bytes());
        out.put(&[0; 4]);
        if let Some(mss) = self.mss {
            let [a, b] = mss.to_be_bytes();
            out.put(&[2, 4, a, b]);
        }
        if self.sack_permitted {
            out.put(&[1, 1, 4, 2]);
        }
        if let Some(scale) = self.scale {
            out.put(&[1, 3, 3, scale]);
        }
        if let Some((value, echo)) = self.timestamps {
            out.put(&[1, 1, 8, 10]);
            out.put(&value.to_be_bytes());
            out.put(&echo.to_be_bytes());
        }
        // As many blocks as there is room for.
        let room = (MAX_HEADER - out.len).saturating_sub(4) / 8;
        let blocks = self.sack_blocks();
        let blocks = blocks.get(..room).unwrap_or(blocks);
        if !blocks.is_empty() {
            out.put(&[1, 1, 5, 2 + 8 * blocks.len() as u8]);
            for (start, end) in blocks {
                out.put(&start.0.to_be_bytes());
                out.put(&end.0.to_be_bytes());
            }
        }
        out.bytes[12] = (out.len as u8 / 4) << 4;
        out
    }
}

/// A header's bytes.
#[derive(Clone, Copy, Debug)]
pub struct Emitted {
    bytes: [u8; MAX_HEADER],
    len: usize,
}

impl Emitted {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn put(&mut self, bytes: &[u8]) {
        if let Some(place) = self.bytes.get_mut(self.len..self.len + bytes.len()) {
            place.copy_from_slice(bytes);
            self.len += bytes.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smoltcp::wire::{TcpOption, TcpPacket};

    use super::*;

    fn header() -> impl Strategy<Value = Header> {
        let numbers = (any::<u32>(), any::<u32>(), any::<u8>(), any::<u16>());
        let syn = (
            any::<Option<u16>>(),
            prop::option::of(0u8..15),
            any::<bool>(),
        );
        let sack = prop::collection::vec((any::<u32>(), any::<u32>()), 0..4);
        (numbers, syn, any::<Option<(u32, u32)>>(), sack).prop_map(
            |((seq, ack, flags, window), (mss, scale, sack_permitted), timestamps, blocks)| {
                let mut header = Header {
                    seq: Seq(seq),
                    ack: Seq(ack),
                    flags,
                    window,
                    mss,
                    scale,
                    sack_permitted,
                    timestamps,
                    ..Header::default()
                };
                // Only what fits beside the others.
                let syn_len = [mss.is_some(), scale.is_some(), sack_permitted];
                let taken =
                    syn_len.iter().filter(|&&is| is).count() * 4 + timestamps.map_or(0, |_| 12);
                let room = (40 - taken).saturating_sub(4) / 8;
                for (place, (a, b)) in header.sack.iter_mut().zip(blocks).take(room) {
                    *place = (Seq(a), Seq(b));
                    header.sack_count += 1;
                }
                header
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(header in header(), src: u16, dst: u16) {
            let emitted = header.emit(src, dst);
            prop_assert_eq!(Header::parse(emitted.as_bytes()), Some(header));
        }

        #[test]
        fn smoltcp_reads_what_is_written(header in header(), src in 1u16.., dst in 1u16..) {
            let emitted = header.emit(src, dst);
            let packet = TcpPacket::new_checked(emitted.as_bytes()).unwrap();
            prop_assert_eq!(packet.src_port(), src);
            prop_assert_eq!(packet.dst_port(), dst);
            prop_assert_eq!(packet.seq_number().0 as u32, header.seq.0);
            prop_assert_eq!(packet.ack_number().0 as u32, header.ack.0);
            prop_assert_eq!(packet.window_len(), header.window);
            prop_assert_eq!(packet.syn(), header.has(SYN));
            prop_assert_eq!(packet.checksum(), 0);
            let mut options = packet.options();
            let mut seen = Header::default();
            while !options.is_empty() {
                let (rest, option) = TcpOption::parse(options).unwrap();
                options = rest;
                match option {
                    TcpOption::EndOfList => break,
                    TcpOption::MaxSegmentSize(mss) => seen.mss = Some(mss),
                    TcpOption::WindowScale(scale) => seen.scale = Some(scale),
                    TcpOption::SackPermitted => seen.sack_permitted = true,
                    TcpOption::TimeStamp { tsval, tsecr } => seen.timestamps = Some((tsval, tsecr)),
                    TcpOption::SackRange(blocks) => {
                        seen.sack_count = blocks.iter().flatten().count() as u8;
                    }
                    _ => {}
                }
            }
            prop_assert_eq!(seen.mss, header.mss);
            prop_assert_eq!(seen.scale, header.scale);
            prop_assert_eq!(seen.sack_permitted, header.sack_permitted);
            prop_assert_eq!(seen.timestamps, header.timestamps);
            prop_assert_eq!(seen.sack_count, header.sack_count);
        }

        #[test]
        fn garbage_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some(header) = Header::parse(&bytes) {
                prop_assert!(header.sack_blocks().len() <= MAX_SACK);
                prop_assert!(header.scale.unwrap_or(0) <= 14);
            }
        }
    }
}
