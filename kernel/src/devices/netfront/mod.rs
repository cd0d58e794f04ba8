//! netfront: a network device of another domain (public/io/netif.h).
//!
//! A device has one block of granted frames: two rings, and a page for each of their slots, which
//! stay granted as long as the device is connected. So sending costs a copy and no grant, and
//! receiving neither.

pub mod private;
pub mod ring;

#[cfg(target_os = "hermit")]
pub(super) use driver::Status;
#[cfg(target_os = "hermit")]
pub use driver::{Idle, Netfront, NetfrontError, Settings};

#[cfg(target_os = "hermit")]
mod driver {
    use super::ring::{
        Buffers, PAGE, Page, RxRing, SLOTS, Throttle, TxFeatures, TxRing, Violation,
    };
    pub use crate::net::nic::Idle;
    use crate::net::nic::{Caps, Nic, RxMeta, SendError, TxMeta};
    use crate::xen::console::println;
    use crate::xen::grant::{Access, DomId, GrantError, GrantRef, SharedPages};
    use crate::xen::hypercall::{self, Port, XenError};
    use crate::xen::{Committed, events};
    use alloc::sync::Arc;
    use core::fmt;
    use core::sync::atomic::{AtomicBool, Ordering};

    /// Frames of a device's block: two rings, then a page for each slot of the tx ring, then of
    /// the rx ring.
    const FRAMES: u64 = 2 + 2 * SLOTS as u64;
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
            let n = self.first + u64::from(page) % u64::from(SLOTS);
            let extent = self.block.extent();
            // `new` made the block long enough: the part is always there.
            extent.part(n, 1).unwrap_or(extent).addr().as_ptr()
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
            // The backend only reads frames to send.
            let access = |n| match n {
                TX_PAGES..RX_PAGES => Access::Read,
                _ => Access::Write,
            };
            let block = Arc::new(SharedPages::new(token, FRAMES, settings.backend, access)?);
            let pages = |first| Pages {
                block: Arc::clone(&block),
                first,
            };
            let ring = |n: u16| -> &'static Page {
                // SAFETY: a frame of the block, which lives as long as the rings; all its words are
                // atomics.
                unsafe { &*pages(0).ptr(n).cast::<Page>() }
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
            let caps = Caps {
                mac: settings.mac,
                mtu: settings.mtu,
                csum_tx: settings.csum4,
                csum6_tx: settings.csum6,
                gso4_max: gso_max(settings.tx.gso4 && settings.csum4 && settings.tx.sg),
                gso6_max: gso_max(settings.tx.gso6 && settings.csum6 && settings.tx.sg),
            };
            Ok(Self {
                vif,
                caps,
                token,
                tx: TxRing::new(ring(0), pages(TX_PAGES), settings.tx),
                rx: RxRing::new(ring(1), pages(RX_PAGES)),
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
            })
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
            self.ports().for_each(events::mask);
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

        fn idle(&mut self, now: u64) -> Idle {
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
            for port in self.ports() {
                events::close(self.token, port);
            }
        }
    }
}
