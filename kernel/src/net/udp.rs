//! UDP sockets (RFC 768): found by port, each with a bounded queue of datagrams.

use super::Error;
use super::ports::{At, Held, Ports};
use crate::task::wait::WaitQueue;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::{IpAddr, SocketAddr};
use serde::{Deserialize, Serialize};

/// Most bytes that wait to be received, unless the socket says otherwise (as Linux has it).
pub const QUEUE: usize = 212_992;
/// What a waiting datagram counts beside its bytes.
const OVERHEAD: usize = 128;
/// Bytes of the header.
pub const HEADER: usize = 8;
/// Most bytes of a datagram over IPv4; over IPv6 it is 20 more.
pub const LONGEST: usize = 65_507;

/// A datagram that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Who sent it.
    pub from: SocketAddr,
    /// The interface it came by; `None`: it is this host's own.
    pub by: Option<usize>,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Names a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UdpId {
    index: u32,
    generation: u32,
}

impl UdpId {
    /// Its place.
    #[must_use]
    pub fn index(self) -> usize {
        self.index as usize
    }
}

/// One socket.
#[derive(Debug)]
pub struct UdpSocket {
    held: Option<Held>,
    /// The one it talks to, if it is connected.
    pub remote: Option<SocketAddr>,
    /// The address of ours that it sends from since it is connected.
    pub local: Option<IpAddr>,
    queue: VecDeque<Datagram>,
    queued: usize,
    /// Most bytes that wait.
    pub limit: usize,
    /// What went wrong with what was sent earlier.
    pub error: Option<Error>,
    /// May send to broadcast addresses.
    pub broadcast: bool,
    /// TTL or hop limit.
    pub hops: u8,
    /// TTL or hop limit of what goes to groups.
    pub group_hops: u8,
    /// What goes to groups also comes to this host's members.
    pub group_loop: bool,
    /// Groups it has joined, and by which interface.
    pub groups: Vec<(usize, IpAddr)>,
    /// Nothing more is received.
    pub read_closed: bool,
    /// Nothing more is sent.
    pub write_closed: bool,
    waiters: Arc<WaitQueue>,
}

impl UdpSocket {
    /// The port it has, or 0.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.held.map_or(0, |h| h.port)
    }

    /// At which of our addresses it is, if it has a port.
    #[must_use]
    pub fn at(&self) -> Option<At> {
        self.held.map(|h| h.at)
    }

    /// The first datagram that waits.
    #[must_use]
    pub fn first(&self) -> Option<&Datagram> {
        self.queue.front()
    }

    /// The datagrams that wait.
    pub fn waiting(&self) -> impl Iterator<Item = &Datagram> {
        self.queue.iter()
    }

    /// Takes the first datagram that waits.
    pub fn pop(&mut self) -> Option<Datagram> {
        let datagram = self.queue.pop_front()?;
        self.queued -= datagram.bytes.len() + OVERHEAD;
        Some(datagram)
    }

    fn push(&mut self, from: SocketAddr, by: Option<usize>, pieces: &[&[u8]]) {
        let len = super::ip::length(pieces);
        if self.read_closed || self.queued + len + OVERHEAD > self.limit {
            return;
        }
        self.queued += len + OVERHEAD;
        let bytes = pieces.concat();
        self.queue.push_back(Datagram { from, by, bytes });
        self.waiters.wake_all();
    }

    fn talks(&self, from: SocketAddr, to: SocketAddr) -> bool {
        self.remote == Some(to) && self.held.is_some_and(|h| h.at.takes(from.ip()))
    }

    /// How well it fits a datagram: `None`: not at all; a connection counts most.
    fn fits(&self, to: IpAddr, from: SocketAddr) -> Option<u8> {
        let at = self.held?.at;
        if !at.takes(to) {
            return None;
        }
        let exact = u8::from(matches!(at, At::One(_)));
        match self.remote {
            Some(r) if r != from => None,
            Some(_) if self.local.is_some_and(|l| l != to) => None,
            Some(_) => Some(2 + exact),
            None => Some(exact),
        }
    }
}

/// A socket for another image, but for its groups and datagrams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Which.
    pub id: UdpId,
    held: Option<(At, u16, bool)>,
    remote: Option<SocketAddr>,
    local: Option<IpAddr>,
    limit: usize,
    error: Option<Error>,
    broadcast: bool,
    hops: u8,
    group_hops: u8,
    group_loop: bool,
    read_closed: bool,
    write_closed: bool,
}

/// Most sockets; there are no more descriptors.
pub const SOCKETS: usize = crate::abi::fd::MAX;

/// All UDP sockets.
#[derive(Debug, Default)]
pub struct Udp {
    /// Boxed: places whose sockets are gone stay, and what another image hands over says how many.
    sockets: Vec<(u32, Option<Box<UdpSocket>>)>,
    free: Vec<u32>,
    by_port: BTreeMap<u16, Vec<UdpId>>,
    ports: Ports,
    refused: Vec<UdpId>,
}

impl Udp {
    /// A new socket; `waiters` are woken when it has something to receive.
    pub fn open(&mut self, waiters: Arc<WaitQueue>) -> UdpId {
        let socket = UdpSocket {
            held: None,
            remote: None,
            local: None,
            queue: VecDeque::new(),
            queued: 0,
            limit: QUEUE,
            error: None,
            broadcast: false,
            hops: super::HOPS,
            group_hops: 1,
            group_loop: true,
            groups: Vec::new(),
            read_closed: false,
            write_closed: false,
            waiters,
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.sockets.push((0, None));
            self.sockets.len() as u32 - 1
        });
        let generation = match self.sockets.get_mut(index as usize) {
            Some((generation, place)) => {
                *place = Some(Box::new(socket));
                *generation
            }
            None => 0,
        };
        UdpId { index, generation }
    }

    /// All sockets, and what another image needs of them.
    pub fn notes(&self) -> impl Iterator<Item = (Note, &UdpSocket)> {
        let places = (0u32..).zip(&self.sockets);
        places.filter_map(|(index, (generation, socket))| {
            let s = socket.as_deref()?;
            let id = UdpId {
                index,
                generation: *generation,
            };
            let held = s.held.map(|h| (h.at, h.port, self.ports.shares(h)));
            let note = Note {
                id,
                held,
                remote: s.remote,
                local: s.local,
                limit: s.limit,
                error: s.error,
                broadcast: s.broadcast,
                hops: s.hops,
                group_hops: s.group_hops,
                group_loop: s.group_loop,
                read_closed: s.read_closed,
                write_closed: s.write_closed,
            };
            Some((note, s))
        })
    }

    /// Makes a socket of another image's again; nobody waits for it yet, and its groups are to be
    /// joined anew. False if there can be none of that name, for they come in the order of their
    /// names, or no memory for it.
    pub fn restore(&mut self, note: Note) -> bool {
        let UdpId { index, generation } = note.id;
        let len = self.sockets.len();
        let Some(vacant) = (index as usize).checked_sub(len) else {
            return false;
        };
        if index as usize >= SOCKETS
            || self.sockets.try_reserve(vacant + 1).is_err()
            || self.free.try_reserve(vacant).is_err()
        {
            return false;
        }
        for vacant in len as u32..index {
            self.free.push(vacant);
            self.sockets.push((0, None));
        }
        let ports = &mut self.ports;
        let held = note
            .held
            .map(|(at, port, shares)| ports.restore(at, port, shares));
        if let Some(held) = held {
            self.by_port.entry(held.port).or_default().push(note.id);
        }
        let socket = UdpSocket {
            held,
            remote: note.remote,
            local: note.local,
            queue: VecDeque::new(),
            queued: 0,
            limit: note.limit,
            error: note.error,
            broadcast: note.broadcast,
            hops: note.hops,
            group_hops: note.group_hops,
            group_loop: note.group_loop,
            groups: Vec::new(),
            read_closed: note.read_closed,
            write_closed: note.write_closed,
            waiters: Arc::default(),
        };
        self.sockets.push((generation, Some(Box::new(socket))));
        true
    }

    /// The sockets that have this port.
    pub fn at_port(&self, port: u16) -> &[UdpId] {
        self.by_port.get(&port).map_or(&[], Vec::as_slice)
    }

    /// Hands a restored socket a datagram that waited for it.
    pub fn restore_datagram(&mut self, id: UdpId, datagram: Datagram) {
        if let Some(socket) = self.get(id) {
            let Datagram { from, by, bytes } = datagram;
            socket.push(from, by, &[&bytes]);
        }
    }

    /// From now on these are woken for it.
    pub fn watch(&mut self, id: UdpId, waiters: Arc<WaitQueue>) {
        if let Some(socket) = self.get(id) {
            socket.waiters = waiters;
        }
    }

    /// The socket of that name.
    pub fn get(&mut self, id: UdpId) -> Option<&mut UdpSocket> {
        let (generation, socket) = self.sockets.get_mut(id.index as usize)?;
        socket
            .as_deref_mut()
            .filter(|_| *generation == id.generation)
    }

    /// Closes a socket; gives what it was.
    pub fn close(&mut self, id: UdpId) -> Option<UdpSocket> {
        self.get(id)?;
        self.unbind(id);
        let (generation, socket) = self.sockets.get_mut(id.index as usize)?;
        *generation = generation.wrapping_add(1);
        self.free.push(id.index);
        socket.take().map(|socket| *socket)
    }

    fn unbind(&mut self, id: UdpId) {
        let Some(held) = self.get(id).and_then(|s| s.held.take()) else {
            return;
        };
        self.ports.free(held);
        if let Some(ids) = self.by_port.get_mut(&held.port) {
            ids.retain(|i| *i != id);
            if ids.is_empty() {
                self.by_port.remove(&held.port);
            }
        }
    }

    /// Gives a socket a port (0: any).
    ///
    /// # Errors
    /// [`Error::Invalid`] if it has one, [`Error::InUse`] if another has it.
    pub fn bind(
        &mut self,
        id: UdpId,
        at: At,
        port: u16,
        shares: bool,
        random: u32,
    ) -> Result<(), Error> {
        if self.get(id).ok_or(Error::Invalid)?.held.is_some() {
            return Err(Error::Invalid);
        }
        let held = self.ports.take(at, port, shares, random);
        let held = held.ok_or(Error::InUse)?;
        self.by_port.entry(held.port).or_default().push(id);
        if let Some(socket) = self.get(id) {
            socket.held = Some(held);
        }
        Ok(())
    }

    /// Hands a datagram to the socket it fits best, or, if it is for `many`, to all it fits.
    /// Returns how many it fits.
    pub fn deliver(
        &mut self,
        from: SocketAddr,
        to: SocketAddr,
        by: Option<usize>,
        many: bool,
        pieces: &[&[u8]],
    ) -> usize {
        let Some(ids) = self.by_port.get(&to.port()) else {
            return 0;
        };
        let sockets = &mut self.sockets;
        let mut fitting = 0;
        let mut best: Option<(u8, u32)> = None;
        for id in ids {
            let Some(socket) = sockets
                .get_mut(id.index as usize)
                .and_then(|(_, s)| s.as_mut())
            else {
                continue;
            };
            let Some(fit) = socket.fits(to.ip(), from) else {
                continue;
            };
            if many {
                fitting += 1;
                socket.push(from, by, pieces);
            } else if best.is_none_or(|(b, _)| fit > b) {
                best = Some((fit, id.index));
            }
        }
        if let Some((_, index)) = best
            && let Some((_, Some(socket))) = sockets.get_mut(index as usize)
        {
            fitting = 1;
            socket.push(from, by, pieces);
        }
        fitting
    }

    /// What was sent from `from` to `to` did not get there.
    pub fn failed(&mut self, from: SocketAddr, to: SocketAddr, error: Error) {
        for id in self.by_port.get(&from.port()).into_iter().flatten() {
            if let Some((_, Some(s))) = self.sockets.get_mut(id.index as usize)
                && s.talks(from, to)
            {
                s.error = Some(error);
                s.waiters.wake_all();
            }
        }
    }

    /// Whether some socket sends from `from` to `to` only.
    #[must_use]
    pub fn is_connected(&self, from: SocketAddr, to: SocketAddr) -> bool {
        let mut ids = self.by_port.get(&from.port()).into_iter().flatten();
        ids.any(|id| {
            let socket = self.sockets.get(id.index as usize);
            socket.is_some_and(|(_, s)| s.as_ref().is_some_and(|s| s.talks(from, to)))
        })
    }

    /// A socket was refused a datagram: it is woken by [`Udp::unblocked`].
    pub fn refused(&mut self, id: UdpId) {
        if !self.refused.contains(&id) {
            self.refused.push(id);
        }
    }

    /// Whether a socket was refused a datagram and not yet woken.
    #[must_use]
    pub fn is_refused(&self, id: UdpId) -> bool {
        self.refused.contains(&id)
    }

    /// There is room to send again.
    pub fn unblocked(&mut self) {
        for id in core::mem::take(&mut self.refused) {
            if let Some(socket) = self.get(id) {
                socket.waiters.wake_all();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_best_fit_gets_it() {
        let mut udp = Udp::default();
        let mut open = |at, remote: Option<&str>| {
            let id = udp.open(Arc::default());
            udp.bind(id, at, 7, true, 0).unwrap();
            udp.get(id).unwrap().remote = remote.map(addr);
            id
        };
        let any = open(At::All, None);
        let one = open(At::One([10, 0, 0, 2].into()), None);
        let connected = open(At::All4, Some("10.0.0.9:99"));
        let mut send =
            |from, to, many| udp.deliver(addr(from), addr(to), None, many, &[b"x", b"y"]);
        assert_eq!(send("10.0.0.9:99", "10.0.0.2:7", false), 1);
        assert_eq!(send("10.0.0.8:99", "10.0.0.2:7", false), 1);
        assert_eq!(send("10.0.0.8:99", "10.0.0.3:7", false), 1);
        assert_eq!(send("[fd00::1]:1", "[fd00::2]:7", false), 1);
        assert_eq!(send("10.0.0.9:99", "10.0.0.2:8", false), 0);
        assert_eq!(send("10.0.0.8:1", "224.0.0.5:7", true), 1);
        let mut got = |id| -> Vec<String> {
            let s = udp.get(id).unwrap();
            core::iter::from_fn(|| s.pop())
                .map(|d| d.from.to_string())
                .collect()
        };
        assert_eq!(got(connected), ["10.0.0.9:99"]);
        assert_eq!(got(one), ["10.0.0.8:99"]);
        assert_eq!(got(any), ["10.0.0.8:99", "[fd00::1]:1", "10.0.0.8:1"]);
    }

    #[test]
    fn queues_are_bounded_and_names_go_stale() {
        let mut udp = Udp::default();
        let id = udp.open(Arc::default());
        udp.bind(id, At::All, 7, false, 0).unwrap();
        assert_eq!(udp.bind(id, At::All, 8, false, 0), Err(Error::Invalid));
        let other = udp.open(Arc::default());
        assert_eq!(udp.bind(other, At::All4, 7, true, 0), Err(Error::InUse));
        for _ in 0..10_000 {
            udp.deliver(
                addr("1.1.1.1:1"),
                addr("2.2.2.2:7"),
                None,
                false,
                &[&[0; 1000]],
            );
        }
        let s = udp.get(id).unwrap();
        assert_eq!(s.queue.len(), QUEUE / (1000 + OVERHEAD));
        while s.pop().is_some() {}
        assert_eq!(s.queued, 0);
        udp.close(id);
        assert!(udp.get(id).is_none() && udp.by_port.is_empty());
        udp.bind(other, At::All4, 7, true, 0).unwrap();
        let new = udp.open(Arc::default());
        assert!(new != id && new.index == id.index);
    }
}
