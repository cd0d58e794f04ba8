//! The seam between the network stack and a network device: frames in pieces, with what netif.h
//! says of a frame's checksum and segmentation beside it.

use serde::{Deserialize, Serialize};

/// What a device is and can do. Fixed while it is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caps {
    /// Ethernet address.
    pub mac: [u8; 6],
    /// Longest IP packet, in bytes, without segmentation offload.
    pub mtu: u16,
    /// TCP and UDP checksums over IPv4 may be left blank in frames to send.
    pub csum_tx: bool,
    /// TCP and UDP checksums over IPv6 may be left blank in frames to send.
    pub csum6_tx: bool,
    /// Most TCP payload over IPv4 in one frame to be cut by the device, in bytes; 0: none.
    pub gso4_max: u32,
    /// Most TCP payload over IPv6 in one frame to be cut by the device, in bytes; 0: none.
    pub gso6_max: u32,
}

/// How a received frame's checksum stands and whether it was cut, as in netif.h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxMeta {
    /// The transport checksum was checked, or is blank because the frame never left the host.
    pub csum_valid: bool,
    /// Segment size if the frame stands for several segments, in bytes; 0: an ordinary frame.
    pub gso_mss: u16,
}

/// Which protocol a frame that is to be cut carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Gso {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
}

/// What is left to the device for a frame to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TxMeta {
    /// The transport checksum field holds the pseudo-header's sum; the device completes it.
    pub csum_blank: bool,
    /// The frame is to be cut into segments of this payload, in bytes.
    pub gso: Option<(Gso, u16)>,
}

/// Why a frame was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// No room now; [`Nic::tx_ready`] tells later.
    Full,
    /// The device can never send this frame: too long, or it asks for what the device has not.
    Refused,
}

impl core::fmt::Display for SendError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Full => "no room to send: try again when the device is ready",
            Self::Refused => "the device cannot send such a frame",
        })
    }
}

/// Whether a device has something to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Idle {
    /// Yes: receive and send.
    Work,
    /// Not before an event, or this system time in ns.
    Until(Option<u64>),
    /// Never again: drop it.
    Gone,
}

/// A network device.
pub trait Nic {
    /// What the device can do.
    fn caps(&self) -> Caps;

    /// Sends one Ethernet frame that lies in these pieces (copied before it returns).
    ///
    /// # Errors
    /// See [`SendError`].
    fn send(&mut self, pieces: &[&[u8]], meta: TxMeta) -> Result<(), SendError>;

    /// Whether [`Nic::send`] has room again.
    fn tx_ready(&self) -> bool;

    /// Passes at most `budget` received frames to `each` as pieces; the first one holds at least
    /// all headers, contiguous, up to 256 bytes or the frame's end. Returns how many.
    fn receive(&mut self, budget: usize, each: &mut dyn FnMut(&[&[u8]], RxMeta)) -> usize;

    /// Tells the backend of what was sent since, once per batch (one notification at most).
    fn flush(&mut self);

    /// Puts down all that another image needs to go on with the device where this one stands: a
    /// switch is about to be tried. Nothing else of it is called until the switch has failed, and
    /// then it goes on as if nothing had been: so nothing may change here that it would notice.
    fn freeze(&mut self) {}

    /// Called when there is nothing more to do for the device: asks it for the next event (which it
    /// tells by [`notify`](super::notify)), and says whether one has come already. `now` is the
    /// system time in ns.
    fn idle(&mut self, now: u64) -> Idle {
        let _ = now;
        Idle::Until(None)
    }
}
