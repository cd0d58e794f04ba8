//! What apps do with connections and listeners: RFC 9293, section 3.9.1. What has to be sent for it
//! goes out in the next [`Engine::flush`].

use core::net::SocketAddr;

use super::addr::{self, Tuple};
use super::block::{
    ACK_NOW, FIN_QUEUED, FIN_SEEN, KEEPALIVE, OFF, ORPHAN, READ_SHUT, RST_DUE, SYN_DUE, State, TOLD,
};
use super::buffers::NONE;
use super::{
    ConnId, Engine, Error, Id, Link, Listener, ListenerId, Options, Readiness, SECOND, Shutdown,
    sane_size,
};

impl Engine {
    /// Waits for connections to `at`. Port 0 is any free port; an unspecified address is all of its
    /// family, `[::]` of both unless `v6_only`. At most `backlog` connections wait to be accepted,
    /// and as many handshakes are kept in memory; further ones get SYN cookies.
    ///
    /// Errors: [`Error::AddrInUse`], [`Error::AddrNotAvailable`] (no free port).
    pub fn listen(
        &mut self,
        at: SocketAddr,
        backlog: usize,
        options: &Options,
    ) -> Result<ListenerId, Error> {
        let local = addr::number(at.ip());
        let v6_only = options.v6_only || at.ip() != addr::ip(0);
        let port = match at.port() {
            0 => self.free_listen_port(local, v6_only)?,
            port if self.is_listening(local, port, v6_only) => return Err(Error::AddrInUse),
            port => port,
        };
        let free = self
            .listeners
            .iter()
            .position(|(listener, _)| listener.open == 0);
        let slot = free.unwrap_or(self.listeners.len());
        let generation = self
            .listeners
            .get(slot)
            .map_or(0, |(listener, _)| listener.generation);
        let listener = Listener {
            local,
            cookies_until: 0,
            generation,
            backlog: u32::try_from(backlog).unwrap_or(u32::MAX).clamp(1, 4096),
            half_open: 0,
            ready: 0,
            head: NONE,
            tail: NONE,
            port,
            open: 1,
            v6_only: v6_only.into(),
            told: 0,
        };
        match self.listeners.get_mut(slot) {
            Some(place) => *place = (listener, *options),
            None => self.listeners.push((listener, *options)),
        }
        let slot = slot as u32;
        self.listener_index
            .insert(self.secrets.place_of_port(port), slot);
        Ok(ListenerId { slot, generation })
    }

    /// Whether a listener there would stand in another's way.
    fn is_listening(&self, local: u128, port: u16, v6_only: bool) -> bool {
        let both = |at: u128, v6_only: bool| at == 0 && !v6_only;
        self.listener_index
            .candidates(self.secrets.place_of_port(port))
            .any(|slot| {
                let other = &self.listeners[slot as usize].0;
                other.port == port
                    && (other.local == local
                        || both(local, v6_only) && other.local == addr::V4_ANY
                        || both(other.local, other.v6_only != 0) && local == addr::V4_ANY)
            })
    }

    fn free_listen_port(&mut self, local: u128, v6_only: bool) -> Result<u16, Error> {
        let tuple = Tuple {
            local,
            ..Tuple::default()
        };
        let start = self
            .secrets
            .port_offset(&tuple)
            .wrapping_add(self.port_step);
        self.port_step = self.port_step.wrapping_add(1);
        ports(self.config.ports, start)
            .find(|&port| !self.is_listening(local, port, v6_only))
            .ok_or(Error::AddrNotAvailable)
    }

    fn listener(&self, id: ListenerId) -> Result<&Listener, Error> {
        let listener = self
            .listeners
            .get(id.slot as usize)
            .map(|(listener, _)| listener);
        listener
            .filter(|listener| listener.open != 0 && listener.generation == id.generation)
            .ok_or(Error::Stale)
    }

    /// Where it listens.
    pub fn listener_addr(&self, id: ListenerId) -> Result<SocketAddr, Error> {
        self.listener(id)
            .map(|listener| SocketAddr::new(addr::ip(listener.local), listener.port))
    }

    /// Listens no more; connections nobody has accepted are reset.
    pub fn close_listener(&mut self, id: ListenerId) -> Result<(), Error> {
        self.listener(id)?;
        while let Ok(conn) = self.accept(id) {
            self.abort(conn)?;
        }
        self.listener_index.remove(id.slot);
        let (listener, _) = &mut self.listeners[id.slot as usize];
        listener.open = 0;
        listener.generation = listener.generation.wrapping_add(1);
        Ok(())
    }

    /// Takes the connection that has waited longest. Errors: [`Error::WouldBlock`].
    pub fn accept(&mut self, id: ListenerId) -> Result<ConnId, Error> {
        let slot = self.listener(id)?.head;
        if slot == NONE {
            return Err(Error::WouldBlock);
        }
        let block = &mut self.blocks[slot];
        let next = core::mem::replace(&mut block.next, NONE);
        block.listener = NONE;
        let (listener, _) = &mut self.listeners[id.slot as usize];
        listener.head = next;
        listener.ready = listener.ready.saturating_sub(1);
        if next == NONE {
            listener.tail = NONE;
        }
        Ok(self.id_of(slot))
    }

    /// Starts a connection; it is there when it becomes writable, or has an error. `local` may leave
    /// address and port open (unspecified, 0).
    ///
    /// Errors: [`Error::NetUnreachable`], [`Error::AddrInUse`], [`Error::AddrNotAvailable`],
    /// [`Error::NoBuffers`], [`Error::Invalid`] (the remote address is no host's).
    pub fn connect(
        &mut self,
        now: u64,
        local: Option<SocketAddr>,
        remote: SocketAddr,
        options: &Options,
        link: &impl Link,
    ) -> Result<ConnId, Error> {
        if remote.port() == 0 || !addr::is_unicast(remote.ip()) {
            return Err(Error::Invalid);
        }
        let path = link.path(remote.ip()).ok_or(Error::NetUnreachable)?;
        let wanted = local
            .map(|local| local.ip())
            .filter(|ip| !ip.is_unspecified());
        let from = wanted.unwrap_or(path.local);
        if from.is_ipv4() != remote.is_ipv4() {
            return Err(Error::Invalid);
        }
        let port = local.map_or(0, |local| local.port());
        let mut tuple = Tuple::new(SocketAddr::new(from, port), remote);
        if port == 0 {
            tuple.local_port = self.free_port(now, &tuple)?;
        } else if !self.is_free(now, &tuple) {
            return Err(Error::AddrInUse);
        }
        let slot = self
            .blocks
            .take(self.buffers.arena())
            .ok_or(Error::NoBuffers)?;
        let iss = self.secrets.isn(now, &tuple);
        self.prepare(now, slot, &tuple, iss, options, &path);
        let block = &mut self.blocks[slot];
        block.state = State::SYN_SENT;
        block.set(SYN_DUE);
        self.stats.active_opens += 1;
        self.queue(slot);
        self.rearm(slot);
        Ok(self.id_of(slot))
    }

    /// Whether a connection may be opened there. One in TIME-WAIT makes room when timestamps tell
    /// its segments from the new one's (RFC 6191).
    fn is_free(&mut self, now: u64, tuple: &Tuple) -> bool {
        let Some(slot) = self.find(tuple) else {
            return true;
        };
        let block = &mut self.blocks[slot];
        let reusable = block.state == State::TIME_WAIT
            && block.has(super::block::TS_ON)
            && now.saturating_sub(block.heard_at) > SECOND;
        if reusable {
            block.set(ORPHAN);
            self.end(slot, None);
        }
        reusable
    }

    /// RFC 6056, section 3.3.4 with one counter.
    fn free_port(&mut self, now: u64, tuple: &Tuple) -> Result<u16, Error> {
        let start = self.secrets.port_offset(tuple).wrapping_add(self.port_step);
        let range = self.config.ports;
        for (n, local_port) in (1u32..).zip(ports(range, start)) {
            let tuple = Tuple {
                local_port,
                ..*tuple
            };
            if !self.is_listening(tuple.local, local_port, false)
                && !self.is_listening(addr::any_of(tuple.local), local_port, false)
                && self.is_free(now, &tuple)
            {
                self.port_step = self.port_step.wrapping_add(n);
                return Ok(local_port);
            }
        }
        Err(Error::AddrNotAvailable)
    }

    fn slot(&self, id: ConnId) -> Result<u32, Error> {
        let good = self
            .blocks
            .get(id.slot)
            .is_some_and(|block| block.generation == id.generation && !block.has(ORPHAN));
        good.then_some(id.slot).ok_or(Error::Stale)
    }

    /// Takes as much of `bytes` as there is room for, at least one.
    ///
    /// Errors: [`Error::WouldBlock`] (no room, or not connected yet), [`Error::Closed`], the error
    /// the connection ended with, once, [`Error::NoBuffers`].
    pub fn send(&mut self, id: ConnId, bytes: &[u8]) -> Result<usize, Error> {
        let slot = self.slot(id)?;
        let block = &mut self.blocks[slot];
        if let Some(error) = Error::from_code(core::mem::take(&mut block.error)) {
            return Err(error);
        }
        if block.has(FIN_QUEUED) {
            return Err(Error::Closed);
        }
        match block.state {
            State::ESTABLISHED | State::CLOSE_WAIT => {}
            State::SYN_SENT | State::SYN_RECEIVED => return Err(Error::WouldBlock),
            _ => return Err(Error::Closed),
        }
        let len = bytes.len().min(block.room() as usize) as u32;
        if len == 0 && !bytes.is_empty() {
            return Err(Error::WouldBlock);
        }
        let (base, end, hint) = (block.snd_base(), block.snd_end, block.tx_class);
        let need = block.unacked() + len;
        if !self.buffers.ensure(&mut block.tx, hint, base, end, need) {
            // What is there may have room for less.
            let room = self.buffers.size(block.tx).saturating_sub(block.unacked());
            if room > 0 {
                return self.send(id, bytes.get(..room as usize).unwrap_or_default());
            }
            return Err(Error::NoBuffers);
        }
        let taken = bytes.get(..len as usize).unwrap_or_default();
        self.buffers.write(block.tx, end, taken);
        block.snd_end += len;
        self.queue(slot);
        Ok(taken.len())
    }

    /// Reads what is there, up to the length of `into`; 0 at the end of the stream.
    ///
    /// Errors: [`Error::WouldBlock`] (nothing there, or not connected yet), the error the connection ended with,
    /// once, when all has been read.
    pub fn recv(&mut self, id: ConnId, into: &mut [u8]) -> Result<usize, Error> {
        let len = self.peek(id, into)?;
        let slot = self.slot(id)?;
        let block = &mut self.blocks[slot];
        if len == 0 {
            block.error = 0;
            return Ok(0);
        }
        block.rcv_read += len as u32;
        self.settle_rx(slot);
        // Whether the window has opened enough to tell (RFC 9293, section 3.8.6.2.2).
        let limit = self.recv_limit(slot);
        let block = &mut self.blocks[slot];
        let more = block.window_edge(limit).beyond(block.rcv_adv);
        let left = block.rcv_adv.beyond(block.rcv_nxt);
        let worth = more >= limit / 2 || (left < limit / 4 && more >= 2 * block.rcv_mss);
        if block.state.receives() && worth {
            block.set(ACK_NOW);
            self.queue(slot);
        }
        Ok(len)
    }

    /// Like [`Engine::recv`], but leaves it there.
    pub fn peek(&mut self, id: ConnId, into: &mut [u8]) -> Result<usize, Error> {
        let slot = self.slot(id)?;
        let block = &mut self.blocks[slot];
        let there = block.readable_end().beyond(block.rcv_read);
        if there == 0 || block.state == State::SYN_SENT {
            if let Some(error) = Error::from_code(core::mem::take(&mut block.error)) {
                return Err(error);
            }
            return match block.state {
                _ if block.has(FIN_SEEN | READ_SHUT) || block.state == State::CLOSED => Ok(0),
                _ if into.is_empty() => Ok(0),
                _ => Err(Error::WouldBlock),
            };
        }
        let len = into.len().min(there as usize);
        let (mut rest, _) = into.split_at_mut(len);
        for piece in self.buffers.pieces(block.rx, block.rcv_read, len as u32) {
            let (part, after) = rest.split_at_mut(piece.len().min(rest.len()));
            part.copy_from_slice(piece.get(..part.len()).unwrap_or_default());
            rest = after;
        }
        Ok(len)
    }

    /// Bytes that can be read.
    pub fn readable(&self, id: ConnId) -> Result<usize, Error> {
        let block = &self.blocks[self.slot(id)?];
        Ok(block.readable_end().beyond(block.rcv_read) as usize)
    }

    /// Bytes written, and FIN, that the peer has not acknowledged: 0 when all has arrived. For
    /// SO_LINGER.
    pub fn unsent(&self, id: ConnId) -> Result<usize, Error> {
        let block = &self.blocks[self.slot(id)?];
        let fin = block.has(FIN_QUEUED) && !block.fin_acked() && block.state != State::CLOSED;
        Ok(if block.state == State::CLOSED {
            0
        } else {
            block.unacked() as usize
        } + usize::from(fin))
    }

    /// Ends one direction or both. Errors: [`Error::NotConnected`].
    pub fn shutdown(&mut self, id: ConnId, how: Shutdown) -> Result<(), Error> {
        let slot = self.slot(id)?;
        if matches!(self.blocks[slot].state, State::CLOSED | State::SYN_SENT) {
            return Err(Error::NotConnected);
        }
        if matches!(how, Shutdown::Read | Shutdown::Both) {
            self.blocks[slot].set(READ_SHUT);
            self.settle_rx(slot);
        }
        if matches!(how, Shutdown::Write | Shutdown::Both) {
            self.finish(slot);
        }
        self.tell(slot);
        Ok(())
    }

    /// Queues FIN.
    fn finish(&mut self, slot: u32) {
        let block = &mut self.blocks[slot];
        block.state = match block.state {
            State::ESTABLISHED => State::FIN_WAIT_1,
            State::CLOSE_WAIT => State::LAST_ACK,
            State::SYN_RECEIVED => State::SYN_RECEIVED,
            _ => return,
        };
        block.set(FIN_QUEUED);
        self.queue(slot);
    }

    /// Gives the connection up; its id is no longer good. What was written is still sent, unless
    /// there is something that was not read: then the peer gets RST (RFC 2525, section 2.17).
    pub fn close(&mut self, now: u64, id: ConnId) -> Result<(), Error> {
        let slot = self.slot(id)?;
        let block = &mut self.blocks[slot];
        let unread = block.readable_end() != block.rcv_read || !block.ooo.is_empty();
        match block.state {
            State::CLOSED | State::SYN_SENT | State::TIME_WAIT => return self.give_up(slot),
            _ if unread => return self.abort(id),
            State::FIN_WAIT_2 => block.life_at = now.saturating_add(self.config.fin_wait),
            _ => {}
        }
        block.set(ORPHAN);
        block.progress_at = now;
        self.finish(slot);
        self.rearm(slot);
        Ok(())
    }

    /// Gives it up without a word where none is needed.
    fn give_up(&mut self, slot: u32) -> Result<(), Error> {
        let block = &mut self.blocks[slot];
        block.set(ORPHAN);
        match block.state {
            // RST may still have to go out: that frees it.
            State::CLOSED if block.has(RST_DUE) => {}
            State::CLOSED => self.free(slot),
            State::TIME_WAIT => {}
            _ => self.end(slot, None),
        }
        Ok(())
    }

    /// Gives it up with RST: what was written may be lost. SO_LINGER with time 0.
    pub fn abort(&mut self, id: ConnId) -> Result<(), Error> {
        let slot = self.slot(id)?;
        match self.blocks[slot].state {
            State::CLOSED | State::SYN_SENT | State::TIME_WAIT => self.give_up(slot),
            _ => {
                self.blocks[slot].set(ORPHAN);
                self.break_off(slot, None);
                Ok(())
            }
        }
    }

    /// Our end.
    pub fn local_addr(&self, id: ConnId) -> Result<SocketAddr, Error> {
        Ok(self.blocks[self.slot(id)?].tuple.local())
    }

    /// The peer's end.
    pub fn remote_addr(&self, id: ConnId) -> Result<SocketAddr, Error> {
        Ok(self.blocks[self.slot(id)?].tuple.remote())
    }

    /// The connection's state.
    pub fn state(&self, id: ConnId) -> Result<State, Error> {
        Ok(self.blocks[self.slot(id)?].state)
    }

    /// The error it ended with, once (SO_ERROR).
    pub fn take_error(&mut self, id: ConnId) -> Result<Option<Error>, Error> {
        let slot = self.slot(id)?;
        Ok(Error::from_code(core::mem::take(
            &mut self.blocks[slot].error,
        )))
    }

    /// Changes what an app may set, all of it at once. Rings that are larger than a new limit stay
    /// so until they are empty.
    pub fn set_options(&mut self, now: u64, id: ConnId, options: &Options) -> Result<(), Error> {
        let slot = self.slot(id)?;
        let block = &mut self.blocks[slot];
        block.apply(options);
        let alive = block.state != State::CLOSED && block.state != State::TIME_WAIT;
        block.keep_at = OFF;
        if block.has(KEEPALIVE) && alive {
            block.keep_at = now.saturating_add(block.keep_idle);
        }
        if let Some(size) = options.send_buffer {
            block.tx_max = sane_size(size);
        }
        if let Some(size) = options.recv_buffer {
            // The shift was agreed upon: no window above it can be told.
            let most = 0xffff << block.rcv_scale;
            block.rx_max = sane_size(size).min(most);
        }
        self.rearm(slot);
        self.queue(slot);
        Ok(())
    }

    /// What can be done at once.
    pub fn readiness(&self, id: Id) -> Result<Readiness, Error> {
        let conn = match id {
            Id::Listener(id) => {
                let readable = self.listener(id)?.ready > 0;
                return Ok(Readiness {
                    readable,
                    ..Readiness::default()
                });
            }
            Id::Conn(conn) => conn,
        };
        let block = &self.blocks[self.slot(conn)?];
        let closed = block.state == State::CLOSED;
        let read_closed = closed || block.has(FIN_SEEN | READ_SHUT);
        let write_closed = closed || block.has(FIN_QUEUED);
        let error = block.error != 0;
        let open = matches!(block.state, State::ESTABLISHED | State::CLOSE_WAIT);
        Ok(Readiness {
            readable: read_closed || error || block.readable_end().gt(block.rcv_read),
            writable: write_closed || error || (open && block.roomy()),
            read_closed,
            write_closed,
            error,
        })
    }

    /// Whose readiness may have changed since the last call. Each is told once.
    pub fn events(&mut self) -> impl Iterator<Item = Id> + '_ {
        core::iter::from_fn(|| {
            loop {
                let id = self.events.pop_front()?;
                match id {
                    Id::Conn(conn) => {
                        let Ok(slot) = self.slot(conn) else { continue };
                        self.blocks[slot].clear(TOLD);
                    }
                    Id::Listener(listener) => {
                        if self.listener(listener).is_err() {
                            continue;
                        }
                        self.listeners[listener.slot as usize].0.told = 0;
                    }
                }
                return Some(id);
            }
        })
    }
}

/// All ports of a range, beginning somewhere in it.
fn ports((first, last): (u16, u16), start: u32) -> impl Iterator<Item = u16> {
    let count = u32::from(last.saturating_sub(first)) + 1;
    (0..count).map(move |n| first + (start.wrapping_add(n) % count) as u16)
}
