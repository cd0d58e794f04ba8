//! One device and what belongs to it: addresses and routers, neighbours, and smoltcp's interface,
//! which reports group memberships and runs the clients of DHCP and DNS. Router advertisements are taken here (RFC 4861 section 6.3, RFC 4862).

use super::config::{Cidr, usable};
use super::ip::{self, HeaderBuffer, Out};
use super::neighbor::{Mac, Neighbors, Question};
use super::nic::{Caps, Nic, SendError, TxMeta};
use super::stats::Stats;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use serde::{Deserialize, Serialize};
use smoltcp::iface::{Interface as Control, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{dhcpv4, dns};
use smoltcp::time::Instant;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, DHCP_CLIENT_PORT, DhcpMessageType, DhcpPacket, DhcpRepr,
    EthernetAddress, EthernetFrame, EthernetProtocol, HardwareAddress, Icmpv6Packet, Icmpv6Repr,
    IpCidr, IpProtocol, Ipv4Packet, Ipv6Packet, NdiscNeighborFlags, NdiscOption, NdiscOptionRepr,
    NdiscPrefixInfoFlags, NdiscPrefixInformation, NdiscRepr, UdpPacket,
};

/// Most addresses of an interface (smoltcp's limit is the same).
pub const ADDRESSES: usize = 8;
/// Most routers.
const ROUTERS: usize = 4;
/// Most frames that wait to be sent, made while the device was busy.
const OUTBOX: usize = 256;
/// Most frames that wait for smoltcp.
const INBOX: usize = 64;
/// Router solicitations, and the time between two (RFC 4861 section 10), in ns.
const SOLICITATIONS: u8 = 3;
const SOLICIT_EVERY: u64 = 4_000_000_000;
/// How often a new address is announced, and the time between two (RFC 4861 section 10; RFC 5227
/// has one less for ARP), in ns.
const ANNOUNCEMENTS: u8 = 3;
const ANNOUNCE_EVERY: u64 = 1_000_000_000;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// How often smoltcp is called while group reports may be due, in ns.
const REPORTS_EVERY: u64 = 100_000_000;
/// How long they may be due after a query, in ns (the longest response time is 25.5 s in IGMPv2).
const REPORTS_FOR: u64 = 26_000_000_000;
/// How long after a lease that is of no use another is asked for (RFC 2131 section 3.1.5), in ns.
const ASK_AGAIN: u64 = 10_000_000_000;
/// A lease that does not say how long it lasts, in ns: smoltcp's client takes it so.
const SHORT_LEASE: u64 = 120_000_000_000;
/// How long an interface that came with a switch waits for its device, in ns.
const ABSENT_FOR: u64 = 10_000_000_000;
/// The least MTU: what IPv4 hosts take (RFC 791); IPv6 is not used below 1280 (RFC 8200).
const LEAST_MTU: u16 = 576;
const TWO_HOURS: u64 = 7_200_000_000_000;
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// Where an address or a router comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// The command line, or the Ethernet address (link-local).
    Fixed,
    /// A DHCP server.
    Dhcp,
    /// A router's advertisement; good until then (system time, ns).
    Router(u64),
}

/// An address of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address and its link.
    pub cidr: Cidr,
    /// Where it comes from.
    pub origin: Origin,
}

/// A default router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Router {
    /// Its address on the link.
    pub addr: IpAddr,
    /// Where it comes from.
    pub origin: Origin,
}

/// Frames between the stack and smoltcp.
#[derive(Debug)]
struct Mailbox {
    input: VecDeque<Vec<u8>>,
    output: VecDeque<Vec<u8>>,
    mtu: usize,
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct ToSend<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for ToSend<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = alloc::vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

impl Device for Mailbox {
    type RxToken<'a> = Received;
    type TxToken<'a> = ToSend<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, ToSend<'_>)> {
        let frame = self.input.pop_front()?;
        Some((Received(frame), ToSend(&mut self.output)))
    }

    fn transmit(&mut self, _: Instant) -> Option<ToSend<'_>> {
        (self.output.len() < OUTBOX).then_some(ToSend(&mut self.output))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = self.mtu + ip::ETHERNET;
        caps
    }
}

/// A frame that waits for the device.
#[derive(Debug)]
pub struct Outgoing {
    /// The frame.
    pub frame: Vec<u8>,
    /// What is left to the device.
    pub meta: TxMeta,
}

/// An interface for another image, but for neighbours and frames.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Note {
    /// Its number.
    pub number: u32,
    caps: Caps,
    addresses: ArrayVec<Address, ADDRESSES>,
    routers: ArrayVec<Router, ROUTERS>,
    dns: ArrayVec<IpAddr, 4>,
    dhcp: bool,
    lease_until: Option<u64>,
    absent_until: Option<u64>,
}

/// Most interfaces that notes can be of.
pub const MOST: u32 = 64;

impl Note {
    /// Whether there can be such an interface.
    #[must_use]
    pub fn is_sane(&self) -> bool {
        let fits = |cidr: &Cidr| cidr.len <= if cidr.addr.is_ipv4() { 32 } else { 128 };
        self.number < MOST
            && is_mac(self.caps.mac)
            && self.caps.mtu >= LEAST_MTU
            && self
                .addresses
                .iter()
                .all(|a| usable(a.cidr.addr) && fits(&a.cidr))
            && self.routers.iter().all(|r| usable(r.addr))
    }
}

/// Whether it is one device's.
fn is_mac(mac: Mac) -> bool {
    mac[0] & 1 == 0 && mac != [0; 6]
}

/// A device's, with an MTU that there is.
fn caps_of(nic: &dyn Nic) -> Caps {
    let mut caps = nic.caps();
    caps.mtu = caps.mtu.max(LEAST_MTU);
    caps
}

/// One interface.
pub struct Interface {
    /// The device; not there while it passes what it received, and before it is adopted.
    pub nic: Option<Box<dyn Nic + Send>>,
    /// What the device can do.
    pub caps: Caps,
    /// Tells it from others that had, or will have, the same number.
    pub serial: u32,
    /// Who else is on the link.
    pub neighbors: Neighbors,
    addresses: ArrayVec<Address, ADDRESSES>,
    routers: ArrayVec<Router, ROUTERS>,
    /// Name servers that DHCP told.
    pub dns: ArrayVec<IpAddr, 4>,
    control: Control,
    sockets: SocketSet<'static>,
    mailbox: Mailbox,
    dhcp: Option<SocketHandle>,
    /// When to begin with DHCP anew.
    ask_again: Option<u64>,
    /// When the lease ends, if there is one.
    lease_until: Option<u64>,
    /// The lease came with a switch: the client of now does not know of it.
    adopted_lease: bool,
    /// It came with a switch, its device has not come yet: that is waited for until then.
    pub absent_until: Option<u64>,
    dns_client: SocketHandle,
    queries: usize,
    control_due: Option<u64>,
    reports_until: u64,
    solicitations: u8,
    solicit_at: u64,
    announcements: u8,
    announce_at: u64,
    outbox: VecDeque<Outgoing>,
}

impl core::fmt::Debug for Interface {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Interface")
            .field("caps", &self.caps)
            .field("addresses", &self.addresses)
            .field("routers", &self.routers)
            .finish_non_exhaustive()
    }
}

/// smoltcp's time.
fn instant(now: u64) -> Instant {
    Instant::from_micros(i64::try_from(now / 1000).unwrap_or(i64::MAX))
}

/// System time, rounded up so that what is due then is due.
fn system_time(at: Instant) -> u64 {
    u64::try_from(at.total_micros())
        .unwrap_or(0)
        .saturating_mul(1000)
}

/// The Ethernet address of a group (RFC 1112 section 6.4, RFC 2464 section 7) or of all.
#[must_use]
pub fn group_mac(addr: IpAddr) -> Option<Mac> {
    match addr {
        IpAddr::V4(a) if a.is_broadcast() => Some([0xff; 6]),
        IpAddr::V4(a) if a.is_multicast() => {
            let [_, b, c, d] = a.octets();
            Some([1, 0, 0x5e, b & 0x7f, c, d])
        }
        IpAddr::V6(a) if a.is_multicast() => {
            let [.., b, c, d, e] = a.octets();
            Some([0x33, 0x33, b, c, d, e])
        }
        _ => None,
    }
}

/// smoltcp's interface around a mailbox.
fn control(mailbox: &mut Mailbox, mac: Mac, seed: u64, now: u64) -> Control {
    let mut config = smoltcp::iface::Config::new(HardwareAddress::Ethernet(EthernetAddress(mac)));
    config.random_seed = seed;
    Control::new(config, mailbox, instant(now))
}

/// The address that a DHCP server leaves to us in this frame, and for how long, in ns.
fn lease_in(frame: &[u8], mac: Mac) -> Option<(Ipv4Addr, u64)> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
    if frame.ethertype() != EthernetProtocol::Ipv4 || packet.next_header() != IpProtocol::Udp {
        return None;
    }
    let datagram = UdpPacket::new_checked(packet.payload()).ok()?;
    if datagram.dst_port() != DHCP_CLIENT_PORT {
        return None;
    }
    let message = DhcpPacket::new_checked(datagram.payload()).ok()?;
    let message = DhcpRepr::parse(&message).ok()?;
    let ours = message.client_hardware_address == EthernetAddress(mac);
    if !ours || message.message_type != DhcpMessageType::Ack {
        return None;
    }
    let seconds = message.lease_duration.map(u64::from);
    let lasts = seconds.map_or(SHORT_LEASE, |s| s * 1_000_000_000);
    Some((message.your_ip, lasts))
}

fn link_local(a: IpAddr) -> bool {
    match a {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    }
}

/// The address with this Ethernet address's EUI-64 in its lower half (RFC 4291 appendix A).
fn with_eui64(prefix: Ipv6Addr, mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let id = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    let upper = u128::from(prefix) >> 64 << 64;
    Ipv6Addr::from(upper | u128::from(id))
}

impl Interface {
    /// Around a device. `None` if its Ethernet address is none.
    #[must_use]
    pub fn new(nic: Box<dyn Nic + Send>, seed: u64, dhcp: bool, now: u64) -> Option<Self> {
        let caps = caps_of(&*nic);
        if !is_mac(caps.mac) {
            return None;
        }
        let mut new = Self::bare(caps, seed, dhcp, now);
        new.nic = Some(nic);
        if new.has_v6() {
            let addr = with_eui64(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), caps.mac);
            new.solicitations = SOLICITATIONS;
            new.add_address(Address {
                cidr: Cidr {
                    addr: addr.into(),
                    len: 64,
                },
                origin: Origin::Fixed,
            });
        }
        Some(new)
    }

    fn bare(caps: Caps, seed: u64, dhcp: bool, now: u64) -> Self {
        let mut mailbox = Mailbox {
            input: VecDeque::new(),
            output: VecDeque::new(),
            mtu: usize::from(caps.mtu),
        };
        let control = control(&mut mailbox, caps.mac, seed, now);
        let mut sockets = SocketSet::new(Vec::new());
        let dhcp = dhcp.then(|| sockets.add(dhcpv4::Socket::new()));
        let dns_client = sockets.add(dns::Socket::new(&[], Vec::new()));
        Self {
            nic: None,
            caps,
            serial: seed as u32,
            neighbors: Neighbors::default(),
            addresses: ArrayVec::new(),
            routers: ArrayVec::new(),
            dns: ArrayVec::new(),
            control,
            sockets,
            mailbox,
            dhcp,
            ask_again: None,
            lease_until: None,
            adopted_lease: false,
            absent_until: None,
            dns_client,
            queries: 0,
            control_due: Some(now),
            reports_until: 0,
            solicitations: 0,
            solicit_at: now,
            announcements: 0,
            announce_at: now,
            outbox: VecDeque::new(),
        }
    }

    /// What another image needs of it.
    #[must_use]
    pub fn note(&self, number: u32) -> Note {
        Note {
            number,
            caps: self.caps,
            addresses: self.addresses.clone(),
            routers: self.routers.clone(),
            dns: self.dns.clone(),
            dhcp: self.has_dhcp(),
            lease_until: self.lease_until,
            absent_until: self.absent_until,
        }
    }

    /// The frames that wait for the device.
    pub fn waiting(&self) -> impl Iterator<Item = &Outgoing> {
        self.outbox.iter()
    }

    /// One that another image has noted; its device is still to come. Nobody is told of its
    /// addresses: they are where they were.
    #[must_use]
    pub fn restore(note: Note, seed: u64, now: u64) -> Self {
        let mut new = Self::bare(note.caps, seed, note.dhcp, now);
        new.addresses = note.addresses;
        new.routers = note.routers;
        new.dns = note.dns;
        let leased = new.addresses.iter().any(|a| a.origin == Origin::Dhcp);
        if leased {
            let unknown = now.saturating_add(SHORT_LEASE);
            new.lease_until = Some(note.lease_until.unwrap_or(unknown));
            new.adopted_lease = true;
        }
        if new.has_v6() && !new.routers.iter().any(|r| r.addr.is_ipv6()) {
            new.solicitations = SOLICITATIONS;
        }
        let until = now.saturating_add(ABSENT_FOR);
        // However many images wait for it in turn.
        new.absent_until = Some(note.absent_until.map_or(until, |u| u.min(until)));
        new.tell_control();
        new
    }

    /// Leaves a frame for the device that is to come.
    pub fn restore_frame(&mut self, waiting: Outgoing) {
        if self.outbox.len() < OUTBOX {
            self.outbox.push_back(waiting);
        }
    }

    /// Its device has come.
    pub fn plug(&mut self, nic: Box<dyn Nic + Send>, seed: u64, now: u64) {
        let caps = caps_of(&*nic);
        if caps.mtu != self.caps.mtu {
            self.mailbox.mtu = usize::from(caps.mtu);
            self.control = control(&mut self.mailbox, caps.mac, seed, now);
            self.tell_control();
        }
        self.caps = caps;
        self.nic = Some(nic);
        self.absent_until = None;
    }

    /// Whether the link can carry IPv6.
    #[must_use]
    pub fn has_v6(&self) -> bool {
        self.caps.mtu >= 1280
    }

    /// Our addresses.
    #[must_use]
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// The default routers.
    #[must_use]
    pub fn routers(&self) -> &[Router] {
        &self.routers
    }

    /// Whether an address is ours.
    #[must_use]
    pub fn has(&self, addr: IpAddr) -> bool {
        self.addresses.iter().any(|a| a.cidr.addr == addr)
    }

    /// Whether an address means everybody on this link.
    #[must_use]
    pub fn is_broadcast(&self, addr: IpAddr) -> bool {
        addr == IpAddr::V4(core::net::Ipv4Addr::BROADCAST)
            || self
                .addresses
                .iter()
                .any(|a| a.cidr.broadcast() == Some(addr))
    }

    /// Gives the interface an address; the last one there is room for is kept.
    pub fn add_address(&mut self, address: Address) {
        if usable(address.cidr.addr) && !self.has(address.cidr.addr) {
            let _ = self.addresses.try_push(address);
            self.tell_control();
            (self.announcements, self.announce_at) = (ANNOUNCEMENTS, 0);
        }
    }

    /// Adds a default router.
    pub fn add_router(&mut self, router: Router) {
        if usable(router.addr) && !self.routers.iter().any(|r| r.addr == router.addr) {
            let _ = self.routers.try_push(router);
            self.tell_control();
        }
    }

    /// Passes addresses and routers on to smoltcp.
    fn tell_control(&mut self) {
        let addresses = &self.addresses;
        self.control.update_ip_addrs(|all| {
            all.clear();
            for a in addresses {
                let _ = all.push(IpCidr::new(a.cidr.addr.into(), a.cidr.len));
            }
        });
        let routers = &self.routers;
        let routes = self.control.routes_mut();
        routes.remove_default_ipv4_route();
        routes.remove_default_ipv6_route();
        for r in routers.iter().rev() {
            let _ = match r.addr {
                IpAddr::V4(a) => routes.add_default_ipv4_route(a),
                IpAddr::V6(a) => routes.add_default_ipv6_route(a),
            };
        }
        self.control_due = Some(0);
    }

    /// The neighbour that a packet to `dst` goes to, if this interface leads there.
    #[must_use]
    pub fn next_hop(&self, dst: IpAddr) -> Option<IpAddr> {
        if dst.is_ipv6() && !self.has_v6() {
            return None;
        }
        if self.on_link(dst) {
            return Some(dst);
        }
        let source = self.addresses.iter();
        let mut source = source.filter(|a| a.cidr.addr.is_ipv4() == dst.is_ipv4());
        // From a link-local address nothing goes further.
        if dst.is_ipv6() && !source.any(|a| !link_local(a.cidr.addr)) {
            return None;
        }
        let mut routers = self.routers.iter().map(|r| r.addr);
        routers.find(|r| r.is_ipv4() == dst.is_ipv4())
    }

    /// Whether `dst` is on this link.
    #[must_use]
    pub fn on_link(&self, dst: IpAddr) -> bool {
        self.addresses.iter().any(|a| a.cidr.contains(dst))
    }

    /// The address of ours from which packets to `dst` go (RFC 6724 for IPv6, as far as smoltcp
    /// has it).
    #[must_use]
    pub fn source_for(&self, dst: IpAddr) -> Option<IpAddr> {
        match dst {
            IpAddr::V4(_) => {
                let hop = self.next_hop(dst);
                let mut v4 = self.addresses.iter().filter(|a| a.cidr.addr.is_ipv4());
                let on_link = |a: &&Address| hop.is_some_and(|h| a.cidr.contains(h));
                let first = v4.clone().next();
                v4.find(on_link).or(first).map(|a| a.cidr.addr)
            }
            IpAddr::V6(a) if !a.is_unspecified() && self.has_v6() => {
                let source = self.control.get_source_address_ipv6(&a);
                (!source.is_loopback()).then_some(source.into())
            }
            IpAddr::V6(_) => None,
        }
    }

    /// Sends a frame, or keeps it for the time when the device takes it.
    ///
    /// # Errors
    /// [`SendError::Full`]: the frame was neither sent nor kept.
    pub fn send(
        &mut self,
        pieces: &[&[u8]],
        meta: TxMeta,
        keep: bool,
        stats: &mut Stats,
    ) -> Result<(), SendError> {
        let result = match &mut self.nic {
            Some(nic) if self.outbox.is_empty() => nic.send(pieces, meta),
            _ => Err(SendError::Full),
        };
        match result {
            Ok(()) => {
                stats.tx_frames += 1;
                stats.tx_bytes += ip::length(pieces) as u64;
            }
            Err(SendError::Full) if keep && self.outbox.len() < OUTBOX => {
                let frame = pieces.concat();
                self.outbox.push_back(Outgoing { frame, meta });
                return Ok(());
            }
            Err(SendError::Full) => {}
            Err(SendError::Refused) => stats.tx_dropped += 1,
        }
        result
    }

    /// Whether frames wait for the device.
    #[must_use]
    pub fn waits_for_room(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Sends what waits for the device; true if nothing waits any more.
    pub fn send_waiting(&mut self, stats: &mut Stats) -> bool {
        let Some(nic) = &mut self.nic else {
            return self.outbox.is_empty();
        };
        while let Some(next) = self.outbox.front() {
            match nic.send(&[&next.frame], next.meta) {
                Ok(()) => {
                    stats.tx_frames += 1;
                    stats.tx_bytes += next.frame.len() as u64;
                }
                Err(SendError::Full) => return false,
                Err(SendError::Refused) => stats.tx_dropped += 1,
            }
            self.outbox.pop_front();
        }
        nic.tx_ready()
    }

    /// Asks the link for a neighbour.
    pub fn ask(&mut self, question: Question, stats: &mut Stats) {
        let Some(source) = self.source_for(question.addr) else {
            return;
        };
        let frame = match (question.addr, source) {
            (IpAddr::V4(target), IpAddr::V4(source)) => {
                self.arp_request(source, target, question.mac)
            }
            (IpAddr::V6(target), IpAddr::V6(source)) => {
                // The solicited-node group (RFC 4291 section 2.7.1), or the neighbour itself.
                let [.., a, b, c] = target.octets();
                let group = u128::from(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0));
                let low = u128::from(u32::from_be_bytes([0, a, b, c]));
                let dst = match question.mac {
                    Some(_) => target,
                    None => Ipv6Addr::from(group | low),
                };
                let message = NdiscRepr::NeighborSolicit {
                    target_addr: target,
                    lladdr: Some(EthernetAddress(self.caps.mac).into()),
                };
                let to = question.mac.or_else(|| group_mac(dst.into()));
                self.ndisc(message, source, dst, to.unwrap_or([0xff; 6]))
            }
            _ => return,
        };
        let _ = self.send(&[&frame], TxMeta::default(), true, stats);
    }

    /// An ARP request, to all or to who had the address.
    fn arp_request(&self, source: Ipv4Addr, target: Ipv4Addr, to: Option<Mac>) -> Vec<u8> {
        let me = EthernetAddress(self.caps.mac);
        let arp = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: me,
            source_protocol_addr: source,
            target_hardware_addr: EthernetAddress(to.unwrap_or_default()),
            target_protocol_addr: target,
        };
        let mut frame = alloc::vec![0; ip::ETHERNET + arp.buffer_len()];
        let mut out = EthernetFrame::new_unchecked(&mut frame[..]);
        out.set_src_addr(me);
        out.set_dst_addr(EthernetAddress(to.unwrap_or([0xff; 6])));
        out.set_ethertype(EthernetProtocol::Arp);
        arp.emit(&mut ArpPacket::new_unchecked(out.payload_mut()));
        frame
    }

    /// Tells the link where our addresses are (RFC 5227 section 2.3, RFC 4861 section 7.2.6). Who
    /// remembers another device for one of them, which a domain before us had, would send there
    /// for seconds otherwise.
    fn announce(&mut self, stats: &mut Stats) {
        for address in self.addresses.clone() {
            let frame = match address.cidr.addr {
                IpAddr::V4(a) => self.arp_request(a, a, None),
                IpAddr::V6(a) => {
                    let message = NdiscRepr::NeighborAdvert {
                        flags: NdiscNeighborFlags::OVERRIDE,
                        target_addr: a,
                        lladdr: Some(EthernetAddress(self.caps.mac).into()),
                    };
                    let to = group_mac(ALL_NODES.into()).unwrap_or([0xff; 6]);
                    self.ndisc(message, a, ALL_NODES, to)
                }
            };
            let _ = self.send(&[&frame], TxMeta::default(), true, stats);
        }
    }

    /// A frame with a neighbour discovery message.
    #[must_use]
    pub fn ndisc(&self, message: NdiscRepr<'_>, src: Ipv6Addr, dst: Ipv6Addr, to: Mac) -> Vec<u8> {
        let message = Icmpv6Repr::Ndisc(message);
        let mut head = HeaderBuffer::new();
        ip::ethernet(&mut head, self.caps.mac, to, true);
        let out = Out {
            src: src.into(),
            dst: dst.into(),
            protocol: ip::ICMPV6,
            hops: 255,
        };
        ip::header(&mut head, &out, message.buffer_len(), None);
        let mut frame = head.to_vec();
        let start = frame.len();
        frame.resize(start + message.buffer_len(), 0);
        message.emit(
            &src,
            &dst,
            &mut Icmpv6Packet::new_unchecked(&mut frame[start..]),
            &ChecksumCapabilities::default(),
        );
        frame
    }

    /// Leaves a frame for smoltcp, which is called in the next [`Interface::run`].
    pub fn to_control(&mut self, frame: Vec<u8>) -> bool {
        let room = self.mailbox.input.len() < INBOX;
        if room {
            self.mailbox.input.push_back(frame);
            self.control_due = Some(0);
        }
        room
    }

    /// Group queries came: reports may become due.
    pub fn expect_reports(&mut self, now: u64) {
        self.reports_until = now.saturating_add(REPORTS_FOR);
    }

    /// Whether a DHCP client runs here.
    #[must_use]
    pub fn has_dhcp(&self) -> bool {
        self.dhcp.is_some()
    }

    /// Whether names are being looked up here.
    #[must_use]
    pub fn has_queries(&self) -> bool {
        self.queries > 0
    }

    /// Takes a router's advertisement; `frame` is all of it from the IP header on, with right
    /// checksum, from a neighbour (hop limit 255).
    pub fn advertised(&mut self, now: u64, packet: &[u8]) -> Option<()> {
        let packet = Ipv6Packet::new_checked(packet).ok()?;
        let src = packet.src_addr();
        if !src.is_unicast_link_local() {
            return None;
        }
        let message = Icmpv6Packet::new_checked(packet.payload()).ok()?;
        let lifetime = message.router_lifetime().total_micros() * 1000;
        let router = IpAddr::V6(src);
        if lifetime == 0 {
            self.routers
                .retain(|r| r.addr != router || r.origin == Origin::Fixed);
        } else {
            let origin = Origin::Router(now.saturating_add(lifetime));
            match self.routers.iter_mut().find(|r| r.addr == router) {
                Some(r) if r.origin != Origin::Fixed => r.origin = origin,
                Some(_) => {}
                None => self.add_router(Router {
                    addr: router,
                    origin,
                }),
            }
            self.solicitations = 0;
        }
        let mut options = message.payload();
        while let Ok(option) = NdiscOption::new_checked(options) {
            if let Ok(NdiscOptionRepr::PrefixInformation(prefix)) = NdiscOptionRepr::parse(&option)
            {
                self.prefix(now, &prefix);
            }
            let len = usize::from(option.data_len()) * 8;
            options = options.get(len..).filter(|_| len > 0)?;
        }
        self.tell_control();
        Some(())
    }

    /// RFC 4862 section 5.5.3.
    fn prefix(&mut self, now: u64, prefix: &NdiscPrefixInformation) {
        let addr = IpAddr::V6(with_eui64(prefix.prefix, self.caps.mac));
        let autonomous = prefix.flags.contains(NdiscPrefixInfoFlags::ADDRCONF);
        if !autonomous
            || prefix.prefix_len != 64
            || !usable(addr)
            || link_local(addr)
            || prefix.preferred_lifetime > prefix.valid_lifetime
        {
            return;
        }
        let valid = prefix.valid_lifetime.total_micros().saturating_mul(1000);
        let until = now.saturating_add(valid);
        let on_link = prefix.flags.contains(NdiscPrefixInfoFlags::ON_LINK);
        let len = if on_link { 64 } else { 128 };
        match self.addresses.iter_mut().find(|a| a.cidr.addr == addr) {
            Some(a) => {
                if let Origin::Router(old) = &mut a.origin {
                    let left = old.saturating_sub(now);
                    // Nobody can take an address away at once.
                    if valid > TWO_HOURS || valid > left {
                        *old = until;
                    } else if left > TWO_HOURS {
                        *old = now.saturating_add(TWO_HOURS);
                    }
                    a.cidr.len = len;
                }
            }
            None if valid > 0 => self.add_address(Address {
                cidr: Cidr { addr, len },
                origin: Origin::Router(until),
            }),
            None => {}
        }
    }

    /// Joins a group, or leaves it.
    pub fn membership(&mut self, group: IpAddr, join: bool) -> bool {
        self.control_due = Some(0);
        let group = smoltcp::wire::IpAddress::from(group);
        if join {
            self.control.join_multicast_group(group).is_ok()
        } else {
            self.control.leave_multicast_group(group).is_ok()
        }
    }

    /// Begins to look a name up at these servers.
    ///
    /// # Errors
    /// As smoltcp says.
    pub fn look_up(
        &mut self,
        name: &str,
        kind: smoltcp::wire::DnsQueryType,
        servers: &[IpAddr],
    ) -> Result<dns::QueryHandle, dns::StartQueryError> {
        let servers: ArrayVec<smoltcp::wire::IpAddress, 4> =
            servers.iter().take(4).map(|s| (*s).into()).collect();
        let socket = self.sockets.get_mut::<dns::Socket<'_>>(self.dns_client);
        socket.update_servers(&servers);
        let query = socket.start_query(self.control.context(), name, kind)?;
        self.queries += 1;
        self.control_due = Some(0);
        Ok(query)
    }

    /// What became of a look-up: `None`: nothing yet. The handle is used up by any other answer.
    pub fn looked_up(
        &mut self,
        query: dns::QueryHandle,
    ) -> Option<Result<ArrayVec<IpAddr, 16>, ()>> {
        let socket = self.sockets.get_mut::<dns::Socket<'_>>(self.dns_client);
        let result = match socket.get_query_result(query) {
            Err(dns::GetQueryResultError::Pending) => return None,
            Err(dns::GetQueryResultError::Failed) => Err(()),
            Ok(found) => Ok(found.into_iter().map(IpAddr::from).take(16).collect()),
        };
        self.queries -= 1;
        Some(result)
    }

    /// Ends a look-up that is not yet answered.
    pub fn cancel(&mut self, query: dns::QueryHandle) {
        let socket = self.sockets.get_mut::<dns::Socket<'_>>(self.dns_client);
        socket.cancel_query(query);
        self.queries -= 1;
    }

    /// When [`Interface::run`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        let lifetimes = self.addresses.iter().map(|a| a.origin);
        let lifetimes = lifetimes.chain(self.routers.iter().map(|r| r.origin));
        let lifetimes = lifetimes.filter_map(|o| match o {
            Origin::Router(until) => Some(until),
            _ => None,
        });
        lifetimes
            .chain(self.control_due)
            .chain(self.lease_until.filter(|_| self.adopted_lease))
            .chain(self.absent_until)
            .chain(self.neighbors.deadline())
            .chain((self.solicitations > 0).then_some(self.solicit_at))
            .chain((self.announcements > 0).then_some(self.announce_at))
            .min()
    }

    /// Does what is due: smoltcp, router solicitations, lifetimes. True if addresses, routers or
    /// name servers have changed.
    pub fn run(&mut self, now: u64, stats: &mut Stats) -> bool {
        let mut changed = self.expire(now);
        if self.announcements > 0 && self.announce_at <= now {
            self.announcements -= 1;
            self.announce_at = now.saturating_add(ANNOUNCE_EVERY);
            self.announce(stats);
        }
        if self.solicitations > 0 && self.solicit_at <= now {
            self.solicitations -= 1;
            self.solicit_at = now.saturating_add(SOLICIT_EVERY);
            if let Some(IpAddr::V6(source)) = self.source_for(ALL_ROUTERS.into()) {
                let message = NdiscRepr::RouterSolicit {
                    lladdr: Some(EthernetAddress(self.caps.mac).into()),
                };
                let to = group_mac(ALL_ROUTERS.into()).unwrap_or([0xff; 6]);
                let frame = self.ndisc(message, source, ALL_ROUTERS, to);
                let _ = self.send(&[&frame], TxMeta::default(), true, stats);
            }
        }
        if self.control_due.is_some_and(|d| d <= now) {
            changed |= self.run_control(now, stats);
        }
        changed
    }

    fn run_control(&mut self, now: u64, stats: &mut Stats) -> bool {
        let at = instant(now);
        if self.ask_again.is_some_and(|t| t <= now)
            && let Some(handle) = self.dhcp
        {
            self.ask_again = None;
            self.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).reset();
        }
        let inbox = self.mailbox.input.len();
        let leases = self.mailbox.input.iter().filter(|_| self.dhcp.is_some());
        let mut leases = leases.filter_map(|frame| lease_in(frame, self.caps.mac));
        let lease = leases.next_back();
        self.control.poll_maintenance(at);
        for _ in 0..inbox {
            self.control
                .poll_ingress_single(at, &mut self.mailbox, &mut self.sockets);
        }
        self.control
            .poll_egress(at, &mut self.mailbox, &mut self.sockets);
        while let Some(frame) = self.mailbox.output.pop_front() {
            if self
                .send(&[&frame], TxMeta::default(), true, stats)
                .is_err()
            {
                stats.tx_dropped += 1;
            }
        }
        let changed = self.take_lease(now);
        if let Some((addr, lasts)) = lease
            && self.has_lease(addr.into())
        {
            self.lease_until = Some(now.saturating_add(lasts));
        }
        // It may ask to be called again at once; that is too often for anything it does.
        let soonest = now.saturating_add(1_000_000);
        let next = self.control.poll_at(at, &self.sockets);
        self.control_due = next.map(|t| system_time(t).max(soonest));
        self.control_due = self.control_due.into_iter().chain(self.ask_again).min();
        if self.reports_until > now {
            let reports = now.saturating_add(REPORTS_EVERY);
            self.control_due = Some(self.control_due.map_or(reports, |d| d.min(reports)));
        }
        changed
    }

    fn has_lease(&self, addr: IpAddr) -> bool {
        let mut addresses = self.addresses.iter();
        addresses.any(|a| a.origin == Origin::Dhcp && a.cidr.addr == addr)
    }

    fn take_lease(&mut self, now: u64) -> bool {
        let Some(handle) = self.dhcp else {
            return false;
        };
        let socket = self.sockets.get_mut::<dhcpv4::Socket<'_>>(handle);
        let lease = match socket.poll() {
            None => return false,
            // That it begins without one says nothing of a lease that came with a switch.
            Some(dhcpv4::Event::Deconfigured) if self.adopted_lease => return false,
            Some(dhcpv4::Event::Deconfigured) => None,
            Some(dhcpv4::Event::Configured(config)) => {
                Some((config.address, config.router, config.dns_servers))
            }
        };
        let before = (self.addresses.clone(), self.routers.clone());
        let announced = (self.announcements, self.announce_at);
        self.give_up_lease();
        let origin = Origin::Dhcp;
        if let Some((address, router, servers)) = lease {
            let addr = address.address().into();
            let len = address.prefix_len();
            if !usable(addr) {
                // Else there would be no address for as long as the lease lasts.
                self.ask_again = Some(now.saturating_add(ASK_AGAIN));
            }
            let cidr = Cidr { addr, len };
            self.add_address(Address { cidr, origin });
            if let Some(router) = router {
                let addr = router.into();
                self.add_router(Router { addr, origin });
            }
            let servers = servers.into_iter().map(IpAddr::from);
            self.dns.extend(servers.filter(|s| usable(*s)).take(4));
        }
        self.tell_control();
        let changed = before != (self.addresses.clone(), self.routers.clone());
        if !changed {
            // The link knows.
            (self.announcements, self.announce_at) = announced;
        }
        changed
    }

    /// Forgets what DHCP has told.
    fn give_up_lease(&mut self) {
        self.addresses.retain(|a| a.origin != Origin::Dhcp);
        self.routers.retain(|r| r.origin != Origin::Dhcp);
        self.dns.clear();
        self.lease_until = None;
        self.adopted_lease = false;
    }

    fn expire(&mut self, now: u64) -> bool {
        let good = |o: Origin| !matches!(o, Origin::Router(until) if until <= now);
        let before = (self.addresses.len(), self.routers.len());
        self.addresses.retain(|a| good(a.origin));
        self.routers.retain(|r| good(r.origin));
        if self.adopted_lease && self.lease_until.is_some_and(|until| until <= now) {
            self.give_up_lease();
        }
        let changed = before != (self.addresses.len(), self.routers.len());
        if changed {
            self.tell_control();
        }
        changed
    }
}
