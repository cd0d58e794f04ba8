//! IP packets in pieces: headers read with care (RFC 791, RFC 8200), headers written, checksums
//! over pieces (RFC 1071).

use arrayvec::ArrayVec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IPV4_HEADER_LEN, IPV6_HEADER_LEN, IpProtocol,
    Ipv4Packet, Ipv4Repr, Ipv6ExtHeader, Ipv6FragmentHeader, Ipv6OptionFailureType, Ipv6OptionRepr,
    Ipv6OptionsIterator, Ipv6Packet, Ipv6Repr, checksum,
};

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Most pieces of one packet: a GSO packet in pages, headers apart.
pub const PIECES: usize = 20;
/// Protocol numbers (IANA).
pub const ICMP: u8 = 1;
/// Internet Group Management Protocol.
pub const IGMP: u8 = 2;
/// Transmission Control Protocol.
pub const TCP: u8 = 6;
/// User Datagram Protocol.
pub const UDP: u8 = 17;
/// ICMP for IPv6.
pub const ICMPV6: u8 = 58;

const FRAGMENT: u8 = 44;

/// Where a fragment belongs in its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Tells the fragments of a packet from those of others.
    pub ident: u32,
    /// Place of its first byte in the payload; at most 65,528.
    pub offset: usize,
    /// Whether more follows behind it.
    pub more: bool,
}

/// What the headers of an IP packet say. `header + payload` bytes are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Protocol of the payload.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hops: u8,
    /// Bytes of all IP headers.
    pub header: usize,
    /// Bytes behind them.
    pub payload: usize,
    /// Set if this is not all of the packet.
    pub fragment: Option<Fragment>,
    /// An IPv6 packet with hop-by-hop options.
    pub hop_by_hop: bool,
}

/// Reads the headers of an IP packet of which `first` holds at least all headers, or the packet's
/// end; `whole` bytes of it were received. `None`: to be dropped.
#[must_use]
pub fn parse(first: &[u8], whole: usize) -> Option<Header> {
    match first.first()? >> 4 {
        4 => parse_v4(first, whole),
        6 => parse_v6(first, whole),
        _ => None,
    }
}

fn parse_v4(first: &[u8], whole: usize) -> Option<Header> {
    if first.len() < IPV4_HEADER_LEN {
        return None;
    }
    // `new_checked` wants all of the packet in one piece; these are its checks.
    let packet = Ipv4Packet::new_unchecked(first);
    let header = usize::from(packet.header_len());
    let total = usize::from(packet.total_len());
    if header < IPV4_HEADER_LEN || header > first.len() || header > total || total > whole {
        return None;
    }
    if !packet.verify_checksum() {
        return None;
    }
    let offset = usize::from(packet.frag_offset());
    let more = packet.more_frags();
    let payload = total - header;
    let fragment = (more || offset != 0).then_some(Fragment {
        ident: u32::from(packet.ident()),
        offset,
        more,
    });
    Some(Header {
        src: packet.src_addr().into(),
        dst: packet.dst_addr().into(),
        protocol: packet.next_header().into(),
        hops: packet.hop_limit(),
        header,
        payload,
        fragment,
        hop_by_hop: false,
    })
}

/// Whether a host may go on behind these options (RFC 8200 section 4.2).
fn options_pass(data: &[u8]) -> bool {
    Ipv6OptionsIterator::new(data).all(|option| match option {
        Ok(Ipv6OptionRepr::Unknown { type_, .. }) => {
            Ipv6OptionFailureType::from(type_) == Ipv6OptionFailureType::Skip
        }
        Ok(_) => true,
        Err(_) => false,
    })
}

fn parse_v6(first: &[u8], whole: usize) -> Option<Header> {
    if first.len() < IPV6_HEADER_LEN {
        return None;
    }
    let packet = Ipv6Packet::new_unchecked(first);
    let total = IPV6_HEADER_LEN + usize::from(packet.payload_len());
    if total > whole {
        return None;
    }
    let (src, dst, hops) = (packet.src_addr(), packet.dst_addr(), packet.hop_limit());
    let first = first.get(..total.min(first.len()))?;
    let mut next: u8 = packet.next_header().into();
    let mut header = IPV6_HEADER_LEN;
    let mut fragment = None;
    let mut hop_by_hop = false;
    for place in 0.. {
        let rest = first.get(header..)?;
        match next {
            // Hop-by-hop options (first only), destination options, routing.
            0 | 60 | 43 => {
                let extension = Ipv6ExtHeader::new_checked(rest).ok()?;
                match next {
                    0 if place != 0 => return None,
                    43 => {
                        // A routing header is passed over when it leads nowhere else.
                        if *extension.payload().get(1)? != 0 {
                            return None;
                        }
                    }
                    _ if !options_pass(extension.payload()) => return None,
                    _ => hop_by_hop |= next == 0,
                }
                next = extension.next_header().into();
                header += 2 + extension.payload().len();
            }
            FRAGMENT => {
                let part = Ipv6FragmentHeader::new_checked(rest.get(2..8)?).ok()?;
                next = *rest.first()?;
                header += 8;
                let offset = usize::from(part.frag_offset()) * 8;
                let more = part.more_frags();
                // An atomic fragment is a whole packet (RFC 6946).
                if more || offset != 0 {
                    fragment = Some(Fragment {
                        ident: part.ident(),
                        offset,
                        more,
                    });
                    break;
                }
            }
            _ => break,
        }
        if place > 8 {
            return None;
        }
    }
    Some(Header {
        src: src.into(),
        dst: dst.into(),
        protocol: next,
        hops,
        header,
        payload: total.checked_sub(header)?,
        fragment,
        hop_by_hop,
    })
}

/// A checksum over pieces of any length (RFC 1071).
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    sum: u32,
    odd: bool,
}

impl Sum {
    /// Over the pseudo-header of `length` bytes of `protocol`.
    #[must_use]
    pub fn pseudo(src: IpAddr, dst: IpAddr, protocol: u8, length: usize) -> Self {
        let mut sum = Self::default();
        for addr in [src, dst] {
            match addr {
                IpAddr::V4(a) => sum.add(&a.octets()),
                IpAddr::V6(a) => sum.add(&a.octets()),
            }
        }
        // A length of GSO size is folded in like any other word.
        sum.add(&u32::from(protocol).to_be_bytes());
        sum.add(&u32::try_from(length).unwrap_or(0).to_be_bytes());
        sum
    }

    /// Goes on over `bytes`.
    pub fn add(&mut self, bytes: &[u8]) {
        let part = checksum::data(bytes);
        let part = if self.odd { part.swap_bytes() } else { part };
        self.sum += u32::from(part);
        self.sum = (self.sum & 0xffff) + (self.sum >> 16);
        self.odd ^= bytes.len() % 2 == 1;
    }

    /// Goes on over all `pieces`.
    #[must_use]
    pub fn over(mut self, pieces: &[&[u8]]) -> Self {
        pieces.iter().for_each(|p| self.add(p));
        self
    }

    /// The sum itself, as it stands in a field that a device completes.
    #[must_use]
    pub fn partial(&self) -> u16 {
        let sum = (self.sum & 0xffff) + (self.sum >> 16);
        sum as u16
    }

    /// What goes into the field.
    #[must_use]
    pub fn field(&self) -> u16 {
        !self.partial()
    }

    /// Whether what was summed holds its own right checksum.
    #[must_use]
    pub fn right(&self) -> bool {
        self.partial() == 0xffff
    }
}

/// The part of `pieces` from `from` on that is `len` bytes long, as far as there is so much.
#[must_use]
pub fn part<'a>(pieces: &[&'a [u8]], from: usize, len: usize) -> ArrayVec<&'a [u8], PIECES> {
    let mut out = ArrayVec::new();
    let (mut skip, mut left) = (from, len);
    for piece in pieces {
        let start = skip.min(piece.len());
        skip -= start;
        let end = start.saturating_add(left).min(piece.len());
        if let Some(p) = piece.get(start..end).filter(|p| !p.is_empty()) {
            left -= p.len();
            if out.try_push(p).is_err() {
                break;
            }
        }
    }
    out
}

/// Bytes in all pieces.
#[must_use]
pub fn length(pieces: &[&[u8]]) -> usize {
    pieces.iter().map(|p| p.len()).sum()
}

/// What is to be written in front of a payload.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    /// Source address, of the same family as `dst`.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Protocol of the payload.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hops: u8,
}

/// Ethernet and IP headers on the stack.
pub type HeaderBuffer = ArrayVec<u8, { ETHERNET + IPV6_HEADER_LEN + 8 }>;

/// Writes an Ethernet header.
pub fn ethernet(out: &mut HeaderBuffer, src: [u8; 6], dst: [u8; 6], v6: bool) {
    let mut bytes = [0; ETHERNET];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    frame.set_src_addr(EthernetAddress(src));
    frame.set_dst_addr(EthernetAddress(dst));
    frame.set_ethertype(if v6 {
        EthernetProtocol::Ipv6
    } else {
        EthernetProtocol::Ipv4
    });
    out.extend(bytes);
}

/// Writes an IP header in front of `payload` bytes; false if the addresses are of two kinds or the
/// packet would be too long.
pub fn header(out: &mut HeaderBuffer, ip: &Out, payload: usize, part: Option<Fragment>) -> bool {
    match (ip.src, ip.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => header_v4(out, ip, src, dst, payload, part),
        (IpAddr::V6(src), IpAddr::V6(dst)) => header_v6(out, ip, src, dst, payload, part),
        _ => false,
    }
}

fn header_v4(
    out: &mut HeaderBuffer,
    ip: &Out,
    src: Ipv4Addr,
    dst: Ipv4Addr,
    payload: usize,
    part: Option<Fragment>,
) -> bool {
    if payload > 0xffff - IPV4_HEADER_LEN {
        return false;
    }
    let mut bytes = [0; IPV4_HEADER_LEN];
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
    Ipv4Repr {
        src_addr: src,
        dst_addr: dst,
        next_header: IpProtocol::from(ip.protocol),
        payload_len: payload,
        hop_limit: ip.hops,
    }
    .emit(&mut packet, &ChecksumCapabilities::ignored());
    if let Some(part) = part {
        packet.set_ident(part.ident as u16);
        packet.set_dont_frag(false);
        packet.set_more_frags(part.more);
        packet.set_frag_offset(part.offset as u16);
    }
    packet.fill_checksum();
    out.extend(bytes);
    true
}

fn header_v6(
    out: &mut HeaderBuffer,
    ip: &Out,
    src: Ipv6Addr,
    dst: Ipv6Addr,
    payload: usize,
    part: Option<Fragment>,
) -> bool {
    let extra = if part.is_some() { 8 } else { 0 };
    if payload + extra > 0xffff {
        return false;
    }
    let mut bytes = [0; IPV6_HEADER_LEN];
    Ipv6Repr {
        src_addr: src,
        dst_addr: dst,
        next_header: IpProtocol::from(if part.is_some() {
            FRAGMENT
        } else {
            ip.protocol
        }),
        payload_len: payload + extra,
        hop_limit: ip.hops,
    }
    .emit(&mut Ipv6Packet::new_unchecked(&mut bytes[..]));
    out.extend(bytes);
    if let Some(part) = part {
        let place = part.offset as u16 | u16::from(part.more);
        out.extend([ip.protocol, 0]);
        out.extend(place.to_be_bytes());
        out.extend(part.ident.to_be_bytes());
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn addresses() -> impl Strategy<Value = (IpAddr, IpAddr)> {
        prop_oneof![
            any::<(u32, u32)>().prop_map(|(a, b)| (IpAddr::V4(a.into()), IpAddr::V4(b.into()))),
            any::<(u128, u128)>().prop_map(|(a, b)| (IpAddr::V6(a.into()), IpAddr::V6(b.into()))),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            (src, dst) in addresses(),
            protocol in prop_oneof![Just(TCP), Just(UDP), Just(ICMP)],
            hops: u8,
            payload in 0usize..9000,
            part in proptest::option::of((any::<u16>(), 0usize..8000, any::<bool>())),
        ) {
            let fragment = part
                .map(|(ident, o, more)| Fragment { ident: ident.into(), offset: o * 8, more })
                .filter(|f| f.more || f.offset != 0);
            let mut out = HeaderBuffer::new();
            let ip = Out { src, dst, protocol, hops };
            prop_assert!(header(&mut out, &ip, payload, fragment));
            let read = parse(&out, out.len() + payload).unwrap();
            prop_assert_eq!(read, Header {
                src, dst, protocol, hops, header: out.len(), payload, fragment, hop_by_hop: false,
            });
            prop_assert_eq!(parse(&out, out.len() + payload - usize::from(payload > 0)).is_none(), payload > 0);
        }

        #[test]
        fn any_bytes_are_read_or_dropped(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), six: bool) {
            if let Some(b) = bytes.first_mut() {
                *b = if six { 0x60 } else { 0x45 };
            }
            if let (false, Some(h)) = (six, bytes.get_mut(..20)) {
                Ipv4Packet::new_unchecked(h).fill_checksum();
            }
            if let Some(h) = parse(&bytes, bytes.len()) {
                prop_assert!(h.header + h.payload <= bytes.len());
            }
        }

        #[test]
        fn sums_do_not_depend_on_the_cuts(
            bytes in proptest::collection::vec(any::<u8>(), 1..600),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..5),
        ) {
            let mut at: Vec<_> = cuts.iter().map(|c| c.index(bytes.len())).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            let cut = Sum::default().over(&pieces);
            // The sum as RFC 1071 defines it.
            let mut plain = 0u64;
            for pair in bytes.chunks(2) {
                plain += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            }
            while plain > 0xffff {
                plain = (plain & 0xffff) + (plain >> 16);
            }
            prop_assert_eq!(u64::from(cut.partial()), plain);
            let some = part(&pieces, bytes.len() / 3, bytes.len() / 2);
            prop_assert_eq!(some.concat(), &bytes[bytes.len() / 3..][..bytes.len() / 2]);
        }
    }
}
