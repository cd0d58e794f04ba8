//! Packets put together from fragments (RFC 791 section 3.2, RFC 8200 section 4.5), with bounds on
//! how many and how much may wait.

use super::ip::{Fragment, Header};
use alloc::vec::Vec;
use core::net::IpAddr;
use smoltcp::storage::Assembler;

/// Most packets that wait for fragments.
const PACKETS: usize = 16;
/// Most bytes that wait, over all packets.
const BYTES: usize = 512 * 1024;
/// Longest payload of an IP packet.
const LONGEST: usize = 0xffff;
/// How long a packet waits after its first fragment came: RFC 8200's time, in ns.
const WAIT: u64 = 60_000_000_000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Key {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    ident: u32,
}

#[derive(Debug)]
struct Partial {
    key: Key,
    header: Header,
    bytes: Vec<u8>,
    have: Assembler,
    total: Option<usize>,
    expires: u64,
}

/// Packets of which fragments came.
#[derive(Debug, Default)]
pub struct Reassembler {
    packets: Vec<Partial>,
    bytes: usize,
}

impl Reassembler {
    /// Takes a fragment whose payload lies in `pieces`. When it was the last one missing, returns
    /// the packet's headers (as of a whole packet) and its payload.
    pub fn take(
        &mut self,
        now: u64,
        header: &Header,
        at: Fragment,
        pieces: &[&[u8]],
    ) -> Option<(Header, Vec<u8>)> {
        self.expire(now);
        let len = header.payload;
        let end = at.offset.checked_add(len).filter(|e| *e <= LONGEST)?;
        // Only the last fragment may have any length.
        if len == 0 || (at.more && !len.is_multiple_of(8)) {
            return None;
        }
        let key = Key {
            src: header.src,
            dst: header.dst,
            // IPv6 tells packets apart without it.
            protocol: if header.src.is_ipv4() {
                header.protocol
            } else {
                0
            },
            ident: at.ident,
        };
        let found = self.packets.iter().position(|p| p.key == key);
        let index = match found {
            Some(i) => i,
            None => self.start(now, key, header),
        };
        let taken = self.add(index, at, end, pieces);
        if at.offset == 0
            && taken == Ok(true)
            && let Some(p) = self.packets.get_mut(index)
        {
            // What stands in the first fragment's header counts.
            p.header = *header;
        }
        match taken {
            Err(Bad) => {
                self.drop_packet(index);
                return None;
            }
            Ok(false) => return None,
            Ok(true) => {}
        }
        let done = self
            .packets
            .get(index)
            .is_some_and(|p| p.total == Some(p.have.peek_front()));
        if !done {
            self.shed(index);
            return None;
        }
        let mut packet = self.drop_packet(index)?;
        packet.bytes.truncate(packet.total?);
        let whole = Header {
            header: 0,
            payload: packet.bytes.len(),
            fragment: None,
            ..packet.header
        };
        Some((whole, packet.bytes))
    }

    fn start(&mut self, now: u64, key: Key, header: &Header) -> usize {
        if self.packets.len() >= PACKETS {
            self.drop_packet(0);
        }
        self.packets.push(Partial {
            key,
            header: *header,
            bytes: Vec::new(),
            have: Assembler::new(),
            total: None,
            expires: now.saturating_add(WAIT),
        });
        self.packets.len() - 1
    }

    /// `Ok(false)`: nothing new.
    fn add(
        &mut self,
        index: usize,
        at: Fragment,
        end: usize,
        pieces: &[&[u8]],
    ) -> Result<bool, Bad> {
        let p = self.packets.get_mut(index).ok_or(Bad)?;
        if !at.more {
            if p.total.is_some_and(|t| t != end) || p.bytes.len() > end {
                return Err(Bad);
            }
            p.total = Some(end);
        } else if p.total.is_some_and(|t| end > t) {
            return Err(Bad);
        }
        for (from, to) in p.have.iter_data() {
            if at.offset >= from && end <= to {
                return Ok(false);
            }
            // Overlaps serve attacks only: the packet is given up (RFC 5722).
            if at.offset < to && end > from {
                return Err(Bad);
            }
        }
        p.have.add(at.offset, end - at.offset).map_err(|_| Bad)?;
        if p.bytes.len() < end {
            self.bytes += end - p.bytes.len();
            p.bytes.resize(end, 0);
        }
        let mut to = at.offset;
        for piece in pieces {
            let until = (to + piece.len()).min(end);
            let room = p.bytes.get_mut(to..until).ok_or(Bad)?;
            room.copy_from_slice(piece.get(..room.len()).ok_or(Bad)?);
            to = until;
        }
        if to == end { Ok(true) } else { Err(Bad) }
    }

    /// Gives up the oldest packets until what waits is within bounds.
    fn shed(&mut self, keep: usize) {
        let mut keep = keep;
        while self.bytes > BYTES && self.packets.len() > 1 {
            let oldest = usize::from(keep == 0);
            self.drop_packet(oldest);
            keep = keep.saturating_sub(1);
        }
    }

    fn drop_packet(&mut self, index: usize) -> Option<Partial> {
        if index >= self.packets.len() {
            return None;
        }
        let packet = self.packets.remove(index);
        self.bytes -= packet.bytes.len();
        Some(packet)
    }

    fn expire(&mut self, now: u64) {
        // They stand in the order of their coming, and all wait equally long.
        while self.packets.first().is_some_and(|p| p.expires <= now) {
            self.drop_packet(0);
        }
    }
}

struct Bad;

impl PartialEq for Bad {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(payload: usize) -> Header {
        Header {
            src: IpAddr::V4([10, 0, 0, 1].into()),
            dst: IpAddr::V4([10, 0, 0, 2].into()),
            protocol: 17,
            hops: 64,
            header: 20,
            payload,
            fragment: None,
            hop_by_hop: false,
        }
    }

    proptest! {
        #[test]
        fn fragments_in_any_order_and_twice_make_the_packet(
            bytes in proptest::collection::vec(any::<u8>(), 1..6000),
            size in 40usize..200,
            seed: u64,
        ) {
            let size = size * 8;
            let mut parts: Vec<_> = bytes.chunks(size).enumerate().collect();
            // Shuffled, and one of them twice.
            let n = parts.len();
            let mut s = seed;
            for i in (1..n).rev() {
                s = s.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                parts.swap(i, (s >> 33) as usize % (i + 1));
            }
            parts.insert(0, parts[n / 2]);
            let mut r = Reassembler::default();
            let mut got = None;
            for (i, part) in parts {
                let more = (i + 1) * size < bytes.len();
                let at = Fragment { ident: 7, offset: i * size, more };
                let (a, b) = part.split_at(part.len() / 3);
                got = r.take(1, &header(part.len()), at, &[a, b]);
                if got.is_some() {
                    break;
                }
            }
            let (h, out) = got.unwrap();
            prop_assert_eq!(h.payload, bytes.len());
            prop_assert_eq!(out, bytes);
            prop_assert!(r.packets.is_empty() && r.bytes == 0);
        }

        #[test]
        fn what_waits_is_bounded(
            frags in proptest::collection::vec((0u32..40, 0usize..8192, 0usize..3000, any::<bool>()), 0..300),
        ) {
            let mut r = Reassembler::default();
            let data = [0x55; 3000];
            for (i, (ident, offset, len, more)) in frags.into_iter().enumerate() {
                let at = Fragment { ident, offset: offset * 8, more };
                r.take(i as u64, &header(len), at, &[&data[..len]]);
                prop_assert!(r.packets.len() <= PACKETS);
                prop_assert!(r.bytes <= BYTES.max(LONGEST));
                prop_assert_eq!(r.bytes, r.packets.iter().map(|p| p.bytes.len()).sum::<usize>());
            }
            r.expire(u64::MAX);
            prop_assert!(r.packets.is_empty() && r.bytes == 0);
        }
    }
}
