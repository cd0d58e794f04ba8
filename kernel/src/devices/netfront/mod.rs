//! netfront: a network device of another domain (public/io/netif.h).
//!
//! A device has one block of granted frames: two rings, and a page for each of their slots, which
//! stay granted as long as the device is connected. So sending costs a copy and no grant, and
//! receiving neither. A frame behind them is granted to nobody: there the driver puts down what
//! another image needs to go on with the device in the middle of everything (`private.rs`).

pub mod private;
pub mod ring;

#[cfg(target_os = "hermit")]
pub(super) use driver::Status;
#[cfg(target_os = "hermit")]
pub use driver::{Idle, Netfront, NetfrontError, Settings, check_offered};

#[cfg(target_os = "hermit")]
mod driver {
    use super::private::{self, Damage, Fixed, Moving};
    use super::ring::{
        Buffers, PAGE, Page, RxRing, SLOTS, Throttle, TxFeatures, TxRing, Violation,
    };
    use crate::devices::handed::{self, Device, NET};
    use crate::memory::Extent;
    pub use crate::net::nic::Idle;
    use crate::net::nic::{Caps, Nic, RxMeta, SendError, TxMeta};
    use crate::xen::console::println;
    use crate::xen::grant::{self, Access, DomId, GrantError, GrantRef, SharedPages};
    use crate::xen::hypercall::{self, Port, XenError};
    use crate::xen::{Committed, events};
    use alloc::sync::Arc;
    use core::fmt;
    use core::sync::atomic::{AtomicBool, Ordering};

    /// Frames of a device's block that are granted: two rings, then a page for each slot of the tx
    /// ring, then of the rx ring.
    const FRAMES: u64 = private::GRANTED as u64;
    /// Frames behind them that are not.
    const PRIVATE: u64 = 1;
    const TX_PAGES: u64 = 2;
    const RX_PAGES: u64 = 2 + SLOTS as u64;
    /// Most payload of a frame to be cut: the longest frame less the longest headers.
    const GSO_MAX: u32 = 0xffff - 14 - 60 - 60;

    /// What xenstore says of a device.
    #[derive(Clone, Copy, Debug)]
    pub struct Settings {
        /// The domain it lives in.
        pub backend: DomId,
        /// Its Ethernet address.
        pub mac: [u8; 6],
        /// Longest IP packet, in bytes.
        pub mtu: u16,
        /// What it does for frames to send.
        pub tx: TxFeatures,
        /// Checksums may be left blank over IPv4.
        pub csum4: bool,
        /// Checksums may be left blank over IPv6.
        pub csum6: bool,
        /// It has an event channel for each ring (`feature-split-event-channels`).
        pub split: bool,
    }

    // The backend only reads frames to send.
    fn access(n: u64) -> Access {
        match n {
            TX_PAGES..RX_PAGES => Access::Read,
            _ => Access::Write,
        }
    }

    /// Why a device does not go on in this image.
    #[derive(Clone, Copy, Debug)]
    pub(crate) enum Unfit {
        /// What the image before says of it can't be used.
        Damage(Damage),
        /// It says of it what the record does not.
        Record,
        /// Its backend had broken the protocol.
        Failed,
    }

    impl fmt::Display for Unfit {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match self {
                Self::Damage(d) => write!(f, "{d}"),
                Self::Record => f.write_str("its data and the record do not agree"),
                Self::Failed => f.write_str("its backend had broken the protocol"),
            }
        }
    }

    /// Why a device was not connected.
    #[derive(Clone, Copy, Debug)]
    pub enum NetfrontError {
        /// No memory or grants.
        Grant(GrantError),
        /// No event channel.
        Port(XenError),
    }

    impl fmt::Display for NetfrontError {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match self {
                Self::Grant(e) => write!(f, "{e}"),
                Self::Port(e) => write!(f, "no event channel: {e}"),
            }
        }
    }

    impl From<GrantError> for NetfrontError {
        fn from(e: GrantError) -> Self {
            Self::Grant(e)
        }
    }

    /// The pages of one direction, as the ring code sees them.
    #[derive(Debug)]
    struct Pages {
        block: Arc<SharedPages>,
        first: u64,
    }

    impl Pages {
        fn ptr(&self, page: u16) -> *mut u8 {
            frame(
                self.block.extent(),
                self.first + u64::from(page) % u64::from(SLOTS),
            )
        }
    }

    /// The `n`th frame of a block.
    fn frame(block: Extent, n: u64) -> *mut u8 {
        // Blocks are long enough: the part is always there.
        block.part(n, 1).unwrap_or(block).addr().as_ptr()
    }

    /// What the image before says of a device.
    ///
    /// # Errors
    /// It can't be used.
    fn read(device: &Device) -> Result<(Fixed, Moving), Unfit> {
        if device.version != private::VERSION {
            return Err(Unfit::Damage(Damage::Version(device.version)));
        }
        if device.block.frames() != FRAMES + PRIVATE || device.private != PRIVATE {
            return Err(Unfit::Record);
        }
        // SAFETY: a frame that is handed over, mapped readable, and written by nobody.
        let bytes = unsafe { &*frame(device.block, FRAMES).cast::<private::Frame>() };
        let fixed = private::fixed(bytes).map_err(Unfit::Damage)?;
        let moving = private::moving(bytes).map_err(Unfit::Damage)?;
        match device.ports == ports_of(fixed.tx_port, fixed.rx_port) {
            true => Ok((fixed, moving)),
            false => Err(Unfit::Record),
        }
    }

    fn ports_of(tx: u32, rx: u32) -> [u32; 2] {
        [tx, if rx == tx { 0 } else { rx }]
    }

    /// Says whether all devices that came with the switch can go on here, as far as that can be seen
    /// on trial.
    ///
    /// # Errors
    /// Which cannot, and why.
    pub fn check_offered() -> Result<(), impl fmt::Display> {
        for device in handed::offered() {
            if device.kind == NET
                && let Err(why) = read(&device)
            {
                let at = device.block.start();
                return Err(fmt::from_fn(move |f| {
                    write!(f, "a network device can't go on, block={at:?}: {why}")
                }));
            }
        }
        Ok(())
    }

    /// In prepare, by the image that hands it over: its grants and ports are what they should be.
    fn audit(token: Committed, device: &Device) -> Result<(), &'static str> {
        // SAFETY: the device is this image's; its private frame's fixed part is written once.
        let bytes = unsafe { &*frame(device.block, FRAMES).cast::<private::Frame>() };
        let fixed = private::fixed(bytes).map_err(|_| "its data is damaged")?;
        let backend = DomId(fixed.backend);
        if !device
            .ports()
            .all(|p| events::is_connected(token, Port(p), backend))
        {
            return Err("its backend is not at its ports");
        }
        let grefs = fixed.grefs.iter().copied().map(GrantRef);
        match grant::check(device.block, grefs, backend, access) {
            true => Ok(()),
            false => Err("its grants are not its own"),
        }
    }

    impl Buffers for Pages {
        fn gref(&self, page: u16) -> GrantRef {
            let n = self.first as usize + usize::from(page) % SLOTS as usize;
            self.block.gref(n).unwrap_or(GrantRef(0))
        }

        fn bytes(&self, page: u16, at: usize, len: usize) -> &[u8] {
            let at = at.min(PAGE);
            let len = len.min(PAGE - at);
            // SAFETY: inside a page of ours that nobody here writes. The backend has answered for
            // it; one that writes on changes payload only, which is checked as any from outside.
            unsafe { core::slice::from_raw_parts(self.ptr(page).add(at), len) }
        }

        fn write(&mut self, page: u16, at: usize, bytes: &[u8]) {
            let at = at.min(PAGE);
            let len = bytes.len().min(PAGE - at);
            // SAFETY: inside a page of ours, which the backend may only read.
            unsafe {
                self.ptr(page)
                    .add(at)
                    .copy_from_nonoverlapping(bytes.as_ptr(), len);
            }
        }
    }

    /// What the network and who handles its xenstore nodes share.
    #[derive(Debug, Default)]
    pub(crate) struct Status {
        /// The backend is going: no ring is touched any more.
        pub stopped: AtomicBool,
    }

    /// A connected network device. Dropping it takes back ports and grants.
    #[derive(Debug)]
    pub struct Netfront {
        vif: u32,
        backend: DomId,
        caps: Caps,
        token: Committed,
        // The rings are used only while `block` is there.
        tx: TxRing<'static, Pages>,
        rx: RxRing<'static, Pages>,
        block: Arc<SharedPages>,
        tx_port: Port,
        rx_port: Port,
        status: Arc<Status>,
        failed: Option<Violation>,
        throttle: Throttle,
        worked: bool,
        blocked: bool,
        tell_tx: bool,
        tell_rx: bool,
        /// What the private frame says is so.
        frozen: bool,
    }

    impl Netfront {
        /// Sets up rings, grants and ports; the backend knows of none of it yet.
        ///
        /// # Errors
        /// See [`NetfrontError`].
        pub(crate) fn new(
            token: Committed,
            vif: u32,
            settings: Settings,
            status: Arc<Status>,
        ) -> Result<Self, NetfrontError> {
            let frames = (FRAMES, PRIVATE);
            let block = Arc::new(SharedPages::new(token, frames, settings.backend, access)?);
            let pages = |first| Pages {
                block: Arc::clone(&block),
                first,
            };
            let alloc =
                || events::open(token, settings.backend, on_event).map_err(NetfrontError::Port);
            let tx_port = alloc()?;
            let rx_port = match settings.split.then(alloc) {
                Some(Err(e)) => {
                    events::close(token, tx_port);
                    return Err(e);
                }
                Some(Ok(port)) => port,
                None => tx_port,
            };
            let fixed = Fixed {
                vif,
                backend: settings.backend.0,
                mtu: settings.mtu,
                mac: settings.mac,
                tx: settings.tx,
                csum4: settings.csum4,
                csum6: settings.csum6,
                tx_port: tx_port.0,
                rx_port: rx_port.0,
                grefs: core::array::from_fn(|n| block.gref(n).unwrap_or(GrantRef(0)).0),
            };
            let device = Self {
                vif,
                backend: settings.backend,
                caps: caps(&fixed),
                token,
                tx: TxRing::new(ring(&block, 0), pages(TX_PAGES), settings.tx),
                rx: RxRing::new(ring(&block, 1), pages(RX_PAGES)),
                block: Arc::clone(&block),
                tx_port,
                rx_port,
                status,
                failed: None,
                throttle: Throttle::default(),
                worked: false,
                blocked: false,
                tell_tx: false,
                tell_rx: true,
                frozen: false,
            };
            private::connect(device.private(), &fixed);
            Ok(device)
        }

        /// Goes on with a device of the image before, which its backend does not notice: no
        /// hypercall is made. Its rings are to be looked at once: what came before this is not told.
        ///
        /// # Errors
        /// It can't go on: then it is nobody's.
        pub(crate) fn adopt(
            token: Committed,
            device: &Device,
            status: Arc<Status>,
        ) -> Result<Self, Unfit> {
            let (fixed, moving) = read(device)?;
            if moving.failed {
                return Err(Unfit::Failed);
            }
            let grefs = fixed.grefs.iter().copied().map(GrantRef).collect();
            let block = SharedPages::adopt(token, device.block, grefs);
            let block = Arc::new(block.ok_or(Unfit::Record)?);
            let pages = |first| Pages {
                block: Arc::clone(&block),
                first,
            };
            let tx = TxRing::adopt(ring(&block, 0), pages(TX_PAGES), fixed.tx, &moving.tx);
            let rx = RxRing::adopt(ring(&block, 1), pages(RX_PAGES), &moving.rx);
            let rings = tx.zip(rx);
            let (tx, rx) = rings.ok_or(Unfit::Damage(Damage::Rings))?;
            for port in device.ports() {
                events::adopt(Port(port), on_event);
            }
            let device = Self {
                vif: fixed.vif,
                backend: DomId(fixed.backend),
                caps: caps(&fixed),
                token,
                tx,
                rx,
                block: Arc::clone(&block),
                tx_port: Port(fixed.tx_port),
                rx_port: Port(fixed.rx_port),
                status,
                failed: None,
                throttle: Throttle::default(),
                worked: false,
                blocked: moving.blocked,
                tell_tx: false,
                tell_rx: false,
                frozen: true,
            };
            device.can_go_on();
            Ok(device)
        }

        /// Both sides are connected: from now on a switch takes the device along.
        pub(crate) fn can_go_on(&self) {
            let device = Device {
                block: self.block.extent(),
                private: PRIVATE,
                kind: NET,
                version: private::VERSION,
                ports: ports_of(self.tx_port.0, self.rx_port.0),
            };
            handed::add(device, audit);
        }

        /// Whether the backend is at its ports.
        pub(crate) fn is_connected(&self, token: Committed) -> bool {
            [self.tx_port, self.rx_port]
                .iter()
                .all(|port| events::is_connected(token, *port, self.backend))
        }

        /// The domain it lives in.
        pub(crate) fn backend(&self) -> DomId {
            self.backend
        }

        /// Its frames.
        pub(crate) fn block(&self) -> Extent {
            self.block.extent()
        }

        /// The frame that no other domain may use.
        #[expect(clippy::mut_from_ref, reason = "a frame beside the device, as it were")]
        fn private(&self) -> &mut private::Frame {
            // SAFETY: a frame of the block that is granted to nobody and that nobody else here
            // writes; `audit` reads another part of it.
            unsafe { &mut *frame(self.block.extent(), FRAMES).cast::<private::Frame>() }
        }

        /// The device is used again, in this image or in the one that has adopted it.
        fn wake(&mut self) {
            if core::mem::take(&mut self.frozen) {
                private::wake(self.private());
            }
        }

        /// Number of the device: N of `device/vif/N`.
        #[must_use]
        pub fn vif(&self) -> u32 {
            self.vif
        }

        /// Frames that were not sent or not received, by the backend's word.
        #[must_use]
        pub fn errors(&self) -> (u64, u64) {
            (self.tx.errors, self.rx.errors)
        }

        pub(crate) fn rings(&self) -> Option<(GrantRef, GrantRef)> {
            Some((self.block.gref(0)?, self.block.gref(1)?))
        }

        pub(crate) fn tx_port(&self) -> Port {
            self.tx_port
        }

        pub(crate) fn rx_port(&self) -> Port {
            self.rx_port
        }

        fn ports(&self) -> impl Iterator<Item = Port> + use<> {
            let second = (self.rx_port != self.tx_port).then_some(self.rx_port);
            [self.tx_port].into_iter().chain(second)
        }

        fn usable(&self) -> bool {
            self.failed.is_none() && !self.status.stopped.load(Ordering::Acquire)
        }

        fn fail(&mut self, violation: Violation) {
            println!(
                "segue: vif={} stopped reason=\"backend broke the protocol: {violation}\"",
                self.vif
            );
            self.failed = Some(violation);
            // In the next image it gets another chance.
            handed::remove(self.block());
            self.ports().for_each(events::mask);
        }
    }

    /// A ring's page.
    fn ring(block: &SharedPages, n: u64) -> &'static Page {
        // SAFETY: a frame of the block, which lives as long as the rings; all its words are atomics.
        unsafe { &*frame(block.extent(), n).cast::<Page>() }
    }

    fn caps(fixed: &Fixed) -> Caps {
        Caps {
            mac: fixed.mac,
            mtu: fixed.mtu,
            csum_tx: fixed.csum4,
            csum6_tx: fixed.csum6,
            gso4_max: gso_max(fixed.tx.gso4 && fixed.csum4 && fixed.tx.sg),
            gso6_max: gso_max(fixed.tx.gso6 && fixed.csum6 && fixed.tx.sg),
        }
    }

    fn gso_max(can: bool) -> u32 {
        if can { GSO_MAX } else { 0 }
    }

    /// The port is masked until the device has been looked at (XSA-391).
    fn on_event(port: Port) {
        events::mask(port);
        crate::net::notify();
    }

    impl Nic for Netfront {
        fn caps(&self) -> Caps {
            self.caps
        }

        fn send(&mut self, pieces: &[&[u8]], meta: TxMeta) -> Result<(), SendError> {
            if !self.usable() {
                // The link is down: frames are lost, as on a wire.
                return Ok(());
            }
            self.wake();
            match self.tx.send(pieces, meta) {
                Ok(result) => {
                    self.blocked = result == Err(SendError::Full);
                    result
                }
                Err(violation) => {
                    self.fail(violation);
                    Ok(())
                }
            }
        }

        fn tx_ready(&self) -> bool {
            !self.usable() || self.tx.ready()
        }

        fn receive(&mut self, budget: usize, each: &mut dyn FnMut(&[&[u8]], RxMeta)) -> usize {
            if !self.usable() {
                return 0;
            }
            self.wake();
            let count = self.rx.receive(budget, each).unwrap_or_else(|violation| {
                self.fail(violation);
                0
            });
            self.tell_rx |= self.rx.publish();
            self.worked |= count != 0;
            if self.blocked && self.usable() && self.tx.ready() {
                self.worked = true;
                self.blocked = false;
            }
            count
        }

        fn flush(&mut self) {
            if !self.usable() {
                return;
            }
            self.wake();
            self.tell_tx |= self.tx.publish();
            let (tx, rx) = (
                core::mem::take(&mut self.tell_tx),
                core::mem::take(&mut self.tell_rx),
            );
            if tx || (rx && self.rx_port == self.tx_port) {
                let _ = hypercall::send(self.token, self.tx_port);
            }
            if rx && self.rx_port != self.tx_port {
                let _ = hypercall::send(self.token, self.rx_port);
            }
        }

        fn freeze(&mut self) {
            // What is written is shown: the next image has nothing to tell of.
            self.flush();
            let moving = Moving {
                tx: self.tx.state(),
                rx: self.rx.state(),
                blocked: self.blocked,
                failed: !self.usable(),
            };
            private::rest(self.private(), &moving);
            self.frozen = true;
        }

        fn idle(&mut self, now: u64) -> Idle {
            self.wake();
            if self.status.stopped.load(Ordering::Acquire) {
                return Idle::Gone;
            }
            if self.failed.is_some() {
                return Idle::Until(None);
            }
            let worked = core::mem::take(&mut self.worked);
            if self.ports().any(events::is_masked) {
                self.throttle.woken(worked, now);
            }
            if self.rx.arm() || (self.blocked && self.tx.arm()) {
                return Idle::Work;
            }
            if let Some(until) = self.throttle.held(now) {
                return Idle::Until(Some(until));
            }
            let mut came = false;
            for port in self.ports() {
                if events::unmask_and_take(port) {
                    events::mask(port);
                    came = true;
                }
            }
            if came {
                return Idle::Work;
            }
            Idle::Until(None)
        }
    }

    impl Drop for Netfront {
        fn drop(&mut self) {
            handed::remove(self.block());
            for port in self.ports() {
                events::close(self.token, port);
            }
        }
    }
}
