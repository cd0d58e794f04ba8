//! The engine over a switch: what it notes for another image beside the blocks, how that one looks
//! at an arena before it is its own, and how it goes on with it.
//!
//! Hash tables, timers, queues, free lists and counts are derived anew. Deadlines in blocks are of
//! the system's time, which goes on.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use super::arena::{self, Memory, Pieces, Sealed};
use super::block::{OFF, ORPHAN, PASSIVE, QUEUED, RST_DUE, State, TOLD};
use super::buffers::NONE;
use super::slab::Slab;
use super::{Config, ConnId, Engine, Id, Listener, ListenerId, Options};

/// Why an arena is not taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No arena at all.
    NoArena,
    /// Of a version that this image does not know.
    Version {
        /// The layout's.
        layout: u32,
        /// The blocks'.
        block: u32,
    },
    /// Its parts are longer than it is.
    Length,
    /// The notes' digest is wrong, or there are none.
    Digest,
    /// What this note is about makes no sense.
    Note(&'static str),
    /// Chunks overlap or are outside.
    Chunks,
    /// A block makes no sense.
    Block {
        /// Its place.
        slot: u32,
        /// What of it.
        what: &'static str,
    },
    /// Rings overlap.
    Rings,
    /// A listener's queue is none.
    Queue {
        /// The listener's place.
        listener: u32,
    },
    /// No memory to look at it.
    NoMemory,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoArena => f.write_str("no network state"),
            Self::Version { layout, block } => {
                write!(f, "network state of version {layout}.{block}")
            }
            Self::Length => f.write_str("network state is cut off"),
            Self::Digest => f.write_str("the network's notes are damaged"),
            Self::Note(what) => write!(f, "the network's notes: {what}"),
            Self::Chunks => f.write_str("connections lie where none can be"),
            Self::Block { slot, what } => write!(f, "connection {slot}: {what}"),
            Self::Rings => f.write_str("connections' bytes overlap"),
            Self::Queue { listener } => write!(f, "listener {listener}: its queue"),
            Self::NoMemory => f.write_str("no memory to look at the network's state"),
        }
    }
}

impl core::error::Error for Refused {}

/// What the engine is beside listeners and blocks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EngineNote {
    secret: [u8; 32],
    port_step: u32,
    path_epoch: u32,
    generation: u32,
}

/// A listener's place.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ListenerNote {
    slot: u32,
    generation: u32,
    open: Option<Open>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Open {
    local: u128,
    port: u16,
    v6_only: bool,
    backlog: u32,
    cookies_until: u64,
    head: u32,
    options: Options,
}

/// An arena that was looked at and can be taken over.
#[derive(Debug)]
pub struct Found {
    note: EngineNote,
    pieces: Pieces,
    listeners: Vec<(Listener, Options)>,
    /// By listener: the slots that wait to be accepted.
    queues: Vec<Vec<u32>>,
    /// Connections and listeners that an app had, or could have.
    ids: Vec<Id>,
}

impl Found {
    /// Connections and listeners whose sockets may be claimed.
    pub fn ids(&self) -> &[Id] {
        &self.ids
    }
}

/// Most listeners' places.
const LISTENERS: usize = 65_536;

/// The listeners that notes say there are.
fn listeners(
    notes: impl Iterator<Item = ListenerNote>,
) -> Result<Vec<(Listener, Options)>, Refused> {
    let mut listeners: Vec<(Listener, Options)> = Vec::new();
    for note in notes {
        // In order, and each once.
        if note.slot as usize != listeners.len() || listeners.len() >= LISTENERS {
            return Err(Refused::Note("a listener's place"));
        }
        let open = note.open;
        if open.is_some_and(|open| open.port == 0 || !(1..=4096).contains(&open.backlog)) {
            return Err(Refused::Note("a listener"));
        }
        let listener = Listener {
            local: open.map_or(0, |open| open.local),
            cookies_until: open.map_or(0, |open| open.cookies_until),
            generation: note.generation,
            backlog: open.map_or(1, |open| open.backlog),
            half_open: 0,
            ready: 0,
            head: open.map_or(NONE, |open| open.head),
            tail: NONE,
            port: open.map_or(0, |open| open.port),
            open: open.is_some().into(),
            v6_only: open.is_some_and(|open| open.v6_only).into(),
            told: 0,
        };
        listeners.try_reserve(1).map_err(|_| Refused::NoMemory)?;
        listeners.push((listener, open.map(|open| open.options).unwrap_or_default()));
    }
    Ok(listeners)
}

/// Looks at an arena whose notes have been read. Writes nothing to it, sends nothing.
pub fn check(
    sealed: Sealed<'_>,
    note: EngineNote,
    listener_notes: impl Iterator<Item = ListenerNote>,
) -> Result<Found, Refused> {
    let mut sealed = sealed;
    let listeners = listeners(listener_notes)?;
    let mut ids = Vec::new();
    let mut waiting = 0;
    for (first, blocks) in sealed.chunks() {
        ids.try_reserve(blocks.len())
            .map_err(|_| Refused::NoMemory)?;
        for (slot, block) in (first..).zip(blocks) {
            let pieces = &mut sealed.pieces;
            let wrong = |what| Refused::Block { slot, what };
            if !pieces.ring(block.rx) || !pieces.ring(block.tx) {
                return Err(wrong("its rings' places"));
            }
            block.check(|ring| pieces.size(ring)).map_err(wrong)?;
            let half_open = block.state == State::SYN_RECEIVED && block.has(PASSIVE);
            if block.has(ORPHAN) || half_open {
                continue;
            }
            if block.listener == NONE {
                let generation = block.generation;
                ids.push(Id::Conn(ConnId { slot, generation }));
            } else {
                waiting += 1;
            }
        }
    }
    if !sealed.pieces.gaps(|_| ()) {
        return Err(Refused::Rings);
    }
    // Slots' blocks, found without a table: chunks are few.
    let chunks: Vec<_> = sealed.chunks().collect();
    let block = |slot: u32| {
        let at = chunks
            .partition_point(|(first, _)| *first <= slot)
            .checked_sub(1)?;
        let (first, blocks) = chunks.get(at)?;
        blocks.get((slot - first) as usize)
    };
    let mut queues = Vec::new();
    for (place, (listener, _)) in (0u32..).zip(&listeners) {
        let mut queue = Vec::new();
        let mut at = listener.head;
        while at != NONE {
            let good = block(at).filter(|block| {
                block.listener == place
                    && block.listener_generation == listener.generation
                    && !block.has(ORPHAN)
                    && block.state != State::SYN_RECEIVED
                    && block.state != State::SYN_SENT
            });
            // Each waits once, so that a ring of them ends too.
            let (Some(block), 1..) = (good, waiting) else {
                return Err(Refused::Queue { listener: place });
            };
            waiting -= 1;
            queue.push(at);
            at = block.next;
        }
        queues.push(queue);
        if listener.open != 0 {
            let generation = listener.generation;
            ids.push(Id::Listener(ListenerId {
                slot: place,
                generation,
            }));
        }
    }
    if waiting > 0 {
        return Err(Refused::Note("connections wait in no listener's queue"));
    }
    let pieces = sealed.into_pieces();
    Ok(Found {
        note,
        pieces,
        listeners,
        queues,
        ids,
    })
}

impl Engine {
    /// What goes along beside the blocks and the listeners.
    pub fn note(&self) -> EngineNote {
        EngineNote {
            secret: self.secrets.to_bytes(),
            port_step: self.port_step,
            path_epoch: self.path_epoch,
            generation: self.blocks.generation(),
        }
    }

    /// The listeners' places.
    pub fn listener_notes(&self) -> impl Iterator<Item = ListenerNote> + '_ {
        let places = (0u32..).zip(&self.listeners);
        places.map(|(slot, (listener, options))| ListenerNote {
            slot,
            generation: listener.generation,
            open: (listener.open != 0).then_some(Open {
                local: listener.local,
                port: listener.port,
                v6_only: listener.v6_only != 0,
                backlog: listener.backlog,
                cookies_until: listener.cookies_until,
                head: listener.head,
                options: *options,
            }),
        })
    }

    /// Goes on with what was found in this memory. Nothing is sent before the next call of
    /// [`Engine::flush`] or [`Engine::tick`].
    pub fn adopt(config: Config, memory: Memory, found: Found) -> Result<Self, Refused> {
        let (arena, chunks) = arena::take_over(memory, found.pieces).ok_or(Refused::NoMemory)?;
        let EngineNote {
            secret,
            port_step,
            path_epoch,
            generation,
        } = found.note;
        let mut engine = Self::over(config, arena, secret);
        engine.blocks = Slab::adopt(chunks, engine.config.max_connections, generation);
        engine.port_step = port_step;
        // Devices may be others: paths are asked for anew.
        engine.path_epoch = path_epoch.wrapping_add(1);
        engine.listeners = found.listeners;
        for (place, (listener, _)) in (0u32..).zip(&engine.listeners) {
            if listener.open != 0 {
                let hash = engine.secrets.place_of_port(listener.port);
                engine.listener_index.insert(hash, place);
            }
        }
        engine.rebuild(found.queues);
        Ok(engine)
    }

    /// Derives from blocks all that is not in them.
    fn rebuild(&mut self, queues: Vec<Vec<u32>>) {
        let slots: Vec<u32> = self.blocks.slots().collect();
        let mut time_waits = Vec::new();
        let mut later = VecDeque::new();
        // With data on its way, and without.
        let mut timers = [Vec::new(), Vec::new()];
        let mut used = 0;
        for &slot in &slots {
            let id = self.id_of(slot);
            let block = &mut self.blocks[slot];
            used += self.buffers.size(block.rx) as usize + self.buffers.size(block.tx) as usize;
            // RST that is due to nobody's connection frees its block when it is out.
            let due = block.has(QUEUED | RST_DUE);
            block.clear(QUEUED | TOLD);
            let half_open = block.state == State::SYN_RECEIVED && block.has(PASSIVE);
            if half_open {
                let (listener, generation) = (block.listener, block.listener_generation);
                if let Some((listener, _)) = self.listeners.get_mut(listener as usize)
                    && listener.generation == generation
                {
                    listener.half_open += 1;
                }
            } else {
                block.listener = NONE;
            }
            let block = &mut self.blocks[slot];
            if due {
                block.set(QUEUED);
                // What is on its way may be lost, and somebody waits for it.
                if block.flight() > 0 {
                    self.queue.push_back(id);
                } else {
                    later.push_back(id);
                }
            }
            if block.state == State::CLOSED {
                continue;
            }
            if block.state == State::TIME_WAIT {
                time_waits.push((block.life_at, id));
            }
            let [first, second] = &mut timers;
            let timers = if block.flight() > 0 { first } else { second };
            if block.deadline() != OFF {
                timers.push((slot, block.deadline()));
            }
            let hash = self.secrets.place(&block.tuple);
            self.index.insert(hash, slot);
        }
        self.queue.append(&mut later);
        for (slot, deadline) in timers.into_iter().flatten() {
            self.timers.arm(slot, deadline);
        }
        time_waits.sort_unstable();
        self.stats.time_wait = time_waits.len() as u32;
        self.time_waits = time_waits.into_iter().map(|(_, id)| id).collect();
        self.buffers.set_used(used);
        for (place, queue) in (0u32..).zip(queues) {
            for slot in &queue {
                self.blocks[*slot].listener = place;
            }
            if let Some((listener, _)) = self.listeners.get_mut(place as usize) {
                listener.ready = queue.len() as u32;
                listener.tail = queue.last().copied().unwrap_or(NONE);
            }
        }
    }

    /// Gives the arena's memory back, with all that is in it.
    pub fn into_memory(self) -> Option<Memory> {
        let Self {
            blocks, buffers, ..
        } = self;
        drop(blocks);
        buffers.into_arena().into_memory()
    }
}
