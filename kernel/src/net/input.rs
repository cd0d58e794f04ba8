//! What comes in: frames and packets are read, checked and handed on: TCP to its engine, UDP to
//! sockets, echo requests are answered, ICMP errors go to whom they are about, and what smoltcp's
//! clients and reports need goes there.

use super::Error;
use super::host::Host;
use super::interface::group_mac;
use super::ip::{self, ETHERNET, Header, Out, PIECES, Sum};
use super::nic::{RxMeta, TxMeta};
use super::tcp::{Engine, Segment};
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use core::net::{IpAddr, Ipv6Addr, SocketAddr};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, Icmpv4Repr, Icmpv6DstUnreachable,
    Icmpv6Message, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Repr, Ipv6Repr, NdiscNeighborFlags,
    NdiscRepr, TcpPacket, UdpPacket,
};

const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
const DNS: u16 = 53;
/// How much of a packet goes back in an ICMP error, headers apart (RFC 1812, RFC 4443: as much as
/// leaves the error within the least MTU; this is enough for anybody's header).
const QUOTED: usize = 512;

/// Pieces of a packet being read.
type Pieces<'a> = ArrayVec<&'a [u8], PIECES>;

impl Host {
    /// Takes a frame that interface `number` received.
    pub fn frame(&mut self, engine: &mut Engine, number: usize, pieces: &[&[u8]], meta: RxMeta) {
        let whole = ip::length(pieces);
        self.stats.rx_frames += 1;
        self.stats.rx_bytes += whole as u64;
        if self.frame_in(engine, number, pieces, whole, meta).is_none() {
            self.stats.rx_dropped += 1;
        }
    }

    fn frame_in(
        &mut self,
        engine: &mut Engine,
        number: usize,
        pieces: &[&[u8]],
        whole: usize,
        meta: RxMeta,
    ) -> Option<()> {
        let (first, rest) = pieces.split_first()?;
        let frame = EthernetFrame::new_checked(*first).ok()?;
        let i = self.interfaces.get(number)?.as_ref()?;
        let to = frame.dst_addr();
        if to.0 != i.caps.mac && !to.is_multicast() {
            return None;
        }
        match frame.ethertype() {
            EthernetProtocol::Arp => self.arp(number, &pieces.concat()),
            EthernetProtocol::Ipv4 | EthernetProtocol::Ipv6 => {
                let packet = frame.payload();
                let h = ip::parse(packet, whole - ETHERNET)?;
                if h.src.is_ipv6() != (frame.ethertype() == EthernetProtocol::Ipv6) {
                    return None;
                }
                let unicast = !to.is_multicast();
                let mut payload = Pieces::new();
                let mut left = h.payload;
                let heads = packet.get(h.header..).unwrap_or_default();
                // Behind the packet there may be padding.
                for piece in core::iter::once(heads).chain(rest.iter().copied()) {
                    let piece = piece.get(..left.min(piece.len()))?;
                    left -= piece.len();
                    if !piece.is_empty() {
                        payload.try_push(piece).ok()?;
                    }
                }
                self.on_link_packet(engine, number, &h, &payload, pieces, unicast, meta)
            }
            _ => None,
        }
    }

    /// A packet from a link: is it for us?
    #[allow(clippy::too_many_arguments, reason = "one packet's facts")]
    fn on_link_packet(
        &mut self,
        engine: &mut Engine,
        number: usize,
        h: &Header,
        payload: &[&[u8]],
        frame: &[&[u8]],
        unicast_frame: bool,
        meta: RxMeta,
    ) -> Option<()> {
        if h.fragment.is_none() && self.for_control(number, h, payload, frame) {
            return Some(());
        }
        // Nobody is at such an address.
        if h.src.is_unspecified() || h.src.is_multicast() || self.is_broadcast(h.src) {
            return None;
        }
        // Our own packets don't come from outside.
        if self.is_local(h.src) || h.dst.is_loopback() {
            return None;
        }
        let mine = self.is_local(h.dst);
        if !mine {
            let group = h.dst.is_multicast() && self.is_member(Some(number), h.dst);
            let all_nodes = h.dst == IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1));
            if !group && !all_nodes && !self.is_broadcast(h.dst) {
                // Devices pass what goes to other groups; nothing is lost by that.
                return h.dst.is_multicast().then_some(());
            }
        }
        // A unicast packet in a broadcast frame is an attack or a mistake (RFC 1122 3.3.6).
        if mine && !unicast_frame && h.dst.is_ipv4() {
            return None;
        }
        match h.fragment {
            None => self.packet(engine, Some(number), h, payload, meta.csum_valid),
            Some(at) => {
                let whole = self.reassembler.take(self.now, h, at, payload);
                if let Some((h, bytes)) = whole {
                    self.stats.reassembled += 1;
                    return self.packet(engine, Some(number), &h, &[&bytes], false);
                }
                Some(())
            }
        }
    }

    /// A whole packet for this host, from a link or from itself.
    pub fn packet(
        &mut self,
        engine: &mut Engine,
        number: Option<usize>,
        h: &Header,
        payload: &[&[u8]],
        csum_valid: bool,
    ) -> Option<()> {
        match h.protocol {
            ip::TCP => self.tcp(engine, h, payload, csum_valid),
            ip::UDP => self.udp_in(number, h, payload, csum_valid),
            ip::ICMP if h.dst.is_ipv4() => self.icmp(h, payload, csum_valid),
            ip::ICMPV6 if h.dst.is_ipv6() => self.icmp(h, payload, csum_valid),
            _ => self.refuse(h, payload, false),
        }
    }

    fn tcp(
        &mut self,
        engine: &mut Engine,
        h: &Header,
        payload: &[&[u8]],
        csum_valid: bool,
    ) -> Option<()> {
        if !self.is_local(h.dst) {
            return None;
        }
        let (first, rest) = payload.split_first()?;
        let packet = TcpPacket::new_checked(*first).ok()?;
        let (header, data) = first.split_at_checked(usize::from(packet.header_len()))?;
        if !csum_valid {
            let sum = Sum::pseudo(h.src, h.dst, ip::TCP, h.payload).over(payload);
            if !sum.right() {
                return None;
            }
        }
        self.stats.tcp_in += 1;
        let mut pieces = Pieces::new();
        if !data.is_empty() {
            pieces.push(data);
        }
        for p in rest {
            pieces.try_push(p).ok()?;
        }
        let segment = Segment {
            src: SocketAddr::new(h.src, packet.src_port()),
            dst: SocketAddr::new(h.dst, packet.dst_port()),
            header,
            payload: &pieces,
        };
        let now = self.now;
        engine.input(now, &segment, self);
        Some(())
    }

    fn udp_in(
        &mut self,
        number: Option<usize>,
        h: &Header,
        payload: &[&[u8]],
        csum_valid: bool,
    ) -> Option<()> {
        let first = payload.first()?.first_chunk::<{ super::udp::HEADER }>()?;
        let packet = UdpPacket::new_unchecked(&first[..]);
        let len = usize::from(packet.len());
        if len < super::udp::HEADER || len > h.payload {
            return None;
        }
        let datagram = ip::part(payload, 0, len);
        match packet.checksum() {
            _ if csum_valid => {}
            0 if h.src.is_ipv4() => {}
            0 => return None,
            _ => {
                let sum = Sum::pseudo(h.src, h.dst, ip::UDP, len).over(&datagram);
                if !sum.right() {
                    return None;
                }
            }
        }
        let from = SocketAddr::new(h.src, packet.src_port());
        let to = SocketAddr::new(h.dst, packet.dst_port());
        let many = h.dst.is_multicast() || self.is_broadcast(h.dst);
        let data = ip::part(&datagram, super::udp::HEADER, len);
        if from.port() == 0 || to.port() == 0 {
            return None;
        }
        if self.udp.deliver(from, to, number, many, &data) > 0 {
            self.stats.udp_in += 1;
            return Some(());
        }
        let answer = number.is_some_and(|n| self.is_answer(n, from));
        if many || answer {
            return answer.then_some(());
        }
        self.refuse(h, payload, true)
    }

    /// Says that nothing here takes such a packet: no such port, or no such protocol.
    fn refuse(&mut self, h: &Header, payload: &[&[u8]], port: bool) -> Option<()> {
        if !self.is_local(h.dst) {
            return None;
        }
        if h.src.is_loopback() || self.is_local(h.src) {
            let first = payload.first().copied().unwrap_or_default();
            self.failed(h.protocol, h.src, h.dst, first, Error::Refused);
            return None;
        }
        if !self.may_send_error() {
            return None;
        }
        let quoted = ip::part(payload, 0, QUOTED).concat();
        let mut out = Vec::new();
        let checks = ChecksumCapabilities::default();
        match (h.src, h.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let message = Icmpv4Repr::DstUnreachable {
                    reason: if port {
                        Icmpv4DstUnreachable::PortUnreachable
                    } else {
                        Icmpv4DstUnreachable::ProtoUnreachable
                    },
                    header: Ipv4Repr {
                        src_addr: src,
                        dst_addr: dst,
                        next_header: IpProtocol::from(h.protocol),
                        payload_len: quoted.len(),
                        hop_limit: h.hops,
                    },
                    data: &quoted,
                };
                out.resize(message.buffer_len(), 0);
                message.emit(&mut Icmpv4Packet::new_unchecked(&mut out[..]), &checks);
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) if port => {
                let message = Icmpv6Repr::DstUnreachable {
                    reason: Icmpv6DstUnreachable::PortUnreachable,
                    header: Ipv6Repr {
                        src_addr: src,
                        dst_addr: dst,
                        next_header: IpProtocol::from(h.protocol),
                        payload_len: quoted.len(),
                        hop_limit: h.hops,
                    },
                    data: &quoted,
                };
                out.resize(message.buffer_len(), 0);
                let mut packet = Icmpv6Packet::new_unchecked(&mut out[..]);
                message.emit(&dst, &src, &mut packet, &checks);
            }
            _ => return None,
        }
        let reply = reply_to(h);
        self.send_ip(&reply, None, &[&out], TxMeta::default(), true)
            .ok();
        None
    }

    fn icmp(&mut self, h: &Header, payload: &[&[u8]], csum_valid: bool) -> Option<()> {
        let first = payload.first()?;
        let kind = *first.first()?;
        if !csum_valid {
            let sum = match h.dst {
                IpAddr::V4(_) => Sum::default(),
                IpAddr::V6(_) => Sum::pseudo(h.src, h.dst, ip::ICMPV6, h.payload),
            };
            if !sum.over(payload).right() {
                return None;
            }
        }
        let (request, answer) = match h.dst {
            IpAddr::V4(_) => (Icmpv4Message::EchoRequest, Icmpv4Message::EchoReply),
            IpAddr::V6(_) => return self.icmp_v6(h, payload, kind),
        };
        if kind == u8::from(request) {
            return self.echo(h, payload, answer.into());
        }
        let packet = Icmpv4Packet::new_checked(*first).ok()?;
        let code = packet.msg_code();
        let why = match packet.msg_type() {
            Icmpv4Message::DstUnreachable => match Icmpv4DstUnreachable::from(code) {
                Icmpv4DstUnreachable::PortUnreachable | Icmpv4DstUnreachable::ProtoUnreachable => {
                    Error::Refused
                }
                Icmpv4DstUnreachable::FragRequired => {
                    let mtu = u16::from_be_bytes([*first.get(6)?, *first.get(7)?]);
                    Error::PathTooLong(u32::from(mtu))
                }
                Icmpv4DstUnreachable::NetUnreachable | Icmpv4DstUnreachable::DstNetUnknown => {
                    Error::Unreachable
                }
                _ => Error::HostUnreachable,
            },
            Icmpv4Message::TimeExceeded => Error::HostUnreachable,
            Icmpv4Message::ParamProblem => Error::Protocol,
            _ => return Some(()),
        };
        self.failed_quoted(h, first.get(8..)?, why)
    }

    fn icmp_v6(&mut self, h: &Header, payload: &[&[u8]], kind: u8) -> Option<()> {
        let first = payload.first()?;
        if kind == u8::from(Icmpv6Message::EchoRequest) {
            return self.echo(h, payload, Icmpv6Message::EchoReply.into());
        }
        let (code, word) = (*first.get(1)?, first.get(4..)?.first_chunk::<4>()?);
        let why = match Icmpv6Message::from(kind) {
            Icmpv6Message::DstUnreachable => match Icmpv6DstUnreachable::from(code) {
                Icmpv6DstUnreachable::PortUnreachable => Error::Refused,
                Icmpv6DstUnreachable::NoRoute => Error::Unreachable,
                Icmpv6DstUnreachable::AdminProhibit => Error::Denied,
                _ => Error::HostUnreachable,
            },
            Icmpv6Message::PktTooBig => Error::PathTooLong(u32::from_be_bytes(*word)),
            Icmpv6Message::TimeExceeded => Error::HostUnreachable,
            Icmpv6Message::ParamProblem => Error::Protocol,
            _ => return Some(()),
        };
        self.failed_quoted(h, first.get(8..)?, why)
    }

    /// An ICMP error about a packet of ours, whose beginning it quotes.
    fn failed_quoted(&mut self, h: &Header, quoted: &[u8], why: Error) -> Option<()> {
        // What was quoted need not be all of it: its own length is of no use.
        let about = match quoted.first()? >> 4 {
            4 if h.dst.is_ipv4() => {
                // Routers have changed the header: its checksum too.
                let len = usize::from(quoted.first()? & 15) * 4;
                let src: [u8; 4] = quoted.get(12..16)?.try_into().ok()?;
                let dst: [u8; 4] = quoted.get(16..20)?.try_into().ok()?;
                let first_part = u16::from_be_bytes([*quoted.get(6)?, *quoted.get(7)?]) & 0x1fff;
                if len < 20 || first_part != 0 {
                    return None;
                }
                Header {
                    src: IpAddr::from(src),
                    dst: IpAddr::from(dst),
                    protocol: *quoted.get(9)?,
                    header: len,
                    ..*h
                }
            }
            6 if h.dst.is_ipv6() => ip::parse(quoted, usize::MAX)?,
            _ => return None,
        };
        if !self.is_local(about.src) {
            return None;
        }
        self.failed(
            about.protocol,
            about.src,
            about.dst,
            quoted.get(about.header..)?,
            why,
        );
        Some(())
    }

    /// Answers an echo request with its own bytes.
    fn echo(&mut self, h: &Header, payload: &[&[u8]], answer: u8) -> Option<()> {
        let broadcast = h.dst.is_ipv4() && !self.is_local(h.dst);
        let (first, rest) = payload.split_first()?;
        let (head, data) = first.split_at_checked(8)?;
        if broadcast {
            return None;
        }
        let mut reply = reply_to(h);
        if !self.is_local(reply.src) {
            reply.src = self.source_for(reply.dst)?;
        }
        let mut header = [0; 8];
        header.copy_from_slice(head);
        header[0] = answer;
        header[1] = 0;
        header[2..4].fill(0);
        let mut pieces = Pieces::new();
        pieces.push(data);
        for p in rest {
            pieces.try_push(p).ok()?;
        }
        let mut sum = match reply.dst {
            IpAddr::V4(_) => Sum::default(),
            IpAddr::V6(_) => Sum::pseudo(reply.src, reply.dst, ip::ICMPV6, h.payload),
        };
        sum.add(&header);
        let field = sum.over(&pieces).field();
        header[2..4].copy_from_slice(&field.to_be_bytes());
        let mut all = Pieces::new();
        all.push(&header);
        for p in &pieces {
            all.try_push(p).ok()?;
        }
        let sent = self.send_ip(&reply, None, &all, TxMeta::default(), true);
        self.stats.echoes += u64::from(sent.is_ok());
        sent.ok()
    }

    /// Whether it may be an answer that smoltcp's DNS client waits for.
    fn is_answer(&self, number: usize, from: SocketAddr) -> bool {
        let i = self.interfaces.get(number).and_then(Option::as_ref);
        from.port() == DNS
            && i.is_some_and(super::interface::Interface::has_queries)
            && self.name_servers().contains(&from.ip())
    }

    /// Passes on to smoltcp what its clients and reports need; true if that was all there is to do.
    fn for_control(
        &mut self,
        number: usize,
        h: &Header,
        payload: &[&[u8]],
        frame: &[&[u8]],
    ) -> bool {
        let first = payload.first().copied().unwrap_or_default();
        let now = self.now;
        match h.protocol {
            ip::UDP => {
                let Some([a, b, c, d]) = first.first_chunk() else {
                    return false;
                };
                let from = u16::from_be_bytes([*a, *b]);
                let to = u16::from_be_bytes([*c, *d]);
                let v4 = h.dst.is_ipv4();
                let i = self.interfaces.get_mut(number).and_then(Option::as_mut);
                let lease = v4 && from == DHCP_SERVER && to == DHCP_CLIENT;
                if lease && i.as_ref().is_some_and(|i| i.has_dhcp()) {
                    // The client will write to this address.
                    if super::config::usable(h.src)
                        && let Some(i) = i
                    {
                        i.to_control(frame.concat());
                    }
                    return true;
                }
                if self.is_answer(number, SocketAddr::new(h.src, from))
                    && self.is_local(h.dst)
                    && let Some(Some(i)) = self.interfaces.get_mut(number)
                {
                    i.to_control(frame.concat());
                }
                false
            }
            ip::IGMP if h.dst.is_multicast() => {
                if let Some(Some(i)) = self.interfaces.get_mut(number) {
                    i.expect_reports(now);
                    i.to_control(frame.concat());
                }
                true
            }
            ip::ICMPV6 => match first.first().map(|t| Icmpv6Message::from(*t)) {
                Some(Icmpv6Message::MldQuery) => {
                    if let Some(Some(i)) = self.interfaces.get_mut(number) {
                        i.expect_reports(now);
                        i.to_control(frame.concat());
                    }
                    true
                }
                Some(kind) if kind.is_ndisc() => {
                    if self.ndisc(number, h, &frame.concat()).is_none() {
                        self.stats.rx_dropped += 1;
                    }
                    true
                }
                _ => false,
            },
            _ => false,
        }
    }

    fn arp(&mut self, number: usize, bytes: &[u8]) -> Option<()> {
        let now = self.now;
        let frame = EthernetFrame::new_checked(bytes).ok()?;
        let packet = ArpPacket::new_checked(frame.payload()).ok()?;
        let ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: from,
            source_protocol_addr: sender,
            target_protocol_addr: target,
            ..
        } = ArpRepr::parse(&packet).ok()?
        else {
            return None;
        };
        let i = self.interfaces.get_mut(number)?.as_mut()?;
        let (mine, probe) = (i.has(target.into()), sender.is_unspecified());
        if !from.is_unicast() || i.has(sender.into()) {
            return None;
        }
        if !probe {
            if !super::config::usable(sender.into()) || i.is_broadcast(sender.into()) {
                return None;
            }
            let asks = mine && operation == ArpOperation::Request;
            let waiting = i.neighbors.learn(sender.into(), from.0, now, asks);
            self.resolved(number, from.0, waiting);
        }
        let i = self.interfaces.get_mut(number)?.as_mut()?;
        match operation {
            ArpOperation::Request if mine => {
                let me = EthernetAddress(i.caps.mac);
                let reply = ArpRepr::EthernetIpv4 {
                    operation: ArpOperation::Reply,
                    source_hardware_addr: me,
                    source_protocol_addr: target,
                    target_hardware_addr: from,
                    target_protocol_addr: sender,
                };
                let mut out = alloc::vec![0; ETHERNET + reply.buffer_len()];
                let mut frame = EthernetFrame::new_unchecked(&mut out[..]);
                frame.set_src_addr(me);
                frame.set_dst_addr(from);
                frame.set_ethertype(EthernetProtocol::Arp);
                reply.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
                i.send(&[&out], TxMeta::default(), true, &mut self.stats)
                    .ok()
            }
            ArpOperation::Reply => {
                i.to_control(bytes.into());
                Some(())
            }
            _ => Some(()),
        }
    }

    /// Neighbour discovery: only from this link, which the hop limit shows (RFC 4861 section 7.1).
    fn ndisc(&mut self, number: usize, h: &Header, frame: &[u8]) -> Option<()> {
        let now = self.now;
        let (IpAddr::V6(src), IpAddr::V6(dst)) = (h.src, h.dst) else {
            return None;
        };
        let packet = frame.get(ETHERNET..)?;
        let message = packet.get(h.header..)?.get(..h.payload)?;
        let message = Icmpv6Packet::new_checked(message).ok()?;
        if h.hops != 255 || message.msg_code() != 0 || src.is_multicast() {
            return None;
        }
        let Icmpv6Repr::Ndisc(repr) =
            Icmpv6Repr::parse(&src, &dst, &message, &ChecksumCapabilities::default()).ok()?
        else {
            return None;
        };
        let mac = |lladdr: smoltcp::wire::RawHardwareAddress| -> Option<[u8; 6]> {
            lladdr.as_bytes().try_into().ok()
        };
        let i = self.interfaces.get_mut(number)?.as_mut()?;
        match repr {
            NdiscRepr::NeighborSolicit {
                target_addr,
                lladdr,
            } => {
                if !i.has(target_addr.into()) || i.has(h.src) {
                    return None;
                }
                // Without a source it is somebody who looks whether the address is free.
                let probe = src.is_unspecified();
                let to = lladdr.and_then(mac);
                if let (false, Some(to)) = (probe, to) {
                    let waiting = i.neighbors.learn(h.src, to, now, true);
                    self.resolved(number, to, waiting);
                }
                let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
                let dst = if probe { all } else { src };
                let i = self.interfaces.get_mut(number)?.as_mut()?;
                let sender = EthernetFrame::new_checked(frame).ok()?.src_addr().0;
                let to = group_mac(dst.into()).or(to).unwrap_or(sender);
                let flags = if probe {
                    NdiscNeighborFlags::OVERRIDE
                } else {
                    NdiscNeighborFlags::OVERRIDE | NdiscNeighborFlags::SOLICITED
                };
                let answer = NdiscRepr::NeighborAdvert {
                    flags,
                    target_addr,
                    lladdr: Some(EthernetAddress(i.caps.mac).into()),
                };
                let out = i.ndisc(answer, target_addr, dst, to);
                i.send(&[&out], TxMeta::default(), true, &mut self.stats)
                    .ok()
            }
            NdiscRepr::NeighborAdvert {
                target_addr,
                lladdr,
                flags,
            } => {
                if i.has(target_addr.into()) || target_addr.is_multicast() || src.is_unspecified() {
                    return None;
                }
                let known = i.neighbors.known(target_addr.into());
                let to = lladdr.and_then(mac).or(known)?;
                // Without the flag it can't replace what is known.
                let replaces = flags.contains(NdiscNeighborFlags::OVERRIDE);
                if replaces || known.is_none_or(|k| k == to) {
                    let waiting = i.neighbors.learn(target_addr.into(), to, now, false);
                    i.to_control(frame.into());
                    self.resolved(number, to, waiting);
                }
                Some(())
            }
            NdiscRepr::RouterAdvert { lladdr, .. } => {
                i.advertised(now, packet)?;
                if let Some(to) = lladdr.and_then(mac) {
                    let waiting = i.neighbors.learn(h.src, to, now, true);
                    self.resolved(number, to, waiting);
                }
                Some(())
            }
            // For routers.
            NdiscRepr::RouterSolicit { .. } => Some(()),
            // Redirects serve attacks more often than routes.
            NdiscRepr::Redirect { .. } => None,
        }
    }
}

/// A header for the way back.
fn reply_to(h: &Header) -> Out {
    Out {
        src: h.dst,
        dst: h.src,
        protocol: if h.src.is_ipv4() {
            ip::ICMP
        } else {
            ip::ICMPV6
        },
        hops: super::HOPS,
    }
}
