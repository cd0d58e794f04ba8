//! xenbus: devices of other domains, found and connected through xenstore (public/io/xenbus.h).
//!
//! What is to be done next follows from two state nodes and from how far this image is ([`step`]), so
//! it does not matter how a device came to be as it is: attached by the toolstack, left by a backend
//! that restarted, or connected by the image before. If that one has handed it over it is connected
//! already, and nothing is written ([`Xenbus::adopt`]); else it is closed first.

/// `enum xenbus_state`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// The node is not there, or makes no sense.
    Unknown = 0,
    /// `XenbusStateInitialising`
    Initialising = 1,
    /// `XenbusStateInitWait`
    InitWait = 2,
    /// `XenbusStateInitialised`
    Initialised = 3,
    /// `XenbusStateConnected`
    Connected = 4,
    /// `XenbusStateClosing`
    Closing = 5,
    /// `XenbusStateClosed`
    Closed = 6,
    /// `XenbusStateReconfiguring`
    Reconfiguring = 7,
    /// `XenbusStateReconfigured`
    Reconfigured = 8,
}

impl State {
    /// From a node's value.
    #[must_use]
    pub fn parse(value: &[u8]) -> Self {
        match value.trim_ascii() {
            b"1" => Self::Initialising,
            b"2" => Self::InitWait,
            b"3" => Self::Initialised,
            b"4" => Self::Connected,
            b"5" => Self::Closing,
            b"6" => Self::Closed,
            b"7" => Self::Reconfiguring,
            b"8" => Self::Reconfigured,
            _ => Self::Unknown,
        }
    }

    /// As the node has it.
    #[must_use]
    pub fn digit(self) -> [u8; 1] {
        [b'0' + self as u8]
    }

    fn is_gone(self) -> bool {
        matches!(self, Self::Unknown | Self::Closing | Self::Closed)
    }
}

/// What to do for a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Nothing until a node changes.
    Wait,
    /// Write our state node.
    Write(State),
    /// Set up rings, write where they are, then [`State::Connected`].
    Connect,
    /// Touch the rings no more, then write this state.
    Stop(State),
    /// Both sides are connected.
    Ready,
}

/// How far this image is with a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// There are no rings of ours.
    None,
    /// The backend has been told of our rings.
    Offered,
    /// Both sides were connected.
    Up,
}

/// The next step: `front` and `back` are the state nodes, `online` is the toolstack's word that the
/// device is to stay. `is_ours` says whether the backend is at the ports of our rings; only asked
/// for once it says that it is connected.
#[must_use]
pub fn step(
    front: State,
    back: State,
    online: bool,
    link: Link,
    is_ours: impl FnOnce() -> bool,
) -> Step {
    match (link, front) {
        (Link::Offered | Link::Up, _) if back.is_gone() => Step::Stop(State::Closed),
        // To the rings of an image that was replaced while the backend was at it.
        (Link::Offered, _) if back == State::Connected && !is_ours() => Step::Stop(State::Closing),
        (Link::Offered | Link::Up, _) if back == State::Connected => Step::Ready,
        // The backend has restarted without a word, and waits for rings.
        (Link::Up, _) if matches!(back, State::Initialising | State::InitWait) => {
            Step::Stop(State::Initialising)
        }
        (Link::Offered | Link::Up, _) => Step::Wait,
        (Link::None, State::Initialising) if back == State::InitWait => Step::Connect,
        (Link::None, State::Initialising | State::Unknown) => Step::Wait,
        (Link::None, State::Closing) if back == State::Connected => Step::Wait,
        (Link::None, State::Closing) => Step::Write(State::Closed),
        (Link::None, State::Closed) => match back {
            State::Closed | State::InitWait | State::Initialising if online => {
                Step::Write(State::Initialising)
            }
            _ => Step::Wait,
        },
        // Connected by the image before, or by whoever started this one.
        (Link::None, _) => Step::Write(State::Closing),
    }
}

#[cfg(target_os = "hermit")]
pub use bus::{Listener, Xenbus};

#[cfg(target_os = "hermit")]
pub(super) use bus::GATE;

#[cfg(target_os = "hermit")]
mod bus {
    use super::{Link, State, Step, step};
    use crate::devices::control::Watcher;
    use crate::devices::handed;
    use crate::devices::netfront::ring::TxFeatures;
    use crate::devices::netfront::{Netfront, Settings, Status};
    use crate::memory::Extent;
    use crate::net;
    use crate::sync::Lock;
    use crate::xen::Committed;
    use crate::xen::console::println;
    use crate::xen::grant::{self, DomId};
    use crate::xen::wait::{self, WaitQueue};
    use crate::xen::xenstore::{self, Client, Error, SharedRing, Transaction, WatchEvent};
    use alloc::boxed::Box;
    use alloc::format;
    use alloc::string::String;
    use alloc::sync::Arc;
    use alloc::vec::Vec;
    use core::sync::atomic::Ordering;

    const NO: Transaction = Transaction::NONE;
    const VIFS: &str = "device/vif";
    /// Most devices that are looked at.
    const MAX_DEVICES: usize = 16;
    /// Steps for a device in a row; more means that somebody changes it all the time.
    const MAX_STEPS: usize = 16;
    /// How often frames that a backend still has mapped are asked for, in ns.
    const REAP_NS: u64 = 500_000_000;
    /// IP's smallest and netif's longest packet, in bytes.
    const MTU_MIN: u16 = 68;
    const MTU_MAX: u16 = 0xffff - 14 - 4;

    /// Who uses the devices.
    pub trait Listener {
        /// A network device is connected.
        fn attached(&self, nic: Box<Netfront>);
        /// It is going: it is to be dropped soon ([`Idle::Gone`](crate::devices::netfront::Idle)).
        fn detached(&self, vif: u32);
        /// No more devices come.
        fn failed(&self);
    }

    /// How long a switch waits for a device that is being connected, in ns. The next image would
    /// begin anew: where one image soon follows the other the device would never be there.
    const CONNECT_NS: u64 = 2_000_000_000;

    /// Keeps devices as they are while a switch is prepared.
    pub(in super::super) struct Gate {
        state: Lock<Passage>,
        changed: WaitQueue,
    }

    struct Passage {
        frozen: bool,
        /// Somebody is in.
        busy: bool,
        /// A backend has been told of rings and is not connected to them yet.
        connecting: bool,
    }

    pub(in super::super) static GATE: Gate = Gate {
        state: Lock::new(Passage {
            frozen: false,
            busy: false,
            connecting: false,
        }),
        changed: WaitQueue::new(),
    };

    impl Gate {
        pub fn enter(&self) -> Entered<'_> {
            // Without a deadline this gives nothing only where nobody can wait.
            let _ = self.changed.wait_until(None, || {
                let state = &mut *self.state.lock();
                (!state.frozen).then(|| state.busy = true)
            });
            Entered(self)
        }

        /// By who is in: whether a device is being connected now.
        fn connecting(&self, connecting: bool) {
            self.state.lock().connecting = connecting;
        }

        /// Lets no change of a device begin, and waits for one that has; for a while even for one
        /// that goes on outside.
        pub fn freeze(&self, deadline: u64) -> bool {
            let soon = wait::now().saturating_add(CONNECT_NS).min(deadline);
            let connected = self.changed.wait_until(Some(soon), || {
                let state = &mut *self.state.lock();
                (!state.busy && !state.connecting).then(|| state.frozen = true)
            });
            if connected.is_some() {
                return true;
            }
            self.state.lock().frozen = true;
            let quiet = self
                .changed
                .wait_until(Some(deadline), || (!self.state.lock().busy).then_some(()));
            if quiet.is_none() {
                self.thaw();
            }
            quiet.is_some()
        }

        pub fn thaw(&self) {
            self.state.lock().frozen = false;
            self.changed.wake_all();
        }
    }

    pub(in super::super) struct Entered<'a>(&'a Gate);

    impl Drop for Entered<'_> {
        fn drop(&mut self) {
            self.0.state.lock().busy = false;
            self.0.changed.wake_all();
        }
    }

    struct Device {
        vif: u32,
        /// Where its backend's nodes are; empty of one that was adopted, until somebody has looked.
        backend: String,
        domid: DomId,
        /// Its frames, once a switch takes it along.
        block: Option<Extent>,
        /// Its rings are ours.
        status: Option<Arc<Status>>,
        /// Until the backend is connected too.
        nic: Option<Box<Netfront>>,
        announced: bool,
        /// It could not be connected; tried again after the backend has been away.
        failed: bool,
    }

    /// The devices of this domain.
    pub struct Xenbus<L> {
        token: Committed,
        client: &'static Client<SharedRing>,
        listener: L,
        devices: Vec<Device>,
        /// When to try again to free what backends may have mapped (system time, in ns).
        reap_at: Option<u64>,
    }

    impl<L> core::fmt::Debug for Xenbus<L> {
        fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            f.debug_struct("Xenbus").finish_non_exhaustive()
        }
    }

    impl<L: Listener + Send> Watcher for Xenbus<L> {
        fn begin(&mut self) -> Result<(), Error> {
            for device in &self.devices {
                println!("segue: vif={} adopted", device.vif);
            }
            self.reap_later();
            self.client.watch("device", "device")
        }

        fn due(&mut self) -> Option<u64> {
            if self.reap_at.is_some_and(|at| wait::now() >= at) {
                self.reap();
            }
            self.reap_at
        }

        fn event(&mut self, event: &WatchEvent) -> Result<(), Error> {
            // Not while devices change: the backends of the image before would find their grants
            // gone while they are still to be told that they are closed.
            if self.reap_at.is_some() {
                self.reap_later();
            }
            let result = match &*event.token {
                "device" => self.scan(),
                token => {
                    let vif = token.strip_prefix("vif/").and_then(|n| n.parse().ok());
                    let at = self.devices.iter().position(|d| Some(d.vif) == vif);
                    at.map_or(Ok(()), |at| self.update(at))
                }
            };
            let offered = |d: &Device| d.status.is_some() && !d.announced;
            GATE.connecting(self.devices.iter().any(offered));
            result
        }

        fn failed(&mut self) {
            self.listener.failed();
        }
    }

    impl<L: Listener> Xenbus<L> {
        /// `listener` is told of devices by the thread that [`control::add`] gives this to.
        ///
        /// # Errors
        /// There is no xenstore.
        ///
        /// [`control::add`]: crate::devices::control::add
        pub fn new(token: Committed, listener: L) -> Result<Self, Error> {
            Ok(Self {
                token,
                client: xenstore::client()?,
                listener,
                devices: Vec::new(),
                reap_at: None,
            })
        }

        /// Goes on with the devices that the image before has handed over, as if they had been
        /// connected here: `listener` has them when this returns. Whether they are still there is
        /// looked at afterwards, when the watch on all devices is set.
        pub fn adopt(&mut self) {
            for device in handed::offered() {
                if device.kind != handed::NET || handed::take(self.token, device.block).is_none() {
                    continue;
                }
                let status = Arc::new(Status::default());
                match Netfront::adopt(self.token, &device, status.clone()) {
                    Ok(nic) => {
                        self.devices.push(Device {
                            vif: nic.vif(),
                            backend: String::new(),
                            domid: nic.backend(),
                            block: Some(nic.block()),
                            status: Some(status),
                            nic: None,
                            announced: true,
                            failed: false,
                        });
                        self.listener.attached(Box::new(nic));
                    }
                    Err(why) => {
                        let at = device.block.start();
                        println!("segue: device at={at:?} is connected anew reason=\"{why}\"");
                        handed::forget(self.token, &device);
                    }
                }
            }
            // What came before there was a handler has told nobody.
            net::notify();
        }

        fn reap(&mut self) {
            self.reap_at = None;
            if grant::reap(self.token) != 0 {
                self.reap_later();
            }
        }

        fn reap_later(&mut self) {
            self.reap_at = Some(wait::now().saturating_add(REAP_NS));
        }

        /// Finds devices that came and went; all of them may have changed.
        fn scan(&mut self) -> Result<(), Error> {
            let names = match self.client.directory(NO, VIFS) {
                Ok(names) => names,
                Err(e) if e.is_not_found() => Vec::new(),
                Err(e) => return Err(e),
            };
            let there: Vec<u32> = names
                .iter()
                .filter_map(|n| n.parse().ok())
                .take(MAX_DEVICES)
                .collect();
            for at in (0..self.devices.len()).rev() {
                if self.devices[at].backend.is_empty() && there.contains(&self.devices[at].vif) {
                    self.locate(at)?;
                }
            }
            let gone = |d: &Device| d.backend.is_empty() || !there.contains(&d.vif);
            while let Some(at) = self.devices.iter().position(gone) {
                let mut device = self.devices.swap_remove(at);
                self.stop(&mut device);
                if device.backend.is_empty() {
                    continue;
                }
                let (path, token) = device.watch();
                match self.client.unwatch(&path, &token) {
                    Ok(()) | Err(Error::Refused(_)) => {}
                    Err(e) => return Err(e),
                }
            }
            for vif in there {
                if !self.devices.iter().any(|d| d.vif == vif) {
                    match self.find(vif) {
                        Ok(device) => self.devices.push(device),
                        // Not all of its nodes are there yet: another event follows.
                        Err(Error::Refused(_) | Error::Value | Error::TooLong) => {}
                        Err(e) => return Err(e),
                    }
                }
            }
            for at in 0..self.devices.len() {
                self.update(at)?;
            }
            Ok(())
        }

        fn backend(&self, vif: u32) -> Result<(String, DomId), Error> {
            let path = |name| format!("{VIFS}/{vif}/{name}");
            let backend = self.client.read_text(NO, &path("backend"))?;
            let domid = self.client.read_number(NO, &path("backend-id"))?;
            if backend.is_empty() {
                return Err(Error::Value);
            }
            Ok((backend, DomId(domid.ok_or(Error::Value)?)))
        }

        /// Finds the backend of a device that was adopted, if it still has the same.
        fn locate(&mut self, at: usize) -> Result<(), Error> {
            let Some(device) = self.devices.get(at) else {
                return Ok(());
            };
            match self.backend(device.vif) {
                Ok((backend, domid)) if domid == device.domid => {
                    self.devices[at].backend = backend;
                    let (path, token) = self.devices[at].watch();
                    self.client.watch(&path, &token)
                }
                Ok(_) | Err(Error::Refused(_) | Error::Value | Error::TooLong) => Ok(()),
                Err(e) => Err(e),
            }
        }

        fn find(&self, vif: u32) -> Result<Device, Error> {
            let (backend, domid) = self.backend(vif)?;
            let device = Device {
                vif,
                backend,
                domid,
                block: None,
                status: None,
                nic: None,
                announced: false,
                failed: false,
            };
            let (path, token) = device.watch();
            self.client.watch(&path, &token)?;
            Ok(device)
        }

        fn state(&self, path: &str) -> Result<State, Error> {
            match self.client.read(NO, path) {
                Ok(value) => Ok(State::parse(&value)),
                Err(Error::Refused(_)) => Ok(State::Unknown),
                Err(e) => Err(e),
            }
        }

        fn update(&mut self, at: usize) -> Result<(), Error> {
            for _ in 0..MAX_STEPS {
                let Some(device) = self.devices.get(at) else {
                    break;
                };
                let front = self.state(&device.path("state"))?;
                let back = self.state(&format!("{}/state", device.backend))?;
                let online = format!("{}/online", device.backend);
                let online = self.client.read_number::<u8>(NO, &online);
                let online = matches!(online, Ok(Some(n)) if n != 0);
                let link = match &device.status {
                    None => Link::None,
                    Some(_) if device.announced => Link::Up,
                    Some(_) => Link::Offered,
                };
                let is_ours = || {
                    device
                        .nic
                        .as_ref()
                        .is_none_or(|nic| nic.is_connected(self.token))
                };
                let next = step(front, back, online, link, is_ours);
                let Some(device) = self.devices.get_mut(at) else {
                    break;
                };
                device.failed &= !back.is_gone();
                match next {
                    Step::Wait => break,
                    Step::Ready => {
                        if let Some(nic) = device.nic.take() {
                            device.announced = true;
                            println!("segue: vif={} connected", device.vif);
                            nic.can_go_on();
                            device.block = Some(nic.block());
                            self.listener.attached(nic);
                        }
                        break;
                    }
                    Step::Write(state) => {
                        let path = device.path("state");
                        self.client.write(NO, &path, &state.digit())?;
                        if state == State::Initialising {
                            // What the last connection left is free now, or will be asked for.
                            self.reap();
                        }
                    }
                    Step::Stop(state) => {
                        let mut device = self.devices.swap_remove(at);
                        self.stop(&mut device);
                        let path = device.path("state");
                        self.devices.push(device);
                        self.client.write(NO, &path, &state.digit())?;
                        // It is the last one now; the others are looked at by their own events.
                        return self.update(self.devices.len() - 1);
                    }
                    Step::Connect if device.failed => break,
                    Step::Connect => self.connect(at)?,
                }
            }
            Ok(())
        }

        fn stop(&mut self, device: &mut Device) {
            let Some(status) = device.status.take() else {
                return;
            };
            self.reap_later();
            // The network drops the device when it looks next; a switch may come before.
            if let Some(block) = device.block.take() {
                handed::remove(block);
            }
            status.stopped.store(true, Ordering::Release);
            device.nic = None;
            if core::mem::take(&mut device.announced) {
                println!("segue: vif={} disconnected", device.vif);
                self.listener.detached(device.vif);
            }
            net::notify();
        }

        fn settings(&self, device: &Device) -> Result<Settings, Error> {
            let back = |name: &str| {
                let path = format!("{}/{name}", device.backend);
                self.client.read_number::<u32>(NO, &path)
            };
            let feature = |name: &str| Ok::<_, Error>(back(name)?.is_some_and(|n| n != 0));
            let mac = match self.client.read_text(NO, &device.path("mac")) {
                Err(e) if e.is_not_found() => {
                    let path = format!("{}/mac", device.backend);
                    self.client.read_text(NO, &path)?
                }
                other => other?,
            };
            let mtu = match self.client.read_number(NO, &device.path("mtu"))? {
                Some(mtu) => mtu,
                None => back("mtu")?.unwrap_or(1500),
            };
            let mtu = u16::try_from(mtu).unwrap_or(MTU_MAX);
            Ok(Settings {
                backend: device.domid,
                mac: parse_mac(&mac).ok_or(Error::Value)?,
                mtu: mtu.clamp(MTU_MIN, MTU_MAX),
                tx: TxFeatures {
                    sg: feature("feature-sg")?,
                    gso4: feature("feature-gso-tcpv4")?,
                    gso6: feature("feature-gso-tcpv6")?,
                },
                csum4: !feature("feature-no-csum-offload")?,
                csum6: feature("feature-ipv6-csum-offload")?,
                split: feature("feature-split-event-channels")?,
            })
        }

        /// Sets up a device's rings and tells the backend.
        fn connect(&mut self, at: usize) -> Result<(), Error> {
            let Some(device) = self.devices.get(at) else {
                return Ok(());
            };
            let settings = self.settings(device);
            let status = Arc::new(Status::default());
            let made = match settings {
                Ok(settings) => {
                    let made = Netfront::new(self.token, device.vif, settings, status.clone());
                    made.map_err(|e| format!("{e}"))
                }
                Err(e @ (Error::Closed(_) | Error::TimedOut | Error::Absent)) => return Err(e),
                Err(e) => Err(format!("{e}")),
            };
            let nic = match made {
                Ok(nic) => Box::new(nic),
                Err(e) => {
                    println!("segue: vif={} not connected reason=\"{e}\"", device.vif);
                    if let Some(device) = self.devices.get_mut(at) {
                        device.failed = true;
                    }
                    return Ok(());
                }
            };
            self.client.transaction(|t| self.publish(t, device, &nic))?;
            let path = device.path("state");
            if let Some(device) = self.devices.get_mut(at) {
                device.nic = Some(nic);
                device.status = Some(status);
            }
            self.client.write(NO, &path, &State::Connected.digit())
        }

        /// Writes the nodes of netif.h.
        fn publish(&self, t: Transaction, device: &Device, nic: &Netfront) -> Result<(), Error> {
            let (tx, rx) = nic.rings().ok_or(Error::Value)?;
            let (tx_port, rx_port) = (nic.tx_port(), nic.rx_port());
            let write = |name: &str, value: u32| {
                let value = format!("{value}");
                self.client.write(t, &device.path(name), value.as_bytes())
            };
            let remove = |name: &str| match self.client.remove(t, &device.path(name)) {
                Err(e) if e.is_not_found() => Ok(()),
                other => other,
            };
            write("tx-ring-ref", tx.0)?;
            write("rx-ring-ref", rx.0)?;
            if tx_port == rx_port {
                // What an earlier connection wrote would be read first.
                remove("event-channel-tx")?;
                remove("event-channel-rx")?;
                write("event-channel", tx_port.0)?;
            } else {
                remove("event-channel")?;
                write("event-channel-tx", tx_port.0)?;
                write("event-channel-rx", rx_port.0)?;
            }
            for name in [
                "request-rx-copy",
                "feature-rx-notify",
                "feature-sg",
                "feature-gso-tcpv4",
                "feature-gso-tcpv6",
                "feature-ipv6-csum-offload",
            ] {
                write(name, 1)?;
            }
            write("feature-no-csum-offload", 0)
        }
    }

    impl Device {
        fn path(&self, name: &str) -> String {
            format!("{VIFS}/{}/{name}", self.vif)
        }

        /// Path and token of the watch on the backend.
        fn watch(&self) -> (String, String) {
            (
                format!("{}/state", self.backend),
                format!("vif/{}", self.vif),
            )
        }
    }

    /// Six hexadecimal bytes with colons.
    fn parse_mac(text: &str) -> Option<[u8; 6]> {
        let mut mac = [0; 6];
        let mut parts = text.trim().split(':');
        for byte in &mut mac {
            let part = parts.next().filter(|p| p.len() == 2)?;
            *byte = u8::from_str_radix(part, 16).ok()?;
        }
        // Not of a group.
        (parts.next().is_none() && mac[0] & 1 == 0).then_some(mac)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [State; 9] = [
        State::Unknown,
        State::Initialising,
        State::InitWait,
        State::Initialised,
        State::Connected,
        State::Closing,
        State::Closed,
        State::Reconfiguring,
        State::Reconfigured,
    ];

    #[test]
    fn states_are_digits() {
        for state in ALL {
            assert_eq!(State::parse(&state.digit()), state);
        }
        for bad in [&b""[..], b"9", b"-1", b"44", b"\xff"] {
            assert_eq!(State::parse(bad), State::Unknown);
        }
    }

    /// A backend that does what Linux's netback does when the frontend's node changes.
    #[derive(Clone, Copy, Debug)]
    struct Net {
        front: State,
        back: State,
        online: bool,
        link: Link,
        /// Its nodes are gone.
        removed: bool,
        /// How often we have made rings.
        rings: u32,
        /// Those that the backend has read of, and is not connected to yet.
        read: Option<u32>,
        /// Those that it is connected to.
        at: u32,
    }

    impl Net {
        fn new(front: State, back: State, online: bool, link: Link) -> Net {
            Net {
                front,
                back,
                online,
                link,
                removed: false,
                rings: 0,
                read: None,
                at: 0,
            }
        }

        fn next(&self) -> Step {
            let is_ours = || self.at == self.rings;
            step(self.front, self.back, self.online, self.link, is_ours)
        }

        fn backend(&mut self) {
            if let Some(read) = self.read.take() {
                (self.back, self.at) = (State::Connected, read);
                return;
            }
            if (self.front, self.back) == (State::Connected, State::InitWait) {
                self.read = Some(self.rings);
                return;
            }
            self.back = match (self.front, self.back) {
                (_, State::Unknown) => State::Unknown,
                // By way of the states between.
                (State::Initialising, State::Connected | State::Closing | State::Closed) => {
                    State::InitWait
                }
                (State::Closing, State::Connected | State::InitWait) => State::Closing,
                (State::Closed, b) => {
                    self.removed |= !self.online;
                    if b == State::InitWait {
                        b
                    } else {
                        State::Closed
                    }
                }
                (_, b) => b,
            };
        }

        /// False when there is nothing to do.
        fn frontend(&mut self) -> bool {
            let before = self.link;
            match self.next() {
                Step::Wait => return false,
                Step::Ready => self.link = Link::Up,
                Step::Write(state) => self.front = state,
                Step::Connect => {
                    self.rings += 1;
                    (self.front, self.link) = (State::Connected, Link::Offered);
                }
                Step::Stop(state) => (self.front, self.link) = (state, Link::None),
            }
            before != Link::Up || self.link != before
        }

        /// Until neither side moves; `order` says who comes first.
        fn settle(&mut self, mut order: u64) {
            for _ in 0..64 {
                let before = (self.front, self.back, self.read);
                if order & 1 == 0 {
                    self.backend();
                }
                let moved = self.frontend();
                order >>= 1;
                if !moved && before == (self.front, self.back, self.read) {
                    self.backend();
                    if !self.frontend() && before == (self.front, self.back, self.read) {
                        return;
                    }
                }
            }
            panic!("no end: {self:?}");
        }
    }

    proptest! {
        /// Whatever the device was like, it ends connected by us, or closed if it is to go; and so
        /// again after the backend has restarted.
        #[test]
        fn a_device_gets_connected(
            front in prop_oneof![Just(State::Initialising), Just(State::Connected), Just(State::Closing), Just(State::Closed), Just(State::Initialised)],
            order: u64, restarts in proptest::collection::vec(any::<u64>(), 0..4), online: bool,
        ) {
            // Pairs of states that netback leaves behind.
            let back = match front {
                State::Initialising | State::Initialised => State::InitWait,
                State::Closed => State::Closed,
                State::Closing => State::Closing,
                other => other,
            };
            let mut net = Net::new(front, back, true, Link::None);
            net.settle(order);
            prop_assert!(net.link == Link::Up && net.front == State::Connected && net.back == State::Connected, "{:?}", net);
            for order in restarts {
                // With a word or without.
                net.back = if order & 4 == 0 { State::Closed } else { State::InitWait };
                net.settle(order);
                prop_assert!(net.link == Link::Up && net.back == State::Connected, "{:?}", net);
            }
            net.online = online;
            net.back = State::Closing;
            net.settle(order >> 7);
            prop_assert_eq!(net.link == Link::Up, online);
            prop_assert_eq!(net.removed, !online);
        }

        /// Images that are replaced while a device is being connected do not keep the last one from
        /// connecting it: to its own rings.
        #[test]
        fn switches_may_come_at_any_step(order: u64, switches: u64) {
            let mut net = Net::new(State::Initialising, State::InitWait, true, Link::None);
            for bit in 0..32 {
                if order >> bit & 1 == 0 {
                    net.backend();
                } else {
                    net.frontend();
                }
                // One that is up is adopted.
                if switches >> bit & 1 == 1 && net.link == Link::Offered {
                    net.link = Link::None;
                }
            }
            net.settle(order >> 32);
            prop_assert!(net.link == Link::Up && net.back == State::Connected, "{:?}", net);
            prop_assert!(net.at == net.rings, "{:?}", net);
        }

        /// A device that was adopted stays as it is, and nothing is written, unless something has
        /// happened to it meanwhile: then it is as if it had happened here.
        #[test]
        fn an_adopted_device_is_left_alone(online: bool, order: u64, happened in proptest::option::of((0usize..4, any::<bool>()))) {
            let mut net = Net::new(State::Connected, State::Connected, true, Link::Up);
            prop_assert_eq!(net.next(), Step::Ready);
            if let Some((what, stays)) = happened {
                net.online = stays && online;
                match what {
                    // Detached, or the backend restarts.
                    0 => net.back = State::Closing,
                    1 => net.back = State::Closed,
                    2 => (net.back, net.online) = (State::InitWait, true),
                    // Detached and attached again.
                    _ => (net.front, net.back, net.online) = (State::Initialising, State::InitWait, true),
                }
                net.settle(order);
            }
            let up = happened.is_none() || net.online;
            prop_assert_eq!(net.link == Link::Up, up, "{:?}", net);
            prop_assert_eq!(net.removed, !up);
        }

        /// No pair of states makes us go round in circles by ourselves.
        #[test]
        fn we_come_to_rest(f in 0usize..9, b in 0usize..9, online: bool, ours: bool, link in prop_oneof![Just(Link::None), Just(Link::Offered), Just(Link::Up)]) {
            let mut net = Net::new(ALL[f], ALL[b], online, link);
            net.rings = ours.into();
            let mut steps = 0;
            while net.frontend() {
                steps += 1;
                prop_assert!(steps < 6, "{:?}", net);
            }
        }
    }
}
