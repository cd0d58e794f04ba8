//! What this host sends: routes, fragments, checksums left to the device or not, and the way from
//! TCP's segments to a device.

use super::Error;
use super::config::{Config, On};
use super::interface::{self, Address, Interface, Origin, Router, group_mac};
use super::ip::{self, Fragment, HeaderBuffer, Out, PIECES, Sum};
use super::neighbor::Waiting;
use super::nic::{Gso, Nic, SendError, TxMeta};
use super::reassembly::Reassembler;
use super::stats::Stats;
use super::tcp;
use super::udp::{self, Udp};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Most bytes and packets that wait in the loopback.
const LOOPBACK_BYTES: usize = 4 << 20;
const LOOPBACK_PACKETS: usize = 4096;
/// MTU of the loopback.
const LOOPBACK_MTU: u16 = 65_535;
/// Most destinations of which a smaller MTU is known, and for how long (RFC 8201 section 5.3), ns.
const PATHS: usize = 128;
const PATH_LASTS: u64 = 600_000_000_000;
/// The smallest MTU that a router is believed (RFC 1191 has 68; that serves attacks only).
const LEAST_V4: u16 = 552;
const LEAST_V6: u16 = 1280;
/// Longest IP and TCP headers.
const HEADERS: usize = 128;
/// ICMP errors that may be sent at once, and the time until one more may, in ns.
const ERRORS: u32 = 50;
const ERROR_EVERY: u64 = 10_000_000;

/// A packet to ourselves.
#[derive(Debug)]
pub struct Looped {
    /// What its header would say.
    pub ip: Out,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// A TCP segment that did not reach the other side, as an ICMP error or a lost neighbour tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// We.
    pub local: SocketAddr,
    /// The other side.
    pub remote: SocketAddr,
    /// The segment's sequence number.
    pub seq: u32,
    /// Why.
    pub why: Error,
}

/// Everything but TCP.
#[derive(Debug)]
pub struct Host {
    /// System time, in ns.
    pub now: u64,
    /// The interfaces by number; a detached one leaves a gap.
    pub interfaces: Vec<Option<Interface>>,
    /// The command line's settings.
    pub config: Config,
    /// UDP sockets.
    pub udp: Udp,
    /// Packets of which not all is there.
    pub reassembler: Reassembler,
    /// Packets to ourselves.
    pub loopback: VecDeque<Looped>,
    loopback_bytes: usize,
    /// What was done.
    pub stats: Stats,
    /// Segments that got nowhere, for TCP to be told.
    pub failures: VecDeque<Failure>,
    /// TCP was refused a segment and waits for room.
    pub blocked: bool,
    paths: BTreeMap<IpAddr, (u16, u64)>,
    groups: BTreeMap<(usize, IpAddr), u32>,
    random: u64,
    errors_left: u32,
    errors_since: u64,
}

fn loopback(addr: IpAddr) -> bool {
    addr.is_loopback()
}

/// Whether a packet to it stays on the link whatever the routes say.
fn of_the_link(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(a) => a.is_multicast() || a.is_broadcast(),
        IpAddr::V6(a) => a.is_multicast() || a.is_unicast_link_local(),
    }
}

/// Gives an interface what the command line says.
fn configure(i: &mut Interface, config: &Config, number: usize) {
    let origin = Origin::Fixed;
    for a in config.addresses.iter().filter(|a| a.interface == number) {
        let cidr = a.value;
        i.add_address(Address { cidr, origin });
    }
    for r in config.gateways.iter().filter(|r| r.interface == number) {
        let addr = r.value;
        i.add_router(Router { addr, origin });
    }
}

impl Host {
    /// Without interfaces.
    #[must_use]
    pub fn new(config: Config, seed: u64, now: u64) -> Self {
        Self {
            now,
            interfaces: Vec::new(),
            config,
            udp: Udp::default(),
            reassembler: Reassembler::default(),
            loopback: VecDeque::new(),
            loopback_bytes: 0,
            stats: Stats::default(),
            failures: VecDeque::new(),
            blocked: false,
            paths: BTreeMap::new(),
            groups: BTreeMap::new(),
            random: seed,
            errors_left: ERRORS,
            errors_since: now,
        }
    }

    /// The next number of a sequence that a stranger can't guess from a few of its numbers (for
    /// ports and identifications, not for secrets): splitmix64's upper half.
    pub fn random(&mut self) -> u32 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z >> 32) as u32
    }

    /// Adds a device; gives the interface's number. `None` if its Ethernet address is none.
    pub fn attach(&mut self, nic: Box<dyn Nic + Send>) -> Option<usize> {
        let (mac, now) = (nic.caps().mac, self.now);
        let plug_seed = u64::from(self.random()) << 32 | u64::from(self.random());
        let mut absent = self.interfaces.iter_mut().enumerate();
        let absent = absent.find_map(|(n, i)| {
            let i = i.as_mut()?;
            (i.absent_until.is_some() && i.caps.mac == mac).then_some((n, i))
        });
        if let Some((number, i)) = absent {
            // It came with a switch, and this is its device.
            i.plug(nic, plug_seed, now);
            self.rejoin(number);
            return Some(number);
        }
        let gap = self.interfaces.iter().position(Option::is_none);
        let number = gap.unwrap_or(self.interfaces.len());
        let fixed = |on: &On<super::config::Cidr>| on.interface == number;
        let static4 = self
            .config
            .addresses
            .iter()
            .any(|a| fixed(a) && a.value.addr.is_ipv4());
        let dhcp = number == 0 && !static4;
        let seed = u64::from(self.random()) << 32 | u64::from(self.random());
        let mut new = Interface::new(nic, seed, dhcp, self.now)?;
        configure(&mut new, &self.config, number);
        if gap.is_none() {
            self.interfaces.push(None);
        }
        *self.interfaces.get_mut(number)? = Some(new);
        self.rejoin(number);
        Some(number)
    }

    /// Has an interface join the groups that sockets have joined on it.
    fn rejoin(&mut self, number: usize) {
        let Some(Some(i)) = self.interfaces.get_mut(number) else {
            return;
        };
        let groups = self.groups.keys().filter(|(n, _)| *n == number);
        groups.for_each(|(_, group)| {
            i.membership(*group, true);
        });
    }

    /// Takes an interface that another image has noted, at its number. What the command line says
    /// is added where nothing of that kind came.
    pub fn restore(&mut self, note: interface::Note) {
        let number = note.number as usize;
        let seed = u64::from(self.random()) << 32 | u64::from(self.random());
        let mut i = Interface::restore(note, seed, self.now);
        let mut config = self.config.clone();
        let has = |v6: bool| {
            let mut own = i.addresses().iter().map(|a| a.cidr.addr);
            own.any(|a| a.is_ipv6() == v6 && !of_the_link(a))
        };
        let (v4, v6) = (has(false), has(true));
        config
            .addresses
            .retain(|a| !if a.value.addr.is_ipv6() { v6 } else { v4 });
        let routers: ArrayVec<bool, 8> = i.routers().iter().map(|r| r.addr.is_ipv6()).collect();
        config
            .gateways
            .retain(|r| !routers.contains(&r.value.is_ipv6()));
        configure(&mut i, &config, number);
        while self.interfaces.len() <= number {
            self.interfaces.push(None);
        }
        if let Some(place) = self.interfaces.get_mut(number) {
            *place = Some(i);
        }
    }

    /// Until when it is known that longer packets do not get to these.
    pub fn paths(&self) -> impl Iterator<Item = (IpAddr, u16, u64)> + '_ {
        let paths = self.paths.iter();
        paths.map(|(dst, (mtu, until))| (*dst, *mtu, *until))
    }

    /// Takes what another image knew of a path.
    pub fn restore_path(&mut self, dst: IpAddr, mtu: u16, until: u64) {
        self.too_long_for(dst, mtu.into());
        if let Some((_, its)) = self.paths.get_mut(&dst) {
            *its = until.min(*its);
        }
    }

    /// Takes a device away.
    pub fn detach(&mut self, number: usize) -> Option<Box<dyn Nic + Send>> {
        self.interfaces.get_mut(number)?.take()?.nic
    }

    /// The interfaces that are there.
    pub fn each(&self) -> impl Iterator<Item = (usize, &Interface)> {
        let numbered = self.interfaces.iter().enumerate();
        numbered.filter_map(|(n, i)| Some((n, i.as_ref()?)))
    }

    /// The interfaces that are there, to be changed, and the counts.
    pub fn each_mut(&mut self) -> (impl Iterator<Item = (usize, &mut Interface)>, &mut Stats) {
        let numbered = self.interfaces.iter_mut().enumerate();
        let there = numbered.filter_map(|(n, i)| Some((n, i.as_mut()?)));
        (there, &mut self.stats)
    }

    /// The interface of this number.
    pub fn interface_mut(&mut self, number: u32) -> Option<&mut Interface> {
        self.interfaces.get_mut(number as usize)?.as_mut()
    }

    fn interface(&mut self, number: usize) -> Option<(&mut Interface, &mut Stats)> {
        let i = self.interfaces.get_mut(number)?.as_mut()?;
        Some((i, &mut self.stats))
    }

    /// Whether an address is this host's own.
    #[must_use]
    pub fn is_local(&self, addr: IpAddr) -> bool {
        loopback(addr) || self.each().any(|(_, i)| i.has(addr))
    }

    /// Whether an address means everybody on some link of ours.
    #[must_use]
    pub fn is_broadcast(&self, addr: IpAddr) -> bool {
        addr == IpAddr::V4(Ipv4Addr::BROADCAST) || self.each().any(|(_, i)| i.is_broadcast(addr))
    }

    /// The name servers: the command line's, else what DHCP told.
    #[must_use]
    pub fn name_servers(&self) -> ArrayVec<IpAddr, 8> {
        if !self.config.dns.is_empty() {
            return self.config.dns.clone();
        }
        let told = self.each().flat_map(|(_, i)| i.dns.iter().copied());
        told.take(8).collect()
    }

    /// The interface that leads to `dst`, and the neighbour there that is next. `from` is the
    /// source address, where it is known.
    #[must_use]
    pub fn route(&self, dst: IpAddr, from: Option<IpAddr>) -> Option<(usize, IpAddr)> {
        let from = from.filter(|f| !f.is_unspecified());
        let is_from = |i: &Interface| from.is_none_or(|f| i.has(f));
        if of_the_link(dst) {
            let fits = |i: &Interface| i.source_for(dst).is_some();
            let there = || self.each().filter(|(_, i)| fits(i));
            let found = there().find(|(_, i)| from.is_some() && is_from(i));
            let with_router = || {
                there().find(|(_, i)| {
                    i.routers()
                        .iter()
                        .any(|r| r.addr.is_ipv4() == dst.is_ipv4())
                })
            };
            let found = found.or_else(with_router).or_else(|| there().next());
            return found.map(|(n, _)| (n, dst));
        }
        if let Some((n, _)) = self.each().find(|(_, i)| i.on_link(dst)) {
            return Some((n, dst));
        }
        let hops = || {
            self.each()
                .filter_map(|(n, i)| Some((n, i, i.next_hop(dst)?)))
        };
        let found = hops()
            .find(|(_, i, _)| is_from(i))
            .or_else(|| hops().next());
        found.map(|(n, _, hop)| (n, hop))
    }

    /// The address of ours that packets to `dst` come from.
    #[must_use]
    pub fn source_for(&self, dst: IpAddr) -> Option<IpAddr> {
        if loopback(dst) {
            return Some(match dst {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        if self.is_local(dst) {
            return Some(dst);
        }
        let (n, _) = self.route(dst, None)?;
        self.interfaces.get(n)?.as_ref()?.source_for(dst)
    }

    /// The longest packet that gets to `dst`.
    fn mtu(&self, number: usize, dst: IpAddr) -> u16 {
        let link = self
            .interfaces
            .get(number)
            .and_then(Option::as_ref)
            .map_or(LOOPBACK_MTU, |i| i.caps.mtu);
        match self.paths.get(&dst) {
            Some((mtu, until)) if *until > self.now => link.min(*mtu),
            _ => link,
        }
    }

    /// A router has said that longer packets do not get to `dst`.
    pub fn too_long_for(&mut self, dst: IpAddr, mtu: u32) {
        let least = if dst.is_ipv4() { LEAST_V4 } else { LEAST_V6 };
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX).max(least);
        let now = self.now;
        if self.paths.len() >= PATHS && !self.paths.contains_key(&dst) {
            self.paths.retain(|_, (_, until)| *until > now);
            if self.paths.len() >= PATHS {
                self.paths.pop_first();
            }
        }
        let until = now.saturating_add(PATH_LASTS);
        self.paths.insert(dst, (mtu, until));
    }

    /// Whether one more ICMP error may be sent now.
    pub fn may_send_error(&mut self) -> bool {
        let more = self.now.saturating_sub(self.errors_since) / ERROR_EVERY;
        if more > 0 {
            self.errors_since = self.now;
            let more = u32::try_from(more).unwrap_or(ERRORS);
            self.errors_left = self.errors_left.saturating_add(more).min(ERRORS);
        }
        let may = self.errors_left > 0;
        self.errors_left -= u32::from(may);
        may
    }

    /// Takes the next packet to ourselves.
    pub fn looped(&mut self) -> Option<Looped> {
        let next = self.loopback.pop_front()?;
        self.loopback_bytes -= next.payload.len();
        Some(next)
    }

    fn loop_back(&mut self, ip: Out, pieces: &[&[u8]]) -> Result<(), SendError> {
        let len = ip::length(pieces);
        if self.loopback_bytes + len > LOOPBACK_BYTES || self.loopback.len() >= LOOPBACK_PACKETS {
            return Err(SendError::Full);
        }
        self.loopback_bytes += len;
        let payload = pieces.concat();
        self.loopback.push_back(Looped { ip, payload });
        Ok(())
    }

    /// Sends a frame whose Ethernet destination is not yet filled in to the neighbour `hop`; with
    /// `keep`, it may wait for the device. What waits for the neighbour's answer counts as sent.
    fn transmit(
        &mut self,
        number: usize,
        hop: IpAddr,
        head: &mut [u8],
        payload: &[&[u8]],
        meta: TxMeta,
        keep: bool,
    ) -> Result<(), SendError> {
        let now = self.now;
        let Some((i, stats)) = self.interface(number) else {
            return Err(SendError::Refused);
        };
        let broadcast = i.is_broadcast(hop).then_some([0xff; 6]);
        let mac = match broadcast.or_else(|| group_mac(hop)) {
            Some(mac) => Some(mac),
            None => {
                let (mac, question) = i.neighbors.find(hop, now);
                if let Some(question) = question {
                    i.ask(question, stats);
                }
                mac
            }
        };
        if let (Some(mac), Some(place)) = (mac, head.first_chunk_mut()) {
            *place = mac;
        }
        let mut pieces: ArrayVec<&[u8], PIECES> = ArrayVec::new();
        pieces.push(head);
        for p in payload.iter().filter(|p| !p.is_empty()) {
            pieces.try_push(p).map_err(|_| SendError::Refused)?;
        }
        if mac.is_some() {
            return i.send(&pieces, meta, keep, stats);
        }
        let frame = pieces.concat();
        i.neighbors.wait(hop, Waiting { frame, meta });
        Ok(())
    }

    /// Sends an IP packet, in fragments if it is too long for the link. `by` is the interface to
    /// use, if that is known; the checksum in `payload` is right.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::TooLong`], [`Error::WouldBlock`]: no room now.
    pub fn send_ip(
        &mut self,
        ip: &Out,
        by: Option<usize>,
        payload: &[&[u8]],
        meta: TxMeta,
        keep: bool,
    ) -> Result<(), Error> {
        if self.is_local(ip.dst) {
            return self.loop_back(*ip, payload).map_err(Error::from);
        }
        let found = match by {
            Some(n) => Some((n, ip.dst)),
            None => self.route(ip.dst, Some(ip.src)),
        };
        let (number, hop) = found.ok_or(Error::Unreachable)?;
        let len = ip::length(payload);
        let ip_header = if ip.dst.is_ipv4() { 20 } else { 40 };
        let mtu = usize::from(self.mtu(number, ip.dst));
        let mac = self.interface(number).ok_or(Error::Unreachable)?.0.caps.mac;
        if ip_header + len <= mtu {
            let mut head = HeaderBuffer::new();
            ip::ethernet(&mut head, mac, [0; 6], ip.dst.is_ipv6());
            if !ip::header(&mut head, ip, len, None) {
                return Err(Error::TooLong);
            }
            return Ok(self.transmit(number, hop, &mut head, payload, meta, keep)?);
        }
        if len > 0xffff - 20 && ip.dst.is_ipv4() || len > 0xffff {
            return Err(Error::TooLong);
        }
        let extra = if ip.dst.is_ipv4() { 0 } else { 8 };
        let size = (mtu - ip_header - extra) / 8 * 8;
        let ident = self.random();
        let mut offset = 0;
        while offset < len {
            let part = ip::part(payload, offset, size);
            let part_len = ip::length(&part);
            let fragment = Fragment {
                ident,
                offset,
                more: offset + part_len < len,
            };
            let mut head = HeaderBuffer::new();
            ip::ethernet(&mut head, mac, [0; 6], ip.dst.is_ipv6());
            if part.is_empty() || !ip::header(&mut head, ip, part_len, Some(fragment)) {
                return Err(Error::TooLong);
            }
            self.transmit(number, hop, &mut head, &part, TxMeta::default(), true)?;
            offset += part_len;
        }
        Ok(())
    }

    /// Whether a device leaves us nothing to do for the checksums of packets to `dst`.
    fn completes_checksums(&self, number: usize, dst: IpAddr) -> bool {
        let i = self.interfaces.get(number).and_then(Option::as_ref);
        i.is_some_and(|i| {
            if dst.is_ipv4() {
                i.caps.csum_tx
            } else {
                i.caps.csum6_tx
            }
        })
    }

    /// Sends a datagram.
    ///
    /// # Errors
    /// As [`Host::send_ip`].
    pub fn send_udp(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        hops: u8,
        by: Option<usize>,
        data: &[u8],
    ) -> Result<(), Error> {
        let len = udp::HEADER + data.len();
        let longest = udp::LONGEST + if to.is_ipv4() { 0 } else { 20 };
        if data.len() > longest {
            return Err(Error::TooLong);
        }
        let ip = Out {
            src: from.ip(),
            dst: to.ip(),
            protocol: ip::UDP,
            hops,
        };
        let mut header = [0; udp::HEADER];
        {
            let mut packet = smoltcp::wire::UdpPacket::new_unchecked(&mut header[..]);
            packet.set_src_port(from.port());
            packet.set_dst_port(to.port());
            packet.set_len(len as u16);
        }
        let number = by.or_else(|| Some(self.route(to.ip(), Some(from.ip()))?.0));
        let fits = number.is_some_and(|n| len + 40 <= usize::from(self.mtu(n, to.ip())));
        let blank = fits && number.is_some_and(|n| self.completes_checksums(n, to.ip()));
        let mut sum = Sum::pseudo(ip.src, ip.dst, ip::UDP, len);
        let field = if blank {
            sum.partial()
        } else if self.is_local(to.ip()) {
            0
        } else {
            sum.add(&header);
            sum.add(data);
            // 0 means that there is none.
            match sum.field() {
                0 => 0xffff,
                field => field,
            }
        };
        if let Some(place) = header.last_chunk_mut() {
            *place = field.to_be_bytes();
        }
        let meta = TxMeta {
            csum_blank: blank,
            gso: None,
        };
        let sent = self.send_ip(&ip, by, &[&header, data], meta, false);
        self.blocked |= sent == Err(Error::WouldBlock);
        self.stats.udp_out += u64::from(sent.is_ok());
        sent
    }

    /// Joins a group on an interface or leaves it; counted, so that several sockets can.
    ///
    /// # Errors
    /// [`Error::NoInterface`], [`Error::NoBuffers`] when there are too many groups.
    pub fn membership(&mut self, number: usize, group: IpAddr, join: bool) -> Result<(), Error> {
        let i = self.interfaces.get_mut(number).and_then(Option::as_mut);
        let count = self.groups.entry((number, group)).or_default();
        if join {
            if *count == 0 && !i.ok_or(Error::NoInterface)?.membership(group, true) {
                self.groups.remove(&(number, group));
                return Err(Error::NoBuffers);
            }
            *count += 1;
        } else {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.groups.remove(&(number, group));
                if let Some(i) = i {
                    i.membership(group, false);
                }
            }
        }
        Ok(())
    }

    /// Whether somebody here is a member of a group.
    #[must_use]
    pub fn is_member(&self, number: Option<usize>, group: IpAddr) -> bool {
        match number {
            Some(n) => self.groups.contains_key(&(n, group)),
            None => self.groups.keys().any(|(_, g)| *g == group),
        }
    }

    /// Frames that waited for a neighbour can go.
    pub fn resolved(&mut self, number: usize, mac: [u8; 6], waiting: VecDeque<Waiting>) {
        let Some((i, stats)) = self.interface(number) else {
            return;
        };
        for mut w in waiting {
            if let Some(place) = w.frame.first_chunk_mut() {
                *place = mac;
            }
            if i.send(&[&w.frame], w.meta, true, stats).is_err() {
                stats.tx_dropped += 1;
            }
        }
    }

    /// Does what is due on all interfaces; true if addresses have changed.
    pub fn run(&mut self) -> bool {
        let now = self.now;
        let mut changed = false;
        let mut lost = Vec::new();
        let (interfaces, stats) = self.each_mut();
        for (_, i) in interfaces {
            if i.deadline().is_none_or(|d| d > now) {
                continue;
            }
            changed |= i.run(now, stats);
            let mut questions = ArrayVec::<_, 16>::new();
            i.neighbors.due(
                now,
                |q| {
                    let _ = questions.try_push(q);
                },
                |_, frames| lost.extend(frames),
            );
            questions.into_iter().for_each(|q| i.ask(q, stats));
        }
        for w in lost {
            self.stats.tx_dropped += 1;
            self.lost(&w.frame);
        }
        changed
    }

    /// A frame's next neighbour isn't there.
    fn lost(&mut self, frame: &[u8]) {
        let Some(packet) = frame.get(ip::ETHERNET..) else {
            return;
        };
        let Some(h) = ip::parse(packet, packet.len()) else {
            return;
        };
        let Some(payload) = packet.get(h.header..) else {
            return;
        };
        self.failed(h.protocol, h.src, h.dst, payload, Error::HostUnreachable);
    }

    /// A packet of ours, of whose payload this is the beginning, got nowhere.
    pub fn failed(
        &mut self,
        protocol: u8,
        local: IpAddr,
        remote: IpAddr,
        payload: &[u8],
        why: Error,
    ) {
        let Some([a, b, c, d, s @ ..]) = payload.first_chunk::<8>() else {
            return;
        };
        let local = SocketAddr::new(local, u16::from_be_bytes([*a, *b]));
        let remote = SocketAddr::new(remote, u16::from_be_bytes([*c, *d]));
        match protocol {
            ip::TCP if self.failures.len() < 64 => self.failures.push_back(Failure {
                local,
                remote,
                seq: u32::from_be_bytes(*s),
                why,
            }),
            // Longer datagrams go in fragments from now on.
            ip::UDP if matches!(why, Error::PathTooLong(_)) => {
                if let Error::PathTooLong(mtu) = why
                    && self.udp.is_connected(local, remote)
                {
                    self.too_long_for(remote.ip(), mtu);
                }
            }
            ip::UDP => self.udp.failed(local, remote, why),
            _ => {}
        }
    }

    /// When [`Host::run`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.each().filter_map(|(_, i)| i.deadline()).min()
    }
}

impl tcp::Link for Host {
    fn path(&self, remote: IpAddr) -> Option<tcp::Path> {
        if remote.is_multicast() || remote.is_unspecified() || self.is_broadcast(remote) {
            return None;
        }
        let local = self.source_for(remote)?;
        if self.is_local(remote) {
            return Some(tcp::Path {
                local,
                mtu: LOOPBACK_MTU,
                gso_max: 0,
            });
        }
        let (number, _) = self.route(remote, Some(local))?;
        let caps = self.interfaces.get(number)?.as_ref()?.caps;
        let (gso, csum, headers) = if remote.is_ipv4() {
            (caps.gso4_max, caps.csum_tx, 20 + 60)
        } else {
            (caps.gso6_max, caps.csum6_tx, 60)
        };
        Some(tcp::Path {
            local,
            mtu: self.mtu(number, remote),
            // An IP packet's length has 16 bits, and what is cut needs its checksums made.
            gso_max: if csum { gso.min(0xffff - headers) } else { 0 },
        })
    }

    fn send(&mut self, s: &tcp::OutSegment<'_>) -> bool {
        let ip = Out {
            src: s.src.ip(),
            dst: s.dst.ip(),
            protocol: ip::TCP,
            hops: if s.ttl == 0 { super::HOPS } else { s.ttl },
        };
        self.stats.tcp_out += 1;
        if self.is_local(ip.dst) {
            let [a, b] = s.payload;
            let sent = self.loop_back(ip, &[s.header, a, b]).is_ok();
            self.blocked |= !sent;
            return sent;
        }
        let Some((number, hop)) = self.route(ip.dst, Some(ip.src)) else {
            // As lost on the way.
            self.stats.tx_dropped += 1;
            return true;
        };
        let v6 = ip.dst.is_ipv6();
        let data = s.payload[0].len() + s.payload[1].len();
        let len = s.header.len() + data;
        let blank = self.completes_checksums(number, ip.dst);
        let kind = if v6 { Gso::Tcp6 } else { Gso::Tcp4 };
        let meta = TxMeta {
            csum_blank: blank,
            gso: (data > usize::from(s.mss)).then_some((kind, s.mss)),
        };
        let mac = self.interface(number).map_or([0; 6], |(i, _)| i.caps.mac);
        let mut ip_head = HeaderBuffer::new();
        ip::ethernet(&mut ip_head, mac, [0; 6], v6);
        let mut head = ArrayVec::<u8, HEADERS>::new();
        if !ip::header(&mut ip_head, &ip, len, None)
            || head.try_extend_from_slice(&ip_head).is_err()
            || head.try_extend_from_slice(s.header).is_err()
        {
            self.stats.tx_dropped += 1;
            return true;
        }
        let mut sum = Sum::pseudo(ip.src, ip.dst, ip::TCP, len);
        let field = if blank {
            sum.partial()
        } else {
            sum.add(s.header);
            sum = sum.over(&s.payload);
            sum.field()
        };
        let at = ip_head.len() + 16;
        if let Some(place) = head.get_mut(at..at + 2) {
            place.copy_from_slice(&field.to_be_bytes());
        }
        // Small segments may wait for the device (it may just be receiving); TCP keeps the others.
        let keep = data == 0;
        match self.transmit(number, hop, &mut head, &s.payload, meta, keep) {
            Ok(()) => true,
            Err(SendError::Refused) => {
                self.stats.tx_dropped += 1;
                true
            }
            Err(SendError::Full) => {
                self.blocked = true;
                false
            }
        }
    }
}
