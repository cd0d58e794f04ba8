//! What goes over a switch of the stack's beside blocks and rings: notes in the arena, one after the
//! other as `postcard` writes them. First what must not be missing, then what may be: neighbours,
//! datagrams that wait, frames that wait. Of that as much goes along as there is room for.
//!
//! What is not noted: packets of which not all fragments are there, names being looked up, frames
//! for neighbours that have not answered, counters.

use super::config::Config;
use super::host::Host;
use super::interface::{self, Outgoing};
use super::neighbor::Mac;
use super::nic::TxMeta;
use super::stack::{Stack, Token};
use super::tcp::adopt::{self, EngineNote, Found, ListenerNote, Refused};
use super::tcp::arena::{Memory, Sealed};
use super::tcp::{self, Engine};
use super::udp::{self, Datagram, UdpId};
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, SocketAddr};
use serde::{Deserialize, Serialize};

/// Changes with the meaning of a note.
const VERSION: u8 = 2;
/// How often what has been begun is gone on with before a freeze.
const ROUNDS: usize = 64;

/// Something that is noted. The order of the kinds is part of the format.
#[derive(Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
enum Note<'a> {
    /// Comes first, once.
    Engine {
        version: u8,
        engine: EngineNote,
    },
    Listener(ListenerNote),
    NameServer(IpAddr),
    Interface(interface::Note),
    Udp(udp::Note),
    Group {
        id: UdpId,
        number: usize,
        group: IpAddr,
    },
    Neighbor {
        number: u32,
        addr: IpAddr,
        mac: Mac,
        sure_until: u64,
    },
    Path {
        dst: IpAddr,
        mtu: u16,
        until: u64,
    },
    Frame {
        number: u32,
        meta: TxMeta,
        bytes: &'a [u8],
    },
    Datagram {
        id: UdpId,
        from: SocketAddr,
        by: Option<usize>,
        bytes: &'a [u8],
    },
}

/// There is no room for the notes that must not be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no room to note listeners, interfaces and sockets")
    }
}

impl core::error::Error for NoRoom {}

/// Writes notes one after the other.
struct Writer<'a> {
    room: &'a mut [u8],
    len: usize,
    /// What there was no room for.
    dropped: u64,
}

impl Writer<'_> {
    fn put(&mut self, note: &Note<'_>) -> Result<(), NoRoom> {
        let room = self.room.get_mut(self.len..).unwrap_or_default();
        let written = postcard::to_slice(note, room).map_err(|_| NoRoom)?;
        self.len += written.len();
        Ok(())
    }

    fn put_if_fits(&mut self, note: &Note<'_>) {
        self.dropped += u64::from(self.put(note).is_err());
    }
}

/// Calls `each` with the notes, in order.
fn read<'a>(
    notes: &'a [u8],
    mut each: impl FnMut(Note<'a>) -> Result<(), Refused>,
) -> Result<(), Refused> {
    let mut rest = notes;
    while !rest.is_empty() {
        let bad = Refused::Note("cannot be read");
        let (note, after) = postcard::take_from_bytes(rest).map_err(|_| bad)?;
        rest = after;
        each(note)?;
    }
    Ok(())
}

/// A network's state that was looked at and can be gone on with.
#[derive(Debug)]
pub struct Offer {
    engine: Found,
    /// What sockets there were.
    pub tokens: BTreeSet<Token>,
}

/// Looks at another image's network state: all that could be wrong with it is found here. Writes
/// nothing there.
///
/// # Errors
/// See [`Refused`].
pub fn look(memory: &Memory) -> Result<Offer, Refused> {
    let sealed = Sealed::read(memory)?;
    let mut engine = None;
    let mut listeners = Vec::new();
    let mut sockets = Vec::new();
    let mut interfaces = 0u64;
    let mut next_socket = 0;
    read(sealed.notes(), |note| {
        let sane = |good: bool, what| {
            if good {
                Ok(())
            } else {
                Err(Refused::Note(what))
            }
        };
        match note {
            Note::Engine {
                version,
                engine: its,
            } => {
                sane(version == VERSION, "their version")?;
                sane(engine.replace(its).is_none(), "two engines")?;
            }
            Note::Listener(listener) => {
                listeners.try_reserve(1).map_err(|_| Refused::NoMemory)?;
                listeners.push(listener);
            }
            Note::Interface(interface) => {
                sane(interface.is_sane(), "an interface")?;
                let bit = 1 << interface.number;
                sane(interfaces & bit == 0, "two interfaces of one number")?;
                interfaces |= bit;
            }
            Note::Udp(udp) => {
                let index = udp.id.index();
                sane(index >= next_socket && index < udp::SOCKETS, "a socket")?;
                next_socket = index + 1;
                sockets.try_reserve(1).map_err(|_| Refused::NoMemory)?;
                sockets.push(udp.id);
            }
            Note::NameServer(_)
            | Note::Group { .. }
            | Note::Neighbor { .. }
            | Note::Path { .. }
            | Note::Frame { .. }
            | Note::Datagram { .. } => {}
        }
        Ok(())
    })?;
    let note = engine.ok_or(Refused::Note("no engine"))?;
    let engine = adopt::check(sealed, note, listeners.into_iter())?;
    let ids = engine.ids().iter().map(|id| Token::Tcp(*id));
    let tokens = ids.chain(sockets.into_iter().map(Token::Udp)).collect();
    Ok(Offer { engine, tokens })
}

impl Host {
    /// Takes what is noted of all but TCP.
    fn restore_all(&mut self, notes: &[u8]) -> Result<(), Refused> {
        let now = self.now;
        let no_servers = self.config.dns.is_empty();
        read(notes, |note| {
            match note {
                Note::Engine { .. } | Note::Listener(_) => {}
                Note::NameServer(addr) if no_servers => {
                    let _ = self.config.dns.try_push(addr);
                }
                Note::NameServer(_) => {}
                Note::Interface(note) => self.restore(note),
                // Its place was looked at: it is memory that there is not.
                Note::Udp(note) => {
                    if !self.udp.restore(note) {
                        return Err(Refused::NoMemory);
                    }
                }
                Note::Group { id, number, group } => {
                    if let Some(socket) = self.udp.get(id) {
                        socket.groups.push((number, group));
                        // Its interface may be gone.
                        let _ = self.membership(number, group, true);
                    }
                }
                Note::Neighbor {
                    number,
                    addr,
                    mac,
                    sure_until,
                } => {
                    if let Some(i) = self.interface_mut(number) {
                        i.neighbors.restore(addr, mac, sure_until, now);
                    }
                }
                Note::Path { dst, mtu, until } => self.restore_path(dst, mtu, until),
                Note::Frame {
                    number,
                    meta,
                    bytes,
                } => {
                    let frame = bytes.to_vec();
                    if let Some(i) = self.interface_mut(number) {
                        i.restore_frame(Outgoing { frame, meta });
                    }
                }
                Note::Datagram {
                    id,
                    from,
                    by,
                    bytes,
                } => {
                    let bytes = bytes.to_vec();
                    self.udp.restore_datagram(id, Datagram { from, by, bytes });
                }
            }
            Ok(())
        })
    }

    fn note_all(&self, w: &mut Writer<'_>) -> Result<(), NoRoom> {
        for server in &self.config.dns {
            w.put(&Note::NameServer(*server))?;
        }
        let numbered = || {
            self.each()
                .filter_map(|(n, i)| Some((u32::try_from(n).ok()?, i)))
        };
        for (number, i) in numbered() {
            w.put(&Note::Interface(i.note(number)))?;
        }
        for (note, socket) in self.udp.notes() {
            let id = note.id;
            w.put(&Note::Udp(note))?;
            for &(number, group) in &socket.groups {
                w.put(&Note::Group { id, number, group })?;
            }
        }
        for (number, i) in numbered() {
            for (addr, mac, sure_until) in i.neighbors.found() {
                w.put_if_fits(&Note::Neighbor {
                    number,
                    addr,
                    mac,
                    sure_until,
                });
            }
        }
        for (dst, mtu, until) in self.paths().filter(|(_, _, until)| *until > self.now) {
            w.put_if_fits(&Note::Path { dst, mtu, until });
        }
        for (number, i) in numbered() {
            for Outgoing { frame: bytes, meta } in i.waiting() {
                let meta = *meta;
                w.put_if_fits(&Note::Frame {
                    number,
                    meta,
                    bytes,
                });
            }
        }
        for (note, socket) in self.udp.notes() {
            for Datagram { from, by, bytes } in socket.waiting() {
                let (id, from, by) = (note.id, *from, *by);
                w.put_if_fits(&Note::Datagram {
                    id,
                    from,
                    by,
                    bytes,
                });
            }
        }
        Ok(())
    }
}

impl Stack {
    /// Brings all of it to where another image can go on: notes are written, devices put down where
    /// they stand. Nothing may be done with it before [`Stack::thaw`]. Gives how many datagrams,
    /// frames and neighbours there was no room for.
    ///
    /// # Errors
    /// [`NoRoom`]: nothing has changed.
    pub fn freeze(&mut self, now: u64) -> Result<u64, NoRoom> {
        // Packets to ourselves lie in the heap.
        let mut rounds = 0..ROUNDS;
        while rounds.next().is_some() && self.settle(now) {}
        let version = VERSION;
        let engine = self.engine.note();
        let listeners: Vec<_> = self.engine.listener_notes().collect();
        let host = &self.host;
        let mut dropped = 0;
        self.engine.arena().seal(|room| {
            let len = 0;
            let mut w = Writer { room, len, dropped };
            w.put(&Note::Engine { version, engine })?;
            for listener in listeners {
                w.put(&Note::Listener(listener))?;
            }
            host.note_all(&mut w)?;
            dropped = w.dropped;
            Ok(w.len)
        })?;
        let (interfaces, _) = self.host.each_mut();
        for nic in interfaces.filter_map(|(_, i)| i.nic.as_mut()) {
            nic.freeze();
        }
        Ok(dropped)
    }

    /// It goes on as if nothing had been.
    pub fn thaw(&mut self) {
        self.engine.arena().unseal();
    }

    /// A stack that goes on with another image's state, without its devices: they are to be
    /// attached. `offer` is what [`look`] has found in this memory. The seed must be random; nothing
    /// that is drawn from it was drawn by the other one.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn adopt(
        config: Config,
        tcp: tcp::Config,
        memory: Memory,
        offer: Offer,
        seed: [u8; 32],
        now: u64,
    ) -> Result<Self, Refused> {
        let mut host = Host::new(config, super::stack::fold(seed), now);
        host.restore_all(Sealed::read(&memory)?.notes())?;
        let mut engine = Engine::adopt(tcp, memory, offer.engine)?;
        engine.arena().unseal();
        Ok(Self::over(engine, host, offer.tokens))
    }
}
